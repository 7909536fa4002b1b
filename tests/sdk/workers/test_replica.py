import asyncio
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tidegate.workers import replica as replicas
from tidegate.workers.replica import MAX_FAILED_STARTS, Replica, restart_delay
from tidegate_batching import Batch, TidegateError, WorkerDied

DEATH = WorkerDied("it was its time")


class FakeWorker:
    """Starts when it is told to, dies when it is told to, and notes whether it is still there."""

    kind: Literal["process", "thread"] = "process"
    prefetch = False

    def __init__(self, number: int, *, slots: int = 2, replaceable: bool = True) -> None:
        self.pid = number
        self.slots = slots
        self.replaceable = replaceable
        self.completed = 0
        self.there = False
        self.killed = self.stopped = False
        self.ready: asyncio.Future[None] = asyncio.get_event_loop().create_future()
        self.died: Callable[[TidegateError], None] = lambda error: None

    async def start(self, died: Callable[[TidegateError], None]) -> None:
        self.there = True
        await self.ready
        self.died = died

    def die(self) -> None:
        self.there = False
        self.died(DEATH)

    def run(self, batch: Batch) -> None: ...

    def cancel(self, batch: Batch, index: int) -> None: ...

    async def stop(self) -> None:
        await asyncio.sleep(0)
        self.there = False
        self.stopped = True

    def kill(self) -> None:
        self.killed = True


class FakeBatcher:
    """The slots, and who runs in them; None for one that waits for its replacement, "gone" for one that does not."""

    def __init__(self) -> None:
        self.slots: list[FakeWorker | Literal["gone"] | None] = []

    def add_slot(self, start: Any, *, prefetch: bool, abandon: Any) -> int:
        self.slots.append(start.__self__)
        return len(self.slots) - 1

    def lose_slot(self, slot: int, error: TidegateError, *, replaced: bool) -> None:
        assert self.slots[slot] != "gone"
        # A slot that waits for its replacement may be given up, and nothing else.
        assert self.slots[slot] is not None or not replaced
        self.slots[slot] = None if replaced else "gone"

    def restore_slot(self, slot: int, start: Any, *, prefetch: bool, abandon: Any) -> None:
        assert self.slots[slot] is None
        self.slots[slot] = start.__self__


class Place:
    """A replica on fakes, in a loop that runs only when it is told to."""

    def __init__(self, *, replaceable: bool = True) -> None:
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.workers: list[FakeWorker] = []
        self.losses: list[BaseException] = []
        self.batcher = FakeBatcher()

        def make() -> FakeWorker:
            assert not any(worker.there for worker in self.workers), "two workers in one place"
            self.workers.append(FakeWorker(len(self.workers), replaceable=replaceable))
            return self.workers[-1]

        self.replica = Replica("f", "cpu", make, self.losses.append)
        self.started = self.loop.create_task(self.replica.start())
        self.leaving: asyncio.Task[None] | None = None
        self.leave = self.loop.create_future()
        self.attached: asyncio.Task[None] | None = None
        self.settle()

    def settle(self) -> None:
        """Until nothing happens by itself any more."""

        async def turns() -> None:
            for _ in range(50):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    def attach(self) -> None:
        async def attached() -> None:
            async with asyncio.TaskGroup() as tasks:
                self.replica.attach(self.batcher, tasks)  # type: ignore[arg-type]
                await self.leave

        self.attached = self.loop.create_task(attached())
        self.settle()

    def stop(self) -> None:
        self.replica.leave()
        self.leave.set_result(None)
        self.settle()
        self.leaving = self.loop.create_task(self.replica.stop())
        self.settle()

    @property
    def worker(self) -> FakeWorker:
        return self.workers[-1]

    @property
    def state(self) -> str:
        return self.replica.status().state

    def close(self) -> None:
        asyncio.set_event_loop(None)
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.settle()
        self.loop.close()


@pytest.fixture(autouse=True)
def no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "restart_delay", lambda failures: 0.0)


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    place.worker.ready.set_result(None)
    place.settle()
    place.attach()
    yield place
    place.close()


# ---------------------------------------------------------------------- one story at a time


