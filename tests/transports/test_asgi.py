"""The ASGI shell, driven by hand."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import anyio
import pytest

from tidegate import App, serve
from tidegate_transports.asgi import ASGI, mounted
from tidegate_transports.http_options import HTTPOptions

pytestmark = pytest.mark.anyio

Message = MutableMapping[str, Any]


@serve(worker="thread", max_batch_size=8)
def double(x: list[int]) -> list[int]:
    return [2 * n for n in x]


@serve(worker="thread")
def shout(text: str) -> str:
    return text.upper()


class Held:
    """A handler that takes items one by one and finishes none before it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()
        self.seen: list[int] = []

        @serve(worker="thread")
        def held(x: int) -> int:
            self.seen.append(x)
            self.begun.set()
            assert self.go.wait(20)
            return x

        self.handler = held


class Server:
    """An ASGI server's side of one request: what it was sent, and whether its client is still there."""

    def __init__(self, *parts: bytes) -> None:
        self.sent: list[Message] = []
        self.looked = 0
        self._events: asyncio.Queue[Message] = asyncio.Queue()
        for number, part in enumerate(parts, 1):
            self._events.put_nowait({"type": "http.request", "body": part, "more_body": number < len(parts)})

    def hang_up(self) -> None:
        self._events.put_nowait({"type": "http.disconnect"})

    async def receive(self) -> Message:
        self.looked += 1
        return await self._events.get()

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def call(self, app: ASGI, path: str = "/double", **scope: Any) -> None:
        headers = [(b"content-type", b"application/json"), *scope.pop("headers", [])]
        given = {"type": "http", "method": "POST", "path": path, "headers": headers, "http_version": "1.1", **scope}
        await app(given, self.receive, self.send)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - the server's side has no event to wait for
            await asyncio.sleep(0.001)


# ---------------------------------------------------------------------- requests


async def test_a_request_is_answered() -> None:
    async with App(double) as app:
        server = Server(b"21")
        await server.call(ASGI(app))
    assert (server.status, server.body) == (200, b"42")
    assert server.headers["content-length"] == "2"
    assert all(name == name.lower() for name in server.headers)
    assert [message["type"] for message in server.sent] == ["http.response.start", "http.response.body"]


async def test_a_body_in_parts_is_put_together_and_stopped_at_the_limit() -> None:
    async with App(double) as app:
        asgi = ASGI(app, HTTPOptions(max_body=10))
        server = Server(b"2", b"", b"1")
        await server.call(asgi)
        assert server.body == b"42"
        endless = Server(*[b" " * 4] * 100)
        await endless.call(asgi)
    assert (endless.status, endless.looked) == (413, 3)


async def test_what_can_be_refused_by_its_head_is_not_read() -> None:
    async with App(double) as app:
        server = Server(b"1")
        await server.call(ASGI(app, HTTPOptions(max_body=10)), headers=[(b"content-length", b"100000")])
    assert (server.status, server.looked) == (413, 0)


async def test_head_is_answered_with_the_length_alone() -> None:
    async with App(double) as app:
        server = Server(b"")
        await server.call(ASGI(app), "/health", method="HEAD")
    assert (server.status, server.body, int(server.headers["content-length"]) > 0) == (200, b"", True)


@pytest.mark.parametrize(
    ("path", "root"),
    [("/double", ""), ("/models/double", "/models"), ("/models/double", "/models/"), ("/double", "/api")],
)
async def test_a_path_is_looked_at_below_the_mount(path: str, root: str) -> None:
    async with App(double) as app:
        server = Server(b"2")
        await server.call(ASGI(app), path, root_path=root)
    assert server.body == b"4"


async def test_while_draining_answers_ask_for_a_new_connection_except_in_http_2() -> None:
    async with App(double) as app:
        app.draining = True
        old, new = Server(b"2"), Server(b"2")
        await old.call(ASGI(app))
        await new.call(ASGI(app), http_version="2")
    assert (old.headers.get("connection"), new.headers.get("connection")) == ("close", None)


# ---------------------------------------------------------------------- clients that go away


