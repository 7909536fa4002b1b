"""The rules of DESIGN.md, sections 3 and 5, one by one; all of them at once are in test_scheduler_machine.py."""

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import pytest

from tidegate_batching.errors import (
    BatchSizeMismatch,
    Cancelled,
    Closed,
    DeadlineExceeded,
    HandlerError,
    HTTPError,
    OutOfMemory,
    Overloaded,
    TooCostly,
    Unavailable,
    WorkerDied,
)
from tidegate_batching.estimators import ServiceTime
from tidegate_batching.item import Action, Dispatch, Item, Outcome, State
from tidegate_batching.linger import Linger
from tidegate_batching.policy import Policy
from tidegate_batching.scheduler import Scheduler


class Died(Exception):
    """What a handler raises to take its worker along."""


class Desk:
    """A scheduler whose clock and workers are moved by hand. Values are their own answers."""

    def __init__(
        self,
        slots: int = 1,
        *,
        prefetch: bool = False,
        linger: Callable[[ServiceTime], Linger] = Linger,
        **policy: Any,
    ) -> None:
        self.scheduler = Scheduler(Policy(**{"max_batch_size": 4, "batch_timeout": 0, **policy}), linger)
        self.now = 1024.0
        self.items: dict[Any, Item] = {}
        self.sent: list[list[Any]] = []  # the values of every batch, in order
        self.slots: list[int] = []
        self.times: list[float] = []
        self.reasons: list[str] = []
        self.running: dict[int, deque[list[Item]]] = {}
        self.answers: dict[Any, Any] = {}
        self.prefetch = prefetch
        for slot in range(slots):
            self.ready(slot)

    def do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Dispatch):
                self.sent.append([item.value for item in action.items])
                self.slots.append(action.slot)
                self.times.append(self.now)
                self.reasons.append(action.reason.value)
                self.running[action.slot].append(action.items)
            else:
                assert action.item.value not in self.answers, "answered twice"
                error = action.outcome.error
                self.answers[action.item.value] = action.outcome.value if error is None else error

    def submit(self, *values: Any, timeout: float = inf, **options: Any) -> "Desk":
        for value in values:
            self.items[value] = Item(value, deadline=self.now + timeout, **options)
            self.do(self.scheduler.submit(self.items[value], self.now))
        return self

    def cancel(self, value: Any) -> None:
        self.do(self.scheduler.cancel(self.items[value], self.now))

    def ready(self, slot: int) -> "Desk":
        self.running[slot] = deque()
        self.do(self.scheduler.slot_ready(slot, self.now, prefetch=self.prefetch))
        return self

    def lose(self, slot: int = 0, *, replaced: bool = True) -> "Desk":
        self.running[slot].clear()
        self.do(self.scheduler.slot_lost(slot, WorkerDied(), self.now, replaced=replaced))
        return self

    def end(self, slot: int = 0, result: Any = None, *, after: float = 0.0) -> "Desk":
        """The batch in the slot ends, by default well."""
        if after:
            self.later(after)
        items = self.running[slot].popleft()
        outputs = [item.value for item in items] if result is None else result
        self.do(self.scheduler.complete(slot, outputs, self.now))
        return self

    def tick(self) -> "Desk":
        if self.scheduler.wake_at() <= self.now:
            self.do(self.scheduler.tick(self.now))
        assert self.scheduler.wake_at() > self.now
        return self

    def later(self, seconds: float) -> "Desk":
        """Time passes and the timer rings whenever it is due."""
        until = self.now + seconds
        while (at := self.scheduler.wake_at()) <= until:
            self.now = max(self.now, at)
            self.tick()
        self.now = until
        return self

    def errors(self) -> dict[Any, type[BaseException]]:
        return {value: type(answer) for value, answer in self.answers.items() if isinstance(answer, BaseException)}

    def teach(self, seconds: Callable[[int], float], sizes: Sequence[int] = (1, 2, 4)) -> "Desk":
        """Let the scheduler see how long batches take."""
        for n in range(3 * len(sizes)):
            size = sizes[n % len(sizes)]
            self.submit(*(("lesson", n, i) for i in range(size))).tick()
            while self.scheduler.waiting:
                self.later(self.scheduler.wake_at() - self.now)
            self.end(self.slots[-1], after=seconds(size))
        self.sent.clear()
        self.slots.clear()
        self.times.clear()
        self.reasons.clear()
        return self


class World(Desk):
    """A desk with a handler: batches take `seconds(n)` and end as `handler(values)` returns or raises."""

    def __init__(
        self,
        handler: Callable[[list[Any]], Sequence[Any]] = lambda values: values,
        seconds: Callable[[int], float] = lambda n: 0.0078125 * (1 + n),
        slots: int = 1,
        **options: Any,
    ) -> None:
        self.handler = handler
        self.seconds = seconds
        self.ends: list[tuple[float, int, int]] = []
        super().__init__(slots, **options)

    def do(self, actions: Sequence[Action]) -> None:
        super().do(actions)
        for action in actions:
            if isinstance(action, Dispatch):
                end = self.now + self.seconds(len(action.items))
                heapq.heappush(self.ends, (end, len(self.sent), action.slot))

    def run(self, script: Sequence[tuple[float, Callable[[], None]]] = ()) -> "World":
        """Do what the script says, each at its time after now, and all that follows from it."""
        start, todo = self.now, deque(script)
        for _ in range(10**6):
            self.tick()
            next_todo = start + todo[0][0] if todo else inf
            next_end = self.ends[0][0] if self.ends else inf
            at = min(next_todo, next_end, self.scheduler.wake_at())
            if at == inf:
                return self
            self.now = max(self.now, at)
            while self.ends and self.ends[0][0] <= self.now:
                self.finish_batch(heapq.heappop(self.ends)[2])
            while todo and start + todo[0][0] <= self.now:
                todo.popleft()[1]()
        raise AssertionError("no end")

    def finish_batch(self, slot: int) -> None:
        values = [item.value for item in self.running[slot][0]]
        try:
            result: Any = self.handler(values)
        except Died:
            self.lose(slot)
            self.ready(slot)
            return
        except Exception as error:  # noqa: BLE001
            result = error
        self.end(slot, result)


def arrivals(world: World, times: Sequence[float], **options: Any) -> list[tuple[float, Callable[[], None]]]:
    """A script in which item i comes at times[i]."""
    return [(at, lambda i=i: world.submit(i, **options)) for i, at in enumerate(times)]  # type: ignore[misc]


