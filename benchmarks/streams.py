"""Streams over WebSocket against the same generator over HTTP, and what a client that does not read costs the others.

    python benchmarks/streams.py [--seconds 3] [--tokens 64]

The service runs in a process of its own with the handler in a thread; the clients share this one. Every stream is
`--tokens` tokens long, and a step of the batched generator takes no time of its own, so that what is measured is the
way from the generator to the client.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp
import psutil
import websockets

from tidegate import App, serve
from tidegate_transports.http_options import HTTPOptions
from tidegate_transports.websocket import WebSocketTransport

ROUNDS = 12

Stream = Callable[[int], AsyncIterator[None]]


@serve(max_batch_size=64, batch_timeout=0, worker="thread")
def generate(prompts: list[int]) -> Iterator[list[str]]:
    """As many tokens as each prompt says, all the same number."""
    for number in range(max(prompts)):
        yield [f" token{number}" for _ in prompts]


@serve(max_batch_size=16, worker="thread")
def double(x: list[int]) -> list[int]:
    return [2 * n for n in x]


@serve(worker="thread")
def flood(n: int) -> Iterator[str]:
    """A stream that is longer than any client reads it here."""
    for _ in range(n):
        yield "x" * 1000


async def serve_until_told() -> None:
    """The service's process: prints its addresses, ends with standard input."""
    doors = {"http": "127.0.0.1:0", "ws": WebSocketTransport("127.0.0.1:0", HTTPOptions())}
    async with App(generate, double, flood, drain_timeout=2, **doors) as app:  # type: ignore[arg-type]
        print(json.dumps([transport.url for transport in app.transports]), flush=True)
        await asyncio.to_thread(sys.stdin.read)


# ---------------------------------------------------------------------- clients


@asynccontextmanager
async def by_websocket(url: str, _: int) -> AsyncIterator[Stream]:
    """All streams on one connection."""
    async with websockets.connect(f"{url}/generate", compression=None) as connection:
        queues: dict[int, asyncio.Queue[bool]] = {}

        async def read() -> None:
            async for message in connection:
                fields = json.loads(message)
                queues[fields["id"]].put_nowait("chunk" in fields)

        reading = asyncio.create_task(read())
        ids = iter(range(1 << 60))

        async def stream(tokens: int) -> AsyncIterator[None]:
            id = next(ids)
            queue = queues[id] = asyncio.Queue()
            await connection.send(json.dumps({"id": id, "input": tokens}))
            while await queue.get():
                yield
            del queues[id]

        yield stream
        reading.cancel()


def by_http(accept: str, prefix: bytes) -> Callable[[str, int], Any]:
    """A connection per stream, kept alive."""

    @asynccontextmanager
    async def client(url: str, connections: int) -> AsyncIterator[Stream]:
        connector = aiohttp.TCPConnector(limit=connections)
        async with aiohttp.ClientSession(connector=connector, headers={"Accept": accept}) as session:

            async def stream(tokens: int) -> AsyncIterator[None]:
                async with session.post(f"{url}/generate", json=tokens) as response:
                    async for line in response.content:
                        if line.startswith(prefix):
                            json.loads(line[5:] if prefix == b"data:" else line)
                            yield

            yield stream

    return client


CLIENTS = {
    "WebSocket, one connection": (1, by_websocket),
    "HTTP, JSON lines": (0, by_http("application/x-ndjson", b'{"chunk"')),
    "HTTP, server-sent events": (0, by_http("text/event-stream", b"data:")),
}

# ---------------------------------------------------------------------- measurements


class Found(NamedTuple):
    first: list[float]
    tokens_per_second: float
    seconds: float


async def measured(stream: Stream, tokens: int, concurrency: int, seconds: float) -> Found:
    """First-token latencies in seconds, and tokens per second of all streams together."""
    first: list[float] = []
    count = 0
    begin = time.perf_counter()

    async def one_after_another() -> None:
        nonlocal count
        while time.perf_counter() < begin + seconds:
            asked = time.perf_counter()
            got = 0
            async for _ in stream(tokens):
                got += 1
                if got == 1:
                    first.append(time.perf_counter() - asked)
            count += got

    await asyncio.gather(*(one_after_another() for _ in range(concurrency)))
    took = time.perf_counter() - begin
    return Found(first, count / took, took)


