from collections.abc import Callable
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from tidegate_batching.item import Item
from tidegate_batching.shedding import MARGIN, Choice, choose


def items(*deadlines: float, cost: float = 1.0) -> list[Item]:
    return [Item(i, deadline=deadline, cost=cost) for i, deadline in enumerate(deadlines)]


def line(fixed: float, each: float) -> Callable[[list[Item]], float]:
    return lambda batch: fixed + each * len(batch)


def free(batch: list[Item]) -> float:
    return 0.0


def chosen(
    waiting: list[Item],
    limit: int = 8,
    seconds: Callable[[list[Item]], float] = free,
    *,
    max_cost: float = inf,
    now: float = 0.0,
) -> tuple[list[int], list[int]]:
    choice = choose(waiting, limit, max_cost, now, seconds, lambda item: seconds([item]))
    return [item.value for item in choice.batch], [item.value for item in choice.shed]


def test_without_deadlines_the_first_in_order_go() -> None:
    assert chosen(items(*[inf] * 5), 3, line(1, 1)) == ([0, 1, 2], [])


def test_the_batch_ends_where_the_next_item_would_cost_too_much() -> None:
    waiting = items(inf, inf, inf)
    for item, cost in zip(waiting, (4.0, 7.0, 1.0), strict=True):
        item.cost = cost
    assert chosen(waiting, max_cost=10) == ([0], [])
    assert chosen(waiting, max_cost=11) == ([0, 1], [])


def test_whoever_cannot_make_it_even_alone_is_shed() -> None:
    assert chosen(items(1.0, 9.0, 1.5, 9.0), seconds=line(2, 0)) == ([1, 3], [0, 2])


def test_nobody_is_shed_while_nothing_is_known() -> None:
    assert chosen(items(0.001, 0.001)) == ([0, 1], [])


def test_if_nobody_can_make_it_the_first_one_runs_and_the_others_wait() -> None:
    assert chosen(items(1.0, 1.0, 1.0), seconds=line(2, 0)) == ([0], [])


def test_a_smaller_batch_saves_an_urgent_item_where_that_costs_nobody_else() -> None:
    assert chosen(items(3.2, 99, 99, 99), seconds=line(0, 1)) == ([0, 1, 2], [])


def test_the_most_urgent_is_given_up_where_a_fuller_batch_wins_more() -> None:
    assert chosen(items(1.2, *[99.0] * 7), seconds=line(1, 0.1)) == ([1, 2, 3, 4, 5, 6, 7], [0])


def test_items_beyond_the_limit_fill_the_places_of_those_given_up() -> None:
    assert chosen(items(1.2, *[99.0] * 9), limit=4, seconds=line(1, 0.1)) == ([1, 2, 3, 4], [0])


def test_a_batch_that_just_makes_it_goes_whole() -> None:
    assert chosen(items(MARGIN * 4, 99, 99, 99), seconds=line(0, 1)) == ([0, 1, 2, 3], [])


def test_the_time_is_counted_from_now() -> None:
    assert chosen(items(101.0, 200.0), seconds=line(2, 0), now=100.0) == ([1], [0])


@given(
    deadlines=st.lists(st.sampled_from([0.1, 0.5, 1.0, 2.0, 10.0, inf]), min_size=1, max_size=12),
    costs=st.lists(st.sampled_from([0.0, 1.0, 3.0, 8.0]), min_size=12, max_size=12),
    limit=st.integers(1, 8),
    fixed=st.sampled_from([0.0, 0.1, 1.0, 1e9]),
    each=st.sampled_from([0.0, 0.05, 0.5]),
    soonest=st.sampled_from([0.0, 0.3, 1e9]),
)
def test_whatever_is_predicted_somebody_runs_within_the_limits_and_nobody_is_both_run_and_shed(
    deadlines: list[float], costs: list[float], limit: int, fixed: float, each: float, soonest: float
) -> None:
    waiting = items(*deadlines)
    for item, cost in zip(waiting, costs, strict=False):
        item.cost = cost
    choice: Choice = choose(waiting, limit, 8.0, 0.0, line(fixed, each), lambda item: soonest)
    assert 1 <= len(choice.batch) <= limit
    assert sum(item.cost for item in choice.batch) <= 8.0
    assert not set(choice.batch) & set(choice.shed)
    assert all(item.deadline < inf for item in choice.shed)
    left = [item for item in waiting if item not in choice.shed]
    assert choice.batch == left[: len(choice.batch)]
