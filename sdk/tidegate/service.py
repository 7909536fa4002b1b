"""One handler being served: its batcher and its workers."""

from __future__ import annotations

import asyncio
import logging
import os
import traceback as tracebacks
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, NamedTuple, Self

from tidegate.context import RequestInfo
from tidegate.devices import default_device
from tidegate.handler import Handler
from tidegate.status import HandlerStatus, WorkerStatus
from tidegate.workers.thread import ThreadWorker
from tidegate_batching import Batcher, Item, Overloaded, Statistics, Stream, TidegateError
from tidegate_batching.errors import from_foreign

log = logging.getLogger("tidegate.service")

DRAIN_TIMEOUT = 20.0
"""Seconds that requests in flight and then the workers may take together to end when a service is left."""

TEARDOWN_TIMEOUT = 1.0
"""Seconds that the workers get all the same if the requests took them all."""

__all__ = ["Answer", "Service", "SetupFailed", "check_supported"]


class Answer(NamedTuple):
    """An output, the seconds it queued and ran, and how many items shared its batch."""

    value: Any
    queued: float
    ran: float
    batch_size: int


class SetupFailed(Exception):
    """A handler's worker could not start; `traceback` is that of `setup`.

    Example:
        >>> from tidegate import LocalClient, serve
        >>> def load(device: str) -> None:
        ...     raise FileNotFoundError("model.bin")
        >>> @serve(setup=load)
        ... def embed(model: None, text: str) -> list[float]:
        ...     return []
        >>> with LocalClient(embed) as client:
        ...     client.call("hello")
        Traceback (most recent call last):
            ...
        tidegate.service.SetupFailed: setup of handler 'embed' failed: FileNotFoundError: model.bin
    """

    def __init__(self, handler: str, error: BaseException) -> None:
        super().__init__(f"setup of handler {handler!r} failed: {type(error).__name__}: {error}")
        self.handler = handler
        self.traceback = "".join(tracebacks.format_exception(error))


def check_supported(handler: Handler[..., Any]) -> None:
    """Refuse what is accepted at decoration but not built yet; better no service than one that ignores its options."""
    options = handler.options
    for name, fine, instead in (
        ("worker", options.worker != "process", "'thread'"),
        ("devices", options.devices in ("auto", "cpu"), "'auto' or 'cpu'"),
        ("devices_per_worker", options.devices_per_worker == 1, "1"),
        ("max_run_time", options.max_run_time is None, "None"),
    ):
        if not fine:
            value = getattr(options, name)
            raise ValueError(f"handler {handler.name!r}: {name}={value!r} is not available yet; use {instead}")


