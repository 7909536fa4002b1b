"""Errors as plain data, to cross between processes: no object of the sender's is ever made again, only described."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Any

# Imported for the error classes that they define: a class is found by its name in the tree.
from tidegate import media
from tidegate_batching import HandlerError, TidegateError
from tidegate_batching.errors import from_foreign

__all__ = ["Fields", "from_fields", "to_fields"]

Fields = dict[str, Any]
"""An error's class, text and attributes; nothing in it but what msgpack knows."""

LONGEST = 64 * 1024
"""Characters that are kept of a text: both ends of a traceback matter, its thousandth frame does not."""

_PACKAGES = {kind.__module__.partition(".")[0] for kind in (TidegateError, media.MalformedBody)}
_DEPTH = 3


def to_fields(error: BaseException) -> Fields:
    """Describe an error of any kind; what is foreign becomes a HandlerError with its traceback.

    Never raises, whatever the error's own attributes do.

    Example:
        >>> from tidegate_batching import Overloaded
        >>> to_fields(Overloaded(retry_after=2.5))
        {'class': 'Overloaded', 'detail': 'The queue is full', 'retry_after': 2.5}
    """
    try:
        known = from_foreign(error)
    except Exception:  # noqa: BLE001 - an exception of the user's may do anything when it is asked about itself
        known = HandlerError(type(error).__qualname__, "<it fails when it is asked about itself>")
    kind = _nearest(type(known))
    fields: Fields = {"class": kind.__name__, "detail": _asked(known, "detail", kind.__name__)}
    if type(known) is not kind:
        # A class of the user's own: what it says of itself goes with each of its errors.
        fields |= {name: _asked(known, name, getattr(kind, name)) for name in ("status", "code")}
    for name, value in _attributes(known):
        if not name.startswith("_") and name not in fields:
            plain = _plain(value)
            if plain is not None or value is None:
                fields[name] = plain
    return fields


def from_fields(fields: Mapping[str, Any]) -> TidegateError:
    """The error that was described: of its class in the tree, with its text and attributes.

    Example:
        >>> from_fields({"class": "Overloaded", "detail": "The queue is full", "retry_after": 2.5}).retry_after
        2.5
    """
    kind = _tree().get(str(fields.get("class")), TidegateError)
    # Not by its constructor: each takes other arguments, and most compute their text from them.
    error = kind.__new__(kind)
    Exception.__init__(error, fields.get("detail") or "")
    for name, value in fields.items():
        if name not in ("class", "detail"):
            vars(error)[name] = tuple(value) if isinstance(value, list) else value
    return error


# ---------------------------------------------------------------------- classes


def _below(kind: type[TidegateError]) -> Iterator[type[TidegateError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _below(child)


def _tree() -> dict[str, type[TidegateError]]:
    return {kind.__name__: kind for kind in _below(TidegateError) if _is_ours(kind)}


def _is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _PACKAGES


def _nearest(kind: type[TidegateError]) -> type[TidegateError]:
    """The class itself, or the nearest above it that the other process knows for certain."""
    return next(one for one in kind.__mro__ if _is_ours(one) and issubclass(one, TidegateError))


# ---------------------------------------------------------------------- what they carry


def _asked(error: TidegateError, name: str, otherwise: Any) -> Any:
    """One of the things that every error of the tree has, even if a user's class fails to say it."""
    try:
        plain = _plain(getattr(error, name))
    except Exception:  # noqa: BLE001 - see to_fields
        return otherwise
    return plain if isinstance(plain, type(otherwise)) else otherwise


def _attributes(error: TidegateError) -> list[tuple[str, Any]]:
    try:
        return [(str(name), value) for name, value in vars(error).items()]
    except Exception:  # noqa: BLE001 - see to_fields
        return []


def _plain(value: Any, depth: int = _DEPTH) -> Any:
    """The value as msgpack knows it; None where that cannot be."""
    try:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return _text(value)
        if isinstance(value, Integral):
            number = int(value)
            return number if -(1 << 63) <= number < 1 << 63 else None
        if isinstance(value, Real):
            return float(value)
        if isinstance(value, (list, tuple)) and depth:
            return [_plain(one, depth - 1) for one in value[:100]]
    except Exception:  # noqa: BLE001 - see to_fields
        return None
    return None


def _text(value: str) -> str:
    # A str of its own class may do anything; half a surrogate pair is no UTF-8.
    text = str.__str__(value).encode("utf-8", "backslashreplace").decode()
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"
