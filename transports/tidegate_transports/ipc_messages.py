"""What a front end and the hub tell each other: frames of many messages, each frame's length in four bytes before it."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any, cast

import msgspec

from tidegate.portable import Fields
from tidegate.workers.reference import Reference
from tidegate_transports.ipc_values import Value

__all__ = [
    "VERSION",
    "Answer",
    "Call",
    "Cancel",
    "Channel",
    "Chunk",
    "Credit",
    "Drain",
    "End",
    "Failure",
    "Hello",
    "Listening",
    "Message",
    "News",
    "Question",
    "Reply",
    "Start",
]

VERSION = 1
"""Of this protocol; both ends say theirs first, and part if they differ."""

LARGEST = 1 << 30
HIGH_WATER = 1 << 20
"""Bytes on their way to a peer from which on it gets no more."""

_LENGTH = struct.Struct("<I")


class Hello(msgspec.Struct, array_like=True, tag=0, frozen=True, gc=False):
    """Front to hub, first of all."""

    version: int


class Start(msgspec.Struct, array_like=True, tag=1, frozen=True, gc=False):
    """Hub to front, in answer: what to serve, where and how. options: of the HTTP door, by name."""

    version: int
    handlers: list[Reference]
    transport: str
    host: str
    port: int
    options: dict[str, Any]
    log_format: str
    drain_timeout: float


class Listening(msgspec.Struct, array_like=True, tag=2, frozen=True, gc=False):
    """Front to hub: the door is open; or why it cannot be."""

    error: str = ""


class Call(msgspec.Struct, array_like=True, tag=3, frozen=True, gc=False):
    """Front to hub: one input. timeout: seconds left, or None for the handler's own; clocks need not agree.

    stream: its chunks are asked for, `patience` seconds for a reader that does not read. patient: as `patient_call`.
    """

    id: int
    handler: str
    value: Value
    priority: int = 3
    timeout: float | None = None
    request_id: str = ""
    headers: dict[str, str] = {}
    patience: float | None = None
    nbytes: int = 0
    stream: bool = False
    patient: bool = False


class Cancel(msgspec.Struct, array_like=True, tag=4, frozen=True, gc=False):
    """Front to hub: nobody waits for this answer any more."""

    id: int


class Credit(msgspec.Struct, array_like=True, tag=5, frozen=True, gc=False):
    """Front to hub: so many chunks of a stream have been read."""

    id: int
    chunks: int


class Answer(msgspec.Struct, array_like=True, tag=6, frozen=True, gc=False):
    """Hub to front: an output and its times."""

    id: int
    value: Value
    queued: float
    ran: float
    batch_size: int


class Failure(msgspec.Struct, array_like=True, tag=7, frozen=True, gc=False):
    """Hub to front: how a call or a stream failed."""

    id: int
    error: Fields


class Chunk(msgspec.Struct, array_like=True, tag=8, frozen=True, gc=False):
    """Hub to front: a stream's next chunk; queued: seconds that the stream waited for its batch."""

    id: int
    value: Value
    queued: float


class End(msgspec.Struct, array_like=True, tag=9, frozen=True, gc=False):
    """Hub to front: a stream's end."""

    id: int


class News(msgspec.Struct, array_like=True, tag=10, frozen=True, gc=False):
    """Hub to front, when it changes: how the app is."""

    ready: bool
    alive: bool
    draining: bool


class Question(msgspec.Struct, array_like=True, tag=11, frozen=True, gc=False):
    """Either way: what the other one knows and this one does not."""

    id: int
    about: str


class Reply(msgspec.Struct, array_like=True, tag=12, frozen=True, gc=False):
    """The answer to a question."""

    id: int
    found: Any


class Drain(msgspec.Struct, array_like=True, tag=13, frozen=True, gc=False):
    """Hub to front: accept nobody any more, finish within so many seconds, end."""

    seconds: float


Message = (
    Hello
    | Start
    | Listening
    | Call
    | Cancel
    | Credit
    | Answer
    | Failure
    | Chunk
    | End
    | News
    | Question
    | Reply
    | Drain
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[list[Message]] = msgspec.msgpack.Decoder(list[Message])


class Channel(asyncio.Protocol):
    """Messages both ways on one socket. What is sent in one turn of the loop travels in one frame.

    received: called with each message. closed: called once, when the peer has gone. `writable` is clear while the peer
    reads too slowly. stops_reading: a peer that does not read may say no more until it does; for one of the two ends
    only, or they would wait for each other.
    """

    def __init__(
        self, received: Callable[[Any], None], closed: Callable[[], None], *, stops_reading: bool = False
    ) -> None:
        self._received = received
        self._closed = closed
        self._stops_reading = stops_reading
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._kept = bytearray()
        self._waiting: list[Message] = []
        self.writable = asyncio.Event()
        self.writable.set()

    def send(self, message: Message) -> None:
        """Send it with the rest of this turn."""
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(message)

    def close(self) -> None:
        """Send what waits, then hang up."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        messages, self._waiting = self._waiting, []
        if not messages or self._transport is None or self._transport.is_closing():
            return
        frame = bytearray(_LENGTH.size)
        _encoder.encode_into(messages, frame, _LENGTH.size)
        _LENGTH.pack_into(frame, 0, len(frame) - _LENGTH.size)
        self._transport.write(frame)

    # ------------------------------------------------------------------ asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass
        self._transport.set_write_buffer_limits(HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        kept = self._kept
        kept += data
        start, there = 0, len(kept)
        frames = []
        with memoryview(kept) as view:
            while (body := start + _LENGTH.size) <= there:
                (size,) = _LENGTH.unpack_from(view, start)
                if size > LARGEST:
                    raise ValueError(f"a frame of {size} bytes: the limit is {LARGEST}")
                if body + size > there:
                    break
                with view[body : body + size] as frame:
                    frames.append(_decoder.decode(frame))
                start = body + size
        del kept[:start]
        for messages in frames:
            for message in messages:
                self._received(message)

    def pause_writing(self) -> None:
        self.writable.clear()
        if self._stops_reading and self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self.writable.set()
        if self._stops_reading and self._transport is not None:
            self._transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self.writable.set()
        self._closed()
