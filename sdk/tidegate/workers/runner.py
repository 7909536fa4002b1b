"""The loop of a worker: batches in, events out, on one thread, or two where hooks overlap, or an event loop's.

The same loop runs on a thread of the service and in a process of its own; what differs is where the events go.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, suppress
from contextvars import Context, copy_context
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from tidegate.execution import Execution, Prepared, Work, drive
from tidegate.handler import Handler
from tidegate_batching import OutOfMemory
from tidegate_batching.errors import from_foreign

__all__ = ["STEPS_AHEAD", "Events", "Runner", "overlaps"]

log = logging.getLogger("tidegate.worker")

STEPS_AHEAD = 16
"""Steps of a stream that may be on their way from the function to the event loop."""

Ahead = threading.Semaphore | asyncio.Semaphore


class Events(Protocol):
    """What a runner reports, from whichever of its threads it happens on; each returns False if nobody listens."""

    def ready(self, error: BaseException | None) -> bool: ...
    def prepared(self, batch: Any) -> bool: ...
    def row(self, batch: Any, row: Sequence[Any], release: Callable[[], object]) -> bool: ...
    def complete(self, batch: Any, result: Sequence[Any] | BaseException) -> bool: ...
    def listening(self) -> bool: ...


def overlaps(handler: Handler[..., Any]) -> bool:
    """Whether decode and encode hooks of neighbouring batches run on a second thread while the function runs."""
    options = handler.options
    has_hooks = options.decode_request is not None or options.encode_response is not None
    return has_hooks and options.overlap and not handler.is_async and not handler.streams


class Runner:
    """One handler on one device: `setup`, then batches until it is told to stop, then `teardown`.

    `setup`, the batch hooks, the function and `teardown` share the thread that calls `main`: torch keeps grad mode and
    the current device per thread. A handler with anything `async def` in it has an event loop on that thread instead.
    """

    def __init__(
        self,
        handler: Handler[..., Any],
        execution: Execution,
        events: Events,
        take: Callable[[], Work | None] | None = None,
    ) -> None:
        """take: where a runner on one thread waits for its batches, if not for `begin`."""
        self._handler = handler
        self._execution = execution
        self._events = events
        self._batches: SimpleQueue[Work | None] = SimpleQueue()
        self._take: Callable[[], Work | None] = take or self._batches.get
        self._wake: Callable[[], object] = lambda: None  # for those that do not wait at the queue itself

    def begin(self, batch: Work | None) -> None:
        """Run this one after those before; None ends the runner. From any thread."""
        self._batches.put(batch)
        self._wake()

    def main(self) -> None:
        """Everything, from `setup` to `teardown`, on this thread."""
        if self._handler.is_async:
            asyncio.run(self._serve_async())
        elif overlaps(self._handler):
            self._serve_overlapping()
        else:
            self._serve()

    # ------------------------------------------------------------------ one thread

    def _serve(self) -> None:
        if not self._set_up():
            return
        while (batch := self._take()) is not None:
            # A context of its own: what current_batch() sees must not outlive the batch.
            copy_context().run(drive, self._run(batch, threading.Semaphore))
            # Nothing of the last batch may live on while the thread waits for the next.
            del batch
        self._tear_down()

    async def _run(self, batch: Work, semaphore: type[Ahead]) -> None:
        """All of one batch, one step after the other. semaphore: of which kind a stream needs one."""
        try:
            prepared = await self._execution.decode(batch)
            if self._handler.streams:
                await self._stream(prepared, semaphore(STEPS_AHEAD))
                result: Sequence[Any] | BaseException = [None] * len(batch.items)
            else:
                outputs = await self._execution.run(prepared)
                result = await self._execution.encode(prepared, outputs)
        except BaseException as error:  # noqa: BLE001 - a handler's SystemExit fails its batch, not the worker
            result = _failure(error)
        self._events.complete(batch, result)
        # Its traceback knows this frame: the two would keep each other, and the batch's arrays, alive.
        del result

    async def _stream(self, prepared: Prepared, ahead: Ahead) -> None:
        async with aclosing(self._execution.chunks(prepared)) as steps:
            async for outputs in steps:
                row = await self._execution.encode(prepared, outputs)
                if isinstance(ahead, threading.Semaphore):
                    while not ahead.acquire(timeout=1.0):
                        if not self._events.listening():  # nobody will ever release it
                            return
                    release: Callable[[], object] = ahead.release
                else:
                    await ahead.acquire()
                    release = threadsafe(asyncio.get_running_loop(), ahead.release)
                if not self._events.row(prepared.batch, row, release):
                    return

    # ------------------------------------------------------------------ two threads

    def _serve_overlapping(self) -> None:
        """The function on this thread, decode and encode hooks of neighbouring batches on another."""
        ready: SimpleQueue[Prepared | None] = SimpleQueue()
        hooks = _Turns()

        def take() -> None:
            for batch in self._taken():
                hooks.later(partial(ready.put, None) if batch is None else partial(decode, batch))

        def decode(batch: Work) -> None:
            prepared = copy_context().run(drive, self._execution.decode(batch))
            self._events.prepared(batch)
            ready.put(prepared)

        def encode(prepared: Prepared, outputs: Sequence[Any]) -> None:
            encoded = copy_context().run(drive, self._execution.encode(prepared, outputs))
            self._events.complete(prepared.batch, encoded)

        if not self._set_up():
            return
        self._wake = partial(hooks.later, take)
        self._wake()
        name = f"{threading.current_thread().name}-hooks"
        beside = threading.Thread(target=hooks.run, name=name, daemon=True)
        beside.start()
        while (prepared := ready.get()) is not None:
            try:
                # Cut up here, for the function runs again before the hooks see them.
                outputs = list(copy_context().run(drive, self._execution.run(prepared)))
            except BaseException as error:  # noqa: BLE001 - as in _run
                # In its turn: a slot's batches are completed in the order in which they were begun.
                hooks.first(partial(self._events.complete, prepared.batch, _failure(error)))
            else:
                hooks.first(partial(encode, prepared, outputs))
                del outputs
            del prepared
        hooks.stop()
        beside.join()
        self._tear_down()

    # ------------------------------------------------------------------ an event loop

    async def _serve_async(self) -> None:
        arrived = asyncio.Event()
        error: BaseException | None = None
        try:
            await self._execution.start()
        except BaseException as caught:  # noqa: BLE001 - whatever setup raises is the starter's to see
            error = caught
        self._events.ready(error)
        if error is not None:
            return
        self._wake = threadsafe(asyncio.get_running_loop(), arrived.set)
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
                        tasks.create_task(self._run(batch, asyncio.Semaphore))
                batch = None  # as in _serve
        try:
            await self._execution.stop()
        except BaseException:
            log.exception("teardown of handler %s failed", self._handler.name)

    # ------------------------------------------------------------------ plumbing

    def _taken(self) -> Iterator[Work | None]:
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
        self._events.ready(error)
        return error is None

    def _tear_down(self) -> None:
        try:
            drive(self._execution.stop())
        except BaseException:
            log.exception("teardown of handler %s failed", self._handler.name)


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


def threadsafe(loop: asyncio.AbstractEventLoop, callback: Callable[..., Any]) -> Callable[..., bool]:
    """For another thread to call; False if the loop is closed."""

    def call(*args: Any) -> bool:
        try:
            # In no context of the batch's: a timer that is set on the way would keep it, and with it all of its values.
            loop.call_soon_threadsafe(callback, *args, context=Context())
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
