"""What goes over a WebSocket, for clients and doors: one connection, many requests, answers as they come.

A text message is JSON, a binary one msgpack, and both hold the same fields. An answer comes in the kind of message in
which its request came. From the client:

    {"id", "input", "handler"?, "timeout"?, "priority"?}    a request; the connection's path names the usual handler
    {"id", "cancel": true}                                  nobody waits for it any more

From the service, of which exactly one of the last three ends each request:

    {"id", "chunk"}                                         one of a stream
    {"id", "output"}
    {"id", "end": true}                                     of a stream that ended well
    {"id", "error": {"code", "status", "message", "retry_after"?}}

An `id` is a text of at most 128 characters or an integer of 64 bits, free again once its request has ended. A request
whose id is in flight is refused with the code "duplicate-id", and the one in flight goes on. A cancelled request ends
with the code "cancelled" unless it had ended already. What cannot be read is answered by an error with the id if there
was one, and without `id` if there was none. Unknown fields are passed over.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, NamedTuple

import msgspec

from tidegate.media import EncodeError, MalformedBody, NotAcceptable, UnsupportedMediaType
from tidegate_batching import (
    BatchSizeMismatch,
    Cancelled,
    Closed,
    DeadlineExceeded,
    HandlerError,
    HTTPError,
    InvalidInput,
    OutOfMemory,
    Overloaded,
    Refused,
    RunTimeout,
    SlowReader,
    TidegateError,
    TooCostly,
    Unavailable,
    WorkerDied,
)

__all__ = [
    "DUPLICATE_ID",
    "KEY_PREFIX",
    "MAX_ID",
    "SUBPROTOCOL",
    "Call",
    "ErrorBody",
    "Id",
    "Message",
    "Reply",
    "error_from_wire",
    "error_to_wire",
    "id_of",
    "read_call",
    "read_reply",
    "write",
]

SUBPROTOCOL = "tidegate.v1"
"""The subprotocol that a client may ask for."""

KEY_PREFIX = "tidegate.key."
"""What stands before an API key in base64url among the subprotocols: browsers cannot send headers."""

DUPLICATE_ID = "duplicate-id"
"""The code of the one error that does not end the request of its id: it is about a second one."""

MAX_ID = 128

Id = Annotated[str, msgspec.Meta(max_length=MAX_ID)] | Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

_NOTHING = msgspec.Raw()
_MAX_TEXT = 500


class Message(NamedTuple):
    """One message's bytes, and whether they are JSON for a text message or msgpack for a binary one."""

    data: bytes
    is_text: bool


class Call(msgspec.Struct, omit_defaults=True):
    """What a client sends: a request, or a cancel.

    input: written already, in JSON or msgpack as the message is; without any bytes there is none. timeout: seconds.
    priority: 0 (first) to 7.
    """

    id: Id
    input: msgspec.Raw = _NOTHING
    handler: str | None = None
    timeout: Annotated[float, msgspec.Meta(ge=0)] | None = None
    priority: Annotated[int, msgspec.Meta(ge=0, le=7)] | None = None
    cancel: bool = False


class ErrorBody(msgspec.Struct, omit_defaults=True):
    """Why a request failed: as `TidegateError` has it; retry_after, in seconds, where to try again makes sense."""

    code: str
    status: int
    message: str
    retry_after: float | None = None


class Reply(msgspec.Struct, omit_defaults=True):
    """What a service sends: one of `output`, `chunk`, `end` and `error`.

    output, chunk: as they were written, and without any bytes where there is none.
    """

    id: Id | None = None
    output: msgspec.Raw = _NOTHING
    chunk: msgspec.Raw = _NOTHING
    end: bool = False
    error: ErrorBody | None = None


class _Named(msgspec.Struct):
    id: Id | None = None


_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_json_call, _msgpack_call = msgspec.json.Decoder(Call), msgspec.msgpack.Decoder(Call)
_json_reply, _msgpack_reply = msgspec.json.Decoder(Reply), msgspec.msgpack.Decoder(Reply)
_json_named, _msgpack_named = msgspec.json.Decoder(_Named), msgspec.msgpack.Decoder(_Named)
_json_encoder, _msgpack_encoder = msgspec.json.Encoder(), msgspec.msgpack.Encoder()


def read_call(message: str | bytes) -> Call:
    """What a client sent; MalformedBody says what is wrong with it.

    Example:
        >>> call = read_call('{"id": 1, "input": [1, 2]}')
        >>> call.id, bytes(call.input)
        (1, b'[1, 2]')
    """
    try:
        call = _json_call.decode(message) if isinstance(message, str) else _msgpack_call.decode(message)
    except _UNREADABLE as error:
        raise MalformedBody(_why(error, message)) from None
    if not call.cancel and not len(call.input):
        raise MalformedBody('a request needs "input"; send null for none')
    return call


