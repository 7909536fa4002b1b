import asyncio
import os
import ssl
import sys
from typing import Any

import pytest
from aiohttp import web

from tidegate import App, serve
from tidegate.bench.service import Look, Remote, ServedProcess, ServiceFailed, cpu_seconds, mean_batch

pytestmark = pytest.mark.anyio


@serve(max_batch_size=4, batch_timeout=0.0, worker="thread")
def double(xs: list[int]) -> list[int]:
    return [2 * x for x in xs]


@serve(worker="thread")
def shout(text: str) -> str:
    return text.upper()


async def test_a_service_tells_its_examples_and_its_batches() -> None:
    async with App(double, shout, http="127.0.0.1:0") as app:
        url = app.transports[0].url
        async with Remote(f"{url}/double", {}, None, os.getpid()) as remote:
            assert set(await remote.paths()) == {"/double", "/shout"}
            before = await remote.look()
            for number in range(3):
                await app.call("double", number)
            await app.call("shout", "x")
            after = await remote.look()
    assert mean_batch(before, after) == 1.0
    assert after.batch_sizes == {1: 3}
    assert before.cpu is not None
    assert after.cpu is not None
    assert 0 < before.cpu <= after.cpu


async def test_of_another_service_its_openapi_is_read_and_silence_is_no_error() -> None:
    async def openapi(request: web.Request) -> web.Response:
        content = {"application/json": {"schema": {}, "example": {"text": "hi"}}}
        return web.json_response(
            {"paths": {"/a": {"post": {"requestBody": {"content": content}}}, "/b": {"get": {}}, "/c": {"post": {}}}}
        )

    app = web.Application()
    app.router.add_get("/openapi.json", openapi)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        url = f"ws://127.0.0.1:{runner.addresses[0][1]}/a"
        async with Remote(url, {"Content-Type": "text/plain"}, ssl.create_default_context()) as remote:
            assert await remote.paths() == {"/a": b'{"text":"hi"}', "/c": None}
            assert await remote.look() == Look(None, None)
    finally:
        await runner.cleanup()
    async with Remote(url, {}, None) as remote:
        assert (await remote.paths(), await remote.look()) == ({}, Look(None, None))


@pytest.mark.parametrize("before", [None, Look(None, None), Look({2: 3}, None)])
def test_without_new_batches_there_is_no_mean(before: Look | None) -> None:
    assert mean_batch(before, Look({2: 3}, None)) is None


# ---------------------------------------------------------------------- one that is started


def command(code: str) -> list[str]:
    return [sys.executable, "-u", "-c", code]


READY = "print('hello from the module', flush=True); print('curl http://127.0.0.1:1234/f --json 1', flush=True)"


async def test_a_process_is_ready_when_it_says_where_and_ends_when_its_input_does() -> None:
    async with ServedProcess(command(f"import sys; {READY}; sys.stdin.read()")) as process:
        assert process.url == "http://127.0.0.1:1234"
        assert cpu_seconds(process.pid) is not None
    assert cpu_seconds(process.pid) is None


async def test_one_that_ends_before_that_shows_its_errors() -> None:
    code = "import sys; print('Error: no weights', file=sys.stderr); sys.exit(3)"
    with pytest.raises(ServiceFailed) as raised:
        async with ServedProcess(command(code)):
            pass
    assert (raised.value.code, raised.value.text) == (3, "Error: no weights")


async def test_what_it_prints_does_not_hold_it_up() -> None:
    through = asyncio.Event()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        through.set()

    async with await asyncio.start_server(accepted, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        tell = f"socket.create_connection(('127.0.0.1', {port})).close()"
        code = f"import socket, sys; {READY}; print('x' * 1_000_000); {tell}; sys.stdin.read()"
        async with asyncio.timeout(30), ServedProcess(command(code)):
            await through.wait()


async def test_leaving_while_it_starts_ends_it() -> None:
    served = ServedProcess(command("import sys; sys.stdin.read()"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5), served:
            pass
    assert cpu_seconds(served.pid) is None


@pytest.mark.parametrize("keeps", ["", "\nimport sys; print(flush=True); sys.stdin.read()"])
async def test_cpu_is_that_of_children_too_whether_they_live_or_not(keeps: str) -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\n"
    child = f"subprocess.Popen([sys.executable, '-c', {burn + keeps!r}], stdout=subprocess.PIPE)"
    code = (
        f"import subprocess, sys\nchild = {child}\nchild.stdout.readline() or child.wait()\n{READY}\nsys.stdin.read()"
    )
    async with ServedProcess(command(code)) as process:
        used: Any = cpu_seconds(process.pid)
    assert used >= 0.25  # in ticks of 10 ms
