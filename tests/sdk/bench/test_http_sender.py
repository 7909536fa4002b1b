import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Self

import pytest
import trustme

from tidegate.bench.driver import Driver, Timing
from tidegate.bench.http_sender import HTTPSender, request_bytes
from tidegate.bench.schedule import AllAtOnce, Bursts, Closed
from tidegate.bench.sender import Ending, Payload

pytestmark = pytest.mark.anyio

Answering = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
LINES = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n"
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
OK_BYTES = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Shot:
    def __init__(self) -> None:
        self.place: object = None
        self.ending: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()

    def end(self, ending: Ending) -> None:
        self.ending.set_result(ending)


class Server:
    """Answers each request on a connection by `answers(request)`; None closes the connection."""

    def __init__(self, answers: Callable[[bytes], bytes | None], tls: ssl.SSLContext | None = None) -> None:
        self._answers = answers
        self._tls = tls
        self.requests: list[bytes] = []
        self.connections = 0
        self._tasks: list[asyncio.Task[Any]] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0, ssl=self._tls)
        scheme = "https" if self._tls else "http"
        self.url = f"{scheme}://localhost:{self._server.sockets[0].getsockname()[1]}/echo"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*self._tasks)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.append(task)
        self._writers.append(writer)
        await self._serve(reader, writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                answer = self._answers(self.requests[-1])
                if answer is None:
                    break
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def ending_at(server: Server, **options: Any) -> Ending:
    sender = HTTPSender(server.url, [Payload(b"[1]")], headers={}, connections=1, **options)
    async with asyncio.timeout(30), sender:
        shot = Shot()
        sender.send(0, shot)
        return await shot.ending


# ---------------------------------------------------------------------- what an answer means


@pytest.mark.parametrize(
    ("answer", "ending"),
    [
        (OK_BYTES, Ending("ok", 200)),
        (b"HTTP/1.1 204 No Content\r\n\r\n", Ending("ok", 200)),
        (
            b'HTTP/1.1 429 Too Many\r\nContent-Length: 37\r\n\r\n{"code":"overloaded","detail":"full"}',
            Ending("overloaded", 429, "full"),
        ),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\nnope", Ending("http-502", 502, "nope")),
        (
            LINES + b'{"chunk":1}\n{"end":true}\n',
            Ending("ok", 200),
        ),
        (
            LINES + b'{"chunk":1}\n{"error":{"code":"handler-error","status":500,"message":"boom"}}\n',
            Ending("handler-error", 500, "boom"),
        ),
        (
            EVENTS + b'data: 1\n\nevent: error\ndata: {"code":"overloaded","status":429,"message":"full"}\n\n',
            Ending("overloaded", 429, "full"),
        ),
        (b"nonsense\r\n\r\n", Ending("broken-response", 0, "no HTTP/1.1: b'nonsense\\r\\n\\r\\n'")),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok",
            Ending("connection-lost", 0, "closed in the middle of its answer"),
        ),
        (b"", Ending("connection-lost", 0, "closed before it was answered")),
    ],
)
async def test_an_answer_is_counted_as_what_it_is(answer: bytes, ending: Ending) -> None:
    asked: list[bytes] = []

    def once(request: bytes) -> bytes | None:
        asked.append(request)
        return answer

    class Closing(Server):
        async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n[1]")
            writer.write(answer)
            writer.close()

    async with Closing(once) as server:
        assert await ending_at(server) == ending


async def test_nobody_listening_is_no_connection() -> None:
    async with Server(lambda request: OK_BYTES) as server:
        pass
    ending = await ending_at(server)
    assert ending.code == "connection-failed"
    assert not ending.is_refusal


async def test_tls_is_spoken_and_a_stranger_is_not_trusted() -> None:
    authority = trustme.CA()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(serving)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with Server(lambda request: OK_BYTES, serving) as server:
        assert (await ending_at(server, tls=trusting)).code == "ok"
        stranger = await ending_at(server)
        assert stranger.code == "connection-failed"
        assert "certificate" in stranger.detail


# ---------------------------------------------------------------------- connections


async def test_callers_keep_their_connections() -> None:
    async with Server(lambda request: OK_BYTES) as server:
        async with HTTPSender(server.url, [Payload(b"a"), Payload(b"b")], headers={}, connections=4) as sender:
            record = await Driver(sender, 2, AllAtOnce(100, 4), Timing(0, 1, 30)).run()
        assert server.connections <= 4
        assert len(server.requests) == 100
        assert sorted({request[-1:] for request in server.requests}) == [b"a", b"b"]
        assert record.measurement(None, None).ok == 100
        assert sender.waited == 0


