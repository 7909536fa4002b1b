"""What a batched stream yields in an item's place instead of a chunk."""

from __future__ import annotations

from enum import Enum
from typing import Final, Literal

__all__ = ["END", "SKIP", "Sentinel"]


class Sentinel(Enum):
    """The two kinds; an enum, so that they stay themselves across processes."""

    END = "end"
    SKIP = "skip"

    def __repr__(self) -> str:
        return f"tidegate.{self.name}"


END: Final[Literal[Sentinel.END]] = Sentinel.END
"""This item's stream is over."""

SKIP: Final[Literal[Sentinel.SKIP]] = Sentinel.SKIP
"""Nothing for this item this time."""
