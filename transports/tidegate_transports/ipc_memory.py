"""Memory that a front end and the hub both see, for values that are too large to be copied through a socket.

Each direction has a segment of its own. Who sends writes a value into a block of it, once, and the frame says where it
lies; who receives looks at it there, for as long as anybody holds what was made of it, and then says so. When there is
no block to be had the value travels in the frame: this memory is never waited for.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from tidegate.workers.shared_memory import IN_MEMORY, Arena, Segment, SharedMemoryFull

__all__ = ["LARGE", "MOST", "Inbox", "Memory", "Outbox", "Place"]

LARGE = 16 * 1024
"""Bytes from which a value lies in shared memory: giving a block back takes as long as copying 4 to 8 KiB."""

MOST = 256 << 20
"""Bytes on their way to one process through shared memory at a time; what comes on top travels in frames."""

Place = tuple[int, int]
"""Where a value lies: offset and length in bytes."""


class Outbox:
    """What this process writes for the other."""

    def __init__(self, segment: Segment) -> None:
        self._arena = Arena(segment, gives_back=True, limit=MOST)

    @property
    def used(self) -> int:
        """Bytes that the other process has not done with."""
        return self._arena.used

    def put(self, data: memoryview) -> Place | None:
        """Write these bytes where the other process sees them; None if they are few, or there is no room."""
        nbytes = len(data)
        if nbytes < LARGE:
            return None
        try:
            offset, _ = self._arena.allocate(nbytes)
        except SharedMemoryFull:
            return None
        # Not by NumPy, which would give up the GIL and wait for it again beside a busy thread.
        with memoryview(self._arena.segment.buffer) as room:
            room[offset : offset + nbytes] = data
        return offset, nbytes

    def take_back(self, offsets: Iterable[int]) -> None:
        """These blocks are free again; raises ValueError for one that was not handed out."""
        for offset in offsets:
            self._arena.free(offset)

    def close(self) -> None:
        """Write no more."""
        self._arena.segment.close()


class Inbox:
    """What the other process wrote for this one.

    wake: called when there is something to tell it, in whatever thread gave the last look up; not again before `done`
    has been asked.
    """

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._looks: dict[int, _Look] = {}
        self._done: deque[int] = deque()
        self._said = False
        self.wake: Callable[[], None] = _nobody

    def look(self, place: Place) -> np.ndarray:
        """The bytes there, writable. The block is theirs until nobody holds this array or anything that lies on it.

        Raises ValueError if they are not there.
        """
        offset, nbytes = place
        # Its base is no array, so that it is itself the base of every array on it and lives as long as they do.
        found: np.ndarray = np.ndarray(nbytes, np.uint8, self._segment.view(offset, nbytes))
        look = self._looks[offset] = _Look(found, self._gone)
        look.offset = offset
        return found

    def done(self) -> list[int]:
        """The blocks that nobody looks at any more, each told once."""
        self._said = False
        # As many as there are now: other threads may add to them meanwhile.
        return [self._done.popleft() for _ in range(len(self._done))]

    def close(self) -> None:
        """Look at no more. What is being looked at stays valid, and nobody is told of its end."""
        self.wake = _nobody
        self._looks.clear()
        self._segment.close()

    def _gone(self, look: _Look) -> None:
        # In any thread, and in the midst of anything: no lock may be taken here.
        self._looks.pop(look.offset, None)
        self._done.append(look.offset)
        if not self._said:
            self._said = True
            self.wake()


class Memory:
    """Both directions, as one of the two processes has them."""

    def __init__(self, inbox: Segment, outbox: Segment) -> None:
        self.inbox = Inbox(inbox)
        self.outbox = Outbox(outbox)
        self._segments = (outbox, inbox)

    @classmethod
    def create(cls) -> Memory | None:
        """New memory; None where there is no such thing."""
        if not IN_MEMORY:
            # What stands in for it is a file on a disk, and may be written to it.
            return None
        made: list[Segment] = []
        try:
            for _ in range(2):
                made.append(Segment.create())
        except SharedMemoryFull:
            for segment in made:
                segment.close()
            return None
        return cls(*made)

    @classmethod
    def open(cls, descriptors: Sequence[int]) -> Memory | None:
        """The memory of which the other process gave the `descriptors`; None if it gave none."""
        if not descriptors:
            return None
        inbox, outbox = map(Segment.open, descriptors)
        return cls(inbox, outbox)

    @property
    def descriptors(self) -> list[int]:
        """For the other process to inherit, and to `open`."""
        return [segment.fd for segment in self._segments]

    def close(self) -> None:
        """Give it up; what is being looked at stays valid."""
        self.inbox.close()
        self.outbox.close()


class _Look(weakref.ref[Any]):
    """Knows of which block it was when it ends."""

    __slots__ = ("offset",)

    offset: int


def _nobody() -> None:
    """There is nobody to tell, yet or any more."""
