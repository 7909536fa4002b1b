"""A handler called in this process, through the real batcher."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Coroutine, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar
from weakref import WeakSet

from tidegate.app import App
from tidegate.handler import Handler

__all__ = ["AsyncLocalClient", "LocalClient"]

T = TypeVar("T")

_NOT_OPEN = "this client is not open: use it inside `with LocalClient(...) as client:`"


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
        async with self._app.stream(self.name(handler), value, priority=priority, timeout=timeout) as chunks:
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
        source = iter(values)
        running: deque[asyncio.Task[Any]] = deque()
        try:
            while True:
                for value in islice(source, self._app.window(name) - len(running)):
                    running.append(asyncio.create_task(self._app.patient_call(name, value)))
                if not running:
                    return
                try:
                    result = await running.popleft()
                except Exception as error:
                    if not return_exceptions:
                        raise
                    # It may be the error of many: each raise would make its traceback longer.
                    result = error.with_traceback(None)
                yield result
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

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
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._gate = threading.Lock()  # between a call and the end: none is taken in that nobody would run
        self._client = AsyncLocalClient(self._app)
        self._iterators: WeakSet[Generator[Any, None, None]] = WeakSet()
        self._serving: Future[None]
        self._leave: asyncio.Event

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
        if self._loop is not None:
            raise RuntimeError("this client is open already: use one LocalClient per `with`")
        # A loop of its own on a thread of its own: the caller may be inside a loop, as in a notebook.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tidegate-local", daemon=True)
        self._thread.start()
        opened: Future[None] = Future()
        self._serving = asyncio.run_coroutine_threadsafe(self._serve(opened), self._loop)
        try:
            opened.result()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._loop is not None
        # Nobody will read them any more, and to drain them would take for ever.
        for iterator in list(self._iterators):
            with suppress(ValueError):  # another thread is reading it
                iterator.close()
        self._loop.call_soon_threadsafe(self._leave.set)
        try:
            self._serving.result()
        finally:
            self._stop()

    async def _serve(self, opened: Future[None]) -> None:
        """The app's whole life in one task, as its task groups ask for."""
        self._leave = asyncio.Event()
        try:
            async with self._app:
                opened.set_result(None)
                await self._leave.wait()
        except BaseException as error:
            if opened.done():
                raise
            opened.set_exception(error)

    def call(self, value: Any, *, handler: str | None = None, timeout: float | None = None, priority: int = 3) -> Any:
        """One input to its output; raises `TidegateError`."""
        return self._wait(self._client.call(value, handler=handler, timeout=timeout, priority=priority))

    def stream(
        self, value: Any, *, handler: str | None = None, timeout: float | None = None, priority: int = 3
    ) -> Iterator[Any]:
        """One input to its chunks; breaking out cancels the rest."""
        name = self._open_name(handler)
        return self._kept(self._chunks(self._client.stream(value, handler=name, timeout=timeout, priority=priority)))

    def map(
        self, values: Iterable[Any], *, handler: str | None = None, return_exceptions: bool = False
    ) -> Iterator[Any]:
        """The outputs of many inputs, in their order, a bounded number under way: no deadline, nothing refused.

        A stream's chunks come as a list.
        return_exceptions: give an item's error in its place instead of raising it.
        """
        return self._kept(self._outputs(self._open_name(handler), iter(values), return_exceptions))

    def _open_name(self, handler: str | None) -> str:
        if self._loop is None:
            raise RuntimeError(_NOT_OPEN)
        return self._client.name(handler)

    def _kept(self, iterator: Generator[T, None, None]) -> Iterator[T]:
        self._iterators.add(iterator)
        return iterator

    def _chunks(self, source: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        try:
            while True:
                try:
                    yield self._wait(_next(source))
                except StopAsyncIteration:
                    return
        finally:
            if threading.current_thread() is self._thread:
                # The collector found this iterator in the loop's own thread, which cannot wait for itself.
                self._submit(_close(source))
            else:
                self._wait(_close(source))

    def _outputs(self, name: str, source: Iterator[Any], return_exceptions: bool) -> Generator[Any, None, None]:
        # Not by way of the asynchronous one: the inputs come from the caller's own thread, and may come from another
        # map() of this client.
        running: deque[Future[Any]] = deque()
        try:
            while True:
                for value in islice(source, self._app.window(name) - len(running)):
                    running.append(self._submit(self._app.patient_call(name, value)))
                if not running:
                    return
                try:
                    result = running[0].result()
                except Exception as error:
                    if not return_exceptions:
                        raise
                    # It may be the error of many: each raise would make its traceback longer.
                    result = error.with_traceback(None)
                running.popleft()
                yield result
        finally:
            for future in running:
                future.cancel()

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future = self._submit(coroutine)
        try:
            return future.result()
        except BaseException:
            # Ctrl-C while waiting: the request goes too.
            future.cancel()
            raise

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        with self._gate:
            if self._loop is None:
                coroutine.close()
                raise RuntimeError(_NOT_OPEN)
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _stop(self) -> None:
        with self._gate:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        assert loop is not None
        assert thread is not None
        # What came in until just now is told so; nothing can come any more.
        asyncio.run_coroutine_threadsafe(_cancel_the_rest(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _cancel_the_rest() -> None:
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


async def _next(source: AsyncGenerator[T, None]) -> T:
    return await anext(source)


async def _close(source: AsyncGenerator[Any, None]) -> None:
    await source.aclose()
