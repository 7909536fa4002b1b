"""The limits under which batches form: one frozen value, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["Policy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a batch may be, how long it may wait for company, and what happens when it fails.

    max_batch_size: most items in one batch, 1 or more.
    batch_timeout: seconds from the oldest waiting item's arrival until its batch goes even if it is not full;
        0 never waits; "auto" learns when a short wait pays and never exceeds 10 ms.
    max_batch_cost: most that the items' costs in one batch may add up to; None for no such limit.
    max_queue_size, max_queue_bytes: most items, and bytes of items, waiting; beyond either `Overloaded`.
    isolate_errors: a failed batch is re-run in parts to find the culprit; False never runs anything twice.

    Raises ValueError or TypeError, naming the field, the value and the fix.

    Example:
        >>> Policy(max_batch_size=0)
        Traceback (most recent call last):
            ...
        ValueError: max_batch_size=0: must be 1 or more; 1 runs items one by one
    """

    max_batch_size: int = 1
    batch_timeout: float | Literal["auto"] = "auto"
    max_batch_cost: float | None = None
    max_queue_size: int = 1024
    max_queue_bytes: int = 1 << 30
    isolate_errors: bool = True

    def __post_init__(self) -> None:
        _whole("max_batch_size", self.max_batch_size, "1 runs items one by one")
        _whole("max_queue_size", self.max_queue_size, "the queue must hold at least one item")
        _whole("max_queue_bytes", self.max_queue_bytes, "give bytes, such as 2**30")
        if self.batch_timeout != "auto":
            _number("batch_timeout", self.batch_timeout, 'give seconds; 0 never waits, "auto" learns when waiting pays')
        if self.max_batch_cost is not None:
            _number("max_batch_cost", self.max_batch_cost, "give a limit above 0, or None for none")
            if self.max_batch_cost == 0:
                raise ValueError("max_batch_cost=0: give a limit above 0, or None for none")
        if not isinstance(self.isolate_errors, bool):
            raise TypeError(f"isolate_errors={self.isolate_errors!r}: give True or False")


def _whole(name: str, value: object, fix: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r}: give a whole number; {fix}")
    if value < 1:
        raise ValueError(f"{name}={value!r}: must be 1 or more; {fix}")


def _number(name: str, value: object, fix: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}={value!r}: must be a number; {fix}")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}={value!r}: must be finite and not negative; {fix}")
