import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from tidegate import App, Handler, HTTPError, Unavailable, WorkerDied, current_batch, serve
from tidegate_transports import jsonl_job, jsonl_pipes
from tidegate_transports.jsonl_job import STALL, WINDOWS_WAITING
from tidegate_transports.jsonlines import Ending, JSONLinesTransport, LineOptions, Report

pytestmark = pytest.mark.anyio


class Pipe:
    """A job between two pipes; what it answers is read on a thread, so that nothing here waits in the event loop."""

    app: App

    def __init__(self, **options: Any) -> None:
        source, self._write = os.pipe()
        self._read, target = os.pipe()
        self._ends = [source, target]
        self.errors: list[tuple[int, str]] = []
        self.door = JSONLinesTransport(
            options=LineOptions(**options),
            source=source,
            target=target,
            on_error=lambda number, error: self.errors.append((number, error.code)),
        )
        self._buffer = b""

    async def send(self, data: bytes) -> None:
        await asyncio.to_thread(os.write, self._write, data)

    def end(self) -> None:
        os.close(self._write)
        self._write = -1

    async def line(self) -> Any:
        while b"\n" not in self._buffer:
            data = await asyncio.to_thread(os.read, self._read, 65536)
            assert data, self._buffer
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    async def lines(self) -> list[Any]:
        """All that is left, when the job is over."""
        reading = asyncio.to_thread(_read_all, self._read)
        for end in self._ends:
            os.close(end)
        self._ends = []
        data = self._buffer + await reading
        return [json.loads(line) for line in data.splitlines()]

    def close(self) -> None:
        for end in (*self._ends, self._read, self._write):
            if end >= 0:
                os.close(end)


def _read_all(fd: int) -> bytes:
    data = b""
    while chunk := os.read(fd, 65536):
        data += chunk
    return data


@asynccontextmanager
async def piped(handler: Handler[..., Any], **options: Any) -> AsyncIterator[Pipe]:
    pipe = Pipe(**options)
    try:
        async with asyncio.timeout(60), App(handler, worker="thread", jsonl=pipe.door) as pipe.app:
            yield pipe
    finally:
        pipe.close()


async def answered(handler: Handler[..., Any], data: bytes, **options: Any) -> tuple[list[Any], Report, Pipe]:
    """Everything that comes of this input. It must fit into a pipe."""
    async with piped(handler, **options) as pipe:
        await pipe.send(data)
        pipe.end()
        report = await pipe.door.finished()
        return await pipe.lines(), report, pipe


class Held:
    """A function that waits until it is let go on, batch by batch."""

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)
        self._begun = threading.Event()

    async def has_begun(self) -> None:
        assert await asyncio.to_thread(self._begun.wait, 60)

    def __call__(self, x: list[Any]) -> list[Any]:
        self._begun.set()
        assert self.gate.acquire(timeout=60)
        return x


def sizes_of(size: int, **options: Any) -> Handler[..., Any]:
    @serve(max_batch_size=size, batch_timeout=STALL, **options)
    def sizes(x: list[Any]) -> list[int]:
        return [len(x) for _ in x]

    return sizes


@serve(max_batch_size=8)
def inverse(x: list[float]) -> list[float]:
    return [1 / n for n in x]


@serve
def count(n: int) -> Iterator[int]:
    for i in range(n):
        if i == 5:
            raise HTTPError(418, "no further")
        yield i


# ---------------------------------------------------------------------- lines in, lines out


async def test_every_line_has_its_answer_in_its_place_and_errors_say_which_line_they_are_of() -> None:
    data = b'\xef\xbb\xbf1\r\n\n2\n  \n0\nbad\n{"custom_id":"a","body":4}\n{"custom_id":"b","body":"x"}\n"\xff"\n8'
    lines, report, pipe = await answered(inverse, data)
    assert lines[:2] == [1.0, 0.5]
    assert [line.get("error") and line["error"]["line"] for line in lines[2:7] if isinstance(line, dict)] == [
        5,
        6,
        None,
        8,
        9,
    ]
    assert lines[4]["response"]["body"] == 0.25
    assert (lines[5]["custom_id"], lines[5]["response"]["status_code"]) == ("b", 422)
    assert lines[-1] == 0.125
    assert report == Report(answered=8, failed=4, nbytes=len(data), last_line=10, ending=Ending.DONE)
    assert sorted(pipe.errors) == [
        (5, "handler-error"),
        (6, "malformed-body"),
        (8, "invalid-input"),
        (9, "invalid-input"),
    ]


