"""What leads from the service to one worker's process: two sockets, two pieces of memory, and the process itself."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial

from tidegate.workers import frames
from tidegate.workers.shared_memory import Segment
from tidegate.workers.spawn import Child
from tidegate_batching import TidegateError, WorkerDied

__all__ = ["LAST_WORDS", "Link"]

LAST_WORDS = 0.1
"""Seconds after the end of a process in which the rest of what it said is read."""


class Link:
    """Made in the event loop that everything is reported in. It is open from `open` until the process has ended.

    heard: called with each message from the process. ended: called once, when the process is reaped and all that it
    said has been heard, with the reason; everything is closed by then.
    """

    def __init__(self, heard: Callable[[frames.Message], None], ended: Callable[[TidegateError], None]) -> None:
        self._heard = heard
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._pipes: list[asyncio.Transport] = []
        self._segments: list[Segment] = []
        self._child: Child | None = None
        self._verdict: TidegateError | None = None
        self.closed = False

    async def open(self, name: str, environment: Mapping[str, str]) -> None:
        """Start the process; whatever this raises, nothing is left of it."""
        try:
            with ExitStack() as theirs:
                # Before the process, so that nothing of its end can be missed.
                descriptors = [
                    await self._pipe(theirs, partial(_Pipe, self)),
                    await self._pipe(theirs, asyncio.Protocol),
                ]
                for _ in range(2):
                    self._segments.append(Segment.create())
                descriptors += [segment.fd for segment in self._segments]
                self._child = Child(name, descriptors, environment, self._child_ended)
        except BaseException:
            self._close()
            raise

    @property
    def inbox(self) -> Segment:
        """Memory that the service writes."""
        return self._segments[0]

    @property
    def outbox(self) -> Segment:
        """Memory that the process writes."""
        return self._segments[1]

    @property
    def pid(self) -> int:
        """The process's number."""
        return 0 if self._child is None else self._child.pid

    def send(self, message: frames.Message) -> None:
        """To the thread that runs batches; raises ProtocolError if it is too large. Of no effect at the end."""
        frame = frames.encode(message)
        if not self.closed:
            self._pipes[0].write(frame)

    def send_at_once(self, message: frames.Message) -> None:
        """To the thread that listens while batches run."""
        if not self.closed:
            self._pipes[1].write(frames.encode(message))

    def end(self, verdict: TidegateError | None = None) -> None:
        """Kill the process; the first verdict is what `ended` gets to hear."""
        self._verdict = self._verdict or verdict
        if self._child is not None:
            self._child.kill()

    # ------------------------------------------------------------------ what happens

    def data_received(self, reader: frames.FrameReader, data: bytes) -> None:
        """Bytes from the process."""
        try:
            for message in reader.feed(data):
                self._heard(message)
        except frames.ProtocolError as error:
            self.end(WorkerDied(f"what the worker's process sent makes no sense: {error}"))

    def pipe_closed(self) -> None:
        """Everything that it said has been read."""
        self.closed = True
        if self._child is not None and self._child.returncode is None:
            self._child.kill()  # if it has not ended by itself: there is no way to speak to it
        else:
            self._finish()

    def _child_ended(self) -> None:
        if self.closed:
            self._finish()
        else:
            # What it said last may not have been read yet; a process that it started may hold the socket open.
            self._loop.call_later(LAST_WORDS, self._finish)

    def _finish(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            self._close()
            self._ended(self._verdict or WorkerDied(f"the worker's process {child.describe_end()}"))

    def _close(self) -> None:
        self.closed = True
        for pipe in self._pipes:
            pipe.abort()
        for segment in self._segments:
            segment.close()

    async def _pipe(self, theirs: ExitStack, protocol: Callable[[], asyncio.Protocol]) -> int:
        """Open one end of a pair of sockets; the descriptor of the other."""
        ours, its = socket.socketpair()
        theirs.enter_context(its)
        try:
            pipe, _ = await self._loop.create_unix_connection(protocol, sock=ours)
        except BaseException:
            ours.close()
            raise
        self._pipes.append(pipe)
        return its.fileno()


class _Pipe(asyncio.Protocol):
    def __init__(self, link: Link) -> None:
        self._link = link
        self._reader = frames.FrameReader()

    def data_received(self, data: bytes) -> None:
        self._link.data_received(self._reader, data)

    def connection_lost(self, error: Exception | None) -> None:
        self._link.pipe_closed()