async def test_a_client_that_hangs_up_takes_its_request_out_of_the_queue() -> None:
    held = Held()
    async with App(held.handler) as app:
        asgi = ASGI(app)
        first, gone, last = Server(b"1"), Server(b"2"), Server(b"3")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(first.call(asgi, "/held"))
            await until(held.begun.is_set)
            tasks.create_task(gone.call(asgi, "/held"))
            tasks.create_task(last.call(asgi, "/held"))
            await until(lambda: app.statistics()["held"].waiting == 2)
            gone.hang_up()
            await until(lambda: app.statistics()["held"].waiting == 1)
            held.go.set()
    assert (held.seen, first.body, gone.sent, last.body) == ([1, 3], b"1", [], b"3")


async def test_a_client_that_hangs_up_ends_its_stream() -> None:
    closed = threading.Event()

    @serve(worker="thread")
    def forever(n: int) -> Iterator[int]:
        try:
            while True:
                yield n
        finally:
            closed.set()

    async with App(forever) as app:
        server = Server(b"1")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.call(ASGI(app), "/forever"))
            await until(lambda: len(server.sent) > 3)
            server.hang_up()
        assert await asyncio.to_thread(closed.wait, 10)


async def test_a_client_that_hangs_up_before_its_body_ends_is_not_answered() -> None:
    async with App(double) as app:
        server = Server()
        server.hang_up()
        await server.call(ASGI(app))
    assert server.sent == []


async def test_a_servers_own_cancelling_passes_through() -> None:
    held = Held()
    async with App(held.handler) as app:
        task = asyncio.create_task(Server(b"1").call(ASGI(app), "/held"))
        await until(held.begun.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        held.go.set()


# ---------------------------------------------------------------------- lifespan


class Lifespan:
    """A server's side of the lifespan."""

    def __init__(self, app: ASGI) -> None:
        self.sent: asyncio.Queue[Message] = asyncio.Queue()
        self._events: asyncio.Queue[Message] = asyncio.Queue()
        self.task = asyncio.create_task(app({"type": "lifespan"}, self._events.get, self.sent.put))

    async def tell(self, event: str) -> Message:
        await self._events.put({"type": f"lifespan.{event}"})
        with anyio.fail_after(20):
            return await self.sent.get()


async def test_a_servers_lifespan_starts_and_ends_the_app() -> None:
    app = App(double)
    asgi = ASGI(app)
    lifespan = Lifespan(asgi)
    assert (await lifespan.tell("startup"))["type"] == "lifespan.startup.complete"
    assert app.ready
    server = Server(b"2")
    await server.call(asgi)
    assert server.body == b"4"
    assert (await lifespan.tell("shutdown"))["type"] == "lifespan.shutdown.complete"
    assert app.draining
    await lifespan.task


async def test_a_setup_that_fails_fails_the_servers_start_with_its_traceback() -> None:
    def load(device: str) -> None:
        raise FileNotFoundError("no weights")

    @serve(worker="thread", setup=load)
    def embed(model: None, x: int) -> int:
        return x

    lifespan = Lifespan(ASGI(App(embed)))
    told = await lifespan.tell("startup")
    assert told["type"] == "lifespan.startup.failed"
    assert "raise FileNotFoundError" in told["message"]
    await lifespan.task


async def test_an_app_that_runs_already_is_left_running() -> None:
    async with App(double) as app:
        lifespan = Lifespan(ASGI(app))
        await lifespan.tell("startup")
        await lifespan.tell("shutdown")
        await lifespan.task
        assert app.ready


async def test_a_scope_of_an_unknown_kind_is_an_error() -> None:
    server = Server(b"")
    with pytest.raises(ValueError, match="carrier-pigeon"):
        await ASGI(App(double))({"type": "carrier-pigeon"}, server.receive, server.send)


async def test_options_come_from_the_environment_where_they_are_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_API_KEY", "secret")
    monkeypatch.setenv("TIDEGATE_MAX_BODY", "4")
    async with App(double) as app:
        asgi = mounted(app, max_body=100)
        closed, opened = Server(b"2"), Server(b"      2")
        await closed.call(asgi)
        await opened.call(asgi, headers=[(b"x-api-key", b"secret")])
    assert (closed.status, json.loads(closed.body)["code"]) == (401, "unauthorized")
    assert opened.body == b"4"
