"""What is sent: a file's contents, or the example of a handler or of a service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tidegate.bench.sender import Payload
from tidegate.handler import Handler
from tidegate.media import JSON, NPY, OCTETS

__all__ = ["InputError", "payloads_from", "payloads_of", "values_of"]

_TYPES = {".json": JSON, ".npy": NPY, ".msgpack": "application/msgpack"}
_LINES = (".jsonl", ".ndjson")


class InputError(Exception):
    """There is nothing to send; the text names the fix."""


def payloads_from(path: Path) -> list[Payload]:
    """A file's payloads: a `.jsonl` has one per line, anything else is one whole body of the type that its name tells."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"--input {path}: {error.strerror}; give a file that can be read") from None
    suffix = path.suffix.lower()
    if suffix not in _LINES:
        return [Payload(data, _TYPES.get(suffix, OCTETS))]
    lines = [line.strip() for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    payloads = [Payload(line) for line in lines if line]
    if not payloads:
        raise InputError(f"--input {path}: there is no line in it")
    return payloads


def payloads_of(handler: Handler[..., Any]) -> list[Payload]:
    """The handler's `warmup`, or what its annotations give for an example."""
    try:
        example = _example(handler)
        if handler.codec.annotation is bytes and isinstance(example, bytes):
            return [Payload(example, OCTETS)]
        return [Payload(handler.codec.encode_json(example, allow_nan=handler.options.allow_nan))]
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{handler.name}: its example cannot be written ({error}); give --input FILE") from error


def values_of(handler: Handler[..., Any], payloads: list[Payload] | None) -> list[Any]:
    """The same as a handler in this process gets it. payloads: None for the handler's own example."""
    if payloads is None:
        return [_example(handler)]
    try:
        return [handler.codec.decode(payload.body, payload.content_type) for payload in payloads]
    except Exception as error:
        raise InputError(f"--input: {handler.name} does not take it: {error}") from error


def _example(handler: Handler[..., Any]) -> Any:
    example = handler.options.warmup
    if example is not None:
        return example() if callable(example) else example
    example = handler.codec.example()
    if example is None:
        raise InputError(f"{handler.name} has no example: give --input FILE, or warmup= to @serve")
    return handler.codec.decode_object(example)
