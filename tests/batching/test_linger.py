"""When an idle worker waits for company, and for how long."""

import math
import random
from collections.abc import Callable
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_batching.estimators import ServiceTime
from tidegate_batching.linger import CEILING, Linger

MS = 1e-3


def gpu(size: float) -> float:
    """8 ms, and 0.15 ms per item."""
    return 0.008 + 0.00015 * size


def cpu(size: float) -> float:
    """0.5 ms, and 5 ms per item."""
    return 0.0005 + 0.005 * size


def flat(size: float) -> float:
    """4 ms up to 64 items, then a line."""
    return max(0.004, 0.0007 + 0.00005 * size)


def learned(curve: Callable[[float], float], *, limit: int = 64) -> ServiceTime:
    service = ServiceTime()
    for _ in range(8):
        for size in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128):
            if size <= limit:
                service.observe(size, curve(size))
    return service


def steady(service: ServiceTime, rate: float, seconds: float = 1.0) -> tuple[Linger, float]:
    """A linger that has seen evenly spaced arrivals, and the time of the last."""
    linger = Linger(service)
    count = int(rate * seconds)
    for number in range(count):
        linger.arrived(number / rate, to_idle=False)
    return linger, (count - 1) / rate


def cohorts(service: ServiceTime, *, size: int, spread: float, every: float, rounds: int = 30) -> tuple[Linger, float]:
    """A linger that has seen `size` callers return together again and again; then the first of them is here."""
    linger = Linger(service)
    for number in range(rounds):
        for caller in range(size):
            linger.arrived(number * every + caller * spread / (size - 1), to_idle=caller == 0)
        linger.released()
    linger.arrived(rounds * every, to_idle=True)
    return linger, rounds * every


# ---------------------------------------------------------------------- nothing to go by, nothing to win


def test_nothing_is_held_before_three_batches_have_been_timed() -> None:
    linger, now = steady(ServiceTime(), 2000)
    assert linger.hold(1, 64, 1, 2, now + 0.008, now) <= now
    assert linger.knee(20, 64, 2, now) == 64


def test_nothing_is_held_before_the_second_arrival() -> None:
    linger = Linger(learned(gpu))
    linger.arrived(1.0, to_idle=True)
    assert linger.hold(1, 64, 1, 2, 1.008, 1.0) <= 1.0


def test_a_lone_worker_hardly_ever_waits_for_independent_callers() -> None:
    rng = random.Random(1)
    linger, now, waited = Linger(learned(gpu)), 0.0, 0.0
    for number in range(5000):
        now += rng.expovariate(2000)
        linger.arrived(now, to_idle=number % 20 == 0)
        if number % 20 == 0:
            waited += linger.hold(1, 64, 1, 1, inf, now) - now
            linger.released()
    assert waited < 0.005 * now


def test_without_an_idle_slot_there_is_no_hold() -> None:
    linger, now = steady(learned(gpu), 2000)
    assert linger.hold(1, 64, 0, 2, now + 0.008, now) <= now


# ---------------------------------------------------------------------- phase


def test_the_only_idle_worker_waits_half_the_time_that_it_is_ahead_of_the_others() -> None:
    linger, now = steady(learned(gpu), 2000)
    # One item has come in 0.5 ms' worth of arrivals; the next slot is free in 6 ms.
    assert linger.hold(1, 64, 1, 2, now + 6 * MS, now) - now == pytest.approx((6 - 0.5) / 2 * MS, rel=0.02)


def test_a_queue_as_long_as_what_will_come_before_the_next_slot_goes_at_once() -> None:
    linger, now = steady(learned(gpu), 2000)
    assert linger.hold(12, 64, 1, 2, now + 6 * MS, now) <= now


def test_a_hold_ends_when_as_many_have_come_as_will_come_before_the_next_slot() -> None:
    linger, now = steady(learned(gpu), 2000)
    until = linger.hold(1, 64, 1, 2, now + 6 * MS, now)
    assert linger.hold(4, 64, 1, 2, now + 6 * MS, now + 1 * MS) == until
    assert linger.hold(10, 64, 1, 2, now + 6 * MS, now + 1 * MS) <= now + 1 * MS


