"""Answers on their way out: in the order of their lines, or as they are complete."""

from __future__ import annotations

from collections import deque

from tidegate_transports.jsonl_entries import Chunks, Entry

__all__ = ["Reorder"]


class Reorder:
    """What is taken in and not written yet; whoever adds looks at `waiting`, so that it stays bounded.

    Example:
        >>> from tidegate_transports.jsonl_lines import Bare
        >>> first, second = (Entry(None, number, Bare(), 0) for number in (1, 2))
        >>> order = Reorder(ordered=True)
        >>> order.add(first), order.add(second), order.complete(second, b"2"), order.take()
        (None, None, None, b'')
        >>> order.complete(first, b"1"), order.take(), order.written
        (None, b'12', 2)
    """

    def __init__(self, *, ordered: bool) -> None:
        self._ordered = ordered
        self._order: deque[Entry | Chunks] = deque()
        self._complete: list[bytes] = []
        self._grown: dict[Chunks, None] = {}
        self.waiting = 0
        self.written = 0

    def add(self, entry: Entry | Chunks) -> None:
        """The next line of the input."""
        self.waiting += 1
        if self._ordered:
            self._order.append(entry)

    def grew(self, entry: Chunks) -> None:
        """A part of its answer is there."""
        if not self._ordered:
            self._grown[entry] = None

    def complete(self, entry: Entry | Chunks, output: bytes) -> None:
        """All of its answer is there, or the rest."""
        if self._ordered:
            entry.output = output
        else:
            self._grown.pop(entry, None)  # type: ignore[arg-type]  # what is no stream is not in it
            self._complete.append(output)

    def take(self) -> bytes:
        """What may be written now."""
        if not self._ordered:
            parts = [*(entry.taken() for entry in self._grown), *self._complete]
            done = len(self._complete)
            self._grown.clear()
            self._complete.clear()
        else:
            parts, done, order = [], 0, self._order
            while order and (output := order[0].output) is not None:
                parts.append(output)
                order.popleft()
                done += 1
            if order:
                parts.append(order[0].taken())
        self.waiting -= done
        self.written += done
        return b"".join(parts)
