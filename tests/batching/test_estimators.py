"""Estimators on the measured curves of two GPUs, on lines and stairs, on bad clocks and on made-up arrivals."""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate_batching.estimators import EPOCH_GRID, ArrivalProfile, ArrivalRate, ServiceTime

SIZES = (1, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256)
# Milliseconds per batch on one H200, median of 120 runs: flat to about 64, then a line.
BERT = dict(zip(SIZES, (5.9, 4.1, 4.0, 5.5, 4.1, 3.9, 4.2, 5.8, 7.4, 10.9, 14.3), strict=True))
RESNET = dict(zip(SIZES, (5.4, 3.9, 3.9, 4.0, 4.4, 4.5, 5.6, 8.8, 12.2, 16.3, 21.7), strict=True))
MEASURED = pytest.mark.parametrize("curve", [BERT, RESNET], ids=["bert", "resnet"])
SEEDS = pytest.mark.parametrize("seed", range(5))


def never_falling(curve: dict[int, float]) -> dict[int, float]:
    """Seconds of the nearest non-decreasing curve, by the max-min formula: the BERT of the table is slow at 1 and 16."""
    ms = [curve[size] for size in sorted(curve)]
    return {
        size: max(min(sum(ms[a : b + 1]) / (b + 1 - a) for b in range(i, len(ms))) for a in range(i + 1)) / 1e3
        for i, size in enumerate(sorted(curve))
    }


def line(size: float) -> float:
    """A CPU: 0.5 ms and 5 ms per item."""
    return 0.0005 + 0.005 * size


def stairs(size: float) -> float:
    """CUDA graphs of powers of two, each size padded up to the next."""
    return 0.002 + 0.0001 * 2.0 ** math.ceil(math.log2(size))


def train(
    model: ServiceTime, sizes: Iterable[int], truth: Callable[[int], float], rng: random.Random, jitter: float = 0.03
) -> None:
    for size in sizes:
        model.observe(size, truth(size) * math.exp(rng.gauss(0.0, jitter)))


def shuffled(sizes: Sequence[int], times: int, rng: random.Random) -> list[int]:
    runs = list(sizes) * times
    rng.shuffle(runs)
    return runs


def learned(
    truth: Callable[[int], float], sizes: Sequence[int] = SIZES, *, seed: int = 0, times: int = 8
) -> ServiceTime:
    model, rng = ServiceTime(), random.Random(seed)
    train(model, shuffled(sizes, times, rng), truth, rng)
    return model


# --- ServiceTime: shapes


def test_predicts_nothing_before_the_first_batch() -> None:
    model = ServiceTime()
    assert (model.predict(8), model.slope(8), model.optimistic(8), model.observations) == (0.0, 0.0, 0.0, 0)


@SEEDS
@MEASURED
def test_fits_a_measured_gpu_at_every_size_it_has_seen_a_few_times(curve: dict[int, float], seed: int) -> None:
    model, truth = learned(lambda size: curve[size] / 1e3, seed=seed, times=6), never_falling(curve)
    for size in SIZES:
        assert model.predict(size) == pytest.approx(truth[size], rel=0.10)


@SEEDS
@MEASURED
@pytest.mark.parametrize("left_out", SIZES[1:-1])
def test_interpolates_a_size_it_has_never_seen(curve: dict[int, float], left_out: int, seed: int) -> None:
    seen = [size for size in SIZES if size != left_out]
    model = learned(lambda size: curve[size] / 1e3, seen, seed=seed, times=10)
    # Without it the slow run of BERT at 16 is not pooled: the truth is the curve's shape without its own noise.
    assert model.predict(left_out) == pytest.approx(never_falling(curve)[left_out], rel=0.15)


@MEASURED
def test_further_items_are_free_below_the_knee_and_cost_their_slope_above(curve: dict[int, float]) -> None:
    model = learned(lambda size: curve[size] / 1e3, times=20)
    above = (curve[256] - curve[96]) / (256 - 96) / 1e3
    assert model.slope(8) < 0.1 * above
    assert model.slope(150) == pytest.approx(above, rel=0.25)


