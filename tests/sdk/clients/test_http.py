"""The client over HTTP, against a service that misbehaves."""

import asyncio
import itertools
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from typing import Any, Self

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate import App, Closed, DeadlineExceeded, HTTPError, Overloaded, TidegateError, serve
from tidegate.client import Client
from tidegate.clients import asking, http
from tidegate.clients.carrier import Disconnected
from tidegate.portal import Portal
from tidegate_transports.http import HTTPTransport

pytestmark = pytest.mark.anyio

Script = Callable[[socket.socket], None]


class Fake:
    """A service that answers its n-th request by the n-th script, and closes the connection after each."""

    def __init__(self, *scripts: Script | bytes) -> None:
        self._scripts = list(scripts)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        # Wakes accept(), which closing alone does not.
        with socket.create_connection(self._listener.getsockname()):
            pass
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        self._listener.close()

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=target, args=arguments))
        self._threads[-1].start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if self._over.is_set():
                connection.close()
                return
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(20)
        with connection, connection.makefile("rb") as file:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                line = file.readline()
                if not line:
                    return
                head += line
            text = head.decode()
            (length,) = (int(line[15:]) for line in text.split("\r\n") if line.startswith("Content-Length"))
            body = file.read(length)
            number = len(self.heads)
            self.heads.append(text)
            self.bodies.append(body)
            script = self._scripts[min(number, len(self._scripts) - 1)]
            if isinstance(script, bytes):
                connection.sendall(script)
            else:
                script(connection)

    def silence(self, connection: socket.socket) -> None:
        """Say nothing until the test is over, or the client has gone."""
        connection.settimeout(0.01)
        while not self._over.is_set():
            try:
                if not connection.recv(1):
                    return
            except TimeoutError:
                pass
            except OSError:
                return


def answer(status: int, body: bytes, *headers: str, media: str = "application/json") -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {media}", f"Content-Length: {len(body)}", "Connection: close"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def stream(*parts: bytes, whole: bool = True) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + (b"0\r\n\r\n" if whole else b"")


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def hang_up(connection: socket.socket) -> None:
    """Say nothing and close."""


TOO_MANY = answer(429, b'{"code":"overloaded","detail":"full"}', "Retry-After: 0", media="application/problem+json")
FINE = answer(200, b"42")


# ---------------------------------------------------------------------- what goes out


def test_a_request_says_what_it_holds_and_what_it_takes() -> None:
    with Fake(FINE) as fake:
        options: dict[str, Any] = {"api_key": "sesame", "headers": {"X-Tenant": "blue"}}
        with Client(fake.url + "/embed", **options) as client:
            client.call({"text": "hello"})
            client.call(np.zeros(2), timeout=2.5, priority=6)
            client.call(b"raw", handler="other")
    plain, urgent, raw = fake.heads
    assert plain.startswith("POST /embed HTTP/1.1\r\n")
    assert fake.bodies[0] == b'{"text":"hello"}'
    for header in ("Content-Type: application/json", "Authorization: Bearer sesame", "X-Tenant: blue"):
        assert f"\r\n{header}\r\n" in plain
    assert "Accept: application/msgpack, " in plain
    assert not any(name in plain for name in ("Prefer", "Priority", "Cookie"))
    assert "\r\nContent-Type: application/msgpack\r\n" in urgent
    assert "\r\nPriority: u=6\r\n" in urgent
    (wait,) = (float(line[13:]) for line in urgent.split("\r\n") if line.startswith("Prefer: wait="))
    assert 2.4 < wait <= 2.5
    assert raw.startswith("POST /other HTTP/1.1\r\n")
    assert "\r\nContent-Type: application/octet-stream\r\n" in raw
    assert fake.bodies[2] == b"raw"


def test_without_a_path_the_apps_only_handler_is_meant() -> None:
    with Fake(FINE) as fake, Client(fake.url) as client:
        assert client.call(1) == 42
    assert fake.heads[0].startswith("POST /predict ")


# ---------------------------------------------------------------------- sent again


def test_a_refusal_is_followed_by_another_try() -> None:
    with Fake(TOO_MANY, TOO_MANY, FINE) as fake, Client(fake.url) as client:
        assert client.call(1) == 42
    assert fake.bodies == [b"1"] * 3


