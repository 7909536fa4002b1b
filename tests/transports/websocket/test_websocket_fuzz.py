"""Whatever bytes come over real sockets, and wherever they stop: the service goes on, and nobody else notices."""

import asyncio
import json
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.sync.client import ClientConnection, connect

from tidegate import END, App, serve
from tidegate_transports.http_options import HTTPOptions
from tidegate_transports.session import Limits

Door = Callable[..., AbstractAsyncContextManager[tuple[App, str]]]

MAX_MESSAGE = 20_000
TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10


@serve(max_batch_size=8, worker="thread")
def double(x: list[int]) -> list[int]:
    return [2 * n for n in x]


@serve(max_batch_size=8, worker="thread")
def countdown(starts: list[int]) -> Iterator[list[object]]:
    starts = [min(start, 300) for start in starts]
    for step in range(max([0, *starts]) + 1):
        yield [start - step if step < start else END for start in starts]


class Target:
    """A door in a thread of its own, and a client that has been there all the time."""

    def __init__(self, app: App, url: str, healthy: ClientConnection) -> None:
        self.app, self.healthy = app, healthy
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        self.address = (parts.hostname, parts.port)

    def is_well(self) -> None:
        """Nothing of the others is left, and a neighbour's requests are answered as ever."""
        self.healthy.send('{"id":"well?","input":21}')
        assert json.loads(self.healthy.recv(timeout=20)) == {"id": "well?", "output": 42}
        until = time.monotonic() + 20
        while any(one.waiting or one.running for one in self.app.statistics().values()):
            assert time.monotonic() < until
            threading.Event().wait(0.001)


@pytest.fixture(scope="module", params=["own-port", "aiohttp", "asgi", "http"])
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    door: Door = request.getfixturevalue("module_door")
    opened: Any = {}
    ready, leave = threading.Event(), threading.Event()

    async def run() -> None:
        options = HTTPOptions(max_body=MAX_MESSAGE, header_timeout=2.0)
        limits = None if request.param == "http" else Limits(max_in_flight=16)
        async with door(
            double, countdown, shell=request.param, options=options, limits=limits, patience=600, drain_timeout=2
        ) as (app, url):
            opened.update(app=app, url=url)
            ready.set()
            await asyncio.to_thread(leave.wait)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    assert ready.wait(20)
    try:
        with connect(f"{opened['url']}/double", max_size=None) as healthy:
            yield Target(opened["app"], opened["url"], healthy)
    finally:
        leave.set()
        thread.join(30)


# ---------------------------------------------------------------------- what is sent

HANDSHAKE = (
    b"GET /double HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def frame(opcode: int, payload: bytes, *, fin: bool = True, masked: bool = True, reserved: int = 0) -> bytes:
    """One frame of RFC 6455, right or wrong."""
    head = bytes([(0x80 if fin else 0) | (reserved << 4) | opcode])
    bit = 0x80 if masked else 0
    if len(payload) < 126:
        head += bytes([bit | len(payload)])
    elif len(payload) < 1 << 16:
        head += bytes([bit | 126]) + struct.pack("!H", len(payload))
    else:
        head += bytes([bit | 127]) + struct.pack("!Q", len(payload))
    if not masked:
        return head + payload
    mask = os.urandom(4)
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


ids = st.one_of(st.integers(0, 5), st.text(max_size=3), st.none(), st.floats(), st.text(min_size=120, max_size=140))
finite = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 400) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
values = finite | st.floats()
fields = st.fixed_dictionaries(
    {},
    optional={
        "id": ids,
        "input": st.integers(0, 300) | values,
        "handler": st.sampled_from(["double", "countdown", "nobody", "", 3, None]),
        "timeout": st.sampled_from([0, 0.001, 5, -1, "x", 1e308, None]),
        "priority": st.sampled_from([0, 3, 7, 8, -1, 2.5, "3", None]),
        "cancel": st.sampled_from([True, False, 1, None]),
        "unknown": values,
    },
)
texts = st.one_of(
    fields.map(json.dumps),
    fields.map(json.dumps).flatmap(lambda text: st.integers(0, len(text)).map(lambda cut: text[:cut])),
    st.text(max_size=50),
    st.just("[" * 10_000),
    st.just(json.dumps({"id": 1, "input": "x" * (2 * MAX_MESSAGE)})),
).map(lambda text: text.encode("utf-8", "replace"))
binaries = st.one_of(
    fields.map(msgspec.msgpack.encode),
    st.binary(max_size=60),
    st.just(b"\x82\xa2id\x01\xa5input" + b"\x91" * 10_000),
    st.just(b"\xdd\xff\xff\xff\xff"),
    st.just(msgspec.msgpack.encode({"id": 1, "input": bytes(2 * MAX_MESSAGE)})),
)


