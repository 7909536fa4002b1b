"""One batch through a handler's hooks, inside a worker: items, batch, function, outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tidegate.collate import split, stack
from tidegate.handler import Handler

__all__ = ["Execution"]


class Execution:
    """A handler set up on one device. Everything here runs on the worker's own thread."""

    def __init__(self, handler: Handler[..., Any], device: str) -> None:
        self._handler = handler
        self._options = handler.options
        # The state comes first, then the data.
        self._state: tuple[Any, ...] = (self._options.setup(device),) if self._options.setup else ()

    def run(self, values: Sequence[Any]) -> list[Any]:
        """One output per value, in order; raises what the hooks or the function raise."""
        function: Any = self._handler.function
        if not self._handler.batched:
            (value,) = values
            return [function(*self._state, value)]
        into, out_of = self._options.dims
        batch = self._options.batch(list(values)) if self._options.batch else stack(values, into)
        output = function(*self._state, batch)
        outputs = self._options.unbatch(output) if self._options.unbatch else split(output, out_of)
        return list(outputs)
