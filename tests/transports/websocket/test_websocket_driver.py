"""The driver over a wire that the test holds in its hands: every order of events can be had."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from tidegate import App, HTTPError, TidegateError, serve
from tidegate.wire import Message
from tidegate_transports.problems import Refusal
from tidegate_transports.pulse import Pulse
from tidegate_transports.session import Limits, Session
from tidegate_transports.websocket_driver import Connection
from tidegate_transports.websocket_handshake import WebSockets

pytestmark = pytest.mark.anyio


@serve(max_batch_size=8, worker="thread")
def double(x: list[int]) -> list[int]:
    return [2 * n for n in x]


class FakeWire:
    """What was sent, what is to be received, and whether sending gets on."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[str | bytes | None] = asyncio.Queue()
        self.sent: list[dict[str, Any]] = []
        self.sending = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.gone = False
        self.pings = 0
        self.closed: tuple[int, str] | None = None
        self.aborted = False
        self._happened = asyncio.Event()

    async def receive(self) -> str | bytes | None:
        return await self.incoming.get()

    async def send(self, message: Message) -> None:
        if self.gone:
            raise ConnectionError("gone")
        self.sending += 1
        assert self.sending == 1, "two messages are being sent at once"
        self._note()
        try:
            await self.gate.wait()
            if self.gone:
                raise ConnectionError("gone")
            self.sent.append(json.loads(message.data))
        finally:
            self.sending -= 1
            self._note()

    async def ping(self) -> None:
        self.pings += 1
        self._note()

    async def close(self, code: int, reason: str) -> None:
        self.closed = (code, reason)
        self.incoming.put_nowait(None)

    def abort(self) -> None:
        self.aborted = True
        self.incoming.put_nowait(None)

    # what the test does

    def say(self, **fields: Any) -> None:
        self.incoming.put_nowait(json.dumps(fields))

    def _note(self) -> None:
        self._happened.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._happened.clear()
            await self._happened.wait()


@asynccontextmanager
async def connected(
    *handlers: Any, pulse: Pulse | None = None, drain_timeout: float = 10.0, **limits: Any
) -> AsyncIterator[tuple[App, FakeWire, Connection]]:
    async with asyncio.timeout(30), App(*handlers, drain_timeout=drain_timeout) as app:
        wire = FakeWire()
        pulse = pulse or Pulse(asyncio.get_running_loop().time())
        session = Session(app.handlers, Limits(**limits), pulse, usual=next(iter(app.handlers)))
        connection = Connection(app, session, wire)
        running = asyncio.create_task(connection.run())
        yield app, wire, connection
        wire.gate.set()
        wire.incoming.put_nowait(None)
        await running


async def test_an_id_may_be_used_again_as_soon_as_its_answer_is_on_its_way() -> None:
    async with connected(double) as (_, wire, _):
        wire.gate.clear()
        wire.say(id=1, input=1)
        await wire.until(lambda: wire.sending == 1)
        # The client may have read it before whoever sends it hears that it is out.
        wire.say(id=1, input=2)
        wire.gate.set()
        await wire.until(lambda: len(wire.sent) == 2)
        assert wire.sent == [{"id": 1, "output": 2}, {"id": 1, "output": 4}]


async def test_a_place_is_free_when_the_answer_is_out_and_not_before() -> None:
    async with connected(double, max_in_flight=1) as (app, wire, _):
        wire.gate.clear()
        wire.say(id=1, input=1)
        await wire.until(lambda: wire.sending == 1)
        wire.say(id=2, input=2)
        await anyio.wait_all_tasks_blocked()
        assert app.statistics()["double"].submitted == 1
        wire.gate.set()
        await wire.until(lambda: len(wire.sent) == 2)


async def test_a_cancel_does_not_cut_an_answer_off_that_is_being_sent() -> None:
    async with connected(double) as (_, wire, _):
        wire.gate.clear()
        wire.say(id=1, input=1)
        wire.say(id=2, input=2)
        await wire.until(lambda: wire.sending == 1)
        wire.say(id=1, cancel=True)
        wire.say(id=2, cancel=True)
        await anyio.wait_all_tasks_blocked()
        wire.gate.set()
        await wire.until(lambda: len(wire.sent) == 2)
        assert [one["id"] for one in wire.sent] == [1, 2]