def failing(*poison: Any, error: Callable[[], Exception] = ValueError) -> Callable[[list[Any]], list[Any]]:
    def handler(values: list[Any]) -> list[Any]:
        if set(poison) & set(values):
            raise error()
        return values

    return handler


# ---------------------------------------------------------------------- when a batch is formed


def test_an_idle_worker_never_waits_when_the_timeout_is_zero() -> None:
    desk = Desk().submit("a").tick()
    assert desk.sent == [["a"]]
    assert desk.reasons == ["idle"]


def test_a_batch_is_formed_when_a_worker_is_free_so_that_late_comers_join() -> None:
    desk = Desk().submit("a").tick().submit("b").tick().later(1).submit("c", "d").tick()
    assert desk.sent == [["a"]]
    assert desk.end().tick().sent == [["a"], ["b", "c", "d"]]


def test_items_that_come_in_one_turn_of_the_loop_share_a_batch() -> None:
    assert Desk(2).submit("a", "b", "c").tick().sent == [["a", "b", "c"]]


def test_a_batch_that_nobody_could_join_any_more_goes_without_a_tick() -> None:
    desk = Desk().submit("a", "b", "c", "d", "e")
    assert desk.sent == [["a", "b", "c", "d"]]
    assert desk.reasons == ["full"]
    desk.submit("f", "g", "h").end()
    assert desk.sent[1:] == [["e", "f", "g", "h"]]


def test_nothing_is_formed_before_there_is_a_worker() -> None:
    desk = Desk(0).submit("a").tick().later(60)
    assert desk.scheduler.wake_at() == inf
    assert desk.ready(0).tick().sent == [["a"]]


def test_the_window_opens_with_the_oldest_items_arrival() -> None:
    desk = Desk(batch_timeout=0.5).submit("a").later(0.25).submit("b").later(0.125)
    assert desk.sent == []
    assert desk.scheduler.wake_at() == 1024.5
    assert desk.later(0.125).sent == [["a", "b"]]
    assert desk.times == [1024.5]
    assert desk.reasons == ["window"]


def test_the_window_moves_when_its_oldest_item_goes_away() -> None:
    desk = Desk(batch_timeout=0.5).submit("a").later(0.25).submit("b").tick()
    desk.cancel("a")
    assert desk.later(1).times == [1024.75]


def test_the_window_is_counted_from_arrival_whatever_the_order_of_running_is() -> None:
    desk = Desk(batch_timeout=0.5).submit("old", priority=7).later(0.25).submit("urgent", priority=0)
    assert desk.later(1).sent == [["urgent", "old"]]
    assert desk.times == [1024.5]


def test_the_window_closes_early_when_the_batch_is_full() -> None:
    desk = Desk(batch_timeout=0.5).submit("a", "b", "c").later(0.25).submit("d")
    assert desk.sent == [["a", "b", "c", "d"]]


def test_the_window_is_over_for_items_that_queued_while_the_worker_was_busy() -> None:
    desk = Desk(batch_timeout=0.5).submit("a").later(0.5).submit("b").later(0.5)
    assert desk.end().tick().sent == [["a"], ["b"]]


def test_the_window_closes_early_for_a_deadline_and_leaves_the_time_that_the_batch_takes() -> None:
    desk = Desk(batch_timeout=8).teach(lambda n: 0.125)
    start = desk.now
    desk.submit("b").submit("a", timeout=1.0).tick().later(0.8)
    assert desk.sent == []
    desk.later(0.1).end()
    assert desk.reasons == ["deadline"]
    assert start + 0.8 < desk.times[0] < start + 1 - 0.125
    assert desk.answers["a"] == "a"


def test_an_item_held_for_company_is_not_shed_because_the_timer_was_late() -> None:
    desk = Desk(batch_timeout=8, max_batch_size=16).teach(lambda n: 0.125, sizes=(1, 2, 5, 6))
    desk.submit("a", timeout=1.0).submit("b", "c", "d", "e", timeout=20.0).tick()
    desk.now = desk.scheduler.wake_at() + 0.0009
    desk.tick().end()
    assert desk.sent == [["a", "b", "c", "d", "e"]]
    assert not desk.errors().keys() & set("abcde")


def test_the_time_to_prepare_counts_when_an_item_is_held_until_its_deadline() -> None:
    desk = Desk(batch_timeout=8, max_batch_size=16, prefetch=True)
    for n in range(9):
        desk.submit(*((n, i) for i in range((1, 5, 6)[n % 3]))).later(8)
        desk.later(0.25).do(desk.scheduler.prepared(0, desk.now))
        desk.end(after=0.125)
    desk.submit("a", timeout=1.0).submit("b", "c", "d", "e", timeout=20.0).tick().later(1.0)
    assert desk.sent[-1] == ["a", "b", "c", "d", "e"]
    assert desk.times[-1] < desk.now - 0.375


def test_an_item_whose_deadline_lies_within_the_window_runs_even_if_no_batch_was_ever_timed() -> None:
    desk = Desk(batch_timeout=8).submit("a", timeout=0.5).later(1)
    assert desk.sent == [["a"]]


class Stubborn(Linger):
    """Always wants a little more time."""

    def hold(
        self, queued: int, limit: int, free: int, slots: int, next_end: float, now: float, unit: float = 1.0
    ) -> float:
        return now + 0.008


def test_auto_never_holds_longer_than_ten_milliseconds_in_all() -> None:
    desk = Desk(linger=Stubborn, batch_timeout="auto").submit("a").tick().later(0.006).submit("b").tick().later(1)
    assert desk.sent == [["a", "b"]]
    assert desk.times == [pytest.approx(1024.01, abs=1e-6)]
    assert desk.reasons == ["idle"]
    desk.end().submit("c").tick().later(1)
    assert desk.times[1] == pytest.approx(desk.now - 1 + 0.01, abs=1e-6)


def test_auto_serves_another_group_rather_than_hold() -> None:
    desk = Desk(2, batch_timeout="auto").teach(lambda n: 1.0, sizes=(1, 2))
    desk.submit("a").later(0.02).submit("b", group=1).submit("c", group=2).tick()
    assert desk.sent[-1] == ["b"]


