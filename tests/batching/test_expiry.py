from math import inf

from tidegate_batching.expiry import Expiry
from tidegate_batching.item import Item, State


def armed(expiry: Expiry, deadline: float, sequence: int = 0) -> Item:
    item = Item(sequence, deadline=deadline)
    item.sequence = sequence
    expiry.arm(item)
    return item


def settle(expiry: Expiry, item: Item) -> None:
    item.state = State.SETTLED
    expiry.forget()


def take(expiry: Expiry, now: float) -> list[int]:
    taken = []
    for item in expiry.due(now):
        taken.append(item.value)
        item.state = State.SETTLED
    return taken


def test_the_earliest_deadline_is_next_and_due_when_it_has_come() -> None:
    expiry = Expiry()
    assert expiry.next() == inf
    for sequence, deadline in enumerate((3.0, 1.0, 2.0)):
        armed(expiry, deadline, sequence)
    assert expiry.next() == 1.0
    assert take(expiry, 0.999) == []
    assert take(expiry, 2.0) == [1, 2]
    assert expiry.next() == 3.0


def test_equal_deadlines_expire_in_order_of_arrival() -> None:
    expiry = Expiry()
    for sequence in range(5):
        armed(expiry, 1.0, sequence)
    assert take(expiry, 1.0) == [0, 1, 2, 3, 4]


def test_an_item_without_a_deadline_is_not_watched() -> None:
    expiry = Expiry()
    armed(expiry, inf)
    assert len(expiry) == 0


def test_a_settled_item_is_never_due() -> None:
    expiry = Expiry()
    first, _ = armed(expiry, 1.0, 1), armed(expiry, 2.0, 2)
    settle(expiry, first)
    assert expiry.next() == 2.0
    assert take(expiry, 5.0) == [2]


def test_a_deadline_that_was_lifted_does_not_count() -> None:
    expiry = Expiry()
    item = armed(expiry, 1.0)
    item.deadline = inf
    expiry.forget()
    assert expiry.next() == inf
    assert take(expiry, 5.0) == []


def test_settled_items_are_forgotten_long_before_their_deadline() -> None:
    expiry = Expiry()
    lasting = [armed(expiry, 1000.0 + i, i) for i in range(10)]
    for i in range(10_000):
        settle(expiry, armed(expiry, 5000.0 + i, 100 + i))
        assert len(expiry) <= 2 * len(lasting) + 66
    assert expiry.next() == 1000.0


def test_many_may_be_forgotten_at_once() -> None:
    expiry = Expiry()
    for i in range(100):
        armed(expiry, 1.0 + i, i).state = State.SETTLED
    last = armed(expiry, 500.0, 500)
    expiry.forget(100)
    assert len(expiry) == 1
    assert take(expiry, 500.0) == [last.value]