async def test_a_line_over_the_limit_fails_and_its_neighbours_do_not() -> None:
    lines, _, pipe = await answered(inverse, b"1\n" + b" " * 5000 + b"2\n4\n", max_line=100)
    assert (lines[0], lines[2]) == (1.0, 0.25)
    assert pipe.errors == [(2, "malformed-body")]


async def test_an_input_that_never_came_is_answered_with_nothing() -> None:
    lines, report, _ = await answered(inverse, b"")
    assert (lines, report.ending) == ([], Ending.DONE)


async def test_a_result_is_added_to_its_object() -> None:
    lines, _, _ = await answered(inverse, b'{"x":2,"id":7}\n{"id":8}\n', input_field="x", output_field="y")
    assert lines[0] == {"x": 2, "id": 7, "y": 0.5}
    assert lines[1]["error"]["code"] == "invalid-input"


async def test_an_output_that_has_no_form_in_json_fails_alone() -> None:
    @serve(max_batch_size=4)
    def mixed(x: list[int]) -> list[Any]:
        return [object() if n == 2 else np.array([n, n]) for n in x]

    lines, _, _ = await answered(mixed, b"1\n2\n3\n")
    assert (lines[0], lines[1]["error"]["code"], lines[2]) == ([1, 1], "unencodable-output", [3, 3])


async def test_a_handler_knows_its_items_by_their_lines() -> None:
    @serve(max_batch_size=4)
    def ids(x: list[int]) -> list[str]:
        return [item.request_id for item in current_batch().items]

    lines, _, _ = await answered(ids, b"1\n\n2\n")
    assert lines == ["line-1", "line-3"]


async def test_what_cost_or_group_by_raise_is_that_line_s_error() -> None:
    @serve(max_batch_size=4, max_batch_cost=10, cost=lambda x: 1 / x)
    def f(x: list[float]) -> list[float]:
        return x

    lines, _, pipe = await answered(f, b"1\n0\n0.01\n2\n")
    assert (lines[0], lines[3]) == (1.0, 2.0)
    assert pipe.errors == [(2, "handler-error"), (3, "too-costly")]


# ---------------------------------------------------------------------- order


async def test_answers_come_in_order_though_a_later_one_is_ready_first_or_as_they_come_when_told_so() -> None:
    go = threading.Event()

    @serve(concurrency=4)
    async def wait_for_it(x: int) -> int:
        if x == 1:
            assert await asyncio.to_thread(go.wait, 60)
        return x

    for ordered, expected in ((True, [1, 2, 3]), (False, [2, 3, 1])):
        go.clear()
        async with piped(wait_for_it, ordered=ordered) as pipe:
            await pipe.send(b"1\n2\n3\n")
            pipe.end()
            first = [] if ordered else [await pipe.line(), await pipe.line()]
            go.set()
            await pipe.door.finished()
            assert first + await pipe.lines() == expected


# ---------------------------------------------------------------------- full batches


async def test_batches_are_full_while_there_is_input_and_the_last_goes_with_its_end() -> None:
    lines, _, _ = await answered(sizes_of(8), b"1\n" * 100)
    assert lines == [8] * 96 + [4] * 4


async def test_a_batch_waits_while_lines_keep_coming_and_goes_when_they_stall() -> None:
    async with piped(sizes_of(8)) as pipe:
        loop = asyncio.get_running_loop()
        for _ in range(5):
            await pipe.send(b"1\n")
            await asyncio.sleep(STALL / 5)  # what is tested is time
        stalled_at = loop.time()
        assert await pipe.line() == 5
        assert STALL / 2 < loop.time() - stalled_at < 20 * STALL


async def test_eight_lines_that_come_one_by_one_are_one_batch_as_soon_as_the_eighth_is_there() -> None:
    async with piped(sizes_of(8)) as pipe:
        for _ in range(8):
            await pipe.send(b"1\n")
        assert await pipe.line() == 8


async def test_lines_of_several_shapes_share_batches_with_their_own() -> None:
    @serve(max_batch_size=8, batch_timeout=STALL)
    def shapes(x: np.ndarray) -> np.ndarray:
        return np.full(len(x), len(x))

    lines, _, _ = await answered(shapes, b"[1]\n[1,2]\n" * 20)
    assert np.mean(lines) > 5


async def test_without_gathering_batch_timeout_alone_decides() -> None:
    @serve(max_batch_size=64, batch_timeout=0)
    def sizes(x: list[Any]) -> list[int]:
        return [len(x) for _ in x]

    async with piped(sizes, gather=False) as pipe:
        await pipe.send(b"1\n")
        assert await pipe.line() == 1


