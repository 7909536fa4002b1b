"""Whether a WebSocket's client is still there: when to ask it, and when to give it up. The clock is an argument."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

__all__ = ["Beat", "GiveUp", "Ping", "Pulse"]

SLOWEST = 1 << 16
"""Bytes per second that a client must read at least of a message, beside write_timeout."""


class Ping(NamedTuple):
    """Ask whether the client is there."""


class GiveUp(NamedTuple):
    """End the connection: with a close message where the client can still be told, else at once."""

    kind: Literal["idle", "silent", "not reading"]


Beat: TypeAlias = Ping | GiveUp | None


class Pulse:
    """One connection's times, in seconds. `ping_interval` None leaves the asking to somebody else.

    A client is not asked while nothing is read from it or while something waits to be sent to it: its answer could not
    be heard, or its question not be told. What waits to be sent has a limit of its own.
    """

    def __init__(
        self,
        now: float,
        *,
        ping_interval: float | None = 20.0,
        ping_timeout: float = 20.0,
        idle_timeout: float = 3600.0,
        write_timeout: float = 60.0,
    ) -> None:
        self._ping_interval = ping_interval
        self._ping_timeout = ping_timeout
        self._idle_timeout = idle_timeout
        self._write_timeout = write_timeout
        self._heard_at = now
        self._active_at = now
        self._pinged_at: float | None = None
        self._sending_since: float | None = None
        self._sent_by = now
        self._deaf = False

    @property
    def period(self) -> float:
        """Seconds between two calls of `tick`."""
        times = [self._idle_timeout, self._write_timeout]
        if self._ping_interval is not None:
            times += [self._ping_interval, self._ping_timeout]
        return min(times) / 2

    def heard(self, now: float) -> None:
        """Something of the client has come, if only a part of a message."""
        self._heard_at = now
        self._pinged_at = None

    def received(self, now: float) -> None:
        """The client makes use of the connection."""
        self.heard(now)
        self._active_at = now

    def sending(self, now: float, nbytes: int) -> None:
        """A message of so many bytes is being sent."""
        self._sending_since = now
        self._sent_by = now + self._write_timeout + nbytes / SLOWEST

    def sent(self, now: float) -> None:
        """It is out of our hands."""
        if self._pinged_at is not None and self._sending_since is not None:
            # The question stood behind it.
            self._pinged_at += now - self._sending_since
        self._sending_since = None

    def deaf(self, deaf: bool, now: float) -> None:
        """Whether nothing is read for the time being."""
        if self._deaf and not deaf:
            self.heard(now)
        self._deaf = deaf

    def tick(self, now: float, *, idle: bool) -> Beat:
        """What is to be done; idle: no request is under way."""
        if self._sending_since is not None:
            return GiveUp("not reading") if now >= self._sent_by else None
        if self._deaf:
            return None
        if idle and now - self._active_at >= self._idle_timeout:
            return GiveUp("idle")
        if self._pinged_at is not None:
            return GiveUp("silent") if now - self._pinged_at >= self._ping_timeout else None
        if self._ping_interval is None or now - self._heard_at < self._ping_interval:
            return None
        self._pinged_at = now
        return Ping()
