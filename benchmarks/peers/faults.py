"""What goes wrong in production, as benchmarks: poison, clients that leave, overload, bursts, idling, a long window."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import load
from contenders import Contender, Settings
from load import Plan, Question, Tally, question
from running import Running, run
from workloads import COUNTED, DELICATE, POISON, WORKLOADS, Workload

__all__ = ["all_of"]

Row = dict[str, float | int | str]

_COMPARED = ("tidegate aiohttp", "tidegate granian", "Mosec", "LitServe")
DEADLINE = 0.5
_BURST = 256


def all_of(contenders: Sequence[Contender], quick: bool) -> Iterator[tuple[str, dict[str, Row]]]:
    """One table after another: its title, and what each contender showed."""
    compared = [one for one in contenders if one.name in _COMPARED]
    seconds = 3.0 if quick else 6.0
    kinds: list[tuple[str, Callable[[Contender, float], Row]]] = [
        ("One item in a hundred is poisoned: batches of 32, 64 clients", _poisoned),
        ("30 % of the clients leave after 50 ms of waiting: batches of 8 in 20 ms, 64 clients", _leaving),
        (f"Overload: batches of 8 in 20 ms, an answer counts within {DEADLINE:g} s", _overloaded),
        ("A burst of 256 after a quiet time: echo", _burst),
        ("Idle: echo, no requests", _idle),
        ("A window of 50 ms: 20 requests/s, 20 ms a batch", _windowed),
    ]
    for title, measure in kinds:
        rows: dict[str, Row] = {}
        for contender in compared:
            try:
                rows[contender.name] = measure(contender, seconds)
            except Exception as error:  # noqa: BLE001 - whatever a peer does, the others are measured
                rows[contender.name] = {"failed": f"{type(error).__name__}: {error}"}
            print(f"{title}: {contender.name}: {rows[contender.name]}", flush=True)
        yield title, rows


def _asked(running: Running, kind: str, seed: int, value: Any = None) -> Question:
    """That question with its right answer's bytes, as the service itself gave and `is_right` approved them."""
    body = running.contender.request_body(running.workload, running.workload.value(seed) if value is None else value)
    right = None
    if value is None:
        running.check(1, first=seed)
        right = running.ask(body)[1]
    return question(kind, running.path, body.content, body.content_type, right)


def _healthy(running: Running, count: int = 16) -> list[Question]:
    return [_asked(running, "healthy", seed) for seed in range(count)]


def _served(contender: Contender, workload: Workload, settings: Settings, **variables: str) -> Any:
    return run(contender.with_settings(settings, **variables), workload)


def _poisoned(contender: Contender, seconds: float) -> Row:
    with _served(contender, DELICATE, Settings(32, 0.005, 30.0)) as running:
        questions = _healthy(running)
        shares = [0.99 / len(questions)] * len(questions)
        poison = _asked(running, "poisoned", 0, [POISON, 0.0, 0.0, 0.0])
        tally = load.run(Plan(running.port, [*questions, poison], 64, seconds, shares=[*shares, 0.01]))
    healthy = tally.count(kind="healthy")
    return {
        "healthy asked": healthy,
        "of them right, %": 100 * tally.count("right", "healthy") / healthy,
        "wrong": tally.count("wrong"),
        "poisoned asked": tally.count(kind="poisoned"),
        "healthy right per s": tally.count("right", "healthy") / tally.seconds,
    }


def _leaving(contender: Contender, seconds: float) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder, "counts")
        with _served(contender, COUNTED, Settings(8, 0.005, 30.0), COUNTS=str(counts)) as running:
            questions = _healthy(running)
            before = _sum(counts)
            plan = Plan(running.port, questions, 64, seconds, leaves=0.3, leaves_after=0.05)
            tally = load.run(plan)
            items = _sum(counts) - before
    # What was run after the last answer was read is not waste: those were still waiting.
    right = tally.count("right")
    return {
        "asked": tally.count(),
        "left": tally.count("left"),
        "answered right": right,
        "items run": items,
        "run for nobody, %": 100 * max(0, items - right) / items,
        "right per s": tally.rate(),
    }


def _sum(counts: Path) -> int:
    return sum(int(line) for line in counts.read_text().split()) if counts.exists() else 0


def _overloaded(contender: Contender, seconds: float) -> Row:
    row: Row = {}
    with _served(contender, COUNTED, Settings(8, 0.005, DEADLINE)) as running:
        questions = _healthy(running)
        capacity = load.run(Plan(running.port, questions, 32, seconds)).rate()
        row["capacity per s"] = capacity
        for factor in (1.2, 2.0):
            plan = Plan(running.port, questions, 4000, 2 * seconds, rate=factor * capacity, drains=3.0)
            tally = load.run(plan)
            good = sum(1 for times in tally.latencies.values() for one in times if one <= DEADLINE)
            row[f"goodput at {factor:g} x, share of capacity"] = good / tally.seconds / capacity
            row[f"p99 of the answered at {factor:g} x, ms"] = 1e3 * tally.p(0.99)
            row[f"outcomes at {factor:g} x"] = _told(tally)
    return row


def _told(tally: Tally) -> str:
    totals = {outcome: tally.count(outcome) for _, outcome in sorted(tally.outcomes)}
    return ", ".join(f"{outcome} {count}" for outcome, count in totals.items())


def _burst(contender: Contender, seconds: float) -> Row:
    with run(contender, WORKLOADS["echo"]) as running:
        questions = _healthy(running)
        quiet = 2 * seconds
        bursts = [(0.2, _BURST), (quiet, _BURST)]
        tally = load.run(Plan(running.port, questions, _BURST, quiet + 2.0, bursts=bursts, drains=10.0))
    times = [one for found in tally.latencies.values() for one in found]
    new, kept = times[:_BURST], times[_BURST:]
    return {
        f"right of {2 * _BURST}": tally.count("right"),
        "new connections: p50, ms": 1e3 * load.percentile(new, 0.5),
        "new connections: last, ms": 1e3 * load.percentile(new, 1.0),
        "kept connections: p50, ms": 1e3 * load.percentile(kept, 0.5),
        "kept connections: last, ms": 1e3 * load.percentile(kept, 1.0),
    }


def _idle(contender: Contender, seconds: float) -> Row:
    with run(contender, WORKLOADS["echo"]) as running:
        load.run(Plan(running.port, _healthy(running), 16, 1.0))
        time.sleep(1.0)
        before, begun = running.cpu_seconds(), time.perf_counter()
        time.sleep(2 * seconds)
        spent = running.cpu_seconds() - before
        share = spent / (time.perf_counter() - begun)
        return {
            "% of a core": 100 * share,
            "processes": len(running.processes()),
            "resident, MB": running.memory() / 1e6,
        }


def _windowed(contender: Contender, seconds: float) -> Row:
    row: Row = {}
    with _served(contender, COUNTED, Settings(64, 0.05, 30.0)) as running:
        questions = _healthy(running)
        for name, rate in (("alone", 2.0), ("in a stream", 20.0)):
            tally = load.run(Plan(running.port, questions, 64, 2 * seconds, rate=rate))
            row[f"{name}: p50, ms"] = 1e3 * tally.p(0.5)
            row[f"{name}: p99, ms"] = 1e3 * tally.p(0.99)
    return row
