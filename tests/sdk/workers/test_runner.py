"""What the loop of a worker does wherever it runs; most of it is seen through its threads in `test_thread`."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import pytest

from tidegate import OutOfMemory, serve
from tidegate.execution import Execution, Work
from tidegate.handler import Handler
from tidegate.workers.runner import Runner, overlaps, threadsafe
from tidegate_batching import Batch


class Noted:
    """Notes what a runner reports; nobody listens any more when the test says so."""

    def __init__(self) -> None:
        self.notes: list[Any] = []
        self.rows_until = 10**9
        self.heard = True

    def ready(self, error: BaseException | None) -> bool:
        self.notes.append(("ready", error))
        return True

    def prepared(self, batch: Any) -> bool:
        self.notes.append("prepared")
        return True

    def row(self, batch: Any, row: Sequence[Any], release: Callable[[], object]) -> bool:
        self.notes.append(row)
        if self.heard:
            release()
        return len(self.notes) < self.rows_until

    def complete(self, batch: Any, result: Sequence[Any] | BaseException) -> bool:
        self.notes.append(result)
        return True

    def listening(self) -> bool:
        return self.heard


def ran(handler: Handler[..., Any], *batches: list[Any], events: Noted | None = None) -> list[Any]:
    """What a runner reports that gets these batches and is then told to stop."""
    events = events or Noted()
    runner = Runner(handler, Execution(handler, "cpu"), events)
    for values in batches:
        runner.begin(Batch.of(values))
    runner.begin(None)
    runner.main()
    return events.notes


def test_batches_that_came_before_setup_was_done_run_in_order_and_then_it_ends() -> None:
    double = serve(name="f", max_batch_size=4)(lambda x: [2 * n for n in x])
    assert ran(double, [1, 2], [3]) == [("ready", None), [2, 4], [6]]


def test_a_runner_can_take_its_batches_itself() -> None:
    waiting: list[Work | None] = [Batch.of([1]), Batch.of([2]), None]
    events = Noted()
    echo = serve(name="f")(lambda x: x)
    Runner(echo, Execution(echo, "cpu"), events, lambda: waiting.pop(0)).main()
    assert events.notes == [("ready", None), [1], [2]]


def test_after_a_setup_that_failed_nothing_runs_and_nothing_is_torn_down() -> None:
    error = SystemExit(3)

    def load(device: str) -> None:
        raise error

    def never(*arguments: Any) -> None:
        raise AssertionError

    handler = serve(name="f", setup=load, teardown=never)(lambda state, x: x)
    assert ran(handler, [1]) == [("ready", error)]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_lack_of_memory_is_reported_without_the_frames_that_hold_it(asynchronous: bool) -> None:
    def hungry(x: list[int]) -> list[int]:
        raise MemoryError("CUDA out of memory")

    async def hungry_later(x: list[int]) -> list[int]:
        return hungry(x)

    handler = serve(max_batch_size=2)(hungry_later if asynchronous else hungry)
    error = ran(handler, [1, 2])[1]
    assert isinstance(error, OutOfMemory)
    assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)


def test_hooks_see_an_output_as_it_was_though_the_function_has_used_its_memory_again() -> None:
    room, again = np.zeros((1, 2)), threading.Event()

    def reuse(x: np.ndarray) -> np.ndarray:
        if room.any():
            again.set()
        room[:] = x
        return room

    def encode(output: np.ndarray) -> list[float]:
        assert again.wait(10)
        return output.tolist()  # type: ignore[no-any-return]  # a list of one axis

    handler = serve(max_batch_size=1, encode_response=encode)(reuse)
    notes = ran(handler, [np.array([1.0, 2.0])], [np.array([3.0, 4.0])])
    assert [note for note in notes if isinstance(note, list)] == [[[1.0, 2.0]], [[3.0, 4.0]]]


def test_a_stream_ends_at_a_row_that_nobody_hears() -> None:
    closed = threading.Event()

    def chunks(x: int) -> Any:
        try:
            while True:
                yield x
        finally:
            closed.set()

    events = Noted()
    events.rows_until = 3
    assert ran(serve(chunks), [1], events=events) == [("ready", None), [1], [1], [None]]
    assert closed.is_set()


def test_a_stream_whose_steps_nobody_releases_ends_when_nobody_listens() -> None:
    def chunks(x: int) -> Any:
        while True:
            yield x

    events = Noted()
    events.heard = False
    notes = ran(serve(chunks), [1], events=events)
    assert notes[-1] == [None]
    assert notes.count([1]) == 16


@pytest.mark.parametrize(
    ("options", "streams", "expected"),
    [({}, False, False), ({"decode_request": int}, False, True), ({"decode_request": int}, True, False)],
)
def test_hooks_of_items_overlap_unless_the_handler_streams(options: Any, streams: bool, expected: bool) -> None:
    def stream(x: Any) -> Any:
        yield x

    def plain(x: Any) -> Any:
        return x

    function: Any = stream if streams else plain
    assert overlaps(serve(name="f", **options)(function)) is expected


def test_a_call_into_a_loop_that_has_gone_says_so() -> None:
    loop = asyncio.new_event_loop()
    call = threadsafe(loop, lambda: None)
    assert call() is True
    loop.close()
    assert call() is False


def test_what_a_thread_calls_in_the_loop_runs_outside_of_its_batch() -> None:
    # A timer that is set there would keep the batch, and all that it holds.
    batch: ContextVar[str] = ContextVar("batch", default="none")
    seen: list[str] = []

    async def main() -> None:
        called = asyncio.Event()

        def callback() -> None:
            seen.append(batch.get())
            called.set()

        def thread() -> None:
            batch.set("mine")
            threadsafe(loop, callback)()

        loop = asyncio.get_running_loop()
        await asyncio.to_thread(thread)
        await called.wait()

    asyncio.run(main())
    assert seen == ["none"]
