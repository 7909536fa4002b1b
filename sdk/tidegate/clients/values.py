"""Inputs to bytes and answers to values: plain Python, and NumPy where there were arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import chain
from typing import Any

from tidegate.clients.carrier import Disconnected
from tidegate.codec import Codec
from tidegate.encoding import is_array, write_json, write_msgpack
from tidegate.media import JSON, MSGPACK, MSGPACK_NAMES, NPY, OCTETS, EncodeError, parsed
from tidegate_batching import InvalidInput, TidegateError

__all__ = ["ACCEPT", "read_output", "write_body", "write_input"]

ACCEPT = f"{MSGPACK}, {OCTETS}, {JSON};q=0.8, application/x-ndjson;q=0.5"
"""Best what brings arrays and bytes back as they are; a stream's lines come whatever is asked for."""

_BYTES = (bytes, bytearray, memoryview)
_READABLE = {JSON, *MSGPACK_NAMES, NPY}
_PLAIN = {str, int, bool, type(None)}
_MAX_DEPTH = 1000  # where the encoders give up as well
_anything = Codec()


def write_body(value: Any) -> tuple[bytes, str]:
    """A request's body and its media type: bytes as they are, JSON, or msgpack where JSON would lose something.

    Example:
        >>> write_body({"text": "hello"})
        (b'{"text":"hello"}', 'application/json')
        >>> write_body({1: "one"})
        (b'\\x81\\x01\\xa3one', 'application/msgpack')
    """
    if isinstance(value, _BYTES):
        return bytes(value), OCTETS
    if not _survives_json(value):
        return write_input(value), MSGPACK
    try:
        return write_json(value, allow_nan=True), JSON
    except EncodeError as error:
        raise _unsendable(error) from error


def write_input(value: Any) -> bytes:
    """A request's input as msgpack."""
    try:
        return write_msgpack(value)
    except EncodeError as error:
        raise _unsendable(error) from error


def read_output(body: bytes, media_type: str) -> Any:
    """An answer's value; Disconnected where it cannot be read."""
    media = parsed(media_type)[0]
    if media == OCTETS:
        return body
    if media not in _READABLE:
        raise Disconnected(f"the answer cannot be read: it is {media!r:.100}; is that a tidegate service?", begun=True)
    try:
        return _anything.decode(body, media)
    except TidegateError as error:
        raise Disconnected(f"the answer cannot be read: {error}", begun=True) from error


def _unsendable(error: EncodeError) -> InvalidInput:
    return InvalidInput(error.detail.replace("the output", "the input", 1))


def _survives_json(value: Any) -> bool:
    """Whether the service would read the same from JSON: no array, no bytes, no NaN and no key but text is in there.

    Level by level and type by type, so that a long list of numbers costs no step of Python's for each.
    """
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        deeper: list[Any] = []
        kinds = set(map(type, level))
        for kind in kinds - _PLAIN:
            alike: list[Any] = level if len(kinds) == 1 else [one for one in level if type(one) is kind]
            if kind is float:
                if not all(map(math.isfinite, alike)):
                    return False
            elif issubclass(kind, dict):
                if not all(set(map(type, one)) <= {str} for one in alike):
                    return False
                deeper += chain.from_iterable(one.values() for one in alike)
            elif issubclass(kind, (list, tuple, set, frozenset)):
                deeper += chain.from_iterable(alike)
            elif issubclass(kind, _BYTES) or is_array(alike[0]):
                return False
            else:
                deeper += (getattr(one, name, None) for one in alike for name in _fields(kind))
        if not deeper:
            break
        level = deeper
    return True


def _fields(kind: type) -> Iterable[str]:
    """The names of what a Struct, a dataclass or an attrs class holds; nothing for other types."""
    for attribute in ("__struct_fields__", "__dataclass_fields__"):
        fields: Iterable[str] = getattr(kind, attribute, ())
        if fields:
            return fields
    return [field.name for field in getattr(kind, "__attrs_attrs__", ())]