def id_of(message: str | bytes) -> Id | None:
    """The id in a message that may be wrong otherwise; None where none can be read."""
    try:
        named = _json_named.decode(message) if isinstance(message, str) else _msgpack_named.decode(message)
    except _UNREADABLE:
        return None
    return named.id


def read_reply(message: str | bytes) -> Reply:
    """What a service sent; MalformedBody where it is none of the forms."""
    try:
        return _json_reply.decode(message) if isinstance(message, str) else _msgpack_reply.decode(message)
    except _UNREADABLE as error:
        raise MalformedBody(_why(error, message)) from None


def write(message: Call | Reply, *, is_text: bool) -> Message:
    """The bytes of a message; its input, output or chunk must have been written in the same form.

    Example:
        >>> write(Call("a", msgspec.Raw(b"[1,2]")), is_text=True).data
        b'{"id":"a","input":[1,2]}'
    """
    return Message((_json_encoder if is_text else _msgpack_encoder).encode(message), is_text)


def _why(error: Exception, message: str | bytes) -> str:
    form = "JSON" if isinstance(message, str) else "msgpack"
    if isinstance(message, bytes) and message[:1] == b"{":
        return "a binary message is msgpack, and this looks like JSON: send it as a text message"
    if isinstance(error, msgspec.ValidationError):
        return f"the message is not as it should be: {str(error)[:_MAX_TEXT]}"
    if isinstance(error, RecursionError):
        return f"the {form} is nested too deeply"
    return f"the message is no {form}: {str(error)[:_MAX_TEXT]}"


# ---------------------------------------------------------------------- errors

_CLASSES: dict[str, type[TidegateError]] = {
    known.code: known
    for known in (
        TidegateError,
        InvalidInput,
        MalformedBody,
        TooCostly,
        UnsupportedMediaType,
        NotAcceptable,
        EncodeError,
        HTTPError,
        Refused,
        Overloaded,
        Unavailable,
        Closed,
        SlowReader,
        DeadlineExceeded,
        Cancelled,
        HandlerError,
        BatchSizeMismatch,
        OutOfMemory,
        RunTimeout,
        WorkerDied,
    )
}
# A proxy before the service, or a later version of it, may know codes that this one does not.
_BY_STATUS: dict[int, type[TidegateError]] = {
    400: MalformedBody,
    422: InvalidInput,
    429: Overloaded,
    503: Unavailable,
    504: DeadlineExceeded,
}
# What the constructors of some would take and an error's text does not tell.
_UNTOLD: dict[type[TidegateError], dict[str, Any]] = {
    TooCostly: {"cost": math.nan, "limit": math.nan},
    UnsupportedMediaType: {"got": "", "taken": ()},
    NotAcceptable: {"accept": "", "offered": ()},
    BatchSizeMismatch: {"expected": -1, "got": -1},
    RunTimeout: {"limit": math.nan},
}


def error_to_wire(error: TidegateError, message: str | None = None) -> ErrorBody:
    """An error as it travels; `message` in the place of its own detail.

    Example:
        >>> error_to_wire(Overloaded(retry_after=2))
        ErrorBody(code='overloaded', status=429, message='The queue is full', retry_after=2)
    """
    text = error.detail if message is None else message
    retry_after = error.retry_after if isinstance(error, Refused) else None
    # Half a surrogate pair, from a file name or a header, has no form in UTF-8.
    return ErrorBody(error.code, error.status, text.encode("utf-8", "replace").decode(), retry_after)


def error_from_wire(code: str, status: int, message: str, retry_after: float | None = None) -> TidegateError:
    """The error that a service told, of the same class; what only its own process knew is left open.

    A code that is not known here is kept, on an error of the class that its status suggests, else an `HTTPError`.

    Example:
        >>> error_from_wire("slow-reader", 408, "The stream was not read fast enough")
        SlowReader('The stream was not read fast enough')
        >>> error = error_from_wire("not-found", 404, "no handler 'sqare'")
        >>> type(error).__name__, error.code, error.status, error.detail
        ('HTTPError', 'not-found', 404, "no handler 'sqare'")
    """
    kind = _CLASSES.get(code) or _BY_STATUS.get(status, HTTPError)
    # Past the constructors, whose arguments are not what travels.
    error = kind.__new__(kind, message)
    told: dict[str, Any] = dict(_UNTOLD.get(kind, {}))
    if issubclass(kind, HandlerError):
        told = {"type_name": "", "text": message, "traceback": ""}
    if issubclass(kind, Refused):
        told["retry_after"] = 1.0 if retry_after is None else retry_after
    if kind.code != code:
        told["code"] = code
    if kind.status != status or kind is HTTPError:
        told["status"] = status
    vars(error).update(told)
    return error