def test_nothing_is_held_any_more_when_the_scheduler_closes() -> None:
    desk = Desk(batch_timeout=8).submit("a", "b").tick()
    desk.do(desk.scheduler.close(desk.now))
    assert not desk.scheduler.drained
    desk.tick()
    assert desk.sent == [["a", "b"]]
    assert desk.reasons == ["drain"]
    assert not desk.scheduler.drained
    desk.end()
    assert desk.scheduler.drained


# ---------------------------------------------------------------------- order and limits


def test_priority_goes_before_deadline_and_deadline_before_arrival() -> None:
    desk = Desk(0, max_batch_size=8)
    desk.submit("late", timeout=9).submit("undated").submit("last", priority=7, timeout=1).submit("soon", timeout=2)
    desk.submit("first", priority=0, timeout=20).submit("later undated").submit("long", timeout=40)
    assert desk.ready(0).tick().sent == [["first", "soon", "late", "undated", "later undated", "long", "last"]]


def test_an_item_without_a_deadline_is_ordered_as_if_it_had_thirty_seconds() -> None:
    desk = Desk(0).submit("undated").submit("longer", timeout=30.5).later(1).submit("shorter", timeout=28.5)
    assert desk.ready(0).tick().sent == [["shorter", "undated", "longer"]]


def test_equal_keys_run_in_order_of_arrival() -> None:
    desk = Desk(0).submit(*range(10), timeout=60).ready(0)
    for _ in range(3):
        desk.tick().end()
    assert desk.sent == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_each_item_gets_its_own_output() -> None:
    desk = Desk().submit("a", "b", "c").tick().end(result=[1, 2, 3])
    assert desk.answers == {"a": 1, "b": 2, "c": 3}


def test_only_items_of_one_group_share_a_batch() -> None:
    desk = Desk(0).submit("a", "b", group="x").submit("c", group="y").submit("d", group="x").ready(0)
    assert desk.tick().end().tick().sent == [["a", "b", "d"], ["c"]]


def test_of_the_ripe_groups_the_one_whose_head_is_first_goes() -> None:
    desk = Desk(0).submit("a", group="x").submit("b", group="y", priority=0).submit("c", group="z").ready(0)
    assert desk.tick().end().tick().end().tick().sent == [["b"], ["a"], ["c"]]


def test_a_full_group_goes_before_an_earlier_one_whose_window_is_open() -> None:
    desk = Desk(batch_timeout=0.5).submit("early", group="x").later(0.25).submit(1, 2, 3, 4, group="y")
    assert desk.sent == [[1, 2, 3, 4]]
    assert desk.end().later(1).sent == [[1, 2, 3, 4], ["early"]]


def test_a_group_is_not_held_up_by_the_window_of_another() -> None:
    desk = Desk(batch_timeout=0.5).submit("a", group="x").later(0.25).submit("b", group="y").later(0.25)
    assert desk.sent == [["a"]]
    assert desk.end().later(0.25).sent == [["a"], ["b"]]


def test_costs_in_a_batch_stay_within_the_limit() -> None:
    desk = Desk(0, max_batch_cost=10, max_batch_size=8)
    for value, cost in enumerate((4, 4, 4, 9, 1, 10, 1)):
        desk.submit(value, cost=cost)
    desk.ready(0)
    for _ in range(5):
        desk.tick().end()
    assert desk.sent == [[0, 1], [2], [3, 4], [5], [6]]


def test_a_batch_that_costs_as_much_as_it_may_is_full() -> None:
    desk = Desk(batch_timeout=8, max_batch_cost=10).submit("a", cost=4).submit("b", cost=6).tick()
    assert desk.sent == [["a", "b"]]


def test_an_item_that_costs_more_than_a_batch_may_is_refused() -> None:
    desk = Desk(max_batch_cost=10).submit("a", cost=10.5).submit("b", cost=float("nan")).submit("c", cost=10).tick()
    assert desk.errors() == {"a": TooCostly, "b": TooCostly}
    assert desk.sent == [["c"]]


def test_the_queue_is_bounded_in_items_and_a_cancelled_item_frees_its_place_at_once() -> None:
    desk = Desk(0, max_queue_size=2).submit("a", "b", "c")
    assert desk.errors() == {"c": Overloaded}
    desk.cancel("a")
    assert desk.submit("d").scheduler.waiting == 2


def test_the_queue_is_bounded_in_bytes() -> None:
    desk = Desk(max_queue_bytes=10).submit("huge", nbytes=11).submit("a", nbytes=1).tick()
    assert desk.errors() == {"a": Overloaded}  # one item too large for the queue may still be its only one
    desk.submit("b", nbytes=10).submit("c", nbytes=1)
    assert desk.errors() == {"a": Overloaded, "c": Overloaded}
    assert desk.end().tick().submit("d", nbytes=10).sent == [["huge"], ["b"]]


def test_requeued_items_are_never_refused() -> None:
    desk = Desk(max_queue_size=4).submit(1, 2, 3, 4).submit(5, 6, 7, 8).end(result=MemoryError())
    assert desk.scheduler.waiting + len(desk.running[0][0]) == 8
    assert not desk.answers


# ---------------------------------------------------------------------- deadlines


def test_an_item_that_is_late_already_is_refused() -> None:
    assert Desk().submit("a", timeout=0).errors() == {"a": DeadlineExceeded}


def test_a_queued_item_expires_at_its_deadline_and_is_never_dispatched() -> None:
    desk = Desk(0).submit("a", timeout=1).submit("b").later(1)
    assert desk.errors() == {"a": DeadlineExceeded}
    assert desk.ready(0).tick().sent == [["b"]]


def test_a_running_item_expires_and_its_result_is_dropped() -> None:
    desk = Desk().submit("a", timeout=1).submit("b").tick().later(1)
    assert desk.errors() == {"a": DeadlineExceeded}
    assert desk.items["a"].cancelled
    assert desk.end().answers["b"] == "b"


def test_an_item_that_waits_for_its_retry_expires() -> None:
    desk = Desk().submit("a", "b", timeout=1).submit("c", "d").end(result=ValueError())
    assert desk.items["a"].state is State.RETRY
    desk.tick().later(1)
    assert desk.items["b"].state is State.SETTLED
    assert desk.errors() == {"a": DeadlineExceeded, "b": DeadlineExceeded}
    assert desk.end().tick().sent[2:] == [["c", "d"]]


