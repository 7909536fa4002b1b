"""The waiting items of one group, in the order in which they run."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterator
from operator import attrgetter
from typing import Final

from tidegate_batching.item import Item, State

__all__ = ["Lane"]

_KEY = attrgetter("key")
_QUEUED: Final = State.QUEUED  # a global is found in a third of the time


class Lane:
    """A queue ordered by priority, deadline, arrival, where items may leave from anywhere.

    An item that is cancelled or expires stays as a tombstone, known by its state, until it comes up or the tombstones
    are the majority: leaving costs nothing then and little ever after.
    """

    __slots__ = ("_arrivals", "_ordered", "cost", "live")

    def __init__(self) -> None:
        self._ordered: list[Item] = []
        self._arrivals: deque[Item] = deque()
        self.live = 0
        self.cost = 0.0

    def __iter__(self) -> Iterator[Item]:
        """The live items, first to run first."""
        return (item for item in self._ordered if item.state is _QUEUED)

    def add(self, item: Item) -> None:
        """A new item; nearly always the last one in order."""
        ordered = self._ordered
        if not ordered or item.key > ordered[-1].key:
            ordered.append(item)
        else:
            insort(ordered, item, key=_KEY)
        self._arrivals.append(item)
        self.live += 1
        self.cost += item.cost

    def put_back(self, items: list[Item]) -> None:
        """Items that were taken and are waiting again, each in its old place."""
        # Live again, they must not stand in the lists a second time as their own tombstones.
        back = set(items)
        live = [item for item in self._ordered if item.state is _QUEUED and item not in back] + items
        self._ordered = sorted(live, key=_KEY)
        self._arrivals = deque(sorted(live, key=lambda item: item.sequence))
        self.live += len(items)
        self.cost += sum(item.cost for item in items)

    def opened_at(self) -> float:
        """When the oldest live item arrived: its window opened then."""
        while self._arrivals[0].state is not _QUEUED:
            self._arrivals.popleft()
        return self._arrivals[0].arrived_at

    def head(self) -> Item:
        """The first live item in order."""
        return next(iter(self))

    def left(self, items: int, cost: float) -> None:
        """That many live items, of that summed cost, were taken, cancelled, shed or expired: their states say which."""
        self.live -= items
        self.cost -= cost
        ordered, arrivals = self._ordered, self._arrivals
        if len(ordered) > 2 * self.live + 64:
            self._ordered = [item for item in ordered if item.state is _QUEUED]
        else:
            front = 0
            while front < len(ordered) and ordered[front].state is not _QUEUED:
                front += 1
            del ordered[:front]
        if len(arrivals) > 2 * self.live + 64:
            self._arrivals = deque(item for item in arrivals if item.state is _QUEUED)