def test_a_worker_that_dies_is_replaced_in_its_slots_when_the_new_one_is_ready(place: Place) -> None:
    first = place.worker
    assert place.batcher.slots == [first, first]
    first.die()
    assert place.batcher.slots == [None, None]
    place.settle()
    second = place.worker
    assert second is not first
    assert (place.state, place.batcher.slots) == ("restarting", [None, None])
    second.ready.set_result(None)
    place.settle()
    assert (place.state, place.batcher.slots) == ("ready", [second, second])
    assert (place.replica.status().restarts, place.replica.status().pid) == (1, 1)
    assert place.replica.alive


def test_a_worker_that_dies_before_it_is_attached_is_replaced_too() -> None:
    place = Place()
    first = place.worker
    first.ready.set_result(None)
    place.settle()
    first.die()
    place.attach()
    assert place.state == "restarting"
    assert place.worker is not first
    place.worker.ready.set_result(None)
    place.settle()
    assert place.batcher.slots == [place.worker, place.worker]
    place.close()


def test_a_start_that_fails_is_tried_again_when_what_it_left_has_ended(place: Place) -> None:
    place.worker.die()
    place.settle()
    for _ in range(MAX_FAILED_STARTS - 1):
        failing = place.worker
        failing.ready.set_exception(OSError("no weights"))
        place.settle()
        assert failing.killed
        assert failing.stopped
        assert place.worker is not failing
    place.worker.ready.set_result(None)
    place.settle()
    assert place.state == "ready"
    assert not place.losses


