import asyncio
import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tidegate_transports.ipc_channel
from tidegate.workers.shared_memory import SharedMemoryFull
from tidegate_transports.ipc_channel import HIGH_WATER, Channel
from tidegate_transports.ipc_memory import LARGE, Inbox
from tidegate_transports.ipc_messages import Answer, Cancel, Credit, End, Failure, Freed, Hello, Message, Reply
from tidegate_transports.ipc_values import Value, decode_value, encode_value

pytestmark = pytest.mark.anyio


class Endpoint:
    """One end of a line, and everything that came there."""

    def __init__(self, **options: Any) -> None:
        self.got: list[Any] = []
        self.came = asyncio.Event()
        self.closed = asyncio.Event()
        self.channel = Channel(self._received, self.closed.set, **options)

    def _received(self, message: Any) -> None:
        self.got.append(message)
        self.came.set()

    async def until(self, count: int) -> list[Any]:
        while len(self.got) < count:
            self.came.clear()
            await self.came.wait()
        return self.got


@asynccontextmanager
async def line(**options: Any) -> AsyncIterator[tuple[Endpoint, Endpoint]]:
    """Both ends of a line; `options` are the first one's."""
    with anyio.fail_after(20):
        ends = Endpoint(**options), Endpoint()
        for end, sock in zip(ends, socket.socketpair(), strict=True):
            await end.channel.open(sock)
        yield ends
        for end in ends:
            end.channel.abort()
        for end in ends:
            await end.closed.wait()


@asynccontextmanager
async def raw_line(**options: Any) -> AsyncIterator[tuple[Endpoint, socket.socket]]:
    """One end of a line, and a bare socket at the other."""
    with anyio.fail_after(20):
        end = Endpoint(**options)
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        with theirs:
            await end.channel.open(ours)
            yield end, theirs
        end.channel.abort()
        await end.closed.wait()


def framed(*messages: Any) -> bytes:
    body = msgspec.msgpack.encode(messages)
    return struct.pack("<I", len(body)) + body


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - buffers of the system have no event to wait for
        await asyncio.sleep(0)


async def test_what_is_sent_in_one_turn_travels_in_one_frame_and_in_order() -> None:
    async with raw_line() as (end, theirs):
        sent = [Cancel(n) for n in range(100)]
        for message in sent:
            end.channel.send(message)
        data = await asyncio.get_running_loop().sock_recv(theirs, 1 << 16)
        assert data == framed(*sent)


async def test_messages_go_both_ways() -> None:
    async with line() as (one, other):
        one.channel.send(Hello(3))
        other.channel.send(Failure(7, {"class": "Overloaded", "retry_after": 2.5}))
        assert await other.until(1) == [Hello(3)]
        assert await one.until(1) == [Failure(7, {"class": "Overloaded", "retry_after": 2.5})]


@given(st.lists(st.lists(st.integers(0, 1 << 62), min_size=1, max_size=5), max_size=5), st.data())
def test_it_does_not_matter_how_the_bytes_are_cut(batches: list[list[int]], data: st.DataObject) -> None:
    async def main() -> None:
        end = Endpoint()
        stream = b"".join(framed(*map(Cancel, batch)) for batch in batches)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
        for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            end.channel.data_received(stream[start:stop])
        assert [message.id for message in end.got] == [number for batch in batches for number in batch]

    asyncio.run(main())


async def test_a_large_value_arrives_whole_among_small_ones() -> None:
    async with line() as (one, other):
        large = encode_value(b"x" * 20_000_000)
        sent: list[Message] = [Cancel(1), Answer(2, large, 0.0, 0.0, 1), Cancel(3)]
        for message in sent:
            one.channel.send(message)
        assert await other.until(3) == sent


async def test_more_than_a_frame_holds_travels_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tidegate_transports.ipc_channel, "LARGEST", 3000)
    async with line() as (one, other):
        sent = [Answer(number, encode_value(b"x" * 1000), 0.0, 0.0, 1) for number in range(20)]
        for message in sent:
            one.channel.send(message)
        assert await other.until(20) == sent