def fragmented(opcode: int, payload: bytes, cuts: list[int]) -> bytes:
    places = sorted({cut % (len(payload) + 1) for cut in cuts})
    parts = [payload[a:b] for a, b in zip([0, *places], [*places, len(payload)], strict=True)]
    return b"".join(
        frame(opcode if i == 0 else CONTINUATION, part, fin=i == len(parts) - 1) for i, part in enumerate(parts)
    )


cuts = st.lists(st.integers(0, 1 << 16), max_size=4)
messages = st.one_of(
    st.builds(fragmented, st.just(TEXT), texts, cuts),
    st.builds(fragmented, st.just(BINARY), binaries, cuts),
)
anything = st.one_of(
    messages,
    st.builds(frame, st.sampled_from([CLOSE, PING, PONG]), st.binary(max_size=125)),
    st.builds(
        frame,
        st.integers(0, 15),
        st.binary(max_size=200),
        fin=st.booleans(),
        masked=st.booleans(),
        reserved=st.integers(0, 7),
    ),
    st.just(frame(TEXT, b'{"id":1,"input":"\xff\xfe"}')),
    st.binary(min_size=1, max_size=40),
    # A frame that promises more than there ever is.
    st.just(b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00"),
)
ends = st.sampled_from(["politely", "abruptly", "half", "never reads"])


class Raw:
    """A client that knows nothing of the protocol."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=20)

    def upgrade(self) -> None:
        self.socket.sendall(HANDSHAKE)
        head = b""
        while b"\r\n\r\n" not in head:
            head += self.socket.recv(1)
        assert head.startswith(b"HTTP/1.1 101 ")

    def send(self, data: bytes) -> None:
        # Whoever was told to go away finds the socket closed.
        with suppress(OSError):
            self.socket.sendall(data)

    def leave(self, how: str) -> None:
        with suppress(OSError):
            if how == "politely":
                self.socket.sendall(frame(CLOSE, struct.pack("!H", 1000)))
                self.socket.settimeout(0.05)
                while self.socket.recv(1 << 16):
                    pass
            elif how == "half":
                self.socket.shutdown(socket.SHUT_WR)
                self.socket.settimeout(0.05)
                while self.socket.recv(1 << 16):
                    pass
            elif how == "abruptly":
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


often = settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)


@often
@given(sent=st.lists(anything, min_size=1, max_size=8), end=ends)
def test_any_frames_leave_the_service_unharmed(target: Target, sent: list[bytes], end: str) -> None:
    raw = Raw(target.address)
    raw.upgrade()
    for data in sent:
        raw.send(data)
    raw.leave(end)
    target.is_well()


@often
@given(data=messages, end=ends, at=st.floats(0, 1))
def test_a_connection_that_stops_at_any_byte_leaves_the_service_unharmed(
    target: Target, data: bytes, end: str, at: float
) -> None:
    raw = Raw(target.address)
    whole = HANDSHAKE + data
    raw.send(whole[: int(at * len(whole))])
    raw.leave(end)
    target.is_well()


@often
@given(
    changed=st.dictionaries(st.integers(0, len(HANDSHAKE) - 1), st.binary(min_size=1, max_size=1), max_size=4), end=ends
)
def test_a_garbled_handshake_leaves_the_service_unharmed(target: Target, changed: dict[int, bytes], end: str) -> None:
    garbled = bytearray(HANDSHAKE)
    for place, byte in changed.items():
        garbled[place : place + 1] = byte
    raw = Raw(target.address)
    raw.send(bytes(garbled) + frame(TEXT, b'{"id":1,"input":1}'))
    # One that waits for more bytes is waited for; nobody here does.
    raw.leave("abruptly" if end in ("politely", "half") else end)
    target.is_well()


@often
@given(
    asked=st.lists(
        st.tuples(
            st.sampled_from(["double", "countdown"]),
            st.integers(0, 60) | finite,
            st.booleans(),
            st.none() | st.integers(0),
        ),
        max_size=30,
    )
)
def test_every_id_ends_exactly_once_whatever_is_asked(target: Target, asked: list[Any]) -> None:
    """Well-formed requests with any input, cancels between them; more at once than may be in flight."""
    host, port = target.address
    with connect(f"ws://{host}:{port}/", max_size=None, compression=None) as client:
        for id, (handler, value, is_binary, cancelled) in enumerate(asked):
            request = {"id": id, "handler": handler, "input": value}
            client.send(msgspec.msgpack.encode(request) if is_binary else json.dumps(request))
            if cancelled is not None:
                client.send(json.dumps({"id": cancelled % (id + 1), "cancel": True}))
        open_ids = set(range(len(asked)))
        while open_ids:
            message = client.recv(timeout=20)
            fields = json.loads(message) if isinstance(message, str) else msgspec.msgpack.decode(message)
            assert isinstance(message, str) is not asked[fields["id"]][2]
            assert fields["id"] in open_ids
            if "chunk" not in fields:
                open_ids.discard(fields["id"])
        client.send('{"id":"last","input":1,"handler":"double"}')
        assert json.loads(client.recv(timeout=20)) == {"id": "last", "output": 2}
    target.is_well()
