"""Who may open a WebSocket, at each of the shells."""

import base64
import json
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import websockets

from tidegate import App, serve
from tidegate_transports.http_options import HTTPOptions

pytestmark = pytest.mark.anyio

Door = Callable[..., AbstractAsyncContextManager[tuple[App, str]]]
Knock = Callable[..., AbstractAsyncContextManager[Any]]


@serve(max_batch_size=8, worker="thread")
def double(x: list[int]) -> list[int]:
    return [2 * n for n in x]


@serve(worker="thread")
def size(x: bytes) -> int:
    return len(x)


# ---------------------------------------------------------------------- who may come in


def encoded(key: str) -> str:
    return "tidegate.key." + base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


KEY = "a key? of ü & ~"


@pytest.mark.parametrize("client", ["websockets", "aiohttp"])
@pytest.mark.parametrize(
    ("presented", "enters"),
    [
        ({}, False),
        ({"additional_headers": {"X-API-Key": "secret-2"}}, True),
        ({"additional_headers": {"Authorization": "Bearer secret-2"}}, True),
        ({"additional_headers": {"Authorization": "Basic secret-2"}}, False),
        ({"additional_headers": {"X-API-Key": "secret-3"}}, False),
        ({"subprotocols": ["tidegate.v1", encoded(KEY)]}, True),
        ({"subprotocols": [encoded("secret-2"), "tidegate.v1"]}, True),
        ({"subprotocols": ["tidegate.v1", encoded("secret-9")]}, False),
        ({"subprotocols": ["tidegate.v1", "tidegate.key.!"]}, False),
        ({"subprotocols": ["tidegate.v1"]}, False),
    ],
    ids=repr,
)
async def test_a_key_opens_the_handshake_in_a_header_or_as_a_subprotocol(
    presented: dict[str, Any], enters: bool, shell: str, client: str, door: Door, knock: Knock
) -> None:
    options = HTTPOptions(api_keys=["secret-1", "secret-2", KEY])
    async with door(double, shell=shell, options=options) as (_, url):
        if enters:
            async with knock(url, client, **presented) as talk:
                assert (await talk.call(id=1, input=1))["output"] == 2
                asked = "tidegate.v1" in presented.get("subprotocols", ())
                chosen = talk.raw.subprotocol if client == "websockets" else talk.raw.protocol
                assert chosen == ("tidegate.v1" if asked else None)
        else:
            with pytest.raises(Exception, match="401"):
                await knock(url, client, **presented).__aenter__()


async def test_a_refusal_at_the_door_is_a_problem_document(shell: str, door: Door) -> None:
    async with door(double, shell=shell, options=HTTPOptions(api_keys=["secret"])) as (_, url):
        with pytest.raises(websockets.InvalidStatus) as caught:
            await websockets.connect(url, additional_headers={"X-Request-Id": "r-1"})
    response = caught.value.response
    assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert response.headers["Content-Type"].startswith("application/problem+json")
    told = json.loads(response.body or b"")
    assert (told["code"], told["request_id"]) == ("unauthorized", "r-1")
    assert "X-API-Key" in told["detail"]


@pytest.mark.parametrize(
    ("allowed", "origin", "enters"),
    [
        ((), None, True),
        ((), "https://evil.example", False),
        ((), "null", False),
        (("https://good.example",), "https://good.example", True),
        (("https://good.example",), "https://good.example:8443", False),
        (("https://good.example",), "http://good.example", False),
        (("https://good.example",), None, True),
        (("*",), "https://any.example", True),
        ((), "own", True),
    ],
)
async def test_pages_of_other_origins_may_call_only_if_they_are_on_the_list(
    allowed: tuple[str, ...], origin: str | None, enters: bool, shell: str, door: Door, knock: Knock
) -> None:
    async with door(double, shell=shell, options=HTTPOptions(cors_origins=allowed)) as (_, url):
        origin = url.replace("ws://", "http://") if origin == "own" else origin
        if enters:
            async with knock(url, origin=origin) as talk:
                assert (await talk.call(id=1, input=1))["output"] == 2
        else:
            with pytest.raises(websockets.InvalidStatus, match="403"):
                await websockets.connect(url, origin=origin)  # type: ignore[arg-type]


async def test_a_path_where_nothing_is_is_refused_with_what_there_is(shell: str, door: Door) -> None:
    async with door(double, size, shell=shell) as (_, url):
        with pytest.raises(websockets.InvalidStatus, match="404") as caught:
            await websockets.connect(f"{url}/nowhere?x=1")
        assert json.loads(caught.value.response.body or b"")["detail"].endswith("there is /double, /size, /")


async def test_no_more_connections_than_are_allowed(shell: str, door: Door, knock: Knock) -> None:
    options = HTTPOptions(max_connections=1)
    async with door(double, shell=shell, options=options) as (_, url), knock(url) as talk:
        await talk.call(id=1, input=1)
        with pytest.raises(websockets.InvalidStatus, match="503"):
            await websockets.connect(url)


async def test_no_key_reaches_a_log_at_any_level(
    shell: str, door: Door, knock: Knock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("websockets.client").setLevel(logging.INFO)
    key = encoded("secret")
    headers = {"X-API-Key": "secret", "Sec-WebSocket-Protocol": key}
    options = HTTPOptions(api_keys=["secret"])
    async with door(double, shell=shell, options=options) as (_, url), knock(url, additional_headers=headers) as talk:
        await talk.call(id=1, input=1)
    ours = [record for record in caplog.records if "uvicorn" not in record.name]
    assert not [record for record in ours if "secret" in record.getMessage() or key in record.getMessage()]
