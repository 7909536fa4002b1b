"""Latencies, every one of them kept, and the figures that are read off them."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["QUANTILES", "Latencies", "LatencySummary", "Spread", "spread_of"]

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """Seconds; None where there are too few samples to say."""

    count: int
    mean: float | None
    max: float | None
    quantiles: dict[str, float | None]


class Latencies:
    """Seconds, eight bytes each.

    Example:
        >>> latencies = Latencies()
        >>> for n in range(1, 101):
        ...     latencies.add(n / 1000)
        >>> latencies.quantile(0.5), latencies.quantile(0.99), latencies.quantile(0.999), latencies.within(0.0105)
        (0.05, 0.099, None, 10)
    """

    def __init__(self) -> None:
        self._samples = array("d")
        self.add = self._samples.append

    def __len__(self) -> int:
        return len(self._samples)

    def quantile(self, quantile: float) -> float | None:
        """The smallest sample that at least this share of all do not exceed (nearest rank, as MLPerf has it).

        None when fewer than one sample is expected beyond it: that figure would be the largest sample by another name.
        """
        rank = _rank(len(self._samples), quantile)
        return None if rank is None else float(np.partition(self._seen(), rank)[rank])

    def within(self, bound: float) -> int:
        """How many took this long or less."""
        return int(np.count_nonzero(self._seen() <= bound))

    def summary(self) -> LatencySummary:
        """The usual figures."""
        if not self._samples:
            return LatencySummary(0, None, None, dict.fromkeys(QUANTILES))
        seen = np.sort(self._seen())
        ranks = {name: _rank(len(seen), quantile) for name, quantile in QUANTILES.items()}
        quantiles = {name: None if rank is None else float(seen[rank]) for name, rank in ranks.items()}
        return LatencySummary(len(seen), float(seen.mean()), float(seen[-1]), quantiles)

    def _seen(self) -> npt.NDArray[np.float64]:
        # A copy: an array that is looked at through a view could not grow.
        return np.array(self._samples)


def _rank(count: int, quantile: float) -> int | None:
    """The place of a quantile among so many samples in order."""
    if count == 1 and quantile <= 0.5:
        return 0
    # The margins are for products such as 0.9 * 10, which may come out a little above 9.
    if count * (1.0 - quantile) < 1.0 - 1e-9:
        return None
    return max(0, math.ceil(quantile * count - 1e-9) - 1)


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over repeats of the same run."""

    median: float
    low: float
    high: float


def spread_of(values: Sequence[float | None]) -> Spread | None:
    """Median, smallest and largest of what is there; None where a repeat has no such figure.

    Example:
        >>> spread_of([3.0, 1.0, 2.0])
        Spread(median=2.0, low=1.0, high=3.0)
    """
    there = [value for value in values if value is not None]
    if len(there) < len(values) or not there:
        return None
    return Spread(float(np.median(there)), min(there), max(there))