@SEEDS
def test_holds_a_pure_line_at_all_sizes(seed: int) -> None:
    model = learned(line, range(1, 17), seed=seed)
    for size in range(1, 17):
        assert model.predict(size) == pytest.approx(line(size), rel=0.06)
        assert model.slope(size) == pytest.approx(0.005, rel=0.15)


@SEEDS
def test_follows_stairs_at_their_edges(seed: int) -> None:
    model = learned(stairs, range(1, 65), seed=seed, times=4)
    for size in (1, 2, 4, 7, 8, 14, 16, 28, 40, 56, 64):
        assert model.predict(size) == pytest.approx(stairs(size), rel=0.2)
    assert model.slope(32) == pytest.approx((stairs(45) - stairs(22)) / 23, rel=0.4)


# --- ServiceTime: warm-up and cold sizes


def test_the_first_two_runs_of_a_size_are_left_out_of_the_fit() -> None:
    model = ServiceTime()
    for size in (8, 32):
        for seconds in (3.0, 0.02, 0.004, 0.004):
            model.observe(size, seconds)
    assert model.predict(8) == model.predict(32) == pytest.approx(0.004)
    assert model.observations == 4


def test_a_warm_up_run_serves_until_there_is_something_better_but_refuses_nobody() -> None:
    for first, second in ((3.0, 0.02), (0.02, 3.0)):
        model = ServiceTime()
        model.observe(8, first)
        model.observe(8, second)
        assert model.predict(8) == 0.02  # the faster of the two
        assert model.optimistic(1) == 0.0


def test_warm_up_of_another_size_does_not_bend_the_fit_however_long_ago_it_was() -> None:
    model = ServiceTime()
    model.observe(64, 2.0)
    for _ in range(40_000):  # weights are rescaled on the way
        model.observe(8, 0.004)
    assert model.predict(64) == model.predict(8) == pytest.approx(0.004)


def test_a_first_run_after_warm_up_that_stalls_is_not_taken_at_its_word() -> None:
    model = ServiceTime()
    for seconds in (0.01, 0.006, 0.4):
        model.observe(8, seconds)
    assert model.predict(8) <= 0.0091


@SEEDS
def test_small_sizes_are_not_overestimated_when_only_large_ones_were_seen(seed: int) -> None:
    model = learned(line, (8, 12, 16, 32), seed=seed)
    assert model.predict(8) / 8 <= model.optimistic(1) <= line(1) * 1.25
    exact = ServiceTime()
    train(exact, (8, 16, 32) * 5, line, random.Random(0), jitter=0.0)
    assert exact.optimistic(1) == pytest.approx(exact.predict(1)) == pytest.approx(line(1))
    alone = learned(line, (16,), seed=seed)
    assert alone.optimistic(1) <= line(1)
    assert alone.predict(1) <= line(16) * 1.1


@MEASURED
def test_optimism_stays_below_the_floor_when_only_sizes_above_the_knee_were_seen(curve: dict[int, float]) -> None:
    model = learned(lambda size: curve[size] / 1e3, (96, 128, 192, 256))
    assert model.predict(96) / 96 * 0.999 <= model.optimistic(1) <= 1.02 * model.predict(1) < curve[4] / 1e3
    assert model.optimistic(512) <= model.predict(256)


def test_from_one_size_larger_ones_are_predicted_flat_so_that_they_are_tried() -> None:
    model = learned(line, (1,))
    assert model.predict(64) == model.predict(1) == pytest.approx(line(1), rel=0.05)
    assert model.slope(1) == 0.0


@pytest.mark.parametrize("truth", [line, stairs, lambda size: 0.004 + 0.0001 * size**2])
def test_beyond_the_largest_size_it_stays_between_flat_and_proportional(truth: Callable[[int], float]) -> None:
    model = learned(truth, (1, 2, 4, 8, 16))
    for size in (17, 32, 64, 1_000):
        assert model.predict(16) <= model.predict(size) <= model.predict(16) * size / 16 * 1.000001
    assert model.predict(1_000) > 5 * model.predict(16)


