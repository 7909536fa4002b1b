"""One handler being served: its batcher and its workers."""

from __future__ import annotations

import asyncio
import logging
import traceback as tracebacks
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

from tidegate.context import RequestInfo
from tidegate.handler import Handler
from tidegate.intake import Intake
from tidegate.placement import Placement
from tidegate.reruns import Reruns
from tidegate.status import HandlerStatus
from tidegate.workers.process import ProcessWorker
from tidegate.workers.protocol import Worker, describe_devices
from tidegate.workers.reference import reference_to
from tidegate.workers.replica import Replica
from tidegate.workers.thread import ThreadWorker
from tidegate_batching import Batcher, HandlerError, Item, Overloaded, Statistics, Stream, TidegateError
from tidegate_batching.backend import Recipient
from tidegate_batching.errors import from_foreign

log = logging.getLogger("tidegate.service")

DRAIN_TIMEOUT = 20.0
"""Seconds that doors, requests in flight and workers may take together to end."""

TEARDOWN_TIMEOUT = 1.0
"""Seconds that the workers get all the same if the requests took them all."""

__all__ = ["DRAIN_TIMEOUT", "Answer", "Service", "SetupFailed"]


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

    def __init__(self, handler: str, error: BaseException, *, lost: bool = False) -> None:
        """lost: it had started, and its last worker is lost for good."""
        # From another process it comes as a text, with the traceback that it had there.
        if isinstance(error, HandlerError):
            text, self.traceback = str(error), error.traceback
        else:
            text = f"{type(error).__name__}: {error}"
            self.traceback = "".join(tracebacks.format_exception(error))
        stage = getattr(error, "stage", "setup") if isinstance(error, HandlerError) else "setup"
        what = f"handler {handler!r} has no worker left" if lost else f"{stage} of handler {handler!r} failed"
        super().__init__(f"{what}: {text}")
        self.handler = handler


