import random

from tidegate_batching.item import Item, State
from tidegate_batching.lane import Lane


def waiting(sequence: int, priority: int = 3, deadline: float = 1e9, cost: float = 1.0) -> Item:
    item = Item(sequence, priority=priority, deadline=deadline, cost=cost)
    item.sequence, item.arrived_at, item.state = sequence, float(sequence), State.QUEUED
    item.key = (priority, deadline, sequence)
    return item


def values(lane: Lane) -> list[int]:
    return [item.value for item in lane]


def leave(lane: Lane, *items: Item, state: State = State.SETTLED) -> None:
    for item in items:
        item.state = state
    lane.left(len(items), sum(item.cost for item in items))


def test_items_are_ordered_by_priority_deadline_and_arrival() -> None:
    lane = Lane()
    for item in (waiting(1), waiting(2, deadline=5), waiting(3, priority=0), waiting(4), waiting(5, deadline=5)):
        lane.add(item)
    assert values(lane) == [3, 2, 5, 1, 4]
    assert lane.head().value == 3


def test_who_left_is_skipped_wherever_it_stood() -> None:
    lane, items = Lane(), [waiting(i, cost=i) for i in range(5)]
    for item in items:
        lane.add(item)
    leave(lane, items[0], items[3])
    assert values(lane) == [1, 2, 4]
    assert lane.head() is items[1]
    assert lane.live == 3
    assert lane.cost == 7


def test_the_window_opened_with_the_oldest_item_that_is_left() -> None:
    lane, items = Lane(), [waiting(1, priority=7), waiting(2), waiting(3, priority=0)]
    for item in items:
        lane.add(item)
    assert lane.opened_at() == 1.0
    leave(lane, items[0])
    assert lane.opened_at() == 2.0
    leave(lane, items[1], state=State.RUNNING)
    assert lane.opened_at() == 3.0


def test_items_that_are_put_back_stand_in_their_old_place_and_only_there() -> None:
    lane, items = Lane(), [waiting(i) for i in range(6)]
    for item in items:
        lane.add(item)
    leave(lane, items[1], items[2], state=State.RUNNING)
    lane.add(waiting(6))
    for item in items[1:3]:
        item.state = State.QUEUED
    lane.put_back(items[1:3])
    assert values(lane) == [0, 1, 2, 3, 4, 5, 6]
    assert lane.live == 7
    assert lane.cost == 7
    assert lane.opened_at() == 0.0
    leave(lane, items[0])
    assert lane.opened_at() == 1.0


def test_it_remembers_about_twice_as_many_as_it_holds() -> None:
    lane, rng = Lane(), random.Random(0)
    here: list[Item] = []
    for i in range(20_000):
        here.append(waiting(i, priority=rng.randrange(8)))
        lane.add(here[-1])
        if len(here) > 20:
            leave(lane, here.pop(rng.randrange(1, len(here))))  # the first one never leaves
        assert len(lane._ordered) <= 2 * lane.live + 65
        assert len(lane._arrivals) <= 2 * lane.live + 65
    assert sorted(values(lane)) == sorted(item.value for item in here)
