"""Who runs, when, with whom: a state machine with no clock, no await and no I/O.

Inputs (`submit`, `cancel`, `complete`, `slot_ready`, `slot_lost`, `close`) record what happened at `now` and return
what is already certain; `tick` alone decides which batches go. The caller ticks whenever `wake_at()` is due: at once
after an input that could have made a batch possible, later when a window closes or a deadline passes. Keeping the
decision apart from the inputs lets a caller deliver everything that is already readable before anything is decided.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Hashable, Sequence
from math import inf
from operator import attrgetter
from typing import Any

from tidegate_batching.errors import BatchSizeMismatch, Cancelled, Closed, Overloaded, TidegateError, from_foreign
from tidegate_batching.item import Action, Dispatch, Item, Outcome, Settle, State
from tidegate_batching.policy import Policy

__all__ = ["Scheduler"]

_KEY = attrgetter("key")


class Lane:
    """The waiting items of one group, in order; settled ones stay as tombstones until they come up."""

    __slots__ = ("arrivals", "live", "ordered")

    def __init__(self) -> None:
        self.ordered: list[Item] = []
        self.arrivals: deque[Item] = deque()
        self.live = 0

    def add(self, item: Item) -> None:
        if not self.ordered or item.key > self.ordered[-1].key:
            self.ordered.append(item)
        else:
            insort(self.ordered, item, key=_KEY)
        self.arrivals.append(item)
        self.live += 1

    def opened_at(self) -> float:
        """When the oldest item that still waits arrived: the start of the lane's window."""
        while self.arrivals[0].state is not State.QUEUED:
            self.arrivals.popleft()
        return self.arrivals[0].arrived_at

    def head(self) -> Item:
        """The first live item in order."""
        tombstones = 0
        while self.ordered[tombstones].state is not State.QUEUED:
            tombstones += 1
        del self.ordered[:tombstones]
        return self.ordered[0]

    def take(self, limit: int) -> list[Item]:
        """Remove and return the first live items, at most `limit`."""
        taken: list[Item] = []
        passed = 0
        for item in self.ordered:
            if len(taken) == limit:
                break
            passed += 1
            if item.state is State.QUEUED:
                taken.append(item)
        del self.ordered[:passed]
        self.live -= len(taken)
        return taken


