"""What a service says of its own state: frozen snapshots for probes, `/info` and metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Literal, Self

from tidegate.nvml import Usage
from tidegate_batching import Statistics
from tidegate_batching.statistics import Histogram

__all__ = ["DoorCounts", "HandlerStatus", "Overview", "WorkerState", "WorkerStatus"]

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


@dataclass(frozen=True, slots=True)
class DoorCounts:
    """What the doors of one process have counted, by handler: answers by status, and the seconds that they took.

    Example:
        >>> one = DoorCounts({"embed": {200: 2}}, {"embed": Histogram((1, 1), 0.5)})
        >>> one + DoorCounts({"embed": {200: 1, 429: 1}})
        DoorCounts(statuses={'embed': {200: 3, 429: 1}}, seconds={'embed': Histogram(counts=(1, 1), sum=0.5)})
    """

    statuses: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    seconds: Mapping[str, Histogram] = field(default_factory=dict)

    def __add__(self, other: Self) -> Self:
        statuses = {
            name: dict(Counter(self.statuses.get(name, {})) + Counter(other.statuses.get(name, {})))
            for name in {**self.statuses, **other.statuses}
        }
        seconds = {
            name: _added(self.seconds.get(name, _NOTHING), other.seconds.get(name, _NOTHING))
            for name in {**self.seconds, **other.seconds}
        }
        return type(self)(statuses, seconds)


_NOTHING = Histogram((), 0.0)


def _added(one: Histogram, other: Histogram) -> Histogram:
    counts = (sum(pair) for pair in zip_longest(one.counts, other.counts, fillvalue=0))
    return Histogram(tuple(counts), one.sum + other.sum)


@dataclass(frozen=True, slots=True)
class Overview:
    """A whole app at one instant, in whichever process one asks. devices: by name, as far as the driver tells.

    pid: of the process that batches.
    """

    ready: bool
    alive: bool
    draining: bool
    status: Mapping[str, HandlerStatus]
    statistics: Mapping[str, Statistics]
    devices: Mapping[str, Usage] = field(default_factory=dict)
    doors: DoorCounts = field(default_factory=DoorCounts)
    pid: int = 0
