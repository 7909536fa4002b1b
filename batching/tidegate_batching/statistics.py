"""Counters and histograms of a batcher, and the frozen snapshot that callers see."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from tidegate_batching.item import Dispatch, Item, Release

__all__ = ["SECONDS_BOUNDS", "Histogram", "Statistics"]

SECONDS_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the histograms' buckets in seconds; the last bucket has none."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many values fell into each bucket of `SECONDS_BOUNDS`, the last one beyond them all, and their sum."""

    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        """All values."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class Statistics:
    """A batcher at one instant.

    waiting, running: items waiting and batches in flight now. submitted and outcomes: items since the start, outcomes
    by "ok" or the error's `code`. batch_sizes: size -> batches. released: `Release` value -> batches. rerun: items
    that ran once more after a failure. queue_seconds, run_seconds: per answered item, arrival to last dispatch and
    last dispatch to answer.

    Example:
        >>> from tidegate_batching.statistics import Recorder
        >>> snapshot = Recorder().snapshot(waiting=0, running=0)
        >>> snapshot.batches, snapshot.mean_batch_size, dict(snapshot.outcomes)
        (0, 0.0, {})
    """

    waiting: int
    running: int
    submitted: int
    outcomes: Mapping[str, int]
    batch_sizes: Mapping[int, int]
    released: Mapping[str, int]
    rerun: int
    queue_seconds: Histogram
    run_seconds: Histogram

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
        self._ok = 0
        self._errors: Counter[str] = Counter()
        self._batch_sizes: Counter[int] = Counter()
        self._released: Counter[str] = Counter()
        self._rerun = 0
        self._queue_counts = [0] * (len(SECONDS_BOUNDS) + 1)
        self._queue_sum = 0.0
        self._run_counts = [0] * (len(SECONDS_BOUNDS) + 1)
        self._run_sum = 0.0

    def dispatched(self, dispatch: Dispatch) -> None:
        """Count a batch."""
        self._batch_sizes[len(dispatch.items)] += 1
        self._released[dispatch.reason.value] += 1
        if dispatch.reason is Release.RETRY:
            self._rerun += len(dispatch.items)

    def settled(self, item: Item, error: BaseException | None) -> None:
        """Count an item."""
        if error is not None:
            self._errors[getattr(error, "code", "internal-error")] += 1
            return
        self._ok += 1
        queued = item.dispatched_at - item.arrived_at
        ran = item.settled_at - item.dispatched_at
        self._queue_counts[bisect_left(SECONDS_BOUNDS, queued)] += 1
        self._queue_sum += queued
        self._run_counts[bisect_left(SECONDS_BOUNDS, ran)] += 1
        self._run_sum += ran

    def snapshot(self, *, waiting: int, running: int) -> Statistics:
        """Everything as it is now."""
        return Statistics(
            waiting,
            running,
            self.submitted,
            ({"ok": self._ok} if self._ok else {}) | self._errors,
            dict(self._batch_sizes),
            dict(self._released),
            self._rerun,
            Histogram(tuple(self._queue_counts), self._queue_sum),
            Histogram(tuple(self._run_counts), self._run_sum),
        )
