from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.bench.schedule import AllAtOnce, Bursts, Closed, Poisson


@given(rate=st.floats(0.01, 1e6), seed=st.integers(0, 2**32))
def test_poisson_arrivals_ascend_and_are_the_same_for_the_same_seed(rate: float, seed: int) -> None:
    due = list(islice(Poisson(rate).due(seed), 200))
    assert due[0] > 0
    assert all(before <= after for before, after in pairwise(due))
    assert due == list(islice(Poisson(rate).due(seed), 200))
    assert due != list(islice(Poisson(rate).due(seed + 1), 200))


def test_poisson_gaps_have_the_mean_and_the_deviation_of_an_exponential() -> None:
    gaps = np.diff([0.0, *islice(Poisson(250.0).due(3), 100_000)])
    assert gaps.mean() == pytest.approx(1 / 250, rel=0.02)
    assert gaps.std() == pytest.approx(1 / 250, rel=0.02)
    # Memoryless: whoever has waited for a mean gap waits as long again.
    assert (gaps[gaps > 1 / 250] - 1 / 250).mean() == pytest.approx(1 / 250, rel=0.03)


@given(size=st.integers(1, 50), every=st.floats(1e-3, 10.0), bursts=st.integers(1, 20))
def test_bursts_come_whole_and_at_even_times(size: int, every: float, bursts: int) -> None:
    load = Bursts(size, every)
    due = list(islice(load.due(0), size * bursts))
    assert due == [n * every for n in range(bursts) for _ in range(size)]
    assert load.rate == size / every


@pytest.mark.parametrize(
    ("load", "shown"),
    [
        (Closed(1), "1 caller"),
        (Closed(64), "64 callers"),
        (Poisson(1250.0), "Poisson 1,250/s"),
        (Bursts(64, 0.5), "64 every 0.5 s"),
        (AllAtOnce(10_000, 64), "10,000 at once"),
    ],
)
def test_a_load_is_shown_in_a_few_words(load: object, shown: str) -> None:
    assert str(load) == shown
