"""Which loads are run in which order, and what they add up to: plain loads, and MLPerf's three scenarios."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tidegate.bench.driver import Driver, Timing
from tidegate.bench.record import Measurement
from tidegate.bench.schedule import AllAtOnce, Bursts, Closed, Load, Poisson, shown_rate
from tidegate.bench.search import RateSearch
from tidegate.bench.sender import Sender
from tidegate.bench.service import Look, mean_batch

__all__ = ["Bench", "Place", "Plan", "Row", "Scenario"]

Scenario = Literal["loads", "single-stream", "server", "offline"]

_SAMPLES = 100
"""Requests that a run needs for a p99."""

_SEED_STEP = 1009  # between repeats; configurations get the same arrivals


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run.

    loads: of the scenario "loads". bound: seconds that p99 may take, for "server", and for goodput. connections: callers
    for "offline" and for finding where "server" begins. requests: of "offline", None for as many as fit the duration.
    max_connections: that a load on a schedule may open.
    """

    scenario: Scenario
    loads: tuple[Load, ...]
    timing: Timing
    repeat: int = 1
    seed: int = 0
    bound: float | None = None
    connections: int = 64
    requests: int | None = None
    max_connections: int = 1000


@dataclass(frozen=True, slots=True)
class Place:
    """Where requests go. sender: makes one with so many connections. shared: the service is in this process."""

    sender: Callable[[int], Sender]
    payloads: int
    look: Callable[[], Awaitable[Look]]
    shared: bool = False


@dataclass(slots=True)
class Row:
    """One load on one configuration; note: what has to be said about it."""

    config: Mapping[str, Any]
    scenario: Scenario
    load: str
    runs: list[Measurement] = field(default_factory=list)
    note: str | None = None


class Bench:
    """Runs a plan at one place after another; `rows` has what there is so far.

    tell: gets a line before each run.
    """

    def __init__(self, plan: Plan, tell: Callable[[str], None] = lambda line: None) -> None:
        self.rows: list[Row] = []
        self.stopped = False
        self._plan = plan
        self._tell = tell
        self._driver: Driver | None = None

    def stop(self) -> bool:
        """End the run that goes on, and begin no other; False when there is none."""
        self.stopped = True
        if self._driver is None:
            return False
        self._driver.stop()
        return True

    async def run(self, place: Place, config: Mapping[str, Any]) -> None:
        """All of the plan at one place."""
        shown = "".join(f"{name} {value}, " for name, value in config.items())
        if self._plan.scenario == "server":
            await self._search(place, config, shown)
        elif self._plan.scenario == "offline":
            load: Load = await self._all_at_once(place, shown)
            await self._repeat(place, Row(config, "offline", str(load)), load, shown)
        elif self._plan.scenario == "single-stream":
            await self._repeat(place, Row(config, "single-stream", "one at a time"), Closed(1), shown)
        else:
            for load in self._plan.loads:
                await self._repeat(place, Row(config, "loads", str(load)), load, shown)

    # ------------------------------------------------------------------ scenarios

    async def _repeat(self, place: Place, row: Row, load: Load, shown: str) -> None:
        repeat = self._plan.repeat
        for number in range(repeat):
            if self.stopped:
                return
            self._tell(f"{shown}{load}" + (f", run {number + 1} of {repeat}" if repeat > 1 else ""))
            measured = await self._measure(place, load, self._plan.seed + _SEED_STEP * number)
            if not row.runs:
                self.rows.append(row)
            row.runs.append(measured)

    async def _all_at_once(self, place: Place, shown: str) -> AllAtOnce:
        plan = self._plan
        connections, requests = plan.connections, plan.requests
        if plan.timing.warmup > 0 or requests is None:
            self._tell(f"{shown}warming up")
            timing = replace(plan.timing, duration=max(1.0, plan.timing.warmup))
            speed = (await self._measure(place, Closed(connections), plan.seed, timing)).throughput
            requests = requests or max(1, math.ceil(speed * plan.timing.duration))
        return AllAtOnce(requests, min(connections, requests))

    async def _search(self, place: Place, config: Mapping[str, Any], shown: str) -> None:
        plan = self._plan
        assert plan.bound is not None
        row = Row(config, "server", "Poisson")
        self.rows.append(row)
        self._tell(f"{shown}how much it takes at most")
        ceiling = (await self._measure(place, Closed(plan.connections), plan.seed)).throughput
        if not ceiling:
            row.note = "nothing was answered"
            return
        floor = _SAMPLES / plan.timing.duration
        search = RateSearch(ceiling, floor=floor, confirmations=max(2, plan.repeat))
        good: dict[float, list[Measurement]] = {}
        complaints = 0
        while (rate := search.rate) is not None and not self.stopped:
            again = search.is_confirming
            measured = await self._measure(place, Poisson(rate), plan.seed + _SEED_STEP * search.probes)
            if measured.interrupted:
                break
            passed = _holds(measured, plan.bound)
            self._tell(
                f"{shown}{'again' if again else 'tried'} {shown_rate(rate)}/s: {_verdict(measured, passed=passed)}"
            )
            search.note(passed=passed, near=_holds(measured, 2 * plan.bound))
            good.setdefault(rate, []).extend([measured] if passed else [])
            complaints += measured.complaint is not None
        row.note = _told(search, plan, self.stopped)
        if complaints:
            row.note += f"; in {complaints} of {search.probes} runs the load generator itself may have been what limits"
        if search.found is not None:
            row.load = f"Poisson {shown_rate(search.found)}/s"
            row.runs = good[search.found]

    # ------------------------------------------------------------------ one run

    async def _measure(self, place: Place, load: Load, seed: int, timing: Timing | None = None) -> Measurement:
        plan = self._plan
        connections = load.connections if isinstance(load, (Closed, AllAtOnce)) else plan.max_connections
        async with place.sender(connections) as sender:
            driver = Driver(sender, place.payloads, load, timing or plan.timing, seed=seed, look=place.look)
            self._driver = driver
            try:
                record = await driver.run()
            finally:
                self._driver = None
        offered = load.rate if isinstance(load, (Poisson, Bursts)) else None
        measured = record.measurement(offered, plan.bound, shared=place.shared)
        before, after = record.before, record.after
        cpu = None
        if before and after and None not in (before.cpu, after.cpu) and record.ended_in_window:
            cpu = 1000 * (after.cpu - before.cpu) / record.ended_in_window
        return replace(measured, mean_batch=mean_batch(before, after), cpu_per_1000=cpu)


def _holds(measured: Measurement, bound: float) -> bool:
    """Whether everything was answered and p99 is within the bound; with too few samples the slowest must be."""
    slow = measured.latency.quantiles["p99"] or measured.latency.max
    return measured.answered_all and slow is not None and slow <= bound


def _told(search: RateSearch, plan: Plan, stopped: bool) -> str:
    bound = f"p99 within {1000 * (plan.bound or 0.0):g} ms"
    if search.found is not None:
        return f"the highest Poisson rate with {bound}, found in {search.probes} runs"
    if stopped:
        return f"stopped after {search.probes} runs, before a rate with {bound} was confirmed"
    return f"no rate with {bound} in {search.probes} runs, down to {_SAMPLES} requests in each"


def _verdict(measured: Measurement, *, passed: bool) -> str:
    slow = measured.latency.quantiles["p99"] or measured.latency.max
    missing = measured.sent - measured.ok
    told = ["no good answer" if slow is None else f"p99 {1000 * slow:.1f} ms"]
    told += [f"{missing:,} of {measured.sent:,} without a good answer"] if missing and slow is not None else []
    return f"{', '.join(told)}: {'good' if passed else 'too much'}"
