import asyncio
import heapq
from collections.abc import Callable, Coroutine
from typing import Any, Self

import pytest

from tidegate.bench.driver import Timing
from tidegate.bench.scenarios import Bench, Place, Plan, Row, Scenario
from tidegate.bench.schedule import Closed, Poisson
from tidegate.bench.sender import OK, Ending, Shot
from tidegate.bench.service import Look

InNoTime = Callable[[Coroutine[Any, Any, Any]], Any]
TIMING = Timing(warmup=1.0, duration=20.0, timeout=30.0)


class Servers:
    """So many servers behind one queue, each of whom takes the same time for everything: M/D/c under Poisson arrivals."""

    waited = 0

    def __init__(self, servers: int = 4, takes: float = 0.04) -> None:
        self._free = [0.0] * servers
        self._takes = takes
        self.batches = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    def send(self, payload: int, shot: Shot) -> None:
        loop = asyncio.get_running_loop()
        ends = max(loop.time(), self._free[0]) + self._takes
        heapq.heapreplace(self._free, ends)
        self.batches += 1
        loop.call_at(ends, shot.end, OK)

    def abandon(self, shot: Shot) -> None: ...


def place(servers: Servers) -> Place:
    async def look() -> Look:
        return Look({2: servers.batches}, servers.batches * 0.005)

    return Place(lambda connections: servers, 1, look)


def run(in_no_time: InNoTime, scenario: Scenario, *, servers: Servers | None = None, **plan: Any) -> list[Row]:
    async def go() -> list[Row]:
        bench = Bench(Plan(scenario, plan.pop("loads", ()), plan.pop("timing", TIMING), **plan))
        await bench.run(place(servers or Servers()), {"max_batch_size": 8})
        return bench.rows

    rows: list[Row] = in_no_time(go())
    return rows


def test_every_load_gets_a_row_with_a_run_per_repeat(in_no_time: InNoTime) -> None:
    rows = run(in_no_time, "loads", loads=(Closed(1), Closed(4), Poisson(50.0)), repeat=3)
    assert [row.load for row in rows] == ["1 caller", "4 callers", "Poisson 50/s"]
    assert [len(row.runs) for row in rows] == [3, 3, 3]
    assert rows[1].runs[0].throughput == pytest.approx(100, rel=0.01)
    # Other arrivals in each repeat.
    assert len({run.sent for run in rows[2].runs}) > 1
    assert rows[2].runs[0].offered == 50.0


def test_two_configurations_get_the_same_arrivals(in_no_time: InNoTime) -> None:
    async def go() -> list[Row]:
        bench = Bench(Plan("loads", (Poisson(50.0),), TIMING, seed=7))
        for size in (1, 8):
            await bench.run(place(Servers()), {"max_batch_size": size})
        return bench.rows

    first, second = in_no_time(go())
    assert first.runs[0].sent == second.runs[0].sent
    assert (first.config, second.config) == ({"max_batch_size": 1}, {"max_batch_size": 8})


def test_what_the_service_tells_is_of_the_measured_time(in_no_time: InNoTime) -> None:
    (row,) = run(in_no_time, "loads", loads=(Closed(4),))
    assert row.runs[0].mean_batch == 2.0
    assert row.runs[0].cpu_per_1000 == pytest.approx(5.0, rel=0.02)


def test_single_stream_is_one_at_a_time(in_no_time: InNoTime) -> None:
    (row,) = run(in_no_time, "single-stream")
    assert (row.scenario, row.load) == ("single-stream", "one at a time")
    assert row.runs[0].latency.quantiles["p90"] == pytest.approx(0.04)
    assert row.runs[0].throughput == pytest.approx(25, rel=0.01)


def test_offline_is_as_many_as_fit_the_duration_and_takes_as_long(in_no_time: InNoTime) -> None:
    (row,) = run(in_no_time, "offline", connections=16)
    assert row.runs[0].sent == pytest.approx(2000, rel=0.1)
    assert row.runs[0].throughput == pytest.approx(100, rel=0.01)
    assert row.runs[0].duration == pytest.approx(20, rel=0.1)
    (row,) = run(in_no_time, "offline", connections=16, requests=7)
    assert (row.load, row.runs[0].sent) == ("7 at once", 7)


def test_the_server_scenario_finds_the_highest_rate_within_the_bound_and_confirms_it(in_no_time: InNoTime) -> None:
    (row,) = run(in_no_time, "server", bound=0.08, connections=16, timing=Timing(5.0, 200.0, 30.0))
    assert row.note is not None
    assert "highest Poisson rate with p99 within 80 ms" in row.note
    assert len(row.runs) >= 3
    for found in row.runs:
        assert found.answered_all
        assert found.latency.quantiles["p99"] is not None
        assert found.latency.quantiles["p99"] <= 0.08
        # Of M/D/4 at 60/s, p99 is 80 ms by a simulation of 200,000 arrivals.
        assert found.offered == pytest.approx(60, rel=0.08)


def test_a_rate_at_which_somebody_is_refused_is_too_high_however_fast_the_others_are(in_no_time: InNoTime) -> None:
    class Refusing(Servers):
        """Takes no more than what can start at once."""

        def send(self, payload: int, shot: Shot) -> None:
            if self._free[0] > asyncio.get_running_loop().time():
                asyncio.get_running_loop().call_soon(shot.end, Ending("overloaded", 429))
            else:
                super().send(payload, shot)

    (row,) = run(in_no_time, "server", servers=Refusing(), bound=0.08, connections=4)
    assert all(run.answered_all for run in row.runs)
    assert not row.runs or (row.runs[0].offered or 0) < 20


def test_a_bound_that_nothing_can_hold_is_told(in_no_time: InNoTime) -> None:
    (row,) = run(in_no_time, "server", bound=0.01)
    assert row.runs == []
    assert row.note is not None
    assert row.note.startswith("no rate with p99 within 10 ms")


def test_stopped_it_begins_nothing_more(in_no_time: InNoTime) -> None:
    async def go() -> Bench:
        bench = Bench(Plan("loads", (Closed(1), Closed(2), Closed(3)), TIMING))
        assert not bench.stop()
        bench.stopped = False
        asyncio.get_running_loop().call_later(30.0, bench.stop)
        await bench.run(place(Servers()), {})
        return bench

    bench: Bench = in_no_time(go())
    assert [row.load for row in bench.rows] == ["1 caller", "2 callers"]
    assert [row.runs[0].interrupted for row in bench.rows] == [False, True]
