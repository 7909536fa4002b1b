"""Bodies through the exchange: compressed ones, large ones, many items in one, streams; and callers that go away."""

import asyncio
import gzip
import json
import threading
import zlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import anyio
import msgspec
import numpy as np
import pytest

from tidegate import END, App, HTTPError, TidegateError, serve
from tidegate.service import Answer
from tidegate_transports import calls, streams
from tidegate_transports.exchange import Exchange, HTTPOptions, Request, Response

pytestmark = pytest.mark.anyio


@serve(max_batch_size=8)
def size(x: list[Any]) -> list[int]:
    return [len(one) for one in x]


@serve(max_batch_size=8)
def echo(x: list[Any]) -> list[Any]:
    return x


@serve(max_batch_size=8)
def square(x: list[int]) -> list[int]:
    if 13 in x:
        raise ValueError("the password is 1234")
    return [n * n for n in x]


@serve(max_batch_size=8)
def countdown(starts: list[int]) -> Iterator[list[object]]:
    """Down to one; negative numbers are refused, 13 breaks on the way, 5 gives what has no form in JSON."""
    if min(starts) < 0:
        raise HTTPError(409, "nothing is below zero")
    for step in range(max(starts) + 1):
        if 13 in starts and step == 2:
            raise RuntimeError("secret")
        yield [(float("nan") if start == 5 else start - step) if step < start else END for start in starts]


