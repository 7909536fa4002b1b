import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate import (
    Closed,
    DeadlineExceeded,
    HandlerError,
    HTTPError,
    InvalidInput,
    MalformedBody,
    Overloaded,
    TidegateError,
    Unavailable,
    WorkerDied,
)
from tidegate.clients.answers import END, Output, error_of_response, read_message, retry_after_of
from tidegate.clients.carrier import Disconnected
from tidegate.wire import ErrorBody, Reply

PROBLEM = {"Content-Type": "application/problem+json; charset=utf-8"}


def problem(status: int, code: str, detail: str = "", request_id: str = "") -> bytes:
    return msgspec.json.encode({"status": status, "code": code, "detail": detail, "request_id": request_id})


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("`$.text`: expected `str`"),
        MalformedBody("byte 3"),
        HTTPError(404, "no such speaker"),
        HTTPError(503, "the upstream is down"),
        Overloaded("full"),
        Unavailable("none"),
        Closed("later"),
        DeadlineExceeded("late"),
        WorkerDied("gone"),
    ],
)
def test_a_problem_is_the_error_that_was_raised(error: TidegateError) -> None:
    found = error_of_response(error.status, PROBLEM, problem(error.status, error.code, error.detail))
    assert type(found) is type(error)
    assert (found.status, found.detail, found.code) == (error.status, error.detail, error.code)


def test_an_internal_error_names_the_request() -> None:
    found = error_of_response(500, PROBLEM, problem(500, "handler-error", "internal error", "abc7"))
    assert isinstance(found, HandlerError)
    assert found.detail == "internal error (request abc7)"
    found = error_of_response(500, PROBLEM, problem(500, "handler-error", "internal error, request abc7", "abc7"))
    assert found.detail == "internal error, request abc7"
    found = error_of_response(500, {**PROBLEM, "X-Request-Id": "q"}, problem(500, "handler-error", "internal error"))
    assert found.detail == "internal error (request q)"


def test_a_refusal_says_when_to_come_back() -> None:
    headers = {**PROBLEM, "Retry-After": "4"}
    found = error_of_response(429, headers, problem(429, "overloaded"))
    assert isinstance(found, Overloaded)
    assert found.retry_after == 4


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (429, Overloaded),
        (502, HTTPError),
        (503, Unavailable),
        (504, DeadlineExceeded),
        (401, HTTPError),
        (999, HTTPError),
    ],
)
def test_what_a_proxy_says_becomes_an_error_too(status: int, kind: type[TidegateError]) -> None:
    for body, media in [(b"<h1>Bad</h1>", "text/html"), (b"sorry\n", "text/plain"), (b"{", "application/problem+json")]:
        found = error_of_response(status, {"Content-Type": media}, body)
        assert type(found) is kind
        assert str(status) in found.detail
        assert "<h1>" not in found.detail
        assert ("sorry" in found.detail) == (media == "text/plain")


def test_a_redirect_is_not_followed_and_says_where_to() -> None:
    found = error_of_response(308, {"Location": "https://h/x"}, b"")
    assert isinstance(found, Disconnected)
    assert "'https://h/x': use that address" in found.detail


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("0", 0),
        ("12", 12),
        ("1.5", 1.5),
        (" 3 ", 3),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("", None),
        ("Wed, 21 Oct 2015 07:28:30 GMT", 30),
        ("Wed, 21 Oct 2015 07:27:00 GMT", 0),
    ],
)
def test_retry_after_is_seconds_or_a_date_by_the_services_clock(told: str, seconds: float | None) -> None:
    assert retry_after_of({"Retry-After": told, "Date": "Wed, 21 Oct 2015 07:28:00 GMT"}) == seconds


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_retry_after_and_no_date_can_break_the_client(told: str, date: str) -> None:
    found = retry_after_of({"Retry-After": told, "Date": date})
    assert found is None or 0 <= found < float("inf")


@given(st.integers(100, 999), st.binary(max_size=200), st.sampled_from(["application/problem+json", "text/plain", "x"]))
def test_whatever_a_response_holds_it_becomes_an_error_of_the_tree(status: int, body: bytes, media: str) -> None:
    found = error_of_response(status, {"Content-Type": media}, body)
    assert isinstance(found, TidegateError)
    assert found.detail


def test_a_message_is_a_chunk_an_output_an_end_or_an_error() -> None:
    raw = msgspec.Raw
    assert read_message(Reply(1, chunk=raw(b"null")), is_text=True, request_id="") is None
    assert read_message(Reply(1, output=raw(b"\xc0")), is_text=False, request_id="") == Output(None)
    assert read_message(Reply(1, end=True), is_text=True, request_id="") is END
    with pytest.raises(Overloaded) as caught:
        read_message(Reply(1, error=ErrorBody("overloaded", 429, "full", 2.5)), is_text=True, request_id="")
    assert caught.value.retry_after == 2.5
    with pytest.raises(Disconnected, match="holds no output, chunk, end or error"):
        read_message(Reply(1), is_text=True, request_id="")
    with pytest.raises(Disconnected, match="cannot be read"):
        read_message(Reply(1, chunk=raw(b"\xc1")), is_text=False, request_id="")
