"""A worker on threads of this process: for notebooks, tests and functions that release the GIL."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import aclosing, suppress
from contextvars import copy_context
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from tidegate.execution import Execution, Prepared, drive
from tidegate.handler import Handler
from tidegate.sentinels import END, SKIP
from tidegate_batching import Batch, OutOfMemory, SlowReader
from tidegate_batching.errors import from_foreign

__all__ = ["ThreadWorker"]

log = logging.getLogger("tidegate.worker")

STEPS_AHEAD = 16
"""Steps of a stream that may be on their way from the function to the event loop."""

Ahead = threading.Semaphore | asyncio.Semaphore


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
        self._paused: dict[Batch, list[Callable[[], object]]] = {}
        self._batches: SimpleQueue[Batch | None] = SimpleQueue()
        self._wake: Callable[[], object] = lambda: None  # for those that do not wait at the queue itself
        if handler.is_async:
            main = self._main_async
        elif self.prefetch:
            main = self._main_overlapping
        else:
            main = self._main
        # A handler that never returns cannot be stopped; it must not keep the interpreter from exiting as well.
        name = f"tidegate-{handler.name}-{device}"
        self._thread = threading.Thread(target=self._live, args=(main,), name=name, daemon=True)

    async def start(self) -> None:
        """Start the thread and wait until the handler is set up; raises what `setup` raises."""
        self._thread.start()
        await self._ready

    def run(self, batch: Batch) -> None:
        """Begin a batch; its result is reported in the event loop."""
        self._begin(batch)

    async def stop(self) -> None:
        """Finish what was begun, tear down and end the thread."""
        if self._thread.ident is not None:
            self._begin(None)
            await self._ended.wait()

    def _begin(self, batch: Batch | None) -> None:
        self._batches.put(batch)
        self._wake()

    def _live(self, main: Callable[[], None]) -> None:
        try:
            main()
        finally:
            self._report(self._ended.set)

    # ------------------------------------------------------------------ one thread

    def _main(self) -> None:
        if not self._set_up():
            return
        while (batch := self._batches.get()) is not None:
            # A context of its own: what current_batch() sees must not outlive the batch.
            copy_context().run(drive, self._run(batch, threading.Semaphore(STEPS_AHEAD)))
            # Nothing of the last batch may live on while the thread waits for the next.
            del batch
        self._tear_down()

    async def _run(self, batch: Batch, ahead: Ahead) -> None:
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
            result = _failure(error)
        self._report(batch.complete, result)
        # Its traceback knows this frame: the two would keep each other, and the batch's arrays, alive.
        del result

    async def _stream(self, prepared: Prepared, ahead: Ahead) -> None:
        async with aclosing(self._execution.chunks(prepared)) as steps:
            async for outputs in steps:
                row = await self._execution.encode(prepared, outputs)
                if isinstance(ahead, threading.Semaphore):
                    while not ahead.acquire(timeout=1.0):
                        if self._loop.is_closed():  # nobody will ever release it
                            return
                    release: Callable[[], object] = ahead.release
                else:
                    await ahead.acquire()
                    release = _threadsafe(asyncio.get_running_loop(), ahead.release)
                if not self._report(self._deliver, prepared.batch, row, release):
                    return

    def _deliver(self, batch: Batch, row: list[Any], release: Callable[[], object]) -> None:
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

    def _pause(self, batch: Batch, release: Callable[[], object]) -> None:
        """Hold an unbatched generator back until its reader has caught up, or its patience is over."""
        if batch in self._paused:  # by a step that was on its way already
            self._paused[batch].append(release)
            return
        releases = self._paused[batch] = [release]
        info = batch.items[0].info
        patience = None if info is None else info.patience
        timer = None if patience is None else self._loop.call_later(patience, batch.finish, 0, SlowReader())

        def resume() -> None:
            if timer is not None:
                timer.cancel()
            del self._paused[batch]
            for go_on in releases:
                go_on()

        batch.when_drained(0, resume)

    # ------------------------------------------------------------------ two threads

    def _main_overlapping(self) -> None:
        """The function on this thread, decode and encode hooks of neighbouring batches on another."""
        ready: SimpleQueue[Prepared | None] = SimpleQueue()
        hooks = _Turns()

        def take() -> None:
            for batch in self._taken():
                hooks.later(partial(ready.put, None) if batch is None else partial(decode, batch))

        def decode(batch: Batch) -> None:
            prepared = copy_context().run(drive, self._execution.decode(batch))
            self._report(batch.prepared)
            ready.put(prepared)

        def encode(prepared: Prepared, outputs: list[Any]) -> None:
            self._report(prepared.batch.complete, copy_context().run(drive, self._execution.encode(prepared, outputs)))

        if not self._set_up():
            return
        self._wake = partial(hooks.later, take)
        self._wake()
        beside = threading.Thread(target=hooks.run, name=f"{self._thread.name}-hooks", daemon=True)
        beside.start()
        while (prepared := ready.get()) is not None:
            try:
                outputs = copy_context().run(drive, self._execution.run(prepared))
            except BaseException as error:  # noqa: BLE001 - as in _run
                # In its turn: a slot's batches are completed in the order in which they were begun.
                hooks.first(partial(self._report, prepared.batch.complete, _failure(error)))
            else:
                hooks.first(partial(encode, prepared, outputs))
                del outputs
            del prepared
        hooks.stop()
        beside.join()
        self._tear_down()

    # ------------------------------------------------------------------ an event loop

    def _main_async(self) -> None:
        asyncio.run(self._serve_async())

    async def _serve_async(self) -> None:
        arrived = asyncio.Event()
        error: BaseException | None = None
        try:
            await self._execution.start()
        except BaseException as caught:  # noqa: BLE001 - whatever setup raises is the starter's to see
            error = caught
        self._report(self._settle_ready, error)
        if error is not None:
            return
        self._wake = _threadsafe(asyncio.get_running_loop(), arrived.set)
        self._wake()
        stopping = False
        async with asyncio.TaskGroup() as tasks:
            while not stopping:
                await arrived.wait()
                arrived.clear()
                for batch in self._taken():
                    if batch is None:
                        stopping = True
                    else:
                        tasks.create_task(self._run(batch, asyncio.Semaphore(STEPS_AHEAD)))
                batch = None  # as in _main
        try:
            await self._execution.stop()
        except BaseException:
            log.exception("teardown of handler %s failed", self._handler.name)

    # ------------------------------------------------------------------ plumbing

    def _taken(self) -> Iterator[Batch | None]:
        """What has been begun by now."""
        with suppress(Empty):
            while True:
                yield self._batches.get_nowait()

    def _set_up(self) -> bool:
        error: BaseException | None = None
        try:
            drive(self._execution.start())
        except BaseException as caught:  # noqa: BLE001 - whatever setup raises is the starter's to see
            error = caught
        self._report(self._settle_ready, error)
        return error is None

    def _tear_down(self) -> None:
        try:
            drive(self._execution.stop())
        except BaseException:
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

    def _report(self, callback: Callable[..., Any], *args: Any) -> bool:
        """Call back in the event loop; False if that is closed and nobody waits any more."""
        return _threadsafe(self._loop, callback)(*args)


class _Turns:
    """Calls for one thread, those that end a batch before those that begin one."""

    def __init__(self) -> None:
        self._first: deque[Callable[[], object]] = deque()
        self._later: deque[Callable[[], object]] = deque()
        self._changed = threading.Condition()
        self._stopped = False

    def first(self, call: Callable[[], object]) -> None:
        with self._changed:
            self._first.append(call)
            self._changed.notify()

    def later(self, call: Callable[[], object]) -> None:
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


def _threadsafe(loop: asyncio.AbstractEventLoop, callback: Callable[..., Any]) -> Callable[..., bool]:
    """For another thread to call; False if the loop is closed."""

    def call(*args: Any) -> bool:
        try:
            loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            return False
        return True

    return call


def _failure(error: BaseException) -> BaseException:
    """The error to report: a lack of memory goes without the frames that it came through, for they hold the memory."""
    known = from_foreign(error)
    if not isinstance(known, OutOfMemory):
        return error
    known.__cause__ = known.__context__ = None
    return known.with_traceback(None)


def _nbytes(chunk: Any) -> int:
    """About what a chunk takes in a buffer."""
    size = getattr(chunk, "nbytes", None)
    if isinstance(size, int):
        return size
    return len(chunk) + 64 if isinstance(chunk, (str, bytes)) else sys.getsizeof(chunk)
