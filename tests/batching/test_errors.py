import pickle

import pytest

from tidegate_batching import errors
from tidegate_batching.errors import (
    BatchSizeMismatch,
    HandlerError,
    HTTPError,
    InvalidInput,
    OutOfMemory,
    Overloaded,
    Refused,
    TidegateError,
    TooCostly,
    WorkerDied,
    alike,
    from_foreign,
)


def tree() -> list[type[TidegateError]]:
    found: list[type[TidegateError]] = []
    todo: list[type[TidegateError]] = [TidegateError]
    while todo:
        found.append(todo.pop())
        todo += [kind for kind in found[-1].__subclasses__() if kind.__module__ == errors.__name__]
    return found


@pytest.mark.parametrize("kind", tree())
def test_every_class_is_public_drawn_in_the_tree_and_has_a_code_and_a_status(kind: type[TidegateError]) -> None:
    assert kind.__name__ in errors.__all__
    assert kind.__name__ in (errors.__doc__ or "")
    assert kind.code == kind.code.lower().replace("_", "-")
    assert 400 <= kind.status <= 599


def test_codes_are_told_apart() -> None:
    codes = [kind.code for kind in tree()]
    assert len(codes) == len(set(codes))


def test_the_detail_is_what_was_given_or_what_the_class_says() -> None:
    assert str(Overloaded("1024 are waiting")) == Overloaded("1024 are waiting").detail == "1024 are waiting"
    assert Overloaded().detail == "The queue is full"


def test_errors_carry_data_and_compute_their_text() -> None:
    error = TooCostly(12.0, 8.0)
    assert (error.cost, error.limit) == (12.0, 8.0)
    assert "costs 12" in error.detail and "may cost 8" in error.detail
    mismatch = BatchSizeMismatch(3, 2)
    assert (mismatch.expected, mismatch.got) == (3, 2)
    assert "got 3 items and returned 2 outputs" in mismatch.detail
    assert Refused(retry_after=2.5).retry_after == 2.5
    assert isinstance(error, InvalidInput)


def test_a_handlers_verdict_has_a_status_of_its_own_within_the_range_of_errors() -> None:
    assert HTTPError(418, "teapot").status == 418
    assert HTTPError.status == 500
    for status in (200, 399, 600):
        with pytest.raises(ValueError, match=f"status={status}: an error has a status from 400 to 599"):
            HTTPError(status)


def test_a_foreign_exception_is_described_and_kept_as_the_cause() -> None:
    original = KeyError("speaker")
    error = from_foreign(original)
    assert isinstance(error, HandlerError)
    assert error.__cause__ is original
    assert (error.type_name, error.text, error.detail) == ("KeyError", "'speaker'", "KeyError: 'speaker'")
    assert "KeyError" in error.traceback
    assert from_foreign(pickle.PickleError()).detail == "_pickle.PickleError"


def test_what_is_in_the_tree_already_stays_as_it_is() -> None:
    error = WorkerDied("signal 9")
    assert from_foreign(error) is error


def test_lack_of_memory_is_recognised() -> None:
    assert isinstance(from_foreign(MemoryError()), OutOfMemory)
    assert from_foreign(MemoryError()).detail == "out of memory"
    assert from_foreign(MemoryError("3 GiB")).detail == "3 GiB"


class Mute(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError


def test_an_exception_that_cannot_say_what_it_is_still_answers() -> None:
    assert from_foreign(Mute()).detail.endswith("Mute: <no text: its __str__ raised ZeroDivisionError>")


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "HIP out of memory.",
        "cudaErrorMemoryAllocation",
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes",
    ],
)
def test_a_device_that_ran_out_of_memory_is_recognised_by_what_its_library_says(text: str) -> None:
    assert isinstance(from_foreign(RuntimeError(text)), OutOfMemory)
    assert isinstance(from_foreign(ValueError(text)), HandlerError)


def test_torchs_own_class_for_it_is_recognised_without_torch() -> None:
    torchs = type("OutOfMemoryError", (RuntimeError,), {"__module__": "torch"})
    others = type("OutOfMemoryError", (RuntimeError,), {"__module__": "shop.stock"})
    assert isinstance(from_foreign(torchs()), OutOfMemory)
    assert isinstance(from_foreign(others()), HandlerError)


class ForeignHTTPException(Exception):
    def __init__(self, status_code: object, detail: object = "gone") -> None:
        self.status_code = status_code
        self.detail = detail


def test_another_frameworks_http_exception_keeps_its_status_and_detail() -> None:
    error = from_foreign(ForeignHTTPException(410))
    assert isinstance(error, HTTPError)
    assert (error.status, error.detail) == (410, "gone")
    assert isinstance(error.__cause__, ForeignHTTPException)


@pytest.mark.parametrize("status", [200, 600, True, "404", None])
def test_what_only_looks_like_an_http_exception_is_a_handlers_error(status: object) -> None:
    assert isinstance(from_foreign(ForeignHTTPException(status)), HandlerError)
    assert isinstance(from_foreign(ForeignHTTPException(404, None)), HandlerError)


def test_errors_are_alike_when_they_are_of_one_type_also_inside() -> None:
    assert alike(HandlerError("ValueError", "a"), HandlerError("ValueError", "b"))
    assert not alike(HandlerError("ValueError", "a"), HandlerError("KeyError", "a"))
    assert alike(OutOfMemory(), OutOfMemory("x"))
    assert not alike(OutOfMemory(), WorkerDied())
    assert not alike(HandlerError("ValueError", "a"), OutOfMemory())
