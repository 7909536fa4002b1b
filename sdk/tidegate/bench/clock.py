"""An event loop whose timers keep time: requests must leave when they are due."""

from __future__ import annotations

import asyncio
import select
import selectors
import sys
from typing import Any

__all__ = ["precise_loop"]

_FD_LIMIT = 1024


def precise_loop() -> asyncio.AbstractEventLoop:
    """asyncio's own loop, with timers to some 0.1 ms.

    epoll counts in whole milliseconds, rounded up, and so does uvloop: every request would leave half a millisecond late
    on average, which would then be a part of every latency. Its `time` is a fine clock, which uvloop's is not.
    """
    if sys.platform != "linux":
        return asyncio.new_event_loop()
    return asyncio.SelectorEventLoop(_FineSelector())


if sys.platform == "linux":

    class _FineSelector(selectors.EpollSelector):
        """Waits with `select`, which counts in microseconds, for the one descriptor of epoll, and then asks epoll."""

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, Any]]:
            if timeout is not None and timeout > 0 and self.fileno() < _FD_LIMIT:
                select.select([self.fileno()], (), (), timeout)
                timeout = 0.0
            return super().select(timeout)