class Service:
    """A handler's batcher with its workers attached."""

    def __init__(self, handler: Handler[..., Any]) -> None:
        self._handler = handler
        options = handler.options
        self._workers = options.workers_per_device
        self._batcher: Batcher[Any, Any] = Batcher(
            options.policy(self._workers * handler.concurrency), cost=options.cost, group_by=handler.group
        )
        self._stack = AsyncExitStack()
        self._ends_at = 0.0

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            workers = [ThreadWorker(self._handler, self._device()) for _ in range(self._workers)]
            for worker in workers:
                # Left in reverse: the batcher drains through the workers, then they stop.
                stack.push_async_callback(self._stop, worker)
            failures = await asyncio.gather(*(worker.start() for worker in workers), return_exceptions=True)
            for failure in failures:
                if isinstance(failure, BaseException):
                    raise SetupFailed(self._handler.name, failure) from failure
            await stack.enter_async_context(self._batcher)
            for worker in workers:
                for _ in range(worker.slots):
                    self._batcher.add_slot(worker.run, prefetch=worker.prefetch)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._ends_at = asyncio.get_running_loop().time() + DRAIN_TIMEOUT
        if (kind is None or issubclass(kind, Exception)) and not await self._batcher.drain(DRAIN_TIMEOUT):
            log.error(
                "handler %s still runs a batch after %g s: its callers got Closed", self._handler.name, DRAIN_TIMEOUT
            )
            # Left as after an error: the batcher would wait for that batch without a limit.
            kind, error = TimeoutError, TimeoutError()
        return await self._stack.__aexit__(kind, error, traceback)

    def _device(self) -> str:
        return "cpu" if self._handler.options.devices == "cpu" else default_device()

    async def _stop(self, worker: ThreadWorker) -> None:
        try:
            async with asyncio.timeout_at(max(self._ends_at, asyncio.get_running_loop().time() + TEARDOWN_TIMEOUT)):
                await worker.stop()
        except TimeoutError:
            log.error("a worker of handler %s still runs and is left behind", self._handler.name)

    async def answer(
        self, value: Any, *, priority: int = 3, timeout: float | None = None, info: RequestInfo | None = None
    ) -> Answer:
        """One input in, its output and times out."""
        if self._handler.streams:
            raise TypeError(f"handler {self._handler.name!r} streams: read it with stream(), not call()")
        item = self._item(value, priority, timeout, info)
        output = await self._batcher.run(item)
        return Answer(
            output, item.dispatched_at - item.arrived_at, item.settled_at - item.dispatched_at, item.batch_size
        )

    async def patient_call(self, value: Any) -> Any:
        """One input in, its output out, without a deadline and without being refused for a full queue.

        A stream's chunks come as a list.
        """
        while True:
            item = self._item(value, 3, None, None, patient=True)
            try:
                if not self._handler.streams:
                    return await self._batcher.run(item)
                async with self._batcher.stream(item) as chunks:
                    return [chunk async for chunk in chunks]
            except Overloaded:
                if item.sequence:  # it was let in: the handler itself said so
                    raise
            await asyncio.sleep(0.005)

    @property
    def window(self) -> int:
        """Twice what all slots together take, so that the next batches are full while these run."""
        policy = self._batcher.policy
        slots = self._workers * self._handler.concurrency
        return min(max(16, 2 * slots * policy.max_batch_size + policy.max_batch_size), policy.max_queue_size)

    def stream(
        self, value: Any, *, priority: int = 3, timeout: float | None = None, info: RequestInfo | None = None
    ) -> Stream[Any]:
        """One input in, its chunks out."""
        if not self._handler.streams:
            raise TypeError(f"handler {self._handler.name!r} gives one output: use call(), not stream()")
        return self._batcher.stream(self._item(value, priority, timeout, info))

    def status(self) -> HandlerStatus:
        """How its workers are."""
        return HandlerStatus((WorkerStatus(self._device(), "thread", "ready", os.getpid()),) * self._workers)

    def statistics(self) -> Statistics:
        """The batcher's snapshot."""
        return self._batcher.statistics()

    def _item(
        self, value: Any, priority: int, timeout: float | None, info: RequestInfo | None, *, patient: bool = False
    ) -> Item:
        if priority not in range(8):
            raise ValueError(f"priority={priority!r}: give a whole number from 0 (first) to 7")
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout={timeout!r}: give seconds, 0 or more, or None for the handler's own")
        size = max(_nbytes(value), 0 if info is None else info.nbytes)
        own = None if patient else self._handler.options.timeout
        # A caller can ask for less than the handler allows, not for more.
        limit = own if timeout is None else timeout if own is None else min(own, timeout)
        try:
            item = self._batcher.item(value, priority=priority, timeout=limit, nbytes=size)
        except TidegateError:
            raise
        except Exception as error:  # what cost() and group_by() raise is the handler's, not the caller's bug
            raise from_foreign(error) from error
        item.info = info
        return item


def _nbytes(value: Any) -> int:
    """What an input's buffers take; small things count for little and are not looked into."""
    size = getattr(value, "nbytes", None)
    if isinstance(size, int):
        return size
    return len(value) if isinstance(value, (bytes, str)) else 64