def test_a_requeued_item_still_expires() -> None:
    desk = Desk().submit("a", "b", "c", "d", timeout=1).end(result=MemoryError())
    desk.later(1)
    assert len(desk.errors()) == 4


def test_items_that_cannot_be_in_time_even_alone_are_shed() -> None:
    desk = Desk(0).ready(0).teach(lambda n: 0.125)
    desk.submit("running").tick().submit("late", timeout=0.2).submit("good", timeout=9).later(0.1)
    assert desk.end().tick().sent[1:] == [["good"]]
    assert desk.errors() == {"late": DeadlineExceeded}


def test_the_most_urgent_are_given_up_if_more_are_served_in_time_without_them() -> None:
    desk = Desk(0, max_batch_size=16).ready(0).teach(lambda n: 0.5 + n / 16, sizes=(1, 2, 4, 8, 16))
    desk.submit("running").tick()
    desk.submit("urgent", timeout=0.65).submit(*range(12), timeout=9).end()
    assert desk.tick().sent[1:] == [list(range(12))]
    assert desk.errors() == {"urgent": DeadlineExceeded}


def test_the_most_urgent_is_served_alone_if_nobody_loses_by_it() -> None:
    desk = Desk(0, max_batch_size=16).ready(0).teach(lambda n: n / 16, sizes=(1, 2, 4, 8, 16))
    desk.submit("running").tick()
    desk.submit("urgent", timeout=0.07).submit(*range(12), timeout=9).end()
    assert desk.tick().sent[1:] == [["urgent"]]


def test_a_prediction_never_leaves_a_free_worker_without_work() -> None:
    desk = Desk().teach(lambda n: 100.0)
    desk.submit("a", "b", timeout=1).tick()
    assert desk.sent == [["a"]]
    assert not desk.errors()
    assert desk.end(after=0.01).tick().sent == [["a"], ["b"]]


def test_nobody_is_refused_on_the_word_of_a_warm_up_run() -> None:
    desk = Desk(max_batch_size=8).submit("compiles").tick().end(after=10)
    desk.submit("urgent", timeout=5).submit(*range(7), timeout=60)
    assert desk.sent[1:] == [["urgent", *range(7)]]


def test_a_cheap_item_is_not_shed_because_its_neighbours_are_dear() -> None:
    desk = Desk(0, max_batch_cost=100, max_batch_size=16).ready(0)
    for n in range(12):
        cost = (1, 50, 100)[n % 3]
        desk.submit(n, cost=cost).tick().end(after=0.01 * cost)
    desk.submit("running").tick()
    desk.submit("cheap", cost=1, timeout=0.3).submit("dear", cost=99).submit("dearer", cost=100).end().tick()
    assert "cheap" not in desk.answers
    assert "cheap" in desk.sent[-1]


# ---------------------------------------------------------------------- cancellation


def test_a_cancelled_item_never_reaches_a_worker() -> None:
    desk = Desk(0).submit("a", "b", "c")
    desk.cancel("b")
    assert desk.ready(0).tick().sent == [["a", "c"]]
    assert desk.errors() == {"b": Cancelled}


def test_a_running_items_result_is_dropped_when_it_is_cancelled() -> None:
    desk = Desk().submit("a", "b").tick()
    desk.cancel("a")
    assert desk.items["a"].cancelled
    assert desk.end().answers["b"] == "b"
    assert desk.errors() == {"a": Cancelled}


def test_an_item_cancelled_while_it_waits_for_its_retry_is_left_out_of_it() -> None:
    desk = Desk().submit("a", "b", "c", "d").end(result=ValueError())
    desk.cancel("b")
    assert desk.scheduler.waiting == 3
    assert desk.tick().end().tick().end().sent[1:] == [["a"], ["c", "d"]]


def test_to_cancel_what_is_settled_or_was_never_submitted_does_nothing() -> None:
    desk = Desk().submit("a").tick().end()
    desk.cancel("a")
    assert desk.answers == {"a": "a"}
    assert desk.scheduler.cancel(Item("stranger"), desk.now) == ()


def test_the_last_held_item_may_go_away_and_the_next_window_is_a_whole_one() -> None:
    desk = Desk(batch_timeout=0.5).submit("a").tick().later(0.25)
    desk.cancel("a")
    assert desk.submit("b").later(1).times == [1024.75]


# ---------------------------------------------------------------------- failures of the handler


def test_one_culprit_in_sixty_four_is_found_in_thirteen_calls() -> None:
    for culprit in (0, 17, 31, 32, 63):
        world = World(failing(culprit), lambda n: 0.25, max_batch_size=64).submit(*range(64))
        assert isinstance(world, World)
        world.run()
        assert len(world.sent) <= 13
        assert world.errors() == {culprit: HandlerError}
        assert all(world.answers[i] == i for i in range(64) if i != culprit)


def test_a_systemic_failure_takes_five_calls() -> None:
    world = World(failing(*range(64)), max_batch_size=64)
    world.submit(*range(64))
    assert len(world.run().sent) == 5
    assert set(world.errors().values()) == {HandlerError}
    assert len(world.errors()) == 64


def test_systemic_means_the_same_type_inside_not_just_a_handlers_error() -> None:
    def handler(values: list[int]) -> list[int]:
        raise ValueError if 0 in values else KeyError

    world = World(handler, max_batch_size=16)
    world.submit(*range(16)).later(0)
    world.run()
    assert len(world.sent) > 5


def test_a_handlers_own_verdict_reaches_its_caller_as_it_is() -> None:
    world = World(failing(3, error=lambda: HTTPError(404, "no such speaker")))
    world.submit(*range(4))
    world.run()
    error = world.answers[3]
    assert isinstance(error, HTTPError)
    assert error.status == 404
    assert error.detail == "no such speaker"


def test_a_lone_item_fails_with_its_error_at_once() -> None:
    desk = Desk().submit("a").tick().end(result=KeyError("k"))
    error = desk.answers["a"]
    assert isinstance(error, HandlerError)
    assert isinstance(error.__cause__, KeyError)
    assert desk.sent == [["a"]]


def test_an_exception_in_an_items_place_fails_that_item_alone() -> None:
    desk = Desk().submit("a", "b", "c").tick().end(result=["A", ValueError("b"), "C"])
    assert desk.answers["a"] == "A"
    assert desk.answers["c"] == "C"
    assert desk.errors() == {"b": HandlerError}
    assert len(desk.sent) == 1