def test_after_so_many_starts_that_failed_the_place_is_lost_for_good(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.worker.die()
    place.settle()
    for n in range(MAX_FAILED_STARTS):
        place.worker.ready.set_exception(OSError(f"no weights {n}"))
        place.settle()
    assert (place.state, place.batcher.slots) == ("lost", ["gone", "gone"])
    assert [str(loss) for loss in place.losses] == ["no weights 7"]
    assert len(place.workers) == 1 + MAX_FAILED_STARTS
    assert "no worker can be started on cpu any more" in caplog.text


def test_a_success_forgets_the_failed_starts_before_it(place: Place) -> None:
    for _ in range(3):
        place.worker.die()
        place.settle()
        for _ in range(MAX_FAILED_STARTS - 1):
            place.worker.ready.set_exception(OSError("no weights"))
            place.settle()
        place.worker.ready.set_result(None)
        place.settle()
    assert place.state == "ready"


def test_what_cannot_be_replaced_is_lost_with_its_slots_and_the_replica_is_not_alive() -> None:
    place = Place(replaceable=False)
    place.worker.ready.set_result(None)
    place.settle()
    place.attach()
    place.worker.die()
    place.settle()
    assert (place.state, place.batcher.slots, place.losses) == ("lost", ["gone", "gone"], [DEATH])
    assert not place.replica.alive
    assert len(place.workers) == 1
    place.close()


def test_stopping_stops_a_ready_worker_and_kills_no_one(place: Place) -> None:
    place.stop()
    assert place.worker.stopped
    assert not place.worker.killed
    assert place.state == "lost"


def test_stopping_a_worker_that_is_not_ready_kills_it() -> None:
    place = Place()
    place.started.cancel()
    place.settle()
    place.stop()
    assert place.worker.killed
    assert place.worker.stopped
    place.close()


def test_killing_waits_until_it_has_ended(place: Place) -> None:
    place.loop.run_until_complete(place.replica.kill())
    assert place.worker.killed
    assert place.worker.stopped
    assert place.state == "lost"


def test_stopping_while_a_new_worker_starts_ends_it_and_starts_no_other(place: Place) -> None:
    place.worker.die()
    place.settle()
    starting = place.worker
    place.stop()
    assert starting.killed
    assert starting.stopped
    assert place.leaving is not None
    assert place.leaving.done()
    assert len(place.workers) == 2


def test_a_worker_that_dies_while_the_place_is_being_left_is_not_replaced(place: Place) -> None:
    place.replica.leave()
    place.worker.die()
    place.settle()
    assert len(place.workers) == 1
    assert place.batcher.slots == ["gone", "gone"]
    assert not place.losses
    assert place.replica.alive


def test_what_a_former_worker_says_is_not_heard(place: Place) -> None:
    first = place.worker
    first.die()
    place.settle()
    place.worker.ready.set_result(None)
    place.settle()
    first.die()
    assert place.state == "ready"


def test_delays_grow_with_deaths_that_follow_each_other_without_a_batch_done(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def delay(failures: int) -> float:
        asked.append(failures)
        return 0.0

    monkeypatch.setattr(replicas, "restart_delay", delay)
    place = Place()
    for completed in (0, 0, 3, 0):
        place.worker.ready.set_result(None)
        place.settle()
        if place.attached is None:
            place.attach()
        place.worker.completed = completed
        place.worker.die()
        place.settle()
    assert asked == [1, 2, 0, 1]
    assert [restart_delay(n) for n in range(4)] == [0.0, 0.1, 0.2, 0.4]
    assert restart_delay(10_000) == 10.0
    place.close()


def test_the_starts_that_are_tried_take_about_as_long_as_is_said() -> None:
    assert math.isclose(sum(restart_delay(n) for n in range(MAX_FAILED_STARTS)), 12.7)


# ---------------------------------------------------------------------- all stories


class Stories(RuleBasedStateMachine):
    """Deaths, starts that fail and the end, in any order: a slot is live, waits for a start, or is gone for good."""

    def __init__(self) -> None:
        super().__init__()
        self.monkeypatch = pytest.MonkeyPatch()
        self.monkeypatch.setattr(replicas, "restart_delay", lambda failures: 0.0)
        logging.disable(logging.CRITICAL)
        self.place = Place()
        self.place.worker.ready.set_result(None)
        self.place.settle()
        self.stopped = False

    def teardown(self) -> None:
        self.place.close()
        self.monkeypatch.undo()
        logging.disable(logging.NOTSET)

    def waits(self) -> bool:
        worker = self.place.worker
        return worker.there and not worker.ready.done()

    def lives(self) -> bool:
        worker = self.place.worker
        return worker.there and worker.ready.done() and not worker.killed

    @rule()
    def time_passes(self) -> None:
        self.place.settle()

    @precondition(lambda self: self.place.attached is None)
    @rule()
    def attach(self) -> None:
        self.place.attach()

    @precondition(lambda self: self.waits())
    @rule(failing=st.booleans(), dies=st.booleans())
    def start_ends(self, failing: bool, dies: bool) -> None:
        worker = self.place.worker
        if failing:
            worker.ready.set_exception(OSError("no weights"))
        else:
            worker.ready.set_result(None)
        self.place.settle()
        if dies and not failing:
            worker.die()
            self.place.settle()

    @precondition(lambda self: self.lives())
    @rule(completed=st.booleans())
    def dies(self, completed: bool) -> None:
        self.place.worker.completed = int(completed)
        self.place.worker.die()
        self.place.settle()

    @precondition(lambda self: len(self.place.workers) > 1)
    @rule(data=st.data())
    def a_former_one_speaks(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.place.workers[:-1])).die()
        self.place.settle()

    @precondition(lambda self: self.place.attached is not None and not self.stopped)
    @rule()
    def stop(self) -> None:
        self.place.stop()
        self.stopped = True
        assert self.place.leaving is not None
        assert self.place.leaving.done()

    @invariant()
    def a_slot_is_live_or_waits_or_is_gone(self) -> None:
        place = self.place
        if place.attached is None:
            return
        assert not place.attached.done() or self.stopped
        assert len(set(map(id, place.batcher.slots))) == 1
        slot = place.batcher.slots[0]
        if self.stopped:
            assert place.state == "lost"
            assert not any(worker.there for worker in place.workers)
        elif slot == "gone":
            assert place.state == "lost"
            assert len(place.losses) == 1
        elif slot is None:
            assert place.state == "restarting"
            assert self.waits()
        else:
            assert place.state == "ready"
            assert slot is place.worker
            assert self.lives()

    @invariant()
    def only_the_newest_is_there(self) -> None:
        assert not any(worker.there for worker in self.place.workers[:-1])


Stories.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestStories = Stories.TestCase
