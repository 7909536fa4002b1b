"""Who may open a WebSocket, what its path means, and the connections of one door until they are drained."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tidegate import App, Handler
from tidegate.wire import KEY_PREFIX, SUBPROTOCOL
from tidegate_transports.guards import Keys, Origins
from tidegate_transports.http_options import HTTPOptions
from tidegate_transports.problems import Refusal, request_id_of
from tidegate_transports.pulse import Pulse
from tidegate_transports.session import Limits, Session
from tidegate_transports.websocket_driver import GOING_AWAY, Connection, Wire

__all__ = ["CLOSE_TIMEOUT", "Admitted", "WebSockets"]

CLOSE_TIMEOUT = 5.0
"""Seconds that a client has to answer a close message."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A connection that may be opened.

    usual: the handler that requests mean which name none. subprotocol: to be named in the answer. name: for the log, to
    be sent as X-Request-Id.
    """

    usual: str | None
    subprotocol: str | None
    name: str
    headers: Mapping[str, str]


class WebSockets:
    """The WebSocket side of one door.

    A shell asks `admit` about each handshake, runs `serve` for each connection, and `drain` before the door closes.
    """

    def __init__(self, app: App, options: HTTPOptions | None = None, limits: Limits | None = None) -> None:
        self.options = options or HTTPOptions()
        self.limits = limits or Limits()
        self._app = app
        self._keys = Keys(self.options.api_keys)
        self._origins = Origins(self.options.cors_origins)
        self._usual = _usual_handlers(app.handlers)
        self._open: set[Connection] = set()
        self._draining = False

    def admit(self, path: str, headers: Mapping[str, str]) -> Admitted:
        """Look at a handshake; raises Refusal.

        headers: names in lower case, or of any case in a mapping that ignores it; what came twice joined by commas.
        """
        offered = [part.strip() for part in headers.get("sec-websocket-protocol", "").split(",")]
        self._check_key(headers, offered)
        self._check_origin(headers)
        if path not in self._usual:
            paths = ", ".join(self._usual)
            raise Refusal(404, "not-found", f"no WebSocket is at {path[:200]}; there is {paths}")
        if self._draining:
            raise Refusal(503, "closed", "the service is shutting down", {"Retry-After": "1"})
        if len(self._open) >= self.options.max_connections:
            detail = f"there are {len(self._open)} connections already; send more requests over each"
            raise Refusal(503, "too-many-connections", detail, {"Retry-After": "1"})
        subprotocol = SUBPROTOCOL if SUBPROTOCOL in offered else None
        return Admitted(self._usual[path], subprotocol, request_id_of(headers), headers)

    def pulse(self, *, pings: bool = True) -> Pulse:
        """The clock of a connection that opens now; pings: whether the shell can send them."""
        limits = self.limits
        return Pulse(
            asyncio.get_running_loop().time(),
            ping_interval=limits.ping_interval if pings else None,
            ping_timeout=limits.ping_timeout,
            idle_timeout=limits.idle_timeout,
            write_timeout=self.options.write_timeout,
        )

    async def serve(self, admitted: Admitted, wire: Wire, pulse: Pulse) -> None:
        """Serve one connection until it is closed."""
        session = Session(
            self._app.handlers,
            self.limits,
            pulse,
            usual=admitted.usual,
            name=admitted.name,
            headers=admitted.headers,
            trust_priority=self.options.trust_priority,
        )
        if self._draining:
            # The drain began between its handshake and now.
            await wire.close(GOING_AWAY, "the service is shutting down")
            return
        connection = Connection(self._app, session, wire)
        self._open.add(connection)
        try:
            await connection.run()
        finally:
            self._open.discard(connection)

    async def drain(self) -> None:
        """Refuse what is new, let every connection finish what is in, until `App.drain_ends_at`, and close them."""
        self._draining = True
        await asyncio.gather(*(connection.drain() for connection in self._open))

    # ------------------------------------------------------------------ who may

    def _check_key(self, headers: Mapping[str, str], offered: Iterable[str]) -> None:
        if self._keys.admit(headers) or self._keys.know(_key_in(offered)):
            return
        detail = (
            "this service wants an API key: send it as X-API-Key, as Authorization: Bearer, "
            f"or in base64url as the subprotocol {KEY_PREFIX}… beside {SUBPROTOCOL}"
        )
        raise Refusal(401, "unauthorized", detail, {"WWW-Authenticate": "Bearer"})

    def _check_origin(self, headers: Mapping[str, str]) -> None:
        """Browsers let any page open a WebSocket to anywhere, and say whose page it is."""
        origin = headers.get("origin")
        if origin is None or self._origins.allow(origin):
            return
        # A page that this very door gave out.
        if urlsplit(origin).netloc.lower() == headers.get("host", "").lower() != "":
            return
        raise Refusal(403, "origin-not-allowed", f"pages of {origin[:200]} may not call; see cors_origins=")


def _usual_handlers(handlers: Mapping[str, Handler[..., Any]]) -> dict[str, str | None]:
    """Path to the handler that is meant there; `/` stands for none in particular."""
    only = next(iter(handlers)) if len(handlers) == 1 else None
    paths: dict[str, str | None] = {handler.options.path: name for name, handler in handlers.items()}
    if only is not None:
        paths["/predict"] = only
    return {**paths, "/": only}


def _key_in(subprotocols: Iterable[str]) -> str:
    """The API key that a browser sends as the name of a subprotocol, "" where there is none that can be read."""
    for name in subprotocols:
        if name.startswith(KEY_PREFIX):
            encoded = name.removeprefix(KEY_PREFIX)
            try:
                return base64.b64decode(encoded + "=" * (-len(encoded) % 4), b"-_", validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                return ""
    return ""
