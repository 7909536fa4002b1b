import inspect
import math
import traceback
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tidegate
from tidegate import (
    BatchSizeMismatch,
    Cancelled,
    HandlerError,
    HTTPError,
    InvalidInput,
    MalformedBody,
    OutOfMemory,
    Overloaded,
    Refused,
    TidegateError,
    TooCostly,
    UnsupportedMediaType,
    WorkerDied,
)
from tidegate.portable import LONGEST, from_fields, to_fields
from tidegate_batching.errors import alike


def sent(error: BaseException) -> TidegateError:
    """The error as another process makes it again."""
    return from_fields(msgspec.msgpack.decode(msgspec.msgpack.encode(to_fields(error))))


def classes(kind: type[TidegateError] = TidegateError) -> Iterator[type[TidegateError]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__.partition(".")[0] in ("tidegate", "tidegate_batching"):
            yield from classes(child)


def arguments(kind: type[TidegateError]) -> st.SearchStrategy[tuple[Any, ...]]:
    """Whatever the class can be made of, by its annotations."""
    known: dict[str, st.SearchStrategy[Any]] = {
        "str": st.text(),
        "int": st.integers(400, 599),
        "float": st.floats(allow_nan=False),
        "Sequence[str]": st.lists(st.text(min_size=1)),
    }
    parameters = list(inspect.signature(kind).parameters.values())
    return st.tuples(*(known[p.annotation] for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD))


def test_the_tree_is_known_in_full() -> None:
    assert {kind.__name__ for kind in classes()} >= {
        name
        for name in tidegate.__all__
        if inspect.isclass(getattr(tidegate, name)) and issubclass(getattr(tidegate, name), TidegateError)
    }


@pytest.mark.parametrize("kind", list(classes()), ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_every_error_of_the_tree_arrives_as_it_was(kind: type[TidegateError], data: st.DataObject) -> None:
    error = kind(*data.draw(arguments(kind)))
    again = sent(error)
    assert type(again) is kind
    assert (again.detail, str(again), again.status, again.code) == (error.detail, str(error), error.status, error.code)
    assert vars(again) == vars(error)
    assert alike(again, error)


def test_a_delay_and_what_an_error_knows_go_along() -> None:
    refused = sent(Refused("full", retry_after=2.5))
    assert isinstance(refused, Refused)
    assert refused.retry_after == 2.5
    mismatch = sent(BatchSizeMismatch(4, 3))
    assert isinstance(mismatch, BatchSizeMismatch)
    assert (mismatch.expected, mismatch.got) == (4, 3)
    media = sent(UnsupportedMediaType("text/html", ["application/json"]))
    assert isinstance(media, UnsupportedMediaType)
    assert media.taken == ("application/json",)
    cost = sent(TooCostly(math.inf, 10))
    assert isinstance(cost, TooCostly)
    assert cost.cost == math.inf
    with pytest.raises(MalformedBody):
        raise sent(MalformedBody("byte 3"))


def test_a_foreign_error_becomes_a_handler_error_with_its_traceback() -> None:
    try:
        dict[str, int]()["missing"]
    except KeyError as error:
        again = sent(error)
    assert isinstance(again, HandlerError)
    assert (again.type_name, again.text) == ("KeyError", "'missing'")
    assert 'test_portable.py", line' in again.traceback
    assert again.__cause__ is None


def test_foreign_errors_that_mean_something_keep_their_meaning() -> None:
    assert isinstance(sent(MemoryError()), OutOfMemory)

    class HTTPException(Exception):
        status_code = 418
        detail = "a teapot"

    again = sent(HTTPException())
    assert isinstance(again, HTTPError)
    assert (again.status, again.detail) == (418, "a teapot")
    assert isinstance(sent(SystemExit(3)), HandlerError)
    assert isinstance(sent(KeyboardInterrupt()), HandlerError)
    assert isinstance(sent(ExceptionGroup("two", [ValueError(), KeyError()])), HandlerError)


class NotLicensed(InvalidInput):
    """There is no licence for this."""

    code = "not-licensed"
    status = 402

    def __init__(self, plan: str, lock: object) -> None:
        super().__init__()
        self.plan = plan
        self.lock = lock


class Renamed(Overloaded):
    @property
    def detail(self) -> str:
        return "come back later"


def test_a_users_own_class_travels_as_the_nearest_that_both_sides_know() -> None:
    again = sent(NotLicensed("free", object()))
    assert type(again) is InvalidInput
    assert (again.status, again.code, again.detail) == (402, "not-licensed", "There is no licence for this")
    assert vars(again)["plan"] == "free"
    assert "lock" not in vars(again)
    again = sent(Renamed(retry_after=7.0))
    assert type(again) is Overloaded
    assert (again.detail, again.retry_after) == ("come back later", 7.0)


def test_a_status_of_the_standard_librarys_kind_is_a_number() -> None:
    again = sent(HTTPError(HTTPStatus.NOT_FOUND, "no such speaker"))
    assert type(again.status) is int
    assert again.status == 404


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(1.5), 1.5),
        (np.int64(3), 3),
        (True, True),
        (1 << 70, None),
        (object(), None),
        (b"bytes", None),
        ("half \ud800", "half \\ud800"),
        ([1, [2.0, ["x", [["too deep"]]]]], (1, [2.0, ["x", None]])),
        (None, "absent or None"),
    ],
    ids=repr,
)
def test_attributes_travel_as_plain_data_or_not_at_all(value: Any, expected: Any) -> None:
    error = WorkerDied("gone")
    vars(error)["extra"] = value
    again = vars(sent(error)).get("extra", "absent or None")
    assert again == expected or (expected is None and again == "absent or None") or again is value


class Hostile(Exception):
    """Raises whatever it is asked."""

    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


class HostileOwn(TidegateError):
    @property
    def detail(self) -> str:
        raise RuntimeError("no")

    @property
    def status(self) -> int:  # type: ignore[override]
        raise RuntimeError("no")

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no")


class Texts(str):
    """A text of a class of its own."""

    __slots__ = ()

    def encode(self, *args: Any) -> bytes:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "make", [Hostile, HostileOwn, lambda: ValueError(Hostile()), lambda: HTTPError(500, Texts("x"))]
)
def test_an_error_that_fails_when_it_is_asked_is_told_all_the_same(make: Callable[[], BaseException]) -> None:
    again = sent(make())
    assert isinstance(again, TidegateError)
    assert 400 <= again.status <= 599
    assert again.detail


def test_long_texts_lose_their_middle() -> None:
    again = sent(InvalidInput("a" * LONGEST + "b" * LONGEST))
    assert len(again.detail) < LONGEST + 100
    assert again.detail.startswith("aaa")
    assert again.detail.endswith("bbb")
    assert f"{LONGEST} characters left out" in again.detail


def test_a_deep_recursions_traceback_is_no_burden() -> None:
    def recurse() -> None:
        recurse()

    try:
        recurse()
    except RecursionError as error:
        assert len(traceback.format_exc()) < LONGEST  # Python itself folds equal frames
        again = sent(error)
    assert isinstance(again, HandlerError)
    assert again.type_name == "RecursionError"


@pytest.mark.parametrize(
    "fields", [{}, {"class": "Unheard"}, {"class": "TidegateError", "detail": "x"}, {"class": ["x"], "detail": None}]
)
def test_fields_of_another_version_still_make_an_error(fields: dict[str, Any]) -> None:
    error = from_fields(fields)
    assert type(error) is TidegateError
    assert str(error)


def test_nothing_private_is_sent() -> None:
    error = Cancelled("gone")
    vars(error)["_secret"] = "x"
    assert "_secret" not in to_fields(error)
