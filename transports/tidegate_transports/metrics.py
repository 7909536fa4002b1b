"""Prometheus' view of an app: everything is read from its snapshots when it is asked for, nothing is kept twice."""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from tidegate import __version__
from tidegate.nvml import Usage
from tidegate.status import DoorCounts, Overview
from tidegate_batching import Statistics
from tidegate_batching.statistics import SECONDS_BOUNDS, Histogram

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from prometheus_client.registry import CollectorRegistry

__all__ = ["DOCUMENTED", "Metrics", "Tally"]

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_STATES = ("starting", "ready", "restarting", "lost")

DOCUMENTED = {
    "tidegate_requests_total": (
        "counter",
        ("handler", "outcome"),
        "Requests by how they ended: ok, or the error's code",
    ),
    "tidegate_queue_seconds": ("histogram", ("handler",), "From a request's arrival to its batch's start"),
    "tidegate_run_seconds": ("histogram", ("handler",), "From a batch's start to its request's answer"),
    "tidegate_request_seconds": (
        "histogram",
        ("handler",),
        "From a request's body to its answer at the HTTP door, reading and writing included; a stream to its end",
    ),
    "tidegate_batch_size": ("histogram", ("handler",), "Requests per batch"),
    "tidegate_batches_total": ("counter", ("handler", "reason"), "Batches by why they were released"),
    "tidegate_queue_depth": ("gauge", ("handler",), "Requests that wait for a batch"),
    "tidegate_batches_running": ("gauge", ("handler",), "Batches that run"),
    "tidegate_items_rerun_total": ("counter", ("handler",), "Items that ran once more after a failure"),
    "tidegate_worker_restarts_total": ("counter", ("handler",), "How often a worker was replaced"),
    "tidegate_workers": ("gauge", ("handler", "state"), "Workers by state: starting, ready, restarting, lost"),
    "tidegate_ready": ("gauge", (), "1 while /readyz says so"),
    "tidegate_device_memory_bytes": ("gauge", ("device", "kind"), "Memory of an accelerator, used and free"),
    "tidegate_device_utilisation_ratio": ("gauge", ("device",), "How busy an accelerator is, from 0 to 1"),
    "tidegate_device_temperature_celsius": ("gauge", ("device",), "How hot an accelerator is"),
    "tidegate_http_requests_total": ("counter", ("handler", "status"), "Answers at the HTTP door by status"),
    "tidegate_build_info": ("gauge", ("version", "python"), "1, with the versions as labels"),
}
"""Every metric's kind, labels and meaning. These names stay."""


_NO_SECONDS = Histogram((0,) * (len(SECONDS_BOUNDS) + 1), 0.0)


class Tally:
    """What only a door can count.

    Example:
        >>> tally = Tally()
        >>> tally.answered("embed", 200)
        >>> tally.took("embed", 0.3)
        >>> tally.counts().statuses, tally.counts().seconds["embed"].sum
        ({'embed': {200: 1}}, 0.3)
    """

    def __init__(self) -> None:
        self._statuses: Counter[tuple[str, int]] = Counter()
        self._seconds: dict[str, list[int]] = {}
        self._sums: Counter[str] = Counter()

    def answered(self, handler: str, status: int) -> None:
        """Count an answer; `handler` is "" where none was meant."""
        self._statuses[handler, status] += 1

    def took(self, handler: str, seconds: float) -> None:
        """Count the time that an answer took."""
        counts = self._seconds.get(handler)
        if counts is None:
            counts = self._seconds[handler] = [0] * (len(SECONDS_BOUNDS) + 1)
        counts[bisect_left(SECONDS_BOUNDS, seconds)] += 1
        self._sums[handler] += seconds  # type: ignore[assignment]  # a Counter adds whatever numbers it is given

    def counts(self) -> DoorCounts:
        """Everything so far."""
        statuses: dict[str, dict[int, int]] = {}
        for (handler, status), count in sorted(self._statuses.items()):
            statuses.setdefault(handler, {})[status] = count
        seconds = {name: Histogram(tuple(counts), float(self._sums[name])) for name, counts in self._seconds.items()}
        return DoorCounts(statuses, seconds)