class Scheduler:
    """The decisions of one handler's batcher, under one `Policy`."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.due = False
        self._now = 0.0
        self._lanes: dict[Hashable, Lane] = {}
        self._live = 0
        self._sequence = 0
        self._idle: list[int] = []
        self._running: dict[int, list[Item]] = {}
        self._window_ends = inf
        self._closed = False

    @property
    def queued(self) -> int:
        """Items waiting."""
        return self._live

    @property
    def running(self) -> int:
        """Batches in flight."""
        return len(self._running)

    @property
    def drained(self) -> bool:
        """Closed, and everything that was in has been answered."""
        return self._closed and not self._live and not self._running

    # ------------------------------------------------------------------ inputs

    def submit(self, item: Item, now: float) -> Sequence[Action]:
        """A new item has arrived; it waits, or is refused at once."""
        self._advance(now)
        if self._closed:
            return [self._settle(item, error=Closed())]
        if self._live >= self.policy.max_queue_size:
            return [self._settle(item, error=Overloaded(f"{self._live} requests are waiting already"))]
        self._sequence += 1
        item.sequence = self._sequence
        item.arrived_at = self._now
        item.key = (item.priority, item.deadline, item.sequence)
        item.state = State.QUEUED
        lane = self._lanes.get(item.group)
        if lane is None:
            lane = self._lanes[item.group] = Lane()
        lane.add(item)
        self._live += 1
        if self._idle:
            self.due = True
        return ()

    def cancel(self, item: Item, now: float) -> Sequence[Action]:
        """The caller went away: a waiting item leaves at once, a running one's result will be dropped."""
        self._advance(now)
        if item.state is State.QUEUED:
            self._leave_queue(item)
        elif item.state is not State.RUNNING:
            return ()
        return [self._settle(item, error=Cancelled())]

    def complete(self, slot: int, result: Sequence[Any] | BaseException, now: float) -> Sequence[Action]:
        """The batch in this slot ended: one output per item (an exception instance fails its item), or an exception."""
        self._advance(now)
        items = self._running.pop(slot)
        self._idle.append(slot)
        self.due = True
        if not isinstance(result, BaseException) and len(result) != len(items):
            result = BatchSizeMismatch(len(items), len(result))
        if isinstance(result, BaseException):
            return self._fail(items, from_foreign(result))
        actions: list[Action] = []
        for item, output in zip(items, result, strict=True):
            if item.state is State.RUNNING:
                error = from_foreign(output) if isinstance(output, BaseException) else None
                actions.append(self._settle(item, value=None if error else output, error=error))
        return actions

    def slot_ready(self, slot: int, now: float) -> Sequence[Action]:
        """A worker can take a batch in this slot from now on."""
        self._advance(now)
        self._idle.append(slot)
        self.due = True
        return ()

    def slot_lost(self, slot: int, error: TidegateError, now: float) -> Sequence[Action]:
        """The slot's worker is gone; what it ran fails with `error`."""
        self._advance(now)
        if slot in self._idle:
            self._idle.remove(slot)
        return self._fail(self._running.pop(slot, []), error)

    def close(self, now: float) -> Sequence[Action]:
        """Take nothing new, wait for nothing: what is in will still run."""
        self._advance(now)
        self._closed = True
        self.due = True
        return ()

    def tick(self, now: float) -> Sequence[Action]:
        """Form every batch that should go now."""
        self._advance(now)
        self.due = False
        self._window_ends = inf
        actions: list[Action] = []
        while self._idle and self._live:
            ripe = self._ripest()
            if ripe is None:
                break
            group, reason = ripe
            actions.append(self._dispatch(group, reason))
        return actions

    def wake_at(self) -> float:
        """When `tick` is due: now or earlier if something could go, infinity if nothing can change by itself."""
        return self._now if self.due else self._window_ends

    # ------------------------------------------------------------------ decisions

    def _ripest(self) -> tuple[Hashable, str] | None:
        """Of the lanes whose batch should go now the one whose head is first in order, and why it goes."""
        best: tuple[Hashable, str] | None = None
        best_key: tuple[int, float, int] | None = None
        for group, lane in self._lanes.items():
            reason = self._reason_to_go(lane)
            if reason is None:
                continue
            key = lane.head().key
            if best_key is None or key < best_key:
                best, best_key = (group, reason), key
        return best

    def _reason_to_go(self, lane: Lane) -> str | None:
        if lane.live >= self.policy.max_batch_size:
            return "full"
        window = self.policy.batch_timeout
        if window == "auto" or window == 0 or self._closed:
            return "idle"
        closes = lane.opened_at() + window
        if closes <= self._now:
            return "window"
        self._window_ends = min(self._window_ends, closes)
        return None

    def _dispatch(self, group: Hashable, reason: str) -> Dispatch:
        lane = self._lanes[group]
        items = lane.take(self.policy.max_batch_size)
        self._live -= len(items)
        if not lane.live:
            del self._lanes[group]
        for item in items:
            item.state = State.RUNNING
            item.dispatched_at = self._now
            item.batch_size = len(items)
        slot = self._idle.pop()
        self._running[slot] = items
        return Dispatch(slot, items, reason)

    # ------------------------------------------------------------------ bookkeeping

    def _advance(self, now: float) -> None:
        # A clock that steps back must not reopen windows or reorder arrivals.
        if now > self._now:
            self._now = now

    def _leave_queue(self, item: Item) -> None:
        lane = self._lanes[item.group]
        lane.live -= 1
        self._live -= 1
        if not lane.live:
            del self._lanes[item.group]

    def _fail(self, items: list[Item], error: BaseException) -> list[Action]:
        return [self._settle(item, error=error) for item in items if item.state is State.RUNNING]

    def _settle(self, item: Item, *, value: Any = None, error: BaseException | None = None) -> Settle:
        item.state = State.SETTLED
        item.settled_at = self._now
        return Settle(item, Outcome(value, error))
