"""What the scheduler learns online: how long batches take, how fast items come, and who comes together.

Seconds everywhere; `now` is an argument. What cannot be true (NaN, infinite, negative) is ignored, a clock that jumps
is survived, and nothing raises or answers with NaN: a wrong clock must not stop the queue.
"""

import math
from bisect import bisect_right
from itertools import accumulate
from typing import Final

EPOCH_GRID: Final = tuple(50e-6 * 2**j for j in range(14))
"""Horizons of `ArrivalProfile` in seconds: 50 us, 100 us, ... 409.6 ms."""
_HORIZON: Final = EPOCH_GRID[-1]

_LARGEST = 1e9  # sizes and seconds beyond it are not believed; keeps every product below far from overflow
_WARMUP_RUNS = 2  # kernels are compiled, memory pools grow: on GPUs the first two runs of a new size are slow
_DECAY = 0.98  # of every class's weight per batch
_FORGOTTEN = 0.05  # weight in batches: 150 batches after a lone run, 260 after many
_MEMORY = 10.0  # runs that a class remembers at most, so that the gain of a new one never falls below 0.1
_BAND = 1.3  # beyond it is more than jitter: 1.15x at the 99th percentile where measured, hiccups 1.5x
_YOUNG = 64  # batches during which the curve is drawn anew after each
_REDRAW = 8  # batches after which it is later on
_TOLD = 256  # sizes whose seconds are kept from one drawing to the next
_CONFIRMED = 5  # strays in a row on one side that make a change; random ones of a two-mode model rarely do


class _Streak:
    """Strays in a row on one side of the band: their number, the first one's batch, and the least extreme ratio."""

    __slots__ = ("count", "ratio", "since")

    def __init__(self) -> None:
        self.count = 0
        self.since = 0
        self.ratio = 1.0

    def add(self, ratio: float, batch: int) -> bool:
        """Note seconds/expected (1.0: inside the band); true when the streak amounts to a lasting change."""
        if ratio == 1.0:
            self.count = 0
            return False
        if self.count == 0 or (ratio > 1.0) != (self.ratio > 1.0):
            self.count, self.since, self.ratio = 0, batch, ratio
        # The least extreme: a 100x stall inside a real slowdown of 1.6x must not set the new level.
        self.ratio = min(self.ratio, ratio) if ratio > 1.0 else max(self.ratio, ratio)
        self.count += 1
        return self.count >= _CONFIRMED


class _SizeClass:
    """Decayed mean size and seconds of the batches of one size class; provisional until warmed up."""

    __slots__ = ("agreed", "agreed_seconds", "runs", "seconds", "size", "spread", "strays", "weight")

    def __init__(self, size: float, seconds: float) -> None:
        self.size = size
        self.seconds = seconds
        self.weight = 0.0
        self.runs = 0
        self.spread = 0.0  # mean of how far runs are off, as a fraction
        self.strays = _Streak()
        self.agreed = 0  # the last batch that fell inside the band, and the mean as it was then
        self.agreed_seconds = seconds

    def warm_up(self, size: float, seconds: float) -> None:
        """Take one of the first runs: the fastest of them is the nearest to what the class will settle at."""
        if seconds <= self.seconds:
            self.size, self.seconds = size, seconds

    def settle(self, size: float, seconds: float, unit: float, batch: int) -> None:
        """Take the first run after warm-up, which should not be slower than warming up was."""
        self.seconds = min(seconds, _BAND * self.seconds * max(1.0, size / self.size))
        self.size, self.weight = size, unit
        self.agreed, self.agreed_seconds = batch, self.seconds

    def follow(self, size: float, seconds: float, unit: float, batch: int) -> float:
        """Move the means towards a run, clipped to the band (Huber 1964); returns its ratio, 1.0 inside the band."""
        # Inside a class the truth lies between flat and proportional to the size: only what is beyond both strays.
        expected = sorted((self.seconds, seconds, self.seconds * size / self.size))[1]
        # A wide spread (inputs of all lengths) makes a wide band: it is noise to average, not one change after another.
        band = max(_BAND, 1.0 + 3.0 * self.spread)
        clipped = min(max(seconds, expected / band), expected * band)
        self.spread += 0.05 * (max(clipped / expected, expected / clipped) - 1.0 - self.spread)
        ratio = 1.0 if clipped == seconds else seconds / expected * self.seconds / self.agreed_seconds
        self.weight = min(self.weight + unit, _MEMORY * unit)
        gain = min(unit / self.weight, 0.5)  # a class long unseen has no weight left; still no single run may rule it
        self.size += gain * (size - self.size)
        self.seconds += gain * (clipped - self.seconds)
        if ratio == 1.0:
            self.agreed, self.agreed_seconds = batch, self.seconds
        return ratio