# --- ServiceTime: noise and change


@MEASURED
def test_hiccups_and_a_stall_do_not_poison_the_fit(curve: dict[int, float]) -> None:
    model, rng = learned(lambda size: curve[size] / 1e3, times=10), random.Random(1)
    truth = never_falling(curve)
    for i, size in enumerate(shuffled(SIZES, 20, rng)):
        model.observe(size, truth[size] * (1.5 if i % 20 == 7 else 1.0))
    model.observe(64, 100 * truth[64])
    for size in SIZES:
        assert model.predict(size) == pytest.approx(truth[size], rel=0.10)


def test_a_stall_after_a_long_absence_moves_a_size_by_a_quarter_at_most() -> None:
    model = learned(line, (1, 2, 8), times=10)
    for _ in range(500):
        model.observe(1, line(1))
    model.observe(8, 100 * line(8))
    assert model.predict(8) <= 1.3 * line(8)


@SEEDS
@pytest.mark.parametrize("factor", [3.0, 0.2], ids=["slower", "faster"])
@MEASURED
def test_a_lasting_change_is_followed_within_a_dozen_batches(curve: dict[int, float], factor: float, seed: int) -> None:
    rng = random.Random(seed)
    truth = never_falling(curve)
    model = learned(truth.__getitem__, seed=seed, times=20)
    before = {size: model.predict(size) for size in range(1, 257)}
    train(model, rng.choices(SIZES, k=12), lambda size: factor * truth[size], rng)
    for size, seconds in before.items():
        assert model.predict(size) == pytest.approx(factor * seconds, rel=0.25)


@pytest.mark.parametrize("factor", [3.0, 0.2], ids=["slower", "faster"])
@pytest.mark.parametrize("only", [1, 32, 256])
@MEASURED
def test_sizes_that_were_not_run_again_follow_too(curve: dict[int, float], only: int, factor: float) -> None:
    truth = never_falling(curve)
    model = learned(truth.__getitem__, times=20)
    before = {size: model.predict(size) for size in SIZES}
    train(model, [only] * 12, lambda size: factor * truth[size], random.Random(0))
    for size, seconds in before.items():
        assert model.predict(size) == pytest.approx(factor * seconds, rel=0.15)


def test_changes_at_one_size_leave_the_others_that_contradict_them() -> None:
    model = learned(line, (16, 32, 64), times=20)
    for factor in (0.5, 0.25):
        changed = {16: line(16), 32: factor * line(32), 64: line(64)}
        train(model, (16, 32, 64) * 5, changed.__getitem__, random.Random(0))
    assert model.predict(16) == pytest.approx(model.predict(32), rel=0.05)  # pooled: a smaller batch takes no longer
    assert model.predict(32) < line(16)
    assert model.predict(64) == pytest.approx(line(64), rel=0.1)


def test_two_sizes_of_one_class_are_no_change_when_they_take_turns() -> None:
    model = learned(line, (1, 64), times=40)
    train(model, [95] * 10, line, random.Random(0), jitter=0.0)
    assert model.predict(1) == pytest.approx(line(1), rel=0.05)
    assert model.predict(95) == pytest.approx(line(95), rel=0.1)


@pytest.mark.parametrize("stalled", range(5))
def test_a_stall_inside_a_slowdown_does_not_set_the_new_level(stalled: int) -> None:
    model = learned(line, (1, 16), times=10)
    for i in range(5):
        model.observe(16, (100.0 if i == stalled else 3.0) * line(16))
    for size in (1, 16):
        assert model.predict(size) == pytest.approx(3 * line(size), rel=0.1)


def test_a_hiccup_right_after_a_change_is_not_another_change() -> None:
    model = learned(line, (1, 16), times=10)
    for factor in (3.0, 3.0, 3.0, 3.0, 3.0, 6.0):
        model.observe(16, factor * line(16))
    assert model.predict(1) == pytest.approx(3 * line(1), rel=0.1)


