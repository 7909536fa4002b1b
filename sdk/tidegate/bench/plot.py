"""Latency against throughput, drawn by hand: an SVG, the same in a page of HTML, or a PNG where matplotlib is there."""

from __future__ import annotations

import html
import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tidegate.bench.report import figures_of, shown_number
from tidegate.bench.scenarios import Row

__all__ = ["PlotError", "Point", "check_plot", "draw", "series_of", "svg"]

WIDTH, HEIGHT = 860, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 24, 56
_COLORS = ("#0969da", "#bf3989", "#1a7f37", "#9a6700", "#8250df", "#cf222e", "#57606a", "#116329")
_FONT = 'font-family="system-ui,sans-serif" font-size="12"'
_DASHED = ' stroke-dasharray="5 4"'
_SUFFIXES = (".html", ".svg", ".png")


class PlotError(Exception):
    """The plot cannot be drawn; the text names the fix."""


class Point(NamedTuple):
    """Requests per second; p50 and p99 in seconds, None where there is too little to say."""

    throughput: float
    p50: float
    p99: float | None
    label: str


def check_plot(path: Path) -> None:
    """Raise PlotError for what could not be written after all the measuring."""
    if path.suffix.lower() not in _SUFFIXES:
        raise PlotError(f"--plot {path}: the name must end in {', '.join(_SUFFIXES)}")
    if path.suffix.lower() == ".png":
        try:
            importlib.import_module("matplotlib")
        except ImportError:
            raise PlotError(
                f"--plot {path}: a PNG needs matplotlib: `pip install matplotlib`, or give a .html or .svg file"
            ) from None
    if not path.absolute().parent.is_dir():
        raise PlotError(f"--plot {path}: there is no folder {path.parent}")


def draw(path: Path, rows: Sequence[Row], title: str) -> None:
    """Write the plot, in the form that the file's name tells."""
    series = series_of(rows)
    suffix = path.suffix.lower()
    if suffix == ".png":
        _draw_png(path, series, title)
        return
    drawing = svg(series, title)
    if suffix == ".html":
        drawing = f"{_PAGE_HEAD}<title>{html.escape(title)}</title></head><body>{drawing}</body></html>\n"
    path.write_text(drawing, encoding="utf-8")


def series_of(rows: Sequence[Row]) -> dict[str, list[Point]]:
    """The points of each configuration, in the order in which they were measured."""
    series: dict[str, list[Point]] = {}
    for row in rows:
        figures = figures_of(row)
        throughput, p50, p99 = figures["throughput"], figures["p50"], figures["p99"]
        if throughput is None or p50 is None:
            continue
        name = ", ".join(f"{key} {value}" for key, value in row.config.items())
        point = Point(throughput.median, p50.median, p99.median if p99 else None, row.load)
        series.setdefault(name, []).append(point)
    return series


# ---------------------------------------------------------------------- SVG

_PAGE_HEAD = (
    '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
    "<style>body{margin:2em auto;max-width:900px;font:14px system-ui,sans-serif}svg{width:100%;height:auto}</style>"
)


