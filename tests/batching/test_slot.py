import pytest

from tidegate_batching.estimators import ServiceTime
from tidegate_batching.item import Item, State
from tidegate_batching.slot import Flight, Slot


def flight(number: int = 1, at: float = 0.0) -> Flight:
    items = [Item(i) for i in range(number)]
    for item in items:
        item.state = State.RUNNING
    return Flight(items, number, at, None)


def service(seconds: float) -> ServiceTime:
    learned = ServiceTime()
    for _ in range(5):
        learned.observe(1, seconds)
    return learned


def test_a_flights_live_items_are_those_whose_callers_wait() -> None:
    one = flight(3)
    one.items[1].state = State.SETTLED
    assert [item.value for item in one.live()] == [0, 2]


def test_a_slot_takes_another_batch_only_behind_a_running_one_and_only_where_it_can_prepare() -> None:
    slot, plain = Slot(0, True, []), Slot(1, False, [])
    assert not slot.takes_another()
    slot.current = plain.current = flight()
    assert not slot.takes_another()
    slot.current.prepared = True
    assert slot.takes_another()
    assert not plain.takes_another()
    slot.following = flight()
    assert not slot.takes_another()


def test_a_slots_items_are_the_live_ones_of_both_batches() -> None:
    slot = Slot(0, True, [])
    assert slot.items() == []
    slot.current, slot.following = flight(2), flight(1)
    slot.current.items[0].state = State.SETTLED
    assert slot.items() == [slot.current.items[1], slot.following.items[0]]


def test_batches_are_prepared_in_the_order_in_which_they_were_sent() -> None:
    slot = Slot(0, True, [])
    assert slot.unprepared() is None
    slot.current, slot.following = flight(), flight()
    assert slot.unprepared() is slot.current
    slot.current.prepared = True
    assert slot.unprepared() is slot.following
    slot.following.prepared = True
    assert slot.unprepared() is None


def test_a_slot_ends_when_everything_sent_to_it_should_be_done() -> None:
    slot, learned = Slot(0, True, []), service(0.5)
    slot.current = flight(at=10.0)
    assert slot.ends_at(learned) == pytest.approx(10.5)
    slot.following = flight(at=10.2)
    assert slot.ends_at(learned) == pytest.approx(11.0)
