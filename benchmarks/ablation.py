"""Switch off each learned rule in turn and see what it was worth; ABLATION.md holds the tables and the verdicts.

    python benchmarks/ablation.py hold       # phase, cohort, knee, and all of them against natural batching
    python benchmarks/ablation.py prefetch   # late-bound, eager, serial
    python benchmarks/ablation.py shed       # the rate rule against its simpler forms

Every cell compares two variants on the same arrivals and averages the logarithm of their ratio over the seeds. A cell's
first figure is mean latency in an open loop and throughput in a closed one, its second p99 latency in both; positive
means that the rule helps.
"""

from __future__ import annotations

import argparse
import itertools
import math
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from simulation import MODELS, ClosedLoop, Result, line, open_loop, simulate

import tidegate_batching.scheduler
from tidegate_batching import shedding
from tidegate_batching.item import Action, Item
from tidegate_batching.linger import Linger
from tidegate_batching.scheduler import Scheduler

NOISE = 0.03
WORKERS = (1, 2, 4)
LOADS = (0.2, 0.5, 0.8, 0.95)


class Cell(NamedTuple):
    """One setting. `load`: of the ceiling in an open loop, clients per worker and full batch in a closed one."""

    model: str
    workers: int
    kind: str
    load: float

    @property
    def closed(self) -> bool:
        return self.kind.startswith("closed")

    def arrivals(self, seed: int, count: int) -> Any:
        """The same for every variant."""
        model = MODELS[self.model]
        if self.closed:
            think = (0.0003, 0.001) if self.kind == "closed" else (0.005, 0.015)
            return ClosedLoop(max(2, int(self.load * self.workers * model.max_batch)), think, count)
        return open_loop(model, self.load, workers=self.workers, kind=self.kind, count=count, seed=seed)  # type: ignore[arg-type]


class NoPhase(Linger):
    """Several workers are left to bunch."""

    __slots__ = ()

    def _phase_wait(self, *_: Any) -> float:
        return 0.0


class NoCohort(Linger):
    """Nobody waits for callers that return together."""

    __slots__ = ()

    def _cohort_wait(self, *_: Any) -> tuple[float, int]:
        return 0.0, 0


class NoKnee(Linger):
    """A batch takes all that waits."""

    __slots__ = ()

    def knee(self, queued: int, limit: int, *_: Any) -> int:
        return limit


HOLD: dict[str, dict[str, Any]] = {
    "auto": {},
    "phase": {"linger": NoPhase},
    "cohort": {"linger": NoCohort},
    "knee": {"linger": NoKnee},
    "all three": {"timeout": 0},
}
"""What is switched off, and how."""


def hold_cells(models: Iterable[str]) -> list[Cell]:
    """Open and closed loops on every model."""
    kinds = [(kind, load) for kind in ("poisson", "mmpp", "fan8") for load in LOADS]
    kinds += [("closed", 0.25), ("closed", 0.5), ("closed", 1.0), ("closed, slow", 0.5), ("closed, slow", 1.0)]
    return [Cell(model, workers, kind, load) for model in models for workers in WORKERS for kind, load in kinds]


def run_hold(variants: dict[str, dict[str, Any]], count: int, job: tuple[Cell, int]) -> dict[str, Result]:
    """All variants of one cell on one seed."""
    cell, seed = job
    seed += zlib.crc32(repr(cell).encode()) % 100_000  # cells must not share their luck
    model = MODELS[cell.model]
    return {
        name: simulate(model, cell.arrivals(seed, count), workers=cell.workers, noise=NOISE, seed=seed, **options)
        for name, options in variants.items()
    }


def gains(cell: Cell, full: Result, without: Result) -> tuple[float, float]:
    """Logarithms by which `full` is better than `without`: in mean latency or throughput, and in p99."""
    first = math.log(full.throughput / without.throughput) if cell.closed else math.log(without.mean / full.mean)
    return first, math.log(without.p99 / full.p99)


Gains = dict[Cell, tuple[float, float]]


