"""One handler being served: its batcher and its workers."""

from __future__ import annotations

import traceback as tracebacks
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, NamedTuple, Self

from tidegate.devices import default_device
from tidegate.handler import Handler
from tidegate.workers.thread import ThreadWorker
from tidegate_batching import Batcher, Item, Statistics

__all__ = ["Answer", "Service", "SetupFailed"]


class Answer(NamedTuple):
    """An output, the seconds it queued and ran, and how many items shared its batch."""

    value: Any
    queued: float
    ran: float
    batch_size: int


class SetupFailed(Exception):
    """A handler's worker could not start; `traceback` is that of `setup`."""

    def __init__(self, handler: str, error: BaseException) -> None:
        super().__init__(f"setup of handler {handler!r} failed: {type(error).__name__}: {error}")
        self.handler = handler
        self.traceback = "".join(tracebacks.format_exception(error))


class Service:
    """A handler's batcher with its workers attached."""

    def __init__(self, handler: Handler[..., Any]) -> None:
        self._handler = handler
        self._batcher: Batcher[Any, Any] = Batcher(handler.options.policy())
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            worker = ThreadWorker(self._handler, default_device())
            try:
                await worker.start()
            except Exception as error:
                raise SetupFailed(self._handler.name, error) from error
            # Left in reverse: the batcher drains through the worker, then the worker stops.
            stack.push_async_callback(worker.stop)
            await self._batcher.__aenter__()
            # Left without the error, if there is one: the callers that wait elsewhere are still answered.
            stack.push_async_callback(self._batcher.__aexit__, None, None, None)
            self._batcher.add_slot(worker.run)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._stack.__aexit__(kind, error, traceback)

    async def answer(self, value: Any, *, priority: int = 3) -> Answer:
        """One item in, its output and times out."""
        item = Item(value, priority=priority, group=self._handler.group(value))
        output = await self._batcher.run(item)
        return Answer(
            output, item.dispatched_at - item.arrived_at, item.settled_at - item.dispatched_at, item.batch_size
        )

    def statistics(self) -> Statistics:
        """The batcher's snapshot."""
        return self._batcher.statistics()
