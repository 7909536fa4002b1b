"""The highest rate that a service bears, found by halving: it says which rate to try, and is told how that went."""

from __future__ import annotations

__all__ = ["RateSearch"]

PRECISION = 0.05
"""How far the answer may be below a rate that was too high, as a share of the answer."""

MOST_PROBES = 40


class RateSearch:
    """Looks for the highest rate that passes, then has it confirmed.

    A run at one rate is a sample: near the limit the same rate passes once and fails the next time. So the rate that is
    found must pass `confirmations` further runs, and one that fails any of them is too high.

    A near miss of a new rate is run once more before it counts, for the same reason.

    start: a rate to begin with, such as what a closed loop reached. floor: no rate below it is tried.

    Example:
        >>> search = RateSearch(100.0, confirmations=1)
        >>> while (rate := search.rate) is not None:
        ...     search.note(passed=rate <= 130)
        >>> search.found
        125.0
    """

    def __init__(
        self, start: float, *, floor: float = 0.0, precision: float = PRECISION, confirmations: int = 2
    ) -> None:
        if not start > 0:
            raise ValueError(f"start={start!r}: give a rate above 0")
        start = max(start, floor)
        self._precision = precision
        self._confirmations = confirmations
        self._floor = max(floor, start / 1024)
        self._missed: float | None = None
        self._passed: list[float] = []  # ascending, each below _too_high
        self._confirmed = 0
        self._too_high: float | None = None
        self._next: float | None = start
        self.probes = 0

    @property
    def rate(self) -> float | None:
        """What to try next; None when the search is over."""
        return self._next

    @property
    def is_confirming(self) -> bool:
        """Whether the next run is of a rate that has passed before."""
        return self._next is not None and self._next in self._passed

    @property
    def found(self) -> float | None:
        """The highest rate that was confirmed; None when there is none, or not yet."""
        return self._passed[-1] if self._next is None and self._passed and self._is_confirmed else None

    def note(self, *, passed: bool, near: bool = False) -> None:
        """How the run at `rate` went. near: that it failed by little."""
        rate = self._next
        if rate is None:
            raise RuntimeError("the search is over")
        self.probes += 1
        if not passed and near and not self.is_confirming and self._missed != rate and self.probes < MOST_PROBES:
            self._missed = rate
            return
        if not passed:
            self._too_high = rate
            self._passed = [lower for lower in self._passed if lower < rate]
            self._confirmed = 0
        elif self.is_confirming:
            self._confirmed += 1
        else:
            self._passed.append(rate)
            self._confirmed = 0
        self._next = None if self.probes >= MOST_PROBES else self._choose()

    @property
    def _is_confirmed(self) -> bool:
        return self._confirmed >= self._confirmations

    def _choose(self) -> float | None:
        low = self._passed[-1] if self._passed else 0.0
        if self._too_high is None:
            return low * 1.5
        middle = max((low + self._too_high) / 2, self._floor)
        if self._too_high - low > self._precision * low and middle < self._too_high:
            return middle
        return None if not self._passed or self._is_confirmed else low