def compare(
    jobs: list[tuple[Cell, int]], results: list[dict[str, Result]], full: str, without: str
) -> tuple[Gains, float]:
    """Percent by which `full` beats `without` in every cell, and the typical standard error of those."""
    logs: dict[Cell, list[tuple[float, float]]] = {}
    for (cell, _), result in zip(jobs, results, strict=True):
        logs.setdefault(cell, []).append(gains(cell, result[full], result[without]))
    errors = [np.std(values, axis=0, ddof=1) / math.sqrt(len(values)) for values in logs.values() if len(values) > 1]
    typical = float(100 * np.median(errors)) if errors else math.nan
    means = {cell: np.mean(values, axis=0) for cell, values in logs.items()}
    return {cell: (100 * math.expm1(first), 100 * math.expm1(p99)) for cell, (first, p99) in means.items()}, typical


def show(title: str, table: Gains, error: float, limit: float) -> None:
    """Best and worst cell by model and workers, then every cell that lost more than `limit` percent."""
    print(f"\n### {title}\n\nStandard error {error:.1f} %.\n")
    workers = sorted({cell.workers for cell in table})
    print("| | " + " | ".join(f"W={w}, mean or throughput | W={w}, p99" for w in workers) + " |")
    print("| --- |" + " --- |" * (2 * len(workers)))
    for model in dict.fromkeys(cell.model for cell in table):
        row = []
        for w, i in itertools.product(workers, (0, 1)):
            values = [value[i] for cell, value in table.items() if cell.model == model and cell.workers == w]
            row.append(f"{min(values):+.0f} … {max(values):+.0f}")
        print(f"| {model} | " + " | ".join(row) + " |")
    for i, metric in enumerate(("mean or throughput", "p99")):
        ordered = sorted(table.items(), key=lambda entry: entry[1][i])
        losses = [(cell, value[i]) for cell, value in ordered if value[i] < -limit]
        wins = sum(value[i] >= 5 for value in table.values())
        print(f"\n{metric}: {wins} of {len(table)} cells win 5 % or more, {len(losses)} lose more than {limit:g} %.")
        for name, entries in (("most", [(c, v[i]) for c, v in ordered[:-6:-1]]), ("least", losses[:12])):
            cells = "; ".join(f"{c.model} W={c.workers} {c.kind} {c.load:g}: {v:+.1f}" for c, v in entries)
            print(f"* {name}: {cells or 'none'}")


def hold(pool: ProcessPoolExecutor, given: argparse.Namespace) -> None:
    """Phase, cohort, knee."""
    cells = [cell for cell in hold_cells(given.models) if cell.workers in given.workers]
    jobs = [(cell, seed) for cell in cells for seed in range(given.seeds)]
    results = list(pool.map(partial(run_hold, HOLD, given.count), jobs, chunksize=8))
    for rule in list(HOLD)[1:]:
        show(rule, *compare(jobs, results, "auto", rule), given.limit)


# ---------------------------------------------------------------------- prefetch


class Eager(Scheduler):
    """Binds the next batch as soon as anything waits."""

    def _prefetch(self, actions: list[Action]) -> None:
        for slot in self._slots.values():
            if self._lanes and slot.takes_another():
                self._dispatch_fresh(slot, actions)


PREFETCH: dict[str, dict[str, Any]] = {
    "late": {"prefetch": True},
    "eager": {"prefetch": True, "scheduler": Eager},
    "serial": {},
}
PREPARATIONS = {"light": line(0.5, 0.05), "heavy": line(1.0, 0.15)}


def run_prefetch(count: int, job: tuple[Cell, int]) -> dict[str, Result]:
    """Late-bound, eager and serial with one host preparation, named in the cell's kind."""
    cell, seed = job
    kind, preparation = cell.kind.split(" / ")
    cell = cell._replace(kind=kind)
    options = {name: {**value, "preparation": PREPARATIONS[preparation]} for name, value in PREFETCH.items()}
    return run_hold(options, count, (cell, seed))


def prefetch(pool: ProcessPoolExecutor, given: argparse.Namespace) -> None:
    """When to bind the batch that is prepared ahead."""
    cells = [
        Cell(model, workers, f"{kind} / {preparation}", load)
        for model in given.models
        if model not in ("cpu", "mid")
        for workers in given.workers
        for preparation in PREPARATIONS
        for kind, load in [
            *(("poisson", load) for load in (0.1, 0.3, 0.5, 0.7, 0.9)),
            *(("closed", n) for n in (0.5, 1, 2)),
        ]
    ]
    jobs = [(cell, seed) for cell in cells for seed in range(given.seeds)]
    results = list(pool.map(partial(run_prefetch, given.count), jobs, chunksize=4))
    for other in ("eager", "serial"):
        show(f"late-bound prefetch against {other}", *compare(jobs, results, "late", other), given.limit)


