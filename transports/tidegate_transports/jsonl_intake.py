"""Many items into one handler's batcher, without a task, a deadline or a refusal for each."""

from __future__ import annotations

from typing import Any

from tidegate import App
from tidegate_batching import Overloaded, TidegateError
from tidegate_batching.errors import from_foreign

__all__ = ["Intake"]


class Intake:
    """Where a job puts its items; each answer goes to the waiter that came with the item.

    window: items to keep under way so that the workers are busy. batch_size: the largest batch.
    """

    def __init__(self, app: App, name: str) -> None:
        service = app._services[name]
        self._batcher = service._batcher
        self._scheduler = self._batcher._scheduler
        self.window = app.window(name)
        self.batch_size = self._batcher.policy.max_batch_size

    def put(self, value: Any, waiter: Any, *, arrived_at: float, nbytes: int, timeout: float | None = None) -> bool:
        """Queue one item; False, and the waiter hears nothing, when the queue is full.

        waiter: has `done() -> bool` and `set_result(outcome)`, which is called once, in the event loop, and what
        `RequestInfo` has. arrived_at: when the door read it; `batch_timeout` counts from then.
        Raises what `cost` and `group_by` raise, as a TidegateError.
        """
        batcher, scheduler = self._batcher, self._scheduler
        size = getattr(value, "nbytes", None)
        try:
            item = batcher.item(value, timeout=timeout, nbytes=size if isinstance(size, int) else nbytes)
        except TidegateError:
            raise
        except Exception as error:  # what cost() and group_by() raise is the handler's
            raise from_foreign(error) from error
        item.waiter = item.info = waiter
        actions: Any = scheduler.submit(item, batcher._backend.now())
        # Without a number it has not been let in, and why is all that is said.
        if actions and not item.sequence and any(isinstance(one.outcome.error, Overloaded) for one in actions):
            return False
        batcher._recorder.submitted += 1
        item.arrived_at = arrived_at
        if actions:
            batcher._apply(actions)
        elif scheduler.due or item.deadline < batcher._alarm.when:
            batcher._alarm.set(scheduler.wake_at())
        return True

    def close(self) -> None:
        """Nobody else will come: what waits goes now, full or not."""
        self._batcher._apply(self._scheduler.close(self._batcher._backend.now()))

    @property
    def is_over(self) -> bool:
        """Whether there is no worker any more."""
        return not self._scheduler._alive
