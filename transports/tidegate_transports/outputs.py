"""What a handler's annotations say about its outputs, for documentation."""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_origin

from tidegate import Handler
from tidegate.annotations import array_of, members_of
from tidegate.plan import Plan
from tidegate.schema import schema_of

__all__ = ["NOTHING", "output_of", "output_schema"]

NOTHING: Any = object()
"""In the place of an annotation that there is not."""

_LISTS = (list, tuple, Sequence)
# As JSON an array is nested lists; one without axes, such as an item of a batch's one axis, is its number.
_ARRAY = {"type": ["array", "number", "boolean", "string"], "description": "nested lists of numbers, or one number"}


def output_of(handler: Handler[..., Any]) -> Any:
    """The annotation of one output, or of a stream's chunk; NOTHING where none says it.

    Example:
        >>> from tidegate import serve
        >>> @serve(max_batch_size=8)
        ... def lengths(texts: list[str]) -> list[int]:
        ...     return [len(text) for text in texts]
        >>> output_of(lengths)
        <class 'int'>
    """
    options = handler.options
    if options.encode_response is not None:
        return _returned(options.encode_response)
    found = _returned(handler.function)
    if handler.streams:
        # Iterator[T], Generator[T, …] and their asynchronous kin.
        found = get_args(found)[0] if found is not NOTHING and get_args(found) else NOTHING
    if options.unbatch is not None:
        found = _returned(options.unbatch)
    if not handler.batched or found is NOTHING:
        return found
    if _array(found):
        return found
    origin = get_origin(found)
    is_list = origin in _LISTS and (origin is not tuple or get_args(found)[1:] == (...,))
    return get_args(found)[0] if is_list else NOTHING


def output_schema(handler: Handler[..., Any]) -> dict[str, Any]:
    """JSON Schema 2020-12 of one output, or of a stream's chunk; of anything where nothing more is known."""
    annotation = output_of(handler)
    # With allow_nan null may stand anywhere.
    if annotation is NOTHING or handler.options.allow_nan:
        return {}
    if _array(annotation):
        return dict(_ARRAY)
    try:
        return schema_of(Plan(annotation))
    except Exception:  # noqa: BLE001 - a type that only the user's hooks understand is no reason not to serve
        return {}


def _returned(function: Callable[..., Any]) -> Any:
    try:
        return typing.get_type_hints(function, include_extras=True).get("return", NOTHING)
    except Exception:  # noqa: BLE001 - hints may name what only a type checker knows
        return NOTHING


def _array(annotation: Any) -> bool:
    try:
        return any(array_of(member) is not None for member in members_of(annotation))
    except TypeError:
        return False
