"""What batching is for, as numbers: latency, throughput and goodput of the real scheduler in simulated time."""

import importlib.util
import math
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tidegate_batching.item import Action, Dispatch, Item, Settle
from tidegate_batching.policy import Policy
from tidegate_batching.scheduler import Scheduler


def _load(name: str) -> ModuleType:
    """A script of benchmarks/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


simulation = _load("simulation")
MODELS = simulation.MODELS


@cache
def open_loop(
    model: str, workers: int, load: float, timeout: Any, kind: str = "poisson", count: int = 16_000, seed: int = 1
) -> Any:
    arrivals = simulation.open_loop(MODELS[model], load, workers=workers, kind=kind, count=count, seed=seed)
    return simulation.simulate(MODELS[model], arrivals, timeout=timeout, workers=workers, noise=0.03, seed=seed)


def exact_mean_latency(model: Any, rate: float) -> float:
    """Mean latency of one worker under natural batching and Poisson arrivals, from the chain of queues left behind.

    Exact for service times without spread: a batch of min(n, limit) starts, Poisson(rate·t) items come meanwhile.
    """
    states = 6 * model.max_batch
    transition, seconds, waited = np.zeros((states, states)), np.zeros(states), np.zeros(states)
    for left in range(states):
        queued = max(left, 1)  # into an idle system the next item brings itself
        size = min(queued, model.max_batch)
        busy = model.seconds(size)
        seconds[left] = busy + (0.0 if left else 1 / rate)
        waited[left] = queued * busy + rate * busy**2 / 2  # item·seconds until the batch ends
        coming = rate * busy
        for arrivals in range(states):
            chance = math.exp(arrivals * math.log(coming) - coming - math.lgamma(arrivals + 1))
            transition[left, min(queued - size + arrivals, states - 1)] += chance
    transition /= transition.sum(axis=1, keepdims=True)
    balance = np.vstack([transition.T - np.eye(states), np.ones(states)])
    share = np.linalg.lstsq(balance, np.append(np.zeros(states), 1.0), rcond=None)[0]
    return float(share @ waited / (share @ seconds) / rate)


def inoue_mean_latency(fixed: float, per_item: float, rate: float) -> float:
    """The closed-form upper bound for batches without a limit (Inoue, arXiv 1912.06322)."""
    low = (per_item + fixed) / 2 * (1 + 2 * rate * fixed + (1 - rate * fixed) / (1 + rate * per_item))
    load = rate * per_item
    return min(low, 1.5 * fixed / (1 - load) + per_item / 2 * (load + 2) / (1 - load**2))


# ---------------------------------------------------------------------- the simulator can be believed


@pytest.mark.parametrize("model", ["gpu", "cpu", "mid", "bert_fit"])
@pytest.mark.parametrize("load", [0.2, 0.5, 0.8])
def test_natural_batching_on_one_worker_agrees_with_the_exact_markov_chain(model: str, load: float) -> None:
    runs = [simulation.open_loop(MODELS[model], load, count=20_000, seed=seed) for seed in range(5)]
    simulated = np.mean([simulation.simulate(MODELS[model], arrivals, timeout=0).mean for arrivals in runs])
    assert simulated == pytest.approx(exact_mean_latency(MODELS[model], load * MODELS[model].ceiling()), rel=0.03)


@pytest.mark.parametrize(("model", "fixed", "per_item"), [("gpu", 8, 0.15), ("gpu_mid", 1.9, 0.144)])
@pytest.mark.parametrize("load", [0.3, 0.5, 0.7])
def test_natural_batching_agrees_with_the_closed_form_of_inoue(
    model: str, fixed: float, per_item: float, load: float
) -> None:
    arrivals = simulation.open_loop(MODELS[model], load, count=30_000, seed=4)
    simulated = simulation.simulate(MODELS[model], arrivals, timeout=0).mean
    assert simulated == pytest.approx(
        inoue_mean_latency(fixed / 1e3, per_item / 1e3, load * MODELS[model].ceiling()), rel=0.03
    )


def test_the_same_seed_gives_the_same_result() -> None:
    open_loop.cache_clear()
    first = open_loop("gpu", 4, 0.5, "auto", count=3000)
    open_loop.cache_clear()
    assert open_loop("gpu", 4, 0.5, "auto", count=3000) == first


def test_a_window_is_kept_from_the_oldest_items_arrival() -> None:
    alone = simulation.simulate(MODELS["gpu"], np.arange(1, 40) * 0.1, timeout=0.005)
    assert alone.mean == pytest.approx(0.005 + 0.00815)


# ---------------------------------------------------------------------- latency


@pytest.mark.parametrize("model", ["gpu", "gpu_mid", "cpu", "mid", "bert", "resnet"])
@pytest.mark.parametrize("load", [0.1, 0.3, 0.5, 0.8])
def test_on_one_worker_auto_is_never_three_percent_slower_than_natural_batching(model: str, load: float) -> None:
    assert open_loop(model, 1, load, "auto").mean <= 1.03 * open_loop(model, 1, load, 0).mean


@pytest.mark.parametrize("model", ["gpu", "bert_fit", "resnet_fit"])
def test_four_workers_kept_out_of_step_cut_the_slowest_percent_by_a_tenth(model: str) -> None:
    auto, natural = open_loop(model, 4, 0.5, "auto"), open_loop(model, 4, 0.5, 0)
    assert auto.p99 <= 0.9 * natural.p99
    assert auto.mean <= natural.mean


@pytest.mark.parametrize("kind", ["poisson", "mmpp", "fan8"])
@pytest.mark.parametrize("load", [0.2, 0.5, 0.8, 0.95])
def test_four_gpus_are_faster_under_auto_whatever_the_arrivals(kind: str, load: float) -> None:
    assert open_loop("gpu", 4, load, "auto", kind).mean <= 1.02 * open_loop("gpu", 4, load, 0, kind).mean


def test_small_batches_spread_over_workers_where_batching_saves_little() -> None:
    assert open_loop("cpu", 4, 0.5, "auto").p99 <= 0.8 * open_loop("cpu", 4, 0.5, 0).p99


# ---------------------------------------------------------------------- throughput


def closed_loop(clients: int, timeout: Any) -> Any:
    loop = simulation.ClosedLoop(clients, (0.0003, 0.001), 10_000)
    return simulation.simulate(MODELS["gpu"], loop, timeout=timeout, noise=0.03, seed=1)


def test_callers_that_return_together_share_one_batch() -> None:
    ceiling = MODELS["gpu"].ceiling()
    assert closed_loop(64, "auto").throughput >= 0.85 * ceiling
    assert closed_loop(64, 0).throughput <= 0.75 * ceiling


def test_idle_workers_share_a_cohort_where_batching_saves_little() -> None:
    loop = simulation.ClosedLoop(32, (0.0003, 0.001), 6000)
    auto, natural = (simulation.simulate(MODELS["mid"], loop, timeout=t, workers=4, noise=0.03) for t in ("auto", 0))
    assert auto.throughput >= natural.throughput


def test_past_the_knee_of_a_measured_curve_batches_are_not_cut_to_single_items() -> None:
    auto, natural = (open_loop("resnet", 4, 0.8, timeout, "fan8") for timeout in ("auto", 0))
    assert auto.mean <= natural.mean


@pytest.mark.parametrize("clients", [8, 32])
def test_few_callers_in_a_loop_gain_a_third_over_natural_batching(clients: int) -> None:
    assert closed_loop(clients, "auto").throughput >= 1.33 * closed_loop(clients, 0).throughput


# ---------------------------------------------------------------------- overload


def overload(timeout: Any, *, shed: bool, factor: float = 1.2, workers: int = 1) -> float:
    """Goodput as a share of the ceiling of GPUs with an objective of 50 ms."""
    model = MODELS["gpu"]
    arrivals = simulation.open_loop(model, factor, workers=workers, count=12_000 * workers, seed=5)
    result = simulation.simulate(
        model, arrivals, timeout=timeout, workers=workers, slo=0.05, shed=shed, noise=0.05, seed=5
    )
    return float(result.goodput / model.ceiling(workers))


@pytest.mark.parametrize("factor", [1.2, 2.0])
@pytest.mark.parametrize("timeout", [0, "auto"])
def test_overload_leaves_most_of_the_ceiling_in_time(timeout: Any, factor: float) -> None:
    assert overload(timeout, shed=True, factor=factor) >= 0.7


@pytest.mark.parametrize("factor", [1.2, 2.0])
def test_overload_of_four_workers_leaves_most_of_the_ceiling_in_time(factor: float) -> None:
    assert overload("auto", shed=True, factor=factor, workers=4) >= 0.7


def test_overload_collapses_without_shedding() -> None:
    assert overload(0, shed=False) < 0.2


@pytest.mark.parametrize("slow", [2, 4, 12])
@pytest.mark.parametrize("timeout", [0, "auto"])
def test_shedding_heals_after_a_wrong_estimate(slow: int, timeout: Any) -> None:
    """The first batches take a second, twenty times what any request can bear; then the service is fast."""
    batches = 0

    def seconds(size: int) -> float:
        nonlocal batches
        batches += 1
        return 1.0 if batches <= slow else 0.008 + 0.00015 * size

    policy = Policy(max_batch_size=64, batch_timeout=timeout)
    arrivals = np.arange(1, 6001) * 0.005
    run = simulation.Simulation(Scheduler(policy), seconds, arrivals, slo=0.05)
    run.run()
    # Each condemned request waits until its batch comes; two more seconds, and everybody is answered.
    late = [item for item in run.items if item.arrived_at > slow + 2]
    assert len(late) > 3000
    assert np.mean([run.answered[item] for item in late]) > 0.99


@pytest.mark.parametrize("factor", [1.2, 2.0])
def test_under_overload_a_batch_that_is_sent_ahead_is_one_that_will_be_in_time(factor: float) -> None:
    seconds, timeout, ends = 0.02, 0.5, 10.0
    scheduler = Scheduler(Policy(max_batch_size=8))
    scheduler.slot_ready(0, 0.0, prefetch=True)
    draw = np.random.default_rng(1)
    arrivals = list(np.cumsum(draw.exponential(seconds / 8 / factor, int(factor * ends * 8 / seconds))))
    sent: list[list[Item]] = []  # the first of them runs
    done = math.inf
    answered = 0

    def carry_out(actions: Sequence[Action], now: float) -> None:
        nonlocal done, answered
        for action in actions:
            if isinstance(action, Dispatch):
                sent.append(list(action.items))
                done = now + seconds if len(sent) == 1 else done
                carry_out(scheduler.prepared(0, now), now)
            elif isinstance(action, Settle):
                answered += action.outcome.error is None

    while arrivals or sent:
        now = min(arrivals[0] if arrivals else math.inf, done)
        if (due := scheduler.wake_at()) < now:
            carry_out(scheduler.tick(due), due)
        elif now == done:
            batch = sent.pop(0)
            done = now + seconds if sent else math.inf
            carry_out(scheduler.complete(0, [None] * len(batch), now), now)
        else:
            carry_out(scheduler.submit(Item(None, deadline=arrivals.pop(0) + timeout), now), now)
    assert answered / (ends * 8 / seconds) > 0.95