# ---------------------------------------------------------------------- shedding


def first_come(
    waiting: Iterable[Item],
    limit: int,
    max_cost: float,
    now: float,
    predict: Callable[..., float],
    soonest: Callable[[Item], float],
) -> shedding.Choice:
    """Nobody is given up before the deadline has passed."""
    return shedding.Choice(list(itertools.islice(waiting, limit)), [])


def hopeless(
    waiting: Iterable[Item],
    limit: int,
    max_cost: float,
    now: float,
    predict: Callable[..., float],
    soonest: Callable[[Item], float],
) -> shedding.Choice:
    """Who cannot make it alone is given up, nobody else."""
    items = list(waiting)
    late = [item for item in items if item.deadline < now + soonest(item)]
    fit = [item for item in items if item.deadline >= now + soonest(item)]
    return shedding.Choice(fit[:limit], late) if fit else shedding.Choice(late[:1], [])


def smaller(
    waiting: Iterable[Item],
    limit: int,
    max_cost: float,
    now: float,
    predict: Callable[..., float],
    soonest: Callable[[Item], float],
) -> shedding.Choice:
    """The batch shrinks until its most urgent item can bear it."""
    batch, late = hopeless(waiting, limit, max_cost, now, predict, soonest)
    return shedding.Choice(shedding._longest_in_time(batch, now, predict), late)


SHED: dict[str, Callable[..., shedding.Choice]] = {
    "rate": shedding.choose,
    "expired only": first_come,
    "hopeless only": hopeless,
    "smaller batch": smaller,
}
OBJECTIVES = {"gpu": 0.05, "gpu_mid": 0.025, "cpu": 0.1, "mid": 0.1, "bert_fit": 0.025, "resnet_fit": 0.035}


def run_shed(count: int, job: tuple[str, int, float, int]) -> dict[str, float]:
    """Goodput as a share of the ceiling under each rule."""
    name, workers, load, seed = job
    model = MODELS[name]
    found: dict[str, float] = {}
    options: dict[str, Any] = {"workers": workers, "slo": OBJECTIVES[name], "noise": NOISE, "seed": seed}
    arrivals = open_loop(model, load, workers=workers, count=count, seed=seed)
    for rule, choose in SHED.items():
        with patch.object(tidegate_batching.scheduler, "choose", choose):
            found[rule] = simulate(model, arrivals, **options).goodput / model.ceiling(workers)
    found["none"] = simulate(model, arrivals, **options, shed=False).goodput / model.ceiling(workers)
    return found


def shed(pool: ProcessPoolExecutor, given: argparse.Namespace) -> None:
    """Goodput around and above the ceiling."""
    names = [name for name in given.models if name in OBJECTIVES]
    settings = list(itertools.product(names, (1, 4), (0.8, 0.95, 1.2, 2.0)))
    jobs = [(*setting, seed) for setting in settings for seed in range(given.seeds)]
    results = dict(zip(jobs, pool.map(partial(run_shed, given.count), jobs), strict=True))
    columns = [*SHED, "none"]
    print("\n### Shedding: goodput as a share of the ceiling\n")
    print("| model, objective, W, load | " + " | ".join(columns) + " |\n| --- |" + " --- |" * len(columns))
    for name, workers, load in settings:
        cells = [
            float(np.mean([results[name, workers, load, seed][column] for seed in range(given.seeds)]))
            for column in columns
        ]
        print(
            f"| {name} {OBJECTIVES[name] * 1e3:g} ms W={workers} {load} | "
            + " | ".join(f"{c:.2f}" for c in cells)
            + " |"
        )


def main() -> None:
    """One section of ABLATION.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=("hold", "prefetch", "shed"))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--workers", nargs="+", type=int, default=list(WORKERS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=2.0, help="percent lost that are worth a line")
    given = parser.parse_args()
    with ProcessPoolExecutor(given.jobs) as pool:
        {"hold": hold, "prefetch": prefetch, "shed": shed}[given.section](pool, given)


if __name__ == "__main__":
    main()
