"""Many items into one handler's batcher, without a task, a deadline or a refusal for each: for jobs."""

from __future__ import annotations

from typing import Any

from tidegate_batching import Batcher, TidegateError
from tidegate_batching.backend import Recipient
from tidegate_batching.errors import from_foreign

__all__ = ["Intake"]


class Intake:
    """Where a job puts its items; each outcome goes to the waiter that came with the item.

    window: items to keep under way so that the workers are busy. batch_size: the largest batch.
    """

    def __init__(self, batcher: Batcher[Any, Any], window: int) -> None:
        self._batcher = batcher
        self.window = window
        self.batch_size = batcher.policy.max_batch_size

    def put(
        self, value: Any, waiter: Recipient, info: Any, *, arrived_at: float, nbytes: int, timeout: float | None = None
    ) -> bool:
        """Queue one item; False, and the waiter hears nothing, when the queue is full.

        waiter: its `set_result(outcome)` is called once, in the event loop. info: has what `RequestInfo` has.
        arrived_at: when the door read it; `batch_timeout` counts from then. nbytes: what it took there.
        Raises what `cost` and `group_by` raise, as a TidegateError.
        """
        size = getattr(value, "nbytes", None)
        try:
            item = self._batcher.item(value, timeout=timeout, nbytes=size if isinstance(size, int) else nbytes)
        except TidegateError:
            raise
        except Exception as error:  # what cost() and group_by() raise is the handler's
            raise from_foreign(error) from error
        item.info = info
        return self._batcher.offer(item, waiter, arrived_at=arrived_at)

    def close(self) -> None:
        """Nobody else will come: what waits goes now, full or not."""
        self._batcher.close()

    @property
    def is_over(self) -> bool:
        """Whether there is no worker any more."""
        return self._batcher.is_over