def test_a_hold_gets_shorter_and_never_longer() -> None:
    linger, now = steady(learned(gpu), 2000)
    until = linger.hold(1, 64, 1, 2, now + 6 * MS, now)
    assert linger.hold(2, 64, 1, 2, now + 8 * MS, now + 0.5 * MS) == until
    assert linger.hold(2, 64, 1, 2, now + 3 * MS, now + 0.5 * MS) < until
    assert linger.hold(2, 64, 1, 2, now + 8 * MS, until) <= until


def test_a_hold_is_over_when_a_second_worker_is_idle() -> None:
    linger, now = steady(learned(gpu), 2000)
    linger.hold(1, 64, 1, 2, now + 6 * MS, now)
    assert linger.hold(1, 64, 2, 2, inf, now + 1 * MS) <= now + 1 * MS


def test_after_a_release_the_next_hold_is_decided_afresh() -> None:
    linger, now = steady(learned(gpu), 2000)
    first = linger.hold(1, 64, 1, 2, now + 6 * MS, now)
    linger.released()
    assert linger.hold(1, 64, 1, 2, now + 9 * MS, now) > first


def test_an_overdue_worker_is_not_waited_for() -> None:
    linger, now = steady(learned(gpu), 2000)
    assert linger.hold(1, 64, 1, 2, now - 1 * MS, now) <= now


def test_nothing_waits_longer_than_the_ceiling() -> None:
    linger, now = steady(learned(lambda size: 0.5 + 0.001 * size), 50)
    assert linger.hold(1, 64, 1, 2, now + 0.4, now) - now == pytest.approx(CEILING)


def test_waiting_fades_out_when_capacity_is_short() -> None:
    service = learned(gpu)
    ahead, waits = 6 * MS, []
    for rate in (2000, 9200, 12_000):  # 15 %, 69 % and 90 % of what two workers could do without overhead
        linger, now = steady(service, rate)
        waits.append(linger.hold(1, 64, 1, 2, now + ahead, now) - now)
    assert waits[0] > 2.5 * MS
    assert 0 < waits[1] < 0.7 * waits[0]
    assert waits[2] <= 0


# ---------------------------------------------------------------------- cohort


def test_the_first_of_a_returning_cohort_waits_for_the_rest() -> None:
    linger, now = cohorts(learned(gpu), size=16, spread=1 * MS, every=12 * MS)
    until = linger.hold(1, 64, 1, 1, inf, now)
    assert 1 * MS <= until - now < 2 * MS


def test_a_complete_cohort_goes_before_its_time_is_up() -> None:
    linger, now = cohorts(learned(gpu), size=16, spread=1 * MS, every=12 * MS)
    until = linger.hold(1, 64, 1, 1, inf, now)
    assert linger.hold(15, 64, 1, 1, inf, now + 0.9 * MS) == until
    assert linger.hold(16, 64, 1, 1, inf, now + 0.9 * MS) <= now + 0.9 * MS


def test_a_cohort_that_does_not_come_is_given_up_in_time() -> None:
    linger, now = cohorts(learned(gpu), size=16, spread=1 * MS, every=12 * MS)
    until = linger.hold(1, 64, 1, 1, inf, now)
    assert linger.hold(3, 64, 1, 1, inf, until) <= until


def test_a_full_batch_is_all_that_a_cohort_can_make() -> None:
    linger, now = cohorts(learned(gpu), size=16, spread=1 * MS, every=12 * MS)
    linger.hold(1, 8, 1, 1, inf, now)
    assert linger.hold(8, 8, 1, 1, inf, now + 0.1 * MS) <= now + 0.1 * MS


def test_where_batching_saves_nothing_no_cohort_is_waited_for() -> None:
    linger, now = cohorts(learned(lambda size: 0.001 * size), size=6, spread=1 * MS, every=12 * MS)
    assert linger.hold(1, 64, 1, 1, inf, now) <= now


def test_a_cohort_that_takes_longer_than_the_batch_is_not_waited_for() -> None:
    linger, now = cohorts(learned(lambda size: 0.0005 + 1e-6 * size), size=16, spread=3 * MS, every=12 * MS)
    assert linger.hold(1, 64, 1, 1, inf, now) - now < 0.5 * MS


