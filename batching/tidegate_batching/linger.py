"""When an idle worker should wait a little for company: what `batch_timeout="auto"` does.

Waiting pays in two cases and costs in all others, and one batch is not always best; each has its rule, and each rule
was kept because switching it off costs at least 5 % somewhere (benchmarks/ABLATION.md):

* phase: of several workers one is free. Going at once with few items bunches the workers; waiting until about as many
  have come as will come before the next worker frees keeps them evenly out of step.
* cohort: callers that were answered together return together. The learned profile of arrivals after such a moment
  says how long the rest takes.
* knee: where a larger batch saves little, several workers share the queue instead of one taking it all.

Waiting never pays when capacity is short: both holds fade out while the items themselves, fixed costs aside, take from
60 % to 80 % of the workers' time, and above 90 % load the knee is lifted.
"""

from __future__ import annotations

from math import ceil, inf, sqrt
from typing import Final

from tidegate_batching.estimators import EPOCH_GRID, ArrivalProfile, ArrivalRate, ServiceTime

__all__ = ["Linger"]

CEILING: Final = 0.010
"""Seconds that an idle worker waits at most; 5, 10 and 50 ms gave the same latencies, 2 ms cost 15 % at p99."""

_BRIEF: Final = 50e-6  # a shorter wait is not worth its timer
_MIN_BATCHES: Final = 3
_MIN_EPOCHS: Final = 3.0
_PATIENCE: Final = 1.25  # how much dearer a second of waiting is than a second saved
_SPREAD: Final = 1.5  # no cohort is gathered for one worker where sharing it out is faster by more than this
_KNEE_FACTOR: Final = 1.5  # at 1 a step overload costs 13 % mean latency, at 1.5 2 %
_FULL: Final = 0.9  # load beyond which every batch takes what it can
_RATE_WINDOW: Final = 0.2  # seconds over which ArrivalRate looks back