def test_a_change_right_after_a_change_is_followed_too() -> None:
    model = learned(line, (1, 16), times=10)
    for factor in (3.0,) * 5 + (9.0,) * 5:
        model.observe(16, factor * line(16))
    assert model.predict(1) == pytest.approx(9 * line(1), rel=0.1)


def test_strays_to_both_sides_are_no_change() -> None:
    model = learned(line, (1, 16), times=10)
    for factor in (3.0, 0.3) * 4:
        model.observe(16, factor * line(16))
    assert model.predict(1) == pytest.approx(line(1), rel=0.05)


def test_a_change_within_the_usual_noise_is_followed_too() -> None:
    model = learned(line, (16,), times=100)
    train(model, [16] * 25, lambda size: 1.25 * line(size), random.Random(0))
    assert model.predict(16) == pytest.approx(1.25 * line(16), rel=0.04)


def test_where_the_sizes_contradict_each_other_the_fresh_one_weighs_more() -> None:
    model = ServiceTime()
    train(model, [4] * 10, lambda size: 0.006, random.Random(0))
    train(model, [8] * 100, lambda size: 0.004, random.Random(0))
    assert model.predict(4) == model.predict(8) < 0.0045


@SEEDS
def test_a_model_of_two_speeds_is_averaged_and_leaves_unseen_sizes_alone(seed: int) -> None:
    model, rng = learned(line, (1, 2, 4, 8, 16, 32, 64), times=10), random.Random(seed)
    means = 0.0
    for _ in range(5_000):
        model.observe(16, rng.choice((0.5, 2.0)) * line(16))
        means += model.predict(16) / 5_000
    assert means == pytest.approx(1.25 * line(16), rel=0.1)
    for size in (1, 64):
        assert 0.4 * line(size) <= model.predict(size) <= 2.5 * line(size)


def test_jumps_up_and_slow_ways_down_do_not_add_up_at_unseen_sizes() -> None:
    model = learned(line, (1, 16, 64), times=10)
    for _ in range(10):
        for step in range(120):  # only the jump is seen as a change of the whole model
            model.observe(16, line(16) * 3.0 * 0.99 ** max(0, step - 10))
    now = model.predict(16)
    assert now / 16 * 0.2 <= model.predict(1) <= now <= model.predict(64) <= now * 4 * 5


def test_slow_drift_is_followed_with_no_size_seen_twice_in_a_row() -> None:
    model, rng = learned(line, (4, 8, 16), times=20), random.Random(0)
    for i in range(300):
        size = (4, 8, 16)[i % 3]
        model.observe(size, line(size) * (1.0 + 0.004 * i) * math.exp(rng.gauss(0.0, 0.03)))
    assert model.predict(8) == pytest.approx(line(8) * 2.2, rel=0.1)


# --- ServiceTime: whatever comes

odd = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, -1.0, 5e-324, 1e-9, 1e9, 1e308, math.nan, math.inf, -math.inf]),
    st.floats(1e-4, 1.0),
)


@given(
    st.lists(st.tuples(st.one_of(st.integers(-2, 300), st.sampled_from([10**9, 10**400])), odd), max_size=60),
    st.lists(st.one_of(odd, st.floats(1.0, 400.0)), max_size=8),
)
def test_whatever_was_observed_predictions_are_finite_and_never_fall_with_the_size(
    batches: list[tuple[int, float]], asked: list[float]
) -> None:
    model = ServiceTime()
    for size, seconds in batches:
        model.observe(size, seconds)
        model.predict(size if size < 10**9 else 7)
    sizes = sorted({1.0, 2.0, 3.5, 64.0, 1e9, *(size for size in asked if size >= 1)})
    for predicted in ([model.predict(size) for size in sizes], [model.optimistic(size) for size in sizes]):
        assert all(0.0 <= seconds < math.inf for seconds in predicted)
        assert all(a <= b * (1 + 1e-9) for a, b in pairwise(predicted))
    for any_size in asked:
        assert 0.0 <= model.slope(any_size) < math.inf
        assert 0.0 <= model.optimistic(any_size) <= model.predict(any_size) < math.inf


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf, -math.inf, 1e300])
def test_impossible_times_are_ignored(seconds: float) -> None:
    model = learned(line, (1, 2, 4))
    known, count = model.predict(2), model.observations
    for _ in range(20):
        model.observe(2, seconds)
    model.observe(0, 1.0)
    model.observe(-3, 1.0)
    assert (model.predict(2), model.observations) == (known, count)


