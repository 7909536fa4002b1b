"""The client over a WebSocket, against a service that misbehaves."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as Handshake
from websockets.http11 import Response

from tidegate import DeadlineExceeded, HTTPError, Overloaded, SlowReader, TidegateError, Unavailable
from tidegate.client import AsyncClient, Client
from tidegate.clients import link, websocket
from tidegate.clients.carrier import Disconnected
from tidegate.clients.link import Link
from tidegate.clients.place import Place
from tidegate.wire import Call, ErrorBody, Reply, read_call, write

pytestmark = pytest.mark.anyio

Script = Callable[["Talk"], Awaitable[None]]


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.msgpack.encode(value))


class Talk:
    """One connection as the service sees it."""

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection

    async def hear(self) -> Call:
        return read_call(await self.connection.recv())

    async def say(self, reply: Reply) -> None:
        await self.connection.send(write(reply, is_text=False).data)

    async def answer(self) -> None:
        """Answer every request with its own input, until the client goes."""
        async for message in self.connection:
            call = read_call(message)
            if not call.cancel:
                await self.say(Reply(call.id, output=call.input))


class Fake:
    """A service that serves its n-th connection by the n-th script, and the last for all that follow."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = scripts
        self.connections: list[ServerConnection] = []

    async def serve(self, connection: ServerConnection) -> None:
        self.connections.append(connection)
        script = self._scripts[min(len(self.connections), len(self._scripts)) - 1]
        await script(Talk(connection))


def url_of(server: Server) -> str:
    return f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"


@asynccontextmanager
async def talking(*scripts: Script, **options: Any) -> AsyncIterator[tuple[AsyncClient, Fake]]:
    fake = Fake(*scripts)
    async with (
        asyncio.timeout(30),
        serve(fake.serve, "127.0.0.1", 0, close_timeout=1) as server,
        Client(url_of(server), **options) as client,
    ):
        yield client, fake


# ---------------------------------------------------------------------- what goes out


async def test_the_handshake_names_the_subprotocol_and_brings_the_key() -> None:
    seen: list[Handshake] = []

    def look(_: ServerConnection, handshake: Handshake) -> None:
        seen.append(handshake)

    async with serve(Fake(Talk.answer).serve, "127.0.0.1", 0, process_request=look) as server:
        options: dict[str, Any] = {"api_key": "sesame", "headers": {"X-Tenant": "blue"}}
        async with Client(url_of(server) + "/embed", **options) as client:
            assert await client.call(1) == 1
    (handshake,) = seen
    assert handshake.path == "/embed"
    assert handshake.headers["Sec-WebSocket-Protocol"] == "tidegate.v1"
    assert handshake.headers["Authorization"] == "Bearer sesame"
    assert handshake.headers["X-Tenant"] == "blue"


async def test_a_request_holds_what_the_caller_said_and_no_more() -> None:
    calls: list[Call] = []

    async def note(talk: Talk) -> None:
        for _ in range(2):
            calls.append(await talk.hear())
            await talk.say(Reply(calls[-1].id, output=raw("fine")))
        await talk.connection.wait_closed()

    async with talking(note) as (client, _):
        assert await client.call({"a": 1}) == "fine"
        assert await client.call(2, handler="embed", timeout=2.5, priority=6) == "fine"
    plain, urgent = calls
    assert (plain.handler, plain.timeout, plain.priority, msgspec.msgpack.decode(plain.input)) == (
        None,
        None,
        None,
        {"a": 1},
    )
    assert (urgent.handler, urgent.priority) == ("embed", 6)
    assert urgent.timeout is not None
    assert 2.4 < urgent.timeout <= 2.5
    assert plain.id != urgent.id


async def test_all_requests_share_one_connection_and_answers_find_their_callers_in_any_order() -> None:
    async def backwards(talk: Talk) -> None:
        calls = [await talk.hear() for _ in range(50)]
        for call in reversed(calls):
            await talk.say(Reply(call.id, output=call.input))
        await talk.connection.wait_closed()

    async with talking(backwards) as (client, fake):
        assert await asyncio.gather(*(client.call(n) for n in range(50))) == list(range(50))
    assert len(fake.connections) == 1


async def test_answers_in_text_are_read_too() -> None:
    async def text(talk: Talk) -> None:
        call = await talk.hear()
        await talk.connection.send(f'{{"id":{call.id},"output":[1,"a"],"later":true}}')
        await talk.connection.wait_closed()

    async with talking(text) as (client, _):
        assert await client.call(1) == [1, "a"]