def test_the_wrong_number_of_outputs_fails_and_is_never_guessed() -> None:
    world = World(lambda values: values[1:])
    world.submit("a", "b", "c", "d")
    world.run()
    assert set(world.errors().values()) == {BatchSizeMismatch}
    assert str(world.answers["a"]).startswith("the handler got 1 items and returned 0 outputs")


def test_a_result_that_is_no_sequence_is_the_handlers_error() -> None:
    desk = Desk().submit("a").tick()
    desk.do(desk.scheduler.complete(0, None, desk.now))  # type: ignore[arg-type]
    assert desk.errors() == {"a": HandlerError}
    assert desk.submit("b").tick().sent == [["a"], ["b"]]


def test_retries_go_before_fresh_work_and_never_mix_with_it() -> None:
    desk = Desk().submit("a", "b", "c", "d").submit("x", priority=0).end(result=ValueError())
    for _ in range(3):
        desk.tick().end()
    assert desk.sent == [["a", "b", "c", "d"], ["a", "b"], ["c", "d"], ["x"]]
    assert desk.reasons[1:] == ["retry", "retry", "idle"]


def test_one_isolation_is_finished_before_another_is_begun() -> None:
    desk = Desk(2).submit("a", "b", "c", "d").submit("p", "q", "r", "s")
    first, second = desk.slots
    desk.end(first, ValueError()).end(second, ValueError()).tick()
    assert sorted(desk.sent[2:]) == [["p", "q"], ["r", "s"]]


def test_members_run_one_by_one_where_that_takes_less_time() -> None:
    for limits in ({}, {"max_batch_cost": 16}):
        world = World(failing(2), lambda n: (1 + n) / 64, max_batch_size=16, **limits)
        for n in range(15):
            world.submit(*((n, i) for i in range((1, 2, 4, 8, 16)[n % 5])))
            world.run()
        world.sent.clear()
        world.submit(*range(16))
        world.run()
        assert [len(batch) for batch in world.sent] == [16, 8, 8, *[1] * 8], limits


def test_nothing_is_run_twice_if_that_is_forbidden() -> None:
    results: list[Any] = [ValueError(), MemoryError(), []]
    for result in results:
        desk = Desk(isolate_errors=False).submit("a", "b", "c", "d").end(result=result).tick()
        assert len(desk.sent) == 1
        assert len(desk.errors()) == 4
    desk = Desk(isolate_errors=False).submit("a", "b", "c", "d").lose().ready(0).tick()
    assert len(desk.sent) == 1
    assert set(desk.errors().values()) == {WorkerDied}


@pytest.mark.parametrize("size", [32, 64])
def test_one_percent_of_poison_costs_no_innocent_its_answer(size: int) -> None:
    rng = random.Random(size)
    poison = set(rng.sample(range(20_032), 200))
    world = World(failing(*poison), lambda n: 0.25, max_batch_size=size, max_queue_size=10**6)
    world.submit(*range(20_032))
    world.run()
    healthy = 20_032 - len(poison)
    assert sum(world.answers[i] == i for i in range(20_032)) >= 0.9999 * healthy
    assert all(isinstance(world.answers[i], HandlerError) for i in poison)


def test_poison_of_every_size_in_a_batch_of_eight_never_hurts_the_innocent() -> None:
    for subset in range(256):
        poison = [i for i in range(8) if subset >> i & 1]
        world = World(failing(*poison), lambda n: 0.25, max_batch_size=8)
        world.submit(*range(8))
        world.run()
        assert len(world.sent) <= 17
        innocent = [i for i in range(8) if i not in poison]
        systemic = len(world.sent) <= 5 and {0, 7} <= set(poison)
        assert systemic or all(world.answers[i] == i for i in innocent)
        assert all(isinstance(world.answers[i], HandlerError) for i in poison)


# ---------------------------------------------------------------------- memory


def test_items_that_did_not_fit_wait_again_in_their_old_place() -> None:
    desk = Desk().submit("a", "b", "c", "d").submit("e", "f").submit("first", priority=0).end(result=MemoryError())
    for _ in range(5):
        desk.tick()
        if desk.running[0]:
            desk.end()
    assert desk.sent[1:] == [["first", "a"], ["b", "c"], ["d", "e"], ["f"]]
    assert not desk.errors()


def test_a_lone_item_that_does_not_fit_fails() -> None:
    assert Desk().submit("a").tick().end(result=MemoryError()).errors() == {"a": OutOfMemory}


def test_a_retry_that_does_not_fit_is_split_further() -> None:
    desk = Desk(max_batch_size=8).submit(*range(8)).end(result=ValueError()).tick().end(result=MemoryError())
    for _ in range(4):
        desk.tick()
        if desk.running[0]:
            desk.end()
    assert sorted(map(len, desk.sent)) == [2, 2, 4, 4, 8]
    assert not desk.errors()


def test_a_capacity_that_falls_and_returns_is_followed() -> None:
    capacity = 100
    failures = 0

    def handler(values: list[int]) -> list[int]:
        nonlocal failures
        if len(values) > capacity:
            failures += 1
            raise MemoryError
        return values

    world = World(handler, lambda n: 0.25, max_batch_size=128, max_queue_size=10**6)
    sizes = []
    number = 0
    for capacity, items in ((100, 10_000), (60, 10_000), (100, 50_000), (128, 70_000)):  # noqa: B007 - the handler's
        world.submit(*range(number, number + items))
        number += items
        world.run()
        sizes.append(max(len(batch) for batch in world.sent[-20:-1]))
    assert failures < 40
    assert not world.errors()
    assert sizes[0] > 90
    assert 54 <= sizes[1] <= 60
    assert sizes[2] > 90
    assert sizes[3] == 128


# ---------------------------------------------------------------------- workers that die


def test_a_killer_dies_alone_and_the_rest_get_their_answers() -> None:
    world = World(failing(5, error=Died), max_batch_size=16)
    world.submit(*range(16))
    world.run()
    assert world.errors() == {5: WorkerDied}
    assert [world.answers[i] for i in range(16) if i != 5] == [i for i in range(16) if i != 5]
    assert [len(batch) for batch in world.sent] == [16] + [1] * 16


