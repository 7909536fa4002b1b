import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Self

import pytest

from tidegate.bench.driver import PAUSE, Driver, Timing
from tidegate.bench.record import Measurement, Record
from tidegate.bench.schedule import AllAtOnce, Bursts, Closed, Load, Poisson
from tidegate.bench.sender import OK, Ending, Shot

InNoTime = Callable[[Coroutine[Any, Any, Any]], Any]
TIMING = Timing(warmup=1.0, duration=10.0, timeout=30.0)


class Fake:
    """Answers each request after `takes(arrival)` seconds, which may depend on when it came."""

    waited = 0

    def __init__(self, takes: Callable[[float], float] = lambda at: 0.01, ending: Ending = OK) -> None:
        self.payloads: list[int] = []
        self.arrivals: list[float] = []
        self.abandoned: list[Shot] = []
        self._takes = takes
        self._ending = ending

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    def send(self, payload: int, shot: Shot) -> None:
        loop = asyncio.get_running_loop()
        self.payloads.append(payload)
        self.arrivals.append(loop.time() - 1000.0)
        loop.call_later(self._takes(self.arrivals[-1]), shot.end, self._ending)

    def abandon(self, shot: Shot) -> None:
        self.abandoned.append(shot)


async def run(sender: Any, load: Load, timing: Timing = TIMING, **options: Any) -> Record:
    return await Driver(sender, options.pop("payloads", 1), load, timing, **options).run()


def measured(in_no_time: InNoTime, sender: Any, load: Load, timing: Timing = TIMING, **options: Any) -> Measurement:
    record: Record = in_no_time(run(sender, load, timing, **options))
    return record.measurement(None, 0.5)


# ---------------------------------------------------------------------- how much and how fast


def test_callers_in_a_loop_do_what_littles_law_says(in_no_time: InNoTime) -> None:
    found = measured(in_no_time, Fake(lambda at: 0.02), Closed(8))
    assert found.throughput == pytest.approx(8 / 0.02, rel=0.01)
    assert found.latency.quantiles["p50"] == pytest.approx(0.02)
    assert (found.refused, found.failed, found.timeouts, found.answered_all) == (0, 0, 0, True)


def test_poisson_arrivals_come_at_their_rate_whatever_the_service_does(in_no_time: InNoTime) -> None:
    sender = Fake(lambda at: 3.0)
    found = measured(in_no_time, sender, Poisson(200.0), Timing(5.0, 10.0, 30.0), seed=4)
    assert found.sent == pytest.approx(2000, rel=0.08)
    assert found.latency.max == pytest.approx(3.0)
    assert found.throughput == pytest.approx(200, rel=0.08)


def test_the_warm_up_is_not_counted_and_payloads_take_turns(in_no_time: InNoTime) -> None:
    sender = Fake(lambda at: 5.0 if at < 1.0 else 0.01)
    found = measured(in_no_time, sender, Bursts(5, every=0.5), payloads=3)
    assert found.latency.max == pytest.approx(0.01)
    assert found.sent == 5 * 20
    assert len(sender.arrivals) == 5 * 22
    assert sender.payloads[:7] == [0, 1, 2, 0, 1, 2, 0]


def test_everything_at_once_counts_from_the_start_with_so_many_under_way(in_no_time: InNoTime) -> None:
    found = measured(in_no_time, Fake(lambda at: 1.0), AllAtOnce(100, 10), Timing(0.0, 1.0, 30.0))
    assert (found.sent, found.ok) == (100, 100)
    assert found.duration == pytest.approx(10.0)
    assert found.throughput == pytest.approx(10.0)
    assert found.latency.quantiles["p50"] == pytest.approx(5.0)
    assert found.generator.late_max == 0.0


# ---------------------------------------------------------------------- coordinated omission


def test_a_stall_is_felt_by_everybody_who_was_due_in_it(in_no_time: InNoTime) -> None:
    def stalls(at: float) -> float:
        return max(0.001, 7.0 - at) if 5.0 <= at < 7.0 else 0.001

    on_schedule = measured(in_no_time, Fake(stalls), Bursts(1, every=0.01))
    # Two of ten seconds: every fifth request waited, one second on average.
    assert on_schedule.latency.quantiles["p90"] == pytest.approx(1.0, abs=0.05)
    assert on_schedule.latency.mean == pytest.approx(0.2, abs=0.02)
    in_a_loop = measured(in_no_time, Fake(stalls), Closed(1))
    assert in_a_loop.latency.max == pytest.approx(2.0, abs=0.01)
    assert in_a_loop.latency.quantiles["p99"] == pytest.approx(0.001)


def test_a_generator_that_falls_behind_counts_from_when_requests_were_due_and_says_so(in_no_time: InNoTime) -> None:
    class Slow(Fake):
        def send(self, payload: int, shot: Shot) -> None:
            super().send(payload, shot)
            asyncio.get_running_loop().pass_time(0.015)  # type: ignore[attr-defined]

    found = measured(in_no_time, Slow(lambda at: 0.001), Bursts(1, every=0.01), Timing(0.0, 1.0, 30.0))
    # Each takes 5 ms more to send than there is: the hundredth leaves half a second late.
    assert found.latency.max == pytest.approx(0.5, abs=0.05)
    assert found.generator.late_max == pytest.approx(0.5, abs=0.05)
    assert found.complaint is not None
    assert "left late" in found.complaint


