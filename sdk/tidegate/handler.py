"""A handler: the user's function with its options and hooks, frozen."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, ParamSpec, TypeVar

from tidegate.codec import Codec
from tidegate.collate import group_of
from tidegate_batching import Policy

__all__ = ["Handler", "Options"]

P = ParamSpec("P")
R = TypeVar("R")

# A path segment of its own, and not one that the doors answer themselves.
RESERVED = frozenset({"docs", "health", "healthz", "info", "livez", "metrics", "openapi.json", "predict", "readyz"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What `serve` was told; see its docstring for the meaning of each."""

    name: str
    max_batch_size: int | None = None
    batch_timeout: float | Literal["auto"] = "auto"
    batch_dim: int | tuple[int, int] = 0
    batch: Callable[..., Any] | None = None
    unbatch: Callable[..., Any] | None = None
    setup: Callable[[str], Any] | None = None
    max_queue_size: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"name={self.name!r}: give a text: it becomes the path /name")
        if not self.name or not self.name.replace("_", "").replace("-", "").isalnum() or not self.name.isascii():
            raise ValueError(f"name={self.name!r}: use letters, digits, '-' and '_': it becomes the path /{self.name}")
        for hook in ("batch", "unbatch", "setup"):
            value = getattr(self, hook)
            if value is not None and not callable(value):
                raise TypeError(f"{hook}={value!r}: give a callable")
            if value is not None and hook != "setup" and self.max_batch_size is None:
                raise ValueError(f"{hook}=… needs a batch: give max_batch_size=, or take {hook}= away")
        dims = self.batch_dim if isinstance(self.batch_dim, tuple) else (self.batch_dim, self.batch_dim)
        if len(dims) != 2 or any(isinstance(dim, bool) or not isinstance(dim, int) for dim in dims):
            raise TypeError(f"batch_dim={self.batch_dim!r}: give an axis, or (axis of the input, axis of the output)")
        self.policy()

    @property
    def dims(self) -> tuple[int, int]:
        """The axes on which inputs are stacked and outputs split."""
        return self.batch_dim if isinstance(self.batch_dim, tuple) else (self.batch_dim, self.batch_dim)

    def policy(self, workers: int = 1) -> Policy:
        """The core's limits for this handler; raises what Policy raises."""
        size = 1 if self.max_batch_size is None else self.max_batch_size
        limits = Policy(max_batch_size=size, batch_timeout=self.batch_timeout)
        queue = max(1024, 4 * workers * size) if self.max_queue_size == "auto" else self.max_queue_size
        return replace(limits, max_queue_size=queue)


class Handler(Generic[P, R]):
    """A served function. Calling it calls the function itself; no server, no batching.

    Example:
        >>> from tidegate import serve
        >>> @serve(max_batch_size=4)
        ... def double(x: list[int]) -> list[int]:
        ...     return [2 * n for n in x]
        >>> double([1, 2])
        [2, 4]
        >>> double.name
        'double'
    """

    def __init__(self, function: Callable[P, R], options: Options) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.options = options
        self.name = options.name
        self.codec = Codec(_item_type(function, options))
        self._groups_by_shape = options.max_batch_size is not None and options.batch is None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Handler {self.name}>"

    @property
    def batched(self) -> bool:
        """Whether the function takes a batch."""
        return self.options.max_batch_size is not None

    def group(self, value: Any) -> Hashable:
        """Which items may share a batch with this one."""
        return group_of(value) if self._groups_by_shape else None


def _item_type(function: Callable[..., Any], options: Options) -> Any:
    """The annotation of one item; checks the function's shape on the way."""
    parameters = _required(function)
    # With setup the state comes first, then the data.
    wanted = 2 if options.setup else 1
    if len(parameters) != wanted:
        takes = "(state, data)" if options.setup else "(data)"
        what = "a batch" if options.max_batch_size is not None else "one item"
        raise TypeError(
            f"{options.name}() takes {len(parameters)} arguments without a default: a handler takes {takes}, "
            f"where data is {what}; pack several inputs into one tuple, dict or Struct"
        )
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError) as error:
        raise TypeError(
            f"the annotations of {options.name}() cannot be read: {error}; decorate a plain function whose "
            "annotations are names of its module"
        ) from error
    annotation = hints.get(parameters[-1].name, inspect.Parameter.empty)
    if options.max_batch_size is None:
        return annotation
    if typing.get_origin(annotation) in (list, Sequence):
        return typing.get_args(annotation)[0]
    if annotation is list:
        return inspect.Parameter.empty
    # A custom batch= may build anything, so the annotation then says nothing about an item.
    return inspect.Parameter.empty if options.batch is not None else annotation


def _required(function: Callable[..., Any]) -> list[inspect.Parameter]:
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind not in variable and parameter.default is inspect.Parameter.empty
    ]
