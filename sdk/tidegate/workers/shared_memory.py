"""Memory that two processes see, known by its file descriptor alone: nothing is named, so nothing can be left behind.

Each direction between a service and a worker, or a front end, has a segment of its own. Whoever writes into it hands out
its blocks (`Arena`); the other side only looks (`Segment.view`), and says when it has done with a block.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
import threading
from bisect import bisect_left
from contextlib import suppress
from typing import NamedTuple

from tidegate.workers.pinning import Pinned, pinned

__all__ = ["Arena", "Block", "Segment", "SharedMemoryFull"]

ALIGNMENT = 64
"""Bytes: a cache line, and what the widest vector instructions like best."""

FIRST_SIZE = 1 << 20

IN_MEMORY = hasattr(os, "memfd_create")
"""Linux has files that are memory alone; elsewhere they lie on a disk, unlinked."""

_ZEROS = bytes(1 << 20)


class SharedMemoryFull(MemoryError):
    """The system gives no more memory to share; a smaller batch may still fit."""


class Segment:
    """A growable piece of memory, mapped into this process.

    A view stays valid for as long as someone holds it, whatever happens to the segment: growing maps the memory anew
    and leaves older mappings to those who look through them, and it never shrinks, so that no access can fail.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._mapped: mmap.mmap | None = None
        self.size = 0
        """Bytes that are mapped here; the memory itself may have grown since."""
        self._pinning = False
        self._pins: list[Pinned] = []
        self.ensure(os.fstat(fd).st_size)

    @classmethod
    def create(cls, size: int = FIRST_SIZE) -> Segment:
        """New memory of at least this many bytes; raises SharedMemoryFull."""
        fd = _nameless_file()
        try:
            segment = cls(fd)
            segment.grow(size)
        except BaseException:
            os.close(fd)
            raise
        return segment

    @classmethod
    def open(cls, fd: int) -> Segment:
        """The memory behind a descriptor that was inherited; it is closed with the segment."""
        return cls(fd)

    @property
    def buffer(self) -> mmap.mmap:
        """All of it, as it is mapped now."""
        if self._mapped is None:
            raise ValueError("the shared memory is closed, or empty")
        return self._mapped

    @property
    def pinned(self) -> bool:
        """Whether the GPU can read and write it without help from the CPU."""
        return self._pinning

    def grow(self, size: int) -> None:
        """Make it at least this large; raises SharedMemoryFull. For the writing side."""
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        if size <= self.size:
            return
        try:
            if IN_MEMORY:
                os.ftruncate(self.fd, size)
            else:
                # On a disk that is full this fails here, not when the memory is used.
                for start in range(self.size, size, len(_ZEROS)):
                    os.pwrite(self.fd, _ZEROS[: size - start], start)
        except (OSError, OverflowError) as error:
            raise SharedMemoryFull(f"no {size} bytes of shared memory: {error}") from error
        self.ensure(size)

    def ensure(self, size: int) -> None:
        """See at least this many bytes, which the other side says are there; raises ValueError if they are not."""
        if size <= self.size:
            return
        there = os.fstat(self.fd).st_size
        if size > there:
            raise ValueError(f"offset {size} lies outside of the shared memory, which has {there} bytes")
        try:
            mapped = mmap.mmap(self.fd, there)
        except (OSError, ValueError, OverflowError) as error:  # such as a limit on the address space
            raise SharedMemoryFull(f"{there} bytes of shared memory cannot be mapped: {error}") from error
        # Never closed by hand: whoever looks through the last one keeps it, and with the last view it goes.
        self._mapped, self.size = mapped, there
        if self._pinning:
            self._pin()

    def view(self, offset: int, size: int) -> memoryview:
        """Some of its bytes, writable; raises ValueError if they are not there."""
        if offset < 0 or size < 0:
            raise ValueError(f"offset {offset} and size {size}: neither can be negative")
        self.ensure(offset + size)
        return memoryview(self.buffer)[offset : offset + size]

    def give_back(self, start: int) -> None:
        """Return the memory from here on to the system, until it is written again; it reads as zeros."""
        start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        # What a GPU has pinned would stay, and no longer be what the CPU writes.
        if start < self.size and not self.pinned and hasattr(mmap, "MADV_REMOVE"):
            with suppress(OSError):
                self.buffer.madvise(mmap.MADV_REMOVE, start, self.size - start)

    def pin(self) -> bool:
        """Let the GPU reach this memory itself, now and when it has grown; whether that worked.

        Asks for torch with CUDA at work, and otherwise does nothing. A failure is logged once, and costs speed only.
        """
        if not self._pinning and self._mapped is not None:
            self._pin()
        return self._pinning

    def close(self) -> None:
        """Give up the descriptor and the mapping; views that someone holds stay valid."""
        # What a GPU has pinned is unpinned before it can be unmapped.
        while self._pins:
            self._pins.pop().undo()
        self._pinning = False
        self._mapped, self.size = None, 0
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _pin(self) -> None:
        pin = pinned(self.buffer)
        self._pinning = pin is not None
        if pin is not None:
            # Older mappings stay pinned for those who look through them: sizes double, so they are less than this one.
            self._pins.append(pin)


