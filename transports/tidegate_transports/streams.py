"""A handler's stream as bytes: JSON lines, or server-sent events for who asks for them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from typing import Any, NamedTuple

import msgspec

from tidegate import END, Handler, HandlerError, TidegateError
from tidegate.media import choose
from tidegate.wire import error_to_wire
from tidegate_batching import Stream

__all__ = ["EVENTS", "LINES", "LINES_NAMES", "Format", "format_of", "parts_of"]

LINES = "application/x-ndjson"
LINES_NAMES = (LINES, "application/ndjson", "application/jsonl", "application/jsonlines", "application/json-lines")
"""All of these are in use; the first is what is answered by default."""

EVENTS = "text/event-stream"

HEARTBEAT = 15.0
"""Seconds without a chunk after which a stream of events gets a comment, lest a proxy think it dead."""

_LINE_ENDS = re.compile(rb"\r\n|\r|\n")
_PING = b": ping\n\n"


class Format(NamedTuple):
    """How one stream is written."""

    media_type: str
    chunk: Callable[[bytes], bytes]
    end: bytes
    error: Callable[[bytes], bytes]
    heartbeat: float | None = None


def _chunk_line(encoded: bytes) -> bytes:
    # JSON that a handler brought ready-made may be spread over lines.
    flat = encoded.replace(b"\n", b" ").replace(b"\r", b" ") if b"\n" in encoded or b"\r" in encoded else encoded
    return b'{"chunk":' + flat + b"}\n"


def _chunk_event(encoded: bytes) -> bytes:
    if b"\n" in encoded or b"\r" in encoded:
        return b"".join(b"data: " + line + b"\n" for line in _LINE_ENDS.split(encoded)) + b"\n"
    return b"data: " + encoded + b"\n\n"


def _error_line(encoded: bytes) -> bytes:
    return b'{"error":' + encoded + b"}\n"


def _error_event(encoded: bytes) -> bytes:
    return b"event: error\ndata: " + encoded + b"\n\n"


_JSON_LINES = Format(LINES, _chunk_line, b'{"end":true}\n', _error_line)
# Without data an event does not reach whoever listens.
_SERVER_SENT = Format(EVENTS, _chunk_event, b'event: end\ndata: {"end":true}\n\n', _error_event, HEARTBEAT)
# Many a client says that it accepts JSON whatever it is about to read; JSON lines are the nearest to it.
_FORMATS = {name: _JSON_LINES._replace(media_type=name) for name in LINES_NAMES}
_FORMATS |= {EVENTS: _SERVER_SENT, "application/json": _JSON_LINES}


def format_of(accept: str | None) -> Format:
    """The format that the caller likes best; NotAcceptable where it wants neither.

    Example:
        >>> format_of("text/event-stream").media_type, format_of(None).media_type
        ('text/event-stream', 'application/x-ndjson')
    """
    return _FORMATS[choose(accept, tuple(_FORMATS))] if accept else _JSON_LINES


async def parts_of(
    handler: Handler[..., Any],
    chunks: Stream[Any],
    first: bytes | None,
    wanted: Format,
    told: Callable[[TidegateError | None], str],
) -> AsyncGenerator[bytes]:
    """A stream's bytes; the last part says how it ended, so that a broken connection cannot look like an end.

    first: its first chunk in JSON, None for a stream without any. told: hears how it ended, and says what the caller
    reads of an error.
    """
    async with chunks:
        failure: TidegateError | None = None
        try:
            if first is not None:
                yield wanted.chunk(first)
                while True:
                    chunk = await _next(chunks, wanted.heartbeat)
                    if chunk is END:
                        break
                    if chunk is _QUIET:
                        yield _PING
                        continue
                    yield wanted.chunk(handler.codec.encode_json(chunk, allow_nan=handler.options.allow_nan))
        except TidegateError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - a type of the user's may raise anything while it is written
            failure = HandlerError.wrap(error)
        text = told(failure)
        yield wanted.end if failure is None else wanted.error(msgspec.json.encode(error_to_wire(failure, text)))


_QUIET = object()


async def _next(chunks: Stream[Any], patience: float | None) -> Any:
    """The next chunk, END behind the last, or a sign that for a while there was none."""
    if patience is None:
        return await anext(chunks, END)
    try:
        async with asyncio.timeout(patience):
            return await anext(chunks, END)
    except TimeoutError:
        return _QUIET