class ServiceTime:
    """Seconds that a batch of n items takes, learned as a non-decreasing table over geometric size classes.

    Measured GPUs are flat up to a knee and then a line, CUDA graphs are stairs, CPUs a line through the origin: no
    one line holds them. The table is read through pool-adjacent-violators (Ayer et al. 1955) and interpolation.
    """

    __slots__ = ("_batch", "_behind", "_classes", "_levels", "_rises", "_sizes", "_slopes", "_steepest", "_strays",
                 "_table", "_told", "_unit", "observations")  # fmt: skip

    def __init__(self) -> None:
        self.observations = 0
        """Batches that count in the fit: possible ones, warm-up left out."""
        self._batch = 0
        self._unit = 1.0  # weight of a batch now: it grows, so that all older weights decay without being touched
        self._classes: dict[int, _SizeClass] = {}
        self._table: list[_SizeClass] = []  # the same, by size
        self._strays = _Streak()  # of all classes together
        self._behind = 0  # batches since the curve was drawn
        self._sizes: list[float] = [0.0]  # the curve: knots, their seconds, the slope from each to the next
        self._levels: list[float] = [0.0]
        self._rises: list[float] = [0.0]
        self._steepest = 0.0
        # What was read off the curve since it was drawn: a decision asks for the same few sizes over and over.
        self._told: dict[float, float] = {}
        self._slopes: dict[float, float] = {}

    def observe(self, size: float, seconds: float) -> None:
        """Learn from one batch of `size` items that ran for `seconds`."""
        if not (1 <= size <= _LARGEST and 0.0 < seconds <= _LARGEST):
            return
        seconds = max(seconds, 1e-9)
        self._batch += 1
        self._behind += 1
        one = self._class_of(int(size), seconds)
        one.runs += 1
        if one.runs <= _WARMUP_RUNS:
            one.warm_up(size, seconds)
            return
        self.observations += 1
        self._age()
        if one.runs == _WARMUP_RUNS + 1:
            one.settle(size, seconds, self._unit, self._batch)
            self._behind = _REDRAW
            return
        ratio = one.follow(size, seconds, self._unit, self._batch)
        # either the whole model changed or only this size
        confirmed = [streak for streak in (self._strays, one.strays) if streak.add(ratio, self._batch)]
        if confirmed:
            self._shift(one, confirmed[0])

    def predict(self, size: float) -> float:
        """Expected seconds of a batch of `size`; non-decreasing in it, 0.0 while nothing is known."""
        if self._behind:
            self._follow()
        seconds = self._told.get(size)
        if seconds is None:
            at = min(size, _LARGEST) if size >= 1.0 else 1.0
            i = bisect_right(self._sizes, at) - 1
            seconds = self._levels[i] + self._rises[i] * (at - self._sizes[i])
            _note(self._told, size, seconds)
        return seconds

    def slope(self, size: float) -> float:
        """Seconds that one more item adds to a batch of about `size`, over the octave around it; never negative."""
        if self._behind:
            self._follow()
        rise = self._slopes.get(size)
        if rise is None:
            at = min(size, _LARGEST) if size >= 1.0 else 1.0
            low = max(1.0, at * 0.7)
            high = max(low + 1.0, at * 1.4)
            rise = max(0.0, (self.predict(high) - self.predict(low)) / (high - low))
            _note(self._slopes, size, rise)
        return rise

    def optimistic(self, size: float) -> float:
        """A lower-side `predict`, to refuse by: low where only larger sizes were seen, 0.0 while only warm-ups were."""
        if self.observations == 0:
            return 0.0
        seconds = self.predict(size)
        size = size if size >= 1.0 else 1.0
        smallest, level = self._sizes[1], self._levels[1]
        if size < smallest:
            return min(seconds, max(level * size / smallest, level - self._steepest * (smallest - size)))
        return min(seconds, self._levels[-1])

    def _class_of(self, size: int, seconds: float) -> _SizeClass:
        """The class of a size: 1, 2, 3, 4-5, 6-7, 8-11, 12-15, 16-23, ... (two to the octave)."""
        octave = size.bit_length() - 1
        key = 2 * octave + (size >> (octave - 1) & 1 if octave else 0)
        found = self._classes.get(key)
        if found is None:
            found = self._classes[key] = _SizeClass(size, seconds)
            self._table = [self._classes[key] for key in sorted(self._classes)]
        return found

    def _age(self) -> None:
        self._unit /= _DECAY
        if self._unit > 1e30:
            for one in self._table:
                one.weight = max(one.weight / self._unit, 1e-30) if one.weight else 0.0
            self._unit = 1.0

    def _shift(self, witness: _SizeClass, streak: _Streak) -> None:
        """Scale, by a confirmed change, every class that was not seen at its old level since the change began."""
        # Pooling alone never lifts a smaller size that was not run again. Held between flat and proportional from
        # where the change was seen, or the shifts of a model that goes to and fro would add up.
        size, seconds = witness.size, witness.agreed_seconds * streak.ratio
        for one in self._table:
            if one.weight and one.agreed < streak.since:
                low, high = sorted((seconds, seconds * one.size / size))
                one.seconds = min(max(one.agreed_seconds * streak.ratio, low, 1e-9), high, _LARGEST)
                one.agreed, one.agreed_seconds = self._batch, one.seconds
                one.strays.count = 0
        self._strays.count = 0
        self._behind = _REDRAW

    def _forget(self) -> None:
        """Drop the sizes that have not run for long and would take longer than a row of smaller batches does.

        No model is like that: their few runs were slow for another reason, and thought slow they would never run again.
        """
        rate = math.inf
        for one in [one for one in self._table if one.weight]:
            if one.weight < _FORGOTTEN * self._unit and one.seconds > rate * one.size:
                self._classes = {key: other for key, other in self._classes.items() if other is not one}
                self._table.remove(one)
            else:
                rate = min(rate, one.seconds / one.size)

    def _follow(self) -> None:
        # One batch in hundreds changes little, and drawing costs more than all else that is done per batch.
        if self._behind >= _REDRAW or self.observations < _YOUNG:
            self._draw()

    def _draw(self) -> None:
        """Pool adjacent violators, then prolong the curve at both ends."""
        self._behind = 0
        self._forget()
        points = [one for one in self._table if one.weight] or self._table
        blocks: list[tuple[float, float, int]] = []  # weight, mean seconds, classes
        for one in points:
            weight, mean, width = one.weight or 1.0, one.seconds, 1
            while blocks and blocks[-1][1] >= mean:
                other_weight, other_mean, other_width = blocks.pop()
                mean = (mean * weight + other_mean * other_weight) / (weight + other_weight)
                weight, width = weight + other_weight, width + other_width
            blocks.append((weight, mean, width))
        sizes = [one.size for one in points]
        levels = [mean for _, mean, width in blocks for _ in range(width)]
        rises = [(levels[i + 1] - levels[i]) / (sizes[i + 1] - sizes[i]) for i in range(len(sizes) - 1)]
        # Neither end is trusted with its last segment, which is mostly noise: the chord over an octave, and at most
        # proportional. From a single size upwards flat: a guess too high would keep large batches from being tried.
        smallest, largest = sizes[0], sizes[-1]
        fall = rise = 0.0
        self._steepest = levels[0] / smallest
        if rises:
            near = min(bisect_right(sizes, 2 * smallest), len(sizes) - 1)
            far = max(bisect_right(sizes, largest / 2) - 1, 0)
            fall = min((levels[near] - levels[0]) / (sizes[near] - smallest), levels[0] / smallest)
            rise = min((levels[-1] - levels[far]) / (largest - sizes[far]), levels[-1] / largest)
            self._steepest = max(fall, (levels[-1] - levels[0]) / (largest - smallest))
        self._sizes = [0.0, *sizes]
        self._levels = [levels[0] - fall * smallest, *levels]
        self._rises = [fall, *rises, rise]
        self._told.clear()
        self._slopes.clear()


