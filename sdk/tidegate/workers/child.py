"""Inside a worker's process: the service's batches in, what becomes of them out."""

from __future__ import annotations

import atexit
import faulthandler
import gc
import logging
import os
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from tidegate.collate import Rows
from tidegate.context import RequestInfo
from tidegate.execution import Execution
from tidegate.portable import to_fields
from tidegate.workers import frames
from tidegate.workers.packing import Packed, Unpacked, pack, unpack
from tidegate.workers.runner import Runner, overlaps
from tidegate.workers.shared_memory import Arena, Segment
from tidegate.workers.spawn import follow_parent, ignore_signals
from tidegate_batching.errors import is_poison

__all__ = ["main"]

log = logging.getLogger("tidegate.worker")


def main(batches_fd: int, control_fd: int, inbox_fd: int, outbox_fd: int) -> None:
    """A worker's whole life: find the handler, run `setup`, then batches until told to stop, then `teardown`."""
    follow_parent()
    ignore_signals()
    for descriptor in (batches_fd, control_fd, inbox_fd, outbox_fd):
        os.set_inheritable(descriptor, False)
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    channel = Channel(
        socket.socket(fileno=batches_fd),
        socket.socket(fileno=control_fd),
        Segment.open(inbox_fd),
        Segment.open(outbox_fd),
    )
    try:
        channel.live()
    except BaseException:
        log.exception("the worker's process cannot go on")
        # A thread of the user's may keep the process, and the service waiting, for ever.
        os._exit(1)
    _exit()


class RemoteItem:
    """An item's image: what its caller sent along, and whether that caller still waits."""

    __slots__ = ("_headers", "_request_id", "cancelled", "deadline")

    def __init__(self, request_id: str, headers: Mapping[str, str], deadline: float) -> None:
        self._request_id = request_id
        self._headers = headers
        self.deadline = deadline
        self.cancelled = False

    @property
    def info(self) -> RequestInfo:
        """What the function may ask; few do, so that it is made when one does."""
        return RequestInfo(self._request_id, self._headers)


class RemoteBatch:
    """A batch as the service sent it. `releases` let a stream make its next steps."""

    __slots__ = ("_unpacked", "items", "number", "releases", "stacked")

    def __init__(self, message: frames.Run, unpacked: Unpacked) -> None:
        size = unpacked.size
        self.number = message.batch
        self.stacked = unpacked.stacked
        self._unpacked = unpacked
        if self.stacked is None:
            unpacked.values  # noqa: B018 - classes of the user's may raise as they are made again: here it is told
        self.releases: deque[Callable[[], object]] = deque()
        self.items = [
            RemoteItem(*told)
            for told in zip(
                message.request_ids or [""] * size,
                message.headers or [{}] * size,
                message.deadlines or [float("inf")] * size,
                strict=True,
            )
        ]

    @property
    def values(self) -> list[Any]:
        """One by one; of stacked ones they are views, made when somebody asks."""
        return self._unpacked.values