# ---------------------------------------------------------------------- bounds


async def test_what_is_taken_in_is_bounded_while_nothing_is_answered() -> None:
    held = Held()
    handler = serve(max_batch_size=4, name="held")(held)
    async with piped(handler) as pipe:
        sending = asyncio.create_task(pipe.send(b"1\n" * 20000))
        await held.has_begun()
        await sending
        window = max(16, 3 * 4)
        assert pipe.door.report().last_line <= window * WINDOWS_WAITING
        held.gate.release(10**6)
        pipe.end()
        for _ in range(20000):
            assert await pipe.line() == 1


async def test_lines_that_are_long_are_bounded_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl_job, "MAX_BYTES", 10_000)
    monkeypatch.setattr(jsonl_pipes, "CHUNK", 4096)  # what was read at once is taken in at once
    held = Held()
    async with piped(serve(max_batch_size=64, name="held")(held)) as pipe:
        await pipe.send(b'"%s"\n' % (b"x" * 997) * 60)
        await held.has_begun()  # with fewer than a batch: nothing more is taken in, so nothing more will come
        assert 10 <= pipe.door.report().last_line <= 16
        held.gate.release(100)
        pipe.end()
        await pipe.door.finished()
        assert len(await pipe.lines()) == 60


async def test_what_nobody_reads_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl_pipes, "MAX_BACKLOG", 100_000)

    @serve(max_batch_size=4)
    def large(x: list[int]) -> list[str]:
        return ["x" * 10_000 for _ in x]

    async with piped(large) as pipe:
        await pipe.send(b"1\n" * 1000)
        pipe.end()
        await pipe.line()
        before = -1
        while pipe.door.report().last_line != before:
            before = pipe.door.report().last_line
            await asyncio.sleep(0.1)  # that nothing happens can only be waited for
        assert before < 300
        for _ in range(999):
            assert len(await pipe.line()) == 10_000
        assert (await pipe.door.finished()).answered == 1000


async def test_a_queue_that_is_full_makes_lines_wait_and_refuses_none() -> None:
    @serve(max_batch_size=2, max_queue_size=2)
    def f(x: list[int]) -> list[int]:
        return x

    lines, report, _ = await answered(f, b"".join(b"%d\n" % n for n in range(500)))
    assert lines == list(range(500))
    assert report.failed == 0


async def test_a_queue_of_few_bytes_makes_lines_wait_too() -> None:
    @serve(max_batch_size=2, max_queue_bytes=50)
    def f(x: list[str]) -> list[int]:
        return [len(one) for one in x]

    lines, _, _ = await answered(f, b'"%s"\n' % (b"x" * 40) * 50)
    assert lines == [40] * 50


async def test_there_is_no_deadline_unless_one_is_asked_for() -> None:
    held = Held()
    handler = serve(name="held", timeout=0.05)(lambda x: held([x])[0])
    async with piped(handler) as pipe:
        await pipe.send(b"1\n2\n")
        await held.has_begun()
        await asyncio.sleep(0.1)  # twice the handler's own deadline
        held.gate.release(2)
        assert [await pipe.line(), await pipe.line()] == [1, 2]
    held = Held()
    async with piped(handler, timeout=0.05) as pipe:
        await pipe.send(b"1\n2\n")
        assert (await pipe.line())["error"]["code"] == "deadline-exceeded"
        held.gate.release(2)


# ---------------------------------------------------------------------- streams


async def test_a_stream_is_a_list_and_one_that_fails_is_an_error() -> None:
    lines, _, pipe = await answered(count, b"3\n0\n7\n")
    assert lines[:2] == [[0, 1, 2], []]
    assert lines[2]["error"] == {"code": "handler-refused", "message": "no further", "line": 3}
    assert pipe.errors == [(3, "handler-refused")]


async def test_chunks_can_be_written_as_they_come() -> None:
    lines, _, _ = await answered(count, b'2\n{"custom_id":"a","body":1}\n6\n', as_they_come=True)
    assert lines == [
        {"line": 1, "chunk": 0},
        {"line": 1, "chunk": 1},
        {"line": 1, "end": True},
        {"custom_id": "a", "line": 2, "chunk": 0},
        {"custom_id": "a", "line": 2, "end": True},
        *({"line": 3, "chunk": i} for i in range(5)),
        {"error": {"code": "handler-refused", "message": "no further", "line": 3}},
    ]


