import asyncio
from collections.abc import Callable
from typing import Any

import anyio
import numpy as np
import pytest

from tidegate import END, SKIP, SlowReader
from tidegate.context import RequestInfo
from tidegate.workers.delivery import Delivery, _nbytes
from tidegate_batching import Batch, Item

pytestmark = pytest.mark.anyio


class NotedBatch(Batch):
    """Notes what each item is told; its readers are full when the test says so."""

    def __init__(self, size: int, info: RequestInfo | None = None) -> None:
        self.items = [Item(n) for n in range(size)]
        self.items[0].info = info
        self.told: list[list[Any]] = [[] for _ in range(size)]
        self.full: set[int] = set()
        self.waiting: list[Callable[[], None]] = []
        self.ended = asyncio.Event()

    def chunk(self, index: int, value: Any, nbytes: int = 64) -> bool:
        self.told[index].append(value)
        return index not in self.full

    def finish(self, index: int, error: BaseException | None = None) -> None:
        self.told[index].append(("end", type(error).__name__ if error else None))
        self.ended.set()

    def when_drained(self, index: int, callback: Callable[[], None]) -> None:
        self.waiting.append(callback)

    def drain(self) -> None:
        for callback in self.waiting:
            callback()
        self.waiting.clear()


class Steps:
    """Counts the steps that the worker may make."""

    def __init__(self) -> None:
        self.released = 0

    def release(self) -> None:
        self.released += 1


async def test_a_row_gives_each_item_its_chunk_its_end_its_error_or_nothing() -> None:
    batch, steps = NotedBatch(4), Steps()
    Delivery(batched=True).deliver(batch, ["a", END, SKIP, KeyError("x")], steps.release)
    assert batch.told == [["a"], [("end", None)], [], [("end", "KeyError")]]
    assert steps.released == 1


async def test_a_slow_reader_of_a_batch_is_ended_and_holds_nobody_back() -> None:
    batch, steps = NotedBatch(2), Steps()
    batch.full = {0}
    Delivery(batched=True).deliver(batch, ["a", "b"], steps.release)
    assert batch.told == [["a", ("end", "SlowReader")], ["b"]]
    assert steps.released == 1


async def test_an_unbatched_generator_gets_no_step_before_its_reader_has_caught_up() -> None:
    batch, steps = NotedBatch(1), Steps()
    delivery = Delivery(batched=False)
    batch.full = {0}
    # Those that were on their way already are held as well, behind one and the same wait.
    for chunk in "abc":
        delivery.deliver(batch, [chunk], steps.release)
    assert (batch.told, steps.released, len(batch.waiting)) == ([["a", "b", "c"]], 0, 1)
    batch.full = set()
    batch.drain()
    assert steps.released == 3
    delivery.deliver(batch, ["d"], steps.release)
    assert steps.released == 4


async def test_a_reader_may_fall_behind_again() -> None:
    batch, steps = NotedBatch(1), Steps()
    delivery = Delivery(batched=False)
    batch.full = {0}
    for round_ in range(1, 4):
        delivery.deliver(batch, ["a"], steps.release)
        assert steps.released == round_ - 1
        batch.drain()
        assert steps.released == round_


async def test_patience_ends_the_item_and_a_reader_that_comes_back_in_time_stops_the_clock() -> None:
    batch, steps = NotedBatch(1, RequestInfo(patience=0.01)), Steps()
    delivery = Delivery(batched=False)
    batch.full = {0}
    delivery.deliver(batch, ["a"], steps.release)
    batch.drain()
    await asyncio.sleep(0.03)
    assert not batch.ended.is_set()
    delivery.deliver(batch, ["b"], steps.release)
    with anyio.fail_after(10):
        await batch.ended.wait()
    assert batch.told == [["a", "b", ("end", SlowReader.__name__)]]


async def test_a_chunk_counts_for_about_what_it_takes() -> None:
    assert _nbytes(np.zeros(1000)) == 8000
    assert _nbytes(b"x" * 1000) == 1064
    assert _nbytes("x" * 1000) == 1064
    assert 0 < _nbytes({"a": 1}) < 1000
