"""Every combination of the values that were listed for a handler's options."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from tidegate.cli.overrides import Change, loaded_handlers, stop
from tidegate.handler import Handler

__all__ = ["Configuration", "configurations", "numbers"]

_LISTS = ("devices", "batch_dim", "forward_headers")
"""Options of which a list is one value."""

N = TypeVar("N", int, float)


@dataclass(frozen=True, slots=True)
class Configuration:
    """shown: what distinguishes it from the others. flags: for `tidegate serve`."""

    shown: Mapping[str, Any]
    flags: Sequence[str]
    handler: Handler[..., Any] | None = None


def configurations(target: str, settings: Sequence[Change]) -> list[Configuration]:
    """All combinations, each with its handler; exits with 2 and one line when one does not fit, before any is run."""
    several = [change for change in settings if isinstance(change.value, list) and change.argument not in _LISTS]
    for change in several:
        if not change.value:
            stop(2, f"Error: {change.origin}: give a value, or several with commas between them")
    found = []
    for values in itertools.product(*(change.value for change in several)):
        chosen = dict(zip(map(id, several), values, strict=True))
        changes = [replace(one, value=chosen[id(one)]) if id(one) in chosen else one for one in settings]
        handler = _only(loaded_handlers([target], changes), target)
        # The last word of several about one option counts.
        shown = {change.argument: value for change, value in zip(several, values, strict=True)}
        flags = [f"--set={handler.name}.{change.argument}={_typed(change.value)}" for change in changes]
        found.append(Configuration(shown, flags, handler))
    return found


def _only(handlers: Sequence[Handler[..., Any]], target: str) -> Handler[..., Any]:
    if len(handlers) > 1:
        names = ", ".join(f"{target}:{handler.name}" for handler in handlers)
        stop(2, f"Error: {target} has several handlers: name one of {names}")
    return handlers[0]


def _typed(value: Any) -> str:
    """As `--set` reads it."""
    return "none" if value is None else json.dumps(value)


def numbers(flag: str, text: str, kind: Callable[[str], N]) -> list[N]:
    """Numbers above 0 with commas between them; none in an empty text. Raises ValueError.

    Example:
        >>> numbers("--connections", "1,16", int)
        [1, 16]
    """
    found = []
    for part in text.split(",") if text else ():
        try:
            number = kind(part)
        except ValueError:
            number = kind("0")
        if not 0 < number < math.inf:
            shape = "whole numbers, such as 1,16,64" if kind is int else "numbers above 0, such as 100,500"
            raise ValueError(f"{flag} {text}: give {shape}")
        found.append(number)
    return found