def percentile(times: list[float], share: float) -> float:
    return statistics.quantiles(times, n=1000)[round(share * 1000) - 1] if len(times) > 1 else times[0]


def cpu_seconds(service: psutil.Process) -> float:
    times = service.cpu_times()
    return float(times.user + times.system)


async def compare(urls: list[str], service: psutil.Process, tokens: int, seconds: float) -> None:
    print(f"{'':28}{'streams':>8}{'first token p50':>18}{'p99':>10}{'tokens/s':>12}{'service CPU per token':>24}")
    for concurrency in (1, 8, 64):
        for name, (which, client) in CLIENTS.items():
            async with client(urls[which], concurrency) as stream:
                await measured(stream, tokens, concurrency, 0.3)
                before = cpu_seconds(service)
                found = await measured(stream, tokens, concurrency, seconds)
                each = (cpu_seconds(service) - before) / (found.tokens_per_second * found.seconds) * 1e6
            p50, p99 = (percentile(found.first, share) * 1e3 for share in (0.5, 0.99))
            print(f"{name:28}{concurrency:8}{p50:15.2f} ms{p99:7.2f} ms{found.tokens_per_second:12,.0f}{each:21.1f} µs")
        print()


async def neighbours(url: str, seconds: float) -> list[float]:
    """How long eight clients, each with a connection and a request at a time, wait for an answer."""
    times: list[float] = []
    begin = time.perf_counter()

    async def client() -> None:
        async with websockets.connect(f"{url}/double", compression=None) as connection:
            while time.perf_counter() < begin + seconds:
                asked = time.perf_counter()
                await connection.send('{"id":1,"input":1}')
                await connection.recv()
                times.append(time.perf_counter() - asked)

    await asyncio.gather(*(client() for _ in range(8)))
    return times


@asynccontextmanager
async def stopped_reader(url: str) -> AsyncIterator[None]:
    """A client that asks for more than fits anywhere, and reads none of it."""
    async with websockets.connect(f"{url}/flood", compression=None, max_queue=1, close_timeout=0.1) as connection:
        for id in range(8):
            await connection.send(json.dumps({"id": id, "input": 1_000_000}))
        await asyncio.sleep(1.5)  # until the sockets' buffers are full
        yield


async def compare_neighbours(url: str, seconds: float) -> None:
    """Alone and beside a client that does not read, turn by turn, so that both meet the same machine."""
    alone: list[float] = []
    beside: list[float] = []
    await neighbours(url, 0.5)
    for _ in range(ROUNDS):
        alone += await neighbours(url, seconds / 3)
        async with stopped_reader(url):
            beside += await neighbours(url, seconds / 3)
    print(f"{'8 clients, unary':28}{'requests/s':>12}{'p50':>10}{'p99':>10}{'worst':>11}")
    for name, times in (("alone", alone), ("beside 1 that reads nothing", beside)):
        p50, p99 = (percentile(times, share) * 1e3 for share in (0.5, 0.99))
        rate = len(times) / (ROUNDS * seconds / 3)
        print(f"{name:28}{rate:12,.0f}{p50:7.2f} ms{p99:7.2f} ms{max(times) * 1e3:8.2f} ms")


async def main(tokens: int, seconds: float) -> None:
    service = subprocess.Popen(  # noqa: ASYNC220 - nothing else is under way yet
        [sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert service.stdin
    assert service.stdout
    try:
        urls: list[str] = json.loads(service.stdout.readline())
        await compare(urls, psutil.Process(service.pid), tokens, seconds)
        await compare_neighbours(urls[1], seconds)
    finally:
        service.stdin.close()
        service.wait(20)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    asyncio.run(serve_until_told() if arguments.serve else main(arguments.tokens, arguments.seconds))