class Channel:
    """Both sockets and both segments: where a runner's batches come from, and its events go to."""

    def __init__(self, batches: socket.socket, control: socket.socket, inbox: Segment, outbox: Segment) -> None:
        self._socket = batches
        self._control = control
        self._inbox = inbox
        self._arena = Arena(outbox, gives_back=True)
        self._reader = frames.FrameReader()
        self._received: deque[frames.Message] = deque()
        self._running: dict[int, RemoteBatch] = {}
        self._newest = 0
        self._early: dict[int, list[int]] = {}  # items that were cancelled before their batch was taken
        self._by_value = False
        self._sending = threading.Lock()  # hooks report from a thread of their own
        self._taking = threading.Lock()

    def live(self) -> None:
        """From the first message to the last."""
        threading.Thread(target=self._listen, name="tidegate-control", daemon=True).start()
        start = self._receive()
        assert isinstance(start, frames.Start), start
        try:
            handler = start.reference.load()
            self._by_value = start.reference.by_value
        except BaseException as error:  # noqa: BLE001 - whatever the user's module raises
            self.ready(error)
            return
        # User code may have set handlers of its own when it was imported.
        ignore_signals()
        execution = Execution(handler, start.device)
        if handler.is_async or overlaps(handler):
            runner = Runner(handler, execution, self)
            # The runner's thread does not read: it waits for hooks, or in an event loop.
            threading.Thread(target=self._feed, args=(runner,), name="tidegate-batches", daemon=True).start()
        else:
            runner = Runner(handler, execution, self, self._take)
        runner.main()
        self._send(frames.Ended())

    # ------------------------------------------------------------------ from the service

    def _receive(self) -> frames.Message:
        while not self._received:
            self._received.extend(frames.receive(self._socket, self._reader) or _leave())
        return self._received.popleft()

    def _take(self) -> RemoteBatch | None:
        while not isinstance(message := self._receive(), frames.Stop):
            assert isinstance(message, frames.Run), message
            for offset in message.freed:
                self._arena.free(offset)
            try:
                batch = RemoteBatch(message, unpack(message.values, self._inbox))
            except Exception as error:  # noqa: BLE001 - classes of the user's may raise anything as they are made again
                self._send(frames.Done(message.batch, error=to_fields(error)))
                continue
            with self._taking:
                self._running[batch.number] = batch
                self._newest = batch.number
                for index in self._early.pop(batch.number, ()):
                    batch.items[index].cancelled = True
            return batch
        return None

    def _feed(self, runner: Runner) -> None:
        while (batch := self._take()) is not None:
            runner.begin(batch)
        runner.begin(None)

    def _listen(self) -> None:
        """What must be heard while a batch runs, on a thread of its own; its end is the end."""
        reader = frames.FrameReader()
        while messages := frames.receive(self._control, reader):
            for message in messages:
                if isinstance(message, frames.Cancel):
                    self._cancel(message)
                elif isinstance(message, frames.Credit):
                    self._release(message)
        _leave()

    def _cancel(self, message: frames.Cancel) -> None:
        with self._taking:
            batch = self._running.get(message.batch)
            if batch is not None:
                batch.items[message.index].cancelled = True
            elif message.batch > self._newest:
                self._early.setdefault(message.batch, []).append(message.index)

    def _release(self, message: frames.Credit) -> None:
        for offset in message.freed:
            self._arena.free(offset)
        batch = self._running.get(message.batch)
        if batch is not None:
            for _ in range(message.steps):
                batch.releases.popleft()()

    # ------------------------------------------------------------------ to the service

    def ready(self, error: BaseException | None) -> bool:
        """`setup` has ended."""
        if error is None:
            # A library as torch is a million objects: to look at them all again takes a tenth of a second each time.
            gc.collect()
            gc.freeze()
            return self._send(frames.Ready(self._inbox.pin()))
        return self._send(frames.Failed(to_fields(error)))

    def prepared(self, batch: RemoteBatch) -> bool:
        """The batch's items are decoded."""
        return self._send(frames.Prepared(batch.number))

    def row(self, batch: RemoteBatch, row: Sequence[Any], release: Callable[[], object]) -> bool:
        """One step of a stream; raises if it cannot be sent."""
        batch.releases.append(release)
        return self._send_values(lambda values: frames.Row(batch.number, values), row)

    def complete(self, batch: RemoteBatch, result: Sequence[Any] | BaseException) -> bool:
        """The batch has ended."""
        failures: Sequence[Any] = [result] if isinstance(result, BaseException) else result
        # What is whole has no exception in it, and is not to be cut up for the question.
        poison = None if isinstance(result, Rows) else next(filter(_poisoned, failures), None)
        if poison is not None:
            self._send(frames.Poisoned(to_fields(poison).get("text") or str(poison)))
            _leave()
        del self._running[batch.number]
        if not isinstance(result, BaseException):
            try:
                return self._send_values(lambda values: frames.Done(batch.number, values), result)
            except Exception as error:  # noqa: BLE001 - such as no more shared memory
                result = error
        return self._send(frames.Done(batch.number, error=to_fields(result)))

    def listening(self) -> bool:
        """Always: without the service this process has ended."""
        return True

    def _send_values(self, message: Callable[[Packed], frames.Message], values: Sequence[Any]) -> bool:
        packed = pack(values, self._arena, by_value=self._by_value)
        try:
            frame = frames.encode(message(packed))
        except frames.ProtocolError:
            for offset in packed.freed:
                self._arena.free(offset)
            raise
        return self._send_frame(frame)

    def _send(self, message: frames.Message) -> bool:
        return self._send_frame(frames.encode(message))

    def _send_frame(self, frame: bytearray) -> bool:
        with self._sending:
            try:
                self._socket.sendall(frame)
            except OSError:
                _leave()
        return True


def _poisoned(thing: object) -> bool:
    return isinstance(thing, BaseException) and is_poison(thing)


def _exit() -> NoReturn:
    """What an interpreter does at its end, but for taking its modules apart: with torch that takes a second."""
    threading._shutdown()  # type: ignore[attr-defined]  # joins the user's threads, as multiprocessing has it done
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(0)


def _leave() -> NoReturn:
    """The service has gone, or this process is of no use: nothing is torn down, and nobody waits for it."""
    os._exit(70)
