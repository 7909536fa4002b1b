"""Requests over HTTP, on aiohttp: a pool of connections, one request at a time on each."""

from __future__ import annotations

import asyncio
import io
import socket
from collections import deque
from contextlib import suppress
from dataclasses import replace
from typing import Any, Self

import aiohttp

from tidegate.clients.answers import END, error_of_response, read_message
from tidegate.clients.carrier import Disconnected, Reply, Request
from tidegate.clients.place import Place
from tidegate.clients.values import ACCEPT, read_output, write_body
from tidegate.media import MalformedBody, parsed
from tidegate.version import __version__
from tidegate.wire import Reply as Message
from tidegate.wire import read_reply

__all__ = ["HTTPCarrier"]

CONNECT_TIMEOUT = 10.0
"""Seconds that a connection may take to be made."""

MAX_LINE = 256 * 1024 * 1024
"""Bytes of one chunk of a stream."""

MAX_ERROR = 1024 * 1024
"""Bytes that are read of an error."""

USUAL_PRIORITY = 3
_LARGE = 2**20
_END_OF_BODY = 1.0
_LINES = "application/x-ndjson"
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


class HTTPCarrier:
    """Carries requests to `http://` and `https://`."""

    def __init__(self, place: Place) -> None:
        # An address without a handler means the app's only one.
        self._place = place if place.name else replace(place, name="predict")

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(
            limit=self._place.connections, ssl=self._place.tls or True, socket_factory=_socket
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            # Arrays do not shrink, and to compress what stays on one machine or in one rack takes longer than to send it.
            headers={"User-Agent": f"tidegate/{__version__}", "Accept-Encoding": "identity", **self._place.headers},
            # How long an answer may take is for whoever asks to say; a connection must not take for ever.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(self, request: Request) -> Reply:
        """One POST; a stream's reply keeps its connection until it is closed or at its end."""
        body, media = write_body(request.value)
        url = self._place.url(request.handler)
        headers = {"Accept": ACCEPT, "Content-Type": media}
        if request.timeout is not None:
            headers["Prefer"] = f"wait={request.timeout:.3f}"
        if request.priority != USUAL_PRIORITY:
            headers["Priority"] = f"u={request.priority}"
        data: Any = body if len(body) < _LARGE else io.BytesIO(body)  # the latter is written in parts
        try:
            response = await self._session.post(url, data=data, headers=headers, allow_redirects=False)
        except (aiohttp.ClientError, OSError) as error:
            disconnected = _disconnected(error, url)
            # Where nobody listens the library's own traceback would bury the one line that says so.
            raise disconnected from (error if disconnected.sent else None)
        try:
            return await _reply(response)
        except BaseException:
            response.close()
            raise


def _socket(info: Any) -> socket.socket:
    """A socket that finds out when the other side's machine is gone, however long an answer may take."""
    made = socket.socket(*info[:3])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made


async def _reply(response: aiohttp.ClientResponse) -> Reply:
    media = parsed(response.headers.get("Content-Type", ""))[0]
    try:
        if response.status != 200:
            body = await _up_to(response, MAX_ERROR)
            response.close()
            raise error_of_response(response.status, response.headers, body)
        if media != _LINES:
            return Reply(read_output(await response.read(), media))
    except (aiohttp.ClientError, OSError) as error:
        raise _broken(error) from error
    lines = Lines(response)
    await lines.begin()
    return Reply(chunks=lines)


async def _up_to(response: aiohttp.ClientResponse, limit: int) -> bytes:
    body = bytearray()
    async for data in response.content.iter_any():
        body += data
        if len(body) > limit:
            break
    return bytes(body)


def _disconnected(error: Exception, url: str) -> Disconnected:
    """What went wrong before any byte of an answer."""
    if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
        return Disconnected(f"{url} cannot be reached: {getattr(error, 'os_error', error)}", sent=False)
    if isinstance(error, aiohttp.ClientResponseError):
        return Disconnected(f"{url} does not answer in HTTP: {error.message}", begun=True)
    return Disconnected(f"the connection to {url} broke before an answer: {str(error) or type(error).__name__}")


def _broken(error: Exception) -> Disconnected:
    return Disconnected(f"the connection broke in the middle of the answer: {error}", begun=True)


def _parsed(line: bytes) -> Message:
    try:
        return read_reply(str(line, "utf-8"))
    except (MalformedBody, UnicodeDecodeError) as error:
        raise Disconnected(f"the stream holds a line that cannot be read: {error}", begun=True) from error


class Lines:
    """A stream's chunks from its lines, of which the last says how it ended."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._request_id = response.headers.get("X-Request-Id", "")
        self._lines: deque[bytes] = deque()
        self._rest = bytearray()
        self._first: list[Any] = []
        self._ended = False

    async def begin(self) -> None:
        """Wait for the first line; raises what it says if that is an error."""
        self._first.append(await self._next())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._ended and not self._first:
            raise StopAsyncIteration
        chunk = self._first.pop() if self._first else await self._next()
        if chunk is END:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        """Hang up, unless the end was read: then the connection serves again."""
        self._ended = True
        self._first.clear()
        self._response.close()

    async def _next(self) -> Any:
        try:
            line = await self._line()
            chunk = read_message(_parsed(line), is_text=True, request_id=self._request_id)
            if chunk is END:
                self._ended = True
                await self._finish()
        except BaseException:
            self._ended = True
            self._response.close()
            raise
        return chunk

    async def _finish(self) -> None:
        """Read the end of the body, which follows the last line at once, so that the connection can serve again."""
        with suppress(TimeoutError, aiohttp.ClientError, OSError):
            async with asyncio.timeout(_END_OF_BODY):
                await self._response.read()

    async def _line(self) -> bytes:
        while not self._lines:
            try:
                data = await self._response.content.readany()
            except (aiohttp.ClientError, OSError) as error:
                raise _broken(error) from error
            if not data:
                raise Disconnected("the stream stopped without its end", begun=True)
            *lines, rest = data.split(b"\n")
            for line in lines:
                self._lines.append(bytes(self._rest) + line)
                self._rest.clear()
            self._rest += rest
            if len(self._rest) > MAX_LINE:
                raise Disconnected(f"the stream holds a chunk of over {MAX_LINE} bytes", begun=True)
        return self._lines.popleft()
