"""One end of the line between a front end and the hub: messages in frames, each frame's length in four bytes before it."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, cast

import msgspec

from tidegate.workers.shared_memory import SharedMemoryFull
from tidegate_transports.ipc_memory import Memory, Outbox
from tidegate_transports.ipc_messages import Answer, Call, Chunk, Freed, Message

__all__ = ["HIGH_WATER", "LARGEST", "Channel"]

log = logging.getLogger("tidegate.fronts")

LARGEST = 1 << 30
"""Bytes of a frame; a peer that announces more is none of ours."""

HIGH_WATER = 4 << 20
"""Bytes on their way to a peer from which on it gets no more than it is owed."""

_KERNEL_BUFFER = 1 << 20
_WITH_A_VALUE = (Call, Answer, Chunk)

_LENGTH: Final = struct.Struct("<I")
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final[msgspec.msgpack.Decoder[list[Message]]] = msgspec.msgpack.Decoder(list[Message])


class Channel(asyncio.Protocol):
    """Messages both ways on one socket. What is sent in one turn of the loop travels in one frame.

    received: called with each message. closed: called once, when the peer has gone or what it sent made no sense.
    `writable` is clear while the peer reads too slowly. stops_reading: a peer that does not read may say no more until
    it does; for one of the two ends only, or they would wait for each other.

    Where both ends have memory in common, large values lie there: what comes is looked at before it is received, and
    what nobody looks at any more is said with the next frame.
    """

    def __init__(
        self, received: Callable[[Any], None], closed: Callable[[], None], *, stops_reading: bool = False
    ) -> None:
        self._received = received
        self._closed = closed
        self._stops_reading = stops_reading
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._transport: asyncio.Transport | None = None
        self._memory: Memory | None = None
        self._kept = bytearray()
        self._waiting: list[Message] = []
        self.writable = asyncio.Event()
        self.writable.set()

    async def open(self, sock: socket.socket, memory: Memory | None = None) -> None:
        """Take the socket over, and the memory; should this raise, both are still the caller's."""
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, option, _KERNEL_BUFFER)
        # Before the first message can come.
        self._memory = memory
        if memory is not None:
            memory.inbox.wake = self._wake
        try:
            await self._loop.create_unix_connection(lambda: self, sock=sock)
        except BaseException:
            self._memory = None
            raise

    @property
    def outbox(self) -> Outbox | None:
        """Where large values for the other end may lie, while there is such a place."""
        return None if self._memory is None else self._memory.outbox

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

    def abort(self) -> None:
        """Hang up at once; `closed` follows."""
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        messages, self._waiting = self._waiting, []
        if self._memory is not None and (done := self._memory.inbox.done()):
            messages.append(Freed(done))
        if not messages or self._transport is None or self._transport.is_closing():
            return
        try:
            frames = _framed(messages)
        except Exception:
            # Values and errors have been made fit to be sent; should one not be, an end is better than no answer.
            log.exception("a message cannot be sent: the line is closed")
            self.abort()
            return
        for frame in frames:
            self._transport.write(frame)

    def _wake(self) -> None:
        """There is something to say of the memory; in whatever thread it was that looked last."""
        if threading.get_ident() == self._thread:
            self._loop.call_soon(self._flush)
        else:
            with suppress(RuntimeError):  # the loop has ended before the thread
                self._loop.call_soon_threadsafe(self._flush)

    # ------------------------------------------------------------------ asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass
        self._transport.set_write_buffer_limits(HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        try:
            messages = self._cut(data)
            if self._memory is not None:
                messages = self._seen(messages, self._memory)
        except (ValueError, msgspec.MsgspecError) as error:
            log.error("what the other end of a line sent makes no sense: %s; the line is closed", error)
            self.abort()
            return
        except SharedMemoryFull as error:
            log.error("what the other end of a line sent cannot be looked at: %s; the line is closed", error)
            self.abort()
            return
        for message in messages:
            self._received(message)

    def _cut(self, data: bytes) -> list[Message]:
        """The messages of every frame that is complete now."""
        kept = self._kept
        whole: bytes | bytearray = data
        if kept:
            kept += data
            whole = kept
        start, there = 0, len(whole)
        messages: list[Message] = []
        with memoryview(whole) as view:
            while (body := start + _LENGTH.size) <= there:
                (size,) = _LENGTH.unpack_from(view, start)
                if size > LARGEST:
                    raise ValueError(f"a frame of {size} bytes, where {LARGEST} are the limit")
                if body + size > there:
                    break
                with view[body : body + size] as frame:
                    messages += _decoder.decode(frame)
                start = body + size
            if whole is data and start < there:
                kept += view[start:]
        if whole is kept:
            del kept[:start]
        return messages

    def _seen(self, messages: Sequence[Message], memory: Memory) -> list[Message]:
        """The messages without those about memory; values that lie there are looked at from now on."""
        others: list[Message] = []
        for message in messages:
            if type(message) is Freed:
                memory.outbox.take_back(message.blocks)
                continue
            if isinstance(message, _WITH_A_VALUE) and (place := message.value.place) is not None:
                message.value.data = memory.inbox.look(place)
            others.append(message)
        return others

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
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        self._closed()


def _framed(messages: Sequence[Message]) -> list[bytearray]:
    """All of them in one frame, or in more if they are too much for one."""
    frame = bytearray(_LENGTH.size)
    _encoder.encode_into(messages, frame, _LENGTH.size)
    size = len(frame) - _LENGTH.size
    if size > LARGEST and len(messages) > 1:
        half = len(messages) // 2
        return [*_framed(messages[:half]), *_framed(messages[half:])]
    _LENGTH.pack_into(frame, 0, size)
    return [frame]
