import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate import (
    Closed,
    DeadlineExceeded,
    HandlerError,
    HTTPError,
    InvalidInput,
    Overloaded,
    TidegateError,
    Unavailable,
)
from tidegate.clients.carrier import Disconnected
from tidegate.clients.retries import BACKOFF, LONGEST_BACKOFF, Retries


def longest(low: float, high: float) -> float:
    return high


def always(limit: int = 3, **options: bool) -> Retries:
    return Retries(limit, draw=longest, **options)


@pytest.mark.parametrize(
    "error",
    [Overloaded(), Unavailable(), Closed(), HTTPError(503), HTTPError(429), Disconnected(), Disconnected(sent=False)],
)
def test_what_may_work_later_goes_again_as_often_as_allowed(error: TidegateError) -> None:
    retries = always(2)
    pauses = [retries.pause(error, now=0, ends_at=math.inf) for _ in range(3)]
    assert None not in pauses[:2]
    assert pauses[2] is None


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("no"),
        HTTPError(500),
        HTTPError(404),
        HandlerError("", "internal error"),
        DeadlineExceeded(),
        Disconnected(begun=True),
    ],
)
def test_what_is_final_does_not_go_again(error: TidegateError) -> None:
    assert always().pause(error, now=0, ends_at=math.inf) is None
    assert always(patient=True).pause(error, now=0, ends_at=math.inf) is None


def test_without_retries_nothing_goes_again() -> None:
    assert always(0).pause(Overloaded(), now=0, ends_at=math.inf) is None
    assert always(0).pause(Disconnected(sent=False), now=0, ends_at=math.inf) is None


def test_pauses_grow_up_to_a_limit() -> None:
    retries = always(2000)
    pauses = [retries.pause(Disconnected(), now=0, ends_at=math.inf) for _ in range(2000)]
    assert pauses[:3] == [BACKOFF, 2 * BACKOFF, 4 * BACKOFF]
    assert pauses[-1] == max(pause or 0 for pause in pauses) == LONGEST_BACKOFF


def test_all_of_the_backoff_is_random() -> None:
    drawn: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        drawn.append((low, high))
        return low

    assert Retries(1, draw=draw).pause(Disconnected(), now=0, ends_at=math.inf) == 0
    assert drawn == [(0, BACKOFF)]


def test_what_the_service_asks_for_is_the_least() -> None:
    assert always().pause(Overloaded(retry_after=7), now=0, ends_at=math.inf) == 7 + BACKOFF


def test_nothing_waits_for_a_time_at_which_nobody_wants_an_answer() -> None:
    assert always().pause(Overloaded(retry_after=7), now=3, ends_at=10) is None
    assert always().pause(Overloaded(retry_after=7), now=3, ends_at=10.2) == 7 + BACKOFF


def test_the_patient_count_lost_connections_and_not_refusals() -> None:
    retries = always(1, patient=True)
    for _ in range(100):
        assert retries.pause(Overloaded(), now=0, ends_at=math.inf) is not None
    assert retries.pause(Disconnected(), now=0, ends_at=math.inf) is not None
    assert retries.pause(Overloaded(), now=0, ends_at=math.inf) is not None
    assert retries.pause(Disconnected(), now=0, ends_at=math.inf) is None


@given(st.integers(0, 10), st.floats(0, 100), st.lists(st.floats(0, 50), max_size=30), st.randoms())
def test_no_request_goes_more_often_than_allowed_nor_after_its_end(
    limit: int, ends_at: float, waits: list[float], chance: random.Random
) -> None:
    retries, now, sent = Retries(limit, draw=chance.uniform), 0.0, 0
    for wait in waits:
        pause = retries.pause(Overloaded(retry_after=wait), now=now, ends_at=ends_at)
        if pause is None:
            break
        assert pause >= wait
        now += pause
        sent += 1
        assert now < ends_at
    assert sent <= limit
