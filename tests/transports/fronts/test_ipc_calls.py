"""Calls through a front end and the hub: the same as with one process, whatever happens to either."""

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from tidegate import (
    BatchSizeMismatch,
    EncodeError,
    HandlerError,
    HTTPError,
    InvalidInput,
    OutOfMemory,
    Overloaded,
    TidegateError,
    TooCostly,
    Unavailable,
    current_batch,
    serve,
)
from tidegate.context import RequestInfo
from tidegate.status import DoorCounts
from tidegate_transports.ipc_channel import Channel
from tidegate_transports.ipc_memory import LARGE
from tidegate_transports.ipc_messages import Call, Listening, News
from tidegate_transports.ipc_values import Value

pytestmark = pytest.mark.anyio


@serve(max_batch_size=8)
def square(x: np.ndarray) -> np.ndarray:
    return x**2


@serve
def echo(x: Any) -> Any:
    return x


class Odd(TidegateError):
    """A user's own."""

    code = "odd"
    status = 418


RAISED: dict[str, Callable[[], Exception]] = {
    "refused": lambda: HTTPError(409, "not today"),
    "invalid": lambda: InvalidInput("`$.x`: no"),
    "busy": lambda: Overloaded("come later", retry_after=2.5),
    "costly": lambda: TooCostly(5.0, 2.0),
    "memory": lambda: MemoryError("all gone"),
    "mismatch": lambda: BatchSizeMismatch(3, 2),
    "odd": lambda: Odd("an odd one"),
    "foreign": lambda: ZeroDivisionError("division by zero"),
}


@serve
def fail(how: str) -> str:
    raise RAISED[how]()


# ---------------------------------------------------------------------- answers


async def test_an_answer_comes_with_its_times_and_the_size_of_its_batch(joined: Any) -> None:
    async with joined(square) as (app, (front,)):
        answer = await front.app.answer("square", np.array([3.0, 4.0]))
        assert (answer.value.tolist(), answer.batch_size) == ([9, 16], 1)
        assert 0 <= answer.queued < 5
        assert 0 < answer.ran < 5
        assert await front.app.call("square", np.array([2])) == [4]
        assert app.statistics()["square"].outcomes["ok"] == 2


async def test_callers_at_different_front_ends_share_a_batch(joined: Any) -> None:
    @serve(max_batch_size=8, batch_timeout=10)
    def size(x: list[int]) -> list[int]:
        return [len(x) for _ in x]

    async with joined(size, fronts=2) as (app, fronts):
        answers = await asyncio.gather(*(front.app.answer("size", n) for front in fronts for n in range(4)))
        assert [answer.value for answer in answers] == [8] * 8
        assert {answer.batch_size for answer in answers} == {8}
        assert app.statistics()["size"].batches == 1


async def test_every_caller_gets_its_own_answer_among_a_thousand(joined: Any) -> None:
    async with joined(square, echo, fronts=3) as (_, fronts):

        async def caller(number: int) -> None:
            app = fronts[number % 3].app
            assert (await app.call("square", np.full(number % 3, number))).tolist() == [number**2] * (number % 3)
            assert await app.call("echo", {"n": number}) == {"n": number}

        await asyncio.gather(*map(caller, range(1000)))
        assert [front.link.under_way for front in fronts] == [0, 0, 0]


async def test_a_handler_sees_the_requests_id_and_headers_also_such_as_are_no_text(joined: Any) -> None:
    @serve
    def who(x: int) -> tuple[str, dict[str, str]]:
        (item,) = current_batch().items
        return item.request_id, dict(item.headers)

    async with joined(who) as (_, (front,)):
        headers = {"x-tenant": "blue", "x-odd": "\udcff"}
        found = await front.app.answer("who", 1, info=RequestInfo("from-me/7", headers))
        assert found.value == ("from-me/7", headers)
        odd = await front.app.answer("who", 1, info=RequestInfo("\udcff", {}))
        assert odd.value == ("?", {})


