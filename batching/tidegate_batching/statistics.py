"""Counters and histograms of a batcher, and the frozen snapshot that callers see."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from tidegate_batching.item import Dispatch, Release, Settle

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

    __slots__ = ("_batch_sizes", "_outcomes", "_queue", "_released", "_rerun", "_run", "submitted")

    def __init__(self) -> None:
        self.submitted = 0
        self._outcomes: Counter[str] = Counter()
        self._batch_sizes: Counter[int] = Counter()
        self._released: Counter[str] = Counter()
        self._rerun = 0
        self._queue = _Buckets()
        self._run = _Buckets()

    def dispatched(self, action: Dispatch) -> None:
        self._batch_sizes[len(action.items)] += 1
        self._released[action.reason.value] += 1
        if action.reason is Release.RETRY:
            self._rerun += len(action.items)

    def settled(self, action: Settle) -> None:
        item, outcome = action
        if outcome.error is None:
            self._outcomes["ok"] += 1
            self._queue.add(item.dispatched_at - item.arrived_at)
            self._run.add(item.settled_at - item.dispatched_at)
        else:
            self._outcomes[getattr(outcome.error, "code", "internal-error")] += 1

    def snapshot(self, *, waiting: int, running: int) -> Statistics:
        return Statistics(
            waiting,
            running,
            self.submitted,
            dict(self._outcomes),
            dict(self._batch_sizes),
            dict(self._released),
            self._rerun,
            self._queue.frozen(),
            self._run.frozen(),
        )


class _Buckets:
    __slots__ = ("_counts", "_sum")

    def __init__(self) -> None:
        self._counts = [0] * (len(SECONDS_BOUNDS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(SECONDS_BOUNDS, seconds)] += 1
        self._sum += seconds

    def frozen(self) -> Histogram:
        return Histogram(tuple(self._counts), self._sum)
