"""When requests are due, as seconds from a start: pure iterators, drawn before anybody looks at a clock."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, repeat

__all__ = ["AllAtOnce", "Bursts", "Closed", "Load", "Poisson", "shown_rate"]


@dataclass(frozen=True, slots=True)
class Closed:
    """So many callers, each of whom sends as soon as it is answered: the service sets the pace.

    Such callers wait while the service is slow and send nothing, so that a stall counts once and not once for everybody
    who would have come: the other loads are for that.
    """

    connections: int

    def __str__(self) -> str:
        return f"{self.connections} {'caller' if self.connections == 1 else 'callers'}"


@dataclass(frozen=True, slots=True)
class Poisson:
    """Callers who know nothing of each other, `rate` a second on average.

    Example:
        >>> due = Poisson(100.0).due(seed=1)
        >>> [round(next(due), 4) for _ in range(3)]
        [0.0014, 0.0202, 0.0347]
    """

    rate: float

    def due(self, seed: int) -> Iterator[float]:
        """Ascending without an end; the same for the same seed."""
        draw = random.Random(seed)
        at = 0.0
        while True:
            # 1 - u is never 0.
            at -= math.log(1.0 - draw.random()) / self.rate
            yield at

    def __str__(self) -> str:
        return f"Poisson {shown_rate(self.rate)}/s"


@dataclass(frozen=True, slots=True)
class Bursts:
    """`size` requests at the same instant, every `every` seconds, the first at once.

    Example:
        >>> due = Bursts(2, every=0.5).due(seed=1)
        >>> [next(due) for _ in range(5)]
        [0.0, 0.0, 0.5, 0.5, 1.0]
    """

    size: int
    every: float

    @property
    def rate(self) -> float:
        """Requests a second on average."""
        return self.size / self.every

    def due(self, seed: int) -> Iterator[float]:
        """Ascending without an end; nothing is drawn."""
        for number in count():
            yield from repeat(number * self.every, self.size)

    def __str__(self) -> str:
        return f"{self.size} every {self.every:g} s"


@dataclass(frozen=True, slots=True)
class AllAtOnce:
    """All there is to do is there from the start, of which `connections` are under way at a time."""

    requests: int
    connections: int

    def __str__(self) -> str:
        return f"{self.requests:,} at once"


def shown_rate(rate: float) -> str:
    """Four digits or more, without an exponent.

    Example:
        >>> shown_rate(12345.6), shown_rate(1234.56), shown_rate(0.125)
        ('12,346', '1,235', '0.125')
    """
    return f"{rate:,.0f}" if rate >= 1000 else f"{rate:.4g}"


Load = Closed | Poisson | Bursts | AllAtOnce
