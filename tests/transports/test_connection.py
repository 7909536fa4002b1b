"""The HTTP door's connection by itself, with a door of a few lines behind it; the rest is in `test_http` and the black-box suite."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from aiohttp import web
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader

from tidegate_transports.connection import AHEAD, READ_SIZE, Connection
from tidegate_transports.http_options import HTTPOptions
from tidegate_transports.listener import Listener

pytestmark = pytest.mark.anyio

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def asks(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


class Door:
    """Answers in its own time: when it is let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.asked: list[str] = []
        self.upgraded: list[str] = []

    async def answer(self, connection: Connection, message: RawRequestMessage, content: StreamReader) -> bool:
        self.asked.append(message.path)
        await self.go.wait()
        if message.path == "/fails":
            raise RuntimeError("the door is broken")
        await connection.put(ANSWER)
        if message.path == "/breaks-off":
            raise RuntimeError("the answer is broken")
        return content.is_eof()

    async def upgrade(self, request: web.BaseRequest) -> web.StreamResponse:
        self.upgraded.append(request.path)
        opened = web.WebSocketResponse()
        await opened.prepare(request)
        await opened.send_str(await opened.receive_str())
        await opened.close()
        return opened


@asynccontextmanager
async def opened(door: Door) -> AsyncIterator[tuple[Listener, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client of the door."""
    with anyio.fail_after(20):
        listener = Listener(door.answer, door.upgrade, HTTPOptions())
        server = await asyncio.get_running_loop().create_server(listener, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            yield listener, reader, writer
        finally:
            writer.close()
            server.close()
            await listener.drain(0.0)


class Wire(asyncio.Transport):
    """A transport that only notes what it is asked."""

    def __init__(self) -> None:
        super().__init__({"socket": None, "peername": ("client", 1)})
        self._reading = True
        self.written = b""
        self.closed = False

    def pause_reading(self) -> None:
        assert self._reading
        self._reading = False

    def resume_reading(self) -> None:
        assert not self._reading
        self._reading = True

    def is_reading(self) -> bool:
        return self._reading

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


async def turns() -> None:
    """Let everything run that can."""
    for _ in range(3 * AHEAD):
        await asyncio.sleep(0)


@asynccontextmanager
async def connected(door: Door) -> AsyncIterator[tuple[Connection, Wire]]:
    """A connection without a socket."""
    connection, wire = Listener(door.answer, door.upgrade, HTTPOptions())(), Wire()
    connection.connection_made(wire)
    try:
        yield connection, wire
    finally:
        connection.connection_lost(None)
        await turns()


async def test_a_client_that_sends_far_ahead_is_not_read_until_it_has_been_answered() -> None:
    door = Door()
    door.go.clear()
    async with connected(door) as (connection, wire):
        await turns()
        connection.data_received(asks("/") * (AHEAD - 1))
        await turns()
        assert wire.is_reading()
        connection.data_received(asks("/") * 2)
        assert not wire.is_reading()
        door.go.set()
        await turns()
        assert wire.is_reading()
        assert wire.written == ANSWER * (AHEAD + 1)


async def test_a_connection_is_idle_between_an_answer_and_the_first_byte_of_a_request() -> None:
    door = Door()
    async with connected(door) as (connection, _):
        idle = []
        for data in (b"", asks("/"), b"", asks("/")[:10]):
            if data:
                connection.data_received(data)
            else:
                await turns()
            idle.append(connection.idle)
        # Before it has asked anything it is held to the time of a head, as it is in the middle of one.
        assert idle == [False, False, True, False]


async def test_no_clock_runs_while_a_request_waits_to_be_begun() -> None:
    async with connected(Door()) as (connection, _):
        await turns()
        body = asks("/", "Content-Length: 2")
        connection.data_received(body)
        connection.data_received(b"x")
        assert connection._head_timer is None


async def test_what_follows_an_upgrade_that_has_to_wait_is_held_back() -> None:
    door = Door()
    door.go.clear()
    async with connected(door) as (connection, wire):
        connection.data_received(asks("/") + asks("/socket", "Connection: Upgrade", "Upgrade: websocket"))
        connection.data_received(b"x" * READ_SIZE)
        assert not wire.is_reading()
        assert door.upgraded == []
        door.go.set()
        await turns()
        assert wire.is_reading()
        assert door.upgraded == ["/socket"]


async def test_a_body_that_nobody_reads_yet_is_held_back() -> None:
    door = Door()
    door.go.clear()
    async with connected(door) as (connection, wire):
        connection.data_received(asks("/", f"Content-Length: {3 * READ_SIZE}"))
        connection.data_received(b"x" * 2 * READ_SIZE)
        assert wire.is_reading()
        connection.data_received(b"x")
        assert not wire.is_reading()
        door.go.set()
        await turns()
        assert wire.is_reading()


async def test_a_frame_that_comes_with_the_handshake_reaches_the_websocket() -> None:
    door = Door()
    key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
    handshake = asks("/socket?a=1", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", key)
    frame = b"\x81\x82\x00\x00\x00\x00hi"
    async with opened(door) as (_, reader, writer):
        writer.write(asks("/") + handshake + frame)
        assert await reader.readexactly(len(ANSWER)) == ANSWER
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        assert await reader.readexactly(4) == b"\x81\x02hi"
    assert (door.asked, door.upgraded) == (["/"], ["/socket"])


async def test_behind_an_answer_that_breaks_off_comes_nothing_more(caplog: pytest.LogCaptureFixture) -> None:
    async with opened(Door()) as (_, reader, writer):
        writer.write(asks("/breaks-off") + asks("/"))
        assert await reader.read() == ANSWER
    assert [record.getMessage() for record in caplog.records] == ["an answer to GET /breaks-off broke off"]


async def test_a_door_that_fails_says_so_and_its_reason_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "tidegate.http")
    async with opened(Door()) as (_, reader, writer):
        writer.write(asks("/fails") + asks("/"))
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"internal-error" in answer
    assert b"broken" not in answer
    assert "the door is broken" in caplog.text


async def test_requests_before_nonsense_are_answered_and_the_nonsense_is_refused() -> None:
    async with opened(Door()) as (listener, reader, writer):
        writer.write(asks("/"))
        assert await reader.readexactly(len(ANSWER)) == ANSWER
        writer.write(b"nonsense\r\n\r\n" + asks("/"))
        refused = await reader.read()
        assert refused.startswith(b"HTTP/1.1 400 ")
        assert refused.count(b"\r\nDate: ") == 1
    assert not listener.live
