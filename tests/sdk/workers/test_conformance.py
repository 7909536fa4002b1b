"""What workers of every kind do alike, seen from an app without doors."""

import asyncio
import math
import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest
import torch

from tidegate import (
    App,
    BatchSizeMismatch,
    DeadlineExceeded,
    EncodeError,
    HandlerError,
    HTTPError,
    InvalidInput,
    SetupFailed,
    SlowReader,
    serve,
)
from tidegate.context import RequestInfo
from tidegate.devices import DeviceManager
from tidegate.discovery import CPU
from tidegate.handler import is_handler

pytestmark = pytest.mark.anyio

KINDS = ["thread", "process"]


@pytest.fixture(scope="module", params=KINDS)
async def app(request: pytest.FixtureRequest, handlers: Any) -> AsyncIterator[App]:
    """Every handler of the module, on workers of one kind."""
    every = [value for name, value in vars(handlers).items() if is_handler(value) and name not in handlers.HARMED]
    async with App(*every, worker=request.param, devices=DeviceManager([CPU])) as app:
        yield app


def kind_of(app: App) -> str:
    return app.status()["one"].workers[0].kind


async def outcomes(app: App, name: str, values: Any) -> list[Any]:
    """What callers that ask at the same time get: a value or an error each."""
    with anyio.fail_after(30):
        return await asyncio.gather(*(app.call(name, value) for value in values), return_exceptions=True)


# ---------------------------------------------------------------------- values


