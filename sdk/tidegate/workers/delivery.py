"""A stream's steps, handed to their readers in the service's event loop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

from tidegate.sentinels import END, SKIP
from tidegate_batching import Batch, SlowReader

__all__ = ["Delivery"]

Release = Callable[[], object]


class Delivery:
    """Gives each item its chunk. `release` lets the worker make one step more; it is held back for a slow reader."""

    def __init__(self, *, batched: bool) -> None:
        self._batched = batched
        self._paused: dict[Batch, list[Release]] = {}

    def deliver(self, batch: Batch, row: list[Any], release: Release) -> None:
        """One step: a chunk, END, SKIP or exception instance per item."""
        paused = False
        for index, chunk in enumerate(row):
            if chunk is SKIP:
                continue
            if chunk is END:
                batch.finish(index)
            elif isinstance(chunk, BaseException):
                batch.finish(index, chunk)
            elif not batch.chunk(index, chunk, _nbytes(chunk)):
                if self._batched:
                    # Its neighbours cannot wait for it.
                    batch.finish(index, SlowReader())
                else:
                    paused = True
        if paused:
            self._pause(batch, release)
        else:
            release()

    def _pause(self, batch: Batch, release: Release) -> None:
        """Hold an unbatched generator back until its reader has caught up, or its patience is over."""
        if batch in self._paused:  # by a step that was on its way already
            self._paused[batch].append(release)
            return
        releases = self._paused[batch] = [release]
        info = batch.items[0].info
        patience = None if info is None else info.patience
        timer = None
        if patience is not None:
            timer = asyncio.get_running_loop().call_later(patience, batch.finish, 0, SlowReader())

        def resume() -> None:
            if timer is not None:
                timer.cancel()
            del self._paused[batch]
            for go_on in releases:
                go_on()

        batch.when_drained(0, resume)


def _nbytes(chunk: Any) -> int:
    """About what a chunk takes in a buffer."""
    size = getattr(chunk, "nbytes", None)
    if isinstance(size, int):
        return size
    return len(chunk) + 64 if isinstance(chunk, (str, bytes)) else sys.getsizeof(chunk)
