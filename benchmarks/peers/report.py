"""The results as a page of Markdown, as JSON and as one plot per workload."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from results import Cell, Figure, Results
from workloads import WORKLOADS

from tidegate.bench.plot import Point, svg

__all__ = ["write"]


class Budget(NamedTuple):
    """A ratio that must hold: `one`'s figure over `other`'s."""

    about: str
    workload: str
    connections: int
    name: str
    one: str
    other: str
    limit: float
    at_least: bool = True


BUDGETS = (
    Budget("echo, 64 connections, aiohttp / Mosec", "echo", 64, "rate", "tidegate aiohttp", "Mosec", 0.9),
    Budget("echo, 64 connections, aiohttp / LitServe", "echo", 64, "rate", "tidegate aiohttp", "LitServe", 15),
    Budget("echo, 64 connections, granian / Mosec", "echo", 64, "rate", "tidegate granian", "Mosec", 1.6),
    Budget("embedding, 64 connections, aiohttp / Mosec", "embed", 64, "rate", "tidegate aiohttp", "Mosec", 3),
    Budget(
        "one connection, p50, thread worker / bare aiohttp",
        "echo",
        1,
        "p50",
        "tidegate aiohttp, thread",
        "bare aiohttp",
        1.5,
        False,
    ),
    Budget(
        "one connection, p50, process worker / bare aiohttp",
        "echo",
        1,
        "p50",
        "tidegate aiohttp",
        "bare aiohttp",
        2.5,
        False,
    ),
    Budget("one connection, p50, process worker / Mosec", "echo", 1, "p50", "tidegate aiohttp", "Mosec", 0.1, False),
    Budget(
        "one connection, p50, process worker / LitServe", "echo", 1, "p50", "tidegate aiohttp", "LitServe", 0.1, False
    ),
)


def write(results: Results, folder: Path) -> None:
    """peers.md, peers.json and a plot per workload."""
    (folder / "peers.json").write_text(results.as_json())
    parts = [_head(results), _budgets(results)]
    for name in dict.fromkeys(cell.workload for cell in results.cells):
        parts.append(_workload(results, name))
        (folder / f"{name}.svg").write_text(_plot(results, name))
    parts += [_faults(results), _failed(results)]
    (folder / "peers.md").write_text("\n\n".join(part for part in parts if part) + "\n")


def _head(results: Results) -> str:
    lines = [
        f"Machine: {results.machine}; load average before the run {results.load_before:.1f}; {results.minutes:.1f} minutes.",
        f"Command: `{results.command}`. Load from {results.generator}, on the same machine.",
    ]
    if results.ceiling:
        lines.append(
            f"The generator reaches {results.ceiling['rate']:,.0f} requests/s where the server does next to nothing, "
            f"with {results.ceiling['cores']:.2f} cores."
        )
    for name, found in results.versions.items():
        lines.append(f"{name}: " + ", ".join(f"{what} {version}" for what, version in found.items()) + ".")
    return "\n".join(f"* {line}" for line in lines)


def _budgets(results: Results) -> str:
    lines = ["| budget | limit | median of ratios (smallest – largest) | |", "| --- | --- | --- | --- |"]
    for one in BUDGETS:
        found = results.ratio(one.workload, one.connections, one.name, one.one, one.other)
        if found is None:
            continue
        holds = found.median >= one.limit if one.at_least else found.median <= one.limit
        sign = "≥" if one.at_least else "≤"
        lines.append(
            f"| {one.about} | {sign} {one.limit:g} | {_spread(found, '.2f')} | {'holds' if holds else 'missed'} |"
        )
    return "\n".join(lines) if len(lines) > 2 else ""


def _workload(results: Results, name: str) -> str:
    cells = [cell for cell in results.cells if cell.workload == name]
    connections = sorted({cell.connections for cell in cells})
    contenders = list(dict.fromkeys(cell.contender for cell in cells))
    tables = []
    for title, field, scale, form in (
        ("Requests per second", "rate", 1, ",.0f"),
        ("p50, ms", "p50", 1e3, ".2f"),
        ("p99, ms", "p99", 1e3, ".2f"),
        ("CPU seconds per 1,000 requests", "cpu_per_1000", 1, ".3f"),
    ):
        lines = [
            f"| {title} | " + " | ".join(f"{count}" for count in connections) + " |",
            "| --- |" + " --- |" * len(connections),
        ]
        for contender in contenders:
            found = [results.of(Cell(name, contender, count), field) for count in connections]
            lines.append(f"| {contender} | " + " | ".join(_scaled(one, scale, form) for one in found) + " |")
        tables.append("\n".join(lines))
    about = WORKLOADS[name].about
    return "\n\n".join([f"## {name}: {about}", "Columns are connections; median (smallest – largest).", *tables])


def _scaled(found: Figure | None, scale: float, form: str) -> str:
    return "void" if found is None else _spread(Figure(*(scale * value for value in found)), form)


def _spread(found: Figure, form: str) -> str:
    return f"{found.median:{form}} ({found.low:{form}} – {found.high:{form}})"


def _plot(results: Results, name: str) -> str:
    series: dict[str, list[Point]] = {}
    for cell in sorted((cell for cell in results.cells if cell.workload == name), key=lambda cell: cell.connections):
        rate, p50, p99 = (results.of(cell, field) for field in ("rate", "p50", "p99"))
        if rate and p50 and p99:
            point = Point(rate.median, p50.median, p99.median, f"{cell.connections} connections")
            series.setdefault(cell.contender, []).append(point)
    return svg(series, f"{name}: {WORKLOADS[name].about}")


def _faults(results: Results) -> str:
    parts = []
    for name, rows in results.faults.items():
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        lines = [
            f"## {name}",
            "",
            "| |" + "".join(f" {column} |" for column in columns),
            "| --- |" + " --- |" * len(columns),
        ]
        for contender, row in rows.items():
            lines.append(f"| {contender} |" + "".join(f" {_plain(row.get(column, ''))} |" for column in columns))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _plain(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _failed(results: Results) -> str:
    if not results.failed:
        return ""
    lines = [f"* {name}: {why}" for name, why in results.failed.items()]
    return "\n".join(["## Void", "", *lines])
