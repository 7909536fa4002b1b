"""The JSON-lines door: a handler over standard input, one line out for each line in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tidegate import App
from tidegate_transports.jsonl_job import STALL, Job, OnError
from tidegate_transports.jsonl_options import Ending, LineOptions, Report
from tidegate_transports.jsonl_pipes import size_of
from tidegate_transports.resume import NoCustomId, Nothing, Previous, reopened

__all__ = ["STALL", "Ending", "JSONLinesTransport", "LineOptions", "NoCustomId", "Report", "reopened", "size_of"]


class JSONLinesTransport:
    """Runs lines from one descriptor through an app and writes the answers to another; `"-"` is standard input to output.

    The descriptors are used as they are and not closed. previous: what an earlier, interrupted run has answered.
    on_error: hears of each line that failed and why.
    """

    def __init__(
        self,
        address: str = "-",
        options: LineOptions | None = None,
        *,
        source: int = 0,
        target: int = 1,
        previous: Previous | None = None,
        on_error: OnError = lambda number, error: None,
    ) -> None:
        if address != "-":
            raise ValueError(f"jsonl={address!r}: write '-', standard input to standard output")
        self.url = "jsonl:-"
        self._options = options or LineOptions()
        self._source = source
        self._target = target
        self._previous = previous or Nothing()
        self._on_error = on_error
        self._job: Job | None = None

    @asynccontextmanager
    async def serve(self, app: App) -> AsyncIterator[None]:
        """Read and write until left; then what is under way is still answered, as far as the app's drain allows."""
        job = self._job = Job(
            app,
            self._options,
            source=self._source,
            target=self._target,
            previous=self._previous,
            on_error=self._on_error,
        )
        running = asyncio.create_task(job.run())
        try:
            yield
        finally:
            job.stop()
            late = None
            if app.draining:
                late = asyncio.get_running_loop().call_at(app.drain_ends_at, running.cancel)
            await asyncio.wait([running])
            if late is not None:
                late.cancel()
            if not running.cancelled():
                running.result()

    def stop(self) -> None:
        """Read no more, answer what is under way, and finish."""
        if self._job is not None:
            self._job.stop()

    def report(self) -> Report:
        """How far it is."""
        return Report() if self._job is None else self._job.report()

    async def finished(self) -> Report:
        """Wait until every line is answered and written, or no more can be."""
        if self._job is None:
            raise RuntimeError("the door is not open: enter its app first")
        await self._job.ended.wait()
        return self._job.report()
