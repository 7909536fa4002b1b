"""What handing a batch to another process and hearing back costs: `python benchmarks/handover.py`.

One process sends a batch of 64 items, a child touches every item and answers with 64 small numbers; then the next.
`tidegate` is the way of the process workers: values stacked into shared memory, a frame on a socket, arrays on that
memory in the child, its answer packed the same way. The peers send the list of items with `multiprocessing.Queue`, and
with pickle over a `multiprocessing.Pipe`; they are not asked to stack it. What a worker must know of its items (ids,
deadlines) goes along with all. They take turns, a few batches each, so that whatever else the machine does hits each. Seconds of the sender's CPU stand beside the whole: that is what its
event loop is kept busy for.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np

from tidegate.workers import frames
from tidegate.workers.packing import pack, unpack
from tidegate.workers.shared_memory import Arena, Segment

SIZE = 64
TARGETS = {"64 x 4 floats": 1.0, "64 x 150 kB images": 5.0, "64 x 150 kB bodies": 1.0, "64 small dicts": 1.0}
"""How many times less time than the better peer it should take."""

IDS = [f"{n:016x}" for n in range(SIZE)]
DEADLINES = [1e6 + n for n in range(SIZE)]

TURN = 20
"""Batches in a row: after a change the caches are cold, which they would not be in a service."""

Trip = Callable[[list[Any]], list[Any]]


def payloads() -> dict[str, list[Any]]:
    """Fresh values of each kind; the numbers in them do not matter, that no two are one object does."""
    rng = np.random.default_rng(0)
    return {
        "64 x 4 floats": [rng.standard_normal(4) for _ in range(SIZE)],
        "64 x 150 kB images": [rng.integers(0, 255, (224, 224, 3), np.uint8) for _ in range(SIZE)],
        "64 x 150 kB bodies": [rng.bytes(150_000) for _ in range(SIZE)],
        "64 small dicts": [{"id": n, "text": f"a text of item {n}", "lang": "en", "score": n / 7} for n in range(SIZE)],
    }


def touch(values: list[Any]) -> list[float]:
    """One small number per item, read from the item."""
    first = values[0]
    if isinstance(first, dict):
        return [value["score"] for value in values]
    return [float(value[0]) if isinstance(value, bytes) else float(value.flat[0]) for value in values]


# ---------------------------------------------------------------------- three ways there and back


@contextmanager
def tidegate() -> Iterator[Trip]:
    inbox, outbox = Segment.create(), Segment.create()
    arena = Arena(inbox)
    sock, theirs = socket.socketpair()
    numbers = [theirs.fileno(), inbox.fd, outbox.fd]
    child = subprocess.Popen([sys.executable, __file__, "--child", *map(str, numbers)], pass_fds=numbers)
    theirs.close()
    reader = frames.FrameReader()
    freed: list[int] = []

    def trip(values: list[Any]) -> list[Any]:
        packed = pack(values, arena, stack_dim=0)
        frames.send(sock, frames.Run(1, packed, IDS, DEADLINES, [], freed))
        (done,) = frames.receive(sock, reader)
        assert isinstance(done, frames.Done)
        assert done.values is not None
        answer = unpack(done.values, outbox, copy=True).values
        freed[:] = done.values.freed
        for offset in packed.freed:
            arena.free(offset)
        return answer

    yield trip
    sock.close()
    child.wait()


def tidegate_child(fd: int, inbox_fd: int, outbox_fd: int) -> None:
    sock = socket.socket(fileno=fd)
    inbox, arena = Segment.open(inbox_fd), Arena(Segment.open(outbox_fd))
    reader = frames.FrameReader()
    while messages := frames.receive(sock, reader):
        for run in messages:
            assert isinstance(run, frames.Run)
            for offset in run.freed:
                arena.free(offset)
            unpacked = unpack(run.values, inbox)
            unpacked.stacked  # noqa: B018 - what a function would get
            frames.send(sock, frames.Done(run.batch, pack(touch(unpacked.values), arena)))


@contextmanager
def queue() -> Iterator[Trip]:
    context = multiprocessing.get_context("spawn")
    there, back = context.Queue(), context.Queue()
    child = context.Process(target=queue_child, args=(there, back))
    child.start()

    def trip(values: list[Any]) -> list[Any]:
        there.put((1, values, IDS, DEADLINES))
        answer: list[Any] = back.get()
        return answer

    yield trip
    there.put(None)
    child.join()


def queue_child(there: Any, back: Any) -> None:
    while (message := there.get()) is not None:
        back.put(touch(message[1]))


@contextmanager
def pipe() -> Iterator[Trip]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=pipe_child, args=(theirs,))
    child.start()

    def trip(values: list[Any]) -> list[Any]:
        ours.send_bytes(pickle.dumps((1, values, IDS, DEADLINES), protocol=5))
        answer: list[Any] = pickle.loads(ours.recv_bytes())
        return answer

    yield trip
    ours.send_bytes(pickle.dumps(None))
    child.join()


def pipe_child(connection: Any) -> None:
    while (message := pickle.loads(connection.recv_bytes())) is not None:
        connection.send_bytes(pickle.dumps(touch(message[1]), protocol=5))


# ---------------------------------------------------------------------- measuring


def compare(rounds: int) -> bool:
    """Print the table; whether all targets are met."""
    print(f"{'':20} {'':14} {'per batch':>12} {'per item':>10} {'CPU of sender':>14} {'times ours':>11}")
    met = True
    with tidegate() as one, queue() as two, pipe() as three:
        ways = {"tidegate": one, "Queue": two, "pickle, Pipe": three}
        for name, values in payloads().items():
            times, busy = measure(ways, values, rounds)
            for way in ways:
                # Of each turn, so that a slow stretch of the machine counts for both.
                ratio = median(theirs / ours for theirs, ours in zip(times[way], times["tidegate"], strict=True))
                middle, cpu = median(times[way]) * 1e6, median(busy[way]) * 1e6
                missed = way != "tidegate" and ratio < TARGETS[name]
                met = met and not missed
                print(
                    f"{name if way == 'tidegate' else '':20} {way:14} {middle:9.0f} us {middle / SIZE:7.2f} us "
                    f"{cpu:11.0f} us {ratio:11.2f}{f'  missed: {TARGETS[name]:g}' if missed else ''}"
                )
    return met


def measure(ways: dict[str, Trip], values: list[Any], rounds: int) -> tuple[dict[str, list[float]], ...]:
    """Seconds per batch of each way, turn for turn: in all, and of this process's CPU."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    busy: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way, trip in ways.items():
            trip(values)
            cpu, start = time.process_time(), time.perf_counter()
            for _ in range(TURN):
                assert len(trip(values)) == SIZE
            elapsed, used = time.perf_counter() - start, time.process_time() - cpu
            if turn:  # in the first, memory is new
                times[way].append(elapsed / TURN)
                busy[way].append(used / TURN)
    return times, busy


