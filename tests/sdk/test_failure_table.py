"""The rows of the design's table "Failure, gracefully"; bodies are the codec's.

What only a process can suffer is at the end; `workers/test_process.py` has more of it.
"""

import asyncio
import os
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import pytest
import torch

from tidegate import (
    App,
    BatchSizeMismatch,
    Closed,
    DeadlineExceeded,
    Handler,
    HandlerError,
    HTTPError,
    InvalidInput,
    LocalClient,
    OutOfMemory,
    Overloaded,
    TidegateError,
    TooCostly,
    serve,
)
from tidegate_batching import scheduler

pytestmark = pytest.mark.anyio

SIZE = 64


class Calls:
    """A batched handler that counts its calls and, for a batch with `bad` in it, does what `fails` does."""

    def __init__(self, fails: Any = None, *, bad: frozenset[int] = frozenset(), **options: Any) -> None:
        self.batches: list[list[int]] = []
        self.bad = bad
        self.fails = fails
        # Full batches: a test knows who runs with whom.
        timing: dict[str, Any] = {"max_batch_size": SIZE, "batch_timeout": 5.0}

        def function(x: list[int]) -> list[Any]:
            self.batches.append(list(x))
            if self.bad.intersection(x):
                self.fails()
            return [10 * n for n in x]

        self.handler: Handler[..., Any] = serve(name="f", **{**timing, **options})(function)

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]


def echo(x: Any) -> Any:
    return x


def answers(handler: Handler[..., Any] | type, values: Any = range(SIZE)) -> list[Any]:
    """What callers that ask at the same time get: a value or an error each."""
    with LocalClient(handler) as client:
        return list(client.map(values, return_exceptions=True))


def raising(error: BaseException) -> Any:
    def fails() -> None:
        raise error

    return fails


class Held:
    """An unbatched handler that says when it has begun and does not finish before it is let go."""

    def __init__(self, **options: Any) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

        def held(x: Any) -> Any:
            self.begun.set()
            assert self.go.wait(10)
            return x

        self.handler: Handler[..., Any] = serve(name="f", **options)(held)

    async def has_begun(self) -> None:
        assert await anyio.to_thread.run_sync(self.begun.wait, 10)


# ---------------------------------------------------------------------- validation, decode_request


@pytest.mark.parametrize("overlap", [True, False])
def test_what_decode_request_refuses_is_invalid_input_for_that_item_alone(overlap: bool) -> None:
    calls = Calls(decode_request=int, overlap=overlap)
    outputs = answers(calls.handler, ["1", "x", *range(2, SIZE)])
    error = outputs.pop(1)
    assert isinstance(error, InvalidInput)
    assert error.status == 422
    assert error.detail == "ValueError: invalid literal for int() with base 10: 'x'"
    assert outputs == [10, *range(20, 10 * SIZE, 10)]
    assert calls.sizes == [SIZE - 1]


@pytest.mark.parametrize("error", [HTTPError(413, "too long"), InvalidInput("no text"), Overloaded("not now")])
def test_a_verdict_of_decode_request_keeps_its_status_and_detail(error: TidegateError) -> None:
    def decode(body: int) -> int:
        if body == 3:
            raise error
        return body

    outputs = answers(Calls(decode_request=decode).handler)
    assert outputs.pop(3) is error
    assert len(outputs) == SIZE - 1


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_an_exception_that_cannot_even_be_shown_fails_its_item_alone() -> None:
    def decode(body: int) -> int:
        if body == 3:
            raise Unspeakable
        return body

    outputs = answers(Calls(decode_request=decode).handler)
    assert isinstance(outputs.pop(3), InvalidInput)
    assert outputs == [10 * n for n in range(SIZE) if n != 3]
    poisoned = Calls(raising(Unspeakable()), bad=frozenset({3}))
    outputs = answers(poisoned.handler)
    assert isinstance(outputs.pop(3), HandlerError)
    assert outputs == [10 * n for n in range(SIZE) if n != 3]


def test_an_input_that_costs_more_than_a_whole_batch_is_refused() -> None:
    calls = Calls(max_batch_cost=100, cost=float, batch_timeout=0)
    outputs = answers(calls.handler, [1, 101, 2])
    assert (outputs[0], outputs[2]) == (10, 20)
    assert isinstance(outputs[1], TooCostly)
    assert all(101 not in batch for batch in calls.batches)


