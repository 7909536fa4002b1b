"""Every way through the scheduler that hypothesis can think of, against a model that keeps its own books.

The model knows what each call did and where each item stands; it never asks the scheduler why. More examples:
`TIDEGATE_MACHINE_EXAMPLES=20000 pytest tests/batching/test_scheduler_machine.py`.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf, nan
from typing import Any, Literal

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tidegate_batching.errors import (
    BatchSizeMismatch,
    Cancelled,
    Closed,
    DeadlineExceeded,
    HTTPError,
    OutOfMemory,
    Overloaded,
    TidegateError,
    TooCostly,
    Unavailable,
    WorkerDied,
    alike,
    from_foreign,
)
from tidegate_batching.item import Action, Dispatch, Item, Outcome, Release, Settle, State
from tidegate_batching.linger import CEILING
from tidegate_batching.policy import Policy
from tidegate_batching.scheduler import UNDATED, Scheduler

EPSILON = 1e-6
"""Seconds; a clock that reads 1e6 cannot tell less."""

Kind = Literal["good", "poison", "other poison", "flagged", "killer"]


class Poison(ValueError): ...


class OtherPoison(KeyError): ...


@dataclass(eq=False)
class Family:
    """A fresh batch and everything that was run again because of it."""

    size: int
    calls: list["Call"] = field(default_factory=list)


@dataclass(eq=False)
class Call:
    """One batch that a worker got."""

    slot: int
    items: list[Item]
    family: Family
    error: TidegateError | None = None
    died: bool = False
    streamed: bool = False
    flagged: frozenset[Item] = frozenset()


@dataclass(eq=False)
class Worker:
    """The other side of one slot."""

    alive: bool = True
    gone: bool = False
    calls: list[Call] = field(default_factory=list)


@dataclass(eq=False)
class Entry:
    """What the model knows of one item."""

    kind: Kind
    sequence: int = 0
    key: tuple[int, float, int] = (0, 0.0, 0)
    deadline: float = inf
    arrived_at: float = 0.0
    status: State = State.NEW
    last: Call | None = None
    bound: int | None = None  # it may run in this slot only
    outcome: Outcome | None = None


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        slots=st.sampled_from([1, 2, 3, 1, 2, 0]),
        prefetch=st.booleans(),
        max_batch_size=st.sampled_from([1, 2, 3, 4, 6, 8]),
        batch_timeout=st.sampled_from([0, 0.01, 1.0, "auto"]),
        max_batch_cost=st.sampled_from([None, 6.0, 12.0]),
        max_queue_size=st.sampled_from([1, 5, 12, 1000]),
        max_queue_bytes=st.sampled_from([10, 1000]),
        isolate_errors=st.sampled_from([True, True, True, False]),
        groups=st.integers(1, 3),
        honest=st.booleans(),
        lessons=st.lists(
            st.tuples(
                st.sampled_from([1, 2, 4, 8, 500]), st.sampled_from([1e-5, 0.001, 0.02, 1.0, 1e9, 0.0, nan, -1.0])
            ),
            max_size=8,
        ),
        rate=st.sampled_from([0, 0, 10, 1000]),
    )
    def begin(
        self,
        slots: int,
        prefetch: bool,
        max_batch_size: int,
        batch_timeout: float | Literal["auto"],
        max_batch_cost: float | None,
        max_queue_size: int,
        max_queue_bytes: int,
        isolate_errors: bool,
        groups: int,
        honest: bool,
        lessons: list[tuple[int, float]],
        rate: int,
    ) -> None:
        self.policy = Policy(
            max_batch_size=max_batch_size,
            batch_timeout=batch_timeout,
            max_batch_cost=max_batch_cost,
            max_queue_size=max_queue_size,
            max_queue_bytes=max_queue_bytes,
            isolate_errors=isolate_errors,
        )
        self.scheduler = Scheduler(self.policy)
        self.prefetch = prefetch
        self.groups = groups
        self.honest = honest  # the handler fails for its poison only
        self.now = 100.0
        self.clock: float | None = None  # what the clock says wrongly in the next call
        self.entries: dict[Item, Entry] = {}
        self.workers: list[Worker] = []
        self.capacity = 1000
        self.closed = False
        self.idle_since: float | None = None  # an idle slot and something fresh, and nothing decided
        for size, seconds in lessons:
            for _ in range(3):
                self.scheduler._service.observe(size, seconds)
                self.scheduler._preparation.observe(size, seconds / 10)
        for i in range(rate // 10):
            self.scheduler._linger.arrived(self.now - 0.1 + i / max(1, rate), to_idle=i % 3 == 0)
            if i % 4 == 3:
                self.scheduler._linger.slot_freed(self.now - 0.1 + i / max(1, rate))
        for _ in range(slots):
            self.add_slot()
        self.tick()

    # ------------------------------------------------------------------ the model's books

    def time(self) -> float:
        """What the clock says: sometimes nonsense, which must change nothing."""
        wrong, self.clock = self.clock, None
        if wrong is None:
            return self.now
        self.scheduler.cancel(Item("nobody's"), self.now)
        return wrong

    def having(self, *states: State) -> list[Item]:
        return [item for item, entry in self.entries.items() if entry.status in states]

    def queued(self, group: object) -> list[Item]:
        """The fresh items of a group, first to run first."""
        items = [item for item in self.having(State.QUEUED) if item.group == group]
        return sorted(items, key=lambda item: self.entries[item].key)

    def idle(self) -> list[int]:
        return [number for number, worker in enumerate(self.workers) if worker.alive and not worker.calls]

    def apply(self, actions: Sequence[Action]) -> None:
        shed: list[Item] = []
        for action in actions:
            if isinstance(action, Dispatch):
                self.dispatched(action, shed)
                shed = []
            elif self.settled(action):
                shed.append(action.item)
        assert not shed, "shedding left a slot without work"

    def dispatched(self, action: Dispatch, shed: list[Item]) -> None:
        slot, items, reason = action
        worker, policy, entries = self.workers[slot], self.policy, [self.entries[item] for item in action.items]
        assert worker.alive
        assert len(worker.calls) <= (1 if self.prefetch and reason is not Release.RETRY else 0)
        assert 1 <= len(items) <= policy.max_batch_size
        assert len(set(items)) == len(items)
        assert policy.max_batch_cost is None or sum(item.cost for item in items) <= policy.max_batch_cost
        assert len({item.group for item in items}) == 1
        assert all(item.state is State.RUNNING for item in items)
        for entry in entries:
            assert entry.outcome is None, "dispatched after its settlement"
            assert entry.deadline > self.now, "dispatched at or after its deadline"
            assert entry.status is (State.RETRY if reason is Release.RETRY else State.QUEUED)
        assert {item.group for item in shed} <= {items[0].group}, "shedding left a slot without work"
        if reason is Release.RETRY:
            assert not shed
            assert policy.isolate_errors, "run twice"
            (family,) = {entry.last.family for entry in entries if entry.last is not None}
            for entry in entries:
                assert entry.bound in (None, slot), "a suspect ran on another slot than its own"
                assert entry.bound is None or len(items) == 1
        else:
            family = Family(len(items))
            waiting = self.queued(items[0].group)
            assert items == waiting[: len(items)], "out of order"
            self.check_reason(reason, waiting + shed)
            if policy.batch_timeout == 0:  # every group is ripe
                first = min(self.having(State.QUEUED) + shed, key=lambda item: self.entries[item].key)
                assert first.group == items[0].group, "another group was first"
        self.idle_since = None
        call = Call(slot, items, family)
        family.calls.append(call)
        assert len(family.calls) <= 2 * family.size + 1
        worker.calls.append(call)
        for entry in entries:
            entry.status, entry.last, entry.bound = State.RUNNING, call, None

    def check_reason(self, reason: Release, waiting: list[Item]) -> None:
        policy = self.policy
        if reason is Release.FULL:
            costs = (
                policy.max_batch_cost is not None and sum(item.cost for item in waiting) >= policy.max_batch_cost - 0.1
            )
            limit = self.scheduler._memory.cap
            assert policy.batch_timeout == "auto" or costs or len(waiting) >= limit
        elif reason is Release.WINDOW:
            oldest = min(self.entries[item].arrived_at for item in waiting)
            assert policy.batch_timeout != "auto"
            assert oldest + policy.batch_timeout <= self.now
        elif reason is Release.DRAIN:
            assert self.closed
        elif reason is Release.IDLE:
            assert policy.batch_timeout in (0, "auto")
        else:
            assert reason is Release.DEADLINE
            assert any(self.entries[item].deadline < inf for item in waiting)

    def settled(self, action: Settle) -> bool:
        """Check an answer; true if the item was shed."""
        item, outcome = action
        entry = self.entries[item]
        assert entry.outcome is None, "answered twice"
        assert item.state is State.SETTLED
        status, entry.outcome, entry.status = entry.status, outcome, State.SETTLED
        error, call = outcome.error, entry.last
        assert error is None or isinstance(error, TidegateError)
        if isinstance(error, DeadlineExceeded):
            if entry.deadline <= self.now:
                return False
            assert status is State.QUEUED and self.scheduler._service.observations, "too early to be too late"
            return True
        if isinstance(error, Unavailable):
            assert self.workers and all(worker.gone for worker in self.workers)
        elif isinstance(error, Closed):
            assert self.closed
        elif not isinstance(error, Cancelled | Overloaded | TooCostly):
            assert call is not None and status in (State.RUNNING, State.RETRY)
            if error is None:
                assert status is State.RUNNING
                assert outcome.value == ("answer to", id(item))
            else:
                self.check_failure(item, entry, call, error)
        return False

    def check_failure(self, item: Item, entry: Entry, call: Call, error: TidegateError) -> None:
        """No item fails for another's fault."""
        calls = call.family.calls
        if isinstance(error, WorkerDied):
            assert (
                (call.died and (call.streamed or not self.policy.isolate_errors))
                or (call.died and len(call.items) == 1 and call is not calls[0])
                or sum(other.died and len(other.items) == 1 for other in calls[1:]) >= 2
                or any(worker.gone for worker in self.workers)
            ), "an innocent died"
            return
        in_place = item in call.flagged
        alone = call.error is error and len(call.items) == 1
        all_at_once = call.error is error and (not self.policy.isolate_errors or call.streamed)
        lone = [
            other for other in calls if other.error is not None and len(other.items) == 1 and alike(other.error, error)
        ]
        systemic = len(lone) >= 2
        assert in_place or alone or all_at_once or systemic, "an innocent failed"
        if self.honest and self.capacity >= 1 and entry.kind == "good" and not isinstance(error, HTTPError):
            assert all_at_once or systemic

    def add_slot(self) -> None:
        self.workers.append(Worker())
        self.apply(self.scheduler.slot_ready(len(self.workers) - 1, self.time(), prefetch=self.prefetch))

    def tick(self) -> None:
        """Ring every bell that is due."""
        scheduler = self.scheduler
        rung = 0
        while scheduler.wake_at() <= self.now:
            self.apply(scheduler.tick(self.now))
            assert scheduler.wake_at() > self.now, "the timer spins"
            rung += 1
        assert rung <= 1
        self.check_nothing_idles()

    def check_nothing_idles(self) -> None:
        """After a tick, whatever an idle slot could run is held for a reason that ends."""
        groups = {item.group for item in self.having(State.QUEUED)}
        if not self.idle() or not groups:
            self.idle_since = None
            return
        assert self.now < self.scheduler.wake_at() < inf, "a lost wake-up"
        assert not self.closed and self.policy.batch_timeout != 0, "held without leave"
        timeout = self.policy.batch_timeout
        for group in groups:
            items = self.queued(group)
            oldest = min(self.entries[item].arrived_at for item in items)
            assert timeout == "auto" or self.now < oldest + timeout, "held beyond its window"
            assert timeout == "auto" or len(items) < self.scheduler._memory.cap
        if self.idle_since is None:
            self.idle_since = self.now
        if timeout == "auto":
            assert len(groups) == 1
            assert self.now - self.idle_since <= CEILING + EPSILON, "held for too long"

    # ------------------------------------------------------------------ what callers do

    @rule(
        count=st.sampled_from([1, 1, 1, 2, 5, 9]),
        priority=st.sampled_from([3, 3, 3, 0, 7]),
        timeout=st.sampled_from([inf, inf, inf, 0.0, 0.001, 0.05, 0.3, 5.0, 30.0, 40.0]),
        cost=st.sampled_from([1.0, 1.0, 0.1, 2.5, 6.0, 7.0, 100.0]),
        nbytes=st.sampled_from([0, 0, 1, 4, 400]),
        group=st.integers(0, 2),
        kind=st.sampled_from(["good"] * 10 + ["poison", "poison", "other poison", "flagged", "killer"]),
        now_and_then=st.booleans(),
    )
    def submit(
        self,
        count: int,
        priority: int,
        timeout: float,
        cost: float,
        nbytes: int,
        group: int,
        kind: Kind,
        now_and_then: bool,
    ) -> None:
        for i in range(count):
            mine: Kind = kind if i == 0 else "good"
            item = Item(
                None,
                priority=priority,
                deadline=self.now + timeout,
                cost=cost,
                nbytes=nbytes,
                group=[None, "a", "b"][group % self.groups],
            )
            self.submit_one(item, mine)
            if now_and_then:
                self.tick()

    def submit_one(self, item: Item, kind: Kind) -> None:
        entry = self.entries[item] = Entry(kind, len(self.entries), deadline=item.deadline, arrived_at=self.now)
        entry.key = (item.priority, min(item.deadline, inf), entry.sequence)
        if item.deadline == inf:
            entry.key = (item.priority, self.now + UNDATED, entry.sequence)
        waiting = self.having(State.QUEUED, State.RETRY)
        expected = self.refusal(item, waiting)
        if not self.having(State.QUEUED):
            self.idle_since = None
        if expected is None:
            entry.status = State.QUEUED
        actions = self.scheduler.submit(item, self.time())
        if expected is not None:
            (refused,) = actions
            assert isinstance(refused, Settle) and isinstance(refused.outcome.error, expected)
            entry.deadline = min(entry.deadline, self.now)  # a refusal needs no further reason
        self.apply(actions)

    def refusal(self, item: Item, waiting: list[Item]) -> type[TidegateError] | None:
        policy = self.policy
        if self.closed:
            return Closed
        if self.workers and all(worker.gone for worker in self.workers):
            return Unavailable
        if policy.max_batch_cost is not None and item.cost > policy.max_batch_cost:
            return TooCostly
        if item.deadline <= self.now:
            return DeadlineExceeded
        if len(waiting) >= policy.max_queue_size:
            return Overloaded
        if waiting and sum(other.nbytes for other in waiting) + item.nbytes > policy.max_queue_bytes:
            return Overloaded
        return None

    @precondition(lambda self: self.entries)
    @rule(pick=st.integers(0, 10**6), states=st.sampled_from([*State, None]))
    def cancel(self, pick: int, states: State | None) -> None:
        items = self.having(*([states] if states is not None else State))
        if not items:
            return
        item = items[pick % len(items)]
        before = self.entries[item].status
        waiting = self.scheduler.waiting
        actions = self.scheduler.cancel(item, self.time())
        self.apply(actions)
        assert len(actions) == (before is not State.SETTLED)
        assert self.scheduler.waiting == waiting - (before in (State.QUEUED, State.RETRY)), "the place is not free"

    # ------------------------------------------------------------------ what workers do

    def busy(self) -> list[int]:
        return [number for number, worker in enumerate(self.workers) if worker.calls]

    @precondition(lambda self: self.busy())
    @rule(
        pick=st.integers(0, 100),
        seconds=st.sampled_from([0.0, 0.0005, 0.004, 0.02, 0.3]),
        how=st.sampled_from(["honest"] * 8 + ["too few", "too many", "poison", "other poison", "oom", "http"]),
    )
    def complete(self, pick: int, seconds: float, how: str) -> None:
        self.now += seconds
        busy = self.busy()
        self.end_call(busy[pick % len(busy)], "honest" if self.honest else how)

    @precondition(lambda self: self.busy())
    @rule(
        rounds=st.integers(1, 8),
        count=st.integers(0, 6),
        seconds=st.sampled_from([0.001, 0.004, 0.02]),
        timeout=st.sampled_from([inf, inf, 0.03, 1.0]),
        prepares=st.booleans(),
    )
    def go_on(self, rounds: int, count: int, seconds: float, timeout: float, prepares: bool) -> None:
        """Some ordinary work, so that there is something to disturb."""
        for _ in range(rounds):
            for _ in range(count):
                self.submit_one(Item(None, deadline=self.now + timeout), "good")
            self.sleep_until(self.now + seconds / 2)
            for slot in self.busy():
                if prepares:
                    self.scheduler.prepared(slot, self.time())
            self.sleep_until(self.now + seconds / 2)
            for slot in self.busy():
                self.end_call(slot, "honest")

    def end_call(self, slot: int, how: str) -> None:
        worker = self.workers[slot]
        call = worker.calls[0]
        kinds = [self.entries[item].kind for item in call.items]
        if how == "honest":
            bad = [kind for kind in kinds if kind in ("killer", "poison", "other poison")]
            how = "oom" if len(call.items) > self.capacity else bad[0] if bad else "ok"
        if how == "killer":
            self.lose(slot, replaced=True)
            return
        worker.calls.pop(0)
        result: Sequence[Any] | BaseException
        if how == "ok":
            call.flagged = frozenset(item for item in call.items if self.entries[item].kind == "flagged")
            result = [Poison() if item in call.flagged else ("answer to", id(item)) for item in call.items]
        elif how in ("too few", "too many"):
            result = ["wrong"] * (len(call.items) + (1 if how == "too many" else -1))
            call.error = BatchSizeMismatch(0, 0)
        else:
            errors: dict[str, Callable[[], BaseException]] = {
                "poison": Poison,
                "other poison": OtherPoison,
                "oom": MemoryError,
                "http": lambda: HTTPError(404, "no"),
            }
            result = errors[how]()
            call.error = from_foreign(result)
            if call.error is not result:
                result = call.error  # so that the answer can be traced back to its call
        streamed = any(item.started for item in call.items)
        call.streamed = call.streamed or streamed
        actions = self.scheduler.complete(slot, result, self.time())
        if how in ("too few", "too many"):
            # The scheduler makes this error itself: take it for the call's.
            errors_made = [a.outcome.error for a in actions if isinstance(a, Settle) and a.item in call.items]
            call.error = next((e for e in errors_made if isinstance(e, BatchSizeMismatch)), call.error)
        self.returns(call)
        self.apply(actions)

    def returns(self, call: Call) -> None:
        """A call failed: what it ran will run again, unless it is answered now."""
        again = call.died or (call.error is not None and not call.streamed)
        if not again or not self.policy.isolate_errors:
            return
        fresh = call is call.family.calls[0]
        requeued = isinstance(call.error, OutOfMemory) and fresh and len(call.items) > 1
        for item in call.items:
            entry = self.entries[item]
            if entry.status is State.RUNNING and entry.last is call:
                entry.status = State.QUEUED if requeued else State.RETRY
                entry.last = None if requeued else call
                entry.bound = call.slot if call.died else None

    def lose(self, slot: int, *, replaced: bool) -> None:
        worker = self.workers[slot]
        running, following = worker.calls[:1], worker.calls[1:]
        for call in running:
            call.died = True
            call.streamed = any(item.started for item in call.items)
        for call in following:
            for item in call.items:
                if self.entries[item].status is State.RUNNING:
                    self.entries[item].status, self.entries[item].last = State.QUEUED, None
        worker.alive, worker.calls = False, []
        worker.gone = worker.gone or not replaced
        if not self.idle():
            self.idle_since = None
        actions = self.scheduler.slot_lost(slot, WorkerDied(), self.time(), replaced=replaced)
        for call in running:
            self.returns(call)
        self.apply(actions)
        if not replaced:
            assert not [item for item, entry in self.entries.items() if entry.bound == slot and entry.outcome is None]

    @precondition(lambda self: self.workers)
    @rule(pick=st.integers(0, 100), replaced=st.sampled_from([True, True, True, False]))
    def slot_lost(self, pick: int, replaced: bool) -> None:
        self.lose(pick % len(self.workers), replaced=replaced)

    @precondition(lambda self: any(not worker.alive for worker in self.workers))
    @rule(pick=st.integers(0, 100))
    def slot_restored(self, pick: int) -> None:
        dead = [number for number, worker in enumerate(self.workers) if not worker.alive]
        self.restore(dead[pick % len(dead)])

    def restore(self, slot: int) -> None:
        self.workers[slot] = Worker()
        self.apply(self.scheduler.slot_ready(slot, self.time(), prefetch=self.prefetch))

    @precondition(lambda self: len(self.workers) < 4)
    @rule()
    def slot_added(self) -> None:
        self.add_slot()

    @precondition(lambda self: self.busy())
    @rule(pick=st.integers(0, 100), seconds=st.sampled_from([0.0, 0.001]))
    def prepared(self, pick: int, seconds: float) -> None:
        self.now += seconds
        busy = self.busy()
        self.scheduler.prepared(busy[pick % len(busy)], self.time())

    @precondition(lambda self: self.busy())
    @rule(pick=st.integers(0, 100), last=st.booleans(), fails=st.booleans())
    def chunk(self, pick: int, last: bool, fails: bool) -> None:
        busy = self.busy()
        call = self.workers[busy[pick % len(busy)]].calls[0]
        item = call.items[pick % len(call.items)]
        entry = self.entries[item]
        running = entry.status is State.RUNNING
        self.scheduler.started(item, self.time())
        if running:
            call.streamed = True
            entry.deadline = inf
        if last:
            if fails:
                call.flagged |= {item}
                entry.kind = "flagged"
            outcome = Outcome(error=Poison()) if fails else Outcome(("answer to", id(item)))
            actions = self.scheduler.finish(item, outcome, self.time())
            assert len(actions) == running
            self.apply(actions)

    @rule(capacity=st.sampled_from([1, 2, 3, 5, 1000]))
    def memory(self, capacity: int) -> None:
        self.capacity = capacity

    # ------------------------------------------------------------------ what time does

    @rule(seconds=st.sampled_from([0.0, 0.0003, 0.002, 0.01, 0.05, 0.5]))
    def sleep(self, seconds: float) -> None:
        """A punctual timer."""
        self.sleep_until(self.now + seconds)

    def sleep_until(self, until: float) -> None:
        while (at := self.scheduler.wake_at()) <= until:
            self.now = max(self.now, at)
            self.tick()
        self.now = until

    @rule(seconds=st.sampled_from([0.0003, 0.02, 2.0]))
    def oversleep(self, seconds: float) -> None:
        """A late timer; nothing has been ticked when the next event comes."""
        self.now += seconds

    @precondition(lambda self: self.having(State.RETRY))
    @rule(pick=st.integers(0, 100))
    def sleep_past_the_deadline_of_a_retry(self, pick: int) -> None:
        retrying = self.having(State.RETRY)
        deadline = self.entries[retrying[pick % len(retrying)]].deadline
        if deadline < inf:
            self.now = max(self.now, deadline)
            self.tick()

    @rule()
    def bell(self) -> None:
        self.tick()

    @rule(wrong=st.sampled_from([nan, -inf, 0.0, -5.0, 99.0]))
    def the_clock_goes_wrong(self, wrong: float) -> None:
        self.clock = wrong

    @precondition(lambda self: len(self.entries) > 15)
    @rule(sure=st.sampled_from([False, False, True]))
    def close(self, sure: bool) -> None:
        if sure:
            self.closed = True
            self.apply(self.scheduler.close(self.time()))

    @precondition(lambda self: len(self.entries) > 20)
    @rule(sure=st.sampled_from([False, False, False, True]))
    def abort(self, sure: bool) -> None:
        if sure:
            self.closed = True
            self.apply(self.scheduler.abort(self.time()))
            assert all(entry.outcome is not None for entry in self.entries.values())

    # ------------------------------------------------------------------ what always holds

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        scheduler = self.scheduler
        waiting = self.having(State.QUEUED, State.RETRY)
        assert scheduler.waiting == len(waiting)
        assert scheduler.waiting <= self.policy.max_queue_size + 2 * len(self.workers) * self.policy.max_batch_size
        assert scheduler._queued_bytes == sum(item.nbytes for item in waiting)
        assert 1 <= scheduler._memory.cap <= self.policy.max_batch_size
        assert scheduler.running == sum(len(worker.calls) for worker in self.workers)
        assert scheduler.drained == (self.closed and not waiting and not self.busy())
        assert not math.isnan(scheduler.wake_at())
        for item, entry in self.entries.items():
            assert item.state is entry.status, (item, entry)
        if self.idle() and any(item.deadline < inf for item in waiting):
            assert scheduler.wake_at() < inf

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        self.capacity = 1000
        if not self.workers:
            self.add_slot()
        self.closed = True
        self.apply(self.scheduler.close(self.now))
        for _ in range(4 * len(self.entries) + 50):
            for slot, worker in enumerate(self.workers):
                if not worker.alive:
                    self.restore(slot)
            self.tick()
            busy = self.busy()
            if not busy:
                break
            self.now += 0.001
            self.end_call(busy[-1], "honest")
        assert all(entry.outcome is not None for entry in self.entries.values()), "no answer"
        scheduler = self.scheduler
        assert scheduler.drained
        assert not scheduler.tick(self.now)  # sealed groups that lost all their members are dropped in passing
        assert scheduler.wake_at() == inf
        assert not scheduler._lanes and not scheduler._sealed and not scheduler._retrying and not len(scheduler._expiry)
        assert not any(slot.bound for slot in scheduler._slots.values())
        assert scheduler._queued_bytes == 0


SchedulerMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("TIDEGATE_MACHINE_EXAMPLES", "150")),
    stateful_step_count=50,
    deadline=None,
    report_multiple_bugs=False,
    phases=set(Phase)
    - {Phase.explain}
    - ({Phase.shrink} if os.environ.get("TIDEGATE_MACHINE_SHRINK") == "0" else set()),
    suppress_health_check=list(HealthCheck),
)
TestScheduler = SchedulerMachine.TestCase
