"""An app as an ASGI 3 application: under uvicorn, granian or hypercorn, or mounted in FastAPI and Starlette.

It moves bytes between the server and the exchange. Reading heads, timeouts and connection limits are the server's.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import aclosing, suppress
from typing import Any

from tidegate import App, Unavailable
from tidegate.service import SetupFailed
from tidegate_transports.exchange import Exchange
from tidegate_transports.http_options import HTTPOptions
from tidegate_transports.lifetime import Lifetime
from tidegate_transports.messages import Request, Response
from tidegate_transports.websocket_asgi import websocket
from tidegate_transports.websocket_handshake import WebSockets

__all__ = ["ASGI", "Receive", "Scope", "Send", "mounted"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

LOOK_AFTER = 0.02
"""Seconds that a request runs before anybody listens for its client's end: most are answered by then."""

LAST_WORDS = 1.0
"""Seconds that requests get to say that they were cut off."""

SMALL = 64 * 1024
"""Bytes of a body that is read whoever sends it."""


class ASGI:
    """The ASGI callable of one app."""

    def __init__(self, app: App, options: HTTPOptions | None = None) -> None:
        self._app = app
        self._options = options or HTTPOptions()
        self._exchange = Exchange(app, self._options)
        self._lifetime = Lifetime(app)
        self._web_sockets = WebSockets(app, self._options)
        self._running: set[asyncio.Task[Any]] = set()
        self._is_over = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection's scope, as ASGI 3 has it."""
        kind = scope["type"]
        if kind == "http":
            await self._http(scope, receive, send)
        elif kind == "websocket":
            with suppress(Unavailable):  # the handshake then finds nobody ready
                await self._lifetime.ensure(wait=True)
            await websocket(self._web_sockets, scope, receive, send)
        elif kind == "lifespan":
            await self._lifespan(receive, send)
        else:
            raise ValueError(f"scope type {kind!r} is not known here: http, websocket and lifespan are")

    # ------------------------------------------------------------------ requests

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        client = _Client(receive, task)
        head = _head(scope)
        began = False
        try:
            response = await self._respond(head, client)
            began = True
            await self._send(scope, response, send)
        except _Gone:
            pass
        except asyncio.CancelledError:
            if not client.gone and not self._is_over:
                raise
            task.uncancel()
            if not client.gone:
                await self._cut_off(scope, head, began, send)
        finally:
            client.forget()
            self._running.discard(task)

    async def _respond(self, head: Request, client: _Client) -> Response:
        # Small bodies are read first and then looked at in one go with their heads.
        length = head.headers.get("content-length", "")
        if not (length.isdecimal() and int(length) <= SMALL) and (refusal := self._exchange.admit(head)):
            return refusal
        try:
            body = await client.body(self._options.max_body)
        except _TooLarge:
            detail = f"the body is over {self._options.max_body} bytes"
            return self._exchange.refuse(head, 413, "body-too-large", detail)
        client.watch()
        try:
            # Whoever only looks in, such as a probe, is not kept waiting by a setup.
            await self._lifetime.ensure(wait=head.method == "POST")
        except Unavailable as error:
            response = self._exchange.refuse(head, error.status, error.code, error.detail)
            response.headers["Retry-After"] = f"{max(1, round(error.retry_after))}"
            return response
        return await self._exchange.respond(head._replace(body=body) if body else head)

    async def _send(self, scope: Scope, response: Response, send: Send) -> None:
        body = response.body
        headers = [
            (name.lower().encode(), value.encode("latin-1", "replace")) for name, value in response.headers.items()
        ]
        if response.content_type:
            headers.append((b"content-type", response.content_type.encode()))
        if response.parts is None:
            headers.append((b"content-length", b"%d" % len(body)))
        # HTTP/2 knows no such header.
        if self._app.draining and scope.get("http_version", "1.1") in ("1.0", "1.1"):
            headers.append((b"connection", b"close"))
        start = {"type": "http.response.start", "status": response.status, "headers": headers}
        if response.parts is None:
            await send(start)
            body = b"" if scope["method"] == "HEAD" else body
        else:
            async with aclosing(response.parts):
                await send(start)
                async for part in response.parts:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": body})

    async def drain(self, until: float) -> None:
        """Wait for the requests in flight until `until` on the loop's clock, then cancel them."""
        web_sockets = asyncio.create_task(self._web_sockets.drain())
        running = self._running - {asyncio.current_task()}
        while running:
            left = until - asyncio.get_running_loop().time()
            if left <= 0:
                break
            await asyncio.wait(running, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            running = self._running - {asyncio.current_task()}
        self._is_over = True
        for task in running:
            task.cancel()
        await asyncio.wait({web_sockets, *running}, timeout=LAST_WORDS)
        web_sockets.cancel()

    async def _cut_off(self, scope: Scope, head: Request, began: bool, send: Send) -> None:
        if began:
            # Ending without its last message is what makes the server break the connection off.
            raise ConnectionAbortedError("the service is shutting down")
        response = self._exchange.refuse(head, 503, "closed", "the service is shutting down")
        await self._send(scope, response, send)

    async def aclose(self) -> None:
        """End an app that its first request started; one that a lifespan or somebody else runs is left alone."""
        await self._lifetime.aclose()

    # ------------------------------------------------------------------ lifespan

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        if self._app.status():
            # Whoever runs it already, such as `tidegate serve`, ends it too.
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        started = False
        try:
            async with self._app:
                started = True
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except Exception as error:  # noqa: BLE001 - whatever the user's setup or teardown raises
            text = (
                f"{error.traceback}\n{error}" if isinstance(error, SetupFailed) else f"{type(error).__name__}: {error}"
            )
            await send({"type": f"lifespan.{'shutdown' if started else 'startup'}.failed", "message": text})
        else:
            await send({"type": "lifespan.shutdown.complete"})


class _Gone(Exception):
    """The client hung up before its request was complete."""


class _TooLarge(Exception):
    """The body is over the limit."""


class _Client:
    """One request's client: its body, and whether it is still there."""

    __slots__ = ("_over", "_receive", "_task", "_timer", "_watcher", "gone")

    def __init__(self, receive: Receive, task: asyncio.Task[Any]) -> None:
        self._receive = receive
        self._task = task
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._over = False
        self.gone = False

    async def body(self, limit: int) -> bytes:
        """All of it; raises _TooLarge as soon as it is over `limit` bytes."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        part: bytes = message.get("body", b"")
        if not message.get("more_body", False) and len(part) <= limit:
            return part
        parts: list[bytes] = []
        size = 0
        while True:
            size += len(part)
            if size > limit:
                raise _TooLarge
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            part = message.get("body", b"")

    def watch(self) -> None:
        """From a moment on, cancel the request when its client hangs up."""
        self._timer = asyncio.get_running_loop().call_later(LOOK_AFTER, self._look)

    def _look(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._wait_for_the_end())

    async def _wait_for_the_end(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        # Servers say so too when the answer is out.
        if not self._over:
            self.gone = True
            self._task.cancel()

    def forget(self) -> None:
        """The request is over."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()


def _head(scope: Scope) -> Request:
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("utf-8", "surrogateescape")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    path, root = _split(scope["path"], scope.get("root_path", ""))
    client = scope.get("client") or ("",)
    query = scope.get("query_string", b"").decode("latin-1")
    return Request(scope["method"], path, headers, b"", query, client[0], root)


def _split(path: str, root: str) -> tuple[str, str]:
    """The path below the place where the app is mounted, and that place."""
    root = root.rstrip("/")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        path = path[len(root) :] or "/"
    return path, root


def mounted(app: App, **options: Any) -> ASGI:
    """An app's ASGI callable with these `HTTPOptions`, those of the environment where it is not told otherwise."""
    return ASGI(app, HTTPOptions.from_environment(os.environ, **options))