async def test_a_stream_that_is_cancelled_while_a_chunk_is_being_sent_leaves_its_batch_at_once() -> None:
    closed = threading.Event()

    @serve(worker="thread")
    def forever(n: int) -> Iterator[int]:
        try:
            while True:
                yield n
        finally:
            closed.set()

    async with connected(forever) as (app, wire, _):
        wire.gate.clear()
        wire.say(id=1, input=7)
        await wire.until(lambda: wire.sending == 1)
        wire.say(id=1, cancel=True)
        # The client still reads nothing.
        assert await asyncio.to_thread(closed.wait, 20)
        assert app.statistics()["forever"].outcomes == {"cancelled": 1}
        wire.gate.set()
        await wire.until(lambda: len(wire.sent) == 2)
        assert wire.sent[0] == {"id": 1, "chunk": 7}
        assert wire.sent[1]["error"]["code"] == "cancelled"


async def test_a_request_that_is_cancelled_in_the_same_breath_ends_as_cancelled() -> None:
    async with connected(double) as (app, wire, _):
        wire.say(id=1, input=1)
        wire.say(id=1, cancel=True)
        await wire.until(lambda: len(wire.sent) == 1)
        assert wire.sent[0]["error"]["code"] == "cancelled"
        wire.say(id=1, input=2)
        await wire.until(lambda: len(wire.sent) == 2)
        assert wire.sent[1] == {"id": 1, "output": 4}
        assert app.statistics()["double"].running == 0


async def test_when_the_client_is_gone_what_waits_is_not_begun() -> None:
    async with connected(double, max_in_flight=1) as (app, wire, _):
        wire.gate.clear()
        wire.say(id=1, input=1)
        await wire.until(lambda: wire.sending == 1)
        for id in range(2, 10):
            wire.say(id=id, input=id)
        await anyio.wait_all_tasks_blocked()
        wire.incoming.put_nowait(None)
    assert app.statistics()["double"].submitted == 1
    assert not wire.sent


async def test_a_client_that_goes_while_nothing_is_read_from_it_is_noticed() -> None:
    async with connected(double, max_in_flight=1, max_backlog=2000) as (app, wire, _):
        wire.gate.clear()
        for id in range(50):
            wire.say(id=id, input=id)
        await wire.until(lambda: wire.sending == 1)
        await anyio.wait_all_tasks_blocked()
        assert wire.incoming.qsize() > 40
        wire.gone = True
        wire.gate.set()
        await wire.until(lambda: wire.sending == 0)
        while not wire.incoming.empty():  # noqa: ASYNC110 - the reader takes what is left
            await asyncio.sleep(0)
    assert app.statistics()["double"].submitted == 1


async def test_a_drain_does_not_wait_for_a_client_that_goes_meanwhile() -> None:
    begun, go = threading.Event(), threading.Event()

    @serve(worker="thread")
    def held(n: int) -> int:
        begun.set()
        assert go.wait(20)
        return n

    async with connected(held, max_in_flight=1) as (_, wire, connection):
        wire.say(id=1, input=1)
        wire.say(id=2, input=1)
        assert await asyncio.to_thread(begun.wait, 20)
        draining = asyncio.create_task(connection.drain())
        await anyio.wait_all_tasks_blocked()
        wire.incoming.put_nowait(None)
        async with asyncio.timeout(5):
            await draining
        go.set()


async def test_a_wire_that_fails_ends_its_requests_quietly(caplog: pytest.LogCaptureFixture) -> None:
    async with connected(double) as (app, wire, _):
        wire.gone = True
        wire.say(id=1, input=1)
        wire.incoming.put_nowait("{")
        while not app.statistics()["double"].outcomes:  # noqa: ASYNC110 - a server's counter has no event
            await asyncio.sleep(0.001)
    assert not caplog.records


