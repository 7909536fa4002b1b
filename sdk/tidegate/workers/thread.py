"""A worker on threads of this process: for notebooks, tests and functions that release the GIL."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any

from tidegate.execution import Execution, Prepared, drive
from tidegate.handler import Handler
from tidegate.sentinels import END, SKIP
from tidegate_batching import Batch, SlowReader

__all__ = ["ThreadWorker"]

log = logging.getLogger("tidegate.worker")

STEPS_AHEAD = 16
"""Steps of a stream that may be on their way from the function to the event loop."""


class ThreadWorker:
    """One handler on one device, on one thread; decode and encode hooks on a second one where they may overlap.

    `setup`, the batch hooks, the function and `teardown` share a thread: torch keeps grad mode and the current device
    per thread. A handler with anything `async def` in it has an event loop on that thread instead.
    """

    def __init__(self, handler: Handler[..., Any], device: str) -> None:
        self._handler = handler
        self._execution = Execution(handler, device)
        options = handler.options
        has_hooks = options.decode_request is not None or options.encode_response is not None
        self.slots = handler.concurrency
        self.prefetch = has_hooks and options.overlap and not handler.is_async and not handler.streams
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._ended = asyncio.Event()
        self._put: Callable[[Batch | None], None]
        if handler.is_async:
            main = self._main_async
        elif self.prefetch:
            main = self._main_overlapping
        else:
            main = self._main
        self._batches: SimpleQueue[Batch | None] = SimpleQueue()
        self._put = self._batches.put
        # A handler that never returns cannot be stopped; it must not keep the interpreter from exiting as well.
        self._thread = threading.Thread(target=main, name=f"tidegate-{handler.name}-{device}", daemon=True)

    async def start(self) -> None:
        """Start the thread and wait until the handler is set up; raises what `setup` raises."""
        self._thread.start()
        await self._ready

    def run(self, batch: Batch) -> None:
        """Begin a batch; its result is reported in the event loop."""
        self._put(batch)

    async def stop(self) -> None:
        """Finish what was begun, tear down and end the thread."""
        self._put(None)
        await self._ended.wait()

    # ------------------------------------------------------------------ one thread

    def _main(self) -> None:
        if self._set_up(lambda: drive(self._execution.start())):
            while (batch := self._batches.get()) is not None:
                # A context of its own: what current_batch() sees must not outlive the batch.
                copy_context().run(drive, self._run(batch, threading.Semaphore(STEPS_AHEAD)))
                # Nothing of the last batch may live on while the thread waits for the next.
                del batch
            self._tear_down(lambda: drive(self._execution.stop()))
        self._report(self._ended.set)

    async def _run(self, batch: Batch, ahead: threading.Semaphore | asyncio.Semaphore) -> None:
        """All of one batch, one step after the other."""
        try:
            prepared = await self._execution.decode(batch)
            if self._handler.streams:
                await self._stream(prepared, ahead)
                result: list[Any] | BaseException = [None] * len(batch.items)
            else:
                outputs = await self._execution.run(prepared)
                result = await self._execution.encode(prepared, outputs)
        except BaseException as error:  # noqa: BLE001 - a handler's SystemExit fails its batch, not the worker
            result = error
        self._report(batch.complete, result)

    async def _stream(self, prepared: Prepared, ahead: threading.Semaphore | asyncio.Semaphore) -> None:
        steps = self._execution.chunks(prepared)
        try:
            async for outputs in steps:
                row = await self._execution.encode(prepared, outputs)
                if isinstance(ahead, threading.Semaphore):
                    ahead.acquire()
                    release: Callable[[], None] = ahead.release
                else:
                    await ahead.acquire()
                    release = _threadsafe(asyncio.get_running_loop(), ahead.release)
                self._report(self._deliver, prepared.batch, row, release)
        finally:
            await steps.aclose()  # type: ignore[attr-defined]  # typed as an iterator, it is a generator

    def _deliver(self, batch: Batch, row: list[Any], release: Callable[[], None]) -> None:
        """One step of a stream, in the event loop."""
        paused = False
        for index, chunk in enumerate(row):
            if chunk is SKIP:
                continue
            if chunk is END:
                batch.finish(index)
            elif isinstance(chunk, BaseException):
                batch.finish(index, chunk)
            elif not batch.chunk(index, chunk, _nbytes(chunk)):
                if self._handler.batched:
                    # Its neighbours cannot wait for it.
                    batch.finish(index, SlowReader())
                else:
                    paused = True
        if paused:
            self._pause(batch, release)
        else:
            release()

    def _pause(self, batch: Batch, release: Callable[[], None]) -> None:
        info = batch.items[0].info
        patience = None if info is None else info.patience
        timer = None if patience is None else self._loop.call_later(patience, batch.finish, 0, SlowReader())

        def resume() -> None:
            if timer is not None:
                timer.cancel()
            release()

        batch.when_drained(0, resume)

    # ------------------------------------------------------------------ two threads

    def _main_overlapping(self) -> None:
        """The function on this thread, decode and encode hooks of neighbouring batches on another."""
        ready: SimpleQueue[Prepared | BaseException | None] = SimpleQueue()
        hooks = _Turns()

        def decode(batch: Batch) -> None:
            prepared = copy_context().run(drive, self._execution.decode(batch))
            self._report(batch.prepared)
            ready.put(prepared)

        def encode(prepared: Prepared, result: list[Any] | BaseException) -> None:
            if not isinstance(result, BaseException):
                try:
                    result = copy_context().run(drive, self._execution.encode(prepared, result))
                except BaseException as error:  # noqa: BLE001 - as in _run
                    result = error
            self._report(prepared.batch.complete, result)

        def receive() -> None:
            while (batch := self._batches.get()) is not None:
                hooks.later(lambda batch=batch: decode(batch))  # type: ignore[misc]
                del batch
            hooks.later(lambda: ready.put(None))

        if self._set_up(lambda: drive(self._execution.start())):
            threads = [
                threading.Thread(target=target, name=f"{self._thread.name}-{name}", daemon=True)
                for target, name in ((receive, "receive"), (hooks.run, "hooks"))
            ]
            for thread in threads:
                thread.start()
            while (prepared := ready.get()) is not None:
                assert isinstance(prepared, Prepared)
                try:
                    result: list[Any] | BaseException = copy_context().run(drive, self._execution.run(prepared))
                except BaseException as error:  # noqa: BLE001 - as in _run
                    result = error
                hooks.first(lambda prepared=prepared, result=result: encode(prepared, result))  # type: ignore[misc]
                del prepared, result
            hooks.stop()
            for thread in threads:
                thread.join()
            self._tear_down(lambda: drive(self._execution.stop()))
        self._report(self._ended.set)

    # ------------------------------------------------------------------ an event loop

    def _main_async(self) -> None:
        asyncio.run(self._serve_async())
        self._report(self._ended.set)

    async def _serve_async(self) -> None:
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Batch | None] = asyncio.Queue()
        self._put = _threadsafe(loop, arrived.put_nowait)
        error: BaseException | None = None
        try:
            await self._execution.start()
        except BaseException as caught:  # noqa: BLE001 - whatever setup raises is the starter's to see
            error = caught
        self._report(self._settle_ready, error)
        if error is not None:
            return
        async with asyncio.TaskGroup() as tasks:
            while (batch := await arrived.get()) is not None:
                tasks.create_task(self._run(batch, asyncio.Semaphore(STEPS_AHEAD)))
                del batch
        try:
            await self._execution.stop()
        except Exception:
            log.exception("teardown of handler %s failed", self._handler.name)

    # ------------------------------------------------------------------ plumbing

    def _set_up(self, start: Callable[[], None]) -> bool:
        try:
            start()
        except BaseException as error:  # noqa: BLE001 - whatever setup raises is the starter's to see
            self._report(self._settle_ready, error)
            return False
        self._report(self._settle_ready, None)
        return True

    def _tear_down(self, stop: Callable[[], None]) -> None:
        try:
            stop()
        except Exception:
            log.exception("teardown of handler %s failed", self._handler.name)

    def _settle_ready(self, error: BaseException | None) -> None:
        if self._ready.done():
            return
        if error is None:
            self._ready.set_result(None)
        else:
            if not isinstance(error, Exception):
                # A SystemExit would end the service instead of the setup.
                wrapped = RuntimeError(repr(error))
                wrapped.__cause__ = error
                error = wrapped
            self._ready.set_exception(error)

    def _report(self, callback: Callable[..., Any], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return


class _Turns:
    """Calls for one thread, those that end a batch before those that begin one."""

    def __init__(self) -> None:
        self._first: deque[Callable[[], None]] = deque()
        self._later: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._stopped = False

    def first(self, call: Callable[[], None]) -> None:
        with self._changed:
            self._first.append(call)
            self._changed.notify()

    def later(self, call: Callable[[], None]) -> None:
        with self._changed:
            self._later.append(call)
            self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def run(self) -> None:
        while True:
            with self._changed:
                while not (self._first or self._later or self._stopped):
                    self._changed.wait()
                if not (self._first or self._later):
                    return
                call = self._first.popleft() if self._first else self._later.popleft()
            call()
            del call


def _threadsafe(loop: asyncio.AbstractEventLoop, callback: Callable[..., Any]) -> Callable[..., None]:
    def call(*args: Any) -> None:
        loop.call_soon_threadsafe(callback, *args)

    return call


def _nbytes(chunk: Any) -> int:
    """About what a chunk takes in a buffer."""
    size = getattr(chunk, "nbytes", None)
    if isinstance(size, int):
        return size
    return len(chunk) + 64 if isinstance(chunk, (str, bytes)) else sys.getsizeof(chunk)
