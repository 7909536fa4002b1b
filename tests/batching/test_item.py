from math import inf

import pytest

from tidegate_batching.item import Item, Outcome, State


def test_a_new_item_has_no_history() -> None:
    item = Item("value")
    assert item.value == "value"
    assert (item.priority, item.deadline, item.cost, item.nbytes, item.group) == (3, inf, 1.0, 0, None)
    assert item.state is State.NEW
    assert not item.started
    assert item.sequence == item.batch_size == 0
    assert item.arrived_at == item.dispatched_at == item.settled_at == 0.0
    assert item.waiter is None


def test_an_item_is_cancelled_once_nobody_waits_for_its_answer() -> None:
    item = Item("value")
    for state in (State.NEW, State.QUEUED, State.RUNNING, State.RETRY):
        item.state = state
        assert not item.cancelled
    item.state = State.SETTLED
    assert item.cancelled


def test_an_item_prints_its_place_and_never_its_value() -> None:
    assert repr(Item("secret", priority=0, deadline=5.0)) == "<Item 0 new key=(0, 5.0, 0)>"


def test_items_are_told_apart_by_identity() -> None:
    assert Item(1) != Item(1)
    assert len({Item(1), Item(1)}) == 2


def test_an_item_takes_no_other_attributes() -> None:
    with pytest.raises(AttributeError):
        Item(1).colour = "red"  # type: ignore[attr-defined]


def test_an_outcome_is_a_value_unless_it_has_an_error() -> None:
    assert Outcome(3) == (3, None)
    error = ValueError()
    assert Outcome(error=error).error is error