def test_suspects_run_on_their_slots_replacement_only() -> None:
    desk = Desk(2).submit("a", "b").tick()
    (slot,) = desk.slots
    desk.lose(slot).later(60)
    assert desk.submit("fresh").tick().slots == [slot, 1 - slot]
    desk.ready(slot).tick()
    assert desk.sent[2:] == [["a"]]
    assert desk.slots[2:] == [slot]
    assert desk.end(slot).tick().sent[3:] == [["b"]]
    assert desk.slots[3:] == [slot]


def test_a_batch_of_one_that_dies_is_retried_once() -> None:
    desk = Desk().submit("a").tick().lose().ready(0).tick()
    assert desk.sent == [["a"], ["a"]]
    assert desk.lose().ready(0).tick().errors() == {"a": WorkerDied}
    assert len(desk.sent) == 2


def test_after_a_second_lone_death_the_rest_of_the_batch_is_not_tried() -> None:
    world = World(failing(1, 2, error=Died), max_batch_size=8)
    world.submit(*range(8))
    world.run()
    assert world.answers[0] == 0
    assert set(world.errors()) == {1, 2, 3, 4, 5, 6, 7}
    assert len(world.sent) == 4


def test_a_slot_that_is_not_replaced_fails_what_it_ran_and_nothing_else() -> None:
    desk = Desk(2).submit("a").tick().submit("b").tick().submit("c").tick()
    desk.lose(desk.slots[0], replaced=False)
    assert desk.errors() == {"a": WorkerDied}
    assert desk.end(desk.slots[1]).tick().sent[2:] == [["c"]]


def test_a_replacement_that_is_given_up_later_fails_what_waited_for_it() -> None:
    desk = Desk(2).submit("a", "b").tick()
    desk.lose(desk.slots[0]).later(1)
    assert not desk.answers
    assert desk.lose(desk.slots[0], replaced=False).errors() == {"a": WorkerDied, "b": WorkerDied}


def test_who_went_away_while_it_waited_for_a_replacement_is_not_answered_again() -> None:
    desk = Desk(2).submit("a", "b").tick()
    desk.lose(desk.slots[0]).cancel("a")
    assert desk.lose(desk.slots[0], replaced=False).errors() == {"a": Cancelled, "b": WorkerDied}


def test_who_went_away_before_a_systemic_failure_is_not_answered_again() -> None:
    desk = Desk(max_batch_size=8).submit(*range(8)).end(result=ValueError())
    for _ in range(4):
        desk.tick().end(result=ValueError())
        if len(desk.sent) == 4:
            desk.cancel(3)
    assert desk.errors() == {**dict.fromkeys(range(8), HandlerError), 3: Cancelled}
    assert len(desk.sent) == 5


def test_when_every_slot_is_gone_whatever_waits_and_whatever_comes_is_unavailable() -> None:
    desk = Desk(2).submit("a").tick().submit("b").tick().submit("c")
    desk.lose(0).lose(1, replaced=False)
    assert "c" not in desk.answers
    desk.lose(0, replaced=False).submit("d")
    assert desk.errors() == {"a": WorkerDied, "b": WorkerDied, "c": Unavailable, "d": Unavailable}
    assert desk.ready(0).submit("e").tick().sent[-1] == ["e"]


def test_a_slot_cannot_be_ready_twice_and_cannot_complete_what_it_does_not_run() -> None:
    desk = Desk()
    with pytest.raises(ValueError, match="slot 0 is ready already"):
        desk.ready(0)
    with pytest.raises(ValueError, match="slot 0 runs nothing"):
        desk.scheduler.complete(0, [], desk.now)


def test_a_lost_idle_slot_gets_nothing() -> None:
    desk = Desk(2).lose(1).lose(0).submit("a").tick()
    assert desk.sent == []
    assert desk.ready(1).tick().slots == [1]


# ---------------------------------------------------------------------- prefetch


def prefetching() -> Desk:
    """A slot that takes 0.25 s to prepare and 1 s to run, with a batch that began just now."""
    desk = Desk(prefetch=True)
    for n in range(4):
        desk.submit(("lesson", n)).tick().later(0.25)
        desk.do(desk.scheduler.prepared(0, desk.now))
        desk.end(after=1.0)
    desk.submit("a").tick().later(0.25)
    desk.do(desk.scheduler.prepared(0, desk.now))
    desk.sent.clear()
    return desk


def test_the_next_batch_is_sent_as_late_as_it_can_still_be_prepared() -> None:
    desk = prefetching().submit("b").tick()
    start = desk.now
    assert desk.later(0.7).submit("c").sent == []
    desk.later(0.25)
    assert desk.sent == [["b", "c"]]
    assert start + 1 - 1.16 * 0.25 <= desk.times[-1] <= start + 1 - 0.25
    assert desk.scheduler.running == 2


def test_a_full_batch_is_sent_ahead_at_once_for_nobody_else_can_join_it() -> None:
    desk = prefetching().submit("b", "c", "d").tick()
    assert desk.sent == []
    assert desk.submit("e").tick().sent == [["b", "c", "d", "e"]]


def test_one_batch_is_sent_ahead_and_no_more() -> None:
    desk = prefetching().submit("b").tick().later(0.9).submit("c").tick().later(5)
    assert desk.sent == [["b"]]
    assert desk.end().tick().answers["a"] == "a"
    desk.do(desk.scheduler.prepared(0, desk.now))
    assert desk.later(2).sent == [["b"], ["c"]]


def test_the_next_batch_goes_to_one_busy_slot_not_to_all() -> None:
    desk = prefetching().ready(1).submit("second").tick()
    desk.submit("b").tick().later(3)
    assert desk.sent == [["second"], ["b"]]
    desk.do(desk.scheduler.prepared(1, desk.now))  # what is prepared already stays as it is
    desk.do(desk.scheduler.prepared(1, desk.now + 1))


def test_without_prefetch_nothing_is_sent_to_a_busy_slot() -> None:
    desk = Desk().teach(lambda n: 1.0).submit("a").tick().submit("b").later(5)
    assert desk.sent == [["a"]]


def test_nothing_is_sent_ahead_before_a_batch_was_timed() -> None:
    assert Desk(prefetch=True).submit("a").tick().submit("b").later(5).sent == [["a"]]


def test_the_batch_behind_one_whose_worker_died_waits_again_and_is_not_suspected() -> None:
    desk = prefetching().submit("b", "c").tick().later(0.9)
    assert desk.sent == [["b", "c"]]
    desk.lose()
    assert desk.items["a"].state is State.RETRY
    assert desk.items["b"].state is State.QUEUED
    assert desk.ready(0).tick().sent[1:] == [["a"]]
    assert desk.end().tick().sent[2:] == [["b", "c"]]


