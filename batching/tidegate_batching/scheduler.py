"""Who runs, when, with whom: a state machine with no clock, no await and no I/O.

Inputs (`submit`, `cancel`, `started`, `finish`, `complete`, `prepared`, `slot_ready`, `slot_lost`, `close`) record what
happened at `now` and return what is certain already; `tick` alone decides which batches go. The caller ticks when
`wake_at()` is due: at once after an input that made a batch possible, later when a window closes or a deadline passes.
Keeping the decision apart from the inputs lets a caller deliver everything that is readable before anything is decided.
Only a batch that nobody could join any more is not worth the wait: `submit` and `complete` tick by themselves then.

What holds, whatever the handler, a worker or a caller does (tests/batching/test_scheduler_machine.py):

* Every item is settled exactly once, and none is in two batches at a time.
* Nothing is dispatched at or after its deadline, after its cancellation, or beyond a limit of the policy.
* While something waits and a slot is idle, `wake_at()` is finite; after `tick(t)` it is later than t.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import islice
from math import inf
from typing import Any, Final

from tidegate_batching.errors import (
    BatchSizeMismatch,
    Cancelled,
    Closed,
    DeadlineExceeded,
    OutOfMemory,
    Overloaded,
    TidegateError,
    TooCostly,
    Unavailable,
    alike,
    from_foreign,
)
from tidegate_batching.estimators import ServiceTime
from tidegate_batching.expiry import Expiry
from tidegate_batching.item import Action, Dispatch, Item, Outcome, Release, Settle, State
from tidegate_batching.lane import Lane
from tidegate_batching.linger import CEILING, Linger
from tidegate_batching.policy import Policy
from tidegate_batching.retry import Group, Isolation, MemoryCap, Verdict, singles_are_cheaper
from tidegate_batching.shedding import MARGIN, choose
from tidegate_batching.slot import Flight, Slot

__all__ = ["Scheduler"]

UNDATED: Final = 30.0
"""Seconds after arrival at which an item without a deadline takes its place among those with one."""

PUNCTUALITY: Final = 0.001
"""Seconds that a timer may be late; without them, an item held to the last moment would be shed when it has come."""

PREPARATION_MARGIN: Final = 1.15
PREPARATION_SLACK: Final = 0.0002

# A global is found in a third of the time that a member of a class takes, and these are asked for several times per item.
_NEW: Final = State.NEW
_QUEUED: Final = State.QUEUED
_RUNNING: Final = State.RUNNING
_RETRY: Final = State.RETRY
_SETTLED: Final = State.SETTLED


class Scheduler:
    """The decisions of one handler's batcher, under one `Policy`."""

    def __init__(self, policy: Policy, linger: Callable[[ServiceTime], Linger] = Linger) -> None:
        self.policy = policy
        self.due = False
        self.waiting = 0  # QUEUED and RETRY
        self._now = 0.0
        self._sequence = 0
        self._queued_bytes = 0
        self._lanes: dict[Hashable, Lane] = {}
        self._expiry = Expiry()
        self._slots: dict[int, Slot] = {}
        self._idle: list[Slot] = []
        self._sealed: list[Group[Item]] = []  # a stack, so that an isolation is finished before another is begun
        self._groups = 0  # sealed groups that wait, in the stack or bound to a slot
        self._retrying: dict[Item, None] = {}  # all items in RETRY, those that wait for a sibling's result included
        self._service = ServiceTime()
        self._preparation = ServiceTime()
        self._memory = MemoryCap(policy.max_batch_size)
        self._linger = linger(self._service)
        self._max_queue_size = policy.max_queue_size
        self._max_queue_bytes = policy.max_queue_bytes
        self._max_cost = inf if policy.max_batch_cost is None else policy.max_batch_cost
        # A cost may be tokens or seconds of audio; the service time is learned over thousandths of a full batch.
        self._load_per_cost = None if policy.max_batch_cost is None else 1000 / policy.max_batch_cost
        self._auto = policy.batch_timeout == "auto" and policy.max_batch_size > 1
        self._alive = 0  # slots with a worker
        self._prefetching = 0  # and those of them that take a second batch
        self._held_since = inf  # when "auto" began to hold back what waits
        self._decide_at = inf
        self._refusing: Callable[[], TidegateError] | None = None  # what every new item is answered with
        self._closed = False

    @property
    def running(self) -> int:
        """Batches in flight."""
        return sum((slot.current is not None) + (slot.following is not None) for slot in self._slots.values())

    @property
    def drained(self) -> bool:
        """Closed, and everything that was in has been answered."""
        return self._closed and not self.waiting and all(slot.current is None for slot in self._slots.values())

    @property
    def is_over(self) -> bool:
        """Every slot is lost for good."""
        return bool(self._slots) and all(slot.gone for slot in self._slots.values())

    # ------------------------------------------------------------------ items

    def submit(self, item: Item, now: float) -> Sequence[Action]:
        """A new item has come: it waits, or is refused at once."""
        # Once per item, so nothing here is a call or a second look-up that need not be.
        if now > self._now:
            self._now = now
        else:
            now = self._now
        deadline, nbytes = item.deadline, self._queued_bytes + item.nbytes
        if (
            self._refusing is not None
            or self.waiting >= self._max_queue_size
            or not item.cost <= self._max_cost
            or deadline <= now
            or nbytes > self._max_queue_bytes
        ):
            refusal = self._refusal(item)
            if refusal is not None:
                return [self._settle(item, error=refusal)]
        self._sequence = item.sequence = sequence = self._sequence + 1
        item.arrived_at = now
        item.key = (item.priority, deadline if deadline < inf else now + UNDATED, sequence)
        if self._auto:
            self._linger.arrived(now, to_idle=not self.waiting and bool(self._idle))
        self._expiry.arm(item)
        lane = self._lanes.get(item.group)
        if lane is None:
            lane = self._lanes[item.group] = Lane()
        item.state = _QUEUED
        lane.add(item)
        self.waiting += 1
        self._queued_bytes = nbytes
        if self._idle:
            self.due = True
            return self._go_if_full(item.group)
        if self._prefetching:
            self.due = True
        return ()

    def cancel(self, item: Item, now: float) -> Sequence[Action]:
        """The caller went away: a waiting item leaves at once, a running one's result will be dropped."""
        self._advance(now)
        if item.state is _SETTLED or item.state is _NEW:
            return ()
        return [self._settle(item, error=Cancelled())]

    def started(self, item: Item, now: float) -> None:
        """The first chunk of the item's stream is out: it has no deadline any more, and will not be run again."""
        self._advance(now)
        if item.state is _RUNNING and not item.started:
            item.started = True
            if item.deadline < inf:
                item.deadline = inf
                self._expiry.forget()

    def finish(self, item: Item, outcome: Outcome, now: float) -> Sequence[Action]:
        """One item of a running batch has ended before the batch."""
        self._advance(now)
        if item.state is not _RUNNING:
            return ()
        error = None if outcome.error is None else from_foreign(outcome.error)
        return [self._settle(item, value=outcome.value, error=error)]

    # ------------------------------------------------------------------ slots

    def slot_ready(self, slot: int, now: float, *, prefetch: bool = False) -> Sequence[Action]:
        """A worker can take a batch in this slot: a new slot, or the replacement of a lost one.

        prefetch: it can prepare a second batch while one runs, and reports `prepared`.
        """
        self._advance(now)
        old = self._slots.get(slot)
        if old is not None and old.alive:
            raise ValueError(f"slot {slot} is ready already")
        new = Slot(slot, prefetch, old.bound if old is not None else [])
        self._slots[slot] = new
        self._idle.append(new)
        if not self._closed:
            self._refusing = None
        self._alive += 1
        self._prefetching += prefetch
        self.due = True
        return ()

    def slot_lost(self, slot: int, error: TidegateError, now: float, *, replaced: bool = True) -> Sequence[Action]:
        """The slot's worker died. What it ran is retried, alone, by its replacement; without one it fails.

        error: what an item gets that died alone. replaced: `slot_ready` will follow. Losing a slot that waits for its
        replacement once more, with `replaced=False`, gives that up.
        """
        self._advance(now)
        lost = self._slots[slot]
        actions: list[Action] = []
        if lost.alive:
            lost.alive = False
            self._alive -= 1
            self._prefetching -= lost.prefetch
            if lost in self._idle:
                self._idle.remove(lost)
            # The batch that had only been prepared is nobody's suspect.
            if lost.following is not None:
                self._put_back(lost.following.live())
            if lost.current is not None:
                actions += self._died(lost.current, slot, error)
            lost.current = lost.following = None
        if not replaced:
            for isolation in dict.fromkeys(group.isolation for group in lost.bound):
                actions += self._carry_out(isolation.abandoned(slot, error))
            self._groups -= len(lost.bound)
            lost.bound = []
            lost.gone = True
            if all(other.gone for other in self._slots.values()):
                actions += self._give_up(_unavailable())
                self._refusing = self._refusing or _unavailable
        self.due = True
        return actions

    def prepared(self, slot: int, now: float) -> Sequence[Action]:
        """The next batch of this slot is ready to run; the function starts on it now or when it is free."""
        self._advance(now)
        flight = self._slots[slot].unprepared()
        if flight is not None:
            flight.prepared = True
            self._preparation.observe(flight.load, self._now - flight.sent_at)
            # Only what comes after counts as service time.
            flight.started_at = self._now
            # The worker has hands free to prepare another.
            self.due = self.due or bool(self.waiting)
        return ()

    def complete(self, slot: int, result: Sequence[Any] | BaseException, now: float) -> Sequence[Action]:
        """The batch in this slot ended: one output per item (an exception instance fails its item), or an exception."""
        self._advance(now)
        done = self._slots[slot]
        flight = done.current
        if flight is None:
            raise ValueError(f"slot {slot} runs nothing")
        done.current, done.following = done.following, None
        if done.current is None:
            self._idle.append(done)
        else:
            done.current.started_at = max(self._now, done.current.started_at)
        if not isinstance(result, BaseException):
            try:
                if len(result) != len(flight.items):
                    result = BatchSizeMismatch(len(flight.items), len(result))
            except TypeError as error:  # not a sequence: to raise here would leave its items without an answer
                result = error
        actions = (
            self._failed(flight, from_foreign(result))
            if isinstance(result, BaseException)
            else self._succeeded(flight, result)
        )
        if self.waiting:
            self.due = True
            if self._auto and done.current is None:
                self._linger.slot_freed(self._now)
            if len(self._lanes) == 1:
                actions += self._go_if_full(next(iter(self._lanes)))
        return actions

    # ------------------------------------------------------------------ time

    def tick(self, now: float) -> Sequence[Action]:
        """Settle what is too late and form every batch that should go now."""
        self._advance(now)
        self._decide_at = inf
        actions: list[Action] = []
        if self._expiry.next() <= self._now:
            for item in self._expiry.due(self._now):
                actions.append(self._settle(item, error=DeadlineExceeded(), armed=False))
        if self._groups:
            self._dispatch_sealed(actions)
        while self._idle and self._lanes:
            if not self._dispatch_fresh(self._idle[-1], actions):
                break
        if not self._lanes:
            self._linger.released()
            self._held_since = inf
        elif self._prefetching and not self._idle:
            self._prefetch(actions)
        self.due = False
        return actions

    def wake_at(self) -> float:
        """When `tick` is due: at or before now if something could go, infinity if nothing changes by itself."""
        return self._now if self.due else min(self._decide_at, self._expiry.next())

    def close(self, now: float) -> Sequence[Action]:
        """Take nothing new and wait for nobody: what is in will still run."""
        self._advance(now)
        self._closed = True
        self._refusing = Closed
        self.due = True
        return ()

    def abort(self, now: float) -> Sequence[Action]:
        """Close and answer everything that is in, running or not, with `Closed`."""
        self.close(now)
        running = [item for slot in self._slots.values() for item in slot.items()]
        return [*self._give_up(Closed()), *(self._settle(item, error=Closed()) for item in running)]

    # ------------------------------------------------------------------ how a batch is formed

    def _go_if_full(self, group: Hashable) -> Sequence[Action]:
        """Decide at once where waiting for the next turn could let nobody join."""
        full = self._lanes[group].live >= self._memory.cap
        return self.tick(self._now) if full and not self._groups else ()

    def _dispatch_sealed(self, actions: list[Action]) -> None:
        """Retries go before fresh work, each in the company that it was sealed with."""
        for slot in [slot for slot in self._idle if slot.bound]:
            while slot.bound and slot.current is None:
                self._send_sealed(slot.bound.pop(), slot, actions)
        while self._idle and self._sealed:
            self._send_sealed(self._sealed.pop(), self._idle[-1], actions)

    def _send_sealed(self, group: Group[Item], slot: Slot, actions: list[Action]) -> None:
        self._groups -= 1
        group.members = [item for item in group.members if item.state is _RETRY]
        if not group.members:
            actions += self._carry_out(group.isolation.succeeded(group))
            return
        for item in group.members:
            del self._retrying[item]
        self._send(group.members, slot, Release.RETRY, actions, group)

    def _dispatch_fresh(self, slot: Slot, actions: list[Action]) -> bool:
        """One batch from the ripe lane whose head is first in order; false if no lane is ripe."""
        best: tuple[Lane, int, Release] | None = None
        for lane in self._lanes.values():
            limit = self._limit(lane)
            reason = self._ripe(lane, limit)
            if reason is not None and (best is None or lane.head().key < best[0].head().key):
                best = lane, limit, reason
        if best is None:
            return False
        lane, limit, reason = best
        # Behind a batch that runs it starts when that ends: who could be in time now may not be then.
        starts = self._now if slot.current is None else max(self._now, slot.ends_at(self._service))
        if self._max_cost == inf and starts + MARGIN * self._seconds_of(limit) <= self._expiry.next():
            batch = list(islice(lane, limit))  # no deadline at all is near
        else:
            batch, shed = choose(lane, limit, self._max_cost, starts, self._seconds, self._soonest)
            if slot.current is not None and batch[0].deadline < starts + self._soonest(batch[0]):
                return False  # nobody can be in time: only a free worker runs one all the same
            actions += [self._settle(item, error=DeadlineExceeded()) for item in shed]
        self._send(batch, slot, reason, actions)
        if self._auto:
            self._linger.released()
            self._held_since = inf
            if self._idle and self._lanes:
                self._linger.slot_freed(self._now)
        return True

    def _limit(self, lane: Lane) -> int:
        limit = self._memory.cap
        if self._auto and len(self._lanes) == 1:
            limit = self._linger.knee(lane.live, limit, max(1, self._alive), self._now, self._unit(lane))
        return limit

    def _ripe(self, lane: Lane, limit: int) -> Release | None:
        """Why the lane's batch should go now, or None; then `wake_at` knows when to look again."""
        if lane.live >= limit or lane.cost >= self._max_cost:
            return Release.FULL
        if self._closed:
            return Release.DRAIN
        timeout = self.policy.batch_timeout
        if timeout == "auto":
            # With several lanes an idle worker always has somebody else to serve.
            if len(self._lanes) > 1:
                return Release.IDLE
            until, reason = self._lingers(lane), Release.IDLE
        elif timeout == 0:
            return Release.IDLE
        else:
            until, reason = lane.opened_at() + timeout, Release.WINDOW
        if until <= self._now:
            return reason
        ahead = MARGIN * self._seconds_of((lane.live + 1) * self._unit(lane)) + PUNCTUALITY
        # The next deadline of all is a cheap bound; only where it is near, the lane's own is looked for.
        if self._expiry.next() - ahead < until:
            latest = min(item.deadline for item in lane) - ahead
            if latest <= self._now:
                return Release.DEADLINE
            until = min(until, latest)
        self._decide_at = min(self._decide_at, until)
        return None

    def _lingers(self, lane: Lane) -> float:
        ends = [slot.ends_at(self._service) for slot in self._slots.values() if slot.current is not None]
        self._held_since = min(self._held_since, self._now)
        until = self._linger.hold(
            lane.live,
            self._memory.cap,  # the knee of what waits now does not bound what may come
            len(self._idle),
            max(1, self._alive),
            min(ends, default=inf),
            self._now,
            self._unit(lane),
        )
        # Whatever the learner says: each of its decisions may add a little, together they stay below the ceiling.
        return min(until, self._held_since + CEILING)

    def _prefetch(self, actions: list[Action]) -> None:
        """Send the next batch to a busy slot as late as it can still be prepared in time."""
        for slot in self._slots.values():
            if not self._lanes:
                return
            if not slot.takes_another() or self._sealed or slot.bound or self._service.observations == 0:
                continue
            lane = next(iter(self._lanes.values()))
            size = min(lane.live, self._memory.cap)
            preparation = PREPARATION_MARGIN * self._preparation.predict(size * self._unit(lane)) + PREPARATION_SLACK
            at = slot.ends_at(self._service) - preparation
            # A full one gains nothing by waiting: nobody else can join it.
            if at <= self._now or size == self._memory.cap:
                self._dispatch_fresh(slot, actions)
            else:
                self._decide_at = min(self._decide_at, at)

    def _send(
        self, items: list[Item], slot: Slot, reason: Release, actions: list[Action], group: Group[Item] | None = None
    ) -> None:
        now, size = self._now, len(items)
        cost, nbytes = 0.0, 0
        for item in items:
            cost += item.cost
            nbytes += item.nbytes
            item.state = _RUNNING
            item.dispatched_at = now
            item.batch_size = size
        self.waiting -= size
        self._queued_bytes -= nbytes
        if group is None:
            self._left_lane(items[0].group, size, cost)
        flight = Flight(items, self._load(size, cost), now, group)
        if slot.current is None:
            slot.current = flight
            if self._idle[-1] is slot:
                self._idle.pop()
            else:
                self._idle.remove(slot)
        else:
            slot.following = flight
        actions.append(Dispatch(slot.number, items, reason))

    # ------------------------------------------------------------------ how a batch ends

    def _succeeded(self, flight: Flight, outputs: Sequence[Any]) -> list[Action]:
        self._memory.succeeded(len(flight.items))
        actions: list[Action] = []
        now, armed, streamed = self._now, 0, False
        for item, output in zip(flight.items, outputs, strict=True):
            streamed = streamed or item.started
            if item.state is not _RUNNING:
                continue
            if isinstance(output, BaseException):
                actions.append(self._settle(item, error=from_foreign(output)))
                continue
            # `_settle` for the one case that is hot.
            item.state = _SETTLED
            item.settled_at = now
            armed += item.deadline < inf
            actions.append(Settle(item, Outcome(output)))
        self._expiry.forget(armed)
        # A stream runs for as long as its slowest reader; its seconds say nothing about the model.
        if not streamed:
            self._service.observe(flight.load, now - flight.started_at)
        if flight.group is not None:
            actions += self._carry_out(flight.group.isolation.succeeded(flight.group))
        return actions

    def _failed(self, flight: Flight, error: TidegateError) -> list[Action]:
        if isinstance(error, OutOfMemory):
            self._memory.exhausted(len(flight.items))
        alive, group = flight.live(), flight.group
        # The readers of a stream that has begun have seen its first part, and the function may have done its work.
        begun = any(item.started for item in flight.items)
        if begun or not self.policy.isolate_errors or (group is None and len(flight.items) == 1):
            actions: list[Action] = [self._settle(item, error=error) for item in alive]
            return actions if group is None else actions + self._carry_out(group.isolation.failed(group, error, []))
        out_of_memory = isinstance(error, OutOfMemory) and len(flight.items) > 1
        if out_of_memory and group is None:
            self._put_back(alive)
            return []
        self._await_retry(alive)
        isolation = self._isolation(flight)
        verdict = isolation.split(group, alive) if out_of_memory else isolation.failed(group, error, alive)
        return self._carry_out(verdict)

    def _died(self, flight: Flight, slot: int, error: TidegateError) -> list[Action]:
        again = self.policy.isolate_errors
        # What a reader has seen the first part of cannot run again.
        actions: list[Action] = [self._settle(item, error=error) for item in flight.live() if item.started or not again]
        alive = flight.live()
        self._await_retry(alive)
        return actions + self._carry_out(self._isolation(flight).died(flight.group, slot, error, alive))

    def _isolation(self, flight: Flight) -> Isolation[Item]:
        if flight.group is not None:
            return flight.group.isolation
        unit = flight.load / len(flight.items)
        return Isolation(
            flight.items,
            lambda size: singles_are_cheaper(size, lambda n: self._service.predict(n * unit)),
            alike=alike,
        )

    def _carry_out(self, verdict: Verdict[Item]) -> list[Action]:
        for group in reversed(verdict.run):
            if group.slot is None:
                self._sealed.append(group)
            else:
                self._slots[group.slot].bound.append(group)
        if verdict.run:
            self._groups += len(verdict.run)
            self.due = True
        return [self._settle(item, error=error) for item, error in verdict.fail if item.state is not _SETTLED]

    # ------------------------------------------------------------------ bookkeeping

    def _advance(self, now: float) -> None:
        # A clock that steps back, or says nothing, must not reopen windows or reorder arrivals.
        if now > self._now:
            self._now = now

    def _refusal(self, item: Item) -> TidegateError | None:
        policy = self.policy
        if self._refusing is not None:
            return self._refusing()
        if not item.cost <= self._max_cost:
            return TooCostly(item.cost, self._max_cost)
        if item.deadline <= self._now:
            return DeadlineExceeded()
        if self.waiting >= policy.max_queue_size:
            return Overloaded(f"{self.waiting} requests are waiting already (max_queue_size={policy.max_queue_size})")
        if self._queued_bytes + item.nbytes > policy.max_queue_bytes and self.waiting:
            return Overloaded(
                f"{self._queued_bytes} bytes are waiting already (max_queue_bytes={policy.max_queue_bytes})"
            )
        return None

    def _put_back(self, items: list[Item]) -> None:
        """Running items wait again, each in its old place."""
        if not items:
            return
        for item in items:
            item.state = _QUEUED
            self._queued_bytes += item.nbytes
        self.waiting += len(items)
        self._lanes.setdefault(items[0].group, Lane()).put_back(items)

    def _await_retry(self, items: list[Item]) -> None:
        for item in items:
            item.state = _RETRY
            self._retrying[item] = None
            self._queued_bytes += item.nbytes
        self.waiting += len(items)

    def _left_lane(self, group: Hashable, items: int, cost: float) -> None:
        """Items that waited in a lane have a new state."""
        lane = self._lanes[group]
        lane.left(items, cost)
        if not lane.live:
            del self._lanes[group]

    def _settle(
        self, item: Item, *, value: Any = None, error: BaseException | None = None, armed: bool = True
    ) -> Settle:
        state = item.state
        item.state = _SETTLED
        item.settled_at = self._now
        if state is _QUEUED or state is _RETRY:
            self.waiting -= 1
            self._queued_bytes -= item.nbytes
            if state is _QUEUED:
                self._left_lane(item.group, 1, item.cost)
            else:
                del self._retrying[item]
        if armed and state is not _NEW and item.deadline < inf:
            self._expiry.forget()
        return Settle(item, Outcome(value, error))

    def _give_up(self, error: TidegateError) -> list[Action]:
        """Answer everything that waits with `error`."""
        queued = [item for lane in self._lanes.values() for item in lane]
        return [self._settle(item, error=error) for item in (*queued, *self._retrying)]

    def _load(self, size: int, cost: float) -> float:
        """What service time depends on: the cost of a batch if the handler says what an item costs, else its size."""
        return size if self._load_per_cost is None else max(1.0, cost * self._load_per_cost)

    def _unit(self, lane: Lane) -> float:
        """The load of one item of the lane."""
        return self._load(lane.live, lane.cost) / lane.live

    def _seconds(self, items: list[Item]) -> float:
        if self._service.observations == 0:
            return 0.0  # nobody is refused on the word of a warm-up run
        size = len(items)
        return self._seconds_of(
            size if self._load_per_cost is None else self._load(size, sum(item.cost for item in items))
        )

    def _soonest(self, item: Item) -> float:
        """Seconds that an item takes at the very least, alone."""
        return self._service.optimistic(self._load(1, item.cost))

    def _seconds_of(self, load: float) -> float:
        seconds = self._service.predict(load)
        return seconds + self._preparation.predict(load) if self._prefetching else seconds


def _unavailable() -> TidegateError:
    return Unavailable("every worker of this handler has ended")
