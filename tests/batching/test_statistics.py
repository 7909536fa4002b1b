import dataclasses

import pytest

from tidegate_batching.errors import Cancelled, DeadlineExceeded
from tidegate_batching.item import Dispatch, Item, Release
from tidegate_batching.statistics import SECONDS_BOUNDS, Histogram, Recorder


def answered(queued: float, ran: float) -> Item:
    item = Item(None)
    item.arrived_at, item.dispatched_at, item.settled_at = 100.0, 100.0 + queued, 100.0 + queued + ran
    return item


def test_before_anything_happened_everything_is_zero() -> None:
    statistics = Recorder().snapshot(waiting=0, running=0)
    assert statistics.submitted == statistics.batches == statistics.rerun == 0
    assert statistics.mean_batch_size == 0.0
    assert statistics.outcomes == {}
    assert statistics.queue_seconds == Histogram((0,) * (len(SECONDS_BOUNDS) + 1), 0.0)


def test_batches_are_counted_by_size_and_by_why_they_went() -> None:
    recorder = Recorder()
    for size, reason in ((1, Release.IDLE), (3, Release.FULL), (3, Release.FULL), (2, Release.RETRY)):
        recorder.dispatched(Dispatch(0, [Item(i) for i in range(size)], reason))
    statistics = recorder.snapshot(waiting=4, running=2)
    assert statistics.batch_sizes == {1: 1, 3: 2, 2: 1}
    assert statistics.released == {"idle": 1, "full": 2, "retry": 1}
    assert statistics.batches == 4
    assert statistics.mean_batch_size == 9 / 4
    assert statistics.rerun == 2
    assert (statistics.waiting, statistics.running) == (4, 2)


def test_outcomes_are_counted_by_code() -> None:
    recorder = Recorder()
    recorder.settled(answered(0, 0), None)
    for error in (Cancelled(), DeadlineExceeded(), DeadlineExceeded(), ValueError()):
        recorder.settled(answered(0, 0), error)
    outcomes = recorder.snapshot(waiting=0, running=0).outcomes
    assert outcomes == {"ok": 1, "cancelled": 1, "deadline-exceeded": 2, "internal-error": 1}


def test_times_of_answered_items_fall_into_buckets_whose_bounds_belong_to_them() -> None:
    recorder = Recorder()
    for queued, ran in ((0.0, 0.25), (0.25, 64.0), (0.0, 0.0)):
        recorder.settled(answered(queued, ran), None)
    recorder.settled(answered(1.0, 1.0), Cancelled())
    statistics = recorder.snapshot(waiting=0, running=0)
    assert statistics.queue_seconds.count == statistics.run_seconds.count == 3
    assert statistics.queue_seconds.sum == 0.25
    assert statistics.queue_seconds.counts[SECONDS_BOUNDS.index(0.25)] == 1
    assert statistics.run_seconds.counts[SECONDS_BOUNDS.index(0.25)] == 1
    assert statistics.run_seconds.counts[-1] == 1
    assert statistics.run_seconds.sum == 64.25


def test_a_snapshot_is_frozen_and_does_not_move_on() -> None:
    recorder = Recorder()
    before = recorder.snapshot(waiting=0, running=0)
    recorder.dispatched(Dispatch(0, [Item(1)], Release.IDLE))
    recorder.settled(answered(0, 0), None)
    assert before.batch_sizes == {}
    assert before.outcomes == {}
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.waiting = 1  # type: ignore[misc]
