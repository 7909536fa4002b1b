"""One item's chunks on their way from the worker to its reader."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, Self, TypeVar

from tidegate_batching.backend import Backend, Waiter
from tidegate_batching.item import Item, Outcome

__all__ = ["Stream"]

C = TypeVar("C")

MAX_CHUNKS = 256
MAX_BYTES = 1 << 20


class Stream(Generic[C]):
    """An asynchronous iterator over chunks, with a bounded buffer between the worker and a slow reader.

    It ends when the item does: normally, or by raising the item's error. `aclose` takes the item out of its batch;
    leaving an `async with` block does so too.
    """

    def __init__(self, backend: Backend, cancel: Callable[[], None], item: Item | None = None) -> None:
        self._backend = backend
        self._item = item
        self._cancel = cancel
        self._chunks: deque[tuple[C, int]] = deque()
        self._bytes = 0
        self._outcome: Outcome | None = None
        self._reader: Waiter | None = None
        self._drained: Callable[[], None] | None = None

    # ------------------------------------------------------------------ the worker's side, by way of the batcher

    @property
    def full(self) -> bool:
        """Whether the reader is behind by 256 chunks or 1 MiB."""
        return len(self._chunks) >= MAX_CHUNKS or self._bytes >= MAX_BYTES

    def push(self, chunk: C, nbytes: int) -> None:
        """Add a chunk."""
        self._chunks.append((chunk, nbytes))
        self._bytes += nbytes
        self._wake()

    def when_drained(self, callback: Callable[[], None]) -> None:
        """Call back once when the buffer is at most half full, or nobody reads it any more."""
        self._drained = callback

    def done(self) -> bool:
        """Whether the item has ended; chunks may still wait for the reader."""
        return self._outcome is not None

    def set_result(self, outcome: Outcome, /) -> None:
        """The item has ended."""
        self._outcome = outcome
        self._wake()
        self._release()

    # ------------------------------------------------------------------ the reader's side

    @property
    def queued(self) -> float | None:
        """Seconds from arrival to dispatch, None before."""
        item = self._item
        return item.dispatched_at - item.arrived_at if item is not None and item.dispatched_at else None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> C:
        while not self._chunks:
            if self._outcome is not None:
                if self._outcome.error is not None:
                    raise self._outcome.error.with_traceback(None)
                raise StopAsyncIteration
            self._reader = self._backend.waiter()
            await self._reader
        chunk, nbytes = self._chunks.popleft()
        self._bytes -= nbytes
        if len(self._chunks) <= MAX_CHUNKS // 2 and self._bytes <= MAX_BYTES // 2:
            self._release()
        return chunk

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop reading: the item leaves the queue or its running batch."""
        if self._outcome is None:
            self._cancel()
        self._chunks.clear()
        self._bytes = 0
        self._release()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _release(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None:
            drained()