async def test_a_chunk_is_written_before_the_next_one_is_made() -> None:
    go = threading.Semaphore(0)

    @serve
    def slowly(n: int) -> Iterator[int]:
        for i in range(n):
            yield i
            assert go.acquire(timeout=60)

    for ordered in (True, False):
        async with piped(slowly, as_they_come=True, ordered=ordered) as pipe:
            await pipe.send(b"2\n")
            for i in range(2):
                assert (await pipe.line())["chunk"] == i
                go.release()
            assert await pipe.line() == {"line": 1, "end": True}


async def test_a_batched_stream_is_never_too_slow_a_reader() -> None:
    @serve(max_batch_size=4)
    def many(x: list[int]) -> Iterator[list[str]]:
        for _ in range(40):
            yield ["x" * 100_000 for _ in x]

    async with piped(many) as pipe:
        await pipe.send(b"1\n2\n")
        pipe.end()
        assert [len(await pipe.line()), len(await pipe.line())] == [40, 40]


async def test_an_unbatched_stream_pauses_where_its_chunks_are_not_written() -> None:
    made: list[int] = []

    @serve
    def endless(n: int) -> Iterator[str]:
        while len(made) < 1000:
            made.append(n)
            yield "x" * 100_000

    async with piped(endless, as_they_come=True) as pipe:
        await pipe.send(b"1\n")
        await pipe.line()
        before = -1
        while len(made) != before:
            before = len(made)
            await asyncio.sleep(0.2)  # that nothing happens can only be waited for
        assert len(made) < 500
        for _ in range(999):
            await pipe.line()
        assert (await pipe.line())["end"] is True


# ---------------------------------------------------------------------- how it ends


async def test_too_many_errors_stop_it_after_what_was_under_way() -> None:
    lines, report, _ = await answered(inverse, b"1\nbad\n" * 50, max_errors=3)
    assert (report.ending, report.failed, report.last_line) == (Ending.MAX_ERRORS, 3, 6)
    assert len(lines) == report.answered == 6


async def test_a_reader_that_goes_away_ends_it_at_once() -> None:
    async with piped(inverse) as pipe:
        os.close(pipe._read)
        pipe._read = -1
        await pipe.send(b"1\n" * 100)
        assert (await pipe.door.finished()).ending is Ending.CLOSED


async def test_stopped_it_answers_what_is_under_way_and_says_how_far_it_is() -> None:
    held = Held()
    handler = serve(max_batch_size=2, name="held")(held)
    async with piped(handler) as pipe:
        await pipe.send(b"".join(b"%d\n" % n for n in range(1000)))
        await held.has_begun()
        pipe.door.stop()
        held.gate.release(10**6)
        report = await pipe.door.finished()
        assert report.ending is Ending.STOPPED
        assert await pipe.lines() == list(range(report.last_line))
        assert 0 < report.last_line < 1000


async def test_an_app_that_is_left_answers_what_is_under_way() -> None:
    async with piped(inverse) as pipe:
        await pipe.send(b"2\n")
        while pipe.door.report().last_line < 1:  # noqa: ASYNC110 - nobody says when a line is taken in
            await asyncio.sleep(0.001)
    assert pipe.door.report().answered == 1


async def test_without_any_worker_left_it_ends_and_what_was_not_run_is_not_answered() -> None:
    held = Held()
    handler = serve(max_batch_size=1, name="held")(held)
    async with piped(handler) as pipe:
        await pipe.send(b"1\n2\n3\n")
        await held.has_begun()
        batcher = pipe.app._services["held"]._batcher
        batcher.lose_slot(0, WorkerDied(), replaced=False)
        report = await pipe.door.finished()
        held.gate.release(10)
        assert report.ending is Ending.BROKEN
        assert isinstance(report.error, Unavailable)
        assert [line["error"]["code"] for line in await pipe.lines()] == ["worker-died"]


async def test_a_handler_may_say_itself_that_something_is_unavailable() -> None:
    @serve
    def busy(x: int) -> int:
        raise Unavailable("the database sleeps")

    lines, report, _ = await answered(busy, b"1\n2\n")
    assert [line["error"]["message"] for line in lines] == ["the database sleeps"] * 2
    assert report.ending is Ending.DONE


@pytest.mark.parametrize("address", ["in.jsonl", ""])
def test_an_address_other_than_standard_input_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="standard input"):
        JSONLinesTransport(address)


def test_the_door_is_found_by_its_name() -> None:
    app = App(inverse, jsonl="-")
    assert [transport.url for transport in app.transports] == ["jsonl:-"]