def test_retry_after_may_be_a_date() -> None:
    now = 1_700_000_000
    dates = (f"Date: {formatdate(now, usegmt=True)}", f"Retry-After: {formatdate(now + 1, usegmt=True)}")
    refusal = answer(503, b"", *dates)
    with Fake(refusal, FINE) as fake, Client(fake.url) as client:
        assert client.call(1) == 42
    later = f"Retry-After: {formatdate(now + 3600, usegmt=True)}"
    with Fake(answer(503, b"", dates[0], later)) as fake, Client(fake.url) as client:
        # An hour is more than a call without a timeout is retried for.
        with pytest.raises(TidegateError) as caught:
            client.call(1)
        assert getattr(caught.value, "retry_after", None) == 3600
    assert len(fake.heads) == 1


@pytest.mark.parametrize("broken", [hang_up, reset], ids=["closed", "reset"])
def test_a_connection_that_breaks_before_the_answer_is_followed_by_another_try(broken: Script) -> None:
    with Fake(broken, FINE) as fake, Client(fake.url) as client:
        assert client.call(1) == 42
    with Fake(broken, FINE) as fake:
        with Client(fake.url, retries=0) as client, pytest.raises(Disconnected, match="before an answer") as caught:
            client.call(1)
        assert (caught.value.sent, caught.value.begun) == (True, False)
    assert len(fake.heads) == 1


def test_there_is_an_end_to_trying() -> None:
    with Fake(TOO_MANY) as fake, Client(fake.url, retries=2) as client, pytest.raises(Overloaded, match="full"):
        client.call(1)
    assert len(fake.heads) == 3


def test_what_is_no_refusal_is_told_at_once() -> None:
    error = answer(500, b'{"code":"handler-error","detail":"internal error"}', media="application/problem+json")
    with Fake(error) as fake, Client(fake.url) as client, pytest.raises(TidegateError, match="internal error"):
        client.call(1)
    assert len(fake.heads) == 1


def test_a_map_waits_for_longer_than_a_call_would() -> None:
    with Fake(*[TOO_MANY] * 5, FINE) as fake, Client(fake.url, retries=0) as client:
        assert list(client.map([1], concurrency=1)) == [42]


def test_a_map_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "STANDSTILL", 0.3)
    closed = answer(503, b'{"code":"closed","detail":"bye"}', "Retry-After: 0", media="application/problem+json")
    with Fake(closed) as fake, Client(fake.url) as caller:
        found = list(caller.map([1, 2, 3], return_exceptions=True))
    assert [type(error) for error in found] == [Closed] * 3


def test_a_map_sends_what_may_have_run_no_more_often_than_a_call() -> None:
    with Fake(hang_up) as fake, Client(fake.url, retries=1) as client, pytest.raises(Disconnected):
        list(client.map([1], concurrency=1))
    assert len(fake.heads) == 2


# ---------------------------------------------------------------------- answers that are none


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (FINE[:-1], "in the middle of the answer"),
        (FINE[:30], "does not answer in HTTP|before an answer|in the middle"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "does not answer in HTTP"),
        (b"\x00\xff" * 40 + b"\r\n\r\n", "does not answer in HTTP"),
        (answer(200, b"<html>", media="text/html"), "it is 'text/html'; is that a tidegate service"),
        (answer(200, b"[1,"), "cannot be read"),
        (answer(200, b"\xc1", media="application/msgpack"), "cannot be read"),
        (answer(204, b""), "unexpected status 204"),
        (answer(302, b"", "Location: https://h/"), "redirected to 'https://h/'"),
        (stream(b'{"chunk":1}\n', b'{"chu', whole=False), None),
    ],
    ids=range(10),
)
def test_an_answer_that_is_none_is_an_error_and_the_client_lives_on(said: bytes, why: str | None) -> None:
    with Fake(said, FINE) as fake, Client(fake.url, retries=0) as client:
        if why is None:
            with pytest.raises(TypeError, match=r"stream\(\)"):
                client.call(1)
        else:
            with pytest.raises(Disconnected, match=why):
                client.call(1)
        assert client.call(1) == 42


@settings(max_examples=40)
@given(said=st.binary(max_size=80) | st.binary(max_size=60).map(lambda body: answer(200, body)))
def test_whatever_is_answered_the_client_gets_a_value_or_an_error_of_the_tree(said: bytes) -> None:
    with Fake(said, FINE) as fake, Client(fake.url, retries=0) as client:
        try:
            client.call(1)
        except TidegateError:
            pass
        assert client.call(1) == 42


def test_a_proxys_page_is_an_error_by_its_status() -> None:
    page = answer(502, b"<h1>Bad Gateway</h1>", media="text/html")
    with Fake(page) as fake, Client(fake.url) as client, pytest.raises(HTTPError) as caught:
        client.call(1)
    assert (caught.value.status, caught.value.detail) == (502, "502 Bad Gateway")


