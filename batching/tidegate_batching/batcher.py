"""The anyio shell around the scheduler: it owns the clock, the waiters and the slots, and decides nothing."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import anyio
import anyio.abc

from tidegate_batching.backend import Alarm, Backend, Recipient, current_backend
from tidegate_batching.errors import InvalidInput, Overloaded, TidegateError, from_foreign
from tidegate_batching.item import Action, Dispatch, Item, Outcome
from tidegate_batching.policy import Policy
from tidegate_batching.scheduler import Scheduler
from tidegate_batching.statistics import Recorder, Statistics
from tidegate_batching.stream import Stream

__all__ = ["Batch", "Batcher"]

T = TypeVar("T")
R = TypeVar("R")


class Batch:
    """What a worker gets: the values to run as one batch, and where to report. Report from the batcher's loop.

    Reports on a batch whose slot was lost, or that was completed already, are ignored.
    """

    __slots__ = ("_batcher", "_early", "items", "slot", "values")

    def __init__(self, batcher: Batcher[Any, Any], slot: int, items: list[Item]) -> None:
        self._batcher = batcher
        self._early: Sequence[Any] | BaseException | None = None
        self.slot = slot
        self.items = items
        # Taken now: an item whose caller goes away gives its value up, and the worker may not have looked yet.
        self.values: list[Any] = [item.value for item in items]

    @classmethod
    def of(cls, values: Iterable[Any]) -> Self:
        """A batch of no batcher, for warming up and for tests: there is nobody to report to."""
        batch = cls.__new__(cls)
        batch.items = [Item(value) for value in values]
        batch.values = [item.value for item in batch.items]
        return batch

    def prepared(self) -> None:
        """The batch is ready to run; said by workers that prepare one batch while another runs."""
        self._batcher._prepared(self)

    def chunk(self, index: int, value: Any, nbytes: int = 64) -> bool:
        """Send the next chunk of one item's stream; whether its reader keeps up.

        nbytes: about what the chunk takes in memory. After False a worker either waits (`when_drained`) or ends the
        item with `SlowReader`. Chunks for an item that has ended are dropped.
        """
        return self._batcher._chunk(self, self.items[index], value, nbytes)

    def when_drained(self, index: int, callback: Callable[[], None]) -> None:
        """Call back once when the item's reader has caught up, or is gone."""
        waiter = self.items[index].waiter
        if isinstance(waiter, Stream) and not waiter.done():
            waiter.when_drained(callback)
        else:
            callback()

    def finish(self, index: int, error: BaseException | None = None) -> None:
        """One item's stream has ended, well or with an error, before the batch."""
        self._batcher._finished(self, self.items[index], error)

    @property
    def abandoned(self) -> bool:
        """Nobody waits for any of its items any more. May be read from any thread."""
        return all(item.cancelled for item in self.items)

    def complete(self, result: Sequence[Any] | BaseException) -> None:
        """The batch ended: one output per item, an exception instance failing its item; or an exception for all.

        What is said of a slot's second batch is heard when its first has ended.
        """
        self._batcher._completed(self, result)


