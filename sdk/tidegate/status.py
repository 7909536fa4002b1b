"""What a service says of its own state: frozen snapshots for probes, `/info` and metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["HandlerStatus", "WorkerState", "WorkerStatus"]

WorkerState = Literal["starting", "ready", "restarting", "lost"]


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker: where it runs, how it is, how often it was replaced.

    device: as `setup` sees it, several joined by commas. uuids: of its accelerators, as the driver names them. pid:
    its process, or this one for a thread. "lost" is for good, "restarting" is not.
    """

    device: str
    kind: Literal["process", "thread"]
    state: WorkerState
    pid: int
    restarts: int = 0
    uuids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HandlerStatus:
    """One handler's workers.

    alive: no batch has outlived max_run_time in a thread, which nothing but a new process can cure.
    """

    workers: tuple[WorkerStatus, ...]
    alive: bool = True

    @property
    def ready(self) -> bool:
        """Whether a live, warmed worker takes requests."""
        return any(worker.state == "ready" for worker in self.workers)

    @property
    def restarts(self) -> int:
        """How often a worker was replaced since the start."""
        return sum(worker.restarts for worker in self.workers)