class Service:
    """A handler's batcher with its workers attached.

    Used in two steps: `start` brings the workers up, entering it opens the batcher. To end it, `drain`, leave, `stop`.
    """

    def __init__(
        self,
        handler: Handler[..., Any],
        placements: Sequence[Placement],
        broken: Callable[[SetupFailed], None] = lambda failure: None,
    ) -> None:
        """placements: where its workers go, one each. broken: called when its last worker is lost for good."""
        self._handler = handler
        self._broken = broken
        make = _maker(handler, placements)
        self._replicas = [
            Replica(
                handler.name,
                describe_devices(placement.setup_argument),
                partial(make, placement),
                self._lost,
                placement.uuids,
            )
            for placement in placements
        ]
        self._slots = sum(replica.slots for replica in self._replicas)
        options = handler.options
        self._batcher: Batcher[Any, Any] = Batcher(
            options.policy(self._slots),
            cost=options.cost,
            group_by=handler.group,
            # Where nothing runs twice, each caller gets the error, and with it the log.
            failed=Reruns(handler.name).failed if options.isolate_errors else None,
        )
        self._tasks: asyncio.TaskGroup

    # ------------------------------------------------------------------ lifetime

    async def start(self) -> None:
        """Bring every worker up; raises SetupFailed as soon as one cannot be."""
        starting = [asyncio.ensure_future(replica.start()) for replica in self._replicas]
        try:
            await asyncio.gather(*starting)
        except Exception as error:
            raise SetupFailed(self._handler.name, error) from error
        finally:
            for start in starting:
                start.cancel()
            await asyncio.gather(*starting, return_exceptions=True)

    async def __aenter__(self) -> Self:
        self._tasks = await asyncio.TaskGroup().__aenter__()
        await self._batcher.__aenter__()
        for replica in self._replicas:
            replica.attach(self._batcher, self._tasks)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for replica in self._replicas:
            replica.leave()
        # `drain` has waited for what there was time for: left without an error, the batcher would wait without a limit.
        await self._batcher.__aexit__(kind or TimeoutError, error, traceback)
        await self._tasks.__aexit__(None, None, None)

    async def drain(self, ends_at: float) -> None:
        """Refuse new items and answer those that are in, until `ends_at` on the loop's clock at the latest."""
        left = max(0.0, ends_at - asyncio.get_running_loop().time())
        if not await self._batcher.drain(left):
            log.error(
                "handler %s still runs a batch at the end of its time: its callers got Closed", self._handler.name
            )

    async def stop(self, ends_at: float) -> None:
        """Tear the workers down; whoever is not done at `ends_at`, or in a second if that is later, is ended."""
        await asyncio.gather(*(self._stop(replica, ends_at) for replica in self._replicas))

    async def _stop(self, replica: Replica, ends_at: float) -> None:
        try:
            async with asyncio.timeout_at(max(ends_at, asyncio.get_running_loop().time() + TEARDOWN_TIMEOUT)):
                await replica.stop()
        except TimeoutError:
            log.error("a worker of handler %s did not end in time: it is ended, or left behind", self._handler.name)
            with suppress(TimeoutError):
                async with asyncio.timeout(TEARDOWN_TIMEOUT):
                    await replica.kill()

    def _lost(self, error: BaseException) -> None:
        if all(replica.status().state == "lost" for replica in self._replicas):
            self._broken(SetupFailed(self._handler.name, error, lost=True))

    # ------------------------------------------------------------------ requests

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

    def post(
        self,
        value: Any,
        waiter: Recipient,
        *,
        priority: int = 3,
        timeout: float | None = None,
        info: RequestInfo | None = None,
        patient: bool = False,
    ) -> Item:
        """One input in; its outcome goes to `waiter`. patient: without the handler's own deadline."""
        item = self._item(value, priority, timeout, info, patient=patient)
        self._batcher.post(item, waiter)
        return item

    def withdraw(self, item: Item) -> None:
        """Nobody waits for it any more."""
        self._batcher.withdraw(item)

    async def patient_call(self, value: Any, *, priority: int = 3, info: RequestInfo | None = None) -> Any:
        """One input in, its output out, without a deadline and without being refused for a full queue.

        A stream's chunks come as a list.
        """
        while True:
            item = self._item(value, priority, None, info, patient=True)
            try:
                if not self._handler.streams:
                    return await self._batcher.run(item)
                async with self._batcher.stream(item) as chunks:
                    return [chunk async for chunk in chunks]
            except Overloaded:
                if item.sequence:  # it was let in: the handler itself said so
                    raise
            await asyncio.sleep(0.005)

    def intake(self) -> Intake:
        """Where a job puts its items."""
        return Intake(self._batcher, self.window)

    @property
    def window(self) -> int:
        """Twice what all slots together take, so that the next batches are full while these run."""
        policy = self._batcher.policy
        return min(max(16, 2 * self._slots * policy.max_batch_size + policy.max_batch_size), policy.max_queue_size)

    def stream(
        self, value: Any, *, priority: int = 3, timeout: float | None = None, info: RequestInfo | None = None
    ) -> Stream[Any]:
        """One input in, its chunks out."""
        if not self._handler.streams:
            raise TypeError(f"handler {self._handler.name!r} gives one output: use call(), not stream()")
        return self._batcher.stream(self._item(value, priority, timeout, info))

    def status(self) -> HandlerStatus:
        """How its workers are."""
        replicas = self._replicas
        return HandlerStatus(
            tuple(replica.status() for replica in replicas), alive=all(replica.alive for replica in replicas)
        )

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


def _maker(handler: Handler[..., Any], placements: Sequence[Placement]) -> Callable[[Placement], Worker]:
    if placements[0].worker == "thread":
        return lambda placement: ThreadWorker(handler, placement.setup_argument)
    reference = reference_to(handler)
    return lambda placement: ProcessWorker(handler, reference, placement.setup_argument, placement.environment)


def _nbytes(value: Any) -> int:
    """What an input's buffers take; small things count for little and are not looked into."""
    size = getattr(value, "nbytes", None)
    if isinstance(size, int):
        return size
    return len(value) if isinstance(value, (bytes, str)) else 64
