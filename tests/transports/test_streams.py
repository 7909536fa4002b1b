"""Streams over HTTP as JSON lines: real sockets, a real client."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

from tidegate import END, App, HTTPError, current_batch, serve

pytestmark = pytest.mark.anyio


@serve(max_batch_size=8)
def countdown(starts: list[int]) -> Iterator[list[object]]:
    """Down to one; negative numbers are refused, 13 breaks on the way."""
    if min(starts) < 0:
        raise HTTPError(409, "nothing is below zero")
    for step in range(max(starts) + 1):
        if 13 in starts and step == 2:
            raise RuntimeError("secret")
        yield [start - step if step < start else END for start in starts]


async def lines(session: aiohttp.ClientSession, url: str, value: Any) -> tuple[int, list[Any]]:
    async with session.post(url, json=value) as response:
        return response.status, [json.loads(line) async for line in response.content]


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_chunks_come_as_lines_and_the_last_says_that_it_was_the_last(session: aiohttp.ClientSession) -> None:
    async with App(countdown, http="127.0.0.1:0") as app:
        url = f"{app.transports[0].url}/countdown"
        async with session.post(url, json=3) as response:
            assert response.content_type == "application/x-ndjson"
            assert await response.text() == '{"chunk":3}\n{"chunk":2}\n{"chunk":1}\n{"end":true}\n'
        assert await lines(session, url, 0) == (200, [{"end": True}])


async def test_many_streams_share_batches_and_each_gets_its_own(session: aiohttp.ClientSession) -> None:
    async with App(countdown, http="127.0.0.1:0") as app:
        url = f"{app.transports[0].url}/countdown"
        answers = await asyncio.gather(*(lines(session, url, n) for n in range(10)))
        assert max(app.statistics()["countdown"].batch_sizes) > 1
    assert [[line.get("chunk") for line in got[:-1]] for _, got in answers] == [
        list(range(n, 0, -1)) for n in range(10)
    ]


async def test_a_failure_before_the_first_chunk_has_its_own_status(session: aiohttp.ClientSession) -> None:
    async with App(countdown, http="127.0.0.1:0") as app:
        status, (problem,) = await lines(session, f"{app.transports[0].url}/countdown", -1)
    assert (status, problem["status"], problem["detail"]) == (409, 409, "nothing is below zero")


async def test_a_failure_after_the_first_chunk_is_the_last_line_and_tells_nothing_private(
    session: aiohttp.ClientSession,
) -> None:
    async with App(countdown, http="127.0.0.1:0") as app:
        status, got = await lines(session, f"{app.transports[0].url}/countdown", 13)
    assert status == 200
    assert got == [
        {"chunk": 13},
        {"chunk": 12},
        {"error": {"code": "handler-error", "status": 500, "message": "internal error"}},
    ]


async def test_a_client_that_hangs_up_ends_its_generator(session: aiohttp.ClientSession) -> None:
    closed = threading.Event()

    @serve
    def forever(n: int) -> Iterator[int]:
        try:
            while True:
                yield n
        finally:
            closed.set()

    async with App(forever, worker="thread", http="127.0.0.1:0") as app:
        response = await session.post(f"{app.transports[0].url}/forever", json=1)
        await response.content.readline()
        response.close()
        assert await asyncio.to_thread(closed.wait, 10)


async def test_a_handler_sees_the_request_id_and_the_headers_it_asked_for_and_no_other(
    session: aiohttp.ClientSession,
) -> None:
    @serve(max_batch_size=4, forward_headers=["X-Tenant"])
    def who(x: list[int]) -> list[dict[str, object]]:
        return [{"id": item.request_id, "headers": dict(item.headers)} for item in current_batch().items]

    async with App(who, http="127.0.0.1:0") as app:
        headers = {"X-Request-Id": "abc", "X-Tenant": "blue", "X-Other": "no"}
        async with session.post(f"{app.transports[0].url}/who", json=1, headers=headers) as response:
            assert await response.json() == {"id": "abc", "headers": {"x-tenant": "blue"}}
