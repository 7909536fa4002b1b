"""Asynchronous code for callers that are not: the machinery of every client's synchronous view."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, suppress
from itertools import islice
from typing import Any, TypeVar
from weakref import WeakSet

__all__ = ["Portal", "map_in_order"]

T = TypeVar("T")


class Portal:
    """An event loop on a thread of its own, in which one context is entered from `open` to `close`.

    The caller may be inside a loop itself, as in a notebook; many threads may share a portal.

    kind: the class that users see, for the errors that tell how it is used. thread: the thread's name.
    """

    def __init__(self, kind: str, thread: str) -> None:
        self._kind = kind
        self._name = thread
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._gate = threading.Lock()  # between a call and the end: none is taken in that nobody would run
        self._iterators: WeakSet[Generator[Any, None, None]] = WeakSet()
        self._serving: Future[None]
        self._leave: asyncio.Event

    # ------------------------------------------------------------------ its life

    def open(self, context: AbstractAsyncContextManager[Any]) -> None:
        """Start the thread and enter the context there; what that raises is raised, and nothing is left."""
        if self._loop is not None:
            raise RuntimeError(f"this client is open already: use one {self._kind} per `with`")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=self._name, daemon=True)
        self._thread.start()
        opened: Future[None] = Future()
        self._serving = asyncio.run_coroutine_threadsafe(self._serve(context, opened), self._loop)
        try:
            opened.result()
        except BaseException:
            self._stop()
            raise

    def close(self) -> None:
        """Close the iterators that are left, leave the context and end the thread."""
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

    def check_open(self) -> None:
        """Raise RuntimeError where there is no loop to run anything."""
        if self._loop is None:
            raise self._not_open()

    def _not_open(self) -> RuntimeError:
        return RuntimeError(f"this client is not open: use it inside `with {self._kind}(...) as client:`")

    async def _serve(self, context: AbstractAsyncContextManager[Any], opened: Future[None]) -> None:
        """The context's whole life in one task, as task groups ask for."""
        self._leave = asyncio.Event()
        try:
            async with context:
                opened.set_result(None)
                await self._leave.wait()
        except BaseException as error:
            if opened.done():
                raise
            opened.set_exception(error)

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

    # ------------------------------------------------------------------ calls

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it in the portal's loop and wait for it here."""
        future = self.submit(coroutine)
        try:
            return self._result(future)
        except BaseException:
            # Ctrl-C while waiting: the request goes too.
            future.cancel()
            raise

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Start it in the portal's loop."""
        with self._gate:
            if self._loop is None:
                coroutine.close()
                raise self._not_open()
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _result(self, future: Future[T]) -> T:
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            # Nothing but the client's end cancels what somebody waits for.
            raise self._not_open() from None

    # ------------------------------------------------------------------ iterators

    def iterate(self, source: AsyncGenerator[T, None]) -> Iterator[T]:
        """What an asynchronous generator yields; it is closed when this iterator is."""
        return self._kept(self._iterate(source))

    def map(
        self,
        ask: Callable[[Any], Coroutine[Any, Any, T]],
        values: Iterable[Any],
        window: Callable[[], int],
        return_exceptions: bool,
    ) -> Iterator[T | Exception]:
        """`map_in_order` for a caller of its own thread, in which the values are taken from their source too."""
        return self._kept(self._map(ask, iter(values), window, return_exceptions))

    def _kept(self, iterator: Generator[T, None, None]) -> Iterator[T]:
        self._iterators.add(iterator)
        return iterator

    def _iterate(self, source: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        try:
            while True:
                try:
                    yield self.run(_next(source))
                except StopAsyncIteration:
                    return
        finally:
            if threading.current_thread() is self._thread:
                # The collector found this iterator in the loop's own thread, which cannot wait for itself.
                self.submit(_close(source))
            else:
                self.run(_close(source))

    def _map(
        self,
        ask: Callable[[Any], Coroutine[Any, Any, T]],
        source: Iterator[Any],
        window: Callable[[], int],
        return_exceptions: bool,
    ) -> Generator[T | Exception, None, None]:
        # Not by way of the asynchronous one: the values come from the caller's own thread, and may come from another
        # map() of this client.
        running: deque[Future[T]] = deque()
        try:
            while True:
                for value in islice(source, window() - len(running)):
                    running.append(self.submit(ask(value)))
                if not running:
                    return
                result: T | Exception
                try:
                    result = self._result(running[0])
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


async def map_in_order(
    ask: Callable[[Any], Coroutine[Any, Any, T]],
    values: Iterable[Any],
    window: Callable[[], int],
    return_exceptions: bool,
) -> AsyncGenerator[T | Exception, None]:
    """What `ask` gives for each value, in the values' order, `window()` of them under way; leaving cancels the rest."""
    source = iter(values)
    running: deque[asyncio.Task[T]] = deque()
    try:
        while True:
            for value in islice(source, window() - len(running)):
                running.append(asyncio.create_task(ask(value)))
            if not running:
                return
            result: T | Exception
            try:
                result = await running.popleft()
            except Exception as error:
                if not return_exceptions:
                    raise
                result = error.with_traceback(None)
            yield result
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


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
