"""Who runs an app that lives inside another server: its lifespan, somebody else, or the first request."""

from __future__ import annotations

import asyncio
import logging
import math

from tidegate import App, Unavailable
from tidegate.service import SetupFailed

__all__ = ["Lifetime"]

log = logging.getLogger("tidegate.asgi")

RETRY_AFTER = 5.0
"""Seconds after a setup that failed until a request may try it again."""


class Lifetime:
    """Starts an app on the first request's loop unless somebody runs it already; once, whoever else asks meanwhile."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._loop: asyncio.AbstractEventLoop | None = None
        self._host: asyncio.Task[None] | None = None
        self._started: asyncio.Future[None] | None = None
        self._stopped = asyncio.Event()
        self._failed_at = -math.inf

    async def ensure(self, *, wait: bool = True) -> None:
        """See to it that the app runs or, without `wait`, that it is being started.

        Raises Unavailable when its setup fails, RuntimeError when it runs on another event loop.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop or self._host is not None and self._host.done():
            self._begin(loop)
        if wait and self._started is not None and not self._started.done():
            # The caller may give up; the start is for all.
            await asyncio.shield(self._started)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._host is None and self._app.status():
            self._loop = loop  # a lifespan, or `async with`, runs it
            return
        if self._host is not None and not self._host.done() and self._loop is not None and not self._loop.is_closed():
            raise RuntimeError("the app runs on another event loop: mount it in one server only")
        if self._loop is loop and loop.time() < self._failed_at + RETRY_AFTER:
            raise Unavailable("the setup failed; it is tried again in a moment", retry_after=RETRY_AFTER)
        self._loop = loop
        self._started = loop.create_future()
        # A batcher's task group has to be left by the task that entered it: one of its own, which outlives the request.
        self._stopped = asyncio.Event()
        self._host = loop.create_task(self._run(self._started, self._stopped))

    async def aclose(self) -> None:
        """Drain and end the app if it was started here."""
        if self._host is not None and not self._host.done():
            self._stopped.set()
            await asyncio.wait({self._host})

    async def _run(self, started: asyncio.Future[None], stopped: asyncio.Event) -> None:
        # It may have run, and been left, on another loop: test clients make one for every request.
        self._app.draining = False
        self._app.drain_ends_at = math.inf
        try:
            async with self._app:
                started.set_result(None)
                # Until the loop ends, which cancels what is left: nobody tells a mounted app that it is over.
                await stopped.wait()
        except Exception as error:  # whatever the user's setup raises
            if started.done():
                raise
            self._failed_at = asyncio.get_running_loop().time()
            detail = error.traceback if isinstance(error, SetupFailed) else ""
            log.error("the app cannot start: %s\n%s", error, detail, exc_info=not detail)
            started.set_exception(Unavailable("the setup failed", retry_after=RETRY_AFTER))
            started.exception()  # the log has it, also if nobody waits any more
        finally:
            if not started.done():
                started.cancel()
