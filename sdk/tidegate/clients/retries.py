"""When a request is sent again. No clock and no sleep in it: `now` is an argument, the caller waits."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tidegate.clients.carrier import Disconnected
from tidegate_batching import Refused, TidegateError

__all__ = ["BACKOFF", "LONGEST_BACKOFF", "Retries", "is_refusal"]

BACKOFF = 0.1
"""Seconds of which the first pause is a random part; each further one may be twice as long."""

LONGEST_BACKOFF = 10.0

_REFUSALS = (429, 503)


@dataclass
class Retries:
    """How often and when one request is sent again; one of these per request.

    limit: how many times at most. patient: refusals do not count, since they say "later" and not "no".
    draw: a random number between two.

    Example:
        >>> retries = Retries(limit=1, draw=lambda low, high: high)
        >>> retries.pause(Refused(retry_after=2), now=0, ends_at=30)
        2.1
        >>> retries.pause(Refused(retry_after=2), now=2.1, ends_at=30) is None
        True
    """

    limit: int
    patient: bool = False
    draw: Callable[[float, float], float] = random.uniform
    counted: int = 0
    failures: int = 0

    def pause(self, error: TidegateError, *, now: float, ends_at: float) -> float | None:
        """Seconds to wait before the request goes again; None where this error is the last word.

        It is also None when there would be no time left: better the service's own word at once than a timeout later.
        """
        refused = is_refusal(error)
        if not refused and not (isinstance(error, Disconnected) and not error.begun):
            return None
        if not (refused and self.patient):
            if self.counted >= self.limit:
                return None
            self.counted += 1
        # All of the backoff is random, or those who were refused together would come back together.
        backoff = self.draw(0, min(LONGEST_BACKOFF, BACKOFF * 2 ** min(self.failures, 10)))
        self.failures += 1
        pause = backoff + (error.retry_after if isinstance(error, Refused) else 0)
        return pause if now + pause < ends_at else None


def is_refusal(error: TidegateError) -> bool:
    """Whether the service said "not now": its own words, a proxy's, or a handler's `HTTPError(503)`."""
    return error.status in _REFUSALS
