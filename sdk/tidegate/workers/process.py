"""A worker in a process of its own, seen from the service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from tidegate.handler import Handler
from tidegate.portable import from_fields
from tidegate.workers import frames
from tidegate.workers.delivery import Delivery
from tidegate.workers.link import Link
from tidegate.workers.packing import Packed, pack, unpack
from tidegate.workers.protocol import SetupArgument
from tidegate.workers.reference import Reference
from tidegate.workers.run_timer import RunTimer
from tidegate.workers.runner import STEPS_AHEAD, overlaps
from tidegate.workers.shared_memory import Arena
from tidegate_batching import Batch, InvalidInput, RunTimeout, TidegateError, WorkerDied

__all__ = ["ProcessWorker"]

EXIT_TIMEOUT = 5.0
"""Seconds between a worker's last word and the end of its process: a library's threads may want to be joined."""


class ProcessWorker:
    """One handler on one device, in a spawned process; see `Worker` for the protocol.

    Two sockets lead to it: batches and what becomes of them on one, read by the thread that runs the function; on the
    other what must be heard while it runs. Values cross through shared memory, one segment each way. When the service
    ends, however it ends, both sockets close and the process with them.
    """

    kind: Literal["process"] = "process"
    replaceable = True

    def __init__(
        self, handler: Handler[..., Any], reference: Reference, device: SetupArgument, environment: Mapping[str, str]
    ) -> None:
        options = handler.options
        self.slots = handler.concurrency
        # What it is sent waits in shared memory until the function is free; with hooks it is decoded there as well.
        self.prefetch = options.overlap and not handler.is_async and not handler.streams
        self.completed = 0
        self.pid = 0
        self._handler = handler
        self._reference = reference
        self._device = device
        self._environment = environment
        self._says_prepared = overlaps(handler)
        stackable = handler.batched and options.batch is None and options.decode_request is None
        self._stack_dim = options.dims[0] if stackable else None
        self._loop = asyncio.get_running_loop()
        self._link = Link(self._heard, self._link_ended)
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._end: asyncio.Future[TidegateError] = self._loop.create_future()
        self._died: Callable[[TidegateError], None] = _nobody
        self._batches: dict[int, tuple[Batch, list[int]]] = {}  # with the blocks that hold their values
        self._numbers: dict[Batch, int] = {}
        self._steps: dict[int, int] = {}  # of streams, delivered and not yet told
        self._sent = 0
        self._freed: list[int] = []
        self._delivery = Delivery(batched=handler.batched)
        self._timer = RunTimer(options.max_run_time, self._outlived)

    # ------------------------------------------------------------------ lifetime

    async def start(self, died: Callable[[TidegateError], None]) -> None:
        """Start the process and wait until the handler is set up; raises what `setup` raises, as a HandlerError."""
        await self._link.open(f"tidegate-{self._handler.name}", self._environment)
        self.pid = self._link.pid
        self._arena, self._outbox = Arena(self._link.inbox), self._link.outbox
        self._link.send(frames.Start(self._reference, self._device))
        first: list[asyncio.Future[Any]] = [self._ready, self._end]
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if self._ready.done():
            self._ready.result()
        if self._end.done():
            raise self._end.result()
        self._died = died

    def run(self, batch: Batch) -> None:
        """Begin a batch; its result is reported in the event loop. One that dies first is retried elsewhere."""
        if self._link.closed:
            return
        values = pack(
            batch.values,
            self._arena,
            stack_dim=self._stack_dim,
            by_value=self._reference.by_value,
            unsendable=InvalidInput,
        )
        try:
            self._link.send(_message(self._sent + 1, batch, values, self._freed))
        except Exception:  # too large, or a header that is no text
            for offset in values.freed:
                self._arena.free(offset)
            raise
        self._sent = number = self._sent + 1
        self._freed = []
        self._batches[number] = (batch, values.freed)
        self._numbers[batch] = number
        self._timer.begin(batch)
        if self.prefetch and not self._says_prepared:
            batch.prepared()

    def cancel(self, batch: Batch, index: int) -> None:
        """Tell the running function that nobody waits for this item any more."""
        number = self._numbers.get(batch)
        if number is not None:
            self._link.send_at_once(frames.Cancel(number, index))

    async def stop(self) -> None:
        """Finish what was begun, tear down and end the process; of a killed one only the end is waited for."""
        self._died = _nobody
        if self.pid:
            self._link.send(frames.Stop())
            await asyncio.wait([self._end])

    def kill(self) -> None:
        """End the process now."""
        self._died = _nobody
        self._timer.stop()
        self._link.end()

    # ------------------------------------------------------------------ deaths

    def _outlived(self, limit: float) -> None:
        self._link.end(RunTimeout(limit))

    def _link_ended(self, error: TidegateError) -> None:
        self._timer.stop()
        self._batches.clear()
        self._numbers.clear()
        self._end.set_result(error)
        self._died(error)

    # ------------------------------------------------------------------ what the process says

    def _heard(self, message: frames.Message) -> None:
        if isinstance(message, frames.Done | frames.Row | frames.Prepared) and message.batch not in self._batches:
            # A function that forks and returns in the child as well: two processes speak on one socket from now on.
            self._link.end(WorkerDied("the worker's process answered a batch twice: did the function fork?"))
            return
        match message:
            case frames.Done():
                self._done(message)
            case frames.Row():
                self._row(message)
            case frames.Prepared():
                self._batches[message.batch][0].prepared()
            case frames.Ready():
                self._arena.gives_back = not message.pinned
                self._ready.set_result(None)
            case frames.Failed():
                self._ready.set_exception(from_fields(message.error))
                self._ready.exception()  # whoever waited for it may have gone
            case frames.Poisoned():
                self._link.end(WorkerDied(f"the GPU's context was lost: {message.reason}"))
            case frames.Ended():
                self._loop.call_later(EXIT_TIMEOUT, self._link.end, WorkerDied("the process did not end"))
            case _:
                self._link.end(WorkerDied(f"the worker's process sent {type(message).__name__}"))

    def _done(self, message: frames.Done) -> None:
        batch, blocks = self._batches.pop(message.batch)
        del self._numbers[batch]
        self._steps.pop(message.batch, None)
        self._timer.end(batch)
        for offset in blocks:
            self._arena.free(offset)
        self.completed += 1
        if message.error is not None:
            batch.complete(from_fields(message.error))
        elif message.values is not None:
            batch.complete(self._taken(message.values))
        else:
            batch.complete([None] * len(batch.items))

    def _row(self, message: frames.Row) -> None:
        batch, _ = self._batches[message.batch]
        row = self._taken(message.values)
        if isinstance(row, BaseException):
            row = [row] * len(batch.items)
        self._delivery.deliver(batch, row, partial(self._release, message.batch))

    def _taken(self, values: Packed) -> list[Any] | BaseException:
        """What the process sent, out of its memory, which is then its own again."""
        try:
            taken: list[Any] | BaseException = unpack(values, self._outbox, copy=True).values
        except Exception as error:  # noqa: BLE001 - classes of the user's may raise anything as they are made again
            taken = error
        self._freed += values.freed
        return taken

    def _release(self, number: int) -> None:
        """The stream may make a step more; said for several at a time."""
        if number not in self._batches:
            return
        steps = self._steps[number] = self._steps.get(number, 0) + 1
        if steps == STEPS_AHEAD // 4:
            self._link.send_at_once(frames.Credit(number, steps, self._freed))
            self._freed = []
            del self._steps[number]


def _nobody(error: TidegateError) -> None:
    """Nobody is to be told of its end: it is only just being started, or has been asked to end."""


def _message(number: int, batch: Batch, values: Packed, freed: list[int]) -> frames.Run:
    infos = [item.info for item in batch.items]
    told = any(infos)
    return frames.Run(
        number,
        values,
        [info.request_id if info else "" for info in infos] if told else [],
        [item.deadline for item in batch.items],
        [dict(info.headers) if info else {} for info in infos] if told and any(i and i.headers for i in infos) else [],
        freed,
    )
