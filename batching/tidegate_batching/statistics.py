"""Counters and histograms of a batcher, and the frozen snapshot that callers see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from tidegate_batching.item import Dispatch, Settle

__all__ = ["Statistics"]


@dataclass(frozen=True, slots=True)
class Statistics:
    """A batcher at one instant.

    queued, running: items waiting and batches in flight now. submitted and outcomes: items since the start, outcomes
    by the error's `code` or "ok". batch_sizes: size -> batches. released: reason -> batches.
    """

    queued: int
    running: int
    submitted: int
    outcomes: Mapping[str, int]
    batch_sizes: Mapping[int, int]
    released: Mapping[str, int]

    @property
    def batches(self) -> int:
        """Batches dispatched since the start."""
        return sum(self.batch_sizes.values())

    @property
    def mean_batch_size(self) -> float:
        """Items per batch, 0.0 before the first."""
        return sum(size * n for size, n in self.batch_sizes.items()) / self.batches if self.batch_sizes else 0.0


class Recorder:
    """The mutable side: what the batcher counts as it goes."""

    def __init__(self) -> None:
        self.submitted = 0
        self.outcomes: Counter[str] = Counter()
        self.batch_sizes: Counter[int] = Counter()
        self.released: Counter[str] = Counter()

    def dispatched(self, action: Dispatch) -> None:
        self.batch_sizes[len(action.items)] += 1
        self.released[action.reason] += 1

    def settled(self, action: Settle) -> None:
        error = action.outcome.error
        self.outcomes["ok" if error is None else getattr(error, "code", "internal-error")] += 1

    def snapshot(self, *, queued: int, running: int) -> Statistics:
        return Statistics(
            queued, running, self.submitted, dict(self.outcomes), dict(self.batch_sizes), dict(self.released)
        )
