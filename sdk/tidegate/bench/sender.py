"""What sends requests, and how it says that one has ended: the contract between a load and a way to the service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

__all__ = ["OK", "REFUSALS", "Ending", "Payload", "Sender", "Shot"]

REFUSALS = frozenset({429, 503, 504})
"""Statuses of a service that says "not now": it is loaded, not broken."""


@dataclass(frozen=True, slots=True)
class Payload:
    """One input as it travels, and its media type."""

    body: bytes
    content_type: str = "application/json"


class Ending(NamedTuple):
    """How a request ended: "ok", or an error's code with its HTTP status (0 where nobody answered) and its text."""

    code: str
    status: int = 0
    detail: str = ""

    @property
    def is_refusal(self) -> bool:
        """Whether the service would have taken it at another time."""
        return self.status in REFUSALS


OK = Ending("ok", 200)


class Shot(Protocol):
    """One request. `place` is the sender's to use until `end` is called, which it is once, from the event loop."""

    place: object

    def end(self, ending: Ending, /) -> None: ...


class Sender(Protocol):
    """Sends prepared payloads, by their number; entered and left as an async context manager.

    waited: how many requests found every connection busy and waited for one, here and not at the service.
    """

    waited: int

    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *error: object) -> None: ...

    def send(self, payload: int, shot: Shot) -> None:
        """Send it now, or as soon as there is a connection."""

    def abandon(self, shot: Shot) -> None:
        """Nobody waits for it any more; its `end` may still be called."""
