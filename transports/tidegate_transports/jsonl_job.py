"""One pass over an input: what is read, what is under way, what waits for its turn to be written."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from tidegate import App
from tidegate_batching import Closed, TidegateError, Unavailable
from tidegate_batching.errors import from_foreign
from tidegate_transports.jsonl_entries import Chunks, Entry
from tidegate_transports.jsonl_lines import Bare, Layout, Splitter, too_long
from tidegate_transports.jsonl_options import Ending, LineOptions, Report
from tidegate_transports.jsonl_pipes import Reader, Writer
from tidegate_transports.reorder import Reorder
from tidegate_transports.resume import NoCustomId, Nothing, Previous

__all__ = ["Job"]

STALL = 0.05
"""Seconds without input after which a batch that is not full goes."""

RETRY = 0.005
"""Seconds after which an item that a full queue refused is tried again."""

MAX_BYTES = 128 * 1024 * 1024
"""Bytes of lines that are under way or wait for their turn; beyond them nothing more is taken in."""

WINDOWS_WAITING = 4
"""How many times what is under way may wait for an earlier line's answer."""

TURN = 128
"""Lines that are looked at before the event loop has its turn."""

OnError = Callable[[int, TidegateError], object]

_BARE = Bare()


class Job:
    """Lines of one descriptor through a handler, and their answers to another.

    Everything but reading and writing happens in the event loop, and none of it waits: in each turn what has ended is
    encoded, lines are taken in as far as there is room for them, and what is complete is written.
    """

    def __init__(
        self, app: App, options: LineOptions, *, source: int, target: int, previous: Previous, on_error: OnError
    ) -> None:
        name = options.handler or next(iter(app.handlers))
        self._app = app
        self._handler = app.handlers[name]
        self._options = options
        self._previous = previous
        self._has_previous = not isinstance(previous, Nothing)
        self._on_error = on_error
        self._layout = Layout(options.input_field, options.output_field)
        self._splitter = Splitter(options.max_line)
        self._intake = app.intake(name)
        self._gather = min(self._intake.batch_size, self._intake.window) if options.gather else 1
        self._order = Reorder(ordered=options.ordered)
        self._chunks: deque[bytes] = deque()  # read, and not looked at yet
        self._lines: deque[bytes | None] = deque()
        self._held: deque[tuple[Entry | Chunks, Any]] = deque()  # decoded, and not in the batcher yet
        self._settled: list[Entry | Chunks] = []
        self._under_way = 0
        self._bytes = 0
        self._number = self._failed = self._skipped = self._nbytes = 0
        self._is_read = False
        self._has_answers = False
        self._took_at = time.monotonic()
        self._ending: Ending | None = None
        self._error: BaseException | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._is_due = False
        self._idle = asyncio.Event()
        self._has_room = asyncio.Event()
        self.ended = asyncio.Event()
        self._reader = Reader(source, self._received)
        self._writer = Writer(target, self._room_made, self._write_failed)

    async def run(self) -> None:
        """Until every line is answered and written, or no more can be."""
        try:
            await self._idle.wait()
            # What an earlier run has answered beyond the last line that was read now stays.
            for answer in self._previous.rest():
                self._writer.write(answer, 1)
                while self._writer.full:
                    self._has_room.clear()
                    await self._has_room.wait()
            await self._writer.aclose()
            self._previous.written(self._writer.lines)
        finally:
            self._reader.stop()
            self.ended.set()

    def stop(self, ending: Ending = Ending.STOPPED, error: BaseException | None = None) -> None:
        """Read no more; what is under way is still answered."""
        if self._ending is None:
            self._ending, self._error = ending, error
            self._reader.stop()
            self._chunks.clear()
            self._lines.clear()
            self._soon()

    def report(self) -> Report:
        """How far it is."""
        return Report(
            answered=self._order.written,
            failed=self._failed,
            skipped=self._skipped,
            failed_before=self._previous.failed,
            nbytes=self._nbytes,
            last_line=self._number,
            left_over=self._previous.left,
            ending=self._ending,
            error=self._error,
        )

    # ------------------------------------------------------------------ what happens to it

    def settled(self, entry: Entry | Chunks) -> None:
        """An item has ended."""
        self._settled.append(entry)
        self._soon()

    def grew(self, entry: Chunks, nbytes: int) -> None:
        """A stream has gone on."""
        self._bytes += nbytes
        self._order.grew(entry)
        self._soon()

    def _received(self, data: bytes | OSError) -> None:
        if isinstance(data, OSError):
            self.stop(Ending.BROKEN, data)
        elif self._ending is None:
            self._is_read = not data
            self._nbytes += len(data)
            self._chunks.append(data)
            self._turn()

    def _room_made(self) -> None:
        self._has_room.set()
        self._soon()

    def _write_failed(self, error: OSError) -> None:
        self.stop()
        # Whatever else it was: answers are lost. Nobody will see what is under way either.
        is_closed = isinstance(error, (BrokenPipeError, ConnectionResetError))
        self._ending, self._error = Ending.CLOSED if is_closed else Ending.BROKEN, error
        self._idle.set()

    def _soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        try:
            self._go_on()
        except Exception as error:  # noqa: BLE001 - told at the end, instead of waiting for ever for what got lost
            self.stop()
            self._ending, self._error = Ending.BROKEN, error
            self._idle.set()

    def _go_on(self) -> None:
        self._is_due = False
        settled, self._settled = self._settled, []
        self._under_way -= len(settled)
        for entry in settled:
            self._complete(entry)
        # First, since it makes room.
        if not self._write():
            return
        self._take_in()
        self._let_go()
        if self._has_answers:
            self._soon()
        elif self._is_taken_in and not self._held and not self._settled:
            if not self._under_way:
                self._ending = self._ending or Ending.DONE
                self._idle.set()
            elif self._options.last:
                self._intake.close()

    def _write(self) -> bool:
        """Hand on what is complete; False where it has to wait, and the writer calls back."""
        if self._writer.full:
            return False
        self._has_answers = False
        before = self._order.written
        if output := self._order.take():
            self._bytes -= len(output)
            self._writer.write(output, self._order.written - before)
        self._previous.written(self._writer.lines)
        return True

    # ------------------------------------------------------------------ in

    @property
    def _is_taken_in(self) -> bool:
        return self._ending is not None or (self._is_read and not self._chunks and not self._lines)

    def _room(self) -> int:
        """Lines that may be taken in now."""
        if self._bytes >= MAX_BYTES:
            return 0
        window = self._intake.window
        under_way = window - self._under_way - len(self._held)
        return min(under_way, WINDOWS_WAITING * window - self._order.waiting)

    def _take_in(self) -> None:
        left = TURN
        while left and (self._lines or self._split()):
            room = min(self._room(), left, len(self._lines))
            if room <= 0:
                return
            left -= room
            self._took_at = time.monotonic()
            for _ in range(room):
                self._take(self._lines.popleft())
                if self._ending is not None:
                    return
        if not left:
            self._soon()

    def _split(self) -> bool:
        """Make lines of the next chunks; False when there is none."""
        while self._chunks and not self._lines:
            data = self._chunks.popleft()
            self._lines.extend(self._splitter.feed(data) if data else self._splitter.end())
            self._reader.taken()
        return bool(self._lines)

    def _take(self, line: bytes | None) -> None:
        self._number += 1
        if line is not None and (not line or line.isspace()):
            return
        if self._has_previous and self._was_answered(line):
            return
        answer, nbytes = _BARE, 0 if line is None else len(line)
        try:
            if line is None:
                raise too_long(self._options.max_line)
            answer, body = self._layout.read(line)
            value = self._handler.codec.decode_json(body)
        except Exception as error:  # noqa: BLE001 - decoding may run the user's own classes
            entry = self._entry(answer, nbytes)
            self._answer(entry, self._failure(entry, from_foreign(error)))
            return
        self._held.append((self._entry(answer, nbytes), value))
        if len(self._held) == self._gather:
            self._put()

    def _was_answered(self, line: bytes | None) -> bool:
        try:
            before = self._previous.answered(self._number, line)
        except NoCustomId as error:
            self.stop(Ending.BROKEN, error)
            return True
        if before is None:
            return False
        self._skipped += 1
        if before:
            self._answer(self._entry(_BARE, 0), before)
        return True

    def _entry(self, answer: Bare, nbytes: int) -> Entry | Chunks:
        if self._handler.streams:
            as_they_come = self._options.as_they_come
            entry: Entry | Chunks = Chunks(self, self._number, answer, nbytes, self._handler, as_they_come=as_they_come)
        else:
            entry = Entry(self, self._number, answer, nbytes)
        self._bytes += nbytes
        self._order.add(entry)
        return entry

    def _let_go(self) -> None:
        """Batches that are full go at once; others when no more is coming for a while, or no more is taken in."""
        if not self._held:
            return
        stalls_at = self._took_at + STALL
        now = time.monotonic()
        is_full = len(self._held) >= self._gather or self._bytes >= MAX_BYTES
        if is_full or self._is_taken_in or stalls_at <= now:
            self._put()
        if self._held and self._timer is None:
            self._timer = self._loop.call_later(max(RETRY, stalls_at - now), self._rings)

    def _rings(self) -> None:
        self._timer = None
        self._turn()

    def _put(self) -> None:
        while self._held:
            entry, value = self._held[0]
            try:
                is_in = self._intake.put(
                    value, entry, entry, arrived_at=self._took_at, nbytes=entry.nbytes, timeout=self._options.timeout
                )
            except TidegateError as error:
                self._answer(entry, self._failure(entry, error))
            else:
                if not is_in:
                    return
                self._under_way += 1
            self._held.popleft()

    # ------------------------------------------------------------------ out

    def _complete(self, entry: Entry | Chunks) -> None:
        value, error = entry.outcome or (None, None)
        entry.outcome = None  # its item has ended, and nobody asks again
        try:
            if error is not None:
                raise from_foreign(error)
            self._answer(entry, entry.finish(self._handler, value))
        except TidegateError as caught:
            if isinstance(caught, (Closed, Unavailable)) and (self._app.draining or self._intake.is_over):
                # It has not been run, and a later job may.
                self.stop(Ending.BROKEN, caught)
            else:
                self._answer(entry, entry.taken() + self._failure(entry, caught))

    def _answer(self, entry: Entry | Chunks, output: bytes) -> None:
        self._has_answers = True
        self._bytes += len(output) - entry.nbytes
        self._order.complete(entry, output)

    def _failure(self, entry: Entry | Chunks, error: TidegateError) -> bytes:
        self._failed += 1
        self._on_error(entry.number, error)
        most = self._options.max_errors
        if most is not None and self._failed >= max(1, most):
            self.stop(Ending.MAX_ERRORS)
        return entry.answer.failure(entry.number, error)