@pytest.mark.parametrize(
    ("nonsense", "reason"),
    [
        (struct.pack("<I", (1 << 30) + 1), "limit"),
        (struct.pack("<I", 4) + b"\xc1\xc1\xc1\xc1", "MessagePack"),
        (framed([99, 1]), "99"),
        (framed([5, "one"]), "int"),
    ],
)
async def test_nonsense_ends_the_line_and_says_why(
    nonsense: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with raw_line() as (end, theirs):
        with caplog.at_level(logging.ERROR, "tidegate.fronts"):
            theirs.send(framed(Cancel(1)) + nonsense)
            await end.closed.wait()
        assert reason in caplog.text
        assert await asyncio.get_running_loop().sock_recv(theirs, 1) == b""


async def test_a_message_that_cannot_be_sent_ends_the_line_rather_than_be_missed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with line() as (one, other):
        one.channel.send(Cancel(1))
        one.channel.send(Reply(2, b"", "\ud800"))
        await one.closed.wait()
        await other.closed.wait()
        assert "cannot be sent" in caplog.text


async def test_the_end_of_the_other_is_told_once_also_if_it_ends_amid_a_frame() -> None:
    async with raw_line() as (end, theirs):
        theirs.send(framed(Cancel(1))[:-1])
        theirs.close()
        await end.closed.wait()
        assert end.got == []
        end.channel.send(Cancel(2))  # of no effect


async def test_closing_sends_what_waits() -> None:
    async with line() as (one, other):
        one.channel.send(End(1, 0.5))
        one.channel.close()
        assert await other.until(1) == [End(1, 0.5)]
        await other.closed.wait()


async def test_a_peer_that_does_not_read_is_known_and_may_say_no_more_until_it_does() -> None:
    async with raw_line(stops_reading=True) as (end, theirs):
        loop = asyncio.get_running_loop()
        size = 0
        while end.channel.writable.is_set():
            end.channel.send(Answer(1, encode_value(b"x" * 1_000_000), 0.0, 0.0, 1))
            size += 1_000_000
            await asyncio.sleep(0)
        assert size < HIGH_WATER + 10_000_000
        theirs.send(framed(Credit(1, 1)))
        for _ in range(10):
            await asyncio.sleep(0)
        assert end.got == []
        while size > 0:
            size -= len(await loop.sock_recv(theirs, 1 << 20))
        assert await end.until(1) == [Credit(1, 1)]
        assert end.channel.writable.is_set()


async def test_the_end_that_must_go_on_reading_does() -> None:
    async with raw_line() as (end, theirs):
        while end.channel.writable.is_set():
            end.channel.send(Answer(1, encode_value(b"x" * 1_000_000), 0.0, 0.0, 1))
            await asyncio.sleep(0)
        theirs.send(framed(Credit(1, 1)))
        assert await end.until(1) == [Credit(1, 1)]


async def test_whoever_waits_to_write_is_woken_by_the_end() -> None:
    async with raw_line() as (end, theirs):
        while end.channel.writable.is_set():
            end.channel.send(Answer(1, encode_value(b"x" * 1_000_000), 0.0, 0.0, 1))
            await asyncio.sleep(0)
        theirs.close()
        await end.channel.writable.wait()


# ---------------------------------------------------------------------- memory in common


@asynccontextmanager
async def shared_line(both_sides: Any) -> AsyncIterator[tuple[Endpoint, Endpoint]]:
    """Both ends of a line with memory in common."""
    with anyio.fail_after(20):
        ends = Endpoint(), Endpoint()
        for end, sock, memory in zip(ends, socket.socketpair(), both_sides(), strict=True):
            await end.channel.open(sock, memory)
        yield ends
        for end in ends:
            end.channel.abort()
        for end in ends:
            await end.closed.wait()


def answer(number: int, end: Endpoint) -> Answer:
    return Answer(number, encode_value(np.full(LARGE, number, np.uint8), end.channel.outbox), 0.0, 0.0, 1)


async def test_what_nobody_looks_at_any_more_is_said_with_the_next_frame(
    both_sides: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with shared_line(both_sides) as (one, other):
        outbox: Any = one.channel.outbox
        for number in range(3):
            one.channel.send(answer(number, one))
        frames: list[Any] = []
        decode = one.channel._cut

        def cut(data: bytes) -> Any:
            frames.append(data)
            return decode(data)

        monkeypatch.setattr(one.channel, "_cut", cut)
        assert [set(decode_value(got.value)) for got in await other.until(3)] == [{0}, {1}, {2}]
        assert outbox.used == 3 * LARGE
        # Freed and said in one turn: one frame has it all.
        other.channel.send(Cancel(7))
        other.got.clear()
        await one.until(1)
        assert one.got == [Cancel(7)]
        assert outbox.used == 0
        assert len(frames) == 1


async def test_what_another_thread_looked_at_last_is_said_too_though_nothing_else_is(
    both_sides: Any, until: Any
) -> None:
    async with shared_line(both_sides) as (one, other):
        outbox: Any = one.channel.outbox
        asyncio.get_running_loop().set_debug(True)  # says who calls it from a thread that it is not told of
        one.channel.send(answer(1, one))
        await other.until(1)
        await asyncio.to_thread(other.got.clear)
        await until(lambda: outbox.used == 0)


async def test_a_value_that_nobody_decodes_is_given_back_all_the_same(both_sides: Any, until: Any) -> None:
    async with shared_line(both_sides) as (one, other):
        outbox: Any = one.channel.outbox
        for number in range(20):
            one.channel.send(answer(number, one))
        await other.until(20)
        other.got.clear()
        await until(lambda: outbox.used == 0)


@pytest.mark.parametrize("nonsense", [Freed([64]), Answer(1, Value(1, None, "|u1", (1,), (1 << 40, 1)), 0.0, 0.0, 1)])
async def test_nonsense_about_memory_ends_the_line(
    nonsense: Any, both_sides: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with shared_line(both_sides) as (one, other):
        one.channel.send(nonsense)
        await other.closed.wait()
        assert "makes no sense" in caplog.text
        assert "offset" in caplog.text
        assert other.got == []
        assert other.channel.outbox is None


async def test_memory_that_cannot_be_seen_ends_the_line_and_says_why(
    both_sides: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(inbox: Inbox, place: Any) -> Any:
        raise SharedMemoryFull("no room for it here")

    monkeypatch.setattr(Inbox, "look", cannot)
    async with shared_line(both_sides) as (one, other):
        one.channel.send(answer(1, one))
        await other.closed.wait()
        assert "no room for it here" in caplog.text


async def test_values_that_are_looked_at_when_the_line_ends_stay_as_they_are(both_sides: Any) -> None:
    async with shared_line(both_sides) as (one, other):
        one.channel.send(answer(5, one))
        (got,) = await other.until(1)
        array = decode_value(got.value)
        memory: Any = other.channel._memory
        one.channel.abort()
        await other.closed.wait()
        assert memory.descriptors == [-1, -1]
        assert set(array) == {5}
