"""What the browser is shown."""

from __future__ import annotations

from collections.abc import Iterator

from tidegate import END, serve


@serve(max_batch_size=8)
def shout(texts: list[str]) -> list[str]:
    """Each text in capitals."""
    return [text.upper() for text in texts]


@serve(max_batch_size=8)
def countdown(starts: list[int]) -> Iterator[list[object]]:
    """Counts down to one."""
    for step in range(max(starts) + 1):
        yield [start - step if step < start else END for start in starts]
