"""What a service said, read: problem documents, `Retry-After`, and the messages and lines that streams are made of."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import msgspec

from tidegate.clients.carrier import Disconnected
from tidegate.clients.values import read_output
from tidegate.media import JSON, MSGPACK, parsed
from tidegate.wire import Reply, error_from_wire
from tidegate_batching import HandlerError, TidegateError

__all__ = ["END", "Output", "error_of_response", "read_message", "retry_after_of"]

END = object()
"""What `read_message` gives for a stream's end."""

_MAX_TEXT = 500


class Output(msgspec.Struct):
    """A whole output, where a stream's chunk might have come."""

    value: Any


class _Problem(msgspec.Struct):
    """RFC 9457, as the service writes it."""

    status: int = 0
    title: str = ""
    detail: str = ""
    code: str = ""
    request_id: str = ""


def read_message(message: Reply, *, is_text: bool, request_id: str) -> Any:
    """A chunk's value, an `Output`, or END; raises the error that the service told, or Disconnected."""
    media = JSON if is_text else MSGPACK
    if message.error is not None:
        told = message.error
        raise _named(error_from_wire(told.code, told.status, told.message, told.retry_after), request_id)
    if len(message.chunk):
        return read_output(bytes(message.chunk), media)
    if len(message.output):
        return Output(read_output(bytes(message.output), media))
    if message.end:
        return END
    raise Disconnected("the service sent a message that holds no output, chunk, end or error", begun=True)


def error_of_response(status: int, headers: Mapping[str, str], body: bytes) -> TidegateError:
    """The error of an HTTP response, of the class that was raised in the service; a proxy's too, by its status."""
    if status < 400:
        where = headers.get("Location", "")
        detail = f"redirected to {where!r:.500}: use that address" if where else f"unexpected status {status}"
        return Disconnected(detail, begun=True)
    wait = retry_after_of(headers)
    media = parsed(headers.get("Content-Type", ""))[0]
    if media == "application/problem+json":
        try:
            problem = msgspec.json.decode(body, type=_Problem)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            problem = _Problem()
        if problem.code:
            error = error_from_wire(problem.code, status, problem.detail or problem.title, wait)
            return _named(error, problem.request_id or headers.get("X-Request-Id", ""))
    # Not the service's own words but those of something in between.
    text = body[:_MAX_TEXT].decode("utf-8", "replace").strip() if media == "text/plain" else ""
    phrase = _phrase(status)
    return error_from_wire(f"http-{status}", min(status, 599), f"{phrase}: {text}" if text else phrase, wait)


def _named(error: TidegateError, request_id: str) -> TidegateError:
    """The same error, and where it is for the service's log to tell what happened, with the id to find it by."""
    if type(error) is HandlerError and request_id not in error.detail:
        error.args = (f"{error.detail} (request {request_id})",)
    return error


def _phrase(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def retry_after_of(headers: Mapping[str, str]) -> float | None:
    """Seconds until the service wants to be asked again; None where it does not say.

    Example:
        >>> retry_after_of({"Retry-After": "7"})
        7.0
        >>> date, later = "Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:30 GMT"
        >>> retry_after_of({"Date": date, "Retry-After": later})
        30.0
    """
    told = headers.get("Retry-After", "").strip()
    if not told:
        return None
    try:
        seconds = float(told)
    except ValueError:
        pass
    else:
        return seconds if 0 <= seconds < float("inf") else None
    try:
        # By the service's own clock, which need not agree with ours.
        return max(0.0, (parsedate_to_datetime(told) - parsedate_to_datetime(headers["Date"])).total_seconds())
    except (KeyError, ValueError, TypeError):
        return None
