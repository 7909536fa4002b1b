"""Many items in one request, a line each, answered line by line as a pipe would."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

from tidegate import App, Handler, HandlerError, TidegateError
from tidegate.context import RequestInfo
from tidegate.media import JSON, choose, parsed
from tidegate_transports.jsonl_lines import Bare, Layout
from tidegate_transports.streams import LINES, LINES_NAMES

__all__ = ["LineAnswers", "answers_by_line", "answers_type", "holds_lines"]

_MAX_PART = 64 * 1024
_LAYOUT = Layout()


def holds_lines(handler: Handler[..., Any], content_type: str | None) -> bool:
    """Whether a body of this type is many items; for a handler of raw bytes it is one, whatever it is."""
    if content_type is None or "json" not in content_type.lower():
        return False
    return parsed(content_type)[0] in LINES_NAMES and handler.codec.content_types[-1] != "*/*"


def answers_type(accept: str | None) -> str:
    """How the answers' lines are to be called; NotAcceptable where the caller takes none."""
    chosen = choose(accept, (*LINES_NAMES, JSON))
    return LINES if chosen == JSON else chosen


class LineAnswers:
    """What is made of each line.

    told: what the caller reads of an error, given the line's number. timeout: seconds for each item, None for as long
    as it takes, and then no item is refused for a full queue either.
    """

    def __init__(
        self,
        app: App,
        handler: Handler[..., Any],
        info: RequestInfo,
        told: Callable[[TidegateError, int], str],
        *,
        priority: int,
        timeout: float | None,
    ) -> None:
        self._app = app
        self._handler = handler
        self._info = info
        self._told = told
        self._priority = priority
        self._timeout = timeout

    async def of(self, number: int, line: bytes) -> bytes:
        """One line's answer; no failure escapes, since the other lines have theirs coming."""
        codec = self._handler.codec
        answer, item = _LAYOUT.read(line)
        try:
            value = await self._output(codec.decode_json(bytes(item)))
            encoded = codec.encode_json(value, allow_nan=self._handler.options.allow_nan)
        except TidegateError as error:
            return self._failed(answer, error, number)
        except Exception as error:  # noqa: BLE001 - a type of the user's may raise anything while it is read or written
            return self._failed(answer, HandlerError.wrap(error), number)
        return answer.result(number, encoded.replace(b"\n", b" "))

    async def _output(self, value: Any) -> Any:
        app, name = self._app, self._handler.name
        if self._timeout is None:
            return await app.patient_call(name, value, priority=self._priority, info=self._info)
        if not self._handler.streams:
            answer = await app.answer(name, value, priority=self._priority, timeout=self._timeout, info=self._info)
            return answer.value
        async with app.stream(name, value, priority=self._priority, timeout=self._timeout, info=self._info) as chunks:
            return [chunk async for chunk in chunks]

    def _failed(self, answer: Bare, error: TidegateError, number: int) -> bytes:
        message = self._told(error, number)
        # What a handler raised is for the log alone.
        return answer.failure(number, HandlerError(message, "") if isinstance(error, HandlerError) else error)


async def answers_by_line(body: bytes, answers: LineAnswers, window: Callable[[], int]) -> AsyncGenerator[bytes]:
    """The answers in the lines' order, as soon as they and all before them are there.

    window: how many items may be under way. Closing cancels those that are.
    """
    lines = _lines(body)
    running: deque[asyncio.Task[bytes]] = deque()
    try:
        while True:
            for number, line in lines:
                running.append(asyncio.create_task(answers.of(number, line)))
                if len(running) >= window():
                    break
            if not running:
                return
            # Never cancelled by whoever reads here alone: `finally` does that for all of them.
            await asyncio.wait((running[0],))
            part, size = [], 0
            while running and running[0].done() and size < _MAX_PART:
                part.append(running.popleft().result())
                size += len(part[-1])
            yield b"".join(part)
    finally:
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)


def _lines(body: bytes) -> Iterator[tuple[int, bytes]]:
    """Every line that holds something, with its number; one after the other, since a body may be nothing but lines."""
    number = start = 0
    while start < len(body):
        end = body.find(b"\n", start)
        end = len(body) if end < 0 else end
        number += 1
        line = body[start:end]
        if line and not line.isspace():
            yield number, line
        start = end + 1