# ---------------------------------------------------------------------- large values


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("worker", ["thread", "process"])
async def test_large_values_are_the_same_with_and_without_memory_in_common(
    shares: bool, worker: str, joined: Any, until: Any
) -> None:
    picture = np.arange(10 * LARGE, dtype=np.int64).reshape(10, -1)
    async with joined(large_square, large_echo, fronts=2, shares=shares, worker=worker) as (_, fronts):
        for front in fronts:
            assert (front.channel.outbox is not None) == shares

        async def caller(number: int) -> None:
            app = fronts[number % 2].app
            assert ((await app.call("large_square", picture + number)) == (picture + number) ** 2).all()
            value = {"bytes": bytes([number]) * LARGE, "array": picture + number}
            again = await app.call("large_echo", value)
            assert again["bytes"] == value["bytes"]
            assert (again["array"] == value["array"]).all()
            assert await app.call("large_echo", bytes([number]) * LARGE) == bytes([number]) * LARGE

        await asyncio.gather(*map(caller, range(20)))
        if shares:
            await until(lambda: not any(one.outbox.used for front in fronts for one in both_ends(front)))


def both_ends(front: Any) -> tuple[Any, Any]:
    return front.channel, front.link.channel


@serve(max_batch_size=4)
def large_square(x: np.ndarray) -> np.ndarray:
    return x**2


@serve
def large_echo(x: Any) -> Any:
    return x


async def test_the_hub_makes_no_copy_of_a_large_array(joined: Any, held: Any, until: Any) -> None:
    one = held()
    async with joined(one.handler) as (_, (front,)):
        call = asyncio.ensure_future(front.app.call("held", np.zeros(LARGE, np.uint8)))
        await one.has_begun()
        (value,) = one.ran
        assert value.flags.writeable
        # What the front end writes where it lies is seen by the function.
        front.channel.outbox._arena.segment.view(0, 1)[:] = b"a"
        assert value[0] == ord("a")
        one.ran.clear()
        del value
        one.go.set()
        assert (await call)[0] == ord("a")
        await until(lambda: front.channel.outbox.used == 0)


async def test_what_a_function_keeps_stays_as_it_is_and_its_block_is_not_used_again(joined: Any, until: Any) -> None:
    kept: list[np.ndarray] = []

    @serve
    def keep(x: np.ndarray) -> int:
        if x[0] < 5:
            kept.append(x[:10])
        return int(x[0])

    async with joined(keep) as (_, (front,)):
        for number in range(50):
            assert await front.app.call("keep", np.full(LARGE, number, np.uint8)) == number
        await until(lambda: front.channel.outbox.used == 5 * LARGE)
        assert [set(one.tolist()) for one in kept] == [{n} for n in range(5)]
        kept.clear()
        await until(lambda: front.channel.outbox.used == 0)


async def test_what_is_run_again_has_its_values_still(joined: Any, until: Any) -> None:
    @serve(max_batch_size=8, batch_timeout=10)
    def picky(x: np.ndarray) -> np.ndarray:
        if (x[:, 0] == 3).any():
            raise ValueError("not three")
        return x[:, 0]

    async with joined(picky) as (_, (front,)):
        calls = (front.app.call("picky", np.full(LARGE, n, np.uint8)) for n in range(8))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(answers.pop(3), HandlerError)
        assert answers == [0, 1, 2, 4, 5, 6, 7]
        gc.collect()  # an exception and the frames that it went through hold each other
        await until(lambda: front.channel.outbox.used == 0)