class Batcher(Generic[T, R]):
    """Many callers, one batch: `submit` waits for one item's result while items that arrive together run together.

    policy: the limits. cost: an item's cost, against `policy.max_batch_cost`. group_by: only items for which it gives
    an equal, hashable value share a batch. failed: told how many items a batch had that failed as a whole, and why;
    what becomes of them may hide it.

    Whoever owns the workers adds slots. Use as an async context manager: leaving it drains what is in.

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

    def __init__(
        self,
        policy: Policy,
        *,
        cost: Callable[[T], float] | None = None,
        group_by: Callable[[T], Hashable] | None = None,
        failed: Callable[[int, BaseException], None] | None = None,
    ) -> None:
        self.policy = policy
        self._failed = failed
        self._cost = cost
        self._group_by = group_by
        self._scheduler = Scheduler(policy)
        self._recorder = Recorder()
        self._starts: list[Callable[[Batch], None]] = []
        self._abandons: list[Callable[[Batch, int], None] | None] = []
        self._flights: list[deque[Batch]] = []
        self._closing = False
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
    ) -> None:
        try:
            if kind is None:
                await self.drain()
        finally:
            # Callers may wait in tasks that nobody here will cancel: each of them gets an answer.
            self._apply(self._scheduler.abort(self._backend.now()))
            self._alarm.cancel()
            self._tasks.cancel_scope.cancel()
            # The body's exception passes by the task group, which would wrap it.
            await self._tasks.__aexit__(None, None, None)

    # ------------------------------------------------------------------ for callers

    def submit(self, value: T, *, priority: int = 3, timeout: float | None = None) -> Coroutine[Any, Any, R]:
        """Queue one item and wait for its result; cancelling the wait takes the item out again.

        priority: 0 (first) to 7. timeout: seconds until `DeadlineExceeded`, queueing and running together.
        Raises a `TidegateError`: `Overloaded`, `Closed`, `HandlerError` with the handler's exception as its cause…
        """
        # No coroutine of its own: each one between the caller and the waiter is resumed once more per item.
        return self.run(self.item(value, priority=priority, timeout=timeout))

    def item(self, value: T, *, priority: int = 3, timeout: float | None = None, nbytes: int = 0) -> Item:
        """An item for `run`, with its cost and group; raises what `cost` and `group_by` raise."""
        cost = 1.0
        if self._cost is not None:
            cost = self._cost(value)
            if not (math.isfinite(cost) and cost >= 0):
                raise InvalidInput(f"cost() gave {cost!r} for this input: it must be finite and not negative")
        return Item(
            value,
            priority=priority,
            deadline=math.inf if timeout is None else self._backend.now() + timeout,
            cost=cost,
            nbytes=nbytes,
            group=None if self._group_by is None else self._group_by(value),
        )

    async def run(self, item: Item) -> Any:
        """`submit` for callers that want to see the item's times and batch size afterwards."""
        waiter = self._backend.waiter()
        self.post(item, waiter)
        try:
            outcome = await waiter
        except BaseException:
            self.withdraw(item)
            raise
        if outcome.error is not None:
            # One exception may answer a whole batch: without this each raise would grow the shared traceback.
            raise outcome.error.with_traceback(None)
        return outcome.value

    def post(self, item: Item, waiter: Recipient) -> None:
        """`run` without a coroutine, for who has thousands under way: `waiter.set_result(outcome)` is called once.

        From the loop, and from within this call if the item is refused. Who does not want to know any more says
        `withdraw`.
        """
        item.waiter = waiter
        self._recorder.submitted += 1
        actions = self._scheduler.submit(item, self._backend.now())
        if actions:
            self._apply(actions)
        elif self._scheduler.due or item.deadline < self._alarm.when:
            self._alarm.set(self._scheduler.wake_at())

    def offer(self, item: Item, waiter: Recipient, *, arrived_at: float | None = None) -> bool:
        """`post` for a job, which waits where others are refused: False, and nobody is told, if the queue is full.

        arrived_at: on the batcher's clock, if the item came earlier than now; `batch_timeout` counts from then.
        """
        item.waiter = waiter
        actions = self._scheduler.submit(item, self._backend.now())
        # Without a number it has not been let in, and why is all that is said.
        if actions and not item.sequence and any(_is_full(action) for action in actions):
            return False
        self._recorder.submitted += 1
        if arrived_at is not None:
            item.arrived_at = arrived_at
        if actions:
            self._apply(actions)
        elif self._scheduler.due or item.deadline < self._alarm.when:
            self._alarm.set(self._scheduler.wake_at())
        return True

    def close(self) -> None:
        """Nobody else will come: what waits goes now, full or not."""
        self._apply(self._scheduler.close(self._backend.now()))

    @property
    def is_over(self) -> bool:
        """Whether there is no worker, and none to come."""
        return self._scheduler.is_over

    def withdraw(self, item: Item) -> None:
        """Take an item out again, wherever it is; nothing happens if it has been settled."""
        self._apply(self._scheduler.cancel(item, self._backend.now()))
        item.value = item.waiter = None
        self._abandon(item)

    def stream(self, item: Item) -> Stream[Any]:
        """Queue an item whose handler sends chunks, and read them as they come."""

        stream: Stream[Any] = Stream(self._backend, partial(self.withdraw, item), item)
        item.waiter = stream
        self._recorder.submitted += 1
        self._apply(self._scheduler.submit(item, self._backend.now()))
        return stream

    def statistics(self) -> Statistics:
        """A frozen snapshot of counters, sizes and times."""
        return self._recorder.snapshot(waiting=self._scheduler.waiting, running=self._scheduler.running)

    async def drain(self, timeout: float | None = None) -> bool:
        """Refuse new items and wait until every one that is in has been answered.

        timeout: seconds after which the rest is answered with `Closed`; then the result is False.
        """
        self._closing = True
        self.close()
        if self._drained.is_set():
            return True  # also where there is no time left: to wait, however shortly, would be cancelled
        with anyio.move_on_after(timeout):
            await self._drained.wait()
            return True
        self._apply(self._scheduler.abort(self._backend.now()))
        return False

    # ------------------------------------------------------------------ for the owner of the workers

    def add_slot(
        self,
        start: Callable[[Batch], None],
        *,
        prefetch: bool = False,
        abandon: Callable[[Batch, int], None] | None = None,
    ) -> int:
        """Add a place for one batch at a time; `start(batch)` begins to run it and returns at once.

        prefetch: the worker prepares a second batch while one runs, and says when with `Batch.prepared`.
        abandon: told the batch and the index of a running item for which nobody waits any more.
        """
        self._starts.append(start)
        self._abandons.append(abandon)
        self._flights.append(deque())
        slot = len(self._starts) - 1
        self._apply(self._scheduler.slot_ready(slot, self._backend.now(), prefetch=prefetch))
        return slot

    def lose_slot(self, slot: int, error: TidegateError, *, replaced: bool = False) -> None:
        """The slot's worker died; `error` is for items that died alone. replaced: `restore_slot` will follow."""
        self._flights[slot].clear()
        self._apply(self._scheduler.slot_lost(slot, error, self._backend.now(), replaced=replaced))

    def restore_slot(
        self,
        slot: int,
        start: Callable[[Batch], None],
        *,
        prefetch: bool = False,
        abandon: Callable[[Batch, int], None] | None = None,
    ) -> None:
        """A lost slot has a new worker."""
        self._starts[slot] = start
        self._abandons[slot] = abandon
        self._apply(self._scheduler.slot_ready(slot, self._backend.now(), prefetch=prefetch))

    def add_function(self, function: Callable[[list[T]], Awaitable[Sequence[R | BaseException]]]) -> int:
        """Add a slot that awaits `function(values)` in a task of its own."""
        send, receive = anyio.create_memory_object_stream[Batch](1)

        async def run() -> None:
            async with receive, send:
                async for batch in receive:
                    try:
                        result: Sequence[R | BaseException] | BaseException = await function(batch.values)
                    except BaseException as error:
                        if self._tasks.cancel_scope.cancel_called:
                            raise
                        result = error
                    batch.complete(result)
                    # Nothing of the last batch may live on while the slot waits for the next.
                    del batch, result

        self._tasks.start_soon(run)
        return self.add_slot(send.send_nowait)

    # ------------------------------------------------------------------ plumbing

    def _prepared(self, batch: Batch) -> None:
        if batch in self._flights[batch.slot]:
            self._apply(self._scheduler.prepared(batch.slot, self._backend.now()))

    def _chunk(self, batch: Batch, item: Item, value: Any, nbytes: int) -> bool:
        stream = item.waiter
        if batch not in self._flights[batch.slot] or item.cancelled or not isinstance(stream, Stream):
            return True
        if not item.started:
            self._scheduler.started(item, self._backend.now())
        stream.push(value, nbytes)
        return not stream.full

    def _finished(self, batch: Batch, item: Item, error: BaseException | None) -> None:
        if batch in self._flights[batch.slot]:
            outcome = Outcome(error=None if error is None else from_foreign(error))
            self._apply(self._scheduler.finish(item, outcome, self._backend.now()))

    def _completed(self, batch: Batch, result: Sequence[Any] | BaseException) -> None:
        flights = self._flights[batch.slot]
        if batch not in flights:
            return
        if flights[0] is not batch:
            batch._early = result
            return
        flights.popleft()
        following = flights[0] if flights else None
        # The readers of a stream that has begun are told; of a batch that will be tried again nobody else would hear.
        if self._failed is not None and isinstance(result, BaseException) and not any(i.started for i in batch.items):
            self._failed(len(batch.items), result)
        self._apply(self._scheduler.complete(batch.slot, result, self._backend.now()))
        if following is not None and following._early is not None:
            self._completed(following, following._early)

    def _abandon(self, item: Item) -> None:
        """Tell the worker, if one runs it now: the batch is looked for here, since few items are ever cancelled."""
        for flights, abandon in zip(self._flights, self._abandons, strict=True):
            if abandon is None:
                continue
            for batch in flights:
                if item in batch.items:
                    abandon(batch, batch.items.index(item))

    def _turn(self) -> None:
        self._apply(self._scheduler.tick(self._backend.now()))

    def _apply(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Dispatch):
                self._start(action)
            else:
                item, outcome = action
                self._recorder.settled(item, outcome.error)
                if outcome.error is not None and item.dispatched_at:
                    self._abandon(item)
                waiter = item.waiter
                if waiter is not None and not waiter.done():
                    waiter.set_result(outcome)
                    # The heap of deadlines may keep the item a while; what came with it need not live as long.
                    item.value = item.waiter = None
        self._alarm.set(self._scheduler.wake_at())
        if self._closing and self._scheduler.drained:
            self._drained.set()

    def _start(self, dispatch: Dispatch) -> None:
        self._recorder.dispatched(dispatch)
        batch = Batch(self, dispatch.slot, dispatch.items)
        self._flights[dispatch.slot].append(batch)
        try:
            self._starts[dispatch.slot](batch)
        except Exception as error:  # noqa: BLE001 - a worker that cannot start a batch fails that batch, not the rest
            batch.complete(error)


def _is_full(action: Action) -> bool:
    return not isinstance(action, Dispatch) and isinstance(action.outcome.error, Overloaded)