# ---------------------------------------------------------------------- cancelling


async def test_a_call_that_is_cancelled_or_late_sends_a_cancel() -> None:
    heard: asyncio.Queue[Call] = asyncio.Queue()

    async def listen(talk: Talk) -> None:
        async for message in talk.connection:
            heard.put_nowait(read_call(message))

    async with talking(listen) as (client, _):
        asking = asyncio.create_task(client.call(1))
        call = await heard.get()
        asking.cancel()
        assert await heard.get() == Call(call.id, cancel=True)
        with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.05 s"):
            await client.call(2, timeout=0.05)
        call = await heard.get()
        assert await heard.get() == Call(call.id, cancel=True)


async def test_a_stream_that_is_left_sends_a_cancel_and_one_that_ended_does_not() -> None:
    heard: asyncio.Queue[Call] = asyncio.Queue()

    async def two_chunks(talk: Talk) -> None:
        async for message in talk.connection:
            call = read_call(message)
            heard.put_nowait(call)
            if not call.cancel:
                for n in range(2):
                    await talk.say(Reply(call.id, chunk=raw(n)))
                if call.input == raw("whole"):
                    await talk.say(Reply(call.id, end=True))

    async with talking(two_chunks) as (client, _):
        chunks = client.stream("left")
        assert await anext(chunks) == 0
        call = await heard.get()
        await chunks.aclose()
        assert await heard.get() == Call(call.id, cancel=True)
        assert [chunk async for chunk in client.stream("whole")] == [0, 1]
        assert not (await heard.get()).cancel
        assert heard.empty()


async def test_what_comes_after_a_cancel_is_passed_over() -> None:
    async def late(talk: Talk) -> None:
        call = await talk.hear()
        assert (await talk.hear()).cancel
        await talk.say(Reply(call.id, chunk=raw(1)))
        await talk.say(Reply(call.id, error=ErrorBody("cancelled", 499, "gone")))
        await talk.say(Reply("nobody's", output=raw(1)))
        await talk.answer()

    async with talking(late) as (client, fake):
        with pytest.raises(DeadlineExceeded):
            await client.call(1, timeout=0.01)
        assert await client.call(2) == 2
    assert len(fake.connections) == 1


async def test_a_request_that_has_not_left_is_withdrawn_in_silence() -> None:
    heard: list[Call] = []

    async def slow(talk: Talk) -> None:
        await go.wait()
        async for message in talk.connection:
            heard.append(read_call(message))
            await talk.say(Reply(heard[-1].id, output=raw(len(heard[-1].input))))

    go = asyncio.Event()
    async with (
        serve(Fake(slow).serve, "127.0.0.1", 0, max_queue=1, max_size=None) as server,
        Client(url_of(server)) as client,
    ):
        # More than the sockets hold: what comes behind it stays here.
        large = asyncio.create_task(client.call(b"x" * 30_000_000))
        await _waiting(client, 1)
        second = asyncio.create_task(client.call(2))
        third = asyncio.create_task(client.call(3))
        await _waiting(client, 3)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        go.set()
        assert await large == 30_000_005
        assert await third == 1
    assert [len(call.input) for call in heard] == [30_000_005, 1]
    assert not any(call.cancel for call in heard)


async def _waiting(client: AsyncClient, number: int) -> None:
    carrier: Any = client._open()._carrier
    while carrier._link is None or len(carrier._link._in_flight) < number:  # noqa: ASYNC110 - the link tells nobody
        await asyncio.sleep(0.001)


# ---------------------------------------------------------------------- connections that are lost


async def test_calls_in_flight_on_a_lost_connection_are_made_again_on_a_new_one() -> None:
    async def abrupt(talk: Talk) -> None:
        for _ in range(3):
            await talk.hear()
        talk.connection.transport.abort()

    async with talking(abrupt, Talk.answer) as (client, fake):
        assert await asyncio.gather(*(client.call(n) for n in range(3))) == [0, 1, 2]
    assert len(fake.connections) == 2


@pytest.mark.parametrize("code", [1000, 1001, 1011])
async def test_a_connection_that_is_closed_is_made_again_for_the_next_call(code: int) -> None:
    async def once(talk: Talk) -> None:
        call = await talk.hear()
        await talk.say(Reply(call.id, output=call.input))
        await talk.connection.close(code, "that is all")

    async with talking(once, once, Talk.answer) as (client, fake):
        assert [await client.call(n) for n in range(3)] == [0, 1, 2]
    assert len(fake.connections) == 3


