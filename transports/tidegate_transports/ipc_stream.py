"""Streams between a front end and the hub: of what nobody has read yet the hub sends no more than a little."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Self

from tidegate import HandlerError, TidegateError
from tidegate_transports.ipc_values import Value, decode_value

__all__ = ["BYTES_AHEAD", "CHUNKS_AHEAD", "RemoteStream", "Window"]

CHUNKS_AHEAD = 64
BYTES_AHEAD = 256 * 1024
"""What of a stream may be on its way to a front end that has not read it yet: so many chunks, and about so many bytes."""


class Window:
    """What the hub has sent of a stream and the front end has not read."""

    def __init__(self) -> None:
        self._sizes: deque[int] = deque()
        self._bytes = 0
        self._moved = asyncio.Event()

    @property
    def is_full(self) -> bool:
        """Whether nothing more may be sent now; one chunk may always, however large."""
        return len(self._sizes) >= CHUNKS_AHEAD or self._bytes >= BYTES_AHEAD

    async def moved(self) -> None:
        """Wait until something has been read."""
        self._moved.clear()
        await self._moved.wait()

    def sent(self, nbytes: int) -> None:
        """One chunk has been sent."""
        self._sizes.append(nbytes)
        self._bytes += nbytes

    def read(self, chunks: int) -> None:
        """So many chunks have been read, the oldest first."""
        for _ in range(min(chunks, len(self._sizes))):
            self._bytes -= self._sizes.popleft()
        self._moved.set()


class RemoteStream:
    """A stream's chunks; read: told how many have been, every now and then. stopped: nobody reads the rest."""

    def __init__(self, read: Callable[[int], None], stopped: Callable[[], None]) -> None:
        self._read = read
        self._stopped = stopped
        self._chunks: deque[Value] = deque()
        self._error: TidegateError | None = None
        self._ended = False
        self._unsaid = 0
        self._unsaid_bytes = 0
        self._reader: asyncio.Future[None] | None = None
        self.queued: float | None = None

    def push(self, chunk: Value, queued: float) -> None:
        """The hub sent a chunk."""
        self.queued = queued
        self._chunks.append(chunk)
        self._wake()

    def end(self, error: TidegateError | None) -> None:
        """The hub sent the end."""
        self._ended, self._error = True, error
        self._wake()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        while not self._chunks:
            if self._ended:
                if self._error is not None:
                    raise self._error.with_traceback(None)
                raise StopAsyncIteration
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        chunk = self._chunks.popleft()
        self._say_read(chunk.nbytes)
        try:
            return decode_value(chunk)
        except Exception as error:  # a class of the user's may raise anything as it is made again
            await self.aclose()
            raise HandlerError.wrap(error) from error

    def _say_read(self, nbytes: int) -> None:
        """Not chunk by chunk, but long before the hub stops for want of it."""
        self._unsaid += 1
        self._unsaid_bytes += nbytes
        if self._unsaid >= CHUNKS_AHEAD // 4 or self._unsaid_bytes >= BYTES_AHEAD // 4:
            self._read(self._unsaid)
            self._unsaid = self._unsaid_bytes = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop reading."""
        if not self._ended:
            self._stopped()
            self._ended = True
        self._chunks.clear()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