def test_where_idle_workers_are_faster_together_nobody_is_gathered_for_one() -> None:
    linger, now = cohorts(learned(lambda size: 0.005 + 0.001 * size), size=24, spread=1 * MS, every=20 * MS)
    assert linger.hold(1, 64, 4, 4, inf, now) <= now
    linger, now = cohorts(learned(gpu), size=24, spread=1 * MS, every=20 * MS)
    assert linger.hold(1, 64, 4, 4, inf, now) > now


def test_callers_that_return_while_others_wait_are_a_cohort_too() -> None:
    linger = Linger(learned(gpu))
    for number in range(30):
        start = number * 0.014
        linger.slot_freed(start)
        for caller in range(16):
            linger.arrived(start + caller * 0.05 * MS, to_idle=False)
        linger.released()
    now = 30 * 0.014
    linger.slot_freed(now)
    assert 0.8 * MS <= linger.hold(16, 64, 1, 1, inf, now) - now < 2 * MS


def test_strays_of_a_cohort_stay_for_the_next_while_other_workers_are_busy() -> None:
    linger, now = cohorts(learned(gpu), size=32, spread=1 * MS, every=14 * MS)
    until = linger.hold(1, 64, 1, 2, now + 8 * MS, now)
    longer = linger.hold(1, 64, 1, 2, now + 8 * MS, until)
    assert until < longer <= now + CEILING
    assert linger.hold(1, 64, 1, 2, now + 8 * MS, longer) <= longer


# ---------------------------------------------------------------------- knee


def test_where_larger_batches_save_little_the_queue_is_shared() -> None:
    linger, now = steady(learned(cpu, limit=16), 300)
    assert linger.knee(8, 16, 4, now) <= 3


def test_where_larger_batches_save_much_one_batch_takes_all() -> None:
    linger, now = steady(learned(gpu), 2000)
    assert linger.knee(40, 64, 4, now) >= 40


def test_below_a_floor_more_items_are_free_and_one_batch_takes_all() -> None:
    linger, now = steady(learned(flat, limit=128), 2000)
    assert linger.knee(30, 128, 4, now) >= 30


def test_past_a_steep_step_batches_are_not_cut_to_single_items() -> None:
    def steep(size: float) -> float:
        return 0.004 if size <= 48 else 0.004 + 0.0001 * (size - 48)

    linger, now = steady(learned(steep, limit=128), 2000)
    assert linger.knee(120, 128, 4, now) >= 64


@pytest.mark.parametrize("rate", [780, 900, 5000])
def test_no_batch_is_cut_when_capacity_is_short(rate: float) -> None:
    linger, now = steady(learned(cpu, limit=16), rate)
    assert linger.knee(8, 16, 4, now) == 16


def test_a_backlog_of_two_batches_lifts_the_knee() -> None:
    linger, now = steady(learned(cpu, limit=16), 300)
    assert linger.knee(31, 16, 4, now) < 16
    assert linger.knee(32, 16, 4, now) == 16


# ---------------------------------------------------------------------- whatever happens

anything = st.floats(0, 1e3) | st.sampled_from([0.0, 1e-9, 1e9])


@given(
    batches=st.lists(st.tuples(st.integers(1, 256), anything), max_size=40),
    events=st.lists(st.tuples(st.sampled_from("afrhk"), anything, st.integers(1, 300), st.integers(1, 4)), max_size=60),
    unit=st.sampled_from([0.001, 1.0, 31.25]),
)
def test_no_history_makes_a_hold_longer_than_the_ceiling_or_a_knee_outside_the_limit(
    batches: list[tuple[int, float]], events: list[tuple[str, float, int, int]], unit: float
) -> None:
    service = ServiceTime()
    for size, seconds in batches:
        service.observe(size, seconds)
    linger, now, held_since = Linger(service), 0.0, inf
    for kind, gap, queued, free in events:
        now += gap / 100
        if kind == "a":
            linger.arrived(now, to_idle=queued == 1)
        elif kind == "f":
            linger.slot_freed(now)
        elif kind == "r":
            linger.released()
            held_since = inf
        elif kind == "h":
            next_end = inf if free == 4 else now + gap - 1
            until = linger.hold(queued, 301, free, 4, next_end, now, unit)
            assert math.isfinite(until)
            held_since = min(held_since, now)
            assert until <= held_since + CEILING + 1e-9 or until <= now
            if until <= now:
                linger.released()
                held_since = inf
        else:
            assert 1 <= linger.knee(queued, 64, free, now, unit) <= 64
