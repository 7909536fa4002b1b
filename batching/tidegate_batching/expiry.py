"""Deadlines, earliest first."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from math import inf
from typing import Final

from tidegate_batching.item import Item, State

__all__ = ["Expiry"]

_SETTLED: Final = State.SETTLED  # a global is found in a third of the time


class Expiry:
    """A heap of deadlines from which settled items vanish by themselves.

    Most items are answered long before their deadline. Their entries are dropped in bulk once they outnumber the
    others, or a service with a 30 s timeout would remember every request of the last 30 s.
    """

    __slots__ = ("_dead", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Item]] = []
        self._dead = 0

    def __len__(self) -> int:
        return len(self._heap)

    def arm(self, item: Item) -> None:
        """Watch an item's deadline. An item is armed once, however often it is queued again."""
        if item.deadline < inf:
            heappush(self._heap, (item.deadline, item.sequence, item))

    def forget(self, items: int = 1) -> None:
        """That many armed items were settled, or their deadlines no longer count."""
        self._dead += items
        if self._dead > 64 and 2 * self._dead > len(self._heap):
            self._heap = [entry for entry in self._heap if _counts(entry)]
            heapify(self._heap)
            self._dead = 0

    def next(self) -> float:
        """The earliest deadline that still counts, infinity if there is none."""
        heap = self._heap
        while heap and not _counts(heap[0]):
            heappop(heap)
            self._dead -= 1
        return heap[0][0] if heap else inf

    def due(self, now: float) -> Iterator[Item]:
        """Take out every item whose deadline is now or earlier."""
        while self.next() <= now:
            yield heappop(self._heap)[2]


def _counts(entry: tuple[float, int, Item]) -> bool:
    deadline, _, item = entry
    # `started` lifts the deadline of an item; the entry that holds the old one is void.
    return item.state is not _SETTLED and item.deadline == deadline
