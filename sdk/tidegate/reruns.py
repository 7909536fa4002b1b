"""Batches that fail as a whole and run again in parts, told in the log: their callers may never notice."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from tidegate_batching import OutOfMemory
from tidegate_batching.errors import from_foreign

__all__ = ["Reruns"]

log = logging.getLogger("tidegate.service")

QUIET = 60.0
"""Seconds for which a handler's failures of one type are told only once."""


class Reruns:
    """What is told of one handler's failed batches. A batch of one is not: its caller gets the error.

    now: a clock, in seconds.
    """

    def __init__(self, handler: str, now: Callable[[], float] = time.monotonic) -> None:
        self._handler = handler
        self._now = now
        self._told_at: dict[str, float] = {}

    def failed(self, size: int, error: BaseException) -> None:
        """A batch of that many items failed."""
        if size == 1:
            return
        known = from_foreign(error)
        kind = getattr(known, "type_name", type(known).__name__)
        now = self._now()
        if now - self._told_at.get(kind, -math.inf) < QUIET:
            return
        self._told_at[kind] = now
        parts = "smaller batches" if isinstance(known, OutOfMemory) else "parts"
        # As text: whoever keeps the record need not keep the frames that the error came through, and their arrays.
        reason = f"OutOfMemory: {known}" if isinstance(known, OutOfMemory) else str(known)
        log.warning(
            "handler %s: a batch of %d items failed and is run again in %s: %s", self._handler, size, parts, reason
        )
