import json
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import anyio
import msgspec
import numpy as np
import pytest

from tidegate import (
    App,
    BatchSizeMismatch,
    Closed,
    DeadlineExceeded,
    HandlerError,
    HTTPError,
    OutOfMemory,
    Overloaded,
    TidegateError,
    Unavailable,
    current_batch,
    serve,
)
from tidegate.service import Answer
from tidegate_transports.exchange import Exchange, HTTPOptions, Request, Response, problem, request_id_of

pytestmark = pytest.mark.anyio


class Point(msgspec.Struct):
    x: int

    def __post_init__(self) -> None:
        if self.x < 0:
            raise KeyError("a bug of the user's type")


@serve(max_batch_size=8)
def double(x: np.ndarray) -> np.ndarray:
    return x * 2


@serve
def norm(p: Point) -> float:
    return float("nan") if p.x == 0 else float(p.x)


class FailingApp(App):
    """An app whose every answer is this error."""

    def __init__(self, error: Exception) -> None:
        super().__init__(double)
        self.error = error

    async def answer(self, name: str, value: Any, **options: Any) -> Answer:
        raise self.error


async def asked(
    app: App, path: str = "/double", body: bytes = b"[1,2]", method: str = "POST", **headers: str
) -> Response:
    request = Request(method, path, {name.replace("_", "-").lower(): value for name, value in headers.items()}, body)
    return await Exchange(app).respond(request)


def document(response: Response) -> dict[str, Any]:
    """The problem that a response tells; checks what all problems have in common."""
    assert response.content_type == "application/problem+json"
    found: dict[str, Any] = json.loads(response.body)
    assert list(found) == ["type", "title", "status", "detail", "code", "request_id"]
    assert found["type"] == "about:blank"
    assert found["status"] == response.status
    assert found["request_id"] == response.headers["X-Request-Id"] != ""
    assert re.fullmatch("[a-z]+(-[a-z]+)*", found["code"])
    assert found["detail"]
    return found


# ---------------------------------------------------------------------- answers


async def test_an_input_is_answered_with_the_output_and_how_it_was_batched() -> None:
    async with App(double) as app:
        response = await asked(app)
    assert (response.status, response.body, response.content_type) == (200, b"[2,4]", "application/json")
    timing = response.headers["Server-Timing"]
    assert re.fullmatch(r'queue;dur=\d+\.\d{3}, run;dur=\d+\.\d{3}, batch;desc="1"', timing)


async def test_an_apps_only_handler_also_answers_at_predict() -> None:
    async with App(double) as app:
        assert (await asked(app, "/predict")).body == b"[2,4]"


async def test_with_two_handlers_each_answers_at_its_own_path_and_none_at_predict() -> None:
    async with App(double, norm) as app:
        assert (await asked(app, "/double")).body == b"[2,4]"
        assert (await asked(app, "/norm", b'{"x":3}')).body == b"3.0"
        assert (await asked(app, "/predict")).status == 404


@pytest.mark.parametrize("path", ["/double", "/predict"])
async def test_a_priority_and_a_patience_reach_the_app_and_only_lower_the_one(path: str) -> None:
    heard = []

    class Listening(App):
        async def answer(self, name: str, value: Any, **options: Any) -> Answer:
            heard.append((options["priority"], options["timeout"]))
            return Answer(value, 0.0, 0.0, 1)

    app = Listening(double)
    assert "Preference-Applied" not in (await asked(app, path)).headers
    response = await asked(app, path, Priority="u=6", Prefer="respond-async, wait=2.5")
    assert response.headers["Preference-Applied"] == "wait=2.5"
    await asked(app, path, Priority="u=0", Prefer="wait=soon")
    exchange = Exchange(app, HTTPOptions(trust_priority=True))
    await exchange.respond(Request("POST", path, {"priority": "u=0"}, b"[1]"))
    assert heard == [(3, None), (6, 2.5), (3, None), (0, None)]


async def test_a_deadline_that_the_caller_set_is_told_with_what_was_heard_of_it() -> None:
    response = await asked(FailingApp(DeadlineExceeded()), Prefer="wait=0")
    assert (response.status, response.headers["Preference-Applied"]) == (504, "wait=0")


async def test_a_trace_reaches_a_handler_that_asks_for_it_unless_it_is_malformed() -> None:
    @serve(forward_headers=["traceparent", "x-tenant"])
    def seen(x: int) -> dict[str, str]:
        return dict(current_batch().items[0].headers)

    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with App(seen) as app:
        found = await asked(app, "/seen", b"1", traceparent=trace, X_Tenant="blue")
        assert json.loads(found.body) == {"traceparent": trace, "x-tenant": "blue"}
        assert json.loads((await asked(app, "/seen", b"1", traceparent="00-junk")).body) == {}


async def test_the_answer_comes_in_the_form_that_was_asked_for_and_says_that_it_depends_on_it() -> None:
    async with App(double) as app:
        plain = await asked(app, Accept="*/*")
        other = await asked(app, Accept="application/msgpack")
        wrong = await asked(app, Accept="text/html")
    assert (plain.content_type, "Vary" in plain.headers) == ("application/json", False)
    assert (other.content_type, other.headers["Vary"]) == ("application/msgpack", "Accept")
    assert (wrong.status, document(wrong)["code"]) == (406, "not-acceptable")


