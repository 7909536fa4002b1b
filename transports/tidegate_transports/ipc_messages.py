"""What a front end and the hub tell each other."""

from __future__ import annotations

from typing import Any

import msgspec

from tidegate.portable import Fields
from tidegate.workers.reference import Reference
from tidegate_transports.ipc_values import Value

__all__ = [
    "VERSION",
    "Answer",
    "Call",
    "Cancel",
    "Chunk",
    "Credit",
    "Drain",
    "End",
    "Failure",
    "Freed",
    "Hello",
    "Listening",
    "Message",
    "News",
    "NotListening",
    "Question",
    "Reply",
    "Start",
]

VERSION = 2
"""Of this protocol; a front end says its own first, and the hub says nothing to one that speaks another."""


class Hello(msgspec.Struct, array_like=True, tag=0, frozen=True, gc=False):
    """Front to hub, first of all. In every version of the protocol this is `[[0, version]]`."""

    version: int


class Start(msgspec.Struct, array_like=True, tag=1, frozen=True, gc=False):
    """Hub to front, in answer: what to serve, where and how.

    options: of the HTTP door, by name. windows: inputs that a job keeps under way, by handler.
    """

    handlers: list[Reference]
    windows: dict[str, int]
    transport: str
    host: str
    port: int
    options: dict[str, Any]
    log_format: str
    drain_timeout: float


class Listening(msgspec.Struct, array_like=True, tag=2, frozen=True, gc=False):
    """Front to hub: the door is open."""


class NotListening(msgspec.Struct, array_like=True, tag=3, frozen=True, gc=False):
    """Front to hub: the door cannot be opened. errno: of an OSError. traceback: for a failure of the user's module."""

    kind: str
    text: str
    errno: int | None = None
    traceback: str = ""


class Call(msgspec.Struct, array_like=True, tag=4, frozen=True, gc=False):
    """Front to hub: one input. timeout: seconds left, or None for the handler's own; clocks need not agree.

    headers: pickled, since they may hold what is no Unicode; empty if there are none. patience: seconds that a stream
    waits for its reader. stream: its chunks are asked for. patient: as `patient_call`.
    """

    id: int
    handler: str
    value: Value
    priority: int = 3
    timeout: float | None = None
    request_id: str = ""
    headers: bytes = b""
    patience: float | None = None
    nbytes: int = 0
    stream: bool = False
    patient: bool = False


class Cancel(msgspec.Struct, array_like=True, tag=5, frozen=True, gc=False):
    """Front to hub: nobody waits for this answer any more."""

    id: int


class Credit(msgspec.Struct, array_like=True, tag=6, frozen=True, gc=False):
    """Front to hub: so many chunks of a stream have been read."""

    id: int
    chunks: int


class Answer(msgspec.Struct, array_like=True, tag=7, frozen=True, gc=False):
    """Hub to front: an output and its times in seconds."""

    id: int
    value: Value
    queued: float
    ran: float
    batch_size: int


class Failure(msgspec.Struct, array_like=True, tag=8, frozen=True, gc=False):
    """Hub to front: how a call or a stream failed."""

    id: int
    error: Fields


class Chunk(msgspec.Struct, array_like=True, tag=9, frozen=True, gc=False):
    """Hub to front: a stream's next chunk; queued: seconds that the stream waited for its batch."""

    id: int
    value: Value
    queued: float


class End(msgspec.Struct, array_like=True, tag=10, frozen=True, gc=False):
    """Hub to front: a stream's end; queued: as in its chunks, since it may have had none."""

    id: int
    queued: float


class News(msgspec.Struct, array_like=True, tag=11, frozen=True, gc=False):
    """Hub to front, when it changes: how the app is."""

    ready: bool
    alive: bool
    draining: bool


class Question(msgspec.Struct, array_like=True, tag=12, frozen=True, gc=False):
    """Either way: what the other one knows and this one does not."""

    id: int
    about: str


class Reply(msgspec.Struct, array_like=True, tag=13, frozen=True, gc=False):
    """The answer to a question: found, in msgpack; or why there is none."""

    id: int
    found: bytes
    error: str = ""


class Drain(msgspec.Struct, array_like=True, tag=14, frozen=True, gc=False):
    """Hub to front: accept nobody any more, finish within so many seconds, end."""

    seconds: float


class Freed(msgspec.Struct, array_like=True, tag=15, frozen=True, gc=False):
    """Either way: these blocks of shared memory, by their offsets, nobody looks at any more."""

    blocks: list[int]


Message = (
    Hello
    | Start
    | Listening
    | NotListening
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
    | Freed
)