def test_preparing_does_not_count_as_running() -> None:
    desk = prefetching()
    assert desk.scheduler._service.predict(1) == pytest.approx(1.0)
    assert desk.scheduler._preparation.predict(1) == pytest.approx(0.25)


def test_nothing_is_sent_ahead_while_the_worker_still_prepares_the_batch_before() -> None:
    desk = prefetching().end(after=1.0)
    desk.submit("b").tick().later(2).submit("c").tick()  # "b" is late: it should have been prepared and run by now
    assert desk.scheduler.running == 1
    desk.later(0.125)
    desk.do(desk.scheduler.prepared(0, desk.now))
    desk.tick().later(1)
    slot = desk.scheduler._slots[0]
    assert slot.current is not None and slot.following is not None
    assert slot.current.prepared and not slot.following.prepared


def test_retries_are_not_sent_ahead() -> None:
    desk = prefetching().submit("b", "c").later(0.9).end(result=ValueError())  # "a" fails
    desk.do(desk.scheduler.prepared(0, desk.now))
    desk.end(result=ValueError(), after=1.0).submit("d").tick().later(5)
    assert desk.sent == [["b", "c"], ["b"]]
    assert desk.end().tick().sent[2:] == [["c"]]


# ---------------------------------------------------------------------- streams


def test_the_first_chunk_disarms_the_deadline() -> None:
    desk = Desk().submit("a", "b", timeout=1).tick()
    desk.scheduler.started(desk.items["a"], desk.now)
    desk.later(2)
    assert desk.errors() == {"b": DeadlineExceeded}
    assert desk.end().answers["a"] == "a"


def test_an_item_may_end_before_its_batch() -> None:
    desk = Desk().submit("a", "b", "c").tick()
    desk.do(desk.scheduler.finish(desk.items["a"], Outcome("done"), desk.now))
    desk.do(desk.scheduler.finish(desk.items["b"], Outcome(error=ValueError("bad")), desk.now))
    desk.do(desk.scheduler.finish(desk.items["b"], Outcome("again"), desk.now))
    assert desk.answers["a"] == "done"
    assert desk.errors() == {"b": HandlerError}
    assert desk.end().answers["c"] == "c"


def test_a_stream_that_fails_before_any_chunk_is_isolated_like_a_batch() -> None:
    world = World(failing(3))
    world.submit(*range(4))
    assert world.run().errors() == {3: HandlerError}


def test_after_a_chunk_every_unfinished_item_gets_the_error_and_none_is_run_again() -> None:
    for error in (ValueError(), MemoryError()):
        desk = Desk().submit("a", "b", "c", "d")
        desk.scheduler.started(desk.items["a"], desk.now)
        desk.do(desk.scheduler.finish(desk.items["b"], Outcome("b"), desk.now))
        desk.end(result=error).tick()
        assert set(desk.errors()) == {"a", "c", "d"}
        assert len(desk.sent) == 1


def test_a_stream_that_began_dies_with_its_worker_and_the_others_are_retried() -> None:
    desk = Desk().submit("a", "b").tick()
    desk.scheduler.started(desk.items["a"], desk.now)
    desk.lose().ready(0).tick()
    assert desk.errors() == {"a": WorkerDied}
    assert desk.sent == [["a", "b"], ["b"]]


def test_streams_do_not_teach_how_long_batches_take() -> None:
    desk = Desk()
    for n in range(5):
        desk.submit(n).tick()
        desk.scheduler.started(desk.items[n], desk.now)
        desk.end(after=100)
    assert desk.scheduler._service.predict(1) == 0.0


def test_nothing_starts_that_does_not_run() -> None:
    desk = Desk(0).submit("a", timeout=1)
    desk.scheduler.started(desk.items["a"], desk.now)
    assert desk.scheduler.finish(desk.items["a"], Outcome("a"), desk.now) == ()
    assert desk.later(1).errors() == {"a": DeadlineExceeded}


# ---------------------------------------------------------------------- ending


def test_a_closed_scheduler_takes_nothing_new_and_finishes_what_is_in() -> None:
    desk = Desk().submit("a").tick().submit("b")
    desk.do(desk.scheduler.close(desk.now))
    desk.submit("c").end().tick().end()
    assert desk.errors() == {"c": Closed}
    assert desk.scheduler.drained


def test_a_new_worker_does_not_open_a_closed_scheduler() -> None:
    desk = Desk()
    desk.do(desk.scheduler.close(desk.now))
    assert desk.ready(1).submit("a").errors() == {"a": Closed}


def test_abort_answers_everything_at_once() -> None:
    desk = Desk(2, prefetch=True).submit(1, 2, 3, 4).submit(5, 6, 7, 8).submit(9).end(0, ValueError()).tick()
    desk.do(desk.scheduler.abort(desk.now))
    assert desk.errors() == dict.fromkeys(range(1, 10), Closed)
    assert not desk.scheduler.drained
    desk.end(0).end(1).tick()
    assert desk.scheduler.drained


# ---------------------------------------------------------------------- against a model


def first_in_first_out(
    times: Sequence[float], slots: int, size: int, seconds: Callable[[int], float]
) -> list[tuple[float, list[int]]]:
    """Ten lines that say what the scheduler does without deadlines, priorities, groups and windows."""
    pending = deque(enumerate(times))
    waiting: list[int] = []
    busy: list[float] = []
    batches = []
    while pending or waiting:
        now = min([at for _, at in pending][:1] + sorted(busy)[:1])
        busy = [end for end in busy if end > now]
        while pending and pending[0][1] <= now:
            waiting.append(pending.popleft()[0])
        while waiting and len(busy) < slots:
            batches.append((now, waiting[:size]))
            busy.append(now + seconds(len(waiting[:size])))
            waiting = waiting[size:]
    return batches


def dyadic_times(seed: int, number: int = 300) -> list[float]:
    """Arrival times that floats hold exactly, in bursts and gaps."""
    rng = random.Random(seed)
    times, now = [], 0.0
    for _ in range(number):
        now += rng.choice([0, 0, 0, 1, 3, 8, 40]) / 1024
        times.append(now)
    return times