class Linger:
    """Learns arrivals and decides holds for one scheduler; service times are learned by the scheduler."""

    __slots__ = ("_epoch", "_idle_epochs", "_latest", "_pace", "_rate", "_service", "_slot_epochs", "_target", "_until")

    def __init__(self, service: ServiceTime) -> None:
        self._service = service
        self._rate = ArrivalRate()
        # The two moments after which a cohort may follow: a slot came free with items waiting, or an item came to
        # an idle system.
        self._slot_epochs = ArrivalProfile()
        self._idle_epochs = ArrivalProfile()
        self._epoch = self._idle_epochs  # the kind that runs
        self._until = inf  # the running hold ends then; infinity: none runs
        self._latest = inf  # or then, if another follows it at once
        self._target = 0  # or when so many wait: a cohort's size; 0 in a hold for the phase
        self._pace = 0.0  # or when so many a second wait as there are seconds until the next slot is free

    def arrived(self, now: float, *, to_idle: bool) -> None:
        """One item has come; `to_idle`: nobody else waited and a slot was free."""
        self._rate.observe(now)
        self._epoch.arrived(now)
        if to_idle and self._until == inf:
            self._slot_epochs.close(now)
            self._idle_epochs.open(now)
            self._epoch = self._idle_epochs

    def slot_freed(self, now: float) -> None:
        """A slot is free and items wait."""
        if self._until == inf:
            self._idle_epochs.close(now)
            self._slot_epochs.open(now)
            self._epoch = self._slot_epochs

    def released(self) -> None:
        """The batch that was held has gone, or nothing waits any more."""
        self._until = inf

    def knee(self, queued: int, limit: int, slots: int, now: float, unit: float = 1.0) -> int:
        """The batch size beyond which waiting items do better in another batch; `unit` is the load of one item."""
        if queued >= 2 * limit or self._service.observations < _MIN_BATCHES:
            return limit
        predict = self._service.predict
        rate = _cautious(self._rate.rate(now)) / slots
        slope = self._service.slope(queued * unit) * unit
        # Small sizes are hardly ever seen near full load, and a guess at them there would cost what is short.
        if slope <= 0.0 or rate * predict(limit * unit) > _FULL * limit:
            return limit
        # Not of the tangent alone: past a knee it passes below zero, and batches of one would be run for ever.
        fixed = max(0.0, predict(queued * unit) - slope * queued, predict(unit) - self._service.slope(unit) * unit)
        spare = 1.0 - rate * slope
        if spare <= 0.02:
            return limit
        return max(1, min(limit, ceil(_KNEE_FACTOR * sqrt(queued * fixed / (slope * spare)))))

    def hold(
        self, queued: int, limit: int, free: int, slots: int, next_end: float, now: float, unit: float = 1.0
    ) -> float:
        """Until when to wait with `queued` items for more; at or before `now` means go.

        limit: most items of a batch. free: idle slots, of `slots` alive. next_end: when the first busy slot is expected
        to be free.
        """
        alone = free == 1 and slots > 1
        # Less than half of the cohort has come: they are left over from one, and better off with the next.
        missed = self._until <= now and 2 * queued < self._target and alone
        if self._until < inf and not missed:
            return self._goes_on(queued, free, next_end, now)
        if free == 0 or self._service.observations < _MIN_BATCHES:
            return now
        rate = self._rate.rate(now)
        used = _cautious(rate) * self._service.slope(queued * unit) * unit / slots
        guard = min(1.0, max(0.0, (0.8 - used) / 0.2))
        horizon = self._service.predict(queued * unit)
        if alone:
            horizon = min(horizon, next_end - now)
        if guard == 0.0 or horizon <= 0.0:
            return now
        wait, target = 0.0, 0
        if not missed:
            wait, target = self._cohort_wait(queued, limit, free, slots, horizon, rate, guard, unit)
        if wait == 0.0 and alone:
            wait = guard * self._phase_wait(queued, horizon, rate)
        if not missed:
            self._latest = now + CEILING
        until = min(now + wait, self._latest)
        if until < now + _BRIEF:
            return now
        self._until, self._target, self._pace = until, target, rate
        return until

    def _goes_on(self, queued: int, free: int, next_end: float, now: float) -> float:
        """When the running hold ends as things are now: never later than it looked at first."""
        if now >= self._until:
            return now
        if self._target:
            return now if queued >= self._target else self._until
        if free != 1 or queued >= self._pace * (next_end - now - _BRIEF):
            return now
        return min(self._until, next_end - queued / self._pace)

    def _phase_wait(self, queued: int, horizon: float, rate: float) -> float:
        """Seconds until as many items are here as will come before the next slot is free.

        The d with the largest saved delay rate·d·(R - d + 2c(rate·(R - d) - n)) - n·d, whatever c. This is Symphony's
        staggering (arXiv 2308.07470) without an objective to give.
        """
        return max(0.0, (horizon - queued / rate) / 2) if rate > 0.0 else 0.0

    def _cohort_wait(
        self, queued: int, limit: int, free: int, slots: int, horizon: float, rate: float, guard: float, unit: float
    ) -> tuple[float, int]:
        """Seconds to wait for a cohort that is on its way, and the number of items at which it is complete."""
        profile = self._epoch
        if profile.epochs < _MIN_EPOCHS:
            return 0.0, 0
        room = limit - queued
        each = 2 * self._service.slope(queued * unit) * unit * queued
        best, wait, target = 0.0, 0.0, 0
        before = earlier = pace = 0.0
        for j, within in enumerate(EPOCH_GRID):
            if within > CEILING or within >= horizon:
                break
            coming = profile.expected(j)
            more, step = coming - before, within - earlier
            if more < pace * step:
                # If they come as fast as the others, the last of them are here before the step is over.
                within = earlier + more / pace
            elif more > 0.0:
                pace = more / step
            before, earlier = coming, EPOCH_GRID[j]
            if free > 1:
                # Others could take them at once: only what exceeds the free slots is won by waiting.
                joined = min(coming - (free - 1), room)
                if joined <= 0.0 or self._spreads(queued + coming, free, unit):
                    continue
                saved = joined * (horizon - within - each) - _PATIENCE * queued * within
                gain = saved / (queued + coming)
            else:
                # Only arrivals beyond what chance would bring are a cohort.
                excess = min(1.0, (coming - rate * within) / coming) if coming > 0.0 else 0.0
                if excess <= 0.0:
                    continue
                fixed = self._saved(queued, coming, unit)
                gain = guard * excess * fixed / slots * min(1.0, coming / max(profile.total, 1e-9)) - _PATIENCE * within
            if gain > best:
                best, wait, target = gain, EPOCH_GRID[j], queued + max(1, min(ceil(profile.peak(j) - 1e-9), room))
        return wait, target

    def _spreads(self, items: float, free: int, unit: float) -> bool:
        """Whether the idle slots, each with its part, are so much faster than one with all that nobody should wait."""
        return self._service.predict(items * unit) > _SPREAD * self._service.predict(items / free * unit)

    def _saved(self, queued: int, coming: float, unit: float) -> float:
        """Seconds of worker time that one batch takes less than two."""
        predict = self._service.predict
        return max(0.0, predict(queued * unit) + predict(coming * unit) - predict((queued + coming) * unit))


def _cautious(rate: float) -> float:
    """A rate one standard error higher: to count on spare capacity that is not there costs more than to miss some."""
    return rate + sqrt(rate / (2 * _RATE_WINDOW))
