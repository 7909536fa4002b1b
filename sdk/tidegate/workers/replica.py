"""A worker's place, kept filled: who dies in it is replaced, and its slots in the batcher with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from tidegate.status import WorkerState, WorkerStatus
from tidegate.workers.protocol import Worker
from tidegate_batching import Batcher, TidegateError, WorkerDied

__all__ = ["MAX_FAILED_STARTS", "Replica", "restart_delay"]

log = logging.getLogger("tidegate.worker")

MAX_FAILED_STARTS = 8
"""Starts in a row that may fail before the place is given up: with the delays between them, 13 seconds and the setups."""

LONGEST_DELAY = 10.0


def restart_delay(failures: int) -> float:
    """Seconds before the next start, after so many deaths in a row without one batch done in between.

    Example:
        >>> [restart_delay(n) for n in (0, 1, 2, 3, 20)]
        [0.0, 0.1, 0.2, 0.4, 10.0]
    """
    return 0.0 if failures == 0 else min(LONGEST_DELAY, 0.1 * 2.0 ** min(failures - 1, 10))


class Replica:
    """One place for a worker. `make` gives a new worker; `lost` is called if the place can never be filled again."""

    def __init__(
        self,
        name: str,
        device: str,
        make: Callable[[], Worker],
        lost: Callable[[BaseException], None],
        uuids: tuple[str, ...] = (),
    ) -> None:
        self._name = name
        self._device = device
        self._uuids = uuids
        self._make = make
        self._lost = lost
        self._worker: Worker = make()
        self._state: WorkerState = "starting"
        self._restarts = 0
        self._fruitless = 0  # deaths in a row without a batch done
        self._slots: list[int] = []
        self._early: TidegateError | None = None  # what the first worker died of before it was attached
        self._restarting: asyncio.Task[None] | None = None
        self._leaving = False
        self.alive = True

    @property
    def slots(self) -> int:
        """Batches that it takes at a time."""
        return self._worker.slots

    def status(self) -> WorkerStatus:
        """How it is now."""
        worker = self._worker
        return WorkerStatus(self._device, worker.kind, self._state, worker.pid, self._restarts, self._uuids)

    async def start(self) -> None:
        """The first worker, ready when this returns; raises what its `setup` raises."""
        await self._worker.start(partial(self._died, self._worker))
        self._state = "ready"

    def attach(self, batcher: Batcher[object, object], tasks: asyncio.TaskGroup) -> None:
        """Give the batcher its slots; `tasks` runs what replaces a worker."""
        self._batcher = batcher
        self._tasks = tasks
        worker = self._worker
        for _ in range(worker.slots):
            self._slots.append(batcher.add_slot(worker.run, prefetch=worker.prefetch, abandon=worker.cancel))
        if self._early is not None:
            self._died(worker, self._early)

    def leave(self) -> None:
        """Replace nobody any more."""
        self._leaving = True
        if self._restarting is not None:
            self._restarting.cancel()

    async def stop(self) -> None:
        """Let the worker finish, tear down and end; one that is not ready is ended."""
        self.leave()
        ready, self._state = self._state == "ready", "lost"
        if not ready:
            self._worker.kill()
        await self._worker.stop()

    async def kill(self) -> None:
        """End the worker now."""
        self.leave()
        self._state = "lost"
        self._worker.kill()
        await self._worker.stop()

    # ------------------------------------------------------------------ deaths

    def _died(self, worker: Worker, error: TidegateError) -> None:
        if worker is not self._worker or self._state != "ready":
            return
        if not self._slots:
            self._early = error
            return
        log.error("handler %s: the worker on %s (process %d) is lost: %s", self._name, self._device, worker.pid, error)
        worker.kill()
        replaced = worker.replaceable and not self._leaving
        self._state = "restarting" if replaced else "lost"
        for slot in self._slots:
            self._batcher.lose_slot(slot, error, replaced=replaced)
        if replaced:
            self._fruitless = 0 if worker.completed else self._fruitless + 1
            self._restarting = self._tasks.create_task(self._restart())
        elif not self._leaving:
            # Nothing but a new process helps against a thread that never returns, or a GPU context beyond repair.
            self.alive = False
            self._lost(error)

    async def _restart(self) -> None:
        failed = 0
        while True:
            await asyncio.sleep(restart_delay(max(self._fruitless, failed)))
            worker = self._make()
            try:
                await worker.start(partial(self._died, worker))
            except BaseException as error:
                worker.kill()
                # What it holds, memory of a GPU for one, must be free before the next wants it.
                await worker.stop()
                if not isinstance(error, Exception):
                    raise
                failed += 1
                log.error(
                    "handler %s: start %d of a new worker on %s failed: %s", self._name, failed, self._device, error
                )
                if failed == MAX_FAILED_STARTS:
                    self._give_up(error)
                    return
            else:
                self._fill(worker)
                return

    def _fill(self, worker: Worker) -> None:
        self._worker = worker
        self._restarts += 1
        self._state = "ready"
        self._restarting = None
        log.warning("handler %s: a new worker on %s (process %d)", self._name, self._device, worker.pid)
        for slot in self._slots:
            self._batcher.restore_slot(slot, worker.run, prefetch=worker.prefetch, abandon=worker.cancel)

    def _give_up(self, error: Exception) -> None:
        log.error("handler %s: no worker can be started on %s any more", self._name, self._device)
        self._state = "lost"
        self._restarting = None
        for slot in self._slots:
            self._batcher.lose_slot(slot, WorkerDied("no new worker could be started"), replaced=False)
        self._lost(error)