async def test_a_stream_holds_neither_its_input_nor_what_nobody_reads(joined: Any, until: Any) -> None:
    @serve
    def pieces(file: bytes) -> Iterator[np.ndarray]:
        for number in range(1000):
            yield np.full(4 * LARGE, number % 100, np.uint8)

    async with joined(pieces) as (_, (front,)):
        async with front.app.stream("pieces", b"x" * LARGE) as stream:
            for number in range(20):
                assert set(await anext(stream)) == {number}
            await until(lambda: front.channel.outbox.used == 0)
            # What is on its way is within the stream's window.
            assert 0 < front.link.channel.outbox.used < 60 * LARGE
        await until(lambda: not any(one.outbox.used for one in both_ends(front)))


async def test_who_hangs_up_gives_back_what_was_written_for_him(joined: Any, held: Any, until: Any) -> None:
    one = held()
    async with joined(one.handler) as (_, (front,)):
        outbox = front.channel.outbox
        first = asyncio.ensure_future(front.app.call("held", 1))
        await one.has_begun()
        queued = asyncio.ensure_future(front.app.call("held", np.ones(LARGE)))
        await until(lambda: front.link.under_way == 2)
        front.channel.pause_writing()
        unsent = asyncio.ensure_future(front.app.call("held", np.ones(LARGE)))
        await until(lambda: outbox.used == 16 * LARGE)
        unsent.cancel()
        await until(lambda: outbox.used == 8 * LARGE)
        front.channel.resume_writing()
        queued.cancel()
        await until(lambda: outbox.used == 0)
        one.go.set()
        assert await first == 1


async def test_an_answer_that_nobody_waits_for_is_given_back(joined: Any, held: Any, until: Any) -> None:
    one = held()
    async with joined(one.handler) as (_, (front,)):
        call = asyncio.ensure_future(front.app.call("held", np.ones(LARGE)))
        await one.has_begun()
        # It settles before the hub hears that its caller has gone.
        front.app._answers.pop(1)
        one.go.set()
        await until(lambda: front.link.under_way == 0)
        one.ran.clear()
        await until(lambda: not any(end.outbox.used for end in both_ends(front)))
        call.cancel()


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize("how", RAISED)
async def test_a_failure_is_of_the_same_class_and_says_the_same(how: str, joined: Any) -> None:
    async with joined(fail) as (app, (front,)):
        with pytest.raises(TidegateError) as here:
            await app.call("fail", how)
        with pytest.raises(TidegateError) as there:
            await front.app.call("fail", how)
        expected = TidegateError if how == "odd" else type(here.value)
        assert type(there.value) is expected
        for name in ("status", "code", "detail"):
            assert getattr(there.value, name) == getattr(here.value, name)
        for name in ("retry_after", "cost", "limit", "type_name", "text", "expected", "got"):
            assert getattr(there.value, name, None) == getattr(here.value, name, None)
        if isinstance(there.value, HandlerError):
            assert "raise RAISED[how]()" in there.value.traceback
        assert how != "memory" or type(there.value) is OutOfMemory


async def test_what_cannot_cross_fails_alone_and_is_named(joined: Any) -> None:
    @serve(max_batch_size=2, batch_timeout=10)
    def odd(x: list[int]) -> list[Any]:
        return [threading.Lock() if n else "fine" for n in x]

    async with joined(odd, echo) as (_, (front,)):
        calls = (front.app.call("odd", n) for n in (0, 1))
        fine, failed = await asyncio.gather(*calls, return_exceptions=True)
        assert fine == "fine"
        assert isinstance(failed, EncodeError)
        assert "lock" in str(failed)
        with pytest.raises(InvalidInput, match="lock"):
            await front.app.call("echo", threading.Lock())


async def test_an_input_that_cannot_be_made_again_in_the_hub_fails_alone(joined: Any) -> None:
    async with joined(echo) as (_, (front,)):
        waiting = asyncio.ensure_future(front.app.call("echo", 1))
        front.channel.send(Call(99, "echo", Value(3, b"no pickle")))
        assert await waiting == 1
        assert front.link.under_way == 0


