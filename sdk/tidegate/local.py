"""A handler called in this process, through the real batcher."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import Any, Self

from tidegate.app import App
from tidegate.handler import Handler
from tidegate.portal import Portal, map_in_order

__all__ = ["AsyncLocalClient", "LocalClient"]


class AsyncLocalClient:
    """The asynchronous view of `LocalClient`; what `async with LocalClient(handler) as client:` gives."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._only = next(iter(app.handlers)) if len(app.handlers) == 1 else None

    async def call(
        self, value: Any, *, handler: str | None = None, timeout: float | None = None, priority: int = 3
    ) -> Any:
        """One input to its output; raises `TidegateError`."""
        return await self._app.call(self.name(handler), value, priority=priority, timeout=timeout)

    async def stream(
        self, value: Any, *, handler: str | None = None, timeout: float | None = None, priority: int = 3
    ) -> AsyncGenerator[Any, None]:
        """One input to its chunks; breaking out and closing the iterator cancels the rest."""
        name = self.name(handler)
        item = self._app.handlers[name].codec.adopt(value)
        async with self._app.stream(name, item, priority=priority, timeout=timeout) as chunks:
            async for chunk in chunks:
                yield chunk

    async def map(
        self, values: Iterable[Any], *, handler: str | None = None, return_exceptions: bool = False
    ) -> AsyncGenerator[Any, None]:
        """The outputs of many inputs, in their order, a bounded number under way: no deadline, nothing refused.

        A stream's chunks come as a list.
        return_exceptions: give an item's error in its place instead of raising it.
        """
        name = self.name(handler)
        outputs = map_in_order(
            lambda value: self.patient_call(name, value),
            values,
            lambda: self._app.window(name),
            return_exceptions,
        )
        try:
            async for output in outputs:
                yield output
        finally:
            await outputs.aclose()

    async def patient_call(self, name: str, value: Any) -> Any:
        """`call` as `map` does it."""
        return await self._app.patient_call(name, self._app.handlers[name].codec.adopt(value))

    def name(self, handler: str | None) -> str:
        """The handler that is meant: the only one if none is named; LookupError that says what there is."""
        name = handler or self._only
        if name is None or name not in self._app.handlers:
            names = ", ".join(self._app.handlers)
            raise LookupError(f"handler={handler!r}: name one of {names}")
        return name


class LocalClient:
    """Call handlers in this process through the real batcher: for notebooks, tests and offline loops.

    `with` gives a synchronous view, `async with` the asynchronous one; both work where an event loop runs already.

    Example:
        >>> from tidegate import serve
        >>> @serve(max_batch_size=8)
        ... def double(x: list[int]) -> list[int]:
        ...     return [2 * n for n in x]
        >>> with LocalClient(double) as client:
        ...     client.call(21), list(client.map(range(5)))
        (42, [0, 2, 4, 6, 8])
    """

    def __init__(self, *handlers: Handler[..., Any] | type) -> None:
        self._app = App(*handlers)
        self._client = AsyncLocalClient(self._app)
        self._portal = Portal("LocalClient", "tidegate-local")

    # ------------------------------------------------------------------ asynchronous

    async def __aenter__(self) -> AsyncLocalClient:
        await self._app.__aenter__()
        return self._client

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._app.__aexit__(kind, error, traceback)

    # ------------------------------------------------------------------ synchronous

    def __enter__(self) -> Self:
        self._portal.open(self._app)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._portal.close()

    def call(self, value: Any, *, handler: str | None = None, timeout: float | None = None, priority: int = 3) -> Any:
        """One input to its output; raises `TidegateError`."""
        return self._portal.run(self._client.call(value, handler=handler, timeout=timeout, priority=priority))

    def stream(
        self, value: Any, *, handler: str | None = None, timeout: float | None = None, priority: int = 3
    ) -> Iterator[Any]:
        """One input to its chunks; breaking out cancels the rest."""
        name = self._open_name(handler)
        return self._portal.iterate(self._client.stream(value, handler=name, timeout=timeout, priority=priority))

    def map(
        self, values: Iterable[Any], *, handler: str | None = None, return_exceptions: bool = False
    ) -> Iterator[Any]:
        """The outputs of many inputs, in their order, a bounded number under way: no deadline, nothing refused.

        A stream's chunks come as a list.
        return_exceptions: give an item's error in its place instead of raising it.
        """
        name = self._open_name(handler)

        def ask(value: Any) -> Coroutine[Any, Any, Any]:
            return self._client.patient_call(name, value)

        return self._portal.map(ask, values, lambda: self._app.window(name), return_exceptions)

    def _open_name(self, handler: str | None) -> str:
        self._portal.check_open()
        return self._client.name(handler)