class Metrics:
    """Writes what Prometheus reads; prometheus_client is loaded when it is first asked."""

    def __init__(self) -> None:
        self._registry: CollectorRegistry | None = None
        self._overview: Overview

    def write(self, overview: Overview, accept: str | None) -> tuple[bytes, str]:
        """Everything in the format that the caller likes best, and that format's content type."""
        from prometheus_client import CollectorRegistry, ProcessCollector
        from prometheus_client.exposition import choose_encoder

        self._overview = overview
        if self._registry is None:
            self._registry = CollectorRegistry(auto_describe=False)
            self._registry.register(self)
            ProcessCollector(pid=lambda: self._overview.pid, registry=self._registry)
        encoder, content_type = choose_encoder(accept or "")
        return encoder(self._registry), content_type

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance: what there is depends on the app."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Every metric as it was in the overview."""
        overview = self._overview
        yield from self._of_requests(overview.statistics, overview.doors.seconds)
        yield from self._of_workers(overview)
        yield from self._of_devices(overview.devices)
        http = _family("tidegate_http_requests_total")
        for handler, statuses in overview.doors.statuses.items():
            for status, count in statuses.items():
                http.add_metric((handler, str(status)), count)
        yield http
        info = _family("tidegate_build_info")
        info.add_metric((__version__, platform.python_version()), 1)
        yield info

    def _of_requests(self, statistics: Mapping[str, Statistics], seconds: Mapping[str, Histogram]) -> Iterator[Metric]:
        requests, batches = _family("tidegate_requests_total"), _family("tidegate_batches_total")
        queue, run, total = (_family(f"tidegate_{part}_seconds") for part in ("queue", "run", "request"))
        sizes, depth, running = (
            _family(f"tidegate_{name}") for name in ("batch_size", "queue_depth", "batches_running")
        )
        rerun = _family("tidegate_items_rerun_total")
        for name, found in statistics.items():
            # A rate over what has not happened yet is 0, not nothing.
            for outcome, count in {"ok": 0, **found.outcomes}.items():
                requests.add_metric((name, outcome), count)
            for reason, count in found.released.items():
                batches.add_metric((name, reason), count)
            _add_seconds(queue, name, found.queue_seconds)
            _add_seconds(run, name, found.run_seconds)
            _add_seconds(total, name, seconds.get(name, _NO_SECONDS))
            _add_sizes(sizes, name, found.batch_sizes)
            depth.add_metric((name,), found.waiting)
            running.add_metric((name,), found.running)
            rerun.add_metric((name,), found.rerun)
        yield from (requests, queue, run, total, sizes, batches, depth, running, rerun)

    def _of_workers(self, overview: Overview) -> Iterator[Metric]:
        restarts, workers, ready = (
            _family(f"tidegate_{name}") for name in ("worker_restarts_total", "workers", "ready")
        )
        for name, status in overview.status.items():
            restarts.add_metric((name,), status.restarts)
            states = Counter(worker.state for worker in status.workers)
            for state in _STATES:
                workers.add_metric((name, state), states[state])  # type: ignore[index]
        ready.add_metric((), int(overview.ready))
        yield from (restarts, workers, ready)

    def _of_devices(self, devices: Mapping[str, Usage]) -> Iterator[Metric]:
        memory, utilisation, temperature = (
            _family(f"tidegate_device_{name}") for name in ("memory_bytes", "utilisation_ratio", "temperature_celsius")
        )
        for device, usage in devices.items():
            for family, labels, value in (
                (memory, (device, "used"), usage.memory_used),
                (memory, (device, "free"), usage.memory_free),
                (utilisation, (device,), usage.utilisation),
                (temperature, (device,), usage.temperature),
            ):
                if value is not None:
                    family.add_metric(labels, value)
        yield from (memory, utilisation, temperature)


def _family(name: str) -> Any:
    """An empty metric of the documented kind."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    kinds: dict[str, Any] = {
        "counter": CounterMetricFamily,
        "gauge": GaugeMetricFamily,
        "histogram": HistogramMetricFamily,
    }
    kind, labels, meaning = DOCUMENTED[name]
    return kinds[kind](name, meaning, labels=labels)


def _add_seconds(family: Any, handler: str, found: Histogram) -> None:
    bounds = [*map(repr, SECONDS_BOUNDS), "+Inf"]
    buckets = list(zip(bounds, accumulate(found.counts), strict=True))
    family.add_metric((handler,), buckets=buckets, sum_value=found.sum)


def _add_sizes(family: Any, handler: str, sizes: Mapping[int, int]) -> None:
    counts = [0] * (len(_SIZES) + 1)
    for size, count in sizes.items():
        counts[bisect_left(_SIZES, size)] += count
    bounds = [*(f"{size:.1f}" for size in _SIZES), "+Inf"]
    total = sum(size * count for size, count in sizes.items())
    family.add_metric((handler,), buckets=list(zip(bounds, accumulate(counts), strict=True)), sum_value=total)
