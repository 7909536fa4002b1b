"""A worker on a thread of this process: for notebooks, tests and functions that release the GIL."""

from __future__ import annotations

import asyncio
import threading
from queue import SimpleQueue
from typing import Any

from tidegate.execution import Execution
from tidegate.handler import Handler
from tidegate_batching import Batch

__all__ = ["ThreadWorker"]


class ThreadWorker:
    """One handler on one device on one thread, one batch at a time.

    `setup`, the batch hooks and the function all run on that thread: torch keeps grad mode and the current device
    per thread.
    """

    def __init__(self, handler: Handler[..., Any], device: str) -> None:
        self._handler = handler
        self._device = device
        self._batches: SimpleQueue[Batch | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._ended = asyncio.Event()
        # A handler that never returns cannot be stopped; it must not keep the interpreter from exiting as well.
        self._thread = threading.Thread(target=self._main, name=f"tidegate-{handler.name}-{device}", daemon=True)

    async def start(self) -> None:
        """Start the thread and wait until the handler is set up; raises what `setup` raises."""
        self._thread.start()
        await self._ready

    def run(self, batch: Batch) -> None:
        """Begin a batch; its result is reported in the event loop."""
        self._batches.put(batch)

    async def stop(self) -> None:
        """Finish what was begun and end the thread."""
        self._batches.put(None)
        await self._ended.wait()

    def _main(self) -> None:
        try:
            execution = Execution(self._handler, self._device)
        except BaseException as error:  # noqa: BLE001 - whatever setup raises is the starter's to see
            self._report(self._set_up, error)
            self._report(self._ended.set)
            return
        self._report(self._set_up, None)
        while (batch := self._batches.get()) is not None:
            try:
                result: list[Any] | BaseException = execution.run(batch.values)
            except BaseException as error:  # noqa: BLE001 - a handler's SystemExit fails its batch, not the worker
                result = error
            self._report(batch.complete, result)
            # Nothing of the last batch may live on while the thread waits for the next.
            del batch, result
        self._report(self._ended.set)

    def _set_up(self, error: BaseException | None) -> None:
        if self._ready.done():
            return
        if error is None:
            self._ready.set_result(None)
            return
        if not isinstance(error, Exception) or isinstance(error, StopIteration):
            # A future takes neither a SystemExit nor a StopIteration; the cause keeps the traceback.
            wrapped = RuntimeError(repr(error))
            wrapped.__cause__ = error
            error = wrapped
        self._ready.set_exception(error)

    def _report(self, callback: Any, *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return
