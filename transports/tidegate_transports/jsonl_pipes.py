"""File descriptors of any kind on threads of their own: regular files, pipes, terminals, also those set non-blocking.

What an event loop offers works for some of them only, and a write to a full pipe must not stop the loop.
"""

from __future__ import annotations

import asyncio
import os
import select
import stat
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

__all__ = ["Reader", "Writer", "size_of"]

CHUNK = 256 * 1024
CHUNKS_AHEAD = 2
MAX_BACKLOG = 8 * 1024 * 1024


class Reader:
    """Reads ahead by two chunks; `on_data` gets each in the event loop, b"" at the end of file, or the OSError.

    `taken` asks for more. A thread that waits for input cannot be called back: it is left behind at the end.
    """

    def __init__(self, fd: int, on_data: Callable[[bytes | OSError], object]) -> None:
        self._fd = fd
        self._on_data = on_data
        self._ahead = threading.Semaphore(CHUNKS_AHEAD)
        self._loop = asyncio.get_running_loop()
        self._stopped = False
        threading.Thread(target=self._run, name="tidegate-jsonl-reader", daemon=True).start()

    def taken(self) -> None:
        """One chunk has been used up."""
        self._ahead.release()

    def stop(self) -> None:
        """Read no more."""
        self._stopped = True
        self._ahead.release()

    def _run(self) -> None:
        data: bytes | OSError | None = None
        while data is None or (data and isinstance(data, bytes)):
            self._ahead.acquire()
            if self._stopped:
                return
            try:
                data = _read(self._fd)
            except OSError as error:
                data = error
            if not _call(self._loop, self._on_data, data):
                return


class Writer:
    """Writes in order what it is given, and never makes the event loop wait. `lines`: those that are written.

    `on_room` is called in the event loop when what waited has become less, `on_error` once when nothing can be written
    any more; whatever is given then is dropped.
    """

    def __init__(self, fd: int, on_room: Callable[[], object], on_error: Callable[[OSError], object]) -> None:
        self._fd = fd
        self._on_room = on_room
        self._on_error = on_error
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[tuple[bytes, int] | None] = SimpleQueue()
        self.lines = 0
        self._given = 0
        self._written = 0
        self._was_full = False
        self._ended = asyncio.Event()
        self._broken = False
        threading.Thread(target=self._run, name="tidegate-jsonl-writer", daemon=True).start()

    @property
    def full(self) -> bool:
        """Whether more should wait until `on_room`."""
        # Said before it is looked at: the thread that makes room in between sees it.
        self._was_full = True
        if self.backlog <= MAX_BACKLOG:
            self._was_full = False
            return False
        return True

    @property
    def backlog(self) -> int:
        """Bytes that wait."""
        return self._given - self._written

    def write(self, data: bytes, lines: int) -> None:
        """Write it, soon; so many lines end in it."""
        self._given += len(data)
        self._queue.put((data, lines))

    async def aclose(self) -> None:
        """Wait until everything is written, or cannot be. The descriptor stays open."""
        self._queue.put(None)
        await self._ended.wait()

    def _run(self) -> None:
        while (given := self._queue.get()) is not None:
            data, lines = given
            if not self._broken:
                try:
                    _write(self._fd, data)
                    self.lines += lines
                except OSError as error:
                    self._broken = True
                    _call(self._loop, self._on_error, error)
            self._written += len(data)
            if self._was_full and self.backlog <= MAX_BACKLOG // 2:
                self._was_full = False
                _call(self._loop, self._on_room)
        _call(self._loop, self._ended.set)


def size_of(fd: int) -> int | None:
    """Bytes from here to the end of a regular file; None for anything else."""
    try:
        status = os.fstat(fd)
        return status.st_size - os.lseek(fd, 0, os.SEEK_CUR) if stat.S_ISREG(status.st_mode) else None
    except OSError:
        return None


def _read(fd: int) -> bytes:
    while True:
        try:
            return os.read(fd, CHUNK)
        except BlockingIOError:
            # Whoever shares it may have set it so, node for one.
            select.select([fd], [], [])


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])


def _call(loop: asyncio.AbstractEventLoop, callback: Callable[..., Any], *arguments: Any) -> bool:
    """Call back in the event loop; False if that is closed and nobody waits any more."""
    try:
        loop.call_soon_threadsafe(callback, *arguments)
    except RuntimeError:
        return False
    return True
