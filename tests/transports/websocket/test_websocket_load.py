"""Many requests on one connection, and clients that do not read."""

import asyncio
import gc
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import websockets

from tidegate import END, App, HTTPError, serve
from tidegate_batching import Stream
from tidegate_transports.http_options import HTTPOptions
from tidegate_transports.session import Session
from tidegate_transports.session_request import Request
from tidegate_transports.websocket_driver import Connection

pytestmark = pytest.mark.anyio

Door = Callable[..., AbstractAsyncContextManager[tuple[App, str]]]


@serve(max_batch_size=64, worker="thread")
def double(x: list[int]) -> list[int]:
    if min(x) < 0:
        raise HTTPError(409, "negative")
    return [2 * n for n in x]


@serve(max_batch_size=64, worker="thread")
def countdown(starts: list[int]) -> Iterator[list[object]]:
    for step in range(max(starts) + 1):
        yield [start - step if step < start else END for start in starts]


class Counted:
    """What one connection got for each id."""

    def __init__(self) -> None:
        self.ends: Counter[int] = Counter()
        self.kinds: Counter[str] = Counter()
        self.chunks: dict[int, list[int]] = {}
        self.outputs: dict[int, int] = {}

    def take(self, message: str | bytes) -> None:
        fields: dict[str, Any] = json.loads(message)
        id = fields["id"]
        assert not self.ends[id], f"{fields} came after the end"
        if "chunk" in fields:
            self.chunks.setdefault(id, []).append(fields["chunk"])
            return
        self.ends[id] += 1
        if "output" in fields:
            self.outputs[id] = fields["output"]
        self.kinds[
            "error " + fields["error"]["code"] if "error" in fields else ("output" if "output" in fields else "end")
        ] += 1


async def one_round(url: str, draw: random.Random, count: int) -> Counted:
    """`count` requests at once, a third of them streams, a fifth cancelled some time later, some that fail."""
    got = Counted()
    async with websockets.connect(url, compression=None, max_queue=None) as client:

        async def read() -> None:
            while sum(got.ends.values()) < count:
                got.take(await client.recv())

        reading = asyncio.create_task(read())
        for id in range(count):
            if id % 3 == 0:
                await client.send(json.dumps({"id": id, "handler": "countdown", "input": id % 50}))
            else:
                value = -id if id % 97 == 0 else id
                await client.send(json.dumps({"id": id, "handler": "double", "input": value}))
            if draw.random() < 0.2:
                await client.send(json.dumps({"id": draw.randint(0, id), "cancel": True}))
        async with asyncio.timeout(50):
            await reading
    return got


async def test_of_a_thousand_requests_at_once_on_one_connection_each_ends_exactly_once(door: Door) -> None:
    draw = random.Random(7)
    async with door(double, countdown) as (app, url):
        got = await one_round(url, draw, 1000)
        assert got.ends == Counter(range(1000))
        # Nothing was lost and nothing was made up.
        assert all(output == 2 * id for id, output in got.outputs.items())
        for id, chunks in got.chunks.items():
            assert chunks == list(range(id % 50, 0, -1))[: len(chunks)]
        assert got.kinds["output"] > 400
        assert got.kinds["end"] > 100
        assert got.kinds["error cancelled"] > 10
        for statistics in app.statistics().values():
            assert (statistics.waiting, statistics.running) == (0, 0)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # who looks at every object wakes some that are deprecated
async def test_memory_stays_flat_over_many_rounds(door: Door) -> None:
    draw = random.Random(11)
    counts = []
    async with door(double, countdown) as (_, url):
        for _ in range(8):
            await one_round(url, draw, 1000)
            gc.collect()
            counts.append(len(gc.get_objects()))
    gc.collect()
    left = [one for one in gc.get_objects() if isinstance(one, (Connection, Session, Request, Stream))]
    assert left == []
    # The core forgets items some time after their end, so that the number goes up and down.
    assert max(counts[4:]) - max(counts[:4]) < 1000, counts