class Block(NamedTuple):
    """Some bytes of a segment, handed out by its arena."""

    offset: int
    size: int


class Arena:
    """Hands out the blocks of a segment that this process writes; may be called from several threads.

    The lowest block that fits is taken: its pages were used before, and are in the caches. gives_back: whether memory
    that has long not been needed is returned to the system, which must not be when the other side has pinned it.
    limit: bytes that the segment may grow to.
    """

    REVIEWED_AFTER = 256
    """Blocks between two looks at how much is needed."""

    def __init__(self, segment: Segment, *, gives_back: bool = False, limit: int = sys.maxsize) -> None:
        self.segment = segment
        self.gives_back = gives_back
        self.limit = limit
        self._lock = threading.Lock()
        self._holes: list[Block] = [Block(0, segment.size)] if segment.size else []
        self._used: dict[int, int] = {}  # sizes by offset
        self._handed_out = 0
        self._needed = 0  # the highest byte in use since the last look

    @property
    def used(self) -> int:
        """Bytes that are handed out."""
        return sum(self._used.values())

    @property
    def holes(self) -> list[Block]:
        """What is free, in order; no two touch."""
        return list(self._holes)

    def allocate(self, nbytes: int) -> Block:
        """A block of at least this many bytes, aligned to 64; grows the segment if it must.

        Raises SharedMemoryFull if the system has no more, or it would grow beyond its limit.
        """
        size = max(1, -(-nbytes // ALIGNMENT)) * ALIGNMENT
        with self._lock:
            block = self._take(size)
            if block is None:
                self._grow(size)
                block = self._take(size)
                assert block is not None
            self._used[block.offset] = size
            self._handed_out += 1
            self._needed = max(self._needed, block.offset + size)
            return block

    def free(self, offset: int) -> None:
        """Take back the block at this offset; raises ValueError if there is none."""
        with self._lock:
            size = self._used.pop(offset, None)
            if size is None:
                raise ValueError(f"offset {offset}: no block was handed out there, or it was taken back before")
            self._put(Block(offset, size))
            if self._handed_out >= self.REVIEWED_AFTER:
                self._review()

    def _take(self, size: int) -> Block | None:
        for index, hole in enumerate(self._holes):
            if hole.size >= size:
                if hole.size == size:
                    del self._holes[index]
                else:
                    self._holes[index] = Block(hole.offset + size, hole.size - size)
                return Block(hole.offset, size)
        return None

    def _put(self, block: Block) -> None:
        """A hole again, one with its neighbours."""
        index = bisect_left(self._holes, block)
        offset, end = block.offset, block.offset + block.size
        after = index
        if index < len(self._holes) and self._holes[index].offset == end:
            end += self._holes[index].size
            after += 1
        if index and sum(self._holes[index - 1]) == offset:
            index -= 1
            offset = self._holes[index].offset
        self._holes[index:after] = [Block(offset, end - offset)]

    def _grow(self, size: int) -> None:
        before = self.segment.size
        last = self._holes[-1] if self._holes else None
        enough = before + size - (last.size if last is not None and sum(last) == before else 0)
        if enough > self.limit:
            raise SharedMemoryFull(f"no {enough} bytes of shared memory: its limit is {self.limit}")
        try:
            self.segment.grow(min(self.limit, max(FIRST_SIZE, 2 * before, enough)))
        except SharedMemoryFull:
            # Twice as much may be too much where enough is not.
            self.segment.grow(enough)
        self._put(Block(before, self.segment.size - before))

    def _review(self) -> None:
        """Return what a burst needed and nobody has needed since: beyond twice what was used lately."""
        kept = max(FIRST_SIZE, 2 * self._needed)
        if self.gives_back and kept < self.segment.size // 2:
            self.segment.give_back(kept)
        self._handed_out = 0
        self._needed = max((offset + size for offset, size in self._used.items()), default=0)


# ---------------------------------------------------------------------- what the system has


def _nameless_file() -> int:
    """A new file of no name, of which this process and those that inherit its descriptor know."""
    try:
        if IN_MEMORY:
            fd = os.memfd_create("tidegate", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            # The other side runs the user's code: whatever that does, memory that is there stays.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
            return fd
        import tempfile  # not needed on Linux, and slow to load

        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())
    except OSError as error:
        raise SharedMemoryFull(f"no shared memory: {error}") from error
