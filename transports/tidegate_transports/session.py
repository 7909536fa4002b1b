"""One WebSocket connection's meaning without its socket: messages in, what is to be done out; `now` is an argument.

A `Session` knows which ids are in flight, how many requests may run, what waits for a place, and whether to read on.
Whoever drives it starts and stops the requests, sends what they come to, and tells it when they are over.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeAlias

from tidegate import Cancelled, Closed, Handler, TidegateError
from tidegate.wire import DUPLICATE_ID, Call, ErrorBody, Id, Message, Reply, error_to_wire, id_of, read_call, write
from tidegate_transports.pulse import Pulse
from tidegate_transports.session_request import Request

__all__ = ["Action", "Limits", "Send", "Session", "Start", "Stop"]

USUAL_PRIORITY = 3

_OVERHEAD = 512
"""About what a waiting request takes beside its message."""

_NO_HEADERS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one connection may take.

    max_in_flight: requests that run or wait for a worker; more of them wait in the connection's own backlog, and when
    that holds max_backlog bytes nothing more is read. ping_interval: seconds of silence after which the client is asked
    whether it is there. ping_timeout: seconds for its answer. idle_timeout: seconds without any request.

    Raises TypeError or ValueError that names the field, the value and the fix.

    Example:
        >>> Limits(max_in_flight=8).max_backlog
        1048576
    """

    max_in_flight: int = 1024
    max_backlog: int = 1 << 20
    ping_interval: float = 20.0
    ping_timeout: float = 20.0
    idle_timeout: float = 3600.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, whole = getattr(self, field.name), field.type == "int"
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise TypeError(f"{field.name}={value!r}: give {'a whole number' if whole else 'seconds'}")
            if not value > 0:
                raise ValueError(f"{field.name}={value!r}: must be above 0")


class Start(NamedTuple):
    """Run this request; say `ended` and `finished` when it is over."""

    request: Request


class Stop(NamedTuple):
    """Nobody waits for this running request any more: end it with this error."""

    request: Request
    error: TidegateError


class Send(NamedTuple):
    """Send this message."""

    message: Message


Action: TypeAlias = Start | Stop | Send


class Session:
    """One connection.

    handlers: by name. usual: the one that is meant where none is named. name: of the connection, before the ids in
    the log. headers: of the handshake, names in lower case. trust_priority: whether requests may raise their own.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler[..., Any]],
        limits: Limits,
        pulse: Pulse,
        *,
        usual: str | None = None,
        name: str = "",
        headers: Mapping[str, str] | None = None,
        trust_priority: bool = False,
    ) -> None:
        self.pulse = pulse
        self._handlers = handlers
        self._limits = limits
        self._usual = usual
        self._name = name
        self._headers = headers or _NO_HEADERS
        self._trust_priority = trust_priority
        self._requests: dict[Id, Request] = {}
        self._backlog: OrderedDict[Id, Request] = OrderedDict()
        self._backlog_bytes = 0
        self._places = limits.max_in_flight
        self._draining = False

    @property
    def reading(self) -> bool:
        """Whether there is room for more requests; without it nothing may be read."""
        return self._backlog_bytes < self._limits.max_backlog

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return self._places == self._limits.max_in_flight and not self._backlog

    # ------------------------------------------------------------------ from the client

    def receive(self, message: str | bytes, now: float) -> list[Action]:
        """One message has come."""
        self.pulse.received(now)
        is_text = isinstance(message, str)
        try:
            call = read_call(message)
        except TidegateError as error:
            return [_refusal(id_of(message), error_to_wire(error), is_text)]
        if call.cancel:
            return self._cancel(call.id)
        name = self._usual if call.handler is None else call.handler
        if call.id in self._requests:
            text = f"id {call.id!r} is in flight already: give each request an id of its own"
            return [_refusal(call.id, ErrorBody(DUPLICATE_ID, 409, text), is_text)]
        if self._draining:
            return [_refusal(call.id, error_to_wire(Closed()), is_text)]
        if name is None or name not in self._handlers:
            return [_refusal(call.id, self._unknown(name), is_text)]
        return self._admit(call, self._handlers[name], message)

    def _admit(self, call: Call, handler: Handler[..., Any], message: str | bytes) -> list[Action]:
        priority = USUAL_PRIORITY if call.priority is None else call.priority
        if not self._trust_priority:
            priority = max(priority, USUAL_PRIORITY)
        headers = _NO_HEADERS
        if handler.options.forward_headers:
            headers = {name: self._headers[name] for name in handler.options.forward_headers if name in self._headers}
        request = Request(call, handler, priority, self._name, headers, is_text=isinstance(message, str))
        self._requests[call.id] = request
        if self._places:
            self._places -= 1
            return [Start(request)]
        request.waits_with = sys.getsizeof(message) + _OVERHEAD
        self._backlog[request.id] = request
        self._backlog_bytes += request.waits_with
        return []

    def _cancel(self, id: Id) -> list[Action]:
        request = self._requests.get(id)
        if request is None:
            # It has ended while the cancel was on its way.
            return []
        if not request.waits_with:
            return [Stop(request, Cancelled())]
        del self._backlog[id], self._requests[id]
        self._backlog_bytes -= request.waits_with
        return [Send(request.failed(Cancelled()))]

    def _unknown(self, name: str | None) -> ErrorBody:
        there = f"there is {', '.join(self._handlers)}"
        if name is None:
            return ErrorBody(
                "not-found", 404, f'this connection has no usual handler, so name one in "handler"; {there}'
            )
        return ErrorBody("not-found", 404, f"no handler is called {name[:100]!r}; {there}")

    # ------------------------------------------------------------------ from whoever runs the requests

    def ended(self, request: Request) -> None:
        """Its last message is about to be sent: from here on the client may use the id again."""
        del self._requests[request.id]

    def finished(self, request: Request, now: float) -> list[Action]:
        """Its last message has been sent, or there is nobody left to send it to: its place is free."""
        if self._requests.get(request.id) is request:
            del self._requests[request.id]
        self._places += 1
        starting: list[Action] = []
        while self._backlog and self._places:
            _, following = self._backlog.popitem(last=False)
            self._backlog_bytes -= following.waits_with
            following.waits_with = 0
            self._places -= 1
            starting.append(Start(following))
        if self.idle:
            self.pulse.received(now)
        return starting

    def drain(self) -> None:
        """Refuse what comes from now on; what is in goes on."""
        self._draining = True

    def abandon(self) -> list[Action]:
        """The time for draining is over: end everything."""
        waiting = [Send(request.failed(Closed())) for request in self._backlog.values()]
        for id in self._backlog:
            del self._requests[id]
        self._backlog.clear()
        self._backlog_bytes = 0
        return [*waiting, *(Stop(request, Closed()) for request in self._requests.values())]


def _refusal(id: Id | None, error: ErrorBody, is_text: bool) -> Send:
    return Send(write(Reply(id, error=error), is_text=is_text))
