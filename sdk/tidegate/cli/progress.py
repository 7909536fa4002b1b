"""How a job is going, on standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import click
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

__all__ = ["Bar", "Lines", "Progress", "Silence", "Standing", "progress_on", "shown_rate", "shown_seconds"]

EVERY = 10.0
"""Seconds between two lines where there is no terminal."""


@dataclass(frozen=True, slots=True)
class Standing:
    """answered, failed: lines so far. nbytes, size: read so far, and all that there is to read if that is known.
    batch: the mean batch. skipped: lines answered by an earlier run."""

    answered: int
    failed: int
    nbytes: int
    size: int | None
    batch: float
    skipped: int = 0


class Progress(Protocol):
    """Shows a standing whenever it is asked to, which is several times a second."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...
    def show(self) -> None: ...


def progress_on(look: Callable[[], Standing], *, quiet: bool) -> Progress:
    """What fits standard error."""
    if quiet:
        return Silence()
    return Bar(look) if sys.stderr.isatty() else Lines(look)


class _Pace:
    """Lines per second lately, and seconds that are left."""

    def __init__(self) -> None:
        self._began = self._at = time.monotonic()
        self._answered = 0
        self.rate = 0.0

    def update(self, standing: Standing) -> None:
        now = time.monotonic()
        if now - self._at < 0.05:
            return
        fresh = (standing.answered - self._answered) / (now - self._at)
        # The first look says all there is to say; later ones count less the shorter they are.
        weight = min(1.0, (now - self._at) / 2.0) if self._answered else 1.0
        self.rate += weight * (fresh - self.rate)
        self._at, self._answered = now, standing.answered

    def left(self, standing: Standing) -> float | None:
        if not standing.size or not standing.nbytes:
            return None
        elapsed = self._at - self._began
        return max(0.0, elapsed * (standing.size / standing.nbytes - 1.0))


class Silence:
    """Nothing at all."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def show(self) -> None:
        """Say nothing."""


class Lines:
    """One plain line every ten seconds."""

    def __init__(self, look: Callable[[], Standing], *, every: float = EVERY) -> None:
        self._look = look
        self._every = every
        self._next = time.monotonic() + every
        self._pace = _Pace()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def show(self) -> None:
        """Write a line if it is time for one."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._every
        standing = self._look()
        self._pace.update(standing)
        click.echo(f"tidegate: {', '.join(_parts(standing, self._pace))}", err=True)


class Bar:
    """A live line on a terminal, with a bar where the size of the input is known."""

    def __init__(self, look: Callable[[], Standing], console: Console | None = None) -> None:
        self._look = look
        self._pace = _Pace()
        # What the handler prints goes above it.
        self._live = Live(
            get_renderable=self._drawn,
            console=console or Console(stderr=True),
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=True,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self) -> None:
        """Draw it anew."""
        self._live.refresh()

    def _drawn(self) -> Table:
        standing = self._look()
        self._pace.update(standing)
        table = Table.grid(padding=(0, 1))
        cells: list[ProgressBar | Text] = []
        if standing.size:
            cells.append(ProgressBar(total=standing.size, completed=standing.nbytes, width=24))
            cells.append(Text(f"{100 * standing.nbytes / standing.size:3.0f} %"))
        style = "red" if standing.failed else ""
        cells += [Text(part, style if "failed" in part else "") for part in _parts(standing, self._pace)]
        table.add_row(*cells)
        return table


def _parts(standing: Standing, pace: _Pace) -> list[str]:
    parts = [f"{standing.answered:,} lines", shown_rate(pace.rate), f"batch {standing.batch:.1f}"]
    parts.append(f"{standing.failed:,} failed")
    if standing.skipped:
        parts.append(f"{standing.skipped:,} answered before")
    left = pace.left(standing)
    return parts if left is None else [*parts, f"{shown_seconds(left)} left"]


def shown_rate(rate: float) -> str:
    """Lines per second for people.

    Example:
        >>> shown_rate(61234.5), shown_rate(1.25)
        ('61,234/s', '1.2/s')
    """
    return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.1f}/s"


def shown_seconds(seconds: float) -> str:
    """A duration for people.

    Example:
        >>> shown_seconds(3725), shown_seconds(75), shown_seconds(2.5), shown_seconds(0.0123)
        ('1 h 02 min', '1 min 15 s', '2.5 s', '12.3 ms')
    """
    if seconds >= 3600:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:02.0f} min"
    if seconds >= 60:
        return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
