import asyncio
import io
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as listen

from tidegate import App, HTTPError, serve
from tidegate.bench.driver import Driver, Timing
from tidegate.bench.record import Measurement
from tidegate.bench.schedule import AllAtOnce, Bursts, Load
from tidegate.bench.sender import Payload
from tidegate.bench.websocket_sender import WebSocketSender
from tidegate.wire import Reply, write

RAW = msgspec.Raw(b"1")

pytestmark = pytest.mark.anyio


@serve(max_batch_size=8, worker="thread")
def total(x: np.ndarray) -> np.ndarray:
    return x.sum(axis=-1)  # type: ignore[no-any-return]


@serve(worker="thread")
def length(body: bytes) -> int:
    if not body:
        raise HTTPError(422, "empty")
    return len(body)


@serve(worker="thread")
def count(n: int) -> Iterator[int]:
    yield from range(n)


async def measured(
    url: str, payloads: list[Payload], load: Load, sockets: int = 1, timeout: float = 30.0
) -> Measurement:
    async with WebSocketSender(url, payloads, headers={}, connections=sockets) as sender:
        record = await Driver(sender, len(payloads), load, Timing(0.0, 0.1, timeout)).run()
    return record.measurement(None, None)


def npy(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


async def test_inputs_of_every_kind_arrive_over_connections_that_are_shared() -> None:
    async with App(total, length, count, ws="127.0.0.1:0") as app:
        url = app.transports[0].url
        array = np.arange(4.0)
        payloads = [Payload(b"[1.0, 2.0]"), Payload(npy(array), "application/x-npy")]
        found = await measured(f"{url}/total", payloads, AllAtOnce(60, 20), sockets=3)
        assert (found.ok, found.answered_all) == (60, True)
        found = await measured(f"{url}/count", [Payload(b"3")], AllAtOnce(10, 5))
        assert found.ok == 10
        packed = [Payload(msgspec.msgpack.encode(2), "application/msgpack")]
        assert (await measured(f"{url}/count", packed, AllAtOnce(4, 2))).ok == 4


async def test_an_error_has_its_code_and_status() -> None:
    async with App(length, ws="127.0.0.1:0") as app:
        url = f"{app.transports[0].url}/length"
        found = await measured(url, [Payload(b"abc", "image/png"), Payload(b"", "image/png")], AllAtOnce(10, 5))
    assert (found.ok, found.failed) == (5, 5)
    assert found.details == {"handler-refused": "empty"}


async def test_who_is_not_answered_is_given_up_and_the_service_is_told() -> None:
    cancelled: list[Any] = []
    told = asyncio.Event()

    async def silent(connection: ServerConnection) -> None:
        async for message in connection:
            read = msgspec.json.decode(message)
            if read.get("cancel"):
                cancelled.append(read["id"])
                told.set()

    async with listen(silent, "127.0.0.1", 0, subprotocols=["tidegate.v1"]) as server:  # type: ignore[list-item]
        url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/x"
        async with WebSocketSender(url, [Payload(b"1")], headers={}, connections=1) as sender:
            record = await Driver(sender, 1, Bursts(1, every=1.0), Timing(0.0, 0.1, 0.2)).run()
            async with asyncio.timeout(30):
                await told.wait()
    assert cancelled == [1]
    assert record.measurement(None, None).timeouts == 1


async def test_a_connection_that_closes_fails_what_was_on_it_and_the_next_request_opens_another() -> None:
    opened = 0

    async def closes_first(connection: ServerConnection) -> None:
        nonlocal opened
        opened += 1
        async for message in connection:
            if opened == 1:
                break
            await connection.send(write(Reply(msgspec.json.decode(message)["id"], RAW), is_text=True).data, text=True)

    async with listen(closes_first, "127.0.0.1", 0, subprotocols=["tidegate.v1"]) as server:  # type: ignore[list-item]
        url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/x"
        found = await measured(url, [Payload(b"1")], AllAtOnce(5, 1))
    assert (found.failed, found.ok) == (1, 4)
    assert found.codes == {"connection-lost": 1}


async def test_nobody_listening_fails_everything() -> None:
    async with listen(lambda connection: connection.wait_closed(), "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
    found = await measured(f"ws://127.0.0.1:{port}/x", [Payload(b"1")], AllAtOnce(3, 3))
    assert found.codes == {"connection-failed": 3}


def test_a_file_that_is_no_array_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match=r"."):
        WebSocketSender("ws://127.0.0.1:1/x", [Payload(b"nonsense", "application/x-npy")], headers={}, connections=1)
