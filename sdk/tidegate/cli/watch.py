"""What a job is doing: where it stands, what its errors are, and what is said of it in the end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import click

from tidegate.app import App
from tidegate.cli.progress import Standing, shown_rate, shown_seconds
from tidegate.devices import DeviceManager
from tidegate_batching import HandlerError, TidegateError

__all__ = ["Complaints", "Watch"]

_SAMPLE = 1.0
_SHOWN_KINDS = 5


class Complaints:
    """The first error of each kind on standard error, a handler's own with its traceback; the lines hold them all."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._seen: Counter[str] = Counter()

    def add(self, number: int, error: TidegateError) -> None:
        """A line has failed."""
        kind = error.type_name if isinstance(error, HandlerError) else error.code
        self._seen[kind] += 1
        if self._quiet or self._seen[kind] > 1 or len(self._seen) > _SHOWN_KINDS:
            return
        if isinstance(error, HandlerError) and error.traceback:
            click.echo(error.traceback.rstrip("\n"), err=True)
        click.echo(f"tidegate: line {number} failed: {error.detail}", err=True)


class _Report(Protocol):
    @property
    def answered(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def skipped(self) -> int: ...
    @property
    def failed_before(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


class Watch:
    """Looks at a job of an app's only handler.

    report: how far its door is. size: bytes of the input, None if nobody knows.
    """

    def __init__(self, app: App, manager: DeviceManager, report: Callable[[], Any], size: int | None) -> None:
        self._app = app
        self._manager = manager
        self._report: Callable[[], _Report] = report
        self._size = size
        self._began = time.monotonic()
        self._sampled_at = self._began
        self._utilisations: list[float] = []
        (status,) = app.status().values()
        self._uuids = {uuid for worker in status.workers for uuid in worker.uuids}
        (handler,) = app.handlers.values()
        self._slots = len(status.workers) * handler.concurrency

    def standing(self) -> Standing:
        """How far it is."""
        report = self._report()
        (statistics,) = self._app.statistics().values()
        return Standing(
            answered=report.answered,
            failed=report.failed,
            nbytes=report.nbytes,
            size=self._size,
            batch=statistics.mean_batch_size,
            skipped=report.skipped,
        )

    def sample(self) -> None:
        """Look at the devices, once a second at most."""
        now = time.monotonic()
        if not self._uuids or now - self._sampled_at < _SAMPLE:
            return
        self._sampled_at = now
        usage = self._manager.usage()
        self._utilisations += [
            used.utilisation
            for device, used in usage.items()
            if device.uuid in self._uuids and used.utilisation is not None
        ]

    def summary(self) -> str:
        """The whole in one line."""
        elapsed = max(time.monotonic() - self._began, 1e-9)
        report = self._report()
        (statistics,) = self._app.statistics().values()
        rate = shown_rate(report.answered / elapsed)
        parts = [f"{report.answered:,} lines in {shown_seconds(elapsed)}", rate, f"{report.failed:,} failed"]
        if report.skipped:
            before = f", {report.failed_before:,} of them failed" if report.failed_before else ""
            parts.append(f"{report.skipped:,} were answered before{before}")
        done = statistics.run_seconds.count
        if done:
            ran = statistics.run_seconds.sum
            # Every item of a batch counts the batch's seconds, and batches of one worker may overlap a little.
            busy = min(1.0, ran / statistics.mean_batch_size / elapsed / self._slots)
            parts += [
                f"mean batch {statistics.mean_batch_size:.1f}",
                f"queue {shown_seconds(statistics.queue_seconds.sum / done)}",
                f"run {shown_seconds(ran / done)}",
                f"workers busy {busy:.0%}",
            ]
        if self._utilisations:
            parts.append(f"devices busy {sum(self._utilisations) / len(self._utilisations):.0%}")
        return f"tidegate: {', '.join(parts)}"
