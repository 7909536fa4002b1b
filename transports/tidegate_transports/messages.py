"""What crosses between the exchange and the shells: a request, and the response to it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Parts", "Request", "Response"]


class Request(NamedTuple):
    """One request; without its body it is what `Exchange.admit` looks at.

    path: decoded, without the query. headers: with names in lower case, or of any case in a mapping that ignores it;
    one that came several times is joined by commas, or `getall` gives its values as multidict has it. body: as it came,
    whatever Content-Encoding says. client: its address, for the log. root: the path under which the app is mounted.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""
    query: str = ""
    client: str = ""
    root: str = ""


class Parts:
    """A body's bytes as they come. Closing frees what makes them, whether or not they were read."""

    def __init__(self, parts: AsyncGenerator[bytes], close: Callable[[], Awaitable[None]] | None = None) -> None:
        self._parts = parts
        self._close = close

    def __aiter__(self) -> AsyncGenerator[bytes]:
        return self._parts

    async def aclose(self) -> None:
        """Read no further."""
        await self._parts.aclose()
        # A generator that was never begun has not seen its own `finally`.
        if self._close is not None:
            await self._close()


@dataclass(slots=True)
class Response:
    """What to send back: `body`, or where there are any the parts as they come; close `parts` when nobody reads on.

    content_type: the whole header, parameters included; "" for none, as an answer without a body has none. The body is
    there for HEAD too: whoever sends it leaves it out and keeps its length.
    """

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    parts: Parts | None = None