class Held:
    """A handler that takes items one by one, notes them and finishes none before it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()
        self.seen: list[int] = []

        @serve
        def held(x: int) -> int:
            self.seen.append(x)
            self.begun.set()
            assert self.go.wait(20)
            return x

        self.handler = held


async def posted(app: App, path: str, body: bytes, options: HTTPOptions | None = None, **headers: str) -> Response:
    names = {name.replace("_", "-").lower(): value for name, value in headers.items()}
    return await Exchange(app, options).respond(Request("POST", path, names, body))


async def read(response: Response) -> bytes:
    assert response.parts is not None, response.body
    assert response.body == b""
    return b"".join([part async for part in response.parts])


def detail_of(response: Response) -> tuple[int, str]:
    return response.status, json.loads(response.body)["detail"]


# ---------------------------------------------------------------------- compressed


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(b'"abc"')),
        ("x-gzip", gzip.compress(b'"abc"')),
        ("GZIP, identity", gzip.compress(b'"abc"')),
        ("deflate", zlib.compress(b'"abc"')),
        ("deflate", zlib.compress(b'"abc"')[2:-4]),
        ("identity", b'"abc"'),
        ("gzip", gzip.compress(b'"a') + gzip.compress(b'bc"')),
    ],
)
async def test_a_compressed_body_is_read_as_what_it_was(coding: str, body: bytes) -> None:
    async with App(size) as app:
        assert (await posted(app, "/size", body, Content_Encoding=coding)).body == b"3"


@pytest.mark.parametrize("body", [b"no gzip", b"", gzip.compress(b'"abc"')[:-5], gzip.compress(b'"abc"') + b"x"])
async def test_a_body_that_is_not_what_its_coding_says_is_malformed(body: bytes) -> None:
    async with App(size) as app:
        response = await posted(app, "/size", body, Content_Encoding="gzip")
    status, detail = detail_of(response)
    assert status == 400
    assert "Content-Encoding" in detail


@pytest.mark.parametrize(("length", "members"), [(100_000, 1), (5_000, 40)])
async def test_a_bomb_is_refused_before_it_is_large(length: int, members: int) -> None:
    bomb = gzip.compress(bytes(length), 9) * members
    async with App(size) as app:
        response = await posted(app, "/size", bomb, HTTPOptions(max_body=50_000), Content_Encoding="gzip")
    assert detail_of(response) == (413, "the body inflates to more than 50000 bytes")


async def test_an_answer_is_compressed_for_whoever_asks_if_it_is_long() -> None:
    text = json.dumps("tide " * 1000).encode()
    async with App(echo) as app:
        short = await posted(app, "/echo", b'"short"', Accept_Encoding="gzip")
        plain = await posted(app, "/echo", text)
        small = await posted(app, "/echo", text, Accept_Encoding="br;q=1, gzip;q=0.5")
        unwanted = await posted(app, "/echo", text, Accept_Encoding="gzip;q=0, *")
        switched_off = await posted(app, "/echo", text, HTTPOptions(gzip=False), Accept_Encoding="gzip")
        binary = await posted(app, "/echo", text, Accept_Encoding="gzip", Accept="application/msgpack")
    assert gzip.decompress(small.body) == text
    assert (small.headers["Content-Encoding"], small.headers["Vary"]) == ("gzip", "Accept-Encoding")
    assert len(small.body) < 200
    for response in (short, plain, unwanted, switched_off, binary):
        assert "Content-Encoding" not in response.headers
    assert plain.headers["Vary"] == "Accept-Encoding"
    assert "Vary" not in short.headers
    assert plain.body == unwanted.body == switched_off.body == text


# ---------------------------------------------------------------------- large


async def test_large_bodies_and_answers_are_worked_on_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    aside = []
    really = asyncio.to_thread

    async def noted(function: Any, *arguments: Any, **options: Any) -> Any:
        # Workers have uses of their own for it.
        if function.__name__ in ("decode", "encode", "compress", "_inflate"):
            aside.append(function.__name__)
        return await really(function, *arguments, **options)

    monkeypatch.setattr(asyncio, "to_thread", noted)
    big = json.dumps("x" * 300_000).encode()
    async with App(echo) as app:
        assert (await posted(app, "/echo", b"[1]")).body == b"[1]"
        assert aside == []
        assert (await posted(app, "/echo", big)).body == big
        assert aside == ["decode", "encode"]
        aside.clear()
        await posted(app, "/echo", big, Accept_Encoding="gzip")
        assert aside == ["decode", "encode", "compress"]
        aside.clear()
        await posted(app, "/echo", gzip.compress(np.random.default_rng(1).bytes(9000)), Content_Encoding="gzip")
        assert aside == ["_inflate"]


@pytest.mark.parametrize(
    ("output", "large"),
    [
        (np.zeros(40_000), True),
        (np.zeros(4), False),
        ("x" * 300_000, True),
        ([0.0] * 50_000, True),
        ([np.zeros(40_000)], True),
        ({"a": np.zeros(40_000), "b": 1}, True),
        ({"a": 1}, False),
        ([[1] * 10] * 10, False),
        (None, False),
    ],
)
def test_what_takes_long_to_write_is_known_by_its_size(output: Any, large: bool) -> None:
    assert calls.is_large(output) is large


# ---------------------------------------------------------------------- many items in one request


async def test_each_line_is_an_item_and_is_answered_in_its_place() -> None:
    body = b'1\r\n\n"a"\n13\n{"custom_id":"q","body":5}\n{"custom_id":"r","body":13}\n7'
    async with App(square) as app:
        response = await posted(app, "/square", body, Content_Type="application/x-ndjson")
        lines = (await read(response)).decode().splitlines()
    assert (response.status, response.content_type) == (200, "application/x-ndjson")
    one, wrong, broken, enveloped, failed, last = map(json.loads, lines)
    assert (one, last) == (1, 49)
    assert wrong["error"] == {"code": "invalid-input", "message": "Expected `int`, got `str`", "line": 3}
    assert broken["error"] == {"code": "handler-error", "message": "internal error", "line": 4}
    assert (enveloped["custom_id"], enveloped["response"]["body"], enveloped["error"]) == ("q", 25, None)
    assert (failed["custom_id"], failed["error"]["message"]) == ("r", "internal error")


async def test_many_lines_share_batches_and_no_more_are_under_way_than_the_window() -> None:
    class Counting(App):
        under_way = most = 0

        async def patient_call(self, name: str, value: Any, **options: Any) -> Any:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            try:
                return await super().patient_call(name, value, **options)
            finally:
                self.under_way -= 1

    numbers = [n for n in range(500) if n != 13]
    async with Counting(square) as app:
        body = "\n".join(map(str, numbers)).encode()
        response = await posted(app, "/square", body, Content_Type="application/jsonl", Accept="application/jsonl")
        assert [int(line) for line in (await read(response)).splitlines()] == [n * n for n in numbers]
        assert response.content_type == "application/jsonl"
        assert 1 < app.most <= app.window("square")
        assert max(app.statistics()["square"].batch_sizes) > 1


async def test_lines_are_answered_as_soon_as_they_can_be() -> None:
    held = Held()
    async with App(held.handler) as app:
        response = await posted(app, "/held", b'"wrong"\n1\n', Content_Type="application/x-ndjson")
        assert response.parts is not None
        parts = aiter(response.parts)
        with anyio.fail_after(10):
            assert b"invalid-input" in await anext(parts)
            held.go.set()
            assert await anext(parts) == b"1\n"


async def test_a_reader_that_leaves_takes_the_items_that_still_wait_along() -> None:
    held = Held()
    async with App(held.handler) as app:
        response = await posted(app, "/held", b"1\n2\n3\n", Content_Type="application/x-ndjson")
        assert response.parts is not None
        reading = asyncio.ensure_future(anext(aiter(response.parts)))
        assert await asyncio.to_thread(held.begun.wait, 10)
        reading.cancel()
        await asyncio.wait([reading])
        await response.parts.aclose()
        assert app.statistics()["held"].waiting == 0
        held.go.set()
    assert held.seen == [1]


async def test_a_patience_holds_for_each_of_the_items() -> None:
    held = Held()
    async with App(held.handler) as app:
        response = await posted(app, "/held", b"1\n2\n", Content_Type="application/x-ndjson", Prefer="wait=0.05")
        lines = [json.loads(line) for line in (await read(response)).splitlines()]
        held.go.set()
    assert [line["error"]["code"] for line in lines] == ["deadline-exceeded"] * 2
    assert response.headers["Preference-Applied"] == "wait=0.05"


async def test_a_streams_chunks_come_as_a_list_for_each_line() -> None:
    async with App(countdown) as app:
        for prefer in ("", "wait=10"):
            response = await posted(app, "/countdown", b"3\n0\n", Content_Type="application/x-ndjson", Prefer=prefer)
            assert await read(response) == b"[3,2,1]\n[]\n"


@pytest.mark.parametrize("body", [b"", b"\n\n \n"])
async def test_no_items_are_no_answers(body: bytes) -> None:
    async with App(square) as app:
        assert await read(await posted(app, "/square", body, Content_Type="application/x-ndjson")) == b""


async def test_who_takes_no_lines_gets_none() -> None:
    async with App(square) as app:
        response = await posted(app, "/square", b"1\n", Content_Type="application/x-ndjson", Accept="text/html")
    assert response.status == 406


# ---------------------------------------------------------------------- streams


async def test_a_stream_is_events_for_who_asks_for_them() -> None:
    async with App(countdown) as app:
        response = await posted(app, "/countdown", b"2", Accept="text/event-stream")
        assert await read(response) == b'data: 2\n\ndata: 1\n\nevent: end\ndata: {"end":true}\n\n'
    assert response.content_type == "text/event-stream"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Accel-Buffering"] == "no"


@pytest.mark.parametrize("accept", ["*/*", "application/x-ndjson", "application/json", "text/event-stream;q=0.5, */*"])
async def test_a_stream_is_lines_for_everybody_else(accept: str) -> None:
    async with App(countdown) as app:
        response = await posted(app, "/countdown", b"1", Accept=accept)
        assert await read(response) == b'{"chunk":1}\n{"end":true}\n'
    assert response.content_type == "application/x-ndjson"


async def test_a_stream_in_neither_form_is_not_begun() -> None:
    async with App(countdown) as app:
        assert (await posted(app, "/countdown", b"1", Accept="text/html")).status == 406
        assert app.statistics()["countdown"].submitted == 0


async def test_a_failure_on_the_way_is_an_event_and_tells_nothing_private() -> None:
    async with App(countdown) as app:
        events = await read(await posted(app, "/countdown", b"13", Accept="text/event-stream"))
    assert events.startswith(b"data: 13\n\ndata: 12\n\nevent: error\ndata: ")
    told = json.loads(events.rpartition(b"data: ")[2])
    assert told == {"code": "handler-error", "status": 500, "message": "internal error"}
    assert b"secret" not in events


async def test_a_first_chunk_that_cannot_be_written_is_a_failure_with_a_status_and_the_end() -> None:
    @serve
    def endless(n: int) -> Iterator[float]:
        while True:
            yield float("nan")

    async with App(endless) as app:
        response = await posted(app, "/endless", b"5")
        assert app.statistics()["endless"].outcomes == {"cancelled": 1}
    assert response.status == 500
    assert response.parts is None


async def test_whatever_writing_a_chunk_raises_is_told_as_an_error() -> None:
    class Trap:
        """A codec that is broken, as a user's type may be."""

        def encode_json(self, value: object, *, allow_nan: bool) -> bytes:
            raise KeyError("secret")

    handler: Any = SimpleNamespace(codec=Trap(), options=size.options)
    told = []

    def tell(error: TidegateError | None) -> str:
        told.append(error)
        return "internal error"

    async with App(countdown) as app:
        chunks = app.stream("countdown", 3)
        lines = [line async for line in streams.parts_of(handler, chunks, b"0", streams.format_of(None), tell)]
    assert [json.loads(line) for line in lines] == [
        {"chunk": 0},
        {"error": {"code": "handler-error", "status": 500, "message": "internal error"}},
    ]
    assert [str(error) for error in told] == ["KeyError: 'secret'"]


