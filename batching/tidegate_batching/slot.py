"""A worker's place for one batch, and one more where the worker can prepare while it runs."""

from __future__ import annotations

from tidegate_batching.estimators import ServiceTime
from tidegate_batching.item import Item, State
from tidegate_batching.retry import Group

__all__ = ["Flight", "Slot"]


class Flight:
    """A batch that was dispatched. `load` is what its service time depends on."""

    __slots__ = ("group", "items", "load", "prepared", "sent_at", "started_at")

    def __init__(self, items: list[Item], load: float, now: float, group: Group[Item] | None) -> None:
        self.items = items
        self.load = load
        self.group = group  # None for fresh work
        self.sent_at = now
        self.started_at = now
        self.prepared = False

    def live(self) -> list[Item]:
        """The items whose callers still wait."""
        return [item for item in self.items if item.state is State.RUNNING]


class Slot:
    """What runs in one slot. `bound` are retries that only this slot's replacement may run."""

    __slots__ = ("alive", "bound", "current", "following", "gone", "number", "prefetch")

    def __init__(self, number: int, prefetch: bool, bound: list[Group[Item]]) -> None:
        self.number = number
        self.prefetch = prefetch
        self.bound = bound
        self.alive = True
        self.gone = False
        self.current: Flight | None = None
        self.following: Flight | None = None

    def items(self) -> list[Item]:
        """The live items of both batches."""
        return [item for flight in (self.current, self.following) if flight is not None for item in flight.live()]

    def unprepared(self) -> Flight | None:
        """The batch that its worker prepares now: one after the other, in the order in which they were sent."""
        return next((flight for flight in (self.current, self.following) if flight and not flight.prepared), None)

    def takes_another(self) -> bool:
        """Whether a second batch may be sent ahead."""
        return self.prefetch and self.following is None and self.current is not None and self.current.prepared

    def ends_at(self, service: ServiceTime) -> float:
        """When everything that was sent to this slot should be done."""
        assert self.current is not None
        ends = self.current.started_at + service.predict(self.current.load)
        return ends if self.following is None else ends + service.predict(self.following.load)
