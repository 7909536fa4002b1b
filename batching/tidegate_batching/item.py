"""An item, the states it passes through, and what the scheduler says about it."""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum
from math import inf
from typing import Any, Final, NamedTuple

__all__ = ["Action", "Dispatch", "Item", "Outcome", "Release", "Settle", "State"]


class State(Enum):
    """Where an item stands.

    NEW ─► QUEUED ◄─► RUNNING ◄─► RETRY    back to QUEUED when memory ran out or the batch never began,
             │           │          │      to RETRY when the batch failed
             └───────────┴──────────┴──► SETTLED, once: a value, an error, a refusal, cancelled or too late
    """

    NEW = "new"
    QUEUED = "queued"
    RUNNING = "running"
    RETRY = "retry"
    SETTLED = "settled"


# Looking a member up on its class takes as long as the rest of a line; the core does it several times per item.
_NEW: Final = State.NEW


class Release(Enum):
    """Why a batch went when it did."""

    FULL = "full"
    WINDOW = "window"  # its oldest item had waited for batch_timeout
    IDLE = "idle"  # nothing was gained by waiting
    DEADLINE = "deadline"  # waiting on would have made an item late
    RETRY = "retry"  # part of a batch that failed
    DRAIN = "drain"  # nobody else will come


class Outcome(NamedTuple):
    """How an item ended: with `error`, or where that is None with `value`."""

    value: Any = None
    error: BaseException | None = None


class Item:
    """One request's place in the queue; the unit that is batched.

    priority: 0 (first) to 7. deadline: absolute seconds on the batcher's clock, infinity for none. cost: counts
    against max_batch_cost. nbytes: counts against max_queue_bytes. group: only items of an equal group share a batch.

    `arrived_at`, `dispatched_at` and `settled_at` are on the same clock, 0.0 until then; `batch_size` is that of the
    last batch it ran in. `waiter` belongs to the shell, `info` to whoever made the item; the scheduler looks at neither.
    """

    __slots__ = (
        "arrived_at",
        "batch_size",
        "cost",
        "deadline",
        "dispatched_at",
        "group",
        "info",
        "key",
        "nbytes",
        "priority",
        "sequence",
        "settled_at",
        "started",
        "state",
        "value",
        "waiter",
    )

    def __init__(
        self,
        value: Any,
        *,
        priority: int = 3,
        deadline: float = inf,
        cost: float = 1.0,
        nbytes: int = 0,
        group: Hashable = None,
    ) -> None:
        self.value = value
        self.priority = priority
        self.deadline = deadline
        self.cost = cost
        self.nbytes = nbytes
        self.group = group
        self.state = _NEW
        self.started = False
        self.sequence = 0
        self.batch_size = 0
        self.arrived_at = 0.0
        self.dispatched_at = 0.0
        self.settled_at = 0.0
        self.key: tuple[int, float, int] = (priority, deadline, 0)
        self.waiter: Any = None
        self.info: Any = None

    def __repr__(self) -> str:
        return f"<Item {self.sequence} {self.state.value} key={self.key}>"

    @property
    def cancelled(self) -> bool:
        """Nobody waits for the answer any more, though it may still be running."""
        return self.state is State.SETTLED


class Dispatch(NamedTuple):
    """Run these items as one batch in this slot, after what it runs already; `reason` says why the batch went now."""

    slot: int
    items: list[Item]
    reason: Release


class Settle(NamedTuple):
    """Tell this item's caller how it ended. Said exactly once for every item."""

    item: Item
    outcome: Outcome


Action = Dispatch | Settle
