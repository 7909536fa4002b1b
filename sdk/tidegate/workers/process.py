"""A worker in a process of its own, seen from the service."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from tidegate.handler import Handler
from tidegate.portable import from_fields
from tidegate.workers import frames
from tidegate.workers.delivery import Delivery
from tidegate.workers.packing import Packed, pack, unpack
from tidegate.workers.protocol import SetupArgument
from tidegate.workers.reference import Reference
from tidegate.workers.run_timer import RunTimer
from tidegate.workers.runner import STEPS_AHEAD, overlaps
from tidegate.workers.shared_memory import Arena, Segment
from tidegate.workers.spawn import Child
from tidegate_batching import Batch, InvalidInput, RunTimeout, TidegateError, WorkerDied

__all__ = ["ProcessWorker"]

log = logging.getLogger("tidegate.worker")

LAST_WORDS = 0.1
"""Seconds after the end of a process in which the rest of what it said is read."""

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
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._ended = asyncio.Event()
        self._died: Callable[[TidegateError], None] = lambda error: None
        self._verdict: TidegateError | None = None
        self._stopping = False
        self._batches: dict[int, tuple[Batch, list[int]]] = {}  # with the blocks that hold their values
        self._numbers: dict[Batch, int] = {}
        self._steps: dict[int, int] = {}  # of streams, delivered and not yet told
        self._sent = 0
        self._freed: list[int] = []
        self._delivery = Delivery(batched=handler.batched)
        self._timer = RunTimer(options.max_run_time, self._outlived)
        self._child: Child | None = None
        self._batch_pipe: asyncio.Transport | None = None
        self._control_pipe: asyncio.Transport | None = None
        self._segments: list[Segment] = []

    # ------------------------------------------------------------------ lifetime

    async def start(self, died: Callable[[TidegateError], None] = lambda error: None) -> None:
        """Start the process and wait until the handler is set up; raises what `setup` raises, as a HandlerError."""
        self._died = died
        inbox, outbox = Segment.create(), Segment.create()
        self._segments = [inbox, outbox]
        self._arena = Arena(inbox)
        self._outbox = outbox
        batches, its_batches = socket.socketpair()
        control, its_control = socket.socketpair()
        try:
            theirs = (its_batches.fileno(), its_control.fileno(), inbox.fd, outbox.fd)
            self._child = Child(f"tidegate-{self._handler.name}", theirs, self._environment, self._child_ended)
        finally:
            its_batches.close()
            its_control.close()
        self.pid = self._child.pid
        self._batch_pipe, _ = await self._loop.create_unix_connection(partial(_Pipe, self), sock=batches)
        self._control_pipe, _ = await self._loop.create_unix_connection(asyncio.Protocol, sock=control)
        self._batch_pipe.write(frames.encode(frames.Start(self._reference, self._device)))
        await self._ready

    def run(self, batch: Batch) -> None:
        """Begin a batch; its result is reported in the event loop."""
        pipe = self._batch_pipe
        if pipe is None or pipe.is_closing():
            return  # it has died, and what was begun is retried when that is known
        values = pack(
            batch.values,
            self._arena,
            stack_dim=self._stack_dim,
            by_value=self._reference.by_value,
            unsendable=InvalidInput,
        )
        self._sent = number = self._sent + 1
        self._batches[number] = (batch, values.freed)
        self._numbers[batch] = number
        pipe.write(frames.encode(_message(number, batch, values, self._freed)))
        self._freed = []
        self._timer.begin(batch)
        if self.prefetch and not self._says_prepared:
            self._loop.call_soon(batch.prepared)

    def cancel(self, batch: Batch, index: int) -> None:
        """Tell the running function that nobody waits for this item any more."""
        number = self._numbers.get(batch)
        if number is not None and self._control_pipe is not None:
            self._control_pipe.write(frames.encode(frames.Cancel(number, index)))

    async def stop(self) -> None:
        """Finish what was begun, tear down and end the process."""
        self._stopping = True
        if self._batch_pipe is not None and not self._ended.is_set():
            self._batch_pipe.write(frames.encode(frames.Stop()))
            await self._ended.wait()

    def kill(self) -> None:
        """End the process now."""
        self._stopping = True
        self._timer.stop()
        if self._child is not None:
            self._child.kill()

    # ------------------------------------------------------------------ deaths

    def _outlived(self, limit: float) -> None:
        self._condemn(RunTimeout(limit))

    def _condemn(self, verdict: TidegateError) -> None:
        """End the process, and say why it had to."""
        self._verdict = self._verdict or verdict
        if self._child is not None:
            self._child.kill()

    def _child_ended(self) -> None:
        """The process has ended and is reaped. What it said last may not have been read yet."""
        assert self._batch_pipe is not None
        if self._batch_pipe.is_closing():
            self._bury()
        else:
            # A process that it started may hold the socket open.
            self._loop.call_later(LAST_WORDS, self._bury)

    def pipe_closed(self) -> None:
        """Everything that it said has been read."""
        if self._child is not None and self._child.returncode is None:
            self._child.kill()  # if it has not ended by itself: there is no way to speak to it
        else:
            self._bury()

    def _bury(self) -> None:
        if self._ended.is_set():
            return
        for pipe in (self._batch_pipe, self._control_pipe):
            if pipe is not None:
                pipe.abort()
        self._timer.stop()
        for segment in self._segments:
            segment.close()
        self._batches.clear()
        self._numbers.clear()
        self._ended.set()
        assert self._child is not None
        error = self._verdict or WorkerDied(f"the worker's process {self._child.describe_end()}")
        if not self._ready.done():
            self._ready.set_exception(error)
        elif not self._stopping:
            self._died(error)

    # ------------------------------------------------------------------ what the process says

    def received(self, message: frames.Message) -> None:
        """One message from the process."""
        match message:
            case frames.Done():
                self._done(message)
            case frames.Row():
                self._row(message)
            case frames.Prepared():
                self._batches[message.batch][0].prepared()
            case frames.Ready():
                self._ready.set_result(None)
            case frames.Failed():
                self._ready.set_exception(from_fields(message.error))
            case frames.Poisoned():
                self._condemn(WorkerDied(f"the GPU's context was lost: {message.reason}"))
            case frames.Ended():
                self._loop.call_later(EXIT_TIMEOUT, self._condemn, WorkerDied("the process did not end"))
            case _:
                self._condemn(WorkerDied(f"the worker's process sent {type(message).__name__}"))

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
        if number not in self._batches or self._control_pipe is None:
            return
        steps = self._steps[number] = self._steps.get(number, 0) + 1
        if steps == STEPS_AHEAD // 4:
            self._control_pipe.write(frames.encode(frames.Credit(number, steps, self._freed)))
            self._freed = []
            del self._steps[number]


class _Pipe(asyncio.Protocol):
    """Bytes from the process, as messages to its worker."""

    def __init__(self, worker: ProcessWorker) -> None:
        self._worker = worker
        self._reader = frames.FrameReader()

    def data_received(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            self._worker.received(message)

    def connection_lost(self, error: Exception | None) -> None:
        self._worker.pipe_closed()


def _message(number: int, batch: Batch, values: Packed, freed: list[int]) -> frames.Run:
    infos = [item.info for item in batch.items]
    return frames.Run(
        number,
        values,
        [info.request_id for info in infos] if all(infos) else [],
        [item.deadline for item in batch.items],
        [dict(info.headers) for info in infos] if any(info and info.headers for info in infos) else [],
        freed,
    )
