"""A discrete-event simulator that drives the project's own scheduler in virtual time.

The scheduler takes `now` as an argument, so what is measured here is the code that ships, not a model of it. The
simulator does what the shell does: it delivers everything that happens at one instant, then ticks once `wake_at()` is
due. Seconds everywhere. One seed gives one result, on every machine.

Command line: one run, for a first look.

    python benchmarks/simulation.py --model gpu --workers 4 --load 0.5 --timeout auto
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Literal

import numpy as np
import numpy.typing as npt

from tidegate_batching.item import Action, Dispatch, Item
from tidegate_batching.linger import Linger
from tidegate_batching.policy import Policy
from tidegate_batching.scheduler import Scheduler

Times = npt.NDArray[np.float64]
Seconds = Callable[[int], float]
"""Seconds that a batch of n items takes."""

# ---------------------------------------------------------------------- models


@dataclass(frozen=True)
class Model:
    """A handler as the scheduler sees it: how long a batch takes, and how large it may be."""

    name: str
    seconds: Seconds
    max_batch: int

    def ceiling(self, workers: int = 1) -> float:
        """Items per second of `workers` that always run full batches."""
        return workers * self.max_batch / self.seconds(self.max_batch)


def line(fixed: float, per_item: float) -> Seconds:
    """fixed + per_item·n, given in milliseconds."""
    return lambda size: (fixed + per_item * size) / 1e3


def floor_line(floor: float, fixed: float, per_item: float) -> Seconds:
    """max(floor, fixed + per_item·n), given in milliseconds: what a GPU looks like from Python."""
    return lambda size: max(floor, fixed + per_item * size) / 1e3


def table(milliseconds: dict[int, float]) -> Seconds:
    """A measured table, interpolated, and prolonged by its last segment."""
    sizes, values = list(milliseconds), list(milliseconds.values())
    last = (values[-1] - values[-2]) / (sizes[-1] - sizes[-2])
    top = 4 * sizes[-1]
    curve = np.interp(np.arange(top + 1), [*sizes, top], [*values, values[-1] + last * (top - sizes[-1])]) / 1e3
    return [float(value) for value in curve].__getitem__


def fitted(milliseconds: dict[int, float]) -> Seconds:
    """max(floor, a + c·n) fitted to a measured table: at every split a mean and a least-squares line, the best kept.

    Size 1 is left out: its first runs were those of a cold process.
    """
    sizes = np.array([size for size in milliseconds if size > 1], float)
    values = np.array([milliseconds[int(size)] for size in sizes])
    best: tuple[float, float, float, float] = (inf, 0.0, 0.0, 0.0)
    for split in range(2, len(sizes) - 1):
        floor = float(np.median(values[:split]))
        slope, fixed = np.polyfit(sizes[split:], values[split:], 1)
        error = float(np.sum((np.maximum(floor, fixed + slope * sizes) / values - 1) ** 2))
        best = min(best, (error, floor, float(fixed), float(slope)))
    return floor_line(*best[1:])


_SIZES = (1, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256)
# Milliseconds per batch on one H200, bf16, eager, host NumPy in and out; medians of 120 runs.
BERT = dict(zip(_SIZES, (5.9, 4.1, 4.0, 5.5, 4.1, 3.9, 4.2, 5.8, 7.4, 10.9, 14.3), strict=True))
RESNET = dict(zip(_SIZES, (5.4, 3.9, 3.9, 4.0, 4.4, 4.5, 5.6, 8.8, 12.2, 16.3, 21.7), strict=True))

MODELS = {
    model.name: model
    for model in (
        Model("gpu", line(8, 0.15), 64),
        Model("gpu_mid", line(1.9, 0.144), 64),
        Model("cpu", line(0.5, 5), 16),
        Model("mid", line(5, 1), 32),
        Model("bert_fit", fitted(BERT), 128),
        Model("resnet_fit", fitted(RESNET), 128),
        Model("bert", table(BERT), 128),
        Model("resnet", table(RESNET), 128),
    )
}

# ---------------------------------------------------------------------- arrivals


def poisson(rng: np.random.Generator, rate: float, count: int) -> Times:
    """Independent callers."""
    return np.cumsum(rng.exponential(1 / rate, count))


def mmpp(
    rng: np.random.Generator, rate: float, count: int, *, ratio: float = 3, high: float = 0.3, dwell: float = 0.05
) -> Times:
    """Bursty: a rate that jumps between two levels `ratio` apart, the higher one for a share `high` of the time."""
    low_rate = rate / (1 - high + high * ratio)
    rates = (low_rate, low_rate * ratio)
    dwells = (dwell * (1 - high) / high, dwell)
    parts: list[Times] = []
    now, state, total = 0.0, 0, 0
    while total < count:
        length = rng.exponential(dwells[state])
        part = np.sort(now + rng.uniform(0, length, rng.poisson(rates[state] * length)))
        parts.append(part)
        total += len(part)
        now += length
        state = 1 - state
    return np.concatenate(parts)[:count]


def fanout(rng: np.random.Generator, rate: float, count: int, *, width: int = 8, spread: float = 0.0005) -> Times:
    """Callers that send `width` requests at once, within `spread` seconds."""
    starts = np.cumsum(rng.exponential(width / rate, math.ceil(count / width)))
    return np.sort((starts[:, None] + rng.uniform(0, spread, (len(starts), width))).ravel())[:count]


def steps(rng: np.random.Generator, rates: Sequence[float], seconds: float) -> Times:
    """Poisson arrivals whose rate changes every `seconds`."""
    parts = [np.sort((i + rng.uniform(0, 1, rng.poisson(rate * seconds))) * seconds) for i, rate in enumerate(rates)]
    return np.concatenate(parts)


@dataclass(frozen=True)
class ClosedLoop:
    """Clients that think, uniformly between two times, and then wait for their answer; `count` requests in all."""

    clients: int
    think: tuple[float, float]
    count: int


# ---------------------------------------------------------------------- one run


@dataclass(frozen=True)
class Result:
    """What one run gave, its first 10 % cut off. Latencies are those of the answered items, in seconds."""

    mean: float
    p50: float
    p99: float
    throughput: float  # answers per second
    goodput: float  # answers within the objective per second; all answers if there is none
    refused: float  # share of the items that got an error
    batch: float  # mean size of a batch
    wakes: float  # ticks per batch


_ARRIVE, _PREPARED, _COMPLETE = range(3)
_WARM_UP = 0.1


@dataclass
class Simulation:
    """One run; `run` may be called once.

    slo: seconds within which an answer counts. shed: tell the scheduler too, as a deadline. noise: relative spread of
    service times. preparation: seconds that the host needs per batch before the device starts; workers prepare one
    batch while another runs if `prefetch`, else one after the other.
    """

    scheduler: Scheduler
    seconds: Seconds
    arrivals: Times | ClosedLoop
    workers: int = 1
    slo: float = inf
    shed: bool = True
    noise: float = 0.0
    preparation: Seconds | None = None
    prefetch: bool = False
    seed: int = 0
    items: list[Item] = field(default_factory=list)
    batches: list[tuple[float, int]] = field(default_factory=list)
    answered: dict[Item, bool] = field(default_factory=dict)
    ticks: int = 0

    def run(self) -> Result:
        """Play until every item has been settled."""
        self._random = random.Random(self.seed)
        self._events: list[tuple[float, int, int, int]] = []
        self._number = 0
        self._running: list[list[Item]] = [[] for _ in range(2 * self.workers)]
        self._device_free = [0.0] * self.workers
        for slot in range(self.workers):
            self._apply(self.scheduler.slot_ready(slot, 0.0, prefetch=self.prefetch), 0.0)
        self._play(self._opening())
        return self._result()

    def _opening(self) -> list[float]:
        if not isinstance(self.arrivals, ClosedLoop):
            return [float(time) for time in self.arrivals]
        self._to_come = self.arrivals.count
        longest = self.arrivals.think[1]
        return sorted(self._random.uniform(0, longest) for _ in range(self.arrivals.clients))

    def _play(self, arrivals: list[float]) -> None:
        scheduler, events = self.scheduler, self._events
        arrivals = [*arrivals, inf]
        upcoming = 0
        while True:
            now = min(arrivals[upcoming], events[0][0] if events else inf, scheduler.wake_at())
            if now == inf:
                return
            while events and events[0][0] <= now:
                _, _, kind, slot = heapq.heappop(events)
                self._happen(kind, slot, now)
            while arrivals[upcoming] <= now:
                upcoming += 1
                self._arrive(now)
            while scheduler.wake_at() <= now:
                self.ticks += 1
                self._apply(scheduler.tick(now), now)

    def _happen(self, kind: int, slot: int, now: float) -> None:
        if kind == _ARRIVE:
            self._arrive(now)
        elif kind == _PREPARED:
            self._apply(self.scheduler.prepared(slot, now), now)
        else:
            batch = self._running[2 * slot]
            self._running[2 * slot], self._running[2 * slot + 1] = self._running[2 * slot + 1], []
            self._apply(self.scheduler.complete(slot, batch, now), now)

    def _arrive(self, now: float) -> None:
        item = Item(None, deadline=now + self.slo if self.shed else inf)
        item.arrived_at = now
        self.items.append(item)
        self._apply(self.scheduler.submit(item, now), now)

    def _apply(self, actions: Sequence[Action], now: float) -> None:
        for action in actions:
            if isinstance(action, Dispatch):
                self._start(action, now)
                continue
            item, outcome = action
            self.answered[item] = outcome.error is None
            if isinstance(self.arrivals, ClosedLoop) and self._to_come > self.arrivals.clients:
                self._to_come -= 1
                self._push(now + self._random.uniform(*self.arrivals.think), _ARRIVE, 0)

    def _start(self, dispatch: Dispatch, now: float) -> None:
        slot, size = dispatch.slot, len(dispatch.items)
        self.batches.append((now, size))
        running = 2 * slot if not self._running[2 * slot] else 2 * slot + 1
        assert not self._running[running], "a third batch in one slot"
        self._running[running] = dispatch.items
        seconds = self.seconds(size)
        if self.noise:
            seconds *= math.exp(self._random.gauss(0, self.noise))
        ready = now if self.preparation is None else now + self.preparation(size)
        if self.prefetch:
            self._push(ready, _PREPARED, slot)
        self._device_free[slot] = max(ready, self._device_free[slot]) + seconds
        self._push(self._device_free[slot], _COMPLETE, slot)

    def _push(self, time: float, kind: int, slot: int) -> None:
        self._number += 1
        heapq.heappush(self._events, (time, self._number, kind, slot))

    def _result(self) -> Result:
        counted = self.items[int(_WARM_UP * len(self.items)) :]
        start = counted[0].arrived_at
        latencies = np.array([item.settled_at - item.arrived_at for item in counted if self.answered[item]])
        if not len(latencies):
            return Result(inf, inf, inf, 0.0, 0.0, 1.0, 0.0, 0.0)
        span = max(item.settled_at for item in counted) - start
        p50, p99 = np.percentile(latencies, (50, 99))
        return Result(
            mean=float(latencies.mean()),
            p50=float(p50),
            p99=float(p99),
            throughput=len(latencies) / span,
            goodput=float((latencies <= self.slo + 1e-9).sum()) / span,
            refused=1 - len(latencies) / len(counted),
            batch=float(np.mean([size for time, size in self.batches if time >= start])),
            wakes=self.ticks / len(self.batches),
        )


def simulate(
    model: Model,
    arrivals: Times | ClosedLoop,
    *,
    timeout: float | Literal["auto"] = "auto",
    linger: Callable[..., Linger] = Linger,
    scheduler: Callable[..., Scheduler] = Scheduler,
    workers: int = 1,
    slo: float = inf,
    shed: bool = True,
    noise: float = 0.0,
    preparation: Seconds | None = None,
    prefetch: bool = False,
    seed: int = 0,
) -> Result:
    """Run `model` under `batch_timeout=timeout`: 0 is natural batching, a number a window, "auto" the product."""
    policy = Policy(max_batch_size=model.max_batch, batch_timeout=timeout, max_queue_size=1 << 30)
    return Simulation(
        scheduler(policy, linger),
        model.seconds,
        arrivals,
        workers,
        slo,
        shed,
        noise,
        preparation,
        prefetch,
        seed,
    ).run()


def open_loop(
    model: Model,
    load: float,
    *,
    workers: int = 1,
    kind: Literal["poisson", "mmpp", "fan8"] = "poisson",
    count: int = 20_000,
    seed: int = 0,
) -> Times:
    """Arrivals at `load` times what the workers can do with full batches."""
    arrivals = {"poisson": poisson, "mmpp": mmpp, "fan8": fanout}[kind]
    return arrivals(np.random.default_rng(seed), load * model.ceiling(workers), count)


def main() -> None:
    """One run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="gpu")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--load", type=float, default=0.5)
    parser.add_argument("--arrivals", choices=("poisson", "mmpp", "fan8"), default="poisson")
    parser.add_argument("--clients", type=int, default=0, help="a closed loop of this many, thinking 0.3-1 ms, instead")
    parser.add_argument("--timeout", default="auto", help="auto, or seconds; 0 is natural batching")
    parser.add_argument("--slo", type=float, default=inf, help="seconds")
    parser.add_argument("--no-shed", action="store_true", help="do not tell the scheduler about the objective")
    parser.add_argument("--noise", type=float, default=0.03)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    model = MODELS[given.model]
    arrivals = (
        ClosedLoop(given.clients, (0.0003, 0.001), given.count)
        if given.clients
        else open_loop(
            model, given.load, workers=given.workers, kind=given.arrivals, count=given.count, seed=given.seed
        )
    )
    result = simulate(
        model,
        arrivals,
        timeout="auto" if given.timeout == "auto" else float(given.timeout),
        workers=given.workers,
        slo=given.slo,
        shed=not given.no_shed,
        noise=given.noise,
        seed=given.seed,
    )
    ceiling = model.ceiling(given.workers)
    print(
        f"mean {result.mean * 1e3:.2f} ms  p50 {result.p50 * 1e3:.2f}  p99 {result.p99 * 1e3:.2f}  "
        f"throughput {result.throughput:.0f}/s ({result.throughput / ceiling:.3f} of the ceiling)  "
        f"goodput {result.goodput / ceiling:.3f}  refused {result.refused:.3f}  "
        f"batch {result.batch:.1f}  ticks per batch {result.wakes:.2f}"
    )


if __name__ == "__main__":
    main()
