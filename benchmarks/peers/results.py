"""What was measured, and the figures that come of it: medians, spreads, ratios within a round."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from wrk import Measured

__all__ = ["Cell", "Figure", "Results", "figure"]


class Cell(NamedTuple):
    """One line and column of the table."""

    workload: str
    contender: str
    connections: int


class Figure(NamedTuple):
    """The median of several rounds, the smallest and the largest."""

    median: float
    low: float
    high: float


def figure(values: list[float]) -> Figure | None:
    """None where nothing valid was measured."""
    found = [value for value in values if not math.isnan(value)]
    return Figure(statistics.median(found), min(found), max(found)) if found else None


@dataclass
class Results:
    """One run."""

    machine: str
    versions: dict[str, dict[str, str]]
    command: str
    generator: str
    ceiling: dict[str, float] | None = None
    minutes: float = 0.0
    load_before: float = 0.0
    cells: dict[Cell, dict[int, Measured]] = field(default_factory=lambda: defaultdict(dict))
    failed: dict[str, str] = field(default_factory=dict)
    faults: dict[str, Any] = field(default_factory=dict)

    def add(self, cell: Cell, turn: int, measured: Measured) -> None:
        """One round of one cell."""
        self.cells[cell][turn] = measured
        if measured.errors:
            self.failed[f"{cell.contender}, {cell.workload}, {cell.connections} connections"] = (
                f"{measured.errors} errors in round {turn + 1}: void"
            )

    def drop(self, workload: str, contender: str, why: str) -> None:
        """A service that answers wrongly after it was measured has measured nothing."""
        for cell in [cell for cell in self.cells if (cell.workload, cell.contender) == (workload, contender)]:
            self.cells[cell].clear()
        self.failed[f"{contender}, {workload}"] = f"{why}: void"

    def of(self, cell: Cell, name: str) -> Figure | None:
        """One field's median and spread over the rounds without errors."""
        return figure([getattr(one, name) for one in self.cells.get(cell, {}).values() if not one.errors])

    def ratio(self, workload: str, connections: int, name: str, one: str, other: str) -> Figure | None:
        """one's figure over the other's, round by round."""
        mine = self.cells.get(Cell(workload, one, connections), {})
        theirs = self.cells.get(Cell(workload, other, connections), {})
        turns = [turn for turn in mine.keys() & theirs.keys() if not mine[turn].errors and not theirs[turn].errors]
        return figure([getattr(mine[turn], name) / getattr(theirs[turn], name) for turn in turns])

    def as_json(self) -> str:
        """Everything, round by round."""
        rows = [
            {**cell._asdict(), "rounds": [one._asdict() for _, one in sorted(rounds.items())]}
            for cell, rounds in self.cells.items()
        ]
        head = {name: getattr(self, name) for name in ("machine", "versions", "command", "generator", "ceiling")}
        more = {"minutes": self.minutes, "load_before": self.load_before, "failed": self.failed, "faults": self.faults}
        return json.dumps({**head, **more, "cells": rows}, indent=1)
