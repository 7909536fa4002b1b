"""The contract between a client and what carries its requests: HTTP or a WebSocket."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self

from tidegate_batching import TidegateError

__all__ = ["Carrier", "Chunks", "Disconnected", "Reply", "Request"]


class Disconnected(TidegateError, ConnectionError):
    """No whole answer came over the connection: it could not be made, broke, or carried something else.

    sent: False where the service cannot have seen the request. begun: whether a part of the answer had come.

    Example:
        >>> error = Disconnected("nobody listens at http://127.0.0.1:8000", sent=False)
        >>> isinstance(error, ConnectionError), error.status, error.detail
        (True, 502, 'nobody listens at http://127.0.0.1:8000')
    """

    code = "disconnected"
    status = 502

    def __init__(self, detail: str = "", *, sent: bool = True, begun: bool = False) -> None:
        super().__init__(detail)
        self.sent = sent
        self.begun = begun


@dataclass(frozen=True, slots=True)
class Request:
    """One input on its way: handler None for the address's own, timeout in seconds, priority 0 (first) to 7."""

    value: Any
    handler: str | None = None
    timeout: float | None = None
    priority: int = 3


class Chunks(Protocol):
    """What a stream goes on with; raises what the service told. `aclose` cancels the rest and never fails."""

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> Any: ...

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Reply:
    """How an answer begins: its whole `output`, or where the handler streams the `chunks`, which must be closed."""

    output: Any = None
    chunks: Chunks | None = None


class Carrier(Protocol):
    """Moves requests and answers; open while it is entered. Retries, deadlines and views are not its business."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...

    async def ask(self, request: Request) -> Reply:
        """Send it and wait until the answer begins. Raises `TidegateError`; cancelled, it cancels at the service."""
        ...
