"""The HTTP door on aiohttp: it moves bytes between sockets and the exchange."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader

from tidegate import App
from tidegate_transports.address import parse_address
from tidegate_transports.exchange import Exchange, Parts, Request, Response, problem, request_id_of

__all__ = ["HTTPTransport"]

DRAIN_TIMEOUT = 10.0
"""Seconds that requests in flight have to end when the door closes; aiohttp spends them once more after cancelling."""

MAX_BODY = 32 * 1024 * 1024


class HTTPTransport:
    """Serves an app at `address`, `HOST:PORT`; port 0 takes a free one, which `url` then names."""

    def __init__(self, address: str) -> None:
        self._address = parse_address(address)
        self.url = f"http://{self._address}"

    @asynccontextmanager
    async def serve(self, app: App) -> AsyncIterator[None]:
        """Listen until left; raises OSError when the address cannot be taken."""
        exchange = Exchange(app)

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            try:
                body = await _read(request)
            except web.HTTPRequestEntityTooLarge:
                detail = f"the body is over {MAX_BODY} bytes"
                response = problem(413, detail, "body-too-large", request_id_of(request.headers))
            except web.RequestPayloadError:
                detail = "the body is not what Content-Encoding or Transfer-Encoding says"
                response = problem(400, detail, "malformed-body", request_id_of(request.headers))
            else:
                response = await exchange.respond(Request(request.method, request.path, request.headers, body))
            if response.parts is not None:
                return await _send_parts(request, response, response.parts)
            return web.Response(
                status=response.status, body=response.body, content_type=response.content_type, headers=response.headers
            )

        # The low-level server has no router, middleware or signals to pass through on the way.
        # A client that hangs up cancels its handler, and with that its place in the queue.
        server = web.Server(handle, request_factory=_request, handler_cancellation=True, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=DRAIN_TIMEOUT)
        await runner.setup()
        try:
            site = web.TCPSite(runner, self._address.host, self._address.port)
            await site.start()
            host, port = runner.addresses[0][:2]
            self.url = f"http://{self._address._replace(host=host, port=port)}"
            yield
        finally:
            await runner.cleanup()


async def _send_parts(request: web.BaseRequest, response: Response, parts: Parts) -> web.StreamResponse:
    streamed = web.StreamResponse(status=response.status, headers=response.headers)
    streamed.content_type = response.content_type
    async with aclosing(parts):
        await streamed.prepare(request)
        async for part in parts:
            await streamed.write(part)
    await streamed.write_eof()
    return streamed


async def _read(request: web.BaseRequest) -> bytes:
    # The low-level server leaves this to its handler. curl waits a second for it before every body over a megabyte.
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    return await request.read()


def _request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: web.RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> web.BaseRequest:
    return web.BaseRequest(
        message, payload, protocol, writer, task, asyncio.get_running_loop(), client_max_size=MAX_BODY
    )