async def test_cost_that_raises_is_the_callers_answer(joined: Any) -> None:
    def cost(x: int) -> float:
        return 1 / x

    @serve(max_batch_size=2, max_batch_cost=10, cost=cost)
    def costly(x: list[int]) -> list[int]:
        return x

    async with joined(costly) as (_, (front,)):
        with pytest.raises(HandlerError, match="division by zero"):
            await front.app.call("costly", 0)
        assert await front.app.call("costly", 1) == 1
        assert front.link.under_way == 0


async def test_what_is_asked_wrongly_is_said_as_an_app_says_it(joined: Any) -> None:
    async with joined(echo, chunks) as (_, (front,)):
        with pytest.raises(KeyError):
            await front.app.call("nobody", 1)
        with pytest.raises(TypeError, match="streams"):
            await front.app.call("chunks", 1)
        with pytest.raises(TypeError, match="one output"):
            front.app.stream("echo", 1)
        with pytest.raises(HandlerError, match="priority=9"):
            await front.app.call("echo", 1, priority=9)


@serve
def chunks(n: int) -> Iterator[int]:
    yield from range(n)


async def test_a_full_queue_refuses_and_a_job_waits_instead(joined: Any, held: Any, until: Any) -> None:
    one = held(max_queue_size=1)
    async with joined(one.handler) as (app, (front,)):
        first = asyncio.ensure_future(front.app.call("held", 1))
        await one.has_begun()
        second = asyncio.ensure_future(front.app.call("held", 2))
        await until(lambda: app.statistics()["held"].waiting == 1)
        with pytest.raises(Overloaded, match="max_queue_size=1"):
            await front.app.call("held", 3)
        patient = asyncio.ensure_future(front.app.patient_call("held", 4))
        one.go.set()
        assert [await first, await second, await patient] == [1, 2, 4]
        assert front.app.window("held") == app.window("held")


async def test_a_job_gets_a_streams_chunks_as_a_list(joined: Any) -> None:
    async with joined(chunks) as (_, (front,)):
        assert await front.app.patient_call("chunks", 3) == [0, 1, 2]


# ---------------------------------------------------------------------- what they know of each other


async def test_a_front_end_knows_of_the_hub_all_that_the_hub_knows(joined: Any) -> None:
    async def counted() -> DoorCounts:
        return DoorCounts({"square": {200: 3}})

    async with joined(square, echo) as (app, (front,)):
        app.counters.append(counted)
        await front.app.call("square", np.zeros(2))
        assert await front.app.overview() == await app.overview()
        assert front.app.status().keys() == app.status().keys()


async def test_a_question_that_has_no_answer_is_told_apart(joined: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> DoorCounts:
        raise RuntimeError("cannot count")

    async with joined(echo) as (app, (front,)):
        app.counters.append(broken)
        with pytest.raises(Unavailable, match="cannot count"):
            await front.app.overview()
        app.counters.clear()
        assert (await front.app.overview()).ready
        assert "overview" in caplog.text


async def test_news_reach_the_front_end_and_the_end_is_final(joined: Any, until: Any) -> None:
    async with joined(echo) as (_, (front,)):
        assert not front.app.ready
        front.link.channel.send(News(True, True, False))
        await until(lambda: front.app.ready)
        front.link.channel.send(News(False, True, True))
        await until(lambda: not front.app.ready)
        front.link.channel.send(News(True, True, False))
        await until(lambda: front.app.ready)
        assert front.app.draining


async def test_what_is_not_about_calls_is_passed_on(joined: Any, until: Any) -> None:
    async with joined(echo) as (_, (front,)):
        front.channel.send(Listening())
        await until(lambda: front.others == [Listening()])


async def test_the_number_of_an_answer_that_nobody_waits_for_does_no_harm(joined: Any) -> None:
    async with joined(echo) as (_, (front,)):
        front.channel.send(Call(99, "echo", Value(0, 1)))
        assert await front.app.call("echo", 2) == 2
        assert isinstance(front.channel, Channel)
        assert msgspec.to_builtins(front.others) == []