@pytest.mark.parametrize("seed", range(20))
def test_it_agrees_with_first_in_first_out(seed: int) -> None:
    times, slots, size = dyadic_times(seed), 1 + seed % 3, (1, 2, 5, 16)[seed % 4]
    world = World(slots=slots, max_batch_size=size)
    world.run(arrivals(world, times))
    batches = [(at - 1024, batch) for at, batch in zip(world.times, world.sent, strict=True)]
    assert batches == first_in_first_out(times, slots, size, world.seconds)


Batches = list[tuple[float, list[Any]]]


def play(
    seed: int,
    *,
    shift: float = 0.0,
    scale: float = 1.0,
    ghosts: bool = False,
    permute: bool = False,
    **policy: Any,
) -> Batches:
    """The batches of one random day, after a change that should not matter."""
    rng = random.Random(seed)
    options = {"max_batch_size": 64, "slots": 2, "batch_timeout": 0.0625 * scale, **policy}
    world = World(seconds=lambda n: scale * (16 + n) / 1024, **options)
    world.now += shift
    world.do(world.scheduler.tick(world.now))
    start, script = world.now, []
    for i, at in enumerate(dyadic_times(seed)):
        priority, group = rng.choice([0, 3, 3, 3]), rng.choice("xxy")
        timeout = scale * rng.choice([0.25, 1.0, 4.0])

        def come(i: int = i, priority: int = priority, group: str = group, timeout: float = timeout) -> None:
            if ghosts and i % 3 == 0:
                world.submit(("ghost", i), priority=priority, group=group, timeout=timeout)
                world.cancel(("ghost", i))
            world.submit(i, priority=priority, group=group, timeout=timeout)

        script.append((at * scale, come))
    if permute:  # those that come at one time
        order = sorted(range(len(script)), key=lambda i: (script[i][0], rng.random()))
        script = [script[i] for i in order]
    world.run(script)
    return [((at - start) / scale, batch) for at, batch in zip(world.times, world.sent, strict=True)]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("timeout", [0, 0.0625])
def test_batches_are_the_same_at_another_time_of_day(seed: int, timeout: float) -> None:
    assert play(seed, batch_timeout=timeout) == play(seed, shift=4096.0, batch_timeout=timeout)


@pytest.mark.parametrize("seed", range(8))
def test_batches_are_the_same_when_everything_takes_twice_as_long(seed: int) -> None:
    # Deadlines far enough away: items without one are ordered by 30 s, however slow the rest is.
    assert play(seed, batch_timeout=0.0625) == play(seed, scale=2.0, batch_timeout=0.125)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("timeout", [0, 0.0625])
def test_an_item_that_is_cancelled_at_once_changes_nobodys_batch(seed: int, timeout: float) -> None:
    assert play(seed, batch_timeout=timeout) == play(seed, ghosts=True, batch_timeout=timeout)


@pytest.mark.parametrize("seed", range(8))
def test_the_order_of_equal_items_changes_who_runs_with_whom_but_not_when(seed: int) -> None:
    rng = random.Random(seed)
    times = dyadic_times(seed)
    order = sorted(range(len(times)), key=lambda i: (times[i], rng.random()))
    one, other = World(max_batch_size=5, batch_timeout=0.0625), World(max_batch_size=5, batch_timeout=0.0625)
    one.run(arrivals(one, times))
    other.run([(times[i], lambda i=i: other.submit(i)) for i in order])  # type: ignore[misc]
    renamed = {i: rank for rank, i in enumerate(order)}
    assert one.times == other.times
    assert one.sent == [[renamed[i] for i in batch] for batch in other.sent]


def test_an_item_waits_for_those_before_it_and_for_nobody_else() -> None:
    world = World(max_batch_size=4, max_queue_size=10**6)
    rng = random.Random(0)
    ahead: dict[int, tuple[int, int]] = {}

    def come(i: int) -> None:
        waiting = world.scheduler.waiting
        world.submit(i, group="rare" if i % 50 == 0 else "usual")
        ahead[i] = waiting, len(world.sent)

    world.run([(i * 0.004, lambda i=i: come(i)) for i in range(2000) if rng.random() < 0.9])  # type: ignore[misc]
    for number, batch in enumerate(world.sent):
        for i in batch:
            waiting, sent = ahead[i]
            # Full batches of those before it, and one that is not full for either group.
            assert number - sent <= waiting // 4 + 2


def test_low_priority_expires_under_a_flood_of_high_and_is_answered() -> None:
    world = World(max_batch_size=4)

    def flood(i: int) -> None:
        world.submit(*((i, j) for j in range(4)), priority=0)
        if i == 1:
            world.submit("low", priority=7, timeout=1.0)

    world.run([(i / 128, lambda i=i: flood(i)) for i in range(400)])  # type: ignore[misc]
    assert world.errors()["low"] is DeadlineExceeded


def test_nothing_is_remembered_of_a_hundred_thousand_items() -> None:
    rng = random.Random(5)

    def handler(values: list[int]) -> list[int]:
        fate = rng.random()
        if fate < 0.02:
            raise MemoryError
        if fate < 0.05 or any(value % 211 == 0 for value in values):
            raise ValueError
        if fate < 0.052:
            raise Died
        return values

    world = World(handler, slots=3, max_batch_size=16, max_queue_size=200, batch_timeout="auto", prefetch=False)
    peak = 0

    def come(i: int) -> None:
        nonlocal peak
        for j in range(i, i + 10):
            timeout = rng.choice([inf, 0.05, 0.5, 30.0])
            world.submit(j, timeout=timeout, priority=rng.choice([0, 3, 3]), group=j % 7 == 0, nbytes=rng.randrange(9))
            if rng.random() < 0.2:
                world.cancel(rng.randrange(max(0, j - 100), j + 1))
        peak = max(peak, len(world.scheduler._expiry))

    world.run([(i / 5000, lambda i=i: come(i)) for i in range(0, 100_000, 10)])  # type: ignore[misc]
    scheduler = world.scheduler
    assert len(world.answers) == 100_000
    assert peak < 3 * (200 + 3 * 16) + 128
    assert scheduler.waiting == scheduler._queued_bytes == scheduler._groups == len(scheduler._expiry) == 0
    assert not (scheduler._lanes or scheduler._sealed or scheduler._retrying)
    assert not any(slot.bound or slot.current or slot.following for slot in scheduler._slots.values())