async def test_without_retries_a_lost_connection_is_told_and_the_next_call_makes_a_new_one() -> None:
    async def abrupt(talk: Talk) -> None:
        await talk.hear()
        await talk.connection.close(1011, "broken")

    async with talking(abrupt, Talk.answer, retries=0) as (client, _):
        with pytest.raises(Disconnected, match="1011.*broken") as caught:
            await client.call(1)
        assert (caught.value.sent, caught.value.begun) == (True, False)
        assert await client.call(2) == 2


async def test_a_stream_on_a_lost_connection_gives_what_has_come_and_is_not_begun_again() -> None:
    async def abrupt(talk: Talk) -> None:
        call = await talk.hear()
        await talk.say(Reply(call.id, chunk=raw("one")))
        await talk.say(Reply(call.id, chunk=raw("two")))
        await talk.connection.close(1011)

    async with talking(abrupt, Talk.answer) as (client, fake):
        chunks = client.stream(1)
        assert [await anext(chunks), await anext(chunks)] == ["one", "two"]
        with pytest.raises(Disconnected) as caught:
            await anext(chunks)
        assert caught.value.begun
        assert len(fake.connections) == 1


@pytest.mark.parametrize(
    "said",
    [
        "gibberish",
        b"\xc1",
        b"",
        "[1]",
        '{"id":[]}',
        '{"id":1,"error":7}',
        '{"error":{"code":"x","status":400,"message":"?"}}',
    ],
    ids=range(7),
)
async def test_what_is_no_answer_ends_the_connection_and_not_the_client(said: str | bytes) -> None:
    async def garbage(talk: Talk) -> None:
        await talk.hear()
        await talk.connection.send(said)
        await talk.connection.wait_closed()

    async with talking(garbage, Talk.answer, retries=0) as (client, _):
        with pytest.raises(Disconnected, match="no answer|to whom it spoke"):
            await client.call(1)
        assert await client.call(2) == 2


async def test_an_output_that_cannot_be_read_is_one_callers_trouble() -> None:
    async def half_garbage(talk: Talk) -> None:
        first, second = await talk.hear(), await talk.hear()
        await talk.say(Reply(first.id, output=raw({"dtype": "float32", "shape": [9], "data": b""})))
        await talk.say(Reply(second.id, output=raw("fine")))
        await talk.answer()

    async with talking(half_garbage) as (client, fake):
        answers = await asyncio.gather(*(client.call(n) for n in (1, 2)), return_exceptions=True)
        assert isinstance(answers[0], Disconnected)
        assert answers[1] == "fine"
        assert await client.call(3) == 3
    assert len(fake.connections) == 1


async def test_a_message_with_nothing_in_it_and_an_output_amid_chunks_are_errors() -> None:
    async def odd(talk: Talk) -> None:
        call = await talk.hear()
        await talk.say(Reply(call.id))
        call = await talk.hear()
        while call.cancel:
            call = await talk.hear()
        await talk.say(Reply(call.id, chunk=raw(1)))
        await talk.say(Reply(call.id, output=raw(2)))
        await talk.answer()

    async with talking(odd) as (client, _):
        with pytest.raises(Disconnected, match="holds no output"):
            await client.call(1)
        chunks = client.stream(1)
        assert await anext(chunks) == 1
        with pytest.raises(Disconnected, match="in the middle of a stream"):
            await anext(chunks)


async def test_an_input_that_is_too_large_fails_alone_and_is_not_sent_again() -> None:
    both = asyncio.Event()

    async def hold(talk: Talk) -> None:
        await talk.hear()
        both.set()
        await talk.answer()

    fake = Fake(hold, Talk.answer)
    async with serve(fake.serve, "127.0.0.1", 0, max_size=100_000) as server, Client(url_of(server)) as client:
        small = asyncio.create_task(client.call(1))
        await both.wait()
        with pytest.raises(HTTPError, match="more than the service takes") as caught:
            await client.call(b"x" * 200_000)
        assert (caught.value.status, caught.value.code) == (413, "body-too-large")
        assert await small == 1
    assert len(fake.connections) == 2


# ---------------------------------------------------------------------- connections that are not made


