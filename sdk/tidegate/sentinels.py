"""What a batched stream yields in an item's place instead of a chunk."""

from __future__ import annotations

from enum import Enum
from typing import Final, Literal

__all__ = ["END", "SKIP", "Sentinel"]


class Sentinel(Enum):
    """What stands in an item's place: `END` ends its stream, `SKIP` sends it nothing this time.

    An enum, so that they stay themselves across processes.

    Example:
        >>> from collections.abc import Iterator
        >>> from tidegate import END, SKIP, LocalClient, serve
        >>> @serve(max_batch_size=8)
        ... def countdown(starts: list[int]) -> Iterator[list[object]]:
        ...     for step in range(10):
        ...         left = [start - step for start in starts]
        ...         yield [END if n < 0 else SKIP if n == 1 else n for n in left]
        >>> with LocalClient(countdown) as client:
        ...     list(client.stream(3))
        [3, 2, 0]
    """

    END = "end"
    SKIP = "skip"

    def __repr__(self) -> str:
        return f"tidegate.{self.name}"


END: Final[Literal[Sentinel.END]] = Sentinel.END
"""This item's stream is over."""

SKIP: Final[Literal[Sentinel.SKIP]] = Sentinel.SKIP
"""Nothing for this item this time."""