async def test_ready_made_json_over_several_lines_breaks_neither_form() -> None:
    @serve
    def made(n: int) -> Iterator[msgspec.Raw]:
        yield msgspec.Raw(b'{\r\n "a":\n 1}')

    async with App(made) as app:
        lines = await read(await posted(app, "/made", b"1"))
        events = await read(await posted(app, "/made", b"1", Accept="text/event-stream"))
    assert [json.loads(line) for line in lines.splitlines()] == [{"chunk": {"a": 1}}, {"end": True}]
    data = [line[6:] for line in events.split(b"\n\n")[0].split(b"\n")]
    assert json.loads(b"\n".join(data)) == {"a": 1}


async def test_a_quiet_stream_of_events_shows_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        streams, "_FORMATS", {"text/event-stream": streams.format_of("text/event-stream")._replace(heartbeat=0.01)}
    )
    go = threading.Event()

    @serve
    def slow(n: int) -> Iterator[int]:
        yield 1
        assert go.wait(20)
        yield 2

    async with App(slow) as app:
        response = await posted(app, "/slow", b"1", Accept="text/event-stream")
        assert response.parts is not None
        parts = aiter(response.parts)
        assert await anext(parts) == b"data: 1\n\n"
        assert await anext(parts) == b": ping\n\n"
        go.set()
        rest = b"".join([part async for part in parts]).replace(b": ping\n\n", b"")
    assert rest == b'data: 2\n\nevent: end\ndata: {"end":true}\n\n'


# ---------------------------------------------------------------------- callers that go away


async def test_a_caller_that_leaves_frees_its_place_in_the_queue() -> None:
    held = Held()
    async with App(held.handler) as app:
        exchange = Exchange(app)
        calls = [asyncio.ensure_future(exchange.respond(Request("POST", "/held", {}, b"%d" % n))) for n in range(3)]
        assert await asyncio.to_thread(held.begun.wait, 10)
        assert app.statistics()["held"].waiting == 2
        calls[1].cancel()
        await asyncio.wait([calls[1]])
        assert app.statistics()["held"].waiting == 1
        held.go.set()
        assert [(await calls[n]).body for n in (0, 2)] == [b"0", b"2"]
    assert held.seen == [0, 2]


async def test_whatever_an_app_does_respond_answers() -> None:
    class Broken(App):
        async def answer(self, name: str, value: Any, **options: Any) -> Answer:
            raise KeyError("a bug")

    response = await posted(Broken(square), "/square", b"1")
    assert detail_of(response) == (500, "internal error")
