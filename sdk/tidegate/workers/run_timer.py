"""How long a worker's batch runs, against max_run_time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tidegate_batching import Batch

__all__ = ["RunTimer"]


class RunTimer:
    """Calls `outlived(limit)` when a batch has run for `limit` seconds; None never does.

    A slot's batches run one after the other: the time of the second begins when the first has ended.
    """

    def __init__(self, limit: float | None, outlived: Callable[[float], None]) -> None:
        self._limit = limit
        self._outlived = outlived
        self._waiting: dict[int, list[Batch]] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}

    def begin(self, batch: Batch) -> None:
        """A batch was given to the worker."""
        if self._limit is None:
            return
        waiting = self._waiting.setdefault(batch.slot, [])
        waiting.append(batch)
        if len(waiting) == 1:
            self._arm(batch.slot)

    def end(self, batch: Batch) -> None:
        """A batch has ended."""
        if self._limit is None:
            return
        waiting = self._waiting[batch.slot]
        waiting.remove(batch)
        self._timers.pop(batch.slot).cancel()
        if waiting:
            self._arm(batch.slot)

    def stop(self) -> None:
        """Time nothing any more."""
        for timer in self._timers.values():
            timer.cancel()

    def _arm(self, slot: int) -> None:
        assert self._limit is not None
        self._timers[slot] = asyncio.get_running_loop().call_later(self._limit, self._outlived, self._limit)
