"""Requests and their answers, as clients of any server see them."""

import concurrent.futures
import gzip
import io
import json
import re
import socket
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def document(response: httpx.Response) -> dict[str, Any]:
    """The problem that a response tells."""
    assert response.headers["Content-Type"].startswith("application/problem+json")
    found: dict[str, Any] = response.json()
    assert found["status"] == response.status_code
    assert found["request_id"] == response.headers["X-Request-Id"]
    return found


# ---------------------------------------------------------------------- answers


def test_an_input_is_answered_with_the_output_and_how_it_was_batched(client: httpx.Client) -> None:
    response = client.post("/square", json=[1.5, 2])
    assert (response.status_code, response.content) == (200, b"[2.25,4.0]")
    assert response.headers["Content-Type"] == "application/json"
    assert re.fullmatch(r'queue;dur=[\d.]+, run;dur=[\d.]+, batch;desc="\d"', response.headers["Server-Timing"])
    assert response.headers["Content-Length"] == "10"
    assert "Date" in response.headers


def test_many_clients_at_once_each_get_their_own_answers(service: str) -> None:
    def caller(number: int) -> None:
        with httpx.Client(base_url=service, timeout=30) as client:
            for turn in range(5):
                assert client.post("/square", json=[number, turn]).json() == [number**2, turn**2]

    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        list(threads.map(caller, range(32)))


@pytest.mark.parametrize(
    ("accept", "read"),
    [
        ("application/json", json.loads),
        ("application/msgpack", msgspec.msgpack.decode),
        ("application/x-npy", lambda body: np.load(io.BytesIO(body)).tolist()),
        ("text/html, application/msgpack;q=0.5", msgspec.msgpack.decode),
        ("*/*", json.loads),
    ],
)
def test_the_answer_comes_in_the_form_that_is_accepted(accept: str, read: Any, client: httpx.Client) -> None:
    response = client.post("/echo", json=[1, 2], headers={"Accept": accept})
    if "npy" in accept:
        response = client.post("/square", json=[1, 2], headers={"Accept": accept})
        assert read(response.content) == [1, 4]
    else:
        assert read(response.content) == [1, 2]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"[3,4]", "application/json"),
        (b"[3,4]", "application/json; charset=utf-8"),
        (msgspec.msgpack.encode([3.0, 4.0]), "application/msgpack"),
        (npy(np.array([3.0, 4.0])), "application/x-npy"),
        (np.array([3.0, 4.0]).tobytes(), "application/octet-stream"),
    ],
)
def test_the_body_is_read_as_its_content_type_says(body: bytes, content_type: str, client: httpx.Client) -> None:
    assert client.post("/square", content=body, headers={"Content-Type": content_type}).json() == [9, 16]


def test_a_body_in_chunks_is_read(client: httpx.Client) -> None:
    assert client.post("/square", content=iter([b"[1", b",", b"2]"])).json() == [1, 4]


def test_a_compressed_body_is_read(client: httpx.Client) -> None:
    packed = gzip.compress(b"[3,4]")
    assert client.post("/square", content=packed, headers={"Content-Encoding": "gzip"}).json() == [9, 16]


def test_a_long_answer_is_compressed_for_those_who_ask(client: httpx.Client) -> None:
    text = "x" * 100_000
    response = client.post("/echo", json=text, headers={"Accept-Encoding": "gzip"})
    assert (response.headers["Content-Encoding"], response.json()) == ("gzip", text)
    plain = client.post("/echo", json=text, headers={"Accept-Encoding": "identity"})
    assert ("Content-Encoding" in plain.headers, plain.json()) == (False, text)


def test_a_body_of_megabytes_is_read(client: httpx.Client) -> None:
    body = b"x" * 9_000_000
    answer = client.post("/size", content=body, headers={"Content-Type": "application/octet-stream"})
    assert answer.json() == 9_000_000


