"""The shell: callers, waiters, slots and time, on both event loops."""

import asyncio
import gc
import random
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
from anyio.abc import TaskStatus

from tidegate_batching import (
    Batch,
    Batcher,
    Closed,
    DeadlineExceeded,
    HandlerError,
    InvalidInput,
    Item,
    Overloaded,
    Policy,
    TidegateError,
    Unavailable,
    WorkerDied,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


class Worker:
    """A slot that keeps its batches until the test ends them."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self._begun = anyio.Event()

    def start(self, batch: Batch) -> None:
        self.batches.append(batch)
        self._begun.set()
        self._begun = anyio.Event()

    async def begun(self, count: int) -> Batch:
        """Wait until that many batches were started; the last of them."""
        while len(self.batches) < count:
            await self._begun.wait()
        return self.batches[count - 1]


class Callers:
    """Tasks that submit, and what became of them."""

    def __init__(self, tasks: anyio.abc.TaskGroup, batcher: Batcher[Any, Any]) -> None:
        self._tasks = tasks
        self._batcher = batcher
        self.results: dict[Any, Any] = {}
        self._scopes: dict[Any, anyio.CancelScope] = {}

    def submit(self, value: Any, **options: Any) -> None:
        """Submit soon; on trio callers that do so in one turn come in any order."""
        self._scopes[value] = anyio.CancelScope()
        self._tasks.start_soon(self._submit, value, options)

    async def queue(self, value: Any, **options: Any) -> None:
        """Submit now."""
        self._scopes[value] = anyio.CancelScope()
        await self._tasks.start(self._submit, value, options)

    def cancel(self, value: Any) -> None:
        self._scopes[value].cancel()

    async def _submit(
        self, value: Any, options: dict[str, Any], *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        task_status.started()
        with self._scopes[value]:
            try:
                self.results[value] = await self._batcher.submit(value, **options)
            except TidegateError as error:
                self.results[value] = error
            return
        self.results[value] = "cancelled"


def doubled(batch: Batch) -> list[Any]:
    return [2 * value for value in batch.values]


async def double(values: list[int]) -> list[int]:
    return [2 * value for value in values]


async def test_callers_that_arrive_together_share_a_batch_and_get_their_own_answers() -> None:
    async with Batcher[int, int](Policy(max_batch_size=16)) as batcher, anyio.create_task_group() as tasks:
        batcher.add_function(double)
        callers = Callers(tasks, batcher)
        for value in range(16):
            callers.submit(value)
    assert callers.results == {value: 2 * value for value in range(16)}
    assert batcher.statistics().batch_sizes == {16: 1}
    assert batcher.statistics().outcomes == {"ok": 16}


async def test_everything_that_became_readable_in_one_turn_joins_an_idle_workers_batch() -> None:
    worker = Worker()
    async with Batcher[int, int](Policy(max_batch_size=16, batch_timeout=0)) as batcher:
        batcher.add_slot(worker.start)
        async with anyio.create_task_group() as tasks:
            callers = Callers(tasks, batcher)
            for value in range(5):
                callers.submit(value)
            (await worker.begun(1)).complete(range(5))
    assert [len(batch.items) for batch in worker.batches] == [5]


async def test_what_arrives_while_the_worker_is_busy_runs_together_next() -> None:
    worker = Worker()
    async with Batcher[int, int](Policy(max_batch_size=16, batch_timeout=0)) as batcher:
        batcher.add_slot(worker.start)
        async with anyio.create_task_group() as tasks:
            callers = Callers(tasks, batcher)
            callers.submit(1)
            first = await worker.begun(1)
            for value in (2, 3, 4):
                await callers.queue(value)
            assert len(worker.batches) == 1
            first.complete(doubled(first))
            second = await worker.begun(2)
            assert second.values == [2, 3, 4]
            second.complete(doubled(second))
    assert callers.results == {1: 2, 2: 4, 3: 6, 4: 8}


async def test_a_window_releases_a_batch_that_is_not_full() -> None:
    async with Batcher[int, int](Policy(max_batch_size=16, batch_timeout=0.005)) as batcher:
        batcher.add_function(double)
        assert await batcher.submit(1) == 2
    assert batcher.statistics().released == {"window": 1}


async def test_a_handlers_exception_reaches_the_caller_as_handler_error_with_its_cause() -> None:
    async def fail(values: list[int]) -> list[int]:
        raise LookupError("no such speaker")

    async with Batcher[int, int](Policy()) as batcher:
        batcher.add_function(fail)
        with pytest.raises(HandlerError, match="LookupError: no such speaker") as caught:
            await batcher.submit(1)
    assert isinstance(caught.value.__cause__, LookupError)


async def test_one_poisoned_item_of_64_fails_alone_within_13_calls() -> None:
    sizes: list[int] = []

    async def fail_on_seven(values: list[int]) -> list[int]:
        sizes.append(len(values))
        if 7 in values:
            raise ValueError("seven")
        return values

    async with Batcher[int, int](Policy(max_batch_size=64)) as batcher:
        batcher.add_function(fail_on_seven)
        async with anyio.create_task_group() as tasks:
            callers = Callers(tasks, batcher)
            for value in range(64):
                callers.submit(value)
    assert isinstance(callers.results.pop(7), HandlerError)
    assert callers.results == {value: value for value in range(64) if value != 7}
    assert len(sizes) <= 13


async def test_a_worker_that_cannot_start_a_batch_fails_the_batch_and_not_the_service() -> None:
    def refuse(batch: Batch) -> None:
        raise OSError("the pipe is gone")

    async with Batcher[int, int](Policy()) as batcher:
        batcher.add_slot(refuse)
        with pytest.raises(HandlerError, match="the pipe is gone"):
            await batcher.submit(1)
        with pytest.raises(HandlerError, match="the pipe is gone"):
            await batcher.submit(2)


async def test_a_lost_slots_items_run_again_alone_on_its_replacement() -> None:
    old, new = Worker(), Worker()
    async with Batcher[int, int](Policy(max_batch_size=2, batch_timeout=60)) as batcher:
        slot = batcher.add_slot(old.start)
        async with anyio.create_task_group() as tasks:
            callers = Callers(tasks, batcher)
            for value in (1, 2):
                await callers.queue(value)
            lost = await old.begun(1)
            batcher.lose_slot(slot, WorkerDied(), replaced=True)
            batcher.restore_slot(slot, new.start)
            first = await new.begun(1)
            assert first.values == [1]
            # What the dead worker still says is not heard.
            lost.complete([-1, -1])
            first.complete([10])
            (await new.begun(2)).complete([20])
    assert callers.results == {1: 10, 2: 20}
    assert batcher.statistics().rerun == 2


async def test_without_any_worker_left_callers_hear_so_at_once() -> None:
    async with Batcher[int, int](Policy()) as batcher:
        slot = batcher.add_slot(Worker().start)
        batcher.lose_slot(slot, WorkerDied())
        with pytest.raises(Unavailable):
            await batcher.submit(1)


async def test_a_full_queue_refuses_at_once() -> None:
    worker = Worker()
    async with Batcher[int, int](Policy(max_queue_size=1)) as batcher:
        batcher.add_slot(worker.start)
        async with anyio.create_task_group() as tasks:
            callers = Callers(tasks, batcher)
            callers.submit(1)
            running = await worker.begun(1)
            callers.submit(2)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(Overloaded):
                await batcher.submit(3)
            running.complete([1])
            (await worker.begun(2)).complete([2])
    assert callers.results == {1: 1, 2: 2}


async def test_a_deadline_answers_the_caller_while_its_item_runs_on() -> None:
    worker = Worker()
    async with Batcher[int, int](Policy()) as batcher:
        batcher.add_slot(worker.start)
        with pytest.raises(DeadlineExceeded):
            await batcher.submit(1, timeout=0.01)
        assert worker.batches[0].items[0].cancelled
        worker.batches[0].complete([1])


async def test_cost_and_group_by_see_the_value_and_a_senseless_cost_is_the_callers_error() -> None:
    worker = Worker()
    policy = Policy(max_batch_size=8, max_batch_cost=10, batch_timeout=0)
    async with Batcher[float, float](policy, cost=lambda value: value, group_by=lambda value: value > 5) as batcher:
        batcher.add_slot(worker.start)
        async with anyio.create_task_group() as tasks:
            callers = Callers(tasks, batcher)
            for value in (1.0, 3.0, 4.0, 3.5, 6.0):
                await callers.queue(value)
            for count, expected in ((1, [1.0]), (2, [3.0, 4.0]), (3, [3.5]), (4, [6.0])):
                batch = await worker.begun(count)
                assert batch.values == expected
                batch.complete(batch.values)
        with pytest.raises(InvalidInput, match="cost"):
            await batcher.submit(float("nan"))
        with pytest.raises(InvalidInput, match="20"):
            await batcher.submit(20.0)


async def test_what_is_said_of_a_second_batch_is_heard_when_the_first_has_ended() -> None:
    worker = Worker()
    async with Batcher[int, int](Policy(batch_timeout=0)) as batcher:
        batcher.add_slot(worker.start, prefetch=True)
        async with anyio.create_task_group() as tasks:
            callers = Callers(tasks, batcher)
            # Three timed batches, so that the next is sent ahead.
            for value in range(1, 5):
                callers.submit(value)
                batch = await worker.begun(value)
                batch.prepared()
                batch.complete([value])
            callers.submit(5)
            running = await worker.begun(5)
            running.prepared()
            callers.submit(6)
            ahead = await worker.begun(6)
            ahead.complete([6])
            await anyio.wait_all_tasks_blocked()
            assert 6 not in callers.results
            running.complete([5])
    assert callers.results == {value: value for value in range(1, 7)}


# ---------------------------------------------------------------------- cancellation


async def test_a_cancelled_waiter_leaves_the_queue_before_it_runs() -> None:
    worker = Worker()
    async with Batcher[int, int](Policy(max_batch_size=2, batch_timeout=60)) as batcher:
        batcher.add_slot(worker.start)
        with anyio.move_on_after(0):
            await batcher.submit(1)
        assert batcher.statistics().waiting == 0
    assert not worker.batches
    assert batcher.statistics().outcomes == {"cancelled": 1}


async def test_a_caller_that_leaves_after_the_dispatch_takes_nothing_from_the_worker() -> None:
    worker = Worker()
    async with Batcher[str, str](Policy(max_batch_size=2, batch_timeout=60)) as batcher:
        batcher.add_slot(worker.start)
        async with anyio.create_task_group() as tasks:
            callers = Callers(tasks, batcher)
            await callers.queue("a")
            await callers.queue("b")
            batch = await worker.begun(1)
            callers.cancel("a")
            await anyio.wait_all_tasks_blocked()
            assert batch.values == ["a", "b"]
            batch.complete(batch.values)
    assert callers.results == {"a": "cancelled", "b": "b"}


async def test_cancelling_the_last_held_item_leaves_nothing_to_wait_for() -> None:
    worker = Worker()
    async with Batcher[int, int](Policy(max_batch_size=8, batch_timeout=0.005)) as batcher:
        batcher.add_slot(worker.start)
        async with anyio.create_task_group() as tasks:
            callers = Callers(tasks, batcher)
            callers.submit(1)
            await anyio.wait_all_tasks_blocked()
            callers.cancel(1)
        await anyio.sleep(0.01)  # past the window that had been opened
        assert not worker.batches
        async with anyio.create_task_group() as tasks:
            callers = Callers(tasks, batcher)
            callers.submit(2)
            (await worker.begun(1)).complete([2])
    assert callers.results == {2: 2}


@pytest.mark.parametrize("order", ["cancel first", "result first"])
async def test_a_cancellation_and_a_result_in_the_same_turn_end_the_caller_once(order: str) -> None:
    worker = Worker()
    async with Batcher[int, int](Policy(max_batch_size=2, batch_timeout=60)) as batcher:
        batcher.add_slot(worker.start)
        async with anyio.create_task_group() as tasks:
            callers = Callers(tasks, batcher)
            await callers.queue(1)
            await callers.queue(2)
            batch = await worker.begun(1)
            if order == "cancel first":
                callers.cancel(1)
                batch.complete([10, 20])
            else:
                batch.complete([10, 20])
                callers.cancel(1)
    assert callers.results[2] == 20
    assert callers.results[1] in ("cancelled", 10)
    assert sum(batcher.statistics().outcomes.values()) == 2


@pytest.mark.parametrize("turns", range(6))
async def test_cancelling_a_caller_after_any_number_of_turns_leaves_its_neighbours_alone(turns: int) -> None:
    """Each await between submit and result is a place where the cancellation may strike."""

    async def slow_double(values: list[int]) -> list[int]:
        await anyio.lowlevel.checkpoint()
        return [2 * value for value in values]

    async with Batcher[int, int](Policy(max_batch_size=3, batch_timeout=0)) as batcher:
        batcher.add_function(slow_double)
        async with anyio.create_task_group() as tasks:
            callers = Callers(tasks, batcher)
            for value in (1, 2, 3):
                callers.submit(value)
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            callers.cancel(2)
    assert callers.results[1] == 2
    assert callers.results[3] == 6
    assert callers.results[2] in ("cancelled", 4)
    assert batcher.statistics().waiting == 0


async def test_cancelling_the_drain_answers_everybody_who_still_waits() -> None:
    worker = Worker()
    async with anyio.create_task_group() as tasks:
        with anyio.move_on_after(0.01):
            async with Batcher[int, int](Policy(max_batch_size=2)) as batcher:
                batcher.add_slot(worker.start)
                callers = Callers(tasks, batcher)
                callers.submit(1)
                await worker.begun(1)
                callers.submit(2)
                await anyio.wait_all_tasks_blocked()
    assert all(isinstance(result, Closed) for result in callers.results.values())
    assert len(callers.results) == 2


async def test_an_exception_in_the_body_answers_everybody_who_still_waits() -> None:
    worker = Worker()
    async with anyio.create_task_group() as tasks:
        with pytest.raises(RuntimeError, match="the service broke"):
            async with Batcher[int, int](Policy()) as batcher:
                batcher.add_slot(worker.start)
                callers = Callers(tasks, batcher)
                callers.submit(1)
                await worker.begun(1)
                raise RuntimeError("the service broke")
    assert isinstance(callers.results[1], Closed)


# ---------------------------------------------------------------------- closing


async def test_leaving_answers_what_is_in_and_refuses_what_comes() -> None:
    worker = Worker()
    async with anyio.create_task_group() as tasks, Batcher[int, int](Policy()) as batcher:
        batcher.add_slot(worker.start)
        callers = Callers(tasks, batcher)
        callers.submit(1)
        batch = await worker.begun(1)

        async def late() -> None:
            with pytest.raises(Closed):
                await batcher.submit(2)
            batch.complete([7])

        tasks.start_soon(late)
    assert callers.results == {1: 7}


async def test_a_drain_with_a_time_limit_answers_the_rest_with_closed() -> None:
    worker = Worker()
    async with Batcher[int, int](Policy()) as batcher:
        batcher.add_slot(worker.start)
        async with anyio.create_task_group() as tasks:
            callers = Callers(tasks, batcher)
            callers.submit(1)
            batch = await worker.begun(1)
            assert not await batcher.drain(timeout=0.01)
        batch.complete([1])
    assert isinstance(callers.results[1], Closed)


# ---------------------------------------------------------------------- many


async def test_a_burst_of_mixed_fates_settles_everyone_once_and_leaves_nothing_behind() -> None:
    """100,000 items on asyncio, a tenth of that on trio: cancels, deadlines, failures, priorities, groups."""
    total = 100_000 if _on_asyncio() else 10_000
    before = _kept()
    rng = random.Random(7)
    ends: dict[int, int] = {}

    async def run(values: list[int]) -> Sequence[int | BaseException]:
        if rng.random() < 0.2:
            await anyio.lowlevel.checkpoint()
        if any(value % 997 == 0 for value in values):
            raise ValueError("poison")
        return [ValueError("lone") if value % 101 == 0 else value for value in values]

    policy = Policy(max_batch_size=64, max_queue_size=4096, batch_timeout="auto")
    async with Batcher[int, int](policy, group_by=lambda value: value % 3) as batcher:
        for _ in range(3):
            batcher.add_function(run)

        async def caller(values: range) -> None:
            for value in values:
                with anyio.CancelScope() as scope:
                    if value % 13 == 0:
                        scope.deadline = anyio.current_time() + rng.random() * 0.002
                    try:
                        timeout = rng.random() * 0.01 if value % 7 == 0 else None
                        assert await batcher.submit(value, priority=value % 8, timeout=timeout) == value
                    except TidegateError:
                        pass
                ends[value] = ends.get(value, 0) + 1

        step = total // 400
        async with anyio.create_task_group() as tasks:
            for first in range(0, total, step):
                tasks.start_soon(caller, range(first, first + step))
        statistics = batcher.statistics()
    assert len(ends) == total
    assert set(ends.values()) == {1}
    # A caller that was cancelled before it got to submit is not counted; nobody is counted twice.
    assert sum(statistics.outcomes.values()) == statistics.submitted <= total
    assert statistics.outcomes["handler-error"] >= total // 997
    assert statistics.waiting == statistics.running == 0
    assert _kept() <= before


async def test_an_idle_batcher_never_wakes_up() -> None:
    rings = 0
    async with Batcher[int, int](Policy(max_batch_size=8)) as batcher:
        batcher.add_function(double)
        await batcher.submit(1)
        await anyio.wait_all_tasks_blocked()
        turn: Callable[[], None] = batcher._turn

        def counted() -> None:
            nonlocal rings
            rings += 1
            turn()

        batcher._alarm._callback = counted  # type: ignore[attr-defined]
        await anyio.sleep(0.05)
        assert rings == 0
        assert await batcher.submit(2) == 4
        assert rings > 0


async def test_the_same_exception_for_a_whole_batch_does_not_grow_with_each_caller() -> None:
    depths: list[int] = []

    async def fail(values: list[int]) -> list[int]:
        raise ValueError("systemic")

    async with Batcher[int, int](Policy(max_batch_size=32)) as batcher:
        batcher.add_function(fail)

        async def caller(value: int) -> None:
            try:
                await batcher.submit(value)
            except HandlerError as error:
                depth, traceback = 0, error.__traceback__
                while traceback is not None:
                    depth, traceback = depth + 1, traceback.tb_next
                depths.append(depth)

        async with anyio.create_task_group() as tasks:
            for value in range(32):
                tasks.start_soon(caller, value)
    assert len(depths) == 32
    assert len(set(depths)) == 1


def _kept() -> int:
    """Items and batches that something still holds."""
    gc.collect()
    # By type and not isinstance, which would wake the lazy objects of other libraries.
    return sum(type(thing) in (Item, Batch) for thing in gc.get_objects())


def _on_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def test_an_exception_that_cannot_even_say_what_it_is_still_answers_its_caller() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError("no words")

    async def fail(values: list[int]) -> list[int]:
        raise Mute

    async with Batcher[int, int](Policy()) as batcher:
        batcher.add_function(fail)
        with pytest.raises(HandlerError, match="its __str__ raised ValueError"):
            await batcher.submit(1)


async def test_an_exception_with_hostile_attributes_answers_its_caller_and_spares_its_neighbours() -> None:
    class Lookup(Exception):
        def __getattr__(self, name: str) -> Any:
            raise KeyError(name)

    async def fail(values: list[int]) -> list[Any]:
        if len(values) == 1:
            raise Lookup
        return [Lookup() if value == 2 else value for value in values]

    async with Batcher[int, int](Policy(max_batch_size=3, batch_timeout=60)) as batcher:
        batcher.add_function(fail)
        async with anyio.create_task_group() as tasks:
            callers = Callers(tasks, batcher)
            for value in (1, 2, 3):
                await callers.queue(value)
    assert (callers.results.pop(1), callers.results.pop(3)) == (1, 3)
    assert isinstance(callers.results[2], HandlerError)


async def test_a_function_whose_inner_task_was_cancelled_fails_its_batch_and_the_slot_lives_on() -> None:
    async def fail(values: list[int]) -> list[int]:
        if values == [1]:
            raise asyncio.CancelledError
        return values

    async with Batcher[int, int](Policy(batch_timeout=0)) as batcher:
        batcher.add_function(fail)
        with pytest.raises(HandlerError, match="CancelledError"):
            await batcher.submit(1)
        assert await batcher.submit(2) == 2


async def test_an_answered_items_output_is_not_kept_behind_one_that_still_waits() -> None:
    class Output:
        pass

    kept: list[weakref.ref[Output]] = []

    async def answer(values: list[int]) -> list[Any]:
        outputs = [Output() for _ in values]
        kept.extend(map(weakref.ref, outputs))
        return outputs

    worker = Worker()
    async with Batcher[int, Any](Policy(batch_timeout=0)) as batcher:
        batcher.add_slot(worker.start)
        async with anyio.create_task_group() as tasks:
            callers = Callers(tasks, batcher)
            await callers.queue("slow", timeout=10)
            slow = await worker.begun(1)
            batcher.add_function(answer)
            for value in range(3):
                await batcher.submit(value, timeout=20)
            # What woke this task still holds the last one.
            await anyio.lowlevel.checkpoint()
            gc.collect()
            assert [reference() for reference in kept] == [None, None, None]
            slow.complete([1])


async def test_a_batch_that_fails_as_a_whole_is_told_even_if_its_items_succeed_later() -> None:
    told: list[tuple[int, str]] = []

    async def alone(values: list[int]) -> list[int]:
        if len(values) > 1:
            raise ValueError("too many")
        return values

    policy = Policy(max_batch_size=4, batch_timeout=1.0)
    with anyio.fail_after(10):
        async with Batcher[int, int](policy, failed=lambda size, error: told.append((size, str(error)))) as batcher:
            batcher.add_function(alone)
            async with anyio.create_task_group() as tasks:
                callers = Callers(tasks, batcher)
                for value in range(4):
                    callers.submit(value)
    assert callers.results == {n: n for n in range(4)}
    assert told[0] == (4, "too many")
    assert len(told) > 1


async def test_a_batcher_with_nothing_in_is_drained_also_where_there_is_no_time_left() -> None:
    async with Batcher[int, int](Policy()) as batcher:
        assert await batcher.drain(0)