async def test_a_wire_that_fails_under_a_stream_is_no_failure_of_the_handler(caplog: pytest.LogCaptureFixture) -> None:
    @serve(worker="thread")
    def forever(n: int) -> Iterator[int]:
        while True:
            yield n

    async with connected(forever) as (app, wire, _):
        wire.gone = True
        wire.say(id=1, input=1)
        while not app.statistics()["forever"].outcomes:  # noqa: ASYNC110 - a server's counter has no event
            await asyncio.sleep(0.001)
        assert app.statistics()["forever"].outcomes == {"cancelled": 1}
    assert not caplog.records


async def test_a_client_that_leaves_takes_its_requests_out_of_the_queue() -> None:
    begun, go = threading.Event(), threading.Event()

    @serve(worker="thread")
    def held(n: int) -> int:
        begun.set()
        assert go.wait(20)
        return n

    async with connected(held) as (app, wire, _):
        for id in range(5):
            wire.say(id=id, input=id)
        assert await asyncio.to_thread(begun.wait, 20)
        wire.incoming.put_nowait(None)
        await anyio.wait_all_tasks_blocked()
        statistics = app.statistics()["held"]
        assert (statistics.outcomes, statistics.waiting) == ({"cancelled": 5}, 0)
        go.set()


async def test_a_cancel_does_not_cut_off_an_error_that_is_being_sent() -> None:
    @serve(max_batch_size=8, worker="thread")
    def refusing(x: list[int]) -> list[int]:
        raise HTTPError(409, "no")

    async with connected(refusing) as (_, wire, _):
        wire.gate.clear()
        wire.say(id=1, input=1)
        await wire.until(lambda: wire.sending == 1)
        wire.say(id=1, cancel=True)
        await anyio.wait_all_tasks_blocked()
        wire.gate.set()
        await wire.until(lambda: len(wire.sent) == 1)
        assert wire.sent[0]["error"]["code"] == "handler-refused"


async def test_an_error_that_cannot_be_told_is_its_requests_own(caplog: pytest.LogCaptureFixture) -> None:
    class Nasty(TidegateError):
        @property
        def detail(self) -> str:
            raise RuntimeError("cannot even say so")

    @serve(max_batch_size=8, worker="thread")
    def nasty(x: list[int]) -> list[Any]:
        return [Nasty() if n < 0 else n for n in x]

    async with connected(nasty) as (_, wire, _):
        wire.say(id=1, input=-1)
        wire.say(id=2, input=2)
        await wire.until(lambda: len(wire.sent) == 2)
        ends = {one.pop("id"): one for one in wire.sent}
    assert ends[2] == {"output": 2}
    assert (ends[1]["error"]["status"], ends[1]["error"]["message"]) == (500, "internal error")
    assert "cannot even say so" in caplog.text


async def test_a_drain_that_finds_a_client_not_reading_gives_it_up() -> None:
    async with connected(double, drain_timeout=0.05) as (_, wire, connection):
        wire.gate.clear()
        wire.say(id=1, input=1)
        wire.say(id=2, input=1)
        await wire.until(lambda: wire.sending == 1)
        await connection.drain()
        assert (wire.aborted, wire.closed) == (True, None)


async def test_a_quiet_client_is_asked_and_one_that_does_not_read_is_given_up() -> None:
    now = asyncio.get_running_loop().time()
    pulse = Pulse(now, ping_interval=0.02, ping_timeout=30.0, write_timeout=0.04)
    async with connected(double, pulse=pulse) as (_, wire, _):
        await wire.until(lambda: wire.pings == 1)
        wire.gate.clear()
        wire.say(id=1, input=1)
        await wire.until(lambda: wire.sending == 1)
        await wire.until(lambda: wire.sending == 0)
        assert wire.aborted
        assert not wire.sent


async def test_a_connection_that_comes_while_the_door_is_drained_is_closed_at_once() -> None:
    async with asyncio.timeout(30), App(double) as app:
        sockets = WebSockets(app)
        admitted = sockets.admit("/double", {})
        await sockets.drain()
        wire = FakeWire()
        await sockets.serve(admitted, wire, sockets.pulse())
        assert wire.closed == (1001, "the service is shutting down")
        with pytest.raises(Refusal, match="shutting down"):
            sockets.admit("/double", {})