# ---------------------------------------------------------------------- requests that cannot be answered


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "detail"),
    [
        ("/double", b"[1,,2]", 400, "malformed-body", "byte 3"),
        ("/double", b"", 400, "malformed-body", "the body is empty"),
        ("/double", b'"text"', 422, "invalid-input", "an array of numbers, got text"),
        ("/double", b"[[1],[1,2]]", 422, "invalid-input", "unequal lengths"),
        ("/norm", b'{"x":"1"}', 422, "invalid-input", "$.x"),
    ],
)
async def test_a_wrong_body_is_told_what_and_where(path: str, body: bytes, status: int, code: str, detail: str) -> None:
    response = await asked(App(double, norm), path, body)
    found = document(response)
    assert (response.status, found["code"]) == (status, code)
    assert detail in found["detail"]


async def test_an_unknown_path_is_told_with_the_paths_that_there_are() -> None:
    found = document(await asked(App(double, norm), "/tripel"))
    assert (found["status"], found["title"], found["code"]) == (404, "Not Found", "not-found")
    assert found["detail"].startswith("nothing is at /tripel; there is POST /double, POST /norm, GET /health, GET /")


async def test_a_long_list_of_paths_is_cut_and_so_is_what_was_asked_for() -> None:
    many = [serve(name=f"h{number}")(lambda x: x) for number in range(50)]
    detail = document(await asked(App(*many), "/" + "x" * 10_000))["detail"]
    assert "POST /h19, 30 more, GET /health" in detail
    assert len(detail) < 1000


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "TRACE", "post"])
async def test_a_handler_answers_only_post_and_says_so(method: str) -> None:
    response = await asked(App(double), method=method)
    assert document(response)["code"] == "method-not-allowed"
    assert (response.status, response.headers["Allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("path", "allowed"), [("/double", "OPTIONS, POST"), ("/health", "GET, HEAD, OPTIONS"), ("/nowhere", None)]
)
async def test_options_says_what_a_path_answers(path: str, allowed: str | None) -> None:
    response = await asked(App(double), path, b"", "OPTIONS")
    assert response.headers.get("Allow") == allowed
    assert response.status == (204 if allowed else 404)
    assert (response.body, response.content_type) == (b"", "") or not allowed


async def test_health_answers_only_get_and_says_so() -> None:
    response = await asked(App(double), "/health")
    assert document(response)["code"] == "method-not-allowed"
    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")


# ---------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("error", "status", "code", "detail"),
    [
        (HTTPError(404, "no such speaker"), 404, "handler-refused", "no such speaker"),
        (HTTPError(599, "odd"), 599, "handler-refused", "odd"),
        (HTTPError(499, "gone"), 499, "handler-refused", "gone"),
        (Overloaded("1024 requests are waiting already"), 429, "overloaded", "1024 requests are waiting already"),
        (Closed(), 503, "closed", "shutting down"),
        (Unavailable(), 503, "unavailable", "No worker is alive"),
        (DeadlineExceeded(), 504, "deadline-exceeded", "timeout"),
        (BatchSizeMismatch(3, 2), 500, "batch-size-mismatch", "got 3 items and returned 2"),
        (OutOfMemory("out of memory"), 500, "out-of-memory", "out of memory"),
    ],
)
async def test_a_failure_is_told_with_its_status_its_code_and_its_detail(
    error: TidegateError, status: int, code: str, detail: str
) -> None:
    response = await asked(FailingApp(error))
    found = document(response)
    assert (response.status, found["code"]) == (status, code)
    assert detail in found["detail"]
    assert found["title"]


@pytest.mark.parametrize(("seconds", "header"), [(0.01, "1"), (1.0, "1"), (2.6, "3"), (60.0, "60")])
@pytest.mark.parametrize("refusal", [Overloaded, Closed, Unavailable])
async def test_a_refusal_says_in_whole_seconds_when_to_try_again(
    refusal: type[Overloaded | Closed | Unavailable], seconds: float, header: str
) -> None:
    response = await asked(FailingApp(refusal(retry_after=seconds)))
    assert response.headers["Retry-After"] == header


async def test_only_a_refusal_says_when_to_try_again() -> None:
    assert "Retry-After" not in (await asked(FailingApp(HTTPError(503, "broken")))).headers


async def test_what_a_handler_raised_goes_to_the_log_with_the_requests_id_and_not_to_the_caller(
    caplog: pytest.LogCaptureFixture,
) -> None:
    try:
        raise ValueError("the password is 1234")
    except ValueError as secret:
        error = HandlerError.wrap(secret)
    response = await asked(FailingApp(error), X_Request_Id="id-7")
    found = document(response)
    assert (found["status"], found["code"], found["detail"]) == (500, "handler-error", "internal error")
    assert b"1234" not in response.body
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("tidegate.http", logging.ERROR)
    logged = record.getMessage()
    assert "double failed, request id-7" in logged
    assert "ValueError: the password is 1234" in logged
    assert 'raise ValueError("the password is 1234")' in logged