def test_an_error_without_end_is_read_up_to_a_limit() -> None:
    def endless(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 500 X\r\nContent-Type: text/plain\r\nContent-Length: 99999999\r\n\r\n")
        try:
            while True:
                connection.sendall(b"x" * 65536)
        except OSError:
            pass

    with Fake(endless) as fake, Client(fake.url) as client, pytest.raises(HTTPError) as caught:
        client.call(1)
    assert len(caught.value.detail) < 1000


# ---------------------------------------------------------------------- time


@pytest.mark.parametrize("use", ["call", "stream"])
def test_a_service_that_says_nothing_is_waited_for_no_longer_than_asked(use: str) -> None:
    late = pytest.raises(DeadlineExceeded, match=r"no answer within 0\.1 s")
    with Fake(lambda connection: fake.silence(connection)) as fake, Client(fake.url) as client, late:
        client.call(1, timeout=0.1) if use == "call" else next(client.stream(1, timeout=0.1))


def test_the_time_is_for_the_whole_answer() -> None:
    def half(connection: socket.socket) -> None:
        connection.sendall(FINE[:-1])
        fake.silence(connection)

    with Fake(half) as fake, Client(fake.url) as client, pytest.raises(DeadlineExceeded):
        client.call(1, timeout=0.1)


def test_a_half_error_is_hung_up_on_when_the_time_is_over() -> None:
    hung_up = threading.Event()

    def half(connection: socket.socket) -> None:
        connection.sendall(answer(500, b"{}")[:-1])
        fake.silence(connection)
        hung_up.set()

    with Fake(half) as fake, Client(fake.url) as client:
        with pytest.raises(DeadlineExceeded):
            client.call(1, timeout=0.1)
        assert hung_up.wait(10)


def test_the_time_of_a_stream_is_for_its_first_chunk_and_a_head_is_none() -> None:
    def head_only(connection: socket.socket) -> None:
        connection.sendall(stream(whole=False))
        fake.silence(connection)

    with Fake(head_only) as fake, Client(fake.url) as client, pytest.raises(DeadlineExceeded):
        next(client.stream(1, timeout=0.1))


def test_tries_share_one_time() -> None:
    refusal = answer(429, b"", "Retry-After: 0")
    with Fake(refusal) as fake, Client(fake.url, retries=10_000) as client, pytest.raises(Overloaded):
        client.call(1, timeout=0.5)
    waits = [float(line[13:]) for head in fake.heads for line in head.split("\r\n") if line.startswith("Prefer: wait=")]
    assert waits == sorted(waits, reverse=True)
    assert waits[-1] < waits[0] <= 0.5


# ---------------------------------------------------------------------- streams


def test_lines_may_come_in_any_pieces() -> None:
    said = stream(b'{"chu', b'nk":1}\n{"chunk":[2]}\n{"ch', b'unk":null}', b"\n", b'{"end":true}\n')
    with Fake(said) as fake, Client(fake.url) as client:
        assert list(client.stream(1)) == [1, [2], None]


@settings(max_examples=30)
@given(st.lists(st.integers(0, 200), max_size=6))
def test_wherever_the_pieces_are_cut_the_chunks_are_the_same(cuts: list[int]) -> None:
    text = b"".join(b'{"chunk":"%d"}\n' % n for n in range(8)) + b'{"end":true}\n'
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    parts = [text[start:end] for start, end in itertools.pairwise(edges) if end > start]
    with Fake(stream(*parts)) as fake, Client(fake.url) as client:
        assert list(client.stream(1)) == [str(n) for n in range(8)]


@pytest.mark.parametrize(
    "rest",
    [
        [b""],
        [b'{"chunk":2}'],
        [b'{"chu'],
        [b"gibberish\n"],
        [b'{"id":1}\n'],
        [b'{"output":1}\n'],
        [b"\xff\n"],
        [b'{"chunk":[}\n'],
    ],
    ids=range(8),
)
@pytest.mark.parametrize("whole", [True, False], ids=["ended", "cut off"])
def test_a_stream_without_its_last_line_never_ends_well(rest: list[bytes], whole: bool) -> None:
    said = stream(b'{"chunk":1}\n', *filter(None, rest), whole=whole)
    with Fake(said) as fake, Client(fake.url) as client:
        chunks = client.stream(1)
        assert next(chunks) == 1
        with pytest.raises(Disconnected) as caught:
            list(chunks)
        assert caught.value.begun
        assert list(chunks) == []
    assert len(fake.heads) == 1


def test_a_stream_that_is_reset_in_its_middle_is_an_error_and_not_begun_again() -> None:
    def broken(connection: socket.socket) -> None:
        connection.sendall(stream(b'{"chunk":1}\n', whole=False))
        go.wait(10)
        reset(connection)

    go = threading.Event()
    with Fake(broken, FINE) as fake, Client(fake.url) as client:
        chunks = client.stream(1)
        assert next(chunks) == 1
        go.set()
        with pytest.raises(Disconnected, match="in the middle of the answer"):
            next(chunks)
    assert len(fake.heads) == 1


def test_a_stream_that_is_refused_before_its_first_chunk_is_begun_again() -> None:
    line = stream(b'{"error":{"code":"overloaded","status":429,"message":"full","retry_after":0}}\n')
    with Fake(TOO_MANY, hang_up, line, stream(b'{"chunk":1}\n{"end":true}\n')) as fake, Client(fake.url) as client:
        assert list(client.stream(1)) == [1]
    assert len(fake.heads) == 4


def test_an_error_line_is_the_services_error() -> None:
    said = stream(b'{"chunk":1}\n{"error":{"code":"slow-reader","status":408,"message":"too slow"}}\n')
    with Fake(said) as fake, Client(fake.url) as client:
        chunks = client.stream(1)
        assert next(chunks) == 1
        with pytest.raises(TidegateError, match="too slow") as caught:
            next(chunks)
    assert caught.value.code == "slow-reader"


def test_an_end_that_is_followed_by_nothing_is_an_end_all_the_same() -> None:
    def lingering(connection: socket.socket) -> None:
        connection.sendall(stream(b'{"chunk":1}\n{"end":true}\n', whole=False))
        fake.silence(connection)

    with Fake(lingering) as fake, Client(fake.url) as client:
        assert list(client.stream(1)) == [1]


def test_a_line_without_end_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_LINE", 1000)
    said = stream(b'{"chunk":"' + b"x" * 2000, whole=False)
    too_long = pytest.raises(Disconnected, match="a chunk of over 1000 bytes")
    with Fake(said) as fake, Client(fake.url) as client, too_long:
        next(client.stream(1))


# ---------------------------------------------------------------------- connections


@contextmanager
def served() -> Iterator[str]:
    """The address of a service as it should be."""

    @serve(worker="thread")
    def count(n: int) -> Iterator[int]:
        yield from range(n)

    @serve(worker="thread")
    def echo(x: Any) -> Any:
        return x

    door = HTTPTransport("127.0.0.1:0")
    portal = Portal("App", "service")
    portal.open(App(count, echo, http=door))
    try:
        yield door.url
    finally:
        portal.close()


async def test_a_connection_serves_again_after_an_answer_an_error_and_a_whole_stream() -> None:
    with served() as url:
        async with Client(url + "/echo") as view:
            carrier: Any = view._open()._carrier
            for _ in range(3):
                assert await view.call(1) == 1
                assert [chunk async for chunk in view.stream(2, handler="count")] == [0, 1]
                with pytest.raises(HTTPError):
                    await view.call(1, handler="nowhere")
            connector = carrier._session.connector
            assert sum(len(idle) for idle in connector._conns.values()) == 1
            assert not connector._acquired


async def test_no_connection_is_kept_for_what_is_over_or_cancelled() -> None:
    with served() as url:
        async with Client(url + "/count") as view:
            carrier: Any = view._open()._carrier
            chunks = view.stream(10**9)
            assert await anext(chunks) == 0
            await chunks.aclose()
            waiting = asyncio.ensure_future(view.call(10**9))
            with pytest.raises(TypeError):
                await waiting
            assert not carrier._session.connector._acquired


async def test_more_requests_than_connections_wait_for_one() -> None:
    with served() as url:
        async with Client(url + "/echo", max_connections=2) as view:
            carrier: Any = view._open()._carrier
            assert await asyncio.gather(*(view.call(n) for n in range(50))) == list(range(50))
            connector = carrier._session.connector
            assert sum(len(idle) for idle in connector._conns.values()) == 2


def test_a_body_that_the_service_does_not_want_is_an_error_that_says_so() -> None:
    with served() as url, Client(url + "/echo", retries=0) as client:
        with pytest.raises(HTTPError, match="the body is over") as caught:
            client.call(b"x" * 40_000_000)
        assert caught.value.status == 413
        assert client.call(1) == 1