def same(one: Any, other: Any) -> bool:
    """Equal, of the same types all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one.detach(), other.detach())
    if isinstance(one, np.ndarray):
        if one.dtype.hasobject:
            return one.shape == other.shape and same(one.tolist(), other.tolist())
        return bool(one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes())
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other)))


PLAIN: list[Any] = [
    0,
    -1,
    2**80,
    0.1,
    math.inf,
    math.nan,
    1j,
    True,
    None,
    "",
    "æøå \N{GRINNING FACE}",
    "\ud800",
    b"",
    b"\x00\xff" * 10,
    bytes(10_000_000),
    "x" * 100_000,
    [],
    {},
    (),
    {"a": [1, {"b": (None, b"c")}]},
    {1, 2},
    frozenset({3}),
    range(5),
    np.float32(0.1),
    np.int64(-7),
    np.datetime64("2024-01-01"),
]

ARRAYS: list[Any] = [
    *(np.arange(6).reshape(2, 3).astype(kind) for kind in "?bhilqBHILQefdgFD"),
    np.array(["a", "bcd"]),
    np.array([b"a", b"bcd"]),
    np.array(["2024-01-01", "NaT"], "datetime64[D]"),
    np.array([1, 2], "timedelta64[s]"),
    np.arange(3, dtype=">f4"),
    np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    np.array([1, "two", None], dtype=object),
    np.zeros(0),
    np.zeros((0, 3)),
    np.zeros((3, 0, 2), "i1"),
    np.array(5.0),
    np.arange(20)[::3],
    np.arange(20)[::-1],
    np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    np.broadcast_to(np.arange(3), (4, 3)),
    np.arange(1_250_000, dtype=float),
]

TENSORS: list[Any] = [
    *(torch.arange(6).reshape(2, 3).to(kind) for kind in (torch.float32, torch.float16, torch.int64, torch.uint8)),
    torch.arange(6).to(torch.bfloat16),
    torch.tensor([True, False]),
    torch.tensor([1 + 2j]),
    torch.zeros(0),
    torch.zeros((2, 0)),
    torch.tensor(3.0),
    torch.arange(20.0).reshape(4, 5).T,
    torch.ones(3, requires_grad=True),
    torch.ones(2_500_000),
]

STRUCTURES: list[Any] = [
    {"ids": np.arange(4), "mask": torch.ones(4, dtype=torch.bool)},
    (np.arange(4.0), np.zeros((2, 2), "f4")),
    {"image": np.zeros((100, 100, 3), "u1"), "size": (100, 100), "name": "a.png"},
    [np.zeros(3), [torch.zeros(2), "text"]],
]


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: repr(value)[:30])
async def test_a_plain_value_comes_back_as_it_went(app: App, value: Any) -> None:
    assert same(await app.call("one", value), value)


@pytest.mark.parametrize("value", ARRAYS, ids=lambda value: f"{value.dtype}{value.shape}")
async def test_an_array_comes_back_as_it_went(app: App, value: Any) -> None:
    assert same(await app.call("one", value), value)


@pytest.mark.parametrize("value", TENSORS, ids=lambda value: f"{value.dtype}{tuple(value.shape)}")
async def test_a_tensor_comes_back_as_it_went(app: App, value: Any) -> None:
    assert same(await app.call("one", value), value)


@pytest.mark.parametrize("value", STRUCTURES, ids=lambda value: repr(type(value)))
async def test_a_structure_of_arrays_comes_back_as_it_went(app: App, value: Any) -> None:
    assert same(await app.call("one", value), value)


async def test_values_of_the_users_own_classes_come_back_as_they_went(app: App, handlers: Any) -> None:
    for value in (
        handlers.Point(1, [2.0]),
        handlers.Label("cat", 0.5),
        handlers.Pair(1, np.arange(3)),
        {"boxes": [handlers.Point(1, []), handlers.Label("dog", 1.0)]},
    ):
        assert same(await app.call("one", value), value)


@pytest.mark.parametrize("value", [*ARRAYS[:-1], *TENSORS[:-1], *STRUCTURES[:3]], ids=lambda value: repr(value)[:30])
async def test_a_batch_of_equal_values_is_split_into_what_it_was_stacked_from(app: App, value: Any) -> None:
    alone = serve(max_batch_size=8, name="alone")(lambda x: x)
    async with App(alone, worker="thread", devices=DeviceManager([CPU])) as plain:
        (expected,) = await outcomes(plain, "alone", [value])
    for answer in await outcomes(app, "mirror", [value] * 8):
        if isinstance(expected, Exception):
            assert type(answer) is type(expected)
        else:
            assert same(answer, expected)


async def test_a_full_batch_of_large_arrays_comes_back_as_it_went(app: App) -> None:
    values = [np.full(1_250_000, n, "f8") for n in range(8)]
    answers = await outcomes(app, "mirror", values)
    assert all(map(same, answers, values))


async def test_values_of_different_kinds_each_come_back_as_they_went(app: App) -> None:
    values = [1, "two", 3.0, None, np.arange(3), np.arange(4), torch.ones(2), b"x", {"y": np.zeros(2)}, [np.ones(1)]]
    answers = await outcomes(app, "mirror", [value for value in values for _ in range(5)])
    assert all(map(same, answers, (value for value in values for _ in range(5))))


async def test_an_answer_stays_what_it_was_when_the_function_uses_its_memory_again(app: App) -> None:
    first = await app.call("reused", np.arange(4.0))
    second = await app.call("reused", np.full(4, 7.0))
    assert first.tolist() == [0, 2, 4, 6]
    assert second.tolist() == [14] * 4


@pytest.mark.parametrize("size", [4, 5000])
async def test_a_function_may_write_to_its_batch_and_the_callers_arrays_stay_as_they_were(app: App, size: int) -> None:
    values = [np.full(size, float(n)) for n in range(8)]
    answers = await outcomes(app, "modified", values)
    assert [answer[0] for answer in answers] == [n + 1 for n in range(8)]
    assert [value[0] for value in values] == list(range(8))


@pytest.mark.parametrize("value", [np.zeros(4), np.zeros(5000), torch.zeros(4), torch.zeros(5000), np.zeros(1000)[::2]])
async def test_a_function_of_one_item_may_write_to_it(app: App, value: Any) -> None:
    answer = await app.call("one", ["write", value.copy() if isinstance(value, np.ndarray) else value.clone()])
    assert answer.sum() == len(value)
    frozen = np.zeros(5000)
    frozen.flags.writeable = False
    if kind_of(app) == "process":
        assert (await app.call("one", ["write", frozen])).sum() == 5000


async def test_many_answers_that_are_kept_stay_as_they_were(app: App) -> None:
    rng = np.random.default_rng(0)
    values = [np.full(int(rng.integers(1, 20_000)), n, "f8") for n in range(200)]
    answers = await outcomes(app, "mirror", values)
    assert all(map(same, answers, values))


# ---------------------------------------------------------------------- values that cannot travel


async def test_an_output_that_cannot_be_sent_is_that_items_error_and_names_its_type(app: App) -> None:
    orders = [["unpicklable"] if n == 5 else n for n in range(16)]
    answers = await outcomes(app, "sixteen", orders)
    odd = answers.pop(5)
    assert answers == [n for n in range(16) if n != 5]
    if kind_of(app) == "thread":
        assert type(odd).__name__ == "Unpicklable"
    else:
        assert isinstance(odd, EncodeError)
        assert "worker_handlers.Unpicklable" in odd.detail
        assert "not for export" in odd.detail


async def test_an_input_that_cannot_be_sent_is_that_items_error_and_names_its_type(app: App, handlers: Any) -> None:
    values: list[Any] = [handlers.Unpicklable() if n == 5 else n for n in range(16)]
    answers = await outcomes(app, "sixteen", values)
    odd = answers.pop(5)
    assert answers == [n for n in range(16) if n != 5]
    if kind_of(app) == "thread":
        assert odd is values[5]
    else:
        assert isinstance(odd, InvalidInput)
        assert "worker_handlers.Unpicklable" in odd.detail


async def test_an_input_that_cannot_be_sent_is_not_given_to_a_decode_hook(app: App, handlers: Any) -> None:
    values = [{"text": "a"}, {"text": handlers.Unpicklable()}, {"text": "c"}, {"text": "d"}]
    answers = await outcomes(app, "hooked", values)
    odd = answers.pop(1)
    assert [answer["out"] for answer in answers] == ["a@cpu", "c@cpu", "d@cpu"]
    if kind_of(app) == "process":
        assert isinstance(odd, InvalidInput)
        assert "cannot send a value of type dict" in odd.detail


async def test_nesting_beyond_what_can_be_sent_is_that_items_error(app: App) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    answers = await outcomes(
        app, "sixteen", [deep if n == 5 else ["nested", 100_000] if n == 6 else n for n in range(16)]
    )
    deep_in, deep_out = answers[5:7]
    assert [*answers[:5], *answers[7:]] == [*range(5), *range(7, 16)]
    if kind_of(app) == "process":
        assert isinstance(deep_in, InvalidInput)
        assert isinstance(deep_out, EncodeError)
        assert "RecursionError" in deep_in.detail
    while deep:  # a chain so long cannot be freed at once either
        deep = deep.pop()


# ---------------------------------------------------------------------- hooks


async def test_hooks_and_setups_state_work_together_and_a_hooks_failure_is_its_items_alone(app: App) -> None:
    answers = await outcomes(app, "hooked", [{"text": "a"}, {"no": 1}, {"text": "bad"}, {"text": "d"}])
    assert [answers[0]["out"], answers[3]["out"]] == ["a@cpu", "d@cpu"]
    assert isinstance(answers[1], InvalidInput)
    assert answers[1].detail == "ValueError: no text"
    assert isinstance(answers[2], HandlerError)
    assert answers[2].type_name == "KeyError"


async def test_the_next_batch_is_decoded_while_the_function_runs(app: App, meeting: Any) -> None:
    # Only what has been timed is prepared ahead, and the first run of a model is not typical.
    for _ in range(3):
        await app.call("ahead", {})
    first = asyncio.ensure_future(app.call("ahead", {"run": meeting.port}))
    word, let_it_run = await meeting.arrival()
    assert word == "ran"
    second = asyncio.ensure_future(app.call("ahead", {"decode": meeting.port}))
    word, let_it_decode = await meeting.arrival()
    assert word == "decoded"
    assert not first.done()
    let_it_decode()
    let_it_run()
    assert [await first, await second] == [1, 1]


async def test_a_class_moves_over_with_its_hooks(app: App) -> None:
    answers = await outcomes(app, "Classifier", [{"n": n} for n in range(10)])
    assert answers == [{"label": ("cat", "dog")[n % 2], "device": "cpu"} for n in range(10)]


# ---------------------------------------------------------------------- errors


def at_five(order: Any) -> list[Any]:
    return [order if n == 5 else n for n in range(16)]


async def fifteen_right(app: App, name: str, order: Any) -> Any:
    answers = await outcomes(app, name, at_five(order))
    error = answers.pop(5)
    assert answers == [n for n in range(16) if n != 5]
    return error


@pytest.mark.parametrize("name", ["sixteen", "in_place"])
async def test_an_exception_of_the_users_is_the_culprits_alone_with_its_type_text_and_traceback(
    app: App, name: str
) -> None:
    error = await fifteen_right(app, name, ["fail", "ValueError", "no good"])
    assert isinstance(error, HandlerError)
    assert (error.type_name, error.text, error.status) == ("ValueError", "no good", 500)
    assert "in fail\n" in error.traceback
    assert (error.__cause__ is None) == (kind_of(app) == "process")


@pytest.mark.parametrize("name", ["sixteen", "in_place"])
@pytest.mark.parametrize("kind", ["HTTPError", "HTTPException"])
async def test_a_verdict_of_the_handlers_keeps_its_status_and_detail(app: App, name: str, kind: str) -> None:
    error = await fifteen_right(app, name, ["fail", kind, "no such speaker"])
    assert isinstance(error, HTTPError)
    assert (error.status, error.detail, error.code) == (404, "no such speaker", "handler-refused")


@pytest.mark.parametrize("kind", ["SystemExit", "KeyboardInterrupt", "UnpicklableError"])
async def test_whatever_is_raised_fails_its_item_alone_and_the_worker_lives_on(app: App, kind: str) -> None:
    worker = app.status()["sixteen"].workers[0]
    error = await fifteen_right(app, "sixteen", ["fail", kind, "no"])
    assert isinstance(error, HandlerError)
    assert error.type_name.endswith(kind)
    assert app.status()["sixteen"].workers[0] == worker


async def test_a_wrong_number_of_outputs_is_never_guessed_at(app: App) -> None:
    for error in await outcomes(app, "too_few", range(4)):
        assert isinstance(error, BatchSizeMismatch)


async def test_a_batch_that_does_not_fit_is_run_again_in_smaller_ones(app: App) -> None:
    answers = await outcomes(app, "four_fit", range(16))
    assert max(size for size, _ in answers) <= 4
    assert len({pid for _, pid in answers}) == 1


# ---------------------------------------------------------------------- what a function may know


async def test_a_function_knows_its_batch_its_callers_ids_headers_and_deadlines(app: App) -> None:
    infos = [
        RequestInfo("first", {"x-user": "ann"}),
        RequestInfo("second"),
        None,
        RequestInfo("fourth", {"x-user": "bob"}),
    ]
    timeouts = [5.0, None, 10.0, None]
    before = time.monotonic()
    with anyio.fail_after(20):
        answers = await asyncio.gather(
            *(app.answer("about", n, info=info, timeout=timeouts[n]) for n, info in enumerate(infos))
        )
    told = [answer.value for answer in answers]
    assert [row[:2] for row in told] == [["cpu", 4]] * 4
    assert [row[2] for row in told] == ["first", "second", "", "fourth"]
    assert [row[3] for row in told] == [{"x-user": "ann"}, {}, {}, {"x-user": "bob"}]
    for row, timeout in zip(told, (5.0, 30.0, 10.0, 30.0), strict=True):
        assert before + timeout <= row[4] <= time.monotonic() + timeout
        assert row[5] is False


async def test_a_running_function_sees_who_has_gone(app: App, meeting: Any) -> None:
    leaves, stays = [asyncio.ensure_future(app.call("watched", port)) for port in (meeting.port, 0)]
    _, go = await meeting.arrival()
    leaves.cancel()
    await anyio.lowlevel.checkpoint()
    go()
    with anyio.fail_after(20):
        assert await stays == [True, False]


async def test_a_running_function_sees_whose_deadline_has_passed(app: App, meeting: Any) -> None:
    stays = asyncio.ensure_future(app.call("watched", meeting.port))
    # Who has less time goes first, also within a batch.
    late = asyncio.ensure_future(app.call("watched", meeting.port, timeout=0.5))
    _, go = await meeting.arrival()
    with pytest.raises(DeadlineExceeded):
        await late
    go()
    with anyio.fail_after(20):
        assert await stays == [True, False]


# ---------------------------------------------------------------------- async functions


async def test_an_async_function_runs_as_many_batches_at_a_time_as_it_has_slots(app: App) -> None:
    # Each waits for two others.
    assert sorted(await outcomes(app, "three_at_once", range(9))) == list(range(9))


async def test_an_async_functions_errors_are_its_own(app: App) -> None:
    answers = await outcomes(
        app, "three_at_once", [["fail", "ValueError", "x"], ["return", 3], ["fail", "HTTPError", "y"]]
    )
    assert [type(answer) for answer in answers] == [HandlerError, int, HTTPError]


# ---------------------------------------------------------------------- streams


async def read(app: App, name: str, value: Any) -> tuple[list[Any], BaseException | None]:
    chunks: list[Any] = []
    try:
        with anyio.fail_after(30):
            async with app.stream(name, value) as stream:
                async for chunk in stream:
                    chunks.append(chunk)
    except Exception as error:  # noqa: BLE001 - looked at by the test
        return chunks, error
    return chunks, None


@pytest.mark.parametrize("name", ["count", "count_later"])
@pytest.mark.parametrize("length", [0, 1, 17, 1000])
async def test_each_yield_is_a_chunk(app: App, name: str, length: int) -> None:
    assert await read(app, name, {"length": length}) == (list(range(length)), None)


@pytest.mark.parametrize("chunk", [np.arange(100_000), torch.ones(5), b"x" * 100_000, {"a": np.zeros(3)}, None])
async def test_chunks_of_every_kind_come_as_they_were(app: App, chunk: Any) -> None:
    chunks, error = await read(app, "count", {"length": 40, "chunk": chunk})
    assert error is None
    assert len(chunks) == 40
    assert all(same(one, chunk) for one in chunks)


async def test_a_failure_after_some_chunks_ends_the_stream_with_its_error(app: App) -> None:
    chunks, error = await read(app, "count", {"length": 3, "then": ["fail", "ValueError", "later"]})
    assert chunks == [0, 1, 2]
    assert isinstance(error, HandlerError)
    assert error.text == "later"


async def test_rows_of_a_batched_stream_end_skip_and_fail_each_item_alone(app: App) -> None:
    a, b, c = await asyncio.gather(
        read(app, "rows", ["a0", "END", "late", "late"]),
        read(app, "rows", ["b0", "SKIP", ["fail", "ValueError", "odd"], "late"]),
        read(app, "rows", ["c0", "c1", "SKIP", np.arange(3)]),
    )
    assert a == (["a0"], None)
    assert b[0] == ["b0"]
    assert isinstance(b[1], HandlerError)
    assert b[1].text == "odd"
    assert same(c[0], ["c0", "c1", np.arange(3)])
    assert c[1] is None


async def test_a_chunk_that_cannot_be_sent_ends_its_item_alone(app: App) -> None:
    if kind_of(app) == "thread":
        return
    a, b, c = await asyncio.gather(*(read(app, "rows", row) for row in ([1, 2], [["unpicklable"], 2], [1, 2])))
    assert (a, c) == (([1, 2], None), ([1, 2], None))
    assert isinstance(b[1], EncodeError)


async def test_the_reader_of_one_item_that_leaves_does_not_disturb_its_neighbours(app: App) -> None:
    leaving, *staying = [app.stream("rows", [[n, step] for step in range(50)]) for n in range(3)]
    with anyio.fail_after(20):
        assert await anext(leaving) == [0, 0]
        await leaving.aclose()
        for n, stream in enumerate(staying, 1):
            assert [chunk async for chunk in stream] == [[n, step] for step in range(50)]


async def test_a_generator_ends_within_what_is_on_its_way_when_its_last_reader_has_gone(app: App, meeting: Any) -> None:
    streams = [app.stream("endless", meeting.port) for _ in range(2)]
    with anyio.fail_after(20):
        for stream in streams:
            assert await anext(stream) == 0
        for stream in streams:
            await stream.aclose()
        made, go = await meeting.arrival()
        go()
    # A reader has taken none of 256, and the function is at most 16 ahead.
    assert int(made) <= 256 + 16 + 2


@pytest.mark.parametrize("name", ["count", "count_later"])
async def test_a_generator_whose_reader_leaves_before_it_begins_ends_at_its_first_step(
    app: App, meeting: Any, name: str
) -> None:
    for _ in range(20):
        await app.stream(name, {"length": 10**9}).aclose()
        stream = app.stream(name, {"length": 10**9})
        await anyio.lowlevel.checkpoint()
        await stream.aclose()
    # The slot is free again.
    assert await read(app, name, {"length": 1}) == ([0], None)


async def test_an_unbatched_generator_pauses_for_its_reader_and_is_closed_when_that_leaves(
    app: App, meeting: Any, until: Any
) -> None:
    order = {"length": 10**9, "meet_at": 256, "port": meeting.port, "closed": meeting.port}
    stream = app.stream("count", order)
    _, go = await meeting.arrival()
    go()
    with anyio.fail_after(20):
        await until(lambda: stream.full)
        read_on = [await anext(stream) for _ in range(600)]
        assert read_on == list(range(600))
        await stream.aclose()
    word, go = await meeting.arrival()
    assert word == "closed"
    go()


async def test_patience_with_a_reader_that_does_not_come_back_ends(app: App, until: Any) -> None:
    stream = app.stream("count", {"length": 10**9}, info=RequestInfo(patience=0.05))
    with anyio.fail_after(20):
        await until(stream.done)
        with pytest.raises(SlowReader):
            async for _ in stream:
                pass


async def test_a_slow_reader_of_a_batch_is_ended_while_its_neighbours_go_on(app: App) -> None:
    slow, *quick = [app.stream("rows", [[n, step] for step in range(300)]) for n in range(3)]

    async def all_of(stream: Any) -> list[Any]:
        return [chunk async for chunk in stream]

    with anyio.fail_after(20):
        assert [len(chunks) for chunks in await asyncio.gather(*map(all_of, quick))] == [300, 300]
        with pytest.raises(SlowReader):
            await all_of(slow)


# ---------------------------------------------------------------------- all at once


async def test_every_handler_still_answers_and_no_worker_was_replaced(app: App) -> None:
    """Last: after all that was asked of them above."""
    assert await app.call("one", ["return", 7]) == 7
    assert app.ready
    assert app.alive
    assert Counter(status.restarts for status in app.status().values()).keys() == {0}
    assert (await app.call("one", ["pid"]) == os.getpid()) == (kind_of(app) == "thread")
    assert all(statistics.running == 0 for statistics in app.statistics().values())


# ---------------------------------------------------------------------- start and end


@pytest.mark.parametrize("kind", KINDS)
async def test_a_failing_setup_is_told_with_its_traceback(kind: Any) -> None:
    def load(device: str) -> None:
        raise FileNotFoundError("no weights")

    def never(state: None, x: int) -> int:
        return x

    handler = serve(name="f", setup=load)(never)
    with anyio.fail_after(30), pytest.raises(SetupFailed) as caught:
        async with App(handler, worker=kind, devices=DeviceManager([CPU])):
            raise AssertionError("must not start")
    assert str(caught.value) == "setup of handler 'f' failed: FileNotFoundError: no weights"
    assert "in load\n" in caught.value.traceback


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("warmup", "why"),
    [(2, "a batch of 4: ValueError: too many"), (lambda: 1 // 0, "the example: ZeroDivisionError: .* by zero")],
)
async def test_a_failing_warm_up_is_told_as_such_with_its_traceback(kind: Any, warmup: Any, why: str) -> None:
    def fits(x: list[int]) -> list[int]:
        if len(x) > 1:
            raise ValueError("too many")
        return x

    handler = serve(name="f", max_batch_size=4, warmup=warmup)(fits)
    with anyio.fail_after(30), pytest.raises(SetupFailed, match=f"^warm-up of handler 'f' failed: {why}$") as caught:
        async with App(handler, worker=kind, devices=DeviceManager([CPU])):
            raise AssertionError("must not start")
    assert "in fits\n" in caught.value.traceback or "in <lambda>\n" in caught.value.traceback


@pytest.mark.parametrize("kind", KINDS)
async def test_a_warm_up_example_is_written_as_a_caller_would(kind: Any) -> None:
    def total(x: np.ndarray) -> Any:
        return x.sum(axis=1)

    handler = serve(name="f", max_batch_size=4, warmup=[1.5, 2.0])(total)
    async with App(handler, worker=kind, devices=DeviceManager([CPU])) as app:
        assert await app.call("f", [1.5, 2.0]) == 3.5


@pytest.mark.parametrize("kind", KINDS)
async def test_setup_warm_up_and_teardown_come_in_order_and_each_once(kind: Any, meeting: Any) -> None:
    port = meeting.port

    def say(word: str) -> None:
        import socket

        with socket.create_connection(("127.0.0.1", port)) as there:
            there.sendall(word.encode() + b"\n")

    def load(device: str) -> str:
        say(f"setup {device}")
        return "state"

    def function(state: str, x: list[int]) -> list[int]:
        say(f"ran {x}")
        return x

    def leave(state: str) -> None:
        say(f"teardown {state}")

    handler = serve(name="f", max_batch_size=3, setup=load, teardown=leave, warmup=lambda: 7)(function)
    async with App(handler, worker=kind, devices=DeviceManager([CPU])) as app:
        assert [(await meeting.arrival())[0] for _ in range(3)] == ["setup cpu", "ran [7]", "ran [7, 7, 7]"]
        assert await app.call("f", 1) == 1
        assert (await meeting.arrival())[0] == "ran [1]"
    assert (await meeting.arrival())[0] == "teardown state"
    assert meeting._arrivals.empty()