def show_the_only_copy() -> None:
    """How long stacking images into shared memory takes, and whether other threads run meanwhile."""
    values = payloads()["64 x 150 kB images"]
    arena = Arena(Segment.create())

    def once() -> float:
        start = time.perf_counter()
        arena.free(pack(values, arena, stack_dim=0).freed[0])
        return time.perf_counter() - start

    taken = median(once() for _ in range(200))
    print(f"packing {sum(v.nbytes for v in values) / 1e6:.1f} MB of images: {taken * 1e6:.0f} us")
    ended = threading.Event()

    def count(seconds: float) -> int:
        until, counted = time.perf_counter() + seconds, 0
        while time.perf_counter() < until:
            counted += 1
        return counted

    def keep_packing() -> None:
        while not ended.is_set():
            times.append(once())

    times: list[float] = []
    alone = count(0.5)
    thread = threading.Thread(target=keep_packing)
    thread.start()
    beside = count(0.5)
    ended.set()
    thread.join()
    print(
        f"a thread that counts does {beside / alone:.0%} of its work meanwhile; packing beside it: {median(times) * 1e6:.0f} us"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="turns of 20 batches each")
    parser.add_argument("--child", nargs=3, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        tidegate_child(*arguments.child)
        return
    print(f"Python {sys.version.split()[0]}, NumPy {np.__version__}, {os.cpu_count()} cores")
    met = compare(arguments.rounds)
    show_the_only_copy()
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
