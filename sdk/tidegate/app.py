"""An app: handlers being served, and the doors that lead to them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from tidegate.handler import RESERVED, Handler
from tidegate.service import Answer, Service
from tidegate.transport import Transport, load_transport
from tidegate_batching import Statistics

__all__ = ["App", "run"]


class App:
    """Handlers served together: `async with App(square, http="127.0.0.1:8000"):`.

    handlers: what `serve` returned, with distinct names. Doors are keyword arguments, `name="address"`, for every
    installed transport; without one the app answers `call` only.

    Raises TypeError or ValueError when the combination makes no sense, `SetupFailed` on entering when a handler
    cannot start, OSError when an address cannot be taken.

    Example:
        >>> import asyncio
        >>> from tidegate import serve
        >>> @serve(max_batch_size=8)
        ... def double(x: list[int]) -> list[int]:
        ...     return [2 * n for n in x]
        >>> async def main() -> int:
        ...     async with App(double) as app:
        ...         return await app.call("double", 21)
        >>> asyncio.run(main())
        42
    """

    def __init__(self, *handlers: Handler[..., Any], **doors: str) -> None:
        self.handlers = _by_name(handlers)
        # Loading finds a missing transport now and not after a minute of setup.
        self.transports: list[Transport] = [load_transport(name)(address) for name, address in doors.items()]
        self._services: dict[str, Service] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for name, handler in self.handlers.items():
                self._services[name] = await stack.enter_async_context(Service(handler))
            for transport in self.transports:
                await stack.enter_async_context(transport.serve(self))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._stack.__aexit__(kind, error, traceback)

    async def call(self, name: str, value: Any, *, priority: int = 3) -> Any:
        """One item through the handler's batcher; raises `TidegateError`, KeyError for an unknown name."""
        return (await self.answer(name, value, priority=priority)).value

    async def answer(self, name: str, value: Any, *, priority: int = 3) -> Answer:
        """`call` with the times and the batch size beside the value, for doors that show them."""
        return await self._services[name].answer(value, priority=priority)

    def statistics(self) -> dict[str, Statistics]:
        """A snapshot per handler."""
        return {name: service.statistics() for name, service in self._services.items()}


def run(*handlers: Handler[..., Any], **doors: str) -> None:
    """Serve until interrupted, at http://127.0.0.1:8000 unless doors are given; `App` is the same inside a loop.

    Example, in a script:
        run(square, http="0.0.0.0:8000")
    """

    async def forever() -> None:
        async with App(*handlers, **(doors or {"http": "127.0.0.1:8000"})):
            await asyncio.Event().wait()

    try:
        asyncio.run(forever())
    except KeyboardInterrupt:
        return


def _by_name(handlers: Sequence[Any]) -> dict[str, Handler[..., Any]]:
    if not handlers:
        raise ValueError("an App needs at least one handler: App(square)")
    found: dict[str, Handler[..., Any]] = {}
    for handler in handlers:
        if not isinstance(handler, Handler):
            raise TypeError(f"{handler!r} is no handler: decorate it with @serve")
        if handler.name in RESERVED:
            raise ValueError(f"a handler cannot be called {handler.name!r}, which the doors answer: give name=")
        if handler.name in found:
            raise ValueError(f"two handlers are called {handler.name!r}: give one of them another name=")
        found[handler.name] = handler
    return found