# ---------------------------------------------------------------------- the function raises


@pytest.fixture
def halving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether to halve or to run one by one is decided by what was measured; a count of calls must not be."""
    monkeypatch.setattr(scheduler, "singles_are_cheaper", lambda size, predict: False)


@pytest.mark.usefixtures("halving")
@pytest.mark.parametrize("culprit", [0, 1, 31, 32, 62, 63])
def test_one_poisoned_item_of_64_gets_its_error_and_63_their_values_in_13_calls(culprit: int) -> None:
    poisoned = Calls(raising(ValueError("poison")), bad=frozenset({culprit}))
    outputs = answers(poisoned.handler)
    error = outputs.pop(culprit)
    assert isinstance(error, HandlerError)
    assert (error.type_name, error.text, error.status) == ("ValueError", "poison", 500)
    assert isinstance(error.__cause__, ValueError)
    assert outputs == [10 * n for n in range(SIZE) if n != culprit]
    assert len(poisoned.batches) <= 13
    assert poisoned.sizes[0] == SIZE


@pytest.mark.usefixtures("halving")
@pytest.mark.parametrize("place", ["batch", "unbatch"])
def test_a_batch_hook_that_raises_is_treated_as_the_function_is(place: str) -> None:
    calls = 0

    def fragile(x: list[int]) -> list[int]:
        nonlocal calls
        calls += 1
        if 5 in x:
            raise KeyError("five")
        return x

    hooks: dict[str, Any] = {place: fragile}
    handler: Handler[..., Any] = serve(name="f", max_batch_size=SIZE, batch_timeout=5.0, **hooks)(echo)
    outputs = answers(handler)
    assert isinstance(outputs.pop(5), HandlerError)
    assert outputs == [n for n in range(SIZE) if n != 5]
    assert calls <= 13


@pytest.mark.parametrize("bad", [{0, 1}, {0, 62}, {3, 17, 40}, set(range(0, 64, 2))])
def test_however_many_are_poisoned_no_innocent_fails_and_the_calls_are_bounded(bad: set[int]) -> None:
    poisoned = Calls(raising(ValueError("poison")), bad=frozenset(bad))
    outputs = answers(poisoned.handler)
    for n, output in enumerate(outputs):
        assert isinstance(output, HandlerError) if n in bad else output == 10 * n
    assert len(poisoned.batches) <= 2 * SIZE + 1


def test_a_systemic_failure_is_told_to_all_after_five_calls() -> None:
    broken = Calls(raising(FileNotFoundError("no weights")), bad=frozenset(range(SIZE)))
    outputs = answers(broken.handler)
    assert {(type(output), output.type_name) for output in outputs} == {(HandlerError, "FileNotFoundError")}
    assert broken.sizes == [64, 32, 32, 1, 1]


def test_two_culprits_look_systemic_where_both_are_the_ones_that_are_asked_alone() -> None:
    # The price of five calls: nobody can tell these two from a broken model.
    poisoned = Calls(raising(ValueError("poison")), bad=frozenset({0, 63}))
    assert {type(output) for output in answers(poisoned.handler)} == {HandlerError}
    assert poisoned.sizes == [64, 32, 32, 1, 1]


def test_one_item_alone_is_not_run_twice() -> None:
    poisoned = Calls(raising(ValueError("poison")), bad=frozenset({7}), batch_timeout=0)
    (error,) = answers(poisoned.handler, [7])
    assert isinstance(error, HandlerError)
    assert poisoned.batches == [[7]]


def test_without_isolation_nothing_runs_twice_and_the_whole_batch_gets_the_error() -> None:
    poisoned = Calls(raising(ValueError("poison")), bad=frozenset({7}), isolate_errors=False)
    outputs = answers(poisoned.handler, range(2 * SIZE))
    assert all(isinstance(output, HandlerError) for output in outputs[:SIZE])
    assert outputs[SIZE:] == [10 * n for n in range(SIZE, 2 * SIZE)]
    assert poisoned.sizes == [SIZE, SIZE]


def test_an_exception_instance_in_an_items_place_fails_it_alone_in_one_call() -> None:
    calls: list[int] = []
    odd = ValueError("odd")

    @serve(max_batch_size=SIZE, batch_timeout=5.0)
    def even(x: list[int]) -> list[Any]:
        calls.append(len(x))
        return [odd if n == 3 else HTTPError(404, "no five") if n == 5 else n for n in x]

    outputs = answers(even)
    assert isinstance(outputs[3], HandlerError)
    assert outputs[3].__cause__ is odd
    assert isinstance(outputs[5], HTTPError)
    assert [output for n, output in enumerate(outputs) if n not in (3, 5)] == [
        n for n in range(SIZE) if n not in (3, 5)
    ]
    assert calls == [SIZE]


def test_an_encode_response_that_raises_fails_its_item_alone() -> None:
    calls = Calls(encode_response=lambda output: 1 / output)
    outputs = answers(calls.handler)
    assert isinstance(outputs[0], HandlerError)
    assert outputs[1:] == [1 / (10 * n) for n in range(1, SIZE)]
    assert calls.sizes == [SIZE]


class HTTPException(Exception):
    """What FastAPI, Starlette and LitServe raise."""

    def __init__(self, status_code: Any, detail: Any) -> None:
        super().__init__()
        self.status_code = status_code
        self.detail = detail


@pytest.mark.parametrize(
    "error", [HTTPError(404, "no such speaker"), HTTPException(404, "no such speaker")], ids=["ours", "foreign"]
)
@pytest.mark.parametrize("place", ["decode_request", "function", "in place", "encode_response"])
def test_a_verdict_of_the_handlers_keeps_its_status_and_detail_wherever_it_is_spoken(
    error: Exception, place: str
) -> None:
    def at(name: str) -> Any:
        def hook(x: Any) -> Any:
            if name == place and (x == 3 or (isinstance(x, list) and 3 in x)):
                raise error
            return x

        return hook

    def function(x: list[int]) -> list[Any]:
        return [error if place == "in place" and n == 3 else n for n in at("function")(x)]

    hooks: Any = {name: at(name) for name in ("decode_request", "encode_response")}
    handler: Handler[..., Any] = serve(max_batch_size=8, batch_timeout=5.0, **hooks)(function)
    outputs = answers(handler, range(8))
    refusal = outputs.pop(3)
    assert isinstance(refusal, HTTPError)
    assert (refusal.status, refusal.detail) == (404, "no such speaker")
    assert refusal is error or refusal.__cause__ is error
    assert outputs == [0, 1, 2, 4, 5, 6, 7]


@pytest.mark.parametrize("error", [HTTPException("404", "x"), HTTPException(200, "x"), HTTPException(404, None)])
def test_what_only_looks_like_a_verdict_is_an_internal_error(error: Exception) -> None:
    (output,) = answers(Calls(raising(error), bad=frozenset({1}), batch_timeout=0).handler, [1])
    assert isinstance(output, HandlerError)
    assert output.status == 500


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), StopIteration(1)])
def test_even_what_would_end_a_program_fails_its_item_alone(error: BaseException) -> None:
    poisoned = Calls(raising(error), bad=frozenset({7}))
    outputs = answers(poisoned.handler)
    assert isinstance(outputs.pop(7), HandlerError)
    assert outputs == [10 * n for n in range(SIZE) if n != 7]


def test_one_error_raised_for_many_callers_does_not_grow_its_traceback() -> None:
    error = HTTPError(503, "the upstream is down")
    outputs = answers(Calls(raising(error), bad=frozenset(range(SIZE))).handler)
    assert all(output is error for output in outputs)
    depth, frame = 0, error.__traceback__
    while frame is not None:
        depth, frame = depth + 1, frame.tb_next
    assert depth < 20


# ---------------------------------------------------------------------- outputs


@pytest.mark.parametrize("outputs", [lambda x: x[:-1], lambda x: [*x, 0], lambda x: []], ids=["fewer", "more", "none"])
def test_a_wrong_number_of_outputs_is_never_guessed_at(outputs: Any) -> None:
    calls: list[int] = []

    @serve(max_batch_size=SIZE, batch_timeout=5.0)
    def wrong(x: list[int]) -> list[int]:
        calls.append(len(x))
        return outputs(x)  # type: ignore[no-any-return]

    results = answers(wrong)
    assert {type(result) for result in results} == {BatchSizeMismatch}
    assert results[0].code == "batch-size-mismatch"
    assert calls == [64, 32, 32, 1, 1]


@pytest.mark.parametrize("output", [None, 5, "text", 0.5, {1, 2}])
def test_an_output_that_cannot_be_split_names_its_type(output: Any) -> None:
    def function(x: list[int]) -> Any:
        return output

    handler: Handler[..., Any] = serve(max_batch_size=4)(function)
    (error,) = answers(handler, [1])
    assert isinstance(error, HandlerError)
    assert f"of type {type(output).__name__}" in str(error)


# ---------------------------------------------------------------------- memory


class OutOfMemoryError(RuntimeError):
    """Named as torch's, whose module is torch's."""


OutOfMemoryError.__module__ = "torch"

SHORTAGES = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    OutOfMemoryError("Allocation on device"),
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: you tried"),
]


@pytest.mark.parametrize("shortage", SHORTAGES, ids=repr)
def test_a_batch_that_does_not_fit_is_run_again_in_smaller_ones_and_all_get_their_values(shortage: Exception) -> None:
    sizes: list[int] = []

    @serve(max_batch_size=SIZE, batch_timeout=0.02)
    def sixteen_fit(x: list[int]) -> list[int]:
        sizes.append(len(x))
        if len(x) > 16:
            raise shortage
        return x

    with LocalClient(sixteen_fit) as client:
        assert list(client.map(range(256))) == list(range(256))
        failed = sum(size > 16 for size in sizes)
        assert 1 <= failed <= 8
        # It has been learned, for now.
        assert list(client.map(range(64))) == list(range(64))
    assert sum(size > 16 for size in sizes) <= failed + 2


@pytest.mark.parametrize("shortage", SHORTAGES, ids=repr)
def test_one_item_that_does_not_fit_is_told_so_and_the_others_get_their_values(shortage: Exception) -> None:
    @serve(max_batch_size=SIZE, batch_timeout=0.02)
    def hungry(x: list[int]) -> list[int]:
        if 7 in x:
            raise shortage
        return x

    outputs = answers(hungry)
    error = outputs.pop(7)
    assert isinstance(error, OutOfMemory)
    assert (error.code, error.status) == ("out-of-memory", 500)
    assert outputs == [n for n in range(SIZE) if n != 7]


def test_without_isolation_a_batch_that_does_not_fit_is_not_run_again() -> None:
    calls = Calls(raising(MemoryError()), bad=frozenset({7}), isolate_errors=False)
    outputs = answers(calls.handler)
    assert {type(output) for output in outputs} == {OutOfMemory}
    assert calls.sizes == [SIZE]


def test_another_runtime_error_is_no_shortage_of_memory() -> None:
    (error,) = answers(Calls(raising(RuntimeError("shapes differ")), bad=frozenset({1}), batch_timeout=0).handler, [1])
    assert isinstance(error, HandlerError)


# ---------------------------------------------------------------------- batches that hold several shapes


def shaped(body: int) -> np.ndarray:
    """Of three shapes, so that one batch is run in three parts."""
    return np.full(1 + body % 3, body)


@pytest.mark.parametrize("isolate", [True, False])
def test_a_part_that_fails_does_not_fail_the_other_shapes(isolate: bool) -> None:
    seen: Counter[int] = Counter()

    @serve(max_batch_size=6, batch_timeout=5.0, decode_request=shaped, isolate_errors=isolate)
    def first(x: np.ndarray) -> list[int]:
        seen[x.shape[1]] += 1
        if 4 in x:
            raise ValueError("four")
        return [int(row[0]) for row in x]

    outputs = answers(first, range(6))
    failed = {n for n, output in enumerate(outputs) if isinstance(output, HandlerError)}
    # 1 and 4 have one shape.
    assert failed == ({4} if isolate else {1, 4})
    assert [output for n, output in enumerate(outputs) if n not in failed] == [n for n in range(6) if n not in failed]
    if not isolate:
        assert seen == {1: 1, 2: 1, 3: 1}


def test_a_lone_item_of_its_shape_that_fails_does_not_make_the_batch_run_again() -> None:
    shapes: list[int] = []

    @serve(max_batch_size=3, batch_timeout=5.0, decode_request=shaped)
    def first(x: np.ndarray) -> list[int]:
        shapes.append(x.shape[1])
        if 1 in x:
            raise ValueError("one")
        return [int(row[0]) for row in x]

    outputs = answers(first, range(3))
    assert isinstance(outputs[1], HandlerError)
    assert (outputs[0], outputs[2]) == (0, 2)
    assert sorted(shapes) == [1, 2, 3]


def test_a_group_of_the_users_own_that_mixes_shapes_is_run_shape_by_shape() -> None:
    @serve(max_batch_size=6, batch_timeout=5.0, group_by=lambda value: "all")
    def total(x: np.ndarray) -> np.ndarray:
        return x.sum(1)  # type: ignore[no-any-return]

    outputs = answers(total, [shaped(n) for n in range(6)])
    assert outputs == [n * (1 + n % 3) for n in range(6)]


# ---------------------------------------------------------------------- refusals


async def test_a_full_queue_refuses_at_once_with_when_to_come_again() -> None:
    held = Held(max_queue_size=1)
    async with App(held.handler) as app:
        running = asyncio.ensure_future(app.call("f", 1))
        await held.has_begun()
        waiting = asyncio.ensure_future(app.call("f", 2))
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(Overloaded, match="max_queue_size=1") as caught:
            await app.call("f", 3)
        assert (caught.value.status, caught.value.code) == (429, "overloaded")
        assert caught.value.retry_after > 0
        held.go.set()
        assert [await running, await waiting] == [1, 2]


async def test_a_queue_that_is_full_of_bytes_refuses_too() -> None:
    held = Held(max_queue_bytes=100)
    async with App(held.handler) as app:
        running = asyncio.ensure_future(app.call("f", b"x" * 80))
        await held.has_begun()
        waiting = asyncio.ensure_future(app.call("f", b"x" * 80))
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(Overloaded, match="max_queue_bytes=100"):
            await app.call("f", b"x" * 80)
        held.go.set()
        assert [await running, await waiting] == [b"x" * 80, b"x" * 80]


async def test_a_deadline_while_queued_is_told_and_the_item_does_not_run() -> None:
    held = Held()
    seen: list[Any] = []
    held_function = held.handler.function

    def noted(x: Any) -> Any:
        seen.append(x)
        return held_function(x)

    async with App(serve(name="f")(noted)) as app:
        running = asyncio.ensure_future(app.call("f", 1))
        await held.has_begun()
        with pytest.raises(DeadlineExceeded) as caught:
            await app.call("f", 2, timeout=0.02)
        assert caught.value.status == 504
        held.go.set()
        assert await running == 1
        assert await app.call("f", 3) == 3
    assert seen == [1, 3]


async def test_a_deadline_while_running_is_told_at_once_and_the_result_dropped() -> None:
    held = Held(timeout=0.02)
    async with App(held.handler) as app:
        with anyio.fail_after(10), pytest.raises(DeadlineExceeded):
            await app.call("f", 1)
        held.go.set()
        assert await app.call("f", 2, timeout=10) == 2
    assert dict(app.statistics()["f"].outcomes) == {"deadline-exceeded": 1, "ok": 1}


async def test_the_deadline_of_one_leaves_the_others_of_its_batch_alone() -> None:
    begun, go = threading.Event(), threading.Event()

    @serve(max_batch_size=2, batch_timeout=5.0)
    def held(x: list[int]) -> list[int]:
        begun.set()
        assert go.wait(10)
        return x

    async with App(held) as app:
        patient = asyncio.ensure_future(app.call("held", 1))
        with pytest.raises(DeadlineExceeded):
            await app.call("held", 2, timeout=0.2)
        assert begun.is_set()
        go.set()
        assert await patient == 1


async def test_while_it_drains_an_app_answers_what_is_in_and_refuses_what_comes() -> None:
    held, leave = Held(), asyncio.Event()
    app = App(held.handler)

    async def lifetime(opened: asyncio.Future[None]) -> None:
        async with app:
            opened.set_result(None)
            await leave.wait()

    opened = asyncio.get_running_loop().create_future()
    living = asyncio.ensure_future(lifetime(opened))
    await opened
    inside = [asyncio.ensure_future(app.call("f", n)) for n in range(3)]
    await held.has_begun()
    leave.set()
    await anyio.wait_all_tasks_blocked()
    with pytest.raises(Closed) as caught:
        await app.call("f", 3)
    assert (caught.value.status, caught.value.code) == (503, "closed")
    assert caught.value.retry_after > 0
    held.go.set()
    with anyio.fail_after(10):
        await living
        assert await asyncio.gather(*inside) == [0, 1, 2]


async def test_a_caller_that_leaves_takes_no_neighbour_along() -> None:
    begun, go = threading.Event(), threading.Event()

    @serve(max_batch_size=3, batch_timeout=5.0)
    def held(x: list[int]) -> list[int]:
        begun.set()
        assert go.wait(10)
        return [n + 1 for n in x]

    async with App(held) as app:
        calls = [asyncio.ensure_future(app.call("held", n)) for n in range(3)]
        assert await anyio.to_thread.run_sync(begun.wait, 10)
        calls[1].cancel()
        await asyncio.wait([calls[1]])
        go.set()
        assert [await calls[0], await calls[2]] == [1, 3]


# ---------------------------------------------------------------------- streams


def test_a_failure_after_the_first_chunk_never_ends_as_if_all_were_well() -> None:
    @serve
    def breaks(x: int) -> Iterator[int]:
        yield 1
        yield 2
        raise ConnectionError("upstream")

    chunks: list[int] = []
    with LocalClient(breaks) as client, pytest.raises(HandlerError, match="upstream"):
        for chunk in client.stream(1):
            chunks.append(chunk)  # noqa: PERF402 - what came before the error counts
    assert chunks == [1, 2]


async def test_a_streams_deadline_is_for_its_first_chunk() -> None:
    go_first, go_second = threading.Event(), threading.Event()

    @serve(timeout=0.05)
    def slow(x: int) -> Iterator[int]:
        assert go_first.wait(10)
        yield 1
        assert go_second.wait(10)
        yield 2

    async with App(slow) as app:
        with anyio.fail_after(10):
            late = app.stream("slow", 1)
            with pytest.raises(DeadlineExceeded):
                await anext(late)
            go_first.set()
            stream = app.stream("slow", 1, timeout=None)
            assert await anext(stream) == 1
            # Well beyond the deadline, of which the next call is the proof.
            late = app.stream("slow", 1)
            with pytest.raises(DeadlineExceeded):
                await anext(late)
            go_second.set()
            assert await anext(stream) == 2


# ---------------------------------------------------------------------- deaths


def exits(x: list[int]) -> list[int]:
    if 13 in x:
        os._exit(1)
    return [10 * n for n in x]


def stays(x: list[int]) -> list[int]:
    if 13 in x:
        threading.Event().wait()
    return [10 * n for n in x]


def poisons(x: list[int]) -> list[int]:
    if 13 in x:
        raise RuntimeError("CUDA error: device-side assert triggered")
    return [10 * n for n in x]


def gives_a_lock(x: list[int]) -> list[Any]:
    return [threading.Lock() if n == 13 else 10 * n for n in x]


@pytest.mark.parametrize(
    ("function", "code", "told"),
    [
        (exits, "worker-died", "exited with status 1"),
        (stays, "run-timeout", "max_run_time=1"),
        (poisons, "worker-died", "device-side assert"),
        (gives_a_lock, "unencodable-output", "_thread.lock"),
    ],
)
async def test_what_a_thread_would_not_survive_costs_its_culprit_only(function: Any, code: str, told: str) -> None:
    handler: Handler[..., Any] = serve(name="f", max_batch_size=16, batch_timeout=5.0, max_run_time=1)(function)
    async with App(handler, worker="process") as app:
        with anyio.fail_after(60):
            answers = await asyncio.gather(*(app.call("f", n) for n in range(16)), return_exceptions=True)
    culprit = answers.pop(13)
    assert isinstance(culprit, TidegateError)
    assert (culprit.code, culprit.status) == (code, 500)
    assert told in culprit.detail
    assert answers == [10 * n for n in range(16) if n != 13]
