"""A line of the input on its way to a line of the output; the batcher tells it how its item ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

from tidegate import Handler
from tidegate_batching import Outcome, Stream, TidegateError
from tidegate_batching.errors import from_foreign
from tidegate_transports.jsonl_lines import Bare

__all__ = ["Chunks", "Entry", "Owner"]

MAX_AHEAD = 1 << 20
"""Bytes of chunks that a stream may be ahead of its turn before its generator is paused."""


class Owner(Protocol):
    """Where entries report, in the event loop."""

    def settled(self, entry: Entry | Chunks) -> None: ...
    def grew(self, entry: Chunks, nbytes: int) -> None: ...


class Entry:
    """One line: the waiter of its item, what the door knows about it, and its answer when it has one.

    One object for all three, since there is one for each of millions of lines.
    """

    __slots__ = ("answer", "nbytes", "number", "outcome", "output", "owner")

    headers: ClassVar[Mapping[str, str]] = {}
    patience: ClassVar[float | None] = None

    def __init__(self, owner: Owner | None, number: int, answer: Bare, nbytes: int) -> None:
        self.owner = owner
        self.number = number
        self.answer = answer
        self.nbytes = nbytes
        self.outcome: Outcome | None = None
        self.output: bytes | None = None

    @property
    def request_id(self) -> str:
        """What logs and the handler know it by."""
        return f"line-{self.number}"

    def done(self) -> bool:
        """Whether its item has ended."""
        return self.outcome is not None

    def set_result(self, outcome: Outcome, /) -> None:
        """Its item has ended; encoding comes later, after the worker's next batch has gone."""
        self.outcome = outcome
        if self.owner is not None:
            self.owner.settled(self)

    def taken(self) -> bytes:
        """The lines that may be written before its answer is complete: none."""
        return b""

    def finish(self, handler: Handler[..., Any], value: Any) -> bytes:
        """All that is to be written; raises a TidegateError for an output that has no form in JSON."""
        return self.answer.result(self.number, encoded(handler, value))


class Chunks(Stream[Any]):
    """The line of a handler that streams: its chunks are written as a list, or with `as_they_come` one by one.

    Nobody falls behind in a pipe: a batched stream is read as fast as it comes, an unbatched one may be paused.
    """

    headers: ClassVar[Mapping[str, str]] = {}
    patience: ClassVar[float | None] = None

    # Nothing of the base's: it buffers for a reader in a task of its own, and here there is none.
    def __init__(
        self, owner: Owner, number: int, answer: Bare, nbytes: int, handler: Handler[..., Any], *, as_they_come: bool
    ) -> None:
        self.owner = owner
        self.number = number
        self.answer = answer
        self.nbytes = nbytes
        self.outcome: Outcome | None = None
        self.output: bytes | None = None
        self._handler = handler
        self._as_they_come = as_they_come
        self._parts: list[bytes] = []
        self._ahead = 0
        self._failure: TidegateError | None = None
        self._resume: Callable[[], None] | None = None

    @property
    def request_id(self) -> str:
        """What logs and the handler know it by."""
        return f"line-{self.number}"

    # ------------------------------------------------------------------ what the batcher asks and tells

    @property
    def full(self) -> bool:
        """Whether its generator should pause: a list is held whole in any case, and a batch has neighbours."""
        return self._as_they_come and not self._handler.batched and self._ahead > MAX_AHEAD

    def push(self, chunk: Any, nbytes: int) -> None:
        """Add a chunk."""
        if self._failure is not None:
            return
        try:
            body = encoded(self._handler, chunk)
        except TidegateError as error:
            self._failure = error
            return
        part = self.answer.chunk(self.number, body) if self._as_they_come else body
        self._parts.append(part)
        self._ahead += len(part)
        self.nbytes += len(part)
        self.owner.grew(self, len(part))

    def when_drained(self, callback: Callable[[], None]) -> None:
        """Call back once when what it has said is written."""
        self._resume = callback

    def done(self) -> bool:
        """Whether its item has ended."""
        return self.outcome is not None

    def set_result(self, outcome: Outcome, /) -> None:
        """Its item has ended."""
        self.outcome = outcome if outcome.error is not None else Outcome(error=self._failure)
        self.owner.settled(self)
        self._go_on()

    # ------------------------------------------------------------------ what the door does

    def taken(self) -> bytes:
        """The lines that may be written before its answer is complete, once."""
        if not self._as_they_come or not self._parts:
            return b""
        lines = b"".join(self._parts)
        self._parts.clear()
        self.nbytes -= len(lines)
        self._ahead = 0
        self._go_on()
        return lines

    def finish(self, handler: Handler[..., Any], value: Any) -> bytes:
        """All that is not written yet, and its end."""
        if self._as_they_come:
            return self.taken() + self.answer.end(self.number)
        return self.answer.result(self.number, b"[" + b",".join(self._parts) + b"]")

    def _go_on(self) -> None:
        resume, self._resume = self._resume, None
        if resume is not None:
            resume()


def encoded(handler: Handler[..., Any], output: Any) -> bytes:
    """JSON on one line; raises a TidegateError."""
    try:
        body = handler.codec.encode_json(output, allow_nan=handler.options.allow_nan)
    except Exception as error:  # an output may be of any type
        raise from_foreign(error) from error
    # Between values, where msgspec.Raw may bring one, it is white space; inside of texts there is none.
    return body.replace(b"\n", b" ") if b"\n" in body else body
