"""Whom to serve when not everybody can be in time.

Serving ever smaller batches to please the most urgent item is how a server collapses at 1.2 times its capacity. The
"rate" rule gives the most urgent items up if, and only if, the fuller batch that becomes possible wins more answers in
time than it loses; Nexus (SOSP '19) drops likewise, for a fixed batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from math import inf
from typing import NamedTuple

from tidegate_batching.item import Item

__all__ = ["Choice", "choose"]

MARGIN = 1.05
"""Predicted seconds are stretched by this before they are held against a deadline."""


class Choice(NamedTuple):
    """The items to run now, in order, and those that are given up."""

    batch: list[Item]
    shed: list[Item]


def choose(
    waiting: Iterable[Item],
    limit: int,
    max_cost: float,
    now: float,
    predict: Callable[[list[Item]], float],
    soonest: Callable[[Item], float],
) -> Choice:
    """Pick a batch from the waiting items, the first in order first.

    limit: most items, 1 or more. max_cost: most summed cost. predict: seconds that these items take as one batch, 0.0
    when unknown. soonest: seconds that an item takes at the very least. The batch is empty only if nothing waits.
    """
    rest = iter(waiting)
    late: list[Item] = []
    fit: list[Item] = []
    cost, earliest = 0.0, inf
    for item in rest:
        if item.deadline < inf and item.deadline < now + soonest(item):
            late.append(item)
            continue
        cost += item.cost
        if cost > max_cost:
            rest = chain((item,), rest)
            break
        fit.append(item)
        if item.deadline < earliest:
            earliest = item.deadline
        if len(fit) == limit:
            break
    if not fit:
        # A prediction that condemns everybody may be wrong, and only another batch can correct it.
        return Choice(late[:1], [])
    if now + MARGIN * predict(fit) <= earliest:
        return Choice(fit, late)
    # All of them: those that can bear a full batch may stand behind many that cannot.
    return _trade(fit, fit + list(rest), late, limit, max_cost, now, predict)


def _trade(
    fit: list[Item],
    candidates: list[Item],
    late: list[Item],
    limit: int,
    max_cost: float,
    now: float,
    predict: Callable[[list[Item]], float],
) -> Choice:
    """Either a smaller batch that its most urgent item can bear, or a fuller one without the most urgent."""
    small = _longest_in_time(fit, now, predict)
    small_seconds = predict(small)
    size = min(limit, len(candidates))
    while size > len(small) and small_seconds > 0:
        seconds = predict(candidates[:size])
        full = _able(candidates, now + MARGIN * seconds, size, max_cost)
        if len(full) == size:
            chosen = set(full)
            given_up = [item for item in candidates[: candidates.index(full[-1])] if item not in chosen]
            gain = (size / seconds - len(small) / small_seconds) * seconds
            return Choice(full, late + given_up) if gain > min(len(small), len(given_up)) else Choice(small, late)
        # So few can bear so large a batch: a smaller one takes less time, and more can bear it.
        size = max(len(full), size // 2)
    return Choice(small, late)


def _longest_in_time(items: list[Item], now: float, predict: Callable[[list[Item]], float]) -> list[Item]:
    size = len(items)
    while size > 1 and now + MARGIN * predict(items[:size]) > min(item.deadline for item in items[:size]):
        size -= 1
    return items[:size]


def _able(candidates: list[Item], ends: float, limit: int, max_cost: float) -> list[Item]:
    """The first in order that can bear a batch which ends then."""
    able: list[Item] = []
    cost = 0.0
    for item in candidates:
        if item.deadline < ends:
            continue
        cost += item.cost
        if cost > max_cost:
            break
        able.append(item)
        if len(able) == limit:
            break
    return able
