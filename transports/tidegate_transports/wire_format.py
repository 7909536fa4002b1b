"""HTTP/1.1 answers as bytes: written in one go, which costs a quarter of what aiohttp's response classes do."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import aclosing
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING

from aiohttp import HttpVersion11, web

from tidegate_transports.messages import Parts, Response

if TYPE_CHECKING:
    from tidegate_transports.connection import Connection

__all__ = ["LAST", "NEXT", "head_of", "send", "send_parts"]


class _Sent:
    """What aiohttp asks of an answer that is out already."""

    status = 200

    def __init__(self, keep_alive: bool) -> None:
        self.keep_alive = keep_alive

    async def prepare(self, request: web.BaseRequest) -> None:
        """Nothing is left to prepare."""

    async def write_eof(self) -> None:
        """Nothing is left to write."""


# aiohttp looks at nothing else of an answer; a response of its own would be written once more.
NEXT: web.StreamResponse = _Sent(True)  # type: ignore[assignment]
"""The answer is out, the connection takes the next request."""
LAST: web.StreamResponse = _Sent(False)  # type: ignore[assignment]
"""The answer is out and the connection ends with it."""


async def send(
    connection: Connection, request: web.BaseRequest, response: Response, keep_alive: bool
) -> web.StreamResponse:
    """Write a whole answer."""
    body, status = response.body, response.status
    # Neither has a body, and 204 not even the length of one.
    length = None if status == 204 or status < 200 else len(body)
    head = head_of(status, response.content_type, response.headers, length, _connection_of(request, keep_alive))
    if request.method == "HEAD" or length is None or status == 304:
        body = b""
    await connection.put(head + body)
    return NEXT if keep_alive else LAST


async def send_parts(
    connection: Connection, request: web.BaseRequest, response: Response, parts: Parts, keep_alive: bool
) -> web.StreamResponse:
    """Write an answer as its parts come; the chunked framing's end is only there if the stream had one."""
    chunked = request.version >= HttpVersion11
    keep_alive = keep_alive and chunked
    headers = {**response.headers, "Transfer-Encoding": "chunked"} if chunked else response.headers
    async with aclosing(parts):
        keeps = _connection_of(request, keep_alive)
        await connection.put(head_of(response.status, response.content_type, headers, None, keeps))
        if request.method != "HEAD":
            async for part in parts:
                # An empty chunk would be the end.
                if part:
                    await connection.put(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
    if chunked and request.method != "HEAD":
        await connection.put(b"0\r\n\r\n")
    return NEXT if keep_alive else LAST


def _connection_of(request: web.BaseRequest, keep_alive: bool) -> str:
    """The Connection header's text where HTTP's own default is another."""
    if not keep_alive:
        return "close"
    return "" if request.version >= HttpVersion11 else "keep-alive"


def head_of(status: int, content_type: str, headers: Mapping[str, str], length: int | None, connection: str) -> bytes:
    """A status line and headers; raises ValueError when a header's text would begin a line of its own."""
    lines = [_status_line(status), _date(int(time.time()))]
    if content_type:
        lines.append(f"Content-Type: {content_type}")
    if length is not None:
        lines.append(f"Content-Length: {length}")
    if connection:
        lines.append(f"Connection: {connection}")
    for name, value in headers.items():
        lines.append(f"{name}: {value}")
    lines.append("\r\n")
    head = "\r\n".join(lines)
    if head.count("\n") != len(lines) or head.count("\r") != len(lines):
        raise ValueError("a header's text holds a line break")
    return head.encode("utf-8", "surrogateescape")


@lru_cache(1)
def _date(second: int) -> str:
    return f"Date: {formatdate(second, usegmt=True)}"


@lru_cache(64)
def _status_line(status: int) -> str:
    try:
        return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP/1.1 {status} "
