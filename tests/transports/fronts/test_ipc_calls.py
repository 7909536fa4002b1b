"""Calls through a front end and the hub: the same as with one process, whatever happens to either."""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from tidegate import (
    BatchSizeMismatch,
    DeadlineExceeded,
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


# ---------------------------------------------------------------------- deadlines, order, cancellation


async def test_a_deadline_travels_as_the_time_left(joined: Any, held: Any) -> None:
    one = held()
    async with joined(one.handler) as (_, (front,)):
        first = asyncio.ensure_future(front.app.call("held", 1))
        await one.has_begun()
        with pytest.raises(DeadlineExceeded):
            await front.app.call("held", 2, timeout=0.02)
        one.go.set()
        assert await first == 1
        assert one.ran == [1]


async def test_the_handlers_own_deadline_holds_too(joined: Any, held: Any) -> None:
    one = held(timeout=0.05)
    async with joined(one.handler) as (_, (front,)):
        with pytest.raises(DeadlineExceeded):
            await front.app.call("held", 1)
        one.go.set()


@pytest.mark.parametrize(("timeout", "least"), [(None, 9.0), (5.0, 4.0)])
async def test_waiting_for_a_busy_hub_counts_against_the_deadline(
    timeout: float | None, least: float, joined: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    @serve(timeout=10)
    def same(x: int) -> int:
        return x

    async with joined(same) as (_, (front,)):
        sent: list[Any] = []
        send = front.channel.send

        def noted(message: Any) -> None:
            sent.append(message)
            send(message)

        monkeypatch.setattr(front.channel, "send", noted)
        front.channel.pause_writing()
        waiting = asyncio.ensure_future(front.app.call("same", 1, timeout=timeout))
        await asyncio.sleep(0.01)
        assert sent == []
        front.channel.resume_writing()
        assert await waiting == 1
        assert least < sent[0].timeout < (timeout or 10) - 0.001


async def test_the_first_in_order_is_the_first_to_run_wherever_it_came_from(joined: Any, held: Any, until: Any) -> None:
    one = held()
    async with joined(one.handler, fronts=2) as (app, fronts):
        calls = [asyncio.ensure_future(fronts[0].app.call("held", "first"))]
        await one.has_begun()
        for number, priority in enumerate((5, 1, 3, 0)):
            calls.append(asyncio.ensure_future(fronts[number % 2].app.call("held", priority, priority=priority)))
        await until(lambda: app.statistics()["held"].waiting == 4)
        one.go.set()
        await asyncio.gather(*calls)
        assert one.ran == ["first", 0, 1, 3, 5]


async def test_who_hangs_up_in_the_queue_never_runs(joined: Any, held: Any, until: Any) -> None:
    one = held()
    async with joined(one.handler) as (app, (front,)):
        calls = [asyncio.ensure_future(front.app.call("held", n)) for n in range(6)]
        await one.has_begun()
        await until(lambda: app.statistics()["held"].waiting == 5)
        for n in (2, 4):
            calls[n].cancel()
        await until(lambda: app.statistics()["held"].waiting == 3)
        one.go.set()
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert [n for n in done if isinstance(n, int)] == one.ran == [0, 1, 3, 5]
        assert front.link.under_way == 0


async def test_a_running_handler_learns_that_its_caller_has_gone(joined: Any, until: Any) -> None:
    seen: list[bool] = []

    @serve
    async def watch(x: int) -> None:
        (item,) = current_batch().items
        seen.append(False)
        while not item.cancelled:  # noqa: ASYNC110 - a handler has no event for it
            await asyncio.sleep(0.001)
        seen.append(True)

    async with joined(watch) as (_, (front,)):
        call = asyncio.ensure_future(front.app.call("watch", 1))
        await until(lambda: bool(seen))
        call.cancel()
        await until(lambda: seen == [False, True])


async def test_a_job_that_is_cancelled_leaves_nothing_behind(joined: Any, held: Any, until: Any) -> None:
    one = held(max_queue_size=1)
    async with joined(one.handler) as (_, (front,)):
        jobs = [asyncio.ensure_future(front.app.patient_call("held", n)) for n in range(4)]
        await one.has_begun()
        for job in jobs[1:]:
            job.cancel()
        await until(lambda: front.link.under_way == 1)
        one.go.set()
        assert await jobs[0] == 0
        assert one.ran == [0]


# ---------------------------------------------------------------------- deaths


async def test_nothing_that_a_dead_front_end_left_in_the_queue_runs(joined: Any, held: Any, until: Any) -> None:
    one = held()
    async with joined(one.handler, fronts=2) as (app, (dead, alive)):
        calls = [asyncio.ensure_future(dead.app.call("held", f"dead {n}")) for n in range(5)]
        await one.has_begun()
        others = [asyncio.ensure_future(alive.app.call("held", f"alive {n}")) for n in range(5)]
        jobs = [asyncio.ensure_future(dead.app.patient_call("held", f"job {n}")) for n in range(5)]
        await until(lambda: app.statistics()["held"].waiting == 14)
        await dead.die()
        await until(lambda: app.statistics()["held"].waiting == 5)
        one.go.set()
        assert await asyncio.gather(*others) == one.ran[1:]
        assert one.ran[0] == "dead 0"
        assert dead.link.under_way == 0
        gone = await asyncio.gather(*calls, *jobs, return_exceptions=True)
        assert {type(error) for error in gone} == {Unavailable}


async def test_without_a_hub_everybody_is_told_and_nobody_hangs(joined: Any, held: Any) -> None:
    one = held()
    async with joined(one.handler, chunks) as (_, (front,)):
        call = asyncio.ensure_future(front.app.call("held", 1))
        await one.has_begun()
        front.link.channel.abort()
        with pytest.raises(Unavailable):
            await call
        one.go.set()
        with pytest.raises(Unavailable):
            await front.app.call("held", 2)
        with pytest.raises(Unavailable):
            await anext(front.app.stream("chunks", 2))
        assert (front.app.ready, front.app.alive) == (False, False)


async def test_callers_come_and_go_at_random_and_nothing_is_left_behind(joined: Any) -> None:
    @serve(max_batch_size=4)
    async def slow(x: list[int]) -> list[int]:
        await asyncio.sleep(0.001)
        return [-n for n in x]

    ends: Counter[str] = Counter()
    rng = random.Random(3)
    async with joined(slow, chunks, fronts=3) as (app, fronts):

        async def caller(front: Any, number: int) -> None:
            try:
                async with asyncio.timeout(rng.choice([0.002, 0.02, 20])):
                    if number % 3:
                        assert await front.app.call("slow", number, timeout=rng.choice([0.01, 20])) == -number
                    else:
                        async with front.app.stream("chunks", 40) as stream:
                            async for chunk in stream:
                                if chunk == number % 70:
                                    break
                ends["ok"] += 1
            except (TimeoutError, TidegateError) as error:
                ends[type(error).__name__] += 1

        callers = [asyncio.ensure_future(caller(fronts[n % 3], n)) for n in range(600)]
        await asyncio.sleep(0.05)
        await fronts[2].die()
        await asyncio.gather(*callers)
        assert ends.total() == 600
        assert ends["ok"] > 50
        # Their last words may still be on the way.
        for _ in range(1000):
            if not any(front.link.under_way for front in fronts):
                break
            await asyncio.sleep(0.001)
        assert [front.link.under_way for front in fronts] == [0, 0, 0]
        for found in app.statistics().values():
            assert found.waiting == 0
            assert found.submitted == sum(found.outcomes.values())


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
