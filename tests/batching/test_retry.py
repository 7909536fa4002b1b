import itertools
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate_batching.retry import Group, Isolation, MemoryCap, Verdict, singles_are_cheaper


class Member:
    """Opaque: an isolation that compares, hashes or calls its members fails here."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, index: int) -> None:
        self.index = index

    def __eq__(self, other: object) -> bool:
        raise AssertionError("members are told apart by identity only")


class Poison(Exception): ...


class OtherPoison(Exception): ...


class Died(Exception): ...


class Abandoned(Exception): ...


class OutOfMemory(Exception): ...


Batch = Sequence[int]
Outcome = Callable[[Batch], BaseException | None]


@dataclass
class Driver:
    """A scheduler in miniature: three slots, groups start and end in any order, members vanish at any time."""

    size: int
    outcome: Outcome
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    vanishing: float = 0.0
    abandoning: float = 0.0
    singles: Callable[[int], bool] = lambda size: False
    slots: int = 3

    def __post_init__(self) -> None:
        self.settled: dict[int, object] = {}
        self.calls: list[tuple[int, list[int]]] = []
        self.lone_errors: list[BaseException] = []
        self.waiting: list[Group[Member]] = []
        self.running: dict[int, tuple[Group[Member] | None, list[Member], BaseException | None]] = {}
        self.idle = list(range(self.slots))

    def run(self) -> "Driver":
        members = [Member(index) for index in range(self.size)]
        self.isolation = Isolation(members, self.singles)
        self.start(None, members, 0)
        if self.running[0][2] is None:
            self.settled = dict.fromkeys(range(self.size), "value")
            return self
        while self.waiting or self.running:
            if self.rng.random() < self.vanishing:
                self.settled.setdefault(self.rng.randrange(self.size), "gone")
            startable = [group for group in self.waiting if self.slots_for(group)]
            assert startable or self.running, "stuck"
            if startable and (not self.running or self.rng.random() < 0.6):
                group = self.rng.choice(startable)
                self.waiting.remove(group)
                self.start(group, group.members, self.rng.choice(self.slots_for(group)))
            else:
                self.end(self.rng.choice(list(self.running)))
        assert sorted(self.settled) == list(range(self.size)), "somebody was forgotten"
        assert self.isolation.undecided == 0
        return self

    def slots_for(self, group: Group[Member]) -> list[int]:
        return [slot for slot in self.idle if group.slot in (None, slot)]

    def alive(self, members: Iterable[Member]) -> list[Member]:
        return [member for member in members if member.index not in self.settled]

    def start(self, group: Group[Member] | None, members: list[Member], slot: int) -> None:
        members = self.alive(members)
        if group is not None:
            assert group.isolation is self.isolation
            group.members = members
            if not members:
                self.apply(self.isolation.succeeded(group))
                return
        batch = [member.index for member in members]
        self.calls.append((slot, batch))
        self.idle.remove(slot)
        self.running[slot] = (group, members, self.outcome(batch))

    def end(self, slot: int) -> None:
        group, ran, error = self.running.pop(slot)
        alive = self.alive(ran)
        lost = (
            isinstance(error, Died) and len(self.idle) + len(self.running) > 0 and self.rng.random() < self.abandoning
        )
        if not lost:
            self.idle.append(slot)
        if len(ran) == 1 and error is not None and group is not None:
            self.lone_errors.append(error)
        if error is None:
            for member in alive:
                self.settle(member, "value")
            if group is not None:
                self.apply(self.isolation.succeeded(group))
        elif isinstance(error, Died):
            self.apply(self.isolation.died(group, slot, error, alive))
            if lost:
                self.apply(self.isolation.abandoned(slot, Abandoned()))
                self.waiting = [group for group in self.waiting if group.slot != slot]
        elif isinstance(error, OutOfMemory) and len(ran) > 1:
            self.apply(self.isolation.split(group, alive))
        else:
            self.apply(self.isolation.failed(group, error, alive))

    def apply(self, verdict: Verdict[Member]) -> None:
        for member, error in verdict.fail:
            if self.settled.get(member.index) != "gone":
                self.settle(member, error)
        self.waiting += verdict.run

    def settle(self, member: Member, how: object) -> None:
        assert member.index not in self.settled, f"{member.index} is settled twice"
        self.settled[member.index] = how

    def got(self, kind: type) -> set[int]:
        return {index for index, how in self.settled.items() if isinstance(how, kind)}


def raising(poison: Iterable[int], error: type[Exception] = Poison) -> Outcome:
    """A function that fails whenever a poisonous item is in its batch."""
    poisonous = set(poison)
    return lambda batch: error() if poisonous.intersection(batch) else None


def killed_by(killers: Iterable[int]) -> Outcome:
    return raising(killers, Died)


def fitting(capacity: int) -> Outcome:
    return lambda batch: OutOfMemory() if len(batch) > capacity else None


def first_of(*outcomes: Outcome) -> Outcome:
    return lambda batch: next((error for outcome in outcomes if (error := outcome(batch)) is not None), None)


def both_probes_are_among(poison: set[int], size: int) -> bool:
    """Five calls cannot tell this from a systemic failure."""
    return {0, size - 1} <= poison


def indices(verdict: Verdict[Member]) -> list[list[int]]:
    return [[member.index for member in group.members] for group in verdict.run]


def failures(verdict: Verdict[Member]) -> dict[int, BaseException]:
    return {member.index: error for member, error in verdict.fail}


def started(size: int) -> tuple[list[Member], Isolation[Member]]:
    members = [Member(index) for index in range(size)]
    return members, Isolation(members)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("culprit", range(64))
def test_one_culprit_in_sixty_four_is_found_in_thirteen_calls(culprit: int) -> None:
    done = Driver(64, raising({culprit}), random.Random(culprit)).run()
    assert done.got(Poison) == {culprit}
    assert done.got(str) == set(range(64)) - {culprit}
    assert len(done.calls) <= 13


@pytest.mark.parametrize("singles", [lambda size: False, lambda size: True], ids=["halves", "singles"])
@pytest.mark.parametrize("size", range(1, 8))
def test_every_set_of_culprits_in_a_small_batch_is_found(size: int, singles: Callable[[int], bool]) -> None:
    for chosen in itertools.product((False, True), repeat=size):
        poison = set(itertools.compress(range(size), chosen))
        for seed in range(3):
            done = Driver(size, raising(poison), random.Random(seed), singles=singles).run()
            if both_probes_are_among(poison, size):
                assert done.got(Poison) == set(range(size))
                assert len(done.calls) <= 5
            else:
                assert done.got(Poison) == poison
                assert len(done.calls) <= 2 * size + 1


@settings(deadline=None)
@given(st.integers(8, 64).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))), st.randoms())
def test_no_innocent_of_a_large_batch_fails(batch: tuple[int, set[int]], rng: random.Random) -> None:
    size, poison = batch
    done = Driver(size, raising(poison), rng, singles=lambda size: size < 6).run()
    assert done.got(Poison) == (set(range(size)) if both_probes_are_among(poison, size) else poison)
    assert len(done.calls) <= 2 * size + 1


def test_culprits_of_two_kinds_get_their_own_errors() -> None:
    for kinds in itertools.product((None, Poison, OtherPoison), repeat=5):
        outcome = first_of(*(raising({index}, kind) for index, kind in enumerate(kinds) if kind is not None))
        done = Driver(5, outcome, random.Random(1)).run()
        if kinds[0] is None or kinds[0] is not kinds[4]:
            for index, kind in enumerate(kinds):
                assert isinstance(done.settled[index], str if kind is None else kind)
        assert len(done.calls) <= 11


@pytest.mark.parametrize("size", [32, 64])
def test_one_percent_of_poison_costs_no_innocent_its_answer(size: int) -> None:
    rng = random.Random(7)
    delivered = innocents = 0
    for _ in range(1000):
        poison = {index for index in range(size) if rng.random() < 0.01}
        delivered += len(Driver(size, raising(poison), rng).run().got(str))
        innocents += size - len(poison)
    assert delivered == innocents  # both probes are poisonous in 1 batch of 10,000


@pytest.mark.parametrize("size", range(1, 65))
def test_a_systemic_failure_takes_five_calls(size: int) -> None:
    for seed in range(5):
        done = Driver(size, raising(range(size)), random.Random(seed), singles=lambda size: True).run()
        assert done.got(Poison) == set(range(size))
        assert len(done.calls) <= 5


def test_a_lone_item_fails_at_once_with_its_own_error() -> None:
    members, isolation = started(1)
    error = Poison()
    verdict = isolation.failed(None, error, members)
    assert not verdict.run and failures(verdict) == {0: error}


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failed_half_waits_for_its_sibling_and_is_searched_when_that_succeeds(failing: int) -> None:
    members, isolation = started(8)
    halves = isolation.failed(None, Poison(), members).run
    parked = isolation.failed(halves[failing], Poison(), halves[failing].members)
    assert parked == ([], [])
    assert isolation.undecided == 8
    expected = [[0, 1], [2, 3]] if failing == 0 else [[4, 5], [6, 7]]
    assert indices(isolation.succeeded(halves[1 - failing])) == expected
    assert isolation.undecided == 4


def test_halves_that_fail_differently_are_both_searched_at_once() -> None:
    members, isolation = started(8)
    one, two = isolation.failed(None, Poison(), members).run
    isolation.failed(one, Poison(), one.members)
    assert indices(isolation.failed(two, OtherPoison(), two.members)) == [[0, 1], [2, 3], [4, 5], [6, 7]]


def probed(size: int) -> tuple[Isolation[Member], Group[Member], Group[Member]]:
    members, isolation = started(size)
    one, two = isolation.failed(None, Poison(), members).run
    isolation.failed(one, Poison(), one.members)
    verdict = isolation.failed(two, Poison(), two.members)
    assert indices(verdict) == [[0], [size - 1]]
    return isolation, verdict.run[0], verdict.run[1]


def test_halves_that_fail_alike_are_probed_at_the_two_ends_of_the_batch() -> None:
    isolation, low, high = probed(64)
    assert list(failures(isolation.failed(low, Poison(), low.members))) == [0]
    error = Poison()
    verdict = isolation.failed(high, error, high.members)
    assert not verdict.run and len(verdict.fail) == 63
    assert failures(verdict)[63] is failures(verdict)[62] is error
    assert isolation.undecided == 0


def test_the_rest_of_a_half_is_split_at_once_when_its_probe_succeeds_and_run_whole_when_it_fails() -> None:
    isolation, low, high = probed(8)
    assert indices(isolation.succeeded(low)) == [[1, 2], [3]]
    assert indices(isolation.failed(high, Poison(), high.members)) == [[4, 5, 6]]


def test_a_failed_probe_waits_for_the_other_probe() -> None:
    isolation, low, high = probed(8)
    assert isolation.failed(low, Poison(), low.members).run == []
    assert indices(isolation.succeeded(high)) == [[4, 5], [6], [1, 2, 3]]


def test_a_probe_that_fails_otherwise_speaks_against_a_systemic_failure() -> None:
    isolation, low, high = probed(8)
    assert indices(isolation.failed(low, OtherPoison(), low.members)) == [[1, 2, 3]]
    assert indices(isolation.failed(high, Poison(), high.members)) == [[4, 5, 6]]


def test_probes_that_fail_alike_but_not_as_their_halves_did_are_not_systemic() -> None:
    isolation, low, high = probed(8)
    assert indices(isolation.failed(low, OtherPoison(), low.members)) == [[1, 2, 3]]
    assert indices(isolation.failed(high, OtherPoison(), high.members)) == [[4, 5, 6]]


def test_a_half_of_one_is_its_own_probe() -> None:
    members, isolation = started(3)
    pair, single = isolation.failed(None, Poison(), members).run
    assert list(failures(isolation.failed(single, Poison(), single.members))) == [2]
    probe = isolation.failed(pair, Poison(), pair.members)
    assert indices(probe) == [[0]]
    assert sorted(failures(isolation.failed(probe.run[0], Poison(), probe.run[0].members))) == [0, 1]


def test_what_counts_as_alike_can_be_given() -> None:
    def same_text(one: BaseException, other: BaseException) -> bool:
        return str(one) == str(other)

    for text, expected in (("shape", [[0], [3]]), ("range", [[0], [1], [2], [3]])):
        members = [Member(index) for index in range(4)]
        isolation = Isolation(members, alike=same_text)
        one, two = isolation.failed(None, Poison("shape"), members).run
        isolation.failed(one, Poison("shape"), one.members)
        assert indices(isolation.failed(two, OtherPoison(text), two.members)) == expected


def test_members_run_one_by_one_where_that_is_chosen_but_never_the_first_halves() -> None:
    asked: list[int] = []

    def choose(size: int) -> bool:
        asked.append(size)
        return size == 4

    members = [Member(index) for index in range(16)]
    isolation = Isolation(members, choose)
    one, two = isolation.failed(None, Poison(), members).run
    assert asked == []
    isolation.succeeded(two)
    quarters = isolation.failed(one, Poison(), one.members)
    assert [len(group.members) for group in quarters.run] == [4, 4]
    first = quarters.run[0]
    assert indices(isolation.failed(first, Poison(), first.members)) == [[0], [1], [2], [3]]
    assert asked == [8, 4]


# ---------------------------------------------------------------- members that vanish


def test_a_member_left_over_from_a_failed_batch_still_runs_alone() -> None:
    members, isolation = started(4)
    verdict = isolation.failed(None, Poison(), members[2:3])
    assert indices(verdict) == [[2]] and not verdict.fail


def test_nothing_runs_when_everybody_has_gone() -> None:
    _, isolation = started(4)
    assert isolation.failed(None, Poison(), []) == ([], [])
    assert isolation.undecided == 0


@pytest.mark.parametrize("vanished_first", [True, False])
def test_a_half_is_searched_when_the_other_one_vanished(vanished_first: bool) -> None:
    members, isolation = started(8)
    one, two = isolation.failed(None, Poison(), members).run
    if vanished_first:
        assert isolation.succeeded(two) == ([], [])
        verdict = isolation.failed(one, Poison(), one.members)
    else:
        isolation.failed(one, Poison(), one.members)
        verdict = isolation.failed(two, Poison(), [])
    assert indices(verdict) == [[0, 1], [2, 3]]


def test_a_probe_that_vanished_is_replaced_so_that_a_systemic_failure_still_takes_five_calls() -> None:
    isolation, low, high = probed(6)
    low.members = []
    replaced = isolation.succeeded(low)
    assert indices(replaced) == [[1]] and not replaced.fail
    high.members.clear()
    replacement = isolation.succeeded(high).run[0]
    isolation.failed(replacement, Poison(), replacement.members)
    replacement = replaced.run[0]
    assert sorted(failures(isolation.failed(replacement, Poison(), replacement.members))) == [1, 2, 3]


def test_a_half_whose_members_all_vanish_as_probes_rules_a_systemic_failure_out() -> None:
    isolation, low, high = probed(4)
    low.members = []
    (last,) = isolation.succeeded(low).run
    last.members = []
    assert isolation.succeeded(last) == ([], [])
    assert indices(isolation.failed(high, Poison(), high.members)) == [[2]]


def test_a_group_that_came_down_to_one_member_fails_as_a_lone_one() -> None:
    members, isolation = started(8)
    one, two = isolation.failed(None, Poison(), members).run
    one.members = one.members[1:2]
    error = Poison()
    assert failures(isolation.failed(one, error, one.members)) == {1: error}
    assert indices(isolation.succeeded(two)) == []


# ---------------------------------------------------------------- deaths


@pytest.mark.parametrize("killer", range(8))
def test_a_killer_dies_alone_and_the_rest_live(killer: int) -> None:
    done = Driver(8, killed_by({killer}), random.Random(killer)).run()
    assert done.got(Died) == {killer}
    assert done.got(str) == set(range(8)) - {killer}
    assert len(done.calls) == 9
    assert {slot for slot, _ in done.calls} == {0}  # the other workers were never in danger


def test_the_second_lone_death_condemns_those_that_still_wait() -> None:
    members, isolation = started(5)
    retries = isolation.died(None, 3, Died(), members)
    assert indices(retries) == [[0], [1], [2], [3], [4]] and not retries.fail
    assert {group.slot for group in retries.run} == {3}
    first, second, third, fourth, fifth = retries.run
    running = second.members
    assert list(failures(isolation.died(third, 3, Died(), third.members))) == [2]
    assert isolation.succeeded(fourth) == ([], [])
    last = Died()
    verdict = isolation.died(first, 3, last, first.members)
    assert failures(verdict) == dict.fromkeys([0, 1, 4], last) and not verdict.run
    assert isolation.undecided == 0
    assert len(running) == 1  # a list that a worker may hold is left alone
    for condemned in (second, fifth):
        assert condemned.members == []
        assert isolation.succeeded(condemned) == ([], [])


def test_after_the_second_lone_death_nothing_of_the_batch_is_retried_any_more() -> None:
    members, isolation = started(8)
    one, two = isolation.failed(None, Poison(), members).run
    first, second, *_ = isolation.died(one, 0, Died(), one.members).run
    isolation.died(first, 0, Died(), first.members)
    isolation.died(second, 0, Died(), second.members)
    verdict = isolation.died(two, 1, Died(), two.members)
    assert sorted(failures(verdict)) == [4, 5, 6, 7] and not verdict.run


def test_a_lone_item_whose_worker_died_is_retried_once() -> None:
    members, isolation = started(1)
    retry = isolation.died(None, 2, Died(), members)
    assert indices(retry) == [[0]] and retry.run[0].slot == 2 and not retry.fail
    again = isolation.died(retry.run[0], 2, Died(), members)
    assert list(failures(again)) == [0] and not again.run


def test_an_item_alone_in_its_group_after_an_error_is_not_retried_when_its_worker_dies() -> None:
    members, isolation = started(2)
    one, two = isolation.failed(None, Poison(), members).run
    assert one.slot is None
    assert list(failures(isolation.died(one, 0, Died(), one.members))) == [0]
    assert isolation.succeeded(two) == ([], [])


def test_a_parked_half_is_searched_when_its_sibling_died() -> None:
    members, isolation = started(8)
    one, two = isolation.failed(None, Poison(), members).run
    isolation.failed(one, Poison(), one.members)
    verdict = isolation.died(two, 1, Died(), two.members)
    assert indices(verdict) == [[4], [5], [6], [7], [0, 1], [2, 3]]
    assert [group.slot for group in verdict.run] == [1, 1, 1, 1, None, None]


def test_the_rest_of_a_half_runs_whole_when_its_probe_died() -> None:
    isolation, low, high = probed(8)
    verdict = isolation.died(low, 0, Died(), low.members)
    assert indices(verdict) == [[1, 2, 3]] and list(failures(verdict)) == [0]
    assert indices(isolation.failed(high, Poison(), high.members)) == [[4, 5, 6]]


def test_what_is_bound_to_an_abandoned_slot_fails_and_nothing_else() -> None:
    members, isolation = started(4)
    one, two = isolation.failed(None, Poison(), members).run
    isolation.died(one, 0, Died(), one.members)
    elsewhere = isolation.died(two, 1, Died(), two.members)
    error = Abandoned()
    assert failures(isolation.abandoned(0, error)) == {0: error, 1: error}
    assert isolation.undecided == 2
    assert all(group.members for group in elsewhere.run)
    assert isolation.abandoned(0, error) == ([], [])


# ---------------------------------------------------------------- memory in an isolation


def test_out_of_memory_halves_a_group_and_suspects_nobody() -> None:
    members = [Member(index) for index in range(8)]
    isolation = Isolation(members, lambda size: size == 4)
    one, two = isolation.failed(None, Poison(), members).run
    assert indices(isolation.split(one, one.members)) == [[0, 1], [2, 3]]
    # Its sibling has not failed with it, so there is nothing to probe.
    assert indices(isolation.failed(two, Poison(), two.members)) == [[4], [5], [6], [7]]


def test_a_split_batch_still_finds_a_systemic_failure_in_five_calls() -> None:
    outcome = first_of(fitting(32), raising(range(64)))
    done = Driver(64, outcome, random.Random(0)).run()
    assert done.got(Poison) == set(range(64))
    assert len(done.calls) == 5


@pytest.mark.parametrize("capacity", range(1, 17))
def test_everybody_is_served_however_little_fits(capacity: int) -> None:
    done = Driver(16, fitting(capacity), random.Random(capacity), singles=lambda size: True).run()
    assert done.got(str) == set(range(16))


def test_a_group_of_one_cannot_be_split() -> None:
    members, isolation = started(1)
    with pytest.raises(ValueError, match="failed"):
        isolation.split(None, members)


# ---------------------------------------------------------------- everything at once


def test_a_group_is_reported_once() -> None:
    members, isolation = started(4)
    one, _ = isolation.failed(None, Poison(), members).run
    isolation.succeeded(one)
    with pytest.raises(KeyError):
        isolation.succeeded(one)
    with pytest.raises(KeyError):
        isolation.failed(None, Poison(), members)


@settings(max_examples=500, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["fine"] * 6 + ["poison", "other", "killer"]), min_size=1, max_size=24),
    capacity=st.integers(1, 24),
    vanishing=st.sampled_from([0.0, 0.05, 0.4]),
    abandoning=st.sampled_from([0.0, 0.5]),
    single_below=st.sampled_from([0, 5, 99]),
    rng=st.randoms(use_true_random=False),
)
def test_errors_deaths_and_lack_of_memory_mix(
    kinds: list[str], capacity: int, vanishing: float, abandoning: float, single_below: int, rng: random.Random
) -> None:
    def those(kind: str) -> set[int]:
        return {index for index, its in enumerate(kinds) if its == kind}

    outcome = first_of(
        fitting(capacity), killed_by(those("killer")), raising(those("poison")), raising(those("other"), OtherPoison)
    )
    done = Driver(len(kinds), outcome, rng, vanishing, abandoning, lambda size: size < single_below).run()
    assert len(done.calls) <= 2 * len(kinds) + 1
    for index in those("fine"):
        how = done.settled[index]
        alike = [error for error in done.lone_errors if type(error) is type(how)]
        assert isinstance(how, str | Abandoned) or len(alike) >= 2, "an innocent failed"
    for culprit in set(range(len(kinds))) - those("fine"):
        assert done.settled[culprit] != "value"


@settings(max_examples=500, deadline=None)
@given(
    size=st.integers(1, 40),
    vanishing=st.sampled_from([0.0, 0.1]),
    abandoning=st.sampled_from([0.0, 0.5]),
    single_below=st.sampled_from([0, 5, 99]),
    rng=st.randoms(use_true_random=False),
)
def test_a_function_without_rhyme_or_reason_ends_within_the_bound(
    size: int, vanishing: float, abandoning: float, single_below: int, rng: random.Random
) -> None:
    errors: list[BaseException | None] = [None, Poison(), Poison(), OtherPoison(), Died(), OutOfMemory()]
    done = Driver(size, lambda batch: rng.choice(errors), rng, vanishing, abandoning, lambda size: size < single_below)
    assert len(done.run().calls) <= 2 * size + 1


# ---------------------------------------------------------------- which way is cheaper


def linear(a: float, c: float) -> Callable[[int], float]:
    return lambda size: a + c * size


def test_singles_are_cheaper_where_a_call_costs_little_and_an_item_much() -> None:
    assert singles_are_cheaper(16, linear(0.0005, 0.005))  # 88 ms for 154 ms
    assert not singles_are_cheaper(64, linear(0.008, 0.00015))
    assert not singles_are_cheaper(2, linear(0.0005, 0.005))  # the same thing


def test_singles_are_compared_with_halving_down_to_one_culprit_in_the_larger_half() -> None:
    # Five calls of 1.0 against calls of 3 + 2, then 2 + 1, then 1 + 1 members: 5.1 and 4.9.
    assert singles_are_cheaper(5, {1: 1.0, 2: 0.7, 3: 0.7}.__getitem__)
    assert not singles_are_cheaper(5, {1: 1.0, 2: 0.7, 3: 0.5}.__getitem__)


@pytest.mark.parametrize("unknown", [0.0, -1.0, math.nan, math.inf])
def test_halves_are_taken_while_the_times_are_unknown(unknown: float) -> None:
    assert not singles_are_cheaper(16, lambda size: unknown)
    assert not singles_are_cheaper(16, lambda size: unknown if size == 1 else 1.0)


# ---------------------------------------------------------------- the memory cap


def walk(
    cap: MemoryCap, limit: int, capacities: Iterable[int], demand: Callable[[], int] = lambda: 1 << 20
) -> tuple[int, float]:
    """How often memory ran out, and the work done as a share of what knowing the capacity would have done."""
    exhausted = work = possible = 0
    for capacity in capacities:
        wanted = demand()
        size = min(wanted, cap.cap)
        possible += min(wanted, limit, capacity)
        if size <= capacity:
            work += size
            cap.succeeded(size)
        else:
            exhausted += 1
            cap.exhausted(size)
        assert 1 <= cap.cap <= limit
    return exhausted, work / possible if possible else 0.0


@pytest.mark.parametrize("limit", [64, 100, 128, 200, 256, 512])
def test_a_capacity_that_falls_and_returns_is_followed_with_few_failures(limit: int) -> None:
    capacities = [100] * 6667 + [60] * 6666 + [100] * 6667
    exhausted, share = walk(MemoryCap(limit), limit, capacities)
    assert exhausted <= 25 and share >= 0.84
    rng = random.Random(limit)
    exhausted, share = walk(MemoryCap(limit), limit, capacities, lambda: rng.randint(1, limit))
    assert exhausted <= 25 and share >= 0.84


def test_a_capacity_that_wanders_is_followed() -> None:
    rng = random.Random(3)
    capacities = [100]
    while len(capacities) < 20_000:
        step = rng.choice((-1, 1)) if len(capacities) % 200 == 0 else 0
        capacities.append(min(120, max(50, capacities[-1] + step)))
    exhausted, share = walk(MemoryCap(128), 128, capacities)
    assert exhausted <= 25 and share >= 0.84


def test_a_capacity_with_noise_does_not_reset_the_hold_off_again_and_again() -> None:
    rng = random.Random(5)
    exhausted, share = walk(MemoryCap(128), 128, [int(rng.gauss(100, 2)) for _ in range(20_000)])
    assert exhausted <= 60 and share >= 0.84


def test_the_cap_stays_at_one_while_nothing_fits_and_returns_to_the_limit_with_the_memory() -> None:
    cap = MemoryCap(128)
    walk(cap, 128, [0] * 1000)
    assert cap.cap == 1
    assert walk(cap, 128, [128] * 1000)[0] == 0
    assert cap.cap == 128


def test_the_cap_returns_to_the_limit_after_the_longest_hold_off() -> None:
    cap = MemoryCap(100)
    walk(cap, 100, [60] * 20_000)
    assert 56 <= cap.cap <= 60
    exhausted, _ = walk(cap, 100, [100] * 5000)
    assert exhausted == 0 and cap.cap == 100


def test_four_successes_at_the_cap_move_it_inside_the_bracket() -> None:
    cap = MemoryCap(64)
    cap.exhausted(64)
    assert cap.cap == 32
    for size in (32, 32, 32, 31, 1):
        cap.succeeded(size)
    assert cap.cap == 32
    cap.succeeded(32)
    assert cap.cap == 48
    succeed(cap, 3)
    assert cap.cap == 48
    cap.exhausted(48)
    succeed(cap, 3)
    assert cap.cap == 40


def succeed(cap: MemoryCap, times: int) -> None:
    for _ in range(times):
        cap.succeeded(cap.cap)


def settled_at_sixty(limit: int = 64) -> MemoryCap:
    cap = MemoryCap(limit)
    cap.succeeded(60)
    cap.exhausted(64)
    assert cap.cap == 60
    return cap


def test_the_size_that_failed_is_tried_again_after_a_hold_off_that_doubles() -> None:
    cap = settled_at_sixty()
    for hold_off in (64, 128, 256, 512, 1024, 2048, 4096, 4096):
        succeed(cap, hold_off - 1)
        assert cap.cap == 60
        succeed(cap, 1)
        assert cap.cap == 64
        cap.exhausted(64)
        assert cap.cap == 60


@pytest.mark.parametrize(("limit", "hold_off"), [(64, 1024), (79, 1024), (80, 128)])
def test_the_hold_off_starts_again_where_memory_is_back_by_a_quarter(limit: int, hold_off: int) -> None:
    cap = settled_at_sixty(limit)
    for successes in (64, 128, 256):
        succeed(cap, successes)
        cap.exhausted(64)
    succeed(cap, 512 + 20)
    assert cap.cap == limit
    cap.exhausted(limit)  # what had fitted no longer does: this doubles the hold-off too
    count = 0
    while (before := cap.cap) != limit:
        succeed(cap, 1)
        count = count + 1 if cap.cap == before or cap.cap == limit else 0
    assert count == hold_off


def test_batches_that_left_under_an_older_cap_change_nothing() -> None:
    cap = MemoryCap(64)
    cap.exhausted(64)
    cap.exhausted(64)
    for _ in range(100):
        cap.succeeded(64)
    assert cap.cap == 32
    succeed(cap, 4)
    assert cap.cap == 48
    cap.exhausted(48)
    cap.exhausted(64)
    assert cap.cap == 40


def test_a_success_from_an_older_cap_is_no_proof_that_its_size_fits_now() -> None:
    cap = MemoryCap(64)
    cap.exhausted(64)
    cap.succeeded(20)
    cap.succeeded(64)
    cap.exhausted(32)
    assert cap.cap == 26


@pytest.mark.parametrize("limit", range(1, 20))
def test_a_small_limit_is_found_again(limit: int) -> None:
    cap = MemoryCap(limit)
    cap.exhausted(limit)
    assert cap.cap == max(1, limit // 2)
    succeed(cap, 4 * 6 + 64)
    assert cap.cap == limit


def test_memory_that_shrinks_below_what_fitted_is_searched_from_half() -> None:
    cap = settled_at_sixty()
    cap.exhausted(60)
    assert cap.cap == 30
    cap.exhausted(20)
    assert cap.cap == 10


@settings(deadline=None)
@given(st.integers(1, 300), st.lists(st.tuples(st.booleans(), st.integers(1, 300), st.integers(1, 80)), max_size=60))
def test_the_cap_stays_between_one_and_the_limit_and_below_what_just_failed(
    limit: int, reports: list[tuple[bool, int, int]]
) -> None:
    cap = MemoryCap(limit)
    for fits, size, times in reports:
        for _ in range(times):
            reported = min(size, cap.cap)
            if fits:
                cap.succeeded(reported)
            else:
                cap.exhausted(reported)
                assert cap.cap < reported or reported == 1
            assert 1 <= cap.cap <= limit
    # Whatever was learned, the limit is found again once everything fits.
    succeed(cap, 10_000)
    assert cap.cap == limit
