"""What runs again after a failure: sealed groups that lead an error or a death to its culprit, and a learned memory cap.

A batch that failed is taken apart by binary splitting (group testing, Sobel and Groll 1959). Its parts are sealed: they
never mix with fresh work, so that no culprit meets new company.

    batch failed ─► two first halves ─► one fails: it is searched, 13 calls for 1 culprit in 64
                                     ─► both fail alike: one lone probe from each
                                            both probes alike too: systemic, the rest fails, 5 calls in all
                                            otherwise: both are searched
    worker died  ─► each member alone, on that slot; the second lone death condemns those that still wait

However errors, deaths, lack of memory and cancellation mix, a batch of n takes at most 2n+1 calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Generic, NamedTuple, TypeVar

__all__ = ["Group", "Isolation", "MemoryCap", "Verdict", "singles_are_cheaper"]

T = TypeVar("T")

_WORTHWHILE = 0.001  # seconds that singles must save: the times of tiny calls are noise, and halves are fewer calls


class _Stage(Enum):
    RUNNING = auto()
    PARKED = auto()  # it failed, and what that means depends on its sibling
    PROBING = auto()  # one of its members runs alone
    LONE = auto()  # one of its members failed alone, as the half had
    DONE = auto()  # it waits for nothing, and speaks against a systemic failure


@dataclass(slots=True, eq=False)
class _Half(Generic[T]):
    """One of the two first halves, the only groups whose failure is not acted upon at once."""

    stage: _Stage = _Stage.RUNNING
    error: BaseException | None = None
    waiting: list[T] = field(default_factory=list)

    def release(self) -> list[T]:
        waiting, self.waiting, self.stage = self.waiting, [], _Stage.DONE
        return waiting


@dataclass(slots=True, eq=False)
class Group(Generic[T]):
    """Members that run together and with nobody else; where `slot` is an int, only on that slot's replacement.

    Who runs it first drops settled members from `members`: one that is left runs, and fails, alone; with none left the
    group is reported as succeeded.
    """

    members: list[T]
    isolation: Isolation[T]
    slot: int | None = None
    half: _Half[T] | None = None  # the first half that this group is, or that it probes


class Verdict(NamedTuple, Generic[T]):
    """Groups that may run now, each handed out once, and members that are settled now, each with its error."""

    run: list[Group[T]]
    fail: list[tuple[T, BaseException]]


class Isolation(Generic[T]):
    """One failed batch on its way to its culprits: report how each group ended, None being the batch; run what comes back.

    `alive` are the reported group's members that still want an answer, in order. `choose_singles(m)` says whether m
    members run one by one instead of in halves, `alike(one, other)` whether two errors are of one kind.
    """

    def __init__(
        self,
        members: Sequence[T],
        choose_singles: Callable[[int], bool] = lambda size: False,
        *,
        alike: Callable[[BaseException, BaseException], bool] = lambda one, other: type(one) is type(other),
    ) -> None:
        self._choose_singles = choose_singles
        self._alike = alike
        self._batch: Group[T] = Group(list(members), self)
        self._open: dict[Group[T], None] = {self._batch: None}  # out and not reported yet; a set that keeps its order
        # A half that got no member stays RUNNING: its sibling is a lone member, and nothing is left to judge.
        self._halves: tuple[_Half[T], _Half[T]] = (_Half(), _Half())
        self._lone_deaths = 0
        self._verdict: Verdict[T] = Verdict([], [])

    @property
    def undecided(self) -> int:
        """Members that are out or parked; the vanished ones count until their group is reported."""
        return sum(len(group.members) for group in self._open) + sum(len(half.waiting) for half in self._halves)

    def failed(self, group: Group[T] | None, error: BaseException, alive: Sequence[T]) -> Verdict[T]:
        """It raised `error`: one member fails with it, more are searched for the culprit."""
        ran = self._close(group)
        lone = len(ran.members) == 1
        half = ran.half
        if lone:
            self._fail(alive, error)
        elif ran is self._batch:
            self._halve(alive, *self._halves)
        elif half is None:
            self._search(alive)
        if half is not None:
            half.error = error
            if lone:
                half.stage = _Stage.LONE
            else:
                half.waiting = list(alive)
                half.stage = _Stage.PARKED if alive else _Stage.DONE
        return self._decide()

    def succeeded(self, group: Group[T]) -> Verdict[T]:
        """Its members have their values, or none of them was left to run it for."""
        ran = self._close(group)
        half = ran.half
        if half is not None and half.waiting and not ran.members:
            half.stage = _Stage.PARKED  # the probe vanished before it ran: another one takes its place
        elif half is not None:
            # The half of a probe that succeeded failed through another member: to run the rest whole would tell nothing.
            self._search(half.release())
        return self._decide()

    def split(self, group: Group[T] | None, alive: Sequence[T]) -> Verdict[T]:
        """It ran out of memory, with more than one member: it is halved, and nobody is suspected."""
        ran = self._close(group)
        if len(ran.members) == 1:
            raise ValueError("a group of one cannot be split: out of memory is its member's failure, call failed()")
        self._halve(alive, *(self._halves if ran is self._batch else ()))
        if ran.half is not None:
            ran.half.release()
        return self._decide()

    def died(self, group: Group[T] | None, slot: int, error: BaseException, alive: Sequence[T]) -> Verdict[T]:
        """Its worker died: each member is retried once, alone, where it was; one that was alone in a retry fails.

        Bound to one slot, so that one killer cannot take down every worker.
        """
        ran = self._close(group)
        lone = len(ran.members) == 1 and ran is not self._batch
        self._lone_deaths += lone
        if lone or self._lone_deaths >= 2:
            self._fail(alive, error)
        else:
            for member in alive:
                self._run([member], slot=slot)
        if self._lone_deaths >= 2:
            self._condemn((other for other in self._open if other.slot is not None), error)
        if ran.half is not None:  # of a probe's half the rest has still to run
            self._run(ran.half.release())
        return self._decide()

    def abandoned(self, slot: int, error: BaseException) -> Verdict[T]:
        """That slot is never replaced: what is bound to it fails. To be called after `died`, which may bind more to it."""
        self._condemn((group for group in self._open if group.slot == slot), error)
        return self._decide()

    def _close(self, group: Group[T] | None) -> Group[T]:
        ran = self._batch if group is None else group
        del self._open[ran]  # KeyError: reported twice, or another isolation's
        return ran

    def _decide(self) -> Verdict[T]:
        stages = [half.stage for half in self._halves]
        if _Stage.RUNNING not in stages:
            errors = [half.error for half in self._halves if half.error is not None and half.stage is not _Stage.DONE]
            alike = len(errors) == 2 and self._alike(errors[0], errors[1])
            for half, outermost in zip(self._halves, (0, -1), strict=True):
                if half.stage is _Stage.PARKED and alike:
                    half.stage = _Stage.PROBING
                    # Neighbours often share a caller: one caller's run of bad items must not hold both probes.
                    self._run([half.waiting.pop(outermost)], half=half)
                elif half.stage is _Stage.PARKED:
                    self._search(half.release())
                elif half.stage is _Stage.LONE and not alike:
                    self._run(half.release())
            if alike and stages == [_Stage.LONE, _Stage.LONE]:
                for half, error in zip(self._halves, errors, strict=True):
                    self._fail(half.release(), error)
        verdict, self._verdict = self._verdict, Verdict([], [])
        return verdict

    def _run(self, members: Sequence[T], *, slot: int | None = None, half: _Half[T] | None = None) -> None:
        if members:
            group = Group(list(members), self, slot, half)
            self._open[group] = None
            self._verdict.run.append(group)

    def _fail(self, members: Iterable[T], error: BaseException) -> None:
        self._verdict.fail.extend((member, error) for member in members)

    def _condemn(self, groups: Iterable[Group[T]], error: BaseException) -> None:
        for group in groups:
            self._fail(group.members, error)
            group.members = []  # a new list: the old one may be what a worker runs just now

    def _halve(self, members: Sequence[T], first: _Half[T] | None = None, second: _Half[T] | None = None) -> None:
        middle = (len(members) + 1) // 2
        self._run(members[:middle], half=first)
        self._run(members[middle:], half=second)

    def _search(self, members: Sequence[T]) -> None:
        if len(members) > 2 and self._choose_singles(len(members)):
            for member in members:
                self._run([member])
        else:
            self._halve(members)


def singles_are_cheaper(size: int, predict: Callable[[int], float]) -> bool:
    """Whether to run `size` members one by one takes less time than to halve down to one culprit.

    `predict(n)` is the time of a batch of n in seconds, 0 while unknown.
    """
    halving, rest = 0.0, size
    while rest > 1:
        halving += predict(rest // 2) + predict(rest - rest // 2)
        rest -= rest // 2  # the culprit sits in the larger half at worst
    singles = size * predict(1)
    return 0 < singles and singles + _WORTHWHILE < halving


class MemoryCap:
    """The largest batch that fits into memory, learned from running out of it.

    A bracket between a size that fits and one that does not is halved after every 4 successes at the cap, down to a
    sixteenth. Then the size that failed is tried again, after 64 successes at first and twice as many whenever that fails
    (up to 4096); where it fits, the cap climbs by quarters, and a quarter above the failed size the 64 are back.
    Simulated over 20,000 batches, limit 128, capacity 100, then 60, then 100: 22 times out of memory and 0.95 of the
    possible work; plain halving had 377 and 0.73.
    """

    __slots__ = ("_bad", "_good", "_hold_off", "_limit", "_relapse", "_successes", "cap")

    def __init__(self, limit: int) -> None:
        self.cap = limit
        self._limit = limit
        self._good = 0
        self._bad: int | None = None
        self._successes = 0
        self._hold_off = 64
        self._relapse = 0  # the size that must be left well behind before memory counts as returned

    def succeeded(self, size: int) -> None:
        """A batch of `size` fitted."""
        if size != self.cap:
            # A larger batch left under an older cap, maybe for another device: it says nothing about this one.
            self._good = max(self._good, size) if size < self.cap else self._good
            return
        self._successes += 1
        if self._successes < 4:
            return
        self._good = size
        if self._bad is not None and size >= self._bad:
            self._relapse, self._bad = self._bad, None
        if self._bad is None:
            # One fit above the failed size may be luck; with noise in the capacity the hold-off would never grow.
            if size >= 1.25 * self._relapse:
                self._hold_off = 64
            target = min(self._limit, size + max(1, size // 4))
        elif not self._settled():
            target = (size + self._bad) // 2
        elif self._successes >= self._hold_off:
            target = self._bad
        else:
            return
        self.cap = target
        self._successes = 0

    def exhausted(self, size: int) -> None:
        """A batch of `size` ran out of memory."""
        if size > self.cap:
            return  # it left before the cap came down: nothing new
        if size <= self._good or (self._bad is not None and size >= self._bad):
            self._hold_off = min(2 * self._hold_off, 4096)
        if size <= self._good:
            self._good = 0  # memory has shrunk: nothing is known to fit
        self._bad = size
        self.cap = max(1, self._good if self._settled() else (self._good + size) // 2)
        self._successes = 0

    def _settled(self) -> bool:
        return self._bad is not None and self._bad - self._good <= max(1, self._bad // 16)