def test_one_that_keeps_up_does_not_complain(in_no_time: InNoTime) -> None:
    assert measured(in_no_time, Fake(), Poisson(100.0)).complaint is None
    assert measured(in_no_time, Fake(), Closed(4)).complaint is None


# ---------------------------------------------------------------------- what goes wrong


def test_errors_are_no_successes_and_their_latency_stands_apart(in_no_time: InNoTime) -> None:
    class Mixed(Fake):
        def send(self, payload: int, shot: Shot) -> None:
            self._ending = (OK, Ending("overloaded", 429, "full"), Ending("handler-error", 500, "boom"))[payload]
            self._takes = lambda at: (0.02, 0.5, 0.25)[payload]
            super().send(payload, shot)

    found = measured(in_no_time, Mixed(), Bursts(1, every=0.1), payloads=3)
    assert (found.sent, found.ok, found.refused, found.failed) == (100, 33, 34, 33) or found.sent == 100
    assert found.ok + found.refused + found.failed == 100
    assert found.latency.max == pytest.approx(0.02)
    assert found.error_latency.max == pytest.approx(0.5)
    assert set(found.codes) == {"429 overloaded", "500 handler-error"}
    assert found.details["handler-error"] == "boom"
    assert not found.answered_all
    assert found.throughput == pytest.approx(3.3, abs=0.2)


def test_goodput_is_what_came_within_the_bound(in_no_time: InNoTime) -> None:
    found = measured(in_no_time, Fake(lambda at: 0.1 if at < 6.0 else 0.9), Bursts(1, every=0.1))
    assert found.goodput == pytest.approx(5.0, abs=0.2)
    assert found.throughput == pytest.approx(9.2, abs=0.2)


def test_who_never_answers_is_given_up_after_the_timeout(in_no_time: InNoTime) -> None:
    sender = Fake(lambda at: 1e9)
    found = measured(in_no_time, sender, Closed(2), Timing(0.0, 3.0, 2.0))
    # Each of two callers at 0 s and at 2 s.
    assert (found.sent, found.timeouts, found.ok) == (4, 4, 0)
    assert len(sender.abandoned) == 4
    assert found.error_latency.max == pytest.approx(2.0, abs=0.02)
    assert found.codes == {"timeout": 4}


def test_a_caller_without_a_connection_does_not_ask_all_the_time(in_no_time: InNoTime) -> None:
    sender = Fake(lambda at: 0.0, Ending("connection-failed"))
    found = measured(in_no_time, sender, Closed(1), Timing(0.0, 1.0, 30.0))
    assert found.failed == pytest.approx(1 / PAUSE, abs=2)


def test_who_is_refused_on_the_spot_asks_again_and_it_ends(in_no_time: InNoTime) -> None:
    class AtOnce(Fake):
        def send(self, payload: int, shot: Shot) -> None:
            asyncio.get_running_loop().pass_time(0.0001)  # type: ignore[attr-defined]
            shot.end(Ending("overloaded", 429))

    found = measured(in_no_time, AtOnce(), Closed(2), Timing(0.0, 1.0, 30.0))
    assert found.refused == pytest.approx(10_000, rel=0.05)
    assert found.throughput == 0.0


# ---------------------------------------------------------------------- looks, and stopping


def test_somebody_looks_when_the_measured_time_begins_and_when_it_ends(in_no_time: InNoTime) -> None:
    async def look() -> float:
        return asyncio.get_running_loop().time() - 1000.0

    record: Record = in_no_time(run(Fake(), Closed(1), look=look))
    assert (record.before, record.after) == (pytest.approx(1.0), pytest.approx(11.0))
    at_once: Record = in_no_time(run(Fake(lambda at: 1.0), AllAtOnce(3, 1), look=look))
    assert (at_once.before, at_once.after) == (pytest.approx(0.0), pytest.approx(3.0))


@pytest.mark.parametrize("load", [Closed(4), Poisson(50.0), Bursts(10, 0.5), AllAtOnce(1000, 4)])
def test_a_run_that_is_stopped_has_what_there_was_until_then(in_no_time: InNoTime, load: Load) -> None:
    async def stopped() -> Record:
        driver = Driver(Fake(lambda at: 0.3), 1, load, TIMING)
        asyncio.get_running_loop().call_later(5.0, driver.stop)
        record = await driver.run()
        driver.stop()  # again, which changes nothing
        return record

    record: Record = in_no_time(stopped())
    found = record.measurement(None, None)
    assert found.interrupted
    assert 3.0 < found.duration <= 5.0
    # What had no answer yet is not held against anybody.
    assert found.sent == found.ok > 0


def test_stopped_before_anything_counts_there_is_nothing(in_no_time: InNoTime) -> None:
    async def stopped() -> Record:
        driver = Driver(Fake(), 1, Closed(1), TIMING)
        asyncio.get_running_loop().call_later(0.5, driver.stop)
        return await driver.run()

    found = in_no_time(stopped()).measurement(None, None)
    assert (found.sent, found.ok, found.throughput) == (0, 0, 0.0)


def test_a_sender_that_ends_what_is_abandoned_does_not_hide_that_it_took_too_long(in_no_time: InNoTime) -> None:
    class Ends(Fake):
        def abandon(self, shot: Shot) -> None:
            shot.end(Ending("cancelled", 499))

    found = measured(in_no_time, Ends(lambda at: 1e9), Closed(1), Timing(0.0, 1.0, 2.0))
    assert found.codes == {"timeout": 1}
