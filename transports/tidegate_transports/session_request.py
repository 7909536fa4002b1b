"""One request of a WebSocket session: its input read, what it comes to written, both as its handler's codec has them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from tidegate import EncodeError, Handler, HandlerError, InvalidInput, TidegateError
from tidegate.context import RequestInfo
from tidegate.media import MSGPACK, OCTETS
from tidegate.wire import Call, Message, Reply, error_to_wire, write

__all__ = ["READER_PATIENCE", "Request"]

log = logging.getLogger("tidegate.websocket")

READER_PATIENCE = 30.0
"""Seconds that an unbatched stream waits for a client that does not read."""


class Request:
    """A request that was let in. `stopped` is set when it is to end with that error instead of its own."""

    __slots__ = (
        "_input",
        "handler",
        "id",
        "info",
        "is_text",
        "may_be_cut_off",
        "priority",
        "stopped",
        "timeout",
        "waits_with",
    )

    def __init__(
        self,
        call: Call,
        handler: Handler[..., Any],
        priority: int,
        connection: str,
        headers: Mapping[str, str],
        *,
        is_text: bool,
    ) -> None:
        self.id = call.id
        self.handler = handler
        self.priority = priority
        self.timeout = call.timeout
        self.is_text = is_text
        self.stopped: TidegateError | None = None
        self.may_be_cut_off = False
        """Whether it waits for its one output, and nothing of it is being sent."""
        self.waits_with = 0
        """Bytes that it takes in the backlog, 0 outside of it."""
        request_id = f"{connection}/{quote(call.id) if isinstance(call.id, str) else call.id}"
        self.info = RequestInfo(request_id, headers, READER_PATIENCE, len(call.input))
        self._input: msgspec.Raw | None = call.input

    def value(self) -> Any:
        """The input as the handler takes it, to be asked for once; raises InvalidInput."""
        assert self._input is not None
        body, self._input = bytes(self._input), None
        codec = self.handler.codec
        if self.is_text:
            return codec.decode_json(body)
        if codec.content_types[0] != OCTETS:
            return codec.decode(body, MSGPACK)
        # A handler of plain bytes would get the msgpack as it is.
        try:
            return msgspec.msgpack.decode(body, type=bytes)
        except msgspec.DecodeError as error:
            raise InvalidInput(str(error)) from None

    def output(self, value: Any) -> Message:
        """The message that holds the output; raises EncodeError."""
        return write(Reply(self.id, output=self._written(value)), is_text=self.is_text)

    def chunk(self, value: Any) -> Message:
        """The message that holds one chunk; raises EncodeError."""
        return write(Reply(self.id, chunk=self._written(value)), is_text=self.is_text)

    def end(self) -> Message:
        """The message that ends a stream."""
        return write(Reply(self.id, end=True), is_text=self.is_text)

    def failed(self, error: TidegateError) -> Message:
        """The message that ends it with an error; what the caller may not read goes to the log."""
        return write(Reply(self.id, error=error_to_wire(error, self._told(error))), is_text=self.is_text)

    def _written(self, value: Any) -> msgspec.Raw:
        codec, options = self.handler.codec, self.handler.options
        if self.is_text:
            return msgspec.Raw(codec.encode_json(value, allow_nan=options.allow_nan))
        return msgspec.Raw(codec.encode_msgpack(value))

    def _told(self, error: TidegateError) -> str:
        name, request_id = self.handler.name, self.info.request_id
        if isinstance(error, HandlerError):
            # The text may hold anything of the user's; callers get the id by which the log names it.
            log.error("%s failed, request %s: %s\n%s", name, request_id, error, error.traceback)
            return f"internal error, request {request_id}"
        if error.status >= 500 and error.status != 503 and error.status != 504:
            log.error("%s failed, request %s: %s", name, request_id, error, exc_info=isinstance(error, EncodeError))
        return error.detail
