import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.bench.search import MOST_PROBES, PRECISION, RateSearch


def searched(search: RateSearch, limit: float) -> list[float]:
    """The rates that were tried at a service that holds every rate up to `limit`."""
    tried = []
    while (rate := search.rate) is not None:
        tried.append(rate)
        search.note(passed=rate <= limit)
    return tried


@given(start=st.floats(0.1, 1e6), limit=st.floats(0.05, 3.0))
def test_the_limit_is_found_from_below_within_the_precision(start: float, limit: float) -> None:
    search = RateSearch(start)
    tried = searched(search, start * limit)
    assert search.found is not None
    assert search.found <= start * limit <= search.found * (1 + PRECISION)
    # Found, and then confirmed twice at the very end.
    assert tried[-2:] == [search.found] * 2
    assert tried.count(search.found) == 3
    assert len(tried) <= MOST_PROBES


def test_no_rate_below_the_floor_is_tried_and_none_is_found_there() -> None:
    search = RateSearch(1000.0, floor=50.0)
    tried = searched(search, 1.0)
    assert min(tried) == 50.0
    assert search.found is None


def test_a_near_miss_is_run_again_and_a_clear_one_is_not() -> None:
    search = RateSearch(100.0)
    search.note(passed=False, near=True)
    assert search.rate == 100.0
    search.note(passed=False, near=True)
    assert search.rate == 50.0
    search.note(passed=False)
    assert search.rate == 25.0


def test_a_second_chance_that_is_taken_counts() -> None:
    search = RateSearch(100.0)
    search.note(passed=False, near=True)
    search.note(passed=True)
    assert search.rate == 150.0


def test_a_rate_that_fails_when_it_is_confirmed_is_too_high() -> None:
    search = RateSearch(100.0, confirmations=2)
    while not search.is_confirming:
        assert search.rate is not None
        search.note(passed=search.rate <= 130)
    first = search.rate
    assert first is not None
    search.note(passed=True)
    assert not search.found
    search.note(passed=False)
    searched(search, 110.0)
    assert 100 < (search.found or 0) <= 110 < first


@given(st.integers(0, 10_000))
def test_whatever_the_service_says_it_ends_and_what_it_found_was_confirmed(seed: int) -> None:
    draw = random.Random(seed)
    search = RateSearch(100.0, floor=1.0)
    answers: dict[float, list[bool]] = {}
    while (rate := search.rate) is not None:
        passed = draw.random() < 0.5
        answers.setdefault(rate, []).append(passed)
        search.note(passed=passed, near=draw.random() < 0.5)
    assert search.probes <= MOST_PROBES
    if search.found is not None:
        assert answers[search.found][-3:] == [True, True, True]


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="start=0"):
        RateSearch(0.0)
    search = RateSearch(1.0, floor=1.0)
    searched(search, 0.0)
    with pytest.raises(RuntimeError, match="over"):
        search.note(passed=True)
