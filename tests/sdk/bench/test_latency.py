import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.bench.latency import QUANTILES, Latencies, spread_of

seconds = st.floats(0, 1e6)


def latencies(values: list[float]) -> Latencies:
    found = Latencies()
    for value in values:
        found.add(value)
    return found


@given(st.lists(seconds, min_size=1, max_size=300), st.sampled_from(sorted(QUANTILES.values())))
def test_a_quantile_is_the_smallest_sample_that_so_many_do_not_exceed(values: list[float], quantile: float) -> None:
    found = latencies(values).quantile(quantile)
    if found is None:
        assert len(values) * (1 - quantile) < 1
        return
    assert found in values
    if len(values) > 1:
        assert sum(value <= found for value in values) >= math.floor(quantile * len(values) + 1e-9)
        assert sum(value < found for value in values) < quantile * len(values) + 1e-6


@given(st.lists(seconds, min_size=1, max_size=300))
def test_a_summary_agrees_with_its_parts_and_quantiles_ascend(values: list[float]) -> None:
    all_of_them = latencies(values)
    summary = all_of_them.summary()
    assert (summary.count, summary.max) == (len(values), max(values))
    assert summary.mean == pytest.approx(math.fsum(values) / len(values))
    assert summary.quantiles == {name: all_of_them.quantile(quantile) for name, quantile in QUANTILES.items()}
    known = [value for value in summary.quantiles.values() if value is not None]
    assert known == sorted(known)


def test_a_tail_that_was_not_sampled_is_not_told() -> None:
    quantiles = latencies([float(n) for n in range(99)]).summary().quantiles
    assert quantiles["p90"] == 89.0
    assert quantiles["p99"] is None
    assert latencies([float(n) for n in range(1, 101)]).quantile(0.99) == 99.0


def test_the_median_of_one_sample_is_that_sample() -> None:
    assert latencies([0.25]).summary().quantiles == {"p50": 0.25, "p90": None, "p99": None, "p99.9": None}


def test_without_samples_there_are_no_figures() -> None:
    summary = Latencies().summary()
    assert (summary.count, summary.mean, summary.max) == (0, None, None)
    assert set(summary.quantiles.values()) == {None}


@given(st.lists(seconds, max_size=50), seconds)
def test_what_is_within_a_bound_counts_the_bound_itself(values: list[float], bound: float) -> None:
    assert latencies(values).within(bound) == sum(value <= bound for value in values)


def test_samples_can_come_after_a_look() -> None:
    found = latencies([1.0])
    found.summary()
    found.add(3.0)
    assert found.summary().max == 3.0


def test_a_figure_that_one_repeat_lacks_has_no_spread() -> None:
    assert spread_of([1.0, None]) is None
    assert spread_of([]) is None
