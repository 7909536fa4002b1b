"""The anyio shell around the scheduler: it owns the clock, the waiters and the slots, and decides nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import anyio
import anyio.abc

from tidegate_batching.backend import Alarm, Backend, current_backend
from tidegate_batching.errors import TidegateError
from tidegate_batching.item import Action, Dispatch, Item
from tidegate_batching.policy import Policy
from tidegate_batching.scheduler import Scheduler
from tidegate_batching.statistics import Recorder, Statistics

__all__ = ["Batch", "Batcher"]

T = TypeVar("T")
R = TypeVar("R")


class Batch:
    """What a worker gets: the values to run as one batch, and where to report. Report from the batcher's loop."""

    __slots__ = ("_batcher", "items", "slot")

    def __init__(self, batcher: Batcher[Any, Any], slot: int, items: list[Item]) -> None:
        self._batcher = batcher
        self.slot = slot
        self.items = items

    @property
    def values(self) -> list[Any]:
        """The items' values, in order."""
        return [item.value for item in self.items]

    def complete(self, result: Sequence[Any] | BaseException) -> None:
        """The batch ended: one output per item, an exception instance failing its item; or an exception for all."""
        self._batcher._completed(self.slot, result)


class Batcher(Generic[T, R]):
    """Many callers, one batch: `submit` waits for one item's result while items that arrive together run together.

    Slots are added by whoever owns the workers; `start` is called in the event loop with each `Batch` and must not
    block. Use as an async context manager: leaving it drains what is in.

    Example:
        >>> import anyio
        >>> async def double(values: list[int]) -> list[int]:
        ...     return [2 * value for value in values]
        >>> async def main() -> int:
        ...     async with Batcher[int, int](Policy(max_batch_size=8)) as batcher:
        ...         batcher.add_function(double)
        ...         return await batcher.submit(21)
        >>> anyio.run(main)
        42
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._scheduler = Scheduler(policy)
        self._recorder = Recorder()
        self._slots: list[Callable[[Batch], None]] = []
        self._backend: Backend
        self._alarm: Alarm
        self._tasks: anyio.abc.TaskGroup
        self._drained: anyio.Event

    async def __aenter__(self) -> Self:
        self._backend = current_backend()
        self._drained = anyio.Event()
        self._tasks = await anyio.create_task_group().__aenter__()
        self._alarm = self._backend.alarm(self._turn, self._tasks)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if kind is None:
            await self.drain()
        self._tasks.cancel_scope.cancel()
        return await self._tasks.__aexit__(kind, error, traceback)

    def add_slot(self, start: Callable[[Batch], None]) -> int:
        """Add a place for one batch at a time; `start(batch)` begins to run it and returns at once."""
        slot = len(self._slots)
        self._slots.append(start)
        self._apply(self._scheduler.slot_ready(slot, self._backend.now()))
        return slot

    def add_function(self, function: Callable[[list[T]], Awaitable[Sequence[R | BaseException]]]) -> int:
        """Add a slot that awaits `function(values)` in a task of its own."""
        batches: list[Batch] = []
        wanted = anyio.Event()

        def start(batch: Batch) -> None:
            batches.append(batch)
            wanted.set()

        async def run() -> None:
            nonlocal wanted
            while True:
                await wanted.wait()
                wanted = anyio.Event()
                batch = batches.pop()
                try:
                    result: Sequence[R | BaseException] | Exception = await function(batch.values)
                except Exception as error:  # noqa: BLE001 - whatever it raises is its batch's answer
                    result = error
                batch.complete(result)

        self._tasks.start_soon(run)
        return self.add_slot(start)

    async def submit(self, value: T, *, priority: int = 3, group: Hashable = None) -> R:
        """Queue one item and wait for its result; cancelling the wait takes the item out again.

        priority: 0 (first) to 7. group: only items of an equal group share a batch.
        Raises a `TidegateError`: `Overloaded`, `Closed`, `HandlerError` with the handler's exception as cause…
        """
        result: R = await self.run(Item(value, priority=priority, group=group))
        return result

    async def run(self, item: Item) -> Any:
        """`submit` for a caller that wants to see the item's times and batch size afterwards."""
        waiter = item.waiter = self._backend.waiter()
        self._recorder.submitted += 1
        self._apply(self._scheduler.submit(item, self._backend.now()))
        try:
            outcome = await waiter
        except BaseException:
            self._apply(self._scheduler.cancel(item, self._backend.now()))
            raise
        if outcome.error is not None:
            # One exception may answer a whole batch: without this each raise would grow the shared traceback.
            raise outcome.error.with_traceback(None)
        return outcome.value

    def statistics(self) -> Statistics:
        """A frozen snapshot of counters and batch sizes."""
        return self._recorder.snapshot(queued=self._scheduler.queued, running=self._scheduler.running)

    async def drain(self) -> None:
        """Refuse new items and wait until every one that is in has been answered."""
        self._apply(self._scheduler.close(self._backend.now()))
        await self._drained.wait()

    def lose_slot(self, slot: int, error: TidegateError) -> None:
        """The slot's worker is gone for good; the items it ran fail with `error`."""
        self._apply(self._scheduler.slot_lost(slot, error, self._backend.now()))

    # ------------------------------------------------------------------ plumbing

    def _completed(self, slot: int, result: Sequence[Any] | BaseException) -> None:
        self._apply(self._scheduler.complete(slot, result, self._backend.now()))

    def _turn(self) -> None:
        self._apply(self._scheduler.tick(self._backend.now()))

    def _apply(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Dispatch):
                self._recorder.dispatched(action)
                self._slots[action.slot](Batch(self, action.slot, action.items))
            else:
                self._recorder.settled(action)
                waiter = action.item.waiter
                if waiter is not None and not waiter.done():
                    waiter.set_result(action.outcome)
        self._alarm.set(self._scheduler.wake_at())
        if self._scheduler.drained:
            self._drained.set()
