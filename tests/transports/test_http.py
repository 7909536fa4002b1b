import asyncio
import json
import socket
import threading
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import aiohttp
import anyio
import anyio.to_thread
import httpx
import numpy as np
import pytest
import uvloop

from tidegate import App, Array, serve
from tidegate_transports.http_options import HTTPOptions

pytestmark = pytest.mark.anyio


@serve(max_batch_size=8)
def square(x: Annotated[np.ndarray, Array("float64", (2,))]) -> np.ndarray:
    return x**2


@serve(name="size")
def size_of(x: str) -> int:
    return len(x)


class Held:
    """A handler that takes items one by one, notes them and finishes none before it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()
        self.seen: list[int] = []

        @serve
        def held(x: int) -> int:
            self.seen.append(x)
            self.begun.set()
            assert self.go.wait(20)
            return x

        self.handler = held

    async def has_begun(self) -> None:
        assert await anyio.to_thread.run_sync(self.begun.wait, 20)


@asynccontextmanager
async def served(*handlers: Any) -> AsyncIterator[tuple[App, httpx.AsyncClient]]:
    """An app on a free port and a client of it."""
    with anyio.fail_after(30):
        async with App(*handlers, http="127.0.0.1:0", worker="thread") as app:
            url = app.transports[0].url
            async with httpx.AsyncClient(base_url=url, timeout=30) as client:
                yield app, client


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the server's side has no event to wait for
        await asyncio.sleep(0.001)


@asynccontextmanager
async def raw(client: httpx.AsyncClient) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare connection to where the client's requests go."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def curl(*arguments: str, **options: Any) -> tuple[int, str, str]:
    """Run curl: the status, the body, and what it told with -v."""
    command = ["curl", "-sv", "-w", "\n%{http_code}", *arguments]
    ran = await anyio.run_process(command, check=True, **options)
    body, _, status = ran.stdout.decode().rpartition("\n")
    return int(status), body, ran.stderr.decode()


def waiting_in(app: App) -> int:
    return app.statistics()["held"].waiting


# ---------------------------------------------------------------------- answers


async def test_64_clients_at_once_each_get_their_own_answers_from_shared_batches() -> None:
    async with served(square) as (app, client):

        async def caller(number: int) -> None:
            async with aiohttp.ClientSession() as session:
                for turn in range(5):
                    async with session.post(f"{client.base_url}/square", json=[number, turn]) as response:
                        assert response.status == 200
                        assert await response.json() == [number**2, turn**2]

        async with anyio.create_task_group() as tasks:
            for number in range(64):
                tasks.start_soon(caller, number)
        statistics = app.statistics()["square"]
    assert dict(statistics.outcomes) == {"ok": 320}
    assert max(statistics.batch_sizes) > 1


async def test_curl_gets_an_answer() -> None:
    async with served(square) as (_, client):
        status, body, told = await curl(f"{client.base_url}/square", "--json", "[1.5,2]")
    assert (status, body) == (200, "[2.25,4.0]")
    assert "content-type: application/json\n" in told.lower().replace("\r", "")


async def test_a_body_in_chunks_or_compressed_is_read() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for part in (b"[1", b",", b"2]"):
            yield part

    async with served(square) as (_, client):
        assert (await client.post("/square", content=chunks())).json() == [1, 4]
        compressed = await client.post(
            "/square", content=zlib.compress(b"[3,4]"), headers={"Content-Encoding": "deflate"}
        )
        assert compressed.json() == [9, 16]


async def test_the_url_names_the_port_that_was_taken() -> None:
    async with served(square) as (app, _):
        port = int(app.transports[0].url.removeprefix("http://127.0.0.1:"))
        assert port > 0
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    with pytest.raises(ConnectionError):
        socket.create_connection(("127.0.0.1", port), timeout=10)


async def test_one_connection_carries_many_requests() -> None:
    async with served(square) as (_, client):
        addresses = set()
        for number in range(5):
            response = await client.post("/square", json=[number, 1])
            assert response.json() == [number**2, 1]
            addresses.add(response.extensions["network_stream"].get_extra_info("client_addr"))
        wrong = await client.post("/square", json="text")
        addresses.add(wrong.extensions["network_stream"].get_extra_info("client_addr"))
    assert wrong.status_code == 422
    assert len(addresses) == 1


async def test_requests_sent_ahead_on_one_connection_are_answered_in_order() -> None:
    async with served(square) as (_, client), raw(client) as (reader, writer):
        for number in range(3):
            body = f"[{number},{number}]".encode()
            writer.write(b"POST /square HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        answers = []
        for _ in range(3):
            head = await reader.readuntil(b"\r\n\r\n")
            (length,) = (int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length"))
            answers.append(json.loads(await reader.readexactly(length)))
    assert answers == [[0, 0], [1, 1], [4, 4]]


async def test_head_is_answered_without_a_body() -> None:
    async with served(square) as (_, client):
        response = await client.head("/health")
    assert (response.status_code, response.content) == (200, b"")
    assert int(response.headers["Content-Length"]) > 0


async def test_a_query_does_not_hide_the_handler() -> None:
    async with served(square) as (_, client):
        assert (await client.post("/square?verbose=1", json=[1, 2])).json() == [1, 4]


# ---------------------------------------------------------------------- ids


async def test_the_callers_id_comes_back_with_answers_and_problems() -> None:
    async with served(square) as (_, client):
        for body, status in [("[1,2]", 200), ("[1", 400)]:
            response = await client.post("/square", content=body, headers={"x-request-id": "from-me/7"})
            assert (response.status_code, response.headers["X-Request-Id"]) == (status, "from-me/7")


@pytest.mark.parametrize("hostile", [b"x" * 129, b"a b", b"<script>", b"a\xffb", b"a;b"])
async def test_a_hostile_id_does_not_come_back(hostile: bytes) -> None:
    async with served(square) as (_, client), raw(client) as (reader, writer):
        head = b"POST /square HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-Id: %s\r\nContent-Length: 1\r\n\r\n"
        writer.write(head % hostile + b"[")
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert hostile not in answer
    assert answer.count(b"X-Request-Id: ") == 1


# ---------------------------------------------------------------------- problems


async def test_each_wrong_request_is_told_what_and_where_while_another_is_in_flight_and_answered_after() -> None:
    held = Held()
    async with served(held.handler, square) as (_, client):
        waiting = asyncio.ensure_future(client.post("/held", json=7))
        await held.has_begun()
        wrong = [
            (client.post("/square", content=b"[1,,2]"), 400, "malformed-body", "byte 3"),
            (client.post("/square", json=[1, 2, 3]), 422, "invalid-input", "shape (2,), got (3,)"),
            (client.post("/held", json="7"), 422, "invalid-input", "Expected `int`, got `str`"),
            (client.post("/nowhere", json=1), 404, "not-found", "POST /held, POST /square, GET /health"),
            (client.get("/square"), 405, "method-not-allowed", "/square answers POST"),
            (
                client.post("/square", content=b" " * (HTTPOptions().max_body + 1)),
                413,
                "body-too-large",
                f"over {HTTPOptions().max_body} bytes",
            ),
            (
                client.post("/square", content=b"no gzip", headers={"Content-Encoding": "gzip"}),
                400,
                "malformed-body",
                "Content-Encoding",
            ),
        ]
        responses = await asyncio.gather(*(request for request, *_ in wrong))
        for response, (_, status, code, detail) in zip(responses, wrong, strict=True):
            assert response.status_code == status
            assert response.headers["Content-Type"] == "application/problem+json"
            found = response.json()
            assert (found["status"], found["code"]) == (status, code)
            assert detail in found["detail"]
            assert found["request_id"] == response.headers["X-Request-Id"]
            assert response.headers.get("Allow") == ("POST" if status == 405 else None)
        # Right ones are answered as well, and the first is still waited for.
        assert (await client.post("/square", json=[1, 2])).json() == [1, 4]
        assert not waiting.done()
        held.go.set()
        assert (await waiting).json() == 7


async def test_a_body_at_the_limit_is_taken() -> None:
    async with served(size_of) as (_, client):
        response = await client.post("/size", content=b'"' + b"x" * (HTTPOptions().max_body - 2) + b'"')
    assert (response.status_code, response.json()) == (200, HTTPOptions().max_body - 2)


async def test_a_client_that_expects_a_go_ahead_for_its_body_gets_it() -> None:
    text = json.dumps("x" * 2_000_000)
    async with served(size_of) as (_, client):
        # For a body of more than a megabyte curl asks first, and waits a second for nothing.
        status, body, told = await curl(f"{client.base_url}/size", "--json", "@-", input=text.encode())
    assert (status, body) == (200, "2000000")
    assert "HTTP/1.1 100 Continue" in told


async def test_a_handler_that_raises_is_an_internal_error_and_the_next_request_is_answered() -> None:
    @serve
    def invert(x: int) -> float:
        return 1 / x

    async with served(invert) as (_, client):
        wrong = await client.post("/invert", json=0)
        assert (wrong.status_code, wrong.json()["detail"]) == (500, "internal error")
        assert (await client.post("/invert", json=4)).json() == 0.25


# ---------------------------------------------------------------------- clients that go away


async def test_a_client_that_hangs_up_takes_its_request_out_of_the_queue() -> None:
    held = Held()
    async with served(held.handler) as (app, client):
        first = asyncio.ensure_future(client.post("/held", json=1))
        await held.has_begun()
        async with raw(client) as (_, impatient):
            impatient.write(b"POST /held HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n2")
            await until(lambda: waiting_in(app) == 1)
            last = asyncio.ensure_future(client.post("/held", json=3))
            await until(lambda: waiting_in(app) == 2)
        await until(lambda: waiting_in(app) == 1)
        held.go.set()
        assert [(await first).json(), (await last).json()] == [1, 3]
    assert held.seen == [1, 3]
    assert dict(app.statistics()["held"].outcomes) == {"ok": 2, "cancelled": 1}


async def test_a_client_that_hangs_up_while_its_request_runs_disturbs_nobody() -> None:
    held = Held()
    async with served(held.handler) as (app, client):
        async with raw(client) as (_, impatient):
            impatient.write(b"POST /held HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1")
            await held.has_begun()
        await until(lambda: "cancelled" in app.statistics()["held"].outcomes)
        held.go.set()
        assert (await client.post("/held", json=2)).json() == 2
    assert held.seen == [1, 2]


async def test_a_client_that_hangs_up_in_the_middle_of_its_body_runs_nothing() -> None:
    held = Held()
    held.go.set()
    async with served(held.handler) as (_, client):
        async with raw(client) as (_, impatient):
            impatient.write(b"POST /held HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n1")
            await impatient.drain()
        assert (await client.post("/held", json=2)).json() == 2
    assert held.seen == [2]


# ---------------------------------------------------------------------- start and end


async def test_what_is_in_flight_is_answered_when_the_door_closes() -> None:
    held = Held()
    with anyio.fail_after(30):
        async with httpx.AsyncClient(timeout=30) as client:
            async with App(held.handler, http="127.0.0.1:0", worker="thread") as app:
                url = f"{app.transports[0].url}/held"
                waiting = [asyncio.ensure_future(client.post(url, json=n)) for n in range(3)]
                await held.has_begun()
                await until(lambda: waiting_in(app) == 2)
                # Runs as soon as leaving waits for something.
                asyncio.get_running_loop().call_soon(held.go.set)
            answers = await asyncio.gather(*waiting)
    assert sorted(answer.json() for answer in answers) == [0, 1, 2]


async def test_an_idle_connection_does_not_hold_up_the_end() -> None:
    with anyio.fail_after(10):
        async with App(square, http="127.0.0.1:0", worker="thread") as app:
            host, port = app.transports[0].url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"}")
        assert await reader.read() == b""
        writer.close()


async def test_what_does_not_end_by_the_one_deadline_is_told_so_and_cancelled() -> None:
    held = Held()
    with anyio.fail_after(20):
        async with httpx.AsyncClient(timeout=30) as client:
            loop = asyncio.get_running_loop()
            async with App(held.handler, http="127.0.0.1:0", worker="thread", drain_timeout=0.3) as app:
                waiting = asyncio.ensure_future(client.post(f"{app.transports[0].url}/held", json=1))
                await held.has_begun()
                left_at = loop.time()
                loop.call_later(2.0, held.go.set)  # a thread cannot be killed
            assert loop.time() - left_at < 4
            answer = await waiting
    assert (answer.status_code, answer.json()["code"], answer.headers["Connection"]) == (503, "closed", "close")


async def test_a_connection_that_was_just_made_still_gets_to_ask() -> None:
    with anyio.fail_after(20):
        async with App(square, http="127.0.0.1:0", worker="thread") as app:
            host, port = app.transports[0].url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            request = b"POST /square HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n[1,2]"
            # Runs as soon as leaving waits for something.
            asyncio.get_running_loop().call_soon(writer.write, request)
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nConnection: close\r\n" in answer


async def test_while_draining_each_answer_ends_its_connection() -> None:
    async with served(square) as (app, client), raw(client) as (reader, writer):
        app.draining = True
        writer.write(b"POST /square HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n[1,2]")
        answer = await reader.read()
    assert b"\r\nConnection: close\r\n" in answer


def test_all_of_it_runs_on_uvloop_too() -> None:
    async def call() -> tuple[Any, int]:
        async with served(square) as (_, client):
            return (await client.post("/square", json=[1, 2])).json(), (await client.get("/livez")).status_code

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(call()) == ([1, 4], 200)


async def test_a_busy_port_is_an_error_as_it_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy, pytest.raises(OSError, match="in use"):
        async with App(square, worker="thread", http=f"127.0.0.1:{busy.getsockname()[1]}"):
            raise AssertionError("must not start")


async def test_a_second_service_does_not_share_the_port_silently() -> None:
    async with served(square) as (app, client):
        with pytest.raises(OSError, match="in use"):
            async with App(square, worker="thread", http=app.transports[0].url.removeprefix("http://")):
                raise AssertionError("must not start")
        assert (await client.get("/health")).status_code == 200