@pytest.mark.parametrize(
    ("body", "told", "logged"),
    [
        (b'{"x":0}', "NaN or infinity", "NaN or infinity"),
        (b'{"x":-1}', "internal error", "a bug of the user's type"),
    ],
)
async def test_a_value_that_cannot_be_read_or_written_is_a_failure_of_the_handler(
    body: bytes, told: str, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with App(norm) as app:
        response = await asked(app, "/norm", body)
    assert response.status == 500
    assert told in document(response)["detail"]
    assert logged in caplog.text
    assert "Traceback" in caplog.text


async def test_a_callers_own_mistake_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    for body in (b"[", b"{}"):
        await asked(App(double), body=body)
    await asked(App(double), "/nowhere")
    await asked(FailingApp(Overloaded()))
    assert caplog.records == []


async def test_each_failed_request_is_one_line_with_its_facts_and_nothing_of_what_it_held(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "tidegate")
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with App(double, norm) as app:
        await asked(app)
        await asked(app, "/norm", b'{"x":"geheim"}', X_Request_Id="one", traceparent=trace)
        await asked(app, "/norm", b"[", Content_Type="text/geheim", X_Request_Id="two")
        await asked(app, "/geheim", X_Request_Id="three")
    await asked(FailingApp(Closed()), X_Request_Id="four")
    facts = [vars(record)["tidegate"] for record in caplog.records]
    assert [(f["request_id"], f.get("handler"), f["status"], f["code"]) for f in facts] == [
        ("one", "norm", 422, "invalid-input"),
        ("two", "norm", 415, "unsupported-media-type"),
        ("three", None, 404, "not-found"),
        ("four", "double", 503, "closed"),
    ]
    assert facts[0]["trace_id"] == trace[3:35]
    assert all(0 <= found["duration"] < 10 for found in facts)
    assert "geheim" not in caplog.text
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO", "INFO", "WARNING"]


# ---------------------------------------------------------------------- ids


@pytest.mark.parametrize("given", ["a", "7b1e-44", "A.b_c~d:e/f+g=", "x" * 128])
@pytest.mark.parametrize("path", ["/double", "/health", "/nowhere"])
async def test_a_safe_id_is_echoed_whatever_the_answer(given: str, path: str) -> None:
    async with App(double) as app:
        assert (await asked(app, path, X_Request_Id=given)).headers["X-Request-Id"] == given


HOSTILE = [
    "",
    " ",
    "x" * 129,
    "a b",
    "a\nb",
    "a\r\nSet-Cookie: x",
    "a\x00",
    "<script>",
    'a"b',
    "a;b",
    "ü",
    "a\udcff",
    "a\n",
]


@pytest.mark.parametrize("given", HOSTILE, ids=ascii)
async def test_a_hostile_id_is_replaced(given: str) -> None:
    headers = {"x-request-id": given}
    replaced = request_id_of(headers)
    assert re.fullmatch("[0-9a-f]{16}", replaced)
    assert replaced != request_id_of(headers)


async def test_without_an_id_every_answer_gets_one_of_its_own() -> None:
    app = App(double)
    ids = {(await asked(app, "/health", method="GET")).headers["X-Request-Id"] for _ in range(100)}
    assert len(ids) == 100


def test_a_problem_keeps_the_headers_that_it_is_given() -> None:
    response = problem(405, "no", "method-not-allowed", "id", {"Allow": "POST"})
    assert response.headers == {"Allow": "POST", "X-Request-Id": "id"}
    assert document(response)["title"] == "Method Not Allowed"


def test_two_responses_do_not_share_their_headers() -> None:
    one, other = Response(200, b""), Response(200, b"")
    one.headers["X-One"] = "1"
    assert other.headers == {}
    assert replace(one, status=201).status == 201


async def test_closing_a_streams_parts_before_the_first_ends_its_item() -> None:
    @serve
    def forever(n: int) -> Iterator[int]:
        while True:
            yield n

    async with App(forever) as app:
        response = await Exchange(app).respond(Request("POST", "/forever", {}, b"1"))
        assert response.parts is not None
        await response.parts.aclose()
        assert app.statistics()["forever"].outcomes == {"cancelled": 1}


async def test_text_that_is_no_utf_8_is_told_as_well_as_it_can_be() -> None:
    async with App(double) as app:
        response = await asked(app, Content_Type="a/\udcff")
    assert (response.status, "a/?" in document(response)["detail"]) == (415, True)


async def test_a_bodys_bytes_count_against_the_queues_limit_whatever_they_become() -> None:
    @serve(max_queue_bytes=1000, max_batch_size=8, batch_timeout=60)
    def keys(x: list[dict[str, str]]) -> list[int]:
        return [len(item) for item in x]

    async with App(keys) as app, anyio.create_task_group() as tasks:
        body = msgspec.json.encode({"text": "x" * 700})
        tasks.start_soon(asked, app, "/keys", body)
        await anyio.wait_all_tasks_blocked()
        assert (await asked(app, "/keys", body)).status == 429
        tasks.cancel_scope.cancel()