def _note(told: dict[float, float], size: float, seconds: float) -> None:
    """Keep what was read off the curve; costs make sizes of all kinds, and those are not collected for ever."""
    if len(told) >= _TOLD:
        told.clear()
    told[size] = seconds


class ArrivalRate:
    """Arrivals per second over an exponential window of 200 ms, corrected for the time before the first one."""

    __slots__ = ("_count", "_elapsed", "_last")

    _WINDOW: Final = 0.2

    def __init__(self) -> None:
        self._count = 0.0  # decayed, less the first arrival: that one starts the window and would bias the rate
        self._elapsed = 0.0
        self._last = math.nan

    def observe(self, now: float) -> None:
        """Count one arrival."""
        gap = now - self._last
        if 0.0 <= gap < math.inf:
            self._count = self._count * math.exp(-gap / self._WINDOW) + 1.0
            self._elapsed += gap
            self._last = now
        elif math.isfinite(now):
            if not math.isnan(self._last):
                self._count += 1.0  # the clock was set back: go on from there
            self._last = now

    def rate(self, now: float) -> float:
        """Arrivals per second as seen at `now`; 0.0 before the second arrival."""
        gap = now - self._last
        gap = gap if gap > 0.0 else 0.0
        elapsed = max(self._elapsed + gap, 1e-3)  # two arrivals of one instant are no infinite rate
        return self._count * math.exp(-gap / self._WINDOW) / (-self._WINDOW * math.expm1(-elapsed / self._WINDOW))


