"""What a service and a worker process tell each other, and how it is cut out of a stream of bytes. No I/O but two
calls for the worker's own thread.

A frame is its length in four bytes, then a msgpack array that begins with the message's number. Values do not travel
here but through shared memory (`packing`), so that a frame is a few hundred bytes.
"""

from __future__ import annotations

import socket
import struct

import msgspec

from tidegate.portable import Fields
from tidegate.workers.packing import Packed
from tidegate.workers.reference import Reference

__all__ = [
    "Cancel",
    "Credit",
    "Done",
    "Ended",
    "Failed",
    "FrameReader",
    "Message",
    "Poisoned",
    "Prepared",
    "ProtocolError",
    "Ready",
    "Row",
    "Run",
    "Start",
    "Stop",
    "encode",
    "receive",
    "send",
]

LARGEST = 64 << 20
"""Bytes of a frame: identifiers and forwarded headers of very large batches need some."""

_LENGTH = struct.Struct("<I")

# What is asked for is allocated first: more than this, and the allocator would ask the system for it every time.
_READ = 64 * 1024


class ProtocolError(Exception):
    """What came is no frame: somebody else wrote to the descriptor, or the two sides differ in version."""


class Run(msgspec.Struct, array_like=True, tag=0, frozen=True, gc=False):
    """Service to worker: run these. deadlines: on the clock of time.monotonic, which a machine's processes share.

    Each of the three lists has one entry per item, or none at all where every entry would be the empty one. freed: the
    offsets of the worker's blocks that have been read.
    """

    batch: int
    values: Packed
    request_ids: list[str] = []
    deadlines: list[float] = []
    headers: list[dict[str, str]] = []
    freed: list[int] = []


class Cancel(msgspec.Struct, array_like=True, tag=1, frozen=True, gc=False):
    """Service to worker: nobody waits for this item any more."""

    batch: int
    index: int


class Credit(msgspec.Struct, array_like=True, tag=2, frozen=True, gc=False):
    """Service to worker: so many more steps of a stream may come, and the blocks at these offsets are free again."""

    batch: int
    steps: int = 0
    freed: list[int] = []


class Stop(msgspec.Struct, array_like=True, tag=3, frozen=True, gc=False):
    """Service to worker: finish what you have, tear down, end."""


class Ready(msgspec.Struct, array_like=True, tag=4, frozen=True, gc=False):
    """Worker to service: set up. pinned: its GPU reads the service's shared memory itself."""

    pinned: bool = False


class Failed(msgspec.Struct, array_like=True, tag=5, frozen=True, gc=False):
    """Worker to service: the handler could not be loaded or set up."""

    error: Fields


class Prepared(msgspec.Struct, array_like=True, tag=6, frozen=True, gc=False):
    """Worker to service: the batch is decoded, and waits for the function."""

    batch: int


class Row(msgspec.Struct, array_like=True, tag=7, frozen=True, gc=False):
    """Worker to service: one step of a stream, one value per item."""

    batch: int
    values: Packed


class Done(msgspec.Struct, array_like=True, tag=8, frozen=True, gc=False):
    """Worker to service: the batch has ended, with values or, as a whole, with an error; a stream with neither."""

    batch: int
    values: Packed | None = None
    error: Fields | None = None


class Poisoned(msgspec.Struct, array_like=True, tag=9, frozen=True, gc=False):
    """Worker to service: this process can run nothing any more; replace it."""

    reason: str


class Ended(msgspec.Struct, array_like=True, tag=10, frozen=True, gc=False):
    """Worker to service: torn down; what follows is the end of the process."""


class Start(msgspec.Struct, array_like=True, tag=11, frozen=True, gc=False):
    """Service to worker, first of all: which handler, and what its `setup` gets."""

    reference: Reference
    device: str | list[str]


Message = Start | Run | Cancel | Credit | Stop | Ready | Failed | Prepared | Row | Done | Poisoned | Ended

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytearray:
    """The message's frame; raises ProtocolError if it is too large.

    Example:
        >>> FrameReader().feed(encode(Cancel(3, 1)) + encode(Stop()))
        [Cancel(batch=3, index=1), Stop()]
    """
    frame = bytearray(_LENGTH.size)
    _encoder.encode_into(message, frame, _LENGTH.size)
    size = len(frame) - _LENGTH.size
    if size > LARGEST:
        raise ProtocolError(f"a message of {size} bytes: the limit is {LARGEST}; send smaller batches")
    _LENGTH.pack_into(frame, 0, size)
    return frame


class FrameReader:
    """Cuts messages out of bytes as they come, in whatever pieces."""

    def __init__(self, limit: int = LARGEST) -> None:
        self._limit = limit
        self._kept = bytearray()

    @property
    def unfinished(self) -> bool:
        """Whether part of a frame has come, and the rest not yet."""
        return bool(self._kept)

    def feed(self, data: bytes | bytearray | memoryview) -> list[Message]:
        """The messages that these bytes complete; raises ProtocolError, and is of no use then."""
        kept = self._kept
        kept += data
        messages: list[Message] = []
        start, there = 0, len(kept)
        with memoryview(kept) as view:
            while (body := start + _LENGTH.size) <= there:
                (size,) = _LENGTH.unpack_from(view, start)
                if size > self._limit:
                    raise ProtocolError(f"a frame of {size} bytes: the limit is {self._limit}")
                if body + size > there:
                    break
                with view[body : body + size] as frame:
                    messages.append(_decode(frame))
                start = body + size
        del kept[:start]
        return messages


def _decode(body: memoryview) -> Message:
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"{len(body)} bytes that are no message: {error}") from error


def send(sock: socket.socket, message: Message) -> None:
    """Send all of a message on a blocking socket; raises OSError if nobody is there any more."""
    sock.sendall(encode(message))


def receive(sock: socket.socket, reader: FrameReader) -> list[Message]:
    """Wait for messages on a blocking socket: at least one, or none at all when the other side has gone."""
    while True:
        try:
            data = sock.recv(_READ)
        except ConnectionError:  # it went with something of ours unread
            return []
        if not data:
            return []
        if messages := reader.feed(data):
            return messages