async def test_one_long_connection_leaves_nothing_behind_per_request(door: Door) -> None:
    counts = []
    async with door(double, countdown) as (_, url), websockets.connect(f"{url}/double", compression=None) as client:
        for _ in range(6):
            for id in range(1000):
                await client.send(json.dumps({"id": f"{id}", "input": id}))
                await client.send(json.dumps({"id": f"{id}", "cancel": True}))
                await client.recv()
            gc.collect()
            counts.append(len(gc.get_objects()))
    assert max(counts[2:]) - counts[2] < 40, counts


# ---------------------------------------------------------------------- clients that do not read


async def test_a_reader_that_stops_loses_its_own_stream_and_the_batch_goes_on_for_the_others(
    shell: str, door: Door
) -> None:
    """The batch steps on while one of two connections does not read: the other gets every chunk."""
    steps = 3000

    @serve(max_batch_size=2, batch_timeout=60, worker="thread")
    def generate(prompts: list[str]) -> Iterator[list[str]]:
        for number in range(steps):
            yield [f"{number} {prompt}" + "x" * 2000 for prompt in prompts]
            if not number % 100:
                threading.Event().wait(0.01)  # the fast one needs a moment to keep up

    async with (
        door(generate, shell=shell) as (app, url),
        websockets.connect(url, compression=None, max_queue=1) as slow,
        websockets.connect(url, compression=None) as fast,
    ):
        await slow.send(json.dumps({"id": 1, "input": "slow"}))
        await fast.send(json.dumps({"id": 1, "input": "fast"}))
        got = [json.loads(await fast.recv()) for _ in range(steps + 1)]
        assert got[-1] == {"id": 1, "end": True}
        assert [int(one["chunk"].split()[0]) for one in got[:-1]] == list(range(steps))
        assert app.statistics()["generate"].outcomes == {"slow-reader": 1, "ok": 1}
        # What it reads at last is what was on its way, and how it ended.
        seen = 0
        while "chunk" in (late := json.loads(await slow.recv())):
            assert int(late["chunk"].split()[0]) == seen
            seen += 1
        assert late["error"]["code"] == "slow-reader"
        assert 0 < seen < steps
        # The connection itself is as good as ever.
        await slow.send(json.dumps({"id": 2, "input": 5}))
        assert json.loads(await slow.recv())["error"]["code"] == "invalid-input"


async def test_answers_that_nobody_reads_hold_up_nobody_else_and_are_not_lost(shell: str, door: Door) -> None:
    @serve(worker="thread", max_batch_size=8)
    def much(x: list[int]) -> list[str]:
        return ["x" * n for n in x]

    async with (
        door(much, shell=shell) as (_, url),
        websockets.connect(url, compression=None, max_queue=1, max_size=None) as slow,
        websockets.connect(url, compression=None) as fast,
    ):
        for id in range(50):
            await slow.send(json.dumps({"id": id, "input": 500_000}))
        for id in range(200):
            await fast.send(json.dumps({"id": id, "input": 1}))
            assert json.loads(await fast.recv()) == {"id": id, "output": "x"}
        answers = [json.loads(await slow.recv()) for _ in range(50)]
        assert {(one["id"], len(one["output"])) for one in answers} == {(id, 500_000) for id in range(50)}


async def test_a_client_that_reads_nothing_for_too_long_is_given_up(door: Door) -> None:
    @serve(worker="thread")
    def forever(x: int) -> Iterator[str]:
        while True:
            yield "x" * 10_000

    options = HTTPOptions(write_timeout=0.2)
    async with (
        door(forever, options=options) as (app, url),
        websockets.connect(url, compression=None, max_queue=1, close_timeout=0.1) as client,
    ):
        await client.send(json.dumps({"id": 1, "input": 1}))
        while not app.statistics()["forever"].outcomes:  # noqa: ASYNC110 - a server's counter has no event
            await asyncio.sleep(0.001)
        assert app.statistics()["forever"].outcomes == {"cancelled": 1}
