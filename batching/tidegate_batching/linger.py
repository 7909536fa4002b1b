"""When an idle worker should wait a little for company: what `batch_timeout="auto"` does.

Waiting pays in three cases and costs in all others, so each has its rule, and each rule was kept because switching it
off costs at least 5 % somewhere on measured GPU curves (benchmarks/ABLATION.md):

* phase: of several workers one is free. Going at once with few items bunches the workers; waiting until about as many
  have come as will come before the next worker frees keeps them evenly out of step.
* cohort: callers that were answered together return together. The learned profile of arrivals after such a moment
  says how long the rest takes.
* knee: where a larger batch saves little, several workers share the queue instead of one taking it all.

Waiting never pays when capacity is short: all three fade out between 60 % and 80 % load.
"""

from __future__ import annotations

from math import ceil, inf, sqrt
from typing import Final

from tidegate_batching.estimators import EPOCH_GRID, ArrivalProfile, ArrivalRate, ServiceTime

__all__ = ["Linger"]

CEILING: Final = 0.010
"""Seconds that an idle worker waits at most; 5, 10 and 50 ms gave the same latencies, 2 ms cost 15 % at p99."""

_MIN_BATCHES = 3
_MIN_EPOCHS = 3.0
_PATIENCE = 1.25  # how much dearer a second of waiting is than a second saved
_KNEE_FACTOR = 1.5  # at 1 a step overload costs 13 % mean latency, at 1.5 2 %


class Linger:
    """Learns arrivals and decides holds for one scheduler; service times are learned by the scheduler."""

    __slots__ = ("_idle_epochs", "_rate", "_service", "_slot_epochs", "_target", "_until", "cohort", "knees", "phase")

    def __init__(self, service: ServiceTime, *, phase: bool = True, cohort: bool = True, knees: bool = True) -> None:
        self.phase = phase
        self.cohort = cohort
        self.knees = knees
        self._service = service
        self._rate = ArrivalRate()
        # The two moments after which a cohort may follow: a slot came free with items waiting, or an item came to
        # an idle system.
        self._slot_epochs = ArrivalProfile()
        self._idle_epochs = ArrivalProfile()
        self._until = inf  # the running cohort hold ends then, or when `_target` items wait; infinity: none runs
        self._target = 0

    def arrived(self, now: float, *, to_idle: bool) -> None:
        """One item has come; `to_idle`: nobody else waited and a slot was free."""
        self._rate.observe(now)
        self._idle_epochs.arrived(now)
        self._slot_epochs.arrived(now)
        if to_idle and self._until == inf:
            self._slot_epochs.close(now)
            self._idle_epochs.open(now)

    def slot_freed(self, now: float) -> None:
        """A slot is free and items wait."""
        if self._until == inf:
            self._idle_epochs.close(now)
            self._slot_epochs.open(now)

    def released(self) -> None:
        """The batch that was held has gone, or nothing waits any more."""
        self._until = inf

    def knee(self, queued: int, limit: int, slots: int, now: float, unit: float = 1.0) -> int:
        """The batch size beyond which waiting items do better in another batch; `unit` is the load of one item."""
        if not self.knees or queued >= 2 * limit or self._service.observations < _MIN_BATCHES:
            return limit
        slope = self._service.slope(queued * unit) * unit
        if slope <= 0.0:
            return limit
        fixed = max(0.0, self._service.predict(queued * unit) - slope * queued)
        spare = 1.0 - self._rate.rate(now) * slope / slots
        if spare <= 0.02:
            return limit
        return max(1, min(limit, ceil(_KNEE_FACTOR * sqrt(queued * fixed / (slope * spare)))))

    def hold(
        self, queued: int, limit: int, free: int, slots: int, next_end: float, now: float, unit: float = 1.0
    ) -> float:
        """Until when to wait with `queued` items for more; at or before `now` means go.

        limit: the size at which the batch goes anyway. free: idle slots, of `slots` alive. next_end: when the first
        busy slot is expected to be free.
        """
        if self._until < inf:
            if now < self._until and queued < self._target:
                return self._until
            # Waited for, come or not: what is here goes.
            return now
        if free == 0 or self._service.observations < _MIN_BATCHES:
            return now
        slope = self._service.slope(queued * unit) * unit
        rate = self._rate.rate(now)
        guard = min(1.0, max(0.0, (0.8 - rate * slope / slots) / 0.2))
        if guard == 0.0:
            return now
        own = self._service.predict(queued * unit)
        horizon = min(own, max(0.0, next_end - now)) if free == 1 and slots > 1 else own
        if horizon <= 0.0:
            return now
        wait = self._phase_wait(queued, limit, horizon, rate, slope) * guard if free == 1 and slots > 1 else 0.0
        if self.cohort:
            longer, target = self._cohort_wait(queued, limit, free, slots, horizon, rate, slope, guard, unit)
            if longer > wait:
                self._until, self._target = now + longer, target
                return self._until
        return now + wait

    def _phase_wait(self, queued: int, limit: int, horizon: float, rate: float, slope: float) -> float:
        """Seconds until the items here balance those that will come before the next slot is free.

        The maximum of the saved delay rate·d·(R - d + 2c(M - n - rate·d)) - n·d, M = rate·R: symphony's staggering
        (arXiv 2308.07470) without an objective to give.
        """
        if not self.phase or rate <= 0.0:
            return 0.0
        coming = rate * horizon
        wait = (horizon + 2 * slope * (coming - queued) - queued / rate) / (2 * (1 + 2 * slope * rate))
        return max(0.0, min(wait, CEILING, (limit - queued) / rate))

    def _cohort_wait(
        self,
        queued: int,
        limit: int,
        free: int,
        slots: int,
        horizon: float,
        rate: float,
        slope: float,
        guard: float,
        unit: float,
    ) -> tuple[float, int]:
        """Seconds to wait for a cohort that is on its way, and the number of items at which it is complete."""
        profile = self._slot_epochs if self._slot_epochs.running else self._idle_epochs
        if profile.epochs < _MIN_EPOCHS:
            return 0.0, 0
        room = limit - queued
        best, wait, target = 0.0, 0.0, 0
        for j, within in enumerate(EPOCH_GRID):
            if within > CEILING or within >= horizon:
                break
            coming = profile.expected(j)
            if free > 1:
                # Others could take them at once: only what exceeds the free slots is won by waiting.
                joined = min(coming - (free - 1), room)
                if joined <= 0.0:
                    continue
                saved = joined * (horizon - within - 2 * slope * queued) - _PATIENCE * queued * within
                gain = saved / (queued + coming)
            else:
                # Only arrivals beyond what chance would bring are a cohort.
                excess = min(1.0, (coming - rate * within) / coming) if coming > 0.0 else 0.0
                if excess <= 0.0:
                    continue
                fixed = self._saved(queued, coming, unit)
                gain = guard * excess * fixed / slots * min(1.0, coming / max(profile.total, 1e-9)) - _PATIENCE * within
            if gain > best:
                best, wait, target = gain, within, queued + max(1, min(ceil(profile.peak(j) - 1e-9), room))
        return wait, target

    def _saved(self, queued: int, coming: float, unit: float) -> float:
        """Seconds of worker time that one batch takes less than two."""
        predict = self._service.predict
        return max(0.0, predict(queued * unit) + predict(coming * unit) - predict((queued + coming) * unit))