@pytest.mark.parametrize(
    ("status", "headers", "body", "kind"),
    [
        (401, {"Content-Type": "application/problem+json"}, b'{"code":"unauthorized","detail":"a key"}', HTTPError),
        (503, {"Retry-After": "90"}, b"", Unavailable),
        (200, {}, b"hello", Disconnected),
        (302, {"Location": "ws://127.0.0.1:1/"}, b"", Disconnected),
    ],
)
async def test_a_refused_handshake_is_the_services_error(
    status: int, headers: dict[str, str], body: bytes, kind: type[TidegateError]
) -> None:
    def refuse(connection: ServerConnection, _: Handshake) -> Response:
        response = connection.respond(404, "")
        del response.headers["Content-Type"]
        del response.headers["Content-Length"]
        response.headers["Content-Length"] = str(len(body))
        for name, value in headers.items():
            response.headers[name] = value
        return Response(status, "X", response.headers, body)

    async with (
        serve(Fake(Talk.answer).serve, "127.0.0.1", 0, process_request=refuse) as server,
        Client(url_of(server), retries=0, api_key="sesame") as client,
    ):
        with pytest.raises(kind) as caught:
            await client.call(1)
    assert "sesame" not in str(caught.value)
    if isinstance(caught.value, Unavailable):
        assert caught.value.retry_after == 90


async def test_a_redirect_is_not_followed() -> None:
    elsewhere = Fake(Talk.answer)
    async with serve(elsewhere.serve, "127.0.0.1", 0) as other:

        def send_on(connection: ServerConnection, _: Handshake) -> Response:
            response = connection.respond(302, "")
            response.headers["Location"] = url_of(other)
            return response

        async with (
            serve(Fake(Talk.answer).serve, "127.0.0.1", 0, process_request=send_on) as server,
            Client(url_of(server), retries=0, headers={"X-API-Key": "sesame"}) as client,
        ):
            with pytest.raises(Disconnected, match="use that address"):
                await client.call(1)
    assert not elsewhere.connections


async def test_many_who_ask_at_once_share_one_attempt_and_its_failure() -> None:
    attempts = 0

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with Client(f"ws://127.0.0.1:{port}", retries=0) as client:
            errors = await asyncio.gather(*(client.call(n) for n in range(20)), return_exceptions=True)
    assert {type(error) for error in errors} == {Disconnected}
    assert not any(error.sent for error in errors if isinstance(error, Disconnected))
    assert attempts == 1


async def test_an_address_where_nobody_answers_is_tried_ever_less_often() -> None:
    drawn: list[float] = []

    def draw(low: float, high: float) -> float:
        drawn.append(high)
        return 0.0

    carrier = websocket.WebSocketCarrier(Place("ws", "127.0.0.1:1", "/", ""), draw=draw)
    async with carrier:
        for _ in range(4):
            with pytest.raises(Disconnected, match="cannot be reached"):
                await carrier._open_link()
    assert drawn == [0.1, 0.2, 0.4, 0.8]


@asynccontextmanager
async def silence() -> AsyncIterator[tuple[str, asyncio.Event]]:
    """An address where somebody listens and never says a word, and whether anybody came."""
    came, writers = asyncio.Event(), []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        came.set()
        await reader.read()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", came
        for writer in writers:
            writer.close()
            await writer.wait_closed()


async def test_a_handshake_that_takes_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "CONNECT_TIMEOUT", 0.05)
    async with silence() as (url, _), Client(url, retries=0) as client:
        with pytest.raises(Disconnected, match="timed out"):
            await client.call(1)


async def test_a_handshake_takes_no_longer_than_the_caller_waits() -> None:
    async with silence() as (url, _), Client(url) as client:
        with pytest.raises(DeadlineExceeded):
            await client.call(1, timeout=0.01)


async def test_a_client_that_ends_while_it_connects_tells_who_waits() -> None:
    async with silence() as (url, connected):
        async with Client(url) as client:
            asking = asyncio.create_task(client.call(1))
            await connected.wait()
        with pytest.raises(RuntimeError, match="not open"):
            await asking


# ---------------------------------------------------------------------- refusals and slow readers


async def test_a_refusal_is_followed_by_another_try() -> None:
    async def twice(talk: Talk) -> None:
        for _ in range(2):
            call = await talk.hear()
            await talk.say(Reply(call.id, error=ErrorBody("overloaded", 429, "full", 0.01)))
        await talk.answer()

    async with talking(twice) as (client, _):
        assert await client.call(1) == 1
    async with talking(twice, retries=1) as (client, _):
        with pytest.raises(Overloaded, match="full"):
            await client.call(1)