async def test_who_finds_no_connection_free_waits_and_is_counted() -> None:
    async with Server(lambda request: OK_BYTES) as server:
        async with HTTPSender(server.url, [Payload(b"a")], headers={}, connections=2) as sender:
            record = await Driver(sender, 1, Bursts(20, every=10.0), Timing(0, 0.2, 30)).run()
        assert server.connections == 2
        found = record.measurement(None, None)
        assert (found.ok, found.generator.waited) == (20, 18)
        assert found.complaint is not None
        assert "--max-connections" in found.complaint


async def test_a_service_that_closes_after_each_answer_gets_a_connection_for_each() -> None:
    answer = OK_BYTES.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    async with Server(lambda request: answer) as server:
        async with HTTPSender(server.url, [Payload(b"a")], headers={}, connections=1) as sender:
            record = await Driver(sender, 1, AllAtOnce(5, 1), Timing(0, 1, 30)).run()
        assert server.connections == 5
        assert record.measurement(None, None).ok == 5


async def test_those_who_wait_are_told_too_when_nobody_listens_any_more() -> None:
    async with Server(lambda request: OK_BYTES) as server:
        pass
    async with asyncio.timeout(30), HTTPSender(server.url, [Payload(b"a")], headers={}, connections=1) as sender:
        shots = [Shot() for _ in range(5)]
        for shot in shots:
            sender.send(0, shot)
        endings = await asyncio.gather(*(shot.ending for shot in shots))
    assert {ending.code for ending in endings} == {"connection-failed"}


async def test_an_abandoned_request_takes_its_connection_with_it() -> None:
    silent = asyncio.Event()

    class Silent(Server):
        async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            with suppress(ConnectionError):
                while await reader.read(1000):
                    pass
            silent.set()
            writer.close()

    async with (
        Silent(lambda request: None) as server,
        HTTPSender(server.url, [Payload(b"a")], headers={}, connections=1) as sender,
    ):
        record = await Driver(sender, 1, Bursts(1, every=10.0), Timing(0, 0.1, 0.2)).run()
        assert record.measurement(None, None).timeouts == 1
        # Its place is free for the next at once.
        sender.send(0, Shot())
        assert sender.waited == 0
        async with asyncio.timeout(30):
            await silent.wait()


# ---------------------------------------------------------------------- from when latency counts


async def test_latency_counts_from_when_a_request_was_due_at_a_server_that_is_too_slow() -> None:
    """One connection, 10 ms an answer, a request due every 5 ms: each waits 5 ms longer than the one before."""
    takes = 0.010

    class Slow(Server):
        async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while True:
                    await reader.readuntil(b"\r\n\r\na")
                    await asyncio.sleep(takes)
                    writer.write(OK_BYTES)
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()

    async with (
        Slow(lambda request: None) as server,
        HTTPSender(server.url, [Payload(b"a")], headers={}, connections=1) as sender,
    ):
        record = await Driver(sender, 1, Bursts(1, every=0.005), Timing(0.0, 0.5, 30.0)).run()
    found = record.measurement(None, None)
    assert found.ok == found.sent == 100
    # Counted from the actual send, every one of them would be some 10 ms.
    assert found.latency.max is not None
    assert found.latency.max >= 100 * (takes - 0.005)
    median = found.latency.quantiles["p50"]
    assert median is not None
    assert median >= 50 * (takes - 0.005)
    assert found.throughput <= 1 / takes


async def test_callers_agree_with_littles_law_over_real_sockets() -> None:
    async with (
        Server(lambda request: OK_BYTES) as server,
        HTTPSender(server.url, [Payload(b"a")], headers={}, connections=8) as sender,
    ):
        record = await Driver(sender, 1, Closed(8), Timing(0.1, 0.5, 30.0)).run()
    found = record.measurement(None, None)
    assert found.answered_all
    assert found.latency.mean is not None
    assert found.throughput * found.latency.mean == pytest.approx(8, rel=0.1)


# ---------------------------------------------------------------------- the head


def test_given_headers_come_before_the_usual_ones_whatever_their_case() -> None:
    headers = {"content-TYPE": "text/plain", "X-Tenant": "a"}
    head = request_bytes("https://[::1]:8443/a/b?c=d", Payload(b"xyz"), headers).split(b"\r\n")
    assert head[:2] == [b"POST /a/b?c=d HTTP/1.1", b"Host: [::1]:8443"]
    assert b"Content-Type: text/plain" in head
    assert b"X-Tenant: a" in head
    assert head[-3:] == [b"Content-Length: 3", b"", b"xyz"]


@pytest.mark.parametrize("headers", [{"X": "a\r\nY: b"}, {"X\r\nY": "a"}, {"X": "é"}])
def test_a_header_cannot_break_the_head(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="headers"):
        request_bytes("http://127.0.0.1/", Payload(b""), headers)
