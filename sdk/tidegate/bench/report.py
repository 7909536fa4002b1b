"""Results for people, as a table, and for programs, as JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import IO, Any

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidegate.bench.latency import QUANTILES, Spread, spread_of
from tidegate.bench.record import Measurement
from tidegate.bench.scenarios import Row
from tidegate.version import __version__

__all__ = ["figures_of", "notes_of", "show", "shown_number", "written_json"]

_WIDE = 1000
_DISPENSABLE = ("generator", "p99.9 ms", "p90 ms", "CPU s/1000", "max ms", "goodput/s")
_NOTHING = "–"


def figures_of(row: Row) -> dict[str, Spread | None]:
    """Median, smallest and largest over a row's runs; seconds and requests per second.

    Latencies are named `p50`…, `mean` and `max`.
    """
    runs = row.runs
    figures = {
        "throughput": spread_of([run.throughput for run in runs]),
        "goodput": spread_of([run.goodput for run in runs]),
        "mean": spread_of([run.latency.mean for run in runs]),
        "max": spread_of([run.latency.max for run in runs]),
        "mean_batch": spread_of([run.mean_batch for run in runs]),
        "cpu_per_1000": spread_of([run.cpu_per_1000 for run in runs]),
    }
    return figures | {name: spread_of([run.latency.quantiles[name] for run in runs]) for name in QUANTILES}


# ---------------------------------------------------------------------- for people


def show(rows: Sequence[Row], file: IO[str] | None = None) -> None:
    """A table and what has to be said about it."""
    console = Console(file=file)
    if not console.is_terminal:
        console = Console(file=file, width=_WIDE)  # a pipe has no edge to wrap at
    notes = notes_of(rows)
    if rows:
        table, left_out = _fitting(rows, console)
        console.print(table)
        if left_out:
            notes.append(f"Left out, since the terminal is narrow: {', '.join(left_out)}; --json has all.")
    for note in notes:
        console.print(Text(note), soft_wrap=True)


def _fitting(rows: Sequence[Row], console: Console) -> tuple[Table, list[str]]:
    """The table, without some columns if it were wider than the console."""
    cells = [_cells(row) for row in rows]
    # A column that is empty from top to bottom says nothing.
    columns = [name for name in cells[0] if any(cell[name] not in ("", "0") for cell in cells)]
    table = _table(rows, cells, columns)
    left_out: list[str] = []
    for name in (name for name in _DISPENSABLE if name in columns):
        if console.measure(table, options=console.options.update(width=_WIDE)).maximum <= console.width:
            break
        left_out.append(name)
        table = _table(rows, cells, [one for one in columns if one not in left_out])
    return table, left_out


def _table(rows: Sequence[Row], cells: Sequence[Mapping[str, str]], columns: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        is_text = name in (*rows[0].config, "load")
        table.add_column(name, justify="left" if is_text else "right", overflow="fold")
    for cell in cells:
        table.add_row(*(Text(cell[name]) for name in columns))
    return table


def _cells(row: Row) -> dict[str, str]:
    figures = figures_of(row)
    cells = {
        name: shown_number(value) if isinstance(value, float) else str(value) for name, value in row.config.items()
    }
    cells["load"] = row.load
    cells["items/s"] = _shown(figures["throughput"], shown_number) or _NOTHING
    cells["goodput/s"] = _shown(figures["goodput"], shown_number)
    for name in QUANTILES:
        with_spread = name in ("p50", "p99") or (name == "p90" and row.scenario == "single-stream")
        cells[f"{name} ms"] = _shown(figures[name], _milliseconds, with_spread=with_spread) or _NOTHING
    cells["max ms"] = _shown(figures["max"], _milliseconds, with_spread=False) or _NOTHING
    cells["batch"] = _shown(figures["mean_batch"], lambda size: f"{size:.1f}", with_spread=False)
    cells["CPU s/1000"] = _shown(figures["cpu_per_1000"], lambda seconds: f"{seconds:.2f}", with_spread=False)
    for kind in ("refused", "timeouts", "failed"):
        cells[kind] = f"{sum(getattr(run, kind) for run in row.runs):,}"
    cells["generator"] = f"{max(run.generator.cpu for run in row.runs):.0%} CPU" if row.runs else ""
    if any(run.complaint for run in row.runs):
        cells["generator"] += " !"
    return cells


def notes_of(rows: Sequence[Row]) -> list[str]:
    """Sentences: errors by code, what a search found, and where the generator itself may be what limits."""
    notes = []
    for row in rows:
        where = _named(row)
        if row.note:
            notes.append(f"{where}: {row.note}.")
        for code, count in _codes(row.runs).items():
            detail = next((run.details[key] for run in row.runs for key in run.details if code.endswith(key)), "")
            notes.append(f"{where}: {count:,} × {code}" + (f", such as: {detail[:300]}" if detail else ""))
        slow = [run.error_latency.max for run in row.runs if run.error_latency.max is not None]
        if slow:
            notes.append(
                f"{where}: these took up to {_milliseconds(max(slow))} ms; the latencies above are without them."
            )
        complaints = [run.complaint for run in row.runs if run.complaint]
        if complaints:
            notes.append(f"! {where}: the load generator may be what limits here: {complaints[0]}")
    if any(run.generator.shared for row in rows for run in row.runs):
        notes.append(
            "The load generator and the service share one process, and its CPU: compare such rows among themselves."
        )
    if any(figures_of(row)[name] is None for row in rows if row.runs for name in QUANTILES):
        notes.append(f"{_NOTHING}: too few samples to say.")
    if any(len(row.runs) > 1 for row in rows):
        notes.append(
            "Of several runs the median, with the smallest and the largest in brackets; errors are of all runs."
        )
    if any(run.interrupted for row in rows for run in row.runs):
        notes.append("Stopped early: the last run is of the time until then.")
    return notes


def _codes(runs: Sequence[Measurement]) -> Mapping[str, int]:
    codes: dict[str, int] = {}
    for run in runs:
        for code, count in run.codes.items():
            codes[code] = codes.get(code, 0) + count
    return codes


def _named(row: Row) -> str:
    config = ", ".join(f"{name} {value}" for name, value in row.config.items())
    return f"{config}, {row.load}" if config else row.load


def _shown(spread: Spread | None, write: Callable[[float], str], *, with_spread: bool = True) -> str:
    if spread is None:
        return ""
    if spread.low == spread.high or not with_spread:
        return write(spread.median)
    return f"{write(spread.median)} ({write(spread.low)}–{write(spread.high)})"


def shown_number(number: float) -> str:
    """Three digits or more, without an exponent.

    Example:
        >>> shown_number(12345.6), shown_number(45.67), shown_number(0.005)
        ('12,346', '45.7', '0.005')
    """
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _milliseconds(seconds: float) -> str:
    number = 1000 * seconds
    return (
        f"{number:,.0f}"
        if number >= 100
        else f"{number:.1f}"
        if number >= 10
        else f"{number:.2f}"
        if number >= 1
        else f"{number:.3f}"
    )


# ---------------------------------------------------------------------- for programs


def written_json(rows: Sequence[Row], told: Mapping[str, Any]) -> bytes:
    """Everything, times in seconds; `told` is what was asked for. Neither headers nor inputs are in it."""
    whole = {
        "tidegate": __version__,
        "machine": {
            "python": platform.python_version(),
            "system": platform.platform(),
            "cores": os.cpu_count(),
        },
        **told,
        "rows": [_written(row) for row in rows],
        "notes": notes_of(rows),
    }
    return msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n"


def _written(row: Row) -> dict[str, Any]:
    figures = {name: None if spread is None else asdict(spread) for name, spread in figures_of(row).items()}
    return {
        "config": dict(row.config),
        "scenario": row.scenario,
        "load": row.load,
        "note": row.note,
        "figures": figures,
        "runs": [{**asdict(run), "complaint": run.complaint} for run in row.runs],
    }