async def test_a_stream_that_is_not_read_ends_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "MAX_UNREAD", 2_000_000)
    heard: asyncio.Queue[Call] = asyncio.Queue()

    async def flood(talk: Talk) -> None:
        slow, quick = await talk.hear(), await talk.hear()
        for n in range(2000):
            await talk.say(Reply(slow.id, chunk=raw([n, "x" * 10_000])))
            await talk.say(Reply(quick.id, chunk=raw(n)))
        await talk.say(Reply(quick.id, end=True))
        heard.put_nowait(slow)
        heard.put_nowait(await talk.hear())
        await talk.answer()

    async with talking(flood) as (client, _):
        slow, quick = client.stream("slow"), client.stream("quick")
        reading = asyncio.create_task(anext(slow))
        await _waiting(client, 1)
        assert [chunk async for chunk in quick] == list(range(2000))
        assert await reading == [0, "x" * 10_000]
        call = await heard.get()
        assert await heard.get() == Call(call.id, cancel=True)
        read = 1
        with pytest.raises(SlowReader):
            async for chunk in slow:
                assert chunk[0] == read
                read += 1
        assert 50 < read < 300
        assert await client.call(1) == 1


async def test_a_client_that_ends_in_the_middle_of_a_flood_says_goodbye() -> None:
    async def flood(talk: Talk) -> None:
        call = await talk.hear()
        with suppress(ConnectionClosed):
            while True:
                await talk.say(Reply(call.id, chunk=raw("x" * 1000)))

    async with talking(flood) as (client, _):
        chunks = client.stream(1)
        await anext(chunks)
        carrier: Any = client._open()._carrier
        connection = carrier._link._connection
    # The service's own goodbye was read behind all that came before it.
    assert connection.close_code == 1000


async def test_one_chunk_may_be_larger_than_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "MAX_UNREAD", 1000)

    async def large(talk: Talk) -> None:
        call = await talk.hear()
        await talk.say(Reply(call.id, chunk=raw(b"x" * 100_000)))
        await talk.say(Reply(call.id, end=True))
        await talk.connection.wait_closed()

    async with talking(large) as (client, _):
        assert [len(chunk) async for chunk in client.stream(1)] == [100_000]


async def test_hundreds_in_flight_with_random_cancels_each_end_once_and_leave_nothing() -> None:
    chance = random.Random(7)

    async def service(talk: Talk) -> None:
        streams: dict[Any, int] = {}
        async for message in talk.connection:
            call = read_call(message)
            if call.cancel:
                streams.pop(call.id, None)
            elif call.handler == "call":
                await talk.say(Reply(call.id, output=call.input))
            else:
                streams[call.id] = 5
            for number in chance.sample(sorted(streams), (len(streams) + 1) // 2):
                await talk.say(Reply(number, chunk=raw(streams[number])))
                streams[number] -= 1
                if not streams[number]:
                    del streams[number]
                    await talk.say(Reply(number, end=True))

    async with talking(service) as (client, _):

        async def one(number: int) -> Any:
            if number % 2:
                return await client.call(number, handler="call")
            return [chunk async for chunk in client.stream(number, handler="stream")]

        tasks = [asyncio.create_task(one(number)) for number in range(600)]
        # Each further message moves the streams that are left.
        while pending := [task for task in tasks if not task.done()]:
            for task in chance.sample(pending, len(pending) // 8):
                task.cancel()
            await client.call(0, handler="call")
        assert 50 < sum(task.cancelled() for task in tasks) < 550
        for number, task in enumerate(tasks):
            if not task.cancelled():
                assert task.result() == (number if number % 2 else [5, 4, 3, 2, 1])
        carrier: Any = client._open()._carrier
        current: Link = carrier._link
        assert not current._in_flight
        assert not current._outbox


async def test_a_connection_that_fails_to_close_is_no_error_of_anybodys() -> None:
    class Gone:
        """As the library's is when its transport is gone."""

        close_code = None

        async def recv(self) -> bytes:
            raise ConnectionClosed(None, None)

        async def close(self) -> None:
            raise AttributeError("'NoneType' object has no attribute 'call_soon'")

    connection: Any = Gone()
    gone = Link(connection, "ws://127.0.0.1:1")
    await gone.run()
    assert not gone.is_open