# --- ArrivalRate


def poisson(rate: float, until: float, rng: random.Random, start: float = 0.0) -> list[float]:
    times, now = [], start
    while (now := now + rng.expovariate(rate)) < until:
        times.append(now)
    return times


def rate_after(times: Iterable[float], now: float) -> float:
    rate = ArrivalRate()
    for time in times:
        rate.observe(time)
    return rate.rate(now)


def test_rate_is_zero_before_the_second_arrival() -> None:
    assert rate_after([], 1.0) == 0.0
    assert rate_after([5.0], 5.0) == 0.0


@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.3, 3.0])
def test_rate_of_poisson_arrivals_is_right_on_average_from_the_start(seconds: float) -> None:
    rng, t0 = random.Random(7), 1e6
    seen = [rate_after([t0, *poisson(500.0, t0 + seconds, rng, t0)], t0 + seconds) for _ in range(600)]
    assert sum(seen) / len(seen) == pytest.approx(500.0, rel=0.06)


def test_rate_follows_a_step_within_three_windows_and_fades_in_silence() -> None:
    rng = random.Random(3)
    rate = ArrivalRate()
    for time in [*poisson(200.0, 2.0, rng), *poisson(5_000.0, 2.6, rng, 2.0)]:
        rate.observe(time)
    assert rate.rate(2.6) == pytest.approx(5_000.0, rel=0.15)
    assert rate.rate(3.0) == pytest.approx(rate.rate(2.6) * math.exp(-2), rel=0.05)


def test_arrivals_of_one_instant_all_count() -> None:
    bursts = [i * 0.01 for i in range(300) for _ in range(8)]
    assert rate_after(bursts, 2.99) == pytest.approx(800.0, rel=0.06)
    assert 0.0 < rate_after([1.0] * 8, 1.0) <= 8_000.0


def test_rate_goes_on_after_the_clock_was_set_back() -> None:
    rng = random.Random(5)
    times = [*poisson(400.0, 1_001.0, rng, 1_000.0), *poisson(2_000.0, 1.0, rng)]
    assert rate_after(times, 1.0) == pytest.approx(2_000.0, rel=0.15)
    assert rate_after([*times, math.nan, math.inf, -math.inf], 1.0) == rate_after(times, 1.0)


@given(st.lists(odd, max_size=50), st.lists(odd, min_size=1, max_size=5))
def test_whatever_the_clock_says_the_rate_is_finite(times: list[float], asked: list[float]) -> None:
    rate = ArrivalRate()
    for time in times:
        rate.observe(time)
        assert all(0.0 <= rate.rate(now) < math.inf for now in asked)


# --- ArrivalProfile


def test_grid_doubles_from_fifty_microseconds() -> None:
    assert len(EPOCH_GRID) == 14
    assert EPOCH_GRID[0] == 50e-6
    assert all(b == 2 * a for a, b in pairwise(EPOCH_GRID))


def test_profile_finds_callers_that_return_together() -> None:
    profile, rng = ArrivalProfile(), random.Random(0)
    for epoch in range(100):
        profile.open(epoch * 0.02)
        for age in sorted(rng.uniform(0.0001, 0.0005) for _ in range(8)):
            profile.arrived(epoch * 0.02 + age)
    profile.close(2.0)
    assert profile.expected(0) == 0.0
    assert 1.0 < profile.expected(2) < 3.0  # 200 us: a quarter of them
    assert [profile.expected(j) for j in range(4, 14)] == pytest.approx([8.0] * 10)  # 800 us and more: all of them
    assert profile.total == pytest.approx(8.0)
    assert profile.peak(4) == 8.0 > profile.peak(2) > profile.expected(2)
    assert profile.epochs == pytest.approx(20.0, rel=0.01)