def test_one_connection_carries_many_requests_also_after_a_wrong_one(client: httpx.Client) -> None:
    addresses = set()
    for body in ("[1,2]", "[1,,", "[3,4]"):
        response = client.post("/square", content=body)
        addresses.add(response.extensions["network_stream"].get_extra_info("client_addr"))
    assert len(addresses) == 1


def test_a_query_does_not_hide_the_handler(client: httpx.Client) -> None:
    assert client.post("/square?verbose=1", json=[1, 2]).json() == [1, 4]


# ---------------------------------------------------------------------- request headers


def test_the_callers_id_comes_back_and_reaches_the_handler(client: httpx.Client) -> None:
    headers = {"X-Request-Id": "from-me/7", "X-Tenant": "blue", "X-Other": "no"}
    response = client.post("/who", json=1, headers=headers)
    assert response.headers["X-Request-Id"] == "from-me/7"
    assert response.json() == {"id": "from-me/7", "headers": {"x-tenant": "blue"}}


def test_an_impatient_caller_gets_a_deadline_of_its_own(client: httpx.Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gate, concurrent.futures.ThreadPoolExecutor() as threads:
        at = {"port": gate.getsockname()[1], "number": 1}
        first = threads.submit(client.post, "/held", json=at)
        running, _ = gate.accept()
        response = client.post("/held", json=at, headers={"Prefer": "wait=0.05"})
        assert (response.status_code, document(response)["code"]) == (504, "deadline-exceeded")
        assert response.headers["Preference-Applied"] == "wait=0.05"
        running.close()
        assert first.result(30).json() == 1


# ---------------------------------------------------------------------- problems


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/square", b"[1,,2]", 400, "malformed-body"),
        ("/square", b"", 400, "malformed-body"),
        ("/square", b"[1,2,3]", 422, "invalid-input"),
        ("/shout", b"7", 422, "invalid-input"),
        ("/refuse", b"1", 409, "handler-refused"),
        ("/fail", b"1", 500, "handler-error"),
        ("/nowhere", b"1", 404, "not-found"),
    ],
)
def test_a_failure_is_a_problem_document(path: str, body: bytes, status: int, code: str, client: httpx.Client) -> None:
    response = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, document(response)["code"]) == (status, code)
    assert "secret" not in response.text


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_a_handler_answers_only_post_and_says_so(method: str, client: httpx.Client) -> None:
    response = client.request(method, "/square")
    assert (response.status_code, "POST" in response.headers["Allow"]) == (405, True)
    assert document(response)["code"] == "method-not-allowed"


def test_options_tells_what_there_is(client: httpx.Client) -> None:
    response = client.options("/square")
    assert (response.status_code, response.content, "POST" in response.headers["Allow"]) == (204, b"", True)


def test_a_form_that_is_not_taken_is_415_and_one_that_is_not_given_406(client: httpx.Client) -> None:
    assert client.post("/square", content=b"1", headers={"Content-Type": "image/png"}).status_code == 415
    assert client.post("/shout", json="x", headers={"Accept": "image/png"}).status_code == 406


def test_pages_of_listed_origins_may_call_and_no_others(client: httpx.Client) -> None:
    asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    assert client.options("/square", headers=asked).status_code == 204
    answer = client.post("/square", json=[1, 2], headers={"Origin": "https://page.example"})
    assert answer.headers["Access-Control-Allow-Origin"] == "https://page.example"
    other = client.post("/square", json=[1, 2], headers={"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in other.headers


# ---------------------------------------------------------------------- pages


@pytest.mark.parametrize(
    "path", ["/health", "/healthz", "/livez", "/readyz", "/info", "/metrics", "/openapi.json", "/docs"]
)
def test_every_page_answers_get_and_head(path: str, client: httpx.Client) -> None:
    response = client.get(path)
    assert (response.status_code, len(response.content) > 0) == (200, True)
    head = client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Type"] == response.headers["Content-Type"]
    assert int(head.headers["Content-Length"]) > 0
