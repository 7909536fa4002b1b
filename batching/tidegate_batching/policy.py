"""The limits under which batches form: one frozen value, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["Policy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a batch may be and how long it may wait for company.

    max_batch_size: most items in one batch, 1 or more.
    batch_timeout: seconds from the oldest waiting item's arrival until its batch goes even if it is not full;
        0 never waits; "auto" decides by itself and never exceeds 10 ms.
    max_queue_size: most items waiting; one more is refused with `Overloaded`.

    Raises ValueError or TypeError, naming the field, the value and the fix.
    """

    max_batch_size: int = 1
    batch_timeout: float | Literal["auto"] = "auto"
    max_queue_size: int = 1024

    def __post_init__(self) -> None:
        _whole("max_batch_size", self.max_batch_size, "1 runs items one by one")
        _whole("max_queue_size", self.max_queue_size, "the queue must hold at least one item")
        if self.batch_timeout != "auto":
            _seconds("batch_timeout", self.batch_timeout, '0 never waits, "auto" learns when waiting pays')


def _whole(name: str, value: object, fix: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r}: give a whole number; {fix}")
    if value < 1:
        raise ValueError(f"{name}={value!r}: must be 1 or more; {fix}")


def _seconds(name: str, value: object, fix: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}={value!r}: give a number of seconds; {fix}")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}={value!r}: give finite seconds, 0 or more; {fix}")