def test_profile_of_poisson_arrivals_is_the_rate_times_the_time() -> None:
    profile, rng = ArrivalProfile(), random.Random(1)
    means = [0.0] * len(EPOCH_GRID)
    for epoch in range(2_000):
        profile.open(epoch * 0.5)
        for time in poisson(1_000.0, epoch * 0.5 + 0.45, rng, epoch * 0.5):
            profile.arrived(time)
        means = [mean + profile.expected(j) / 2_000 for j, mean in enumerate(means)]
    assert means == pytest.approx([1_000.0 * d for d in EPOCH_GRID], rel=0.1)
    assert profile.total == pytest.approx(450.0, rel=0.05)


@pytest.mark.parametrize("j", range(14))
def test_an_arrival_counts_from_the_first_horizon_it_lies_within(j: int) -> None:
    profile = ArrivalProfile()
    profile.open(0.0)
    profile.arrived(EPOCH_GRID[j] * 0.999)
    profile.close(1.0)
    assert [profile.expected(i) for i in range(14)] == [0.0] * j + [1.0] * (14 - j)


def test_an_arrival_beyond_the_grid_counts_in_the_total_alone() -> None:
    profile = ArrivalProfile()
    profile.open(0.0)
    for age in (math.nextafter(EPOCH_GRID[-1], 0.0), EPOCH_GRID[-1], 5.0):
        profile.arrived(age)
    profile.open(6.0)
    assert profile.total == 3.0
    assert profile.expected(13) <= 1.0


def test_an_epoch_of_one_kind_ends_where_one_of_another_kind_starts() -> None:
    freed, idle = ArrivalProfile(), ArrivalProfile()
    freed.open(0.0)
    freed.arrived(0.001)
    idle.arrived(0.001)  # none of its kind runs: not counted
    freed.close(0.002)
    idle.open(0.002)
    freed.arrived(0.003)
    idle.arrived(0.003)
    idle.close(0.004)
    freed.open(0.004)
    assert (freed.total, freed.epochs) == (1.0, 1.0)
    assert (idle.total, idle.epochs) == (1.0, 1.0)
    idle.close(0.005)
    assert idle.epochs == 1.0


def test_profile_forgets_a_cohort_that_broke_up() -> None:
    profile = ArrivalProfile()
    for epoch in range(200):
        profile.open(epoch * 1.0)
        for _ in range(8 if epoch < 100 else 0):
            profile.arrived(epoch + 0.0002)
    assert profile.expected(3) < 8 * 0.95**98
    assert 8 * 0.98**101 <= profile.peak(3) < 8 * 0.98**97


def test_an_epoch_during_which_the_clock_was_set_back_is_not_learned() -> None:
    profile = ArrivalProfile()
    profile.open(100.0)
    profile.arrived(100.1)
    profile.arrived(1.0)
    profile.open(1.0)
    assert profile.epochs == 0.0
    profile.arrived(1.1)
    for impossible in (math.nan, math.inf, -math.inf):
        profile.open(impossible)
        profile.close(impossible)
        profile.arrived(impossible)
    profile.close(2.0)
    assert (profile.epochs, profile.total) == (1.0, 1.0)


@given(st.lists(st.tuples(st.sampled_from(["open", "close", "arrived"]), odd), max_size=60))
def test_whatever_the_clock_says_the_profile_is_finite_and_grows_with_the_horizon(
    calls: list[tuple[str, float]],
) -> None:
    profile = ArrivalProfile()
    for method, now in calls:
        getattr(profile, method)(now)
    for values in ([profile.expected(j) for j in range(14)], [profile.peak(j) for j in range(14)]):
        assert all(0.0 <= value < math.inf for value in values)
        assert values == sorted(values)
    assert profile.expected(13) <= profile.total * (1 + 1e-9)
    assert 0.0 <= profile.epochs < 20.0
