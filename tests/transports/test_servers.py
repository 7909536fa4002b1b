"""uvicorn and granian as doors of an app in this process; what clients see of them is in the black-box suite."""

import asyncio
import builtins
import signal
import threading
from typing import Any

import anyio
import httpx
import pytest

from tidegate import App, serve
from tidegate_transports.http_options import HTTPOptions
from tidegate_transports.servers import GranianTransport, UvicornTransport

pytestmark = pytest.mark.anyio

EACH = pytest.mark.parametrize("transport", [UvicornTransport, GranianTransport])
Kind = type[UvicornTransport] | type[GranianTransport]


@serve(worker="thread", max_batch_size=8)
def double(x: list[int]) -> list[int]:
    return [2 * n for n in x]


@EACH
async def test_it_serves_in_this_process_at_the_url_that_it_names(transport: Kind) -> None:
    door = transport("127.0.0.1:0")
    async with App(double, http=door) as app, httpx.AsyncClient(base_url=door.url, timeout=20) as client:
        assert door.url.startswith("http://127.0.0.1:")
        assert not door.url.endswith(":0")
        answers = await asyncio.gather(*(client.post("/double", json=number) for number in range(20)))
        assert [answer.json() for answer in answers] == [2 * number for number in range(20)]
        assert dict(app.statistics()["double"].outcomes) == {"ok": 20}
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(f"{door.url}/livez")


@EACH
async def test_signals_stay_the_apps_own(transport: Kind) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with App(double, http=transport("127.0.0.1:0")):
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@EACH
async def test_a_busy_port_is_an_error_as_it_is(transport: Kind) -> None:
    first = transport("127.0.0.1:0")
    async with App(double, http=first):
        address = first.url.removeprefix("http://")
        with pytest.raises(OSError, match="in use"):
            async with App(double, http=transport(address)):
                raise AssertionError("must not start")


@EACH
async def test_what_is_in_flight_is_answered_and_what_does_not_end_is_cut_off_at_the_deadline(transport: Kind) -> None:
    begun, go = threading.Event(), threading.Event()

    @serve(worker="thread", timeout=None)
    def held(x: int) -> int:
        begun.set()
        assert go.wait(20)
        return x

    with anyio.fail_after(20):
        async with httpx.AsyncClient(timeout=20) as client:
            door = transport("127.0.0.1:0")
            async with App(held, http=door):
                ends = asyncio.create_task(client.post(f"{door.url}/held", json=1))
                assert await asyncio.to_thread(begun.wait, 20)
                asyncio.get_running_loop().call_soon(go.set)
            assert (await ends).json() == 1
            begun.clear()
            go.clear()
            door = transport("127.0.0.1:0")
            loop = asyncio.get_running_loop()
            async with App(held, http=door, drain_timeout=0.2):
                never = asyncio.create_task(client.post(f"{door.url}/held", json=1))
                assert await asyncio.to_thread(begun.wait, 20)
                left_at = loop.time()
            assert loop.time() - left_at < 5
            go.set()
            answer = await never
    assert (answer.status_code, answer.json()["code"]) == (503, "closed")


@EACH
async def test_a_server_that_is_not_installed_is_told_with_the_fix(
    transport: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] in ("uvicorn", "granian"):
            raise ImportError(name)
        return usual(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pip install tidegate\[asgi\]"):
        async with App(double, http=transport("127.0.0.1:0")):
            raise AssertionError("must not start")


@EACH
async def test_options_hold_there_too(transport: Kind) -> None:
    door = transport("127.0.0.1:0", HTTPOptions(api_keys=("secret",)))
    async with App(double, http=door), httpx.AsyncClient(base_url=door.url, timeout=20) as client:
        assert (await client.post("/double", json=1)).status_code == 401
        assert (await client.post("/double", json=1, headers={"X-API-Key": "secret"})).json() == 2


@EACH
async def test_a_long_body_does_not_count_as_the_next_requests_head(transport: Kind) -> None:
    body = b" " * 200_000 + b"7"
    head = b"POST /double HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    door = transport("127.0.0.1:0")
    with anyio.fail_after(20):
        async with App(double, http=door):
            host, port = door.url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(head % len(body) + b"\r\n" + body + head % 3)
            await reader.readuntil(b"\r\n\r\n14")
            writer.write(b"Connection: close\r\n\r\n" + b"  8")
            last = await reader.read()
            writer.close()
    assert last.startswith(b"HTTP/1.1 200 ")
    assert last.endswith(b"\r\n\r\n16")
