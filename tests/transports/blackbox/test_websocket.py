"""The WebSocket at the HTTP port of each server."""

import base64
import json

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from tests.transports.blackbox.conftest import Launch


def at(service: str, path: str) -> str:
    return service.replace("http", "ws", 1) + path


def test_calls_and_streams_share_a_connection(service: str) -> None:
    with connect(at(service, "/shout"), subprotocols=[Subprotocol("tidegate.v1")]) as socket:
        assert socket.subprotocol == "tidegate.v1"
        socket.send(json.dumps({"id": 1, "input": "ahoy"}))
        socket.send(json.dumps({"id": 2, "handler": "countdown", "input": 3}))
        chunks: list[int] = []
        ended: set[int] = set()
        while ended != {1, 2}:
            frame = json.loads(socket.recv(timeout=20))
            if "chunk" in frame:
                chunks.append(frame["chunk"])
            if "output" in frame:
                assert frame == {"id": 1, "output": "AHOY"}
            if "output" in frame or frame.get("end"):
                ended.add(frame["id"])
    assert chunks == [3, 2, 1]


def test_an_error_is_a_frame_and_the_connection_lives(service: str) -> None:
    with connect(at(service, "/shout")) as socket:
        socket.send(json.dumps({"id": "a", "input": 7}))
        assert json.loads(socket.recv(timeout=20))["error"]["code"] == "invalid-input"
        socket.send(json.dumps({"id": "b", "input": "b"}))
        assert json.loads(socket.recv(timeout=20)) == {"id": "b", "output": "B"}


def test_a_key_may_travel_as_a_subprotocol(server: str, launch: Launch) -> None:
    with launch(server, TIDEGATE_API_KEY="open sesame") as (_, url):
        with pytest.raises(InvalidStatus), connect(at(url, "/shout")):
            pass
        key = base64.urlsafe_b64encode(b"open sesame").decode().rstrip("=")
        with connect(
            at(url, "/shout"), subprotocols=[Subprotocol("tidegate.v1"), Subprotocol(f"tidegate.key.{key}")]
        ) as socket:
            socket.send(json.dumps({"id": 1, "input": "key"}))
            assert json.loads(socket.recv(timeout=20))["output"] == "KEY"