class ArrivalProfile:
    """How many items arrive within d of an epoch, for every d of EPOCH_GRID: finds callers that return together.

    One instance per kind of epoch (a slot became free with items waiting; an item met an idle system). Only one
    epoch runs at a time: whoever opens one calls `close` on the instances of the other kinds.
    """

    __slots__ = ("_counts", "_opened", "_peaks", "_sums", "epochs", "total")

    def __init__(self) -> None:
        self.epochs = 0.0
        """Decayed number of finished epochs, below 20: how far to trust the rest."""
        self.total = 0.0
        """Expected number of arrivals until the next epoch of whatever kind."""
        self._opened = math.nan  # no epoch runs
        self._counts = [0] * (len(EPOCH_GRID) + 1)  # the last one: beyond the grid
        self._sums = [0.0] * len(EPOCH_GRID)
        self._peaks = [0.0] * len(EPOCH_GRID)

    @property
    def running(self) -> bool:
        """Whether an epoch of this kind is under way."""
        return not math.isnan(self._opened)

    def open(self, now: float) -> None:
        """Start an epoch; the running one, if any, is finished and learned."""
        if math.isfinite(now):
            self.close(now)
            self._opened = now

    def close(self, now: float) -> None:
        """Finish the running epoch, if any, because one of another kind starts; learn from it."""
        if self.running and math.isfinite(now):
            if self._opened <= now:  # else none runs, or the clock was set back during it
                self._fold()
            self._opened = math.nan
            self._counts = [0] * (len(EPOCH_GRID) + 1)

    def arrived(self, now: float) -> None:
        """Count one arrival in the running epoch, if any."""
        age = now - self._opened
        if 0.0 <= age < _HORIZON:
            self._counts[int(age * 20_000.0).bit_length()] += 1  # under 50 us: 0, under 100 us: 1, under 200 us: 2, ...
        elif 0.0 < age < math.inf:
            self._counts[-1] += 1

    def expected(self, j: int) -> float:
        """Mean number of arrivals within EPOCH_GRID[j] of an epoch and before the next (decay 0.95 per epoch)."""
        return self._sums[j] / self.epochs if self.epochs else 0.0

    def peak(self, j: int) -> float:
        """Largest recent number of arrivals within EPOCH_GRID[j] of an epoch (decay 0.98 per epoch)."""
        return self._peaks[j]

    def _fold(self) -> None:
        *within, total = accumulate(self._counts)
        weight = self.epochs * 0.95
        self.epochs = weight + 1.0
        self.total = (self.total * weight + total) / self.epochs
        self._sums = [old * 0.95 + count for old, count in zip(self._sums, within, strict=True)]
        self._peaks = [
            kept if (kept := old * 0.98) > count else count for old, count in zip(self._peaks, within, strict=True)
        ]