class _Axes:
    """Where a value goes: throughput from 0 to the right, latency on a logarithmic scale upwards."""

    def __init__(self, points: Sequence[Point]) -> None:
        heights = [value for point in points for value in (point.p50, point.p99) if value]
        self.right = max([point.throughput for point in points], default=1.0) * 1.05 or 1.0
        low, high = min(heights, default=0.001), max(heights, default=0.01)
        self.low, self.high = math.log10(low) - 0.1, math.log10(high) + 0.1

    def x(self, throughput: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * throughput / self.right

    def y(self, seconds: float) -> float:
        share = (math.log10(max(seconds, 1e-9)) - self.low) / (self.high - self.low)
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * share

    def x_ticks(self) -> list[float]:
        """Round numbers, five or so."""
        raw = self.right / 5
        unit = 10 ** math.floor(math.log10(raw))
        step = next(unit * times for times in (1, 2, 5, 10) if unit * times >= raw * 0.999)
        return [step * n for n in range(int(self.right / step) + 1)]

    def y_ticks(self) -> list[float]:
        """1, 2 and 5 of every power of ten in sight."""
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        every = [times * 10.0**power for power in powers for times in (1, 2, 5)]
        return [value for value in every if self.low <= math.log10(value) <= self.high]


def svg(series: dict[str, list[Point]], title: str) -> str:
    """The drawing on its own; p50 in full lines, p99 in dashed ones, each point with its figures as a tooltip."""
    axes = _Axes([point for points in series.values() for point in points])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT + 22 * len(series)}" {_FONT}>',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{_LEFT}" y="16" font-weight="600">{html.escape(title)}</text>',
        *_grid(axes),
    ]
    for number, (name, points) in enumerate(series.items()):
        parts += _drawn(axes, points, _COLORS[number % len(_COLORS)])
        parts += _legend(number, name, _COLORS[number % len(_COLORS)])
    return "\n".join([*parts, "</svg>\n"])


def _grid(axes: _Axes) -> list[str]:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = []
    for value in axes.x_ticks():
        x = axes.x(value)
        parts.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#eaeef2"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{shown_number(value)}</text>')
    for value in axes.y_ticks():
        y = axes.y(value)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#eaeef2"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{1000 * value:g}</text>')
    middle = (_LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{bottom + 34}" text-anchor="middle">good answers per second</text>')
    height = (_TOP + bottom) / 2
    parts.append(
        f'<text x="16" y="{height}" text-anchor="middle" transform="rotate(-90 16 {height})">latency, ms (log)</text>'
    )
    return parts


def _drawn(axes: _Axes, points: Sequence[Point], color: str) -> list[str]:
    parts = []
    for which, dash in (("p50", ""), ("p99", _DASHED)):
        found = [(point, getattr(point, which)) for point in points if getattr(point, which) is not None]
        places = " ".join(f"{axes.x(point.throughput):.1f},{axes.y(value):.1f}" for point, value in found)
        parts.append(f'<polyline points="{places}" fill="none" stroke="{color}" stroke-width="2"{dash}/>')
        for point, value in found:
            told = f"{point.label}: {shown_number(point.throughput)}/s, {which} {1000 * value:.3g} ms"
            parts.append(
                f'<circle cx="{axes.x(point.throughput):.1f}" cy="{axes.y(value):.1f}" r="4" fill="{color}">'
                f"<title>{html.escape(told)}</title></circle>"
            )
    return parts


def _legend(number: int, name: str, color: str) -> list[str]:
    y = HEIGHT + 22 * number
    return [
        f'<line x1="{_LEFT}" y1="{y}" x2="{_LEFT + 30}" y2="{y}" stroke="{color}" stroke-width="2"/>',
        f'<line x1="{_LEFT + 36}" y1="{y}" x2="{_LEFT + 66}" y2="{y}" stroke="{color}" stroke-width="2"{_DASHED}/>',
        f'<text x="{_LEFT + 74}" y="{y + 4}">p50 and p99{html.escape(f", {name}" if name else "")}</text>',
    ]


# ---------------------------------------------------------------------- PNG


def _draw_png(path: Path, series: dict[str, list[Point]], title: str) -> None:
    # By name: it is no dependency, and takes long to load.
    figure: Any = importlib.import_module("matplotlib.figure").Figure(figsize=(8.6, 4.8), dpi=150)
    axes = figure.add_subplot()
    for number, (name, points) in enumerate(series.items()):
        color = _COLORS[number % len(_COLORS)]
        for which, style in (("p50", "o-"), ("p99", "o--")):
            found = [(point.throughput, getattr(point, which)) for point in points if getattr(point, which) is not None]
            label = f"{which}, {name}" if name else which
            axes.plot([x for x, _ in found], [1000 * y for _, y in found], style, color=color, label=label)
    axes.set(xlabel="good answers per second", ylabel="latency, ms", yscale="log", title=title)
    axes.set_xlim(left=0)
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path)
