"""An item, the states it passes through, and what the scheduler says about it."""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum
from typing import Any, NamedTuple

__all__ = ["Action", "Dispatch", "Item", "Outcome", "Settle", "State"]


class State(Enum):
    """Where an item stands.

    NEW ─► QUEUED ─► RUNNING ─► SETTLED, and SETTLED from anywhere by refusal, cancellation or deadline.
    """

    NEW = "new"
    QUEUED = "queued"
    RUNNING = "running"
    SETTLED = "settled"


class Outcome(NamedTuple):
    """How an item ended: with `error`, or where that is None with `value`."""

    value: Any = None
    error: BaseException | None = None


class Item:
    """One request's place in the queue; the unit that is batched.

    `priority` 0 (first) to 7, `deadline` absolute on the batcher's clock, `group` names the items that may share a
    batch. `arrived_at`, `dispatched_at` and `settled_at` are on the same clock, 0.0 until then. `waiter` belongs to the shell; the scheduler never looks at it.
    """

    __slots__ = (
        "arrived_at",
        "batch_size",
        "deadline",
        "dispatched_at",
        "group",
        "key",
        "priority",
        "sequence",
        "settled_at",
        "state",
        "value",
        "waiter",
    )

    def __init__(
        self,
        value: Any,
        *,
        priority: int = 3,
        deadline: float = float("inf"),
        group: Hashable = None,
    ) -> None:
        self.value = value
        self.priority = priority
        self.deadline = deadline
        self.group = group
        self.state = State.NEW
        self.sequence = 0
        self.arrived_at = 0.0
        self.dispatched_at = 0.0
        self.settled_at = 0.0
        self.batch_size = 0
        self.key: tuple[int, float, int] = (priority, deadline, 0)
        self.waiter: Any = None

    def __repr__(self) -> str:
        return f"<Item {self.sequence} {self.state.value} key={self.key}>"


class Dispatch(NamedTuple):
    """Run these items as one batch in this slot; `reason` says why the batch went now."""

    slot: int
    items: list[Item]
    reason: str


class Settle(NamedTuple):
    """Tell this item's caller how it ended. Said exactly once for every item."""

    item: Item
    outcome: Outcome


Action = Dispatch | Settle
