"""A worker on threads of this process: for notebooks, tests and functions that release the GIL."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal

from tidegate.execution import Execution
from tidegate.handler import Handler
from tidegate.workers.delivery import Delivery
from tidegate.workers.protocol import SetupArgument, describe_devices
from tidegate.workers.run_timer import RunTimer
from tidegate.workers.runner import Runner, overlaps, threadsafe
from tidegate_batching import Batch, RunTimeout, TidegateError, WorkerDied
from tidegate_batching.errors import is_poison

__all__ = ["ThreadWorker"]


class ThreadWorker:
    """One handler on one device, on a thread of this process; see `Worker` for the protocol.

    A thread cannot be killed: one that outlives max_run_time, or whose CUDA context is beyond repair, is given up.
    """

    kind: Literal["thread"] = "thread"
    replaceable = False

    def __init__(self, handler: Handler[..., Any], device: SetupArgument) -> None:
        options = handler.options
        self.slots = handler.concurrency
        self.prefetch = overlaps(handler)
        self.pid = os.getpid()
        self.completed = 0
        self._runner = Runner(handler, Execution(handler, device), self)
        self._delivery = Delivery(batched=handler.batched)
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._ended = asyncio.Event()
        self._left = False
        self._died: Callable[[TidegateError], None] = _nobody
        self._timer = RunTimer(options.max_run_time, self._outlived)
        # A handler that never returns cannot be stopped; it must not keep the interpreter from exiting as well.
        name = f"tidegate-{handler.name}-{describe_devices(device)}"
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)

    async def start(self, died: Callable[[TidegateError], None] = lambda error: None) -> None:
        """Start the thread and wait until the handler is set up; raises what `setup` raises."""
        self._died = died
        self._thread.start()
        await self._ready

    def run(self, batch: Batch) -> None:
        """Begin a batch; its result is reported in the event loop."""
        self._timer.begin(batch)
        self._runner.begin(batch)

    def cancel(self, batch: Batch, index: int) -> None:
        """Nothing to tell: the running function sees the item itself."""

    async def stop(self) -> None:
        """Finish what was begun, tear down and end the thread; one that was left behind is not waited for."""
        if self._thread.ident is not None and not self._left:
            self._runner.begin(None)
            await self._ended.wait()

    def kill(self) -> None:
        """A thread cannot be ended: it is left behind, and nothing that it says is heard."""
        self._left = True
        self._died = _nobody
        self._timer.stop()
        self._runner.begin(None)  # should it ever come back

    def _live(self) -> None:
        try:
            self._runner.main()
        finally:
            self._report(self._ended.set)

    def _outlived(self, limit: float) -> None:
        self._die(RunTimeout(limit))

    def _die(self, error: TidegateError) -> None:
        died, self._died = self._died, _nobody
        died(error)

    # ------------------------------------------------------------------ what the runner says, from its threads

    def ready(self, error: BaseException | None) -> bool:
        """`setup` has ended."""
        return self._report(self._settle_ready, error)

    def prepared(self, batch: Batch) -> bool:
        """The batch's items are decoded."""
        return self._report(batch.prepared)

    def row(self, batch: Batch, row: Sequence[Any], release: Callable[[], object]) -> bool:
        """One step of a stream."""
        return self._report(self._delivery.deliver, batch, row, release)

    def complete(self, batch: Batch, result: Sequence[Any] | BaseException) -> bool:
        """The batch has ended."""
        # Cut up here, where the function runs: in the event loop it might already be at work on the next.
        return self._report(self._complete, batch, result if isinstance(result, BaseException) else list(result))

    def listening(self) -> bool:
        """Whether the event loop still runs."""
        return not self._loop.is_closed()

    def _complete(self, batch: Batch, result: list[Any] | BaseException) -> None:
        self._timer.end(batch)
        self.completed += 1
        if isinstance(result, BaseException) and is_poison(result):
            self._die(WorkerDied(f"the GPU's context is lost: {result}"))
        batch.complete(result)

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
        return threadsafe(self._loop, callback)(*args)


def _nobody(error: TidegateError) -> None:
    """Nobody is to be told of its end."""
