"""What a handler takes and gives, in a few words."""

from __future__ import annotations

import collections.abc
import inspect
import typing
from collections.abc import Callable
from typing import Any

from tidegate.annotations import array_of, fields_of, is_union, stripped
from tidegate.array import Array
from tidegate.handler import Handler

__all__ = ["describe", "gives", "takes"]

_MOST_FIELDS = 6
_STREAMS = (
    collections.abc.Iterator,
    collections.abc.Iterable,
    collections.abc.Generator,
    collections.abc.AsyncIterator,
    collections.abc.AsyncIterable,
    collections.abc.AsyncGenerator,
)
_LISTS = (list, tuple, collections.abc.Sequence)


def takes(handler: Handler[..., Any]) -> str:
    """One input, as the codec reads it."""
    codec = handler.codec
    return _array(codec.array) if codec.array is not None else describe(codec.annotation)


def gives(handler: Handler[..., Any]) -> str:
    """One output or chunk, as far as annotations tell."""
    options = handler.options
    if options.encode_response is not None:
        shown = describe(_returned(options.encode_response))
        return f"stream of {shown}" if handler.streams else shown
    annotation = _returned(handler.function)
    if handler.streams and typing.get_origin(annotation) in _STREAMS:
        annotation = typing.get_args(annotation)[0]
    if options.unbatch is not None:
        annotation = _returned(options.unbatch)
    if handler.batched:
        annotation = _element(annotation)
    return f"stream of {describe(annotation)}" if handler.streams else describe(annotation)


def describe(annotation: Any) -> str:
    """A type as its author would write it, with the fields of a class and the promises of an array.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Query:
        ...     text: str
        ...     top: int | None = None
        >>> describe(list[Query])
        'list[Query(text: str, top?: int | None)]'
    """
    if annotation is inspect.Parameter.empty or annotation is Any:
        return "anything"
    array = array_of(annotation)
    if array is not None:
        return _array(array[1])
    meaning, _ = stripped(annotation)
    fields = fields_of(meaning)
    if fields is not None:
        shown = [f"{field.wire_name}{'?' if field.default else ''}: {_in_short(field.type)}" for field in fields]
        more = [f"… {len(shown) - _MOST_FIELDS} more"] if len(shown) > _MOST_FIELDS else []
        return f"{_in_short(meaning)}({', '.join(shown[:_MOST_FIELDS] + more)})"
    if is_union(meaning):
        return " | ".join(describe(member) for member in typing.get_args(meaning))
    arguments = typing.get_args(meaning)
    if typing.get_origin(meaning) in (list, dict, tuple, set, frozenset) and arguments:
        inside = ", ".join("…" if one is ... else describe(one) for one in arguments)
        return f"{typing.get_origin(meaning).__name__}[{inside}]"
    return _in_short(meaning)


def _in_short(annotation: Any) -> str:
    """Without the fields of classes, and without modules."""
    array = array_of(annotation)
    if array is not None:
        return _array(array[1])
    meaning, _ = stripped(annotation)
    if meaning is type(None):
        return "None"
    if isinstance(meaning, type) and not typing.get_args(meaning):
        return meaning.__name__
    if is_union(meaning):
        return " | ".join(_in_short(member) for member in typing.get_args(meaning))
    return inspect.formatannotation(meaning, base_module=getattr(meaning, "__module__", None))


def _array(array: Array) -> str:
    return " ".join(["array", *filter(None, (array.dtype, array.wanted_shape if array.shape is not None else None))])


def _returned(function: Callable[..., Any]) -> Any:
    try:
        hints = typing.get_type_hints(inspect.unwrap(function), include_extras=True)
    except (NameError, TypeError, AttributeError):  # a callable object, or a name that is known to type checkers only
        return Any
    return hints.get("return", Any)


def _element(annotation: Any) -> Any:
    """What one item gets of a batch: an array's axis says nothing of the rest."""
    array = array_of(annotation)
    if array is not None:
        return typing.Annotated[array[0], Array(array[1].dtype)]
    meaning, _ = stripped(annotation)
    arguments = typing.get_args(meaning)
    return arguments[0] if typing.get_origin(meaning) in (*_LISTS, *_STREAMS) and arguments else Any
