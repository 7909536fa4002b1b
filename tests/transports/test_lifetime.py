"""Apps mounted in FastAPI and Starlette, or run by a server's own command: who starts them, and how often."""

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from tidegate import App, serve
from tidegate_transports import lifetime
from tidegate_transports.asgi import ASGI, mounted

pytestmark = pytest.mark.anyio


@serve(worker="thread", max_batch_size=8)
def double(x: list[int]) -> list[int]:
    return [2 * n for n in x]


@serve(worker="thread")
def shout(text: str) -> str:
    return text.upper()


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - the server's side has no event to wait for
            await asyncio.sleep(0.001)


def fastapi(app: ASGI, **options: Any) -> FastAPI:
    """FastAPI with a route of its own beside the mounted app."""
    outer = FastAPI(**options)

    @outer.get("/own")
    async def own() -> str:
        return "FastAPI's"

    outer.mount("/models", app)
    return outer


async def starlette_own(request: Request) -> PlainTextResponse:
    return PlainTextResponse('"FastAPI\'s"')


def starlette(app: ASGI) -> Starlette:
    return Starlette(routes=[Route("/own", starlette_own), Mount("/models", app)])


@asynccontextmanager
async def client_of(outer: Any, *ends: ASGI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(outer)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=20) as client:
        yield client
    for app in ends:
        await app.aclose()


@pytest.mark.parametrize("outer", [fastapi, starlette])
async def test_mounted_it_starts_on_the_first_request_beside_the_outer_apps_own_routes(outer: Any) -> None:
    app = App(double, shout)
    inner = mounted(app)
    async with client_of(outer(inner), inner) as client:
        assert (await client.get("/own")).json() == "FastAPI's"
        assert not app.ready
        assert (await client.post("/models/double", json=4)).json() == 8
        assert (await client.post("/models/shout", json="a")).json() == "A"
        assert (await client.get("/models/readyz")).status_code == 200
        assert (await client.post("/models/nothing", json="a")).status_code == 404
        assert (await client.get("/own")).json() == "FastAPI's"


async def test_many_first_requests_start_it_once_and_probes_do_not_wait() -> None:
    setups: list[str] = []
    go = threading.Event()

    def load(device: str) -> None:
        setups.append(device)
        assert go.wait(20)

    @serve(worker="thread", setup=load)
    def embed(model: None, x: int) -> int:
        return x

    inner = mounted(App(embed))
    async with client_of(fastapi(inner), inner) as client:
        waiting = [asyncio.create_task(client.post("/models/embed", json=number)) for number in range(10)]
        await until(lambda: bool(setups))
        assert (await client.get("/models/readyz")).status_code == 503
        assert (await client.get("/models/livez")).status_code == 200
        go.set()
        assert [(await one).json() for one in waiting] == list(range(10))
    assert len(setups) == 1


async def test_a_setup_that_fails_is_503_with_its_reason_in_the_log_and_tried_again_later(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights: list[str] = []

    def load(device: str) -> None:
        if not weights:
            raise FileNotFoundError("no weights")

    @serve(worker="thread", setup=load)
    def embed(model: None, x: int) -> int:
        return x

    inner = mounted(App(embed))
    async with client_of(fastapi(inner), inner) as client:
        first = await client.post("/models/embed", json=1)
        assert (first.status_code, first.json()["code"], first.headers["Retry-After"]) == (503, "unavailable", "5")
        assert "no weights" not in first.text
        assert "raise FileNotFoundError" in caplog.text
        weights.append("here now")
        assert (await client.post("/models/embed", json=1)).status_code == 503
        monkeypatch.setattr(lifetime, "RETRY_AFTER", 0.0)
        assert (await client.post("/models/embed", json=1)).json() == 1


async def test_the_outer_apps_lifespan_starts_and_ends_it() -> None:
    app = App(double)
    outer = fastapi(mounted(app), lifespan=app.lifespan)
    async with outer.router.lifespan_context(outer):
        assert app.ready
        async with client_of(outer) as client:
            assert (await client.post("/models/double", json=4)).json() == 8
    assert app.draining


def test_a_mounted_app_outlives_the_loops_of_test_clients() -> None:
    outer = fastapi(mounted(App(double)))

    async def one_call() -> Any:
        async with client_of(outer) as client:
            doubled = (await client.post("/models/double", json=4)).json()
            return doubled, (await client.get("/models/readyz")).status_code

    assert [asyncio.run(one_call()) for _ in range(3)] == [(8, 200)] * 3


async def test_on_two_loops_at_once_it_says_that_it_cannot() -> None:
    inner = mounted(App(double))

    async def call() -> Any:
        async with client_of(fastapi(inner)) as client:
            return (await client.post("/models/double", json=4)).json()

    def elsewhere() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(call())

    assert await call() == 8
    await asyncio.to_thread(elsewhere)
    await inner.aclose()


@pytest.mark.parametrize(
    ("server", "arguments"),
    [
        ("uvicorn", ["--port", "0", "--log-level", "info"]),
        ("granian", ["--interface", "asgi", "--port", "0"]),
    ],
)
def test_a_servers_own_command_runs_an_app(server: str, arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "from tidegate import App, serve\n\n"
        "@serve(worker='thread')\ndef shout(text: str) -> str:\n    return text.upper()\n\n"
        "asgi_app = App(shout).asgi()\n"
    )
    if server == "granian":
        arguments = [*arguments[:-1], str(free_port())]
    command = [sys.executable, "-m", server, "app:asgi_app", *arguments]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            url = next(found for line in process.stdout if (found := address_in(line)))
            transport = httpx.HTTPTransport(retries=20)
            with httpx.Client(transport=transport, timeout=30) as client:
                assert client.post(f"{url}/shout", json="a").json() == "A"
                assert client.get(f"{url}/readyz").status_code == 200
            process.terminate()
            process.communicate(timeout=30)
        finally:
            process.kill()
            watchdog.cancel()


def address_in(line: str) -> str:
    start = line.find("http://127.0.0.1:")
    return line[start:].split()[0] if start >= 0 else ""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
