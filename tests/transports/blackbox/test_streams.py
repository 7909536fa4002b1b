"""Streams, as clients of any server see them."""

import json
import socket

import httpx
import pytest


def test_chunks_come_as_lines_and_the_last_says_that_it_was_the_last(client: httpx.Client) -> None:
    response = client.post("/countdown", json=3)
    assert response.headers["Content-Type"] == "application/x-ndjson"
    assert [json.loads(line) for line in response.iter_lines()] == [
        {"chunk": 3},
        {"chunk": 2},
        {"chunk": 1},
        {"end": True},
    ]


def test_browsers_get_events(client: httpx.Client) -> None:
    response = client.post("/countdown", json=2, headers={"Accept": "text/event-stream"})
    assert response.headers["Content-Type"].startswith("text/event-stream")
    assert [line for line in response.text.splitlines() if line.startswith(("data: 2", "data: 1", "event: end"))] == [
        "data: 2",
        "data: 1",
        "event: end",
    ]


@pytest.mark.parametrize("accept", ["application/x-ndjson", "text/event-stream"])
def test_a_failure_after_the_first_chunk_is_told_and_nothing_private_with_it(accept: str, client: httpx.Client) -> None:
    response = client.post("/countdown", json=13, headers={"Accept": accept})
    assert response.status_code == 200
    assert "handler-error" in response.text
    assert "secret" not in response.text
    assert "end" not in response.text.splitlines()[-1]


def test_a_client_that_hangs_up_ends_its_generator(client: httpx.Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        closed.settimeout(20)
        with client.stream("POST", "/forever", json=closed.getsockname()[1]) as response:
            next(response.iter_lines())
        closed.accept()[0].close()
