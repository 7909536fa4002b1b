"""An app: handlers being served, and the doors that lead to them."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Any, Literal, Self

from tidegate.context import RequestInfo
from tidegate.devices import DeviceManager
from tidegate.handler import Handler, handler_of
from tidegate.intake import Intake
from tidegate.options import RESERVED
from tidegate.service import DRAIN_TIMEOUT, Answer, Service, SetupFailed
from tidegate.status import DoorCounts, HandlerStatus, Overview
from tidegate.target import is_loading
from tidegate.transport import Transport, load_transport
from tidegate.workers.spawn import kill_all, spawned
from tidegate_batching import Item, Statistics, Stream
from tidegate_batching.backend import Recipient

__all__ = ["App", "run", "serve_until_stopped"]

DRAIN_DELAY = 5.0
"""Seconds after SIGTERM for which requests are still taken."""


class App:
    """Handlers served together: `async with App(square, http="127.0.0.1:8000"):`.

    handlers: what `serve` returned, with distinct names. Doors are keyword arguments, `name="address"`, for every
    installed transport, or `name=transport` for one made with options; without one the app answers `call` only.
    worker: "process" or "thread" for handlers that do not say; processes where there are doors, else threads.
    devices: what there is to run on, if not what is found. drain_timeout: seconds that everything may take to end
    together when the app is left. `failure` is set when a handler's last worker is lost for good.

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

    drain_ends_at: float = math.inf
    """On the loop's clock: when everything must have ended; infinity until the app is left."""

    def __init__(
        self,
        *handlers: Handler[..., Any] | type,
        worker: Literal["process", "thread"] | None = None,
        devices: DeviceManager | None = None,
        drain_timeout: float = DRAIN_TIMEOUT,
        **doors: str | Transport,
    ) -> None:
        self.handlers = _by_name([handler_of(handler) for handler in handlers])
        for handler in self.handlers.values():
            handler.freeze()
        if worker not in (None, "process", "thread"):
            raise ValueError(f"worker={worker!r}: give 'process' or 'thread'")
        if not drain_timeout >= 0:
            raise ValueError(f"drain_timeout={drain_timeout!r}: give seconds, 0 or more")
        self.drain_timeout = drain_timeout
        self._draining = False
        self._opened = False
        self.watchers: list[Callable[[], None]] = []  # called whenever `draining` or `ready` has been set
        self.failure: asyncio.Future[SetupFailed]
        self.counters: list[Callable[[], Awaitable[DoorCounts]]] = []  # doors add theirs
        # Loading finds a missing transport now and not after a minute of setup.
        self.transports: list[Transport] = [
            load_transport(name)(door) if isinstance(door, str) else door for name, door in doors.items()
        ]
        self._worker = worker
        self._served = bool(doors)
        self._devices = devices or DeviceManager.discover()
        self._services: dict[str, Service] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        if spawned():
            raise RuntimeError('a worker imports this script: enter an App below `if __name__ == "__main__":`')
        self._opened, self.draining, self.drain_ends_at = False, False, math.inf
        self.failure = asyncio.get_running_loop().create_future()
        for transport in self.transports:
            getattr(transport, "check", lambda: None)()
        kind = self._worker or ("process" if self._served else "thread")
        # Where a library has to be asked in a process of its own, this takes seconds.
        plan = await asyncio.to_thread(self._devices.plan, self.handlers.values(), kind)
        services = {name: Service(handler, plan[name], self._broken) for name, handler in self.handlers.items()}
        try:
            await _all(service.start() for service in services.values())
        except BaseException:
            await _all(service.stop(0.0) for service in services.values())
            raise
        self._services = services
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._stop_workers)
            for service in services.values():
                await stack.enter_async_context(service)
            stack.push_async_exit(self._drain)
            try:
                for transport in self.transports:
                    await stack.enter_async_context(transport.serve(self))
            except BaseException:
                self._begin_to_end()  # a door that is open already may have let somebody in
                raise
            self._stack = stack.pop_all()
        # Not before every door is open: one of several must not send for callers while a signal would still end all.
        self._opened = True
        self._changed()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._begin_to_end()
        return await self._stack.__aexit__(kind, error, traceback)

    def _begin_to_end(self) -> None:
        self.draining = True
        self.drain_ends_at = asyncio.get_running_loop().time() + self.drain_timeout

    async def _drain(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, Exception):
            await _all(service.drain(self.drain_ends_at) for service in self._services.values())

    async def _stop_workers(self) -> None:
        await _all(service.stop(self.drain_ends_at) for service in self._services.values())

    def _broken(self, failure: SetupFailed) -> None:
        if not self.failure.done():
            self.failure.set_result(failure)

    # ------------------------------------------------------------------ how it is

    @property
    def draining(self) -> bool:
        """Whether somebody has asked the app to stop; doors tell their callers to look elsewhere."""
        return self._draining

    @draining.setter
    def draining(self, value: bool) -> None:
        self._draining = value
        self._changed()

    def _changed(self) -> None:
        for watcher in self.watchers:
            watcher()

    @property
    def ready(self) -> bool:
        """Whether the doors are open, every handler has a live, warmed worker and nobody has asked the app to stop."""
        return self._opened and not self.draining and all(s.status().ready for s in self._services.values())

    @property
    def alive(self) -> bool:
        """False when nothing but a new process can help."""
        return all(service.status().alive for service in self._services.values())

    def status(self) -> dict[str, HandlerStatus]:
        """Per handler, its workers."""
        return {name: service.status() for name, service in self._services.items()}

    async def overview(self) -> Overview:
        """Everything about how it is, the counts of its doors included, wherever they are."""
        doors = DoorCounts()
        for counted in self.counters:
            doors += await counted()
        devices = {str(device): usage for device, usage in self._devices.usage().items()}
        return Overview(
            self.ready, self.alive, self.draining, self.status(), self.statistics(), devices, doors, os.getpid()
        )

    # ------------------------------------------------------------------ requests

    async def call(self, name: str, value: Any, *, priority: int = 3, timeout: float | None = None) -> Any:
        """One input through the handler's batcher to its output.

        value: an item, or what a body would hold in its place: lists for an array, a dict for an object with fields.
        priority: 0 (first) to 7. timeout: seconds, at most the handler's own.
        Raises `TidegateError`, KeyError for an unknown name, TypeError for a handler that streams.
        """
        item = self.handlers[name].codec.adopt(value)
        return (await self.answer(name, item, priority=priority, timeout=timeout)).value

    async def answer(
        self,
        name: str,
        value: Any,
        *,
        priority: int = 3,
        timeout: float | None = None,
        info: RequestInfo | None = None,
    ) -> Answer:
        """`call` with the times and the batch size beside the value, for doors that show them."""
        return await self._services[name].answer(value, priority=priority, timeout=timeout, info=info)

    def stream(
        self,
        name: str,
        value: Any,
        *,
        priority: int = 3,
        timeout: float | None = None,
        info: RequestInfo | None = None,
    ) -> Stream[Any]:
        """One input to its chunks as they come; `timeout` counts until the first. Close it when you stop reading."""
        return self._services[name].stream(value, priority=priority, timeout=timeout, info=info)

    def post(
        self,
        name: str,
        value: Any,
        waiter: Recipient,
        *,
        priority: int = 3,
        timeout: float | None = None,
        info: RequestInfo | None = None,
        patient: bool = False,
    ) -> Item:
        """`answer` without a coroutine: the outcome goes to `waiter.set_result`, once, in the loop; see `withdraw`.

        patient: without the handler's own deadline.
        """
        return self._services[name].post(value, waiter, priority=priority, timeout=timeout, info=info, patient=patient)

    def withdraw(self, name: str, item: Item) -> None:
        """Nobody waits for a posted item any more."""
        self._services[name].withdraw(item)

    def asgi(self, **options: Any) -> Any:
        """The app as an ASGI 3 application, to mount or to hand to a server; `options` are the HTTP door's.

        A server's lifespan starts and ends the app; where there is none, as for mounted apps, the first request starts it.
        """
        self._served = True
        mounted: Callable[..., Any] = load_transport("asgi")
        return mounted(self, **options)

    @property
    def lifespan(self) -> Callable[[object], AbstractAsyncContextManager[None]]:
        """Starts and ends the app together with the one that it is mounted in: `FastAPI(lifespan=app.lifespan)`."""

        self._served = True

        @asynccontextmanager
        async def lifespan(_: object) -> AsyncIterator[None]:
            async with self:
                yield

        return lifespan

    async def patient_call(self, name: str, value: Any, *, priority: int = 3, info: RequestInfo | None = None) -> Any:
        """`call` without a deadline, that waits where `call` would be refused: for jobs, not for people."""
        return await self._services[name].patient_call(value, priority=priority, info=info)

    def intake(self, name: str) -> Intake:
        """Where a job puts its items, of which it has millions."""
        return self._services[name].intake()

    def window(self, name: str) -> int:
        """How many inputs a job should keep under way to keep this handler's workers busy."""
        return self._services[name].window

    def statistics(self) -> dict[str, Statistics]:
        """A snapshot per handler."""
        return {name: service.statistics() for name, service in self._services.items()}


async def serve_until_stopped(
    app: App, opened: Callable[[], None] = lambda: None, *, drain_delay: float = DRAIN_DELAY
) -> None:
    """Open an app's doors until SIGINT or SIGTERM, then drain; `opened` is called when they are open.

    drain_delay: seconds after SIGTERM for which requests are still taken while `/readyz` says 503, so that whoever
    sends them looks elsewhere first. A second signal ends the workers and this process at once.
    Raises SetupFailed when a handler's last worker is lost for good.
    """
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[float] = loop.create_future()

    def stop(number: int) -> None:
        if stopped.done():
            # Whoever sends a second one does not want to wait.
            kill_all()
            os._exit(128 + number)
        app.draining = True
        stopped.set_result(drain_delay if number == signal.SIGTERM else 0.0)

    async with app:
        # Until here a signal ends the process: nothing is in flight, and a setup may take minutes.
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        # What is there now stays: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        opened()
        ends: list[asyncio.Future[Any]] = [stopped, app.failure]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if stopped.done():
            await asyncio.sleep(stopped.result())
    if app.failure.done():
        raise app.failure.result()


def run(
    *handlers: Handler[..., Any] | type, http_processes: int | Literal["auto"] = 1, **doors: str | Transport
) -> None:
    """Serve until SIGINT or SIGTERM, at http://127.0.0.1:8000 unless doors are given; `App` is the same inside a loop.

    http_processes: how many processes read and write the HTTP in front of the one that batches; "auto": the cores that
    the workers leave. Requests in flight are answered first. Where a worker's process or `tidegate serve script.py`
    imports the script, it returns at once.
    Raises what `App` raises.

    Example, in a script:
        >>> from tidegate import run, serve
        >>> @serve
        ... def shout(text: str) -> str:
        ...     return text.upper()
        >>> run(shout, http="0.0.0.0:8000")  # doctest: +SKIP
    """
    if spawned() or is_loading():
        return  # a worker, or the command line, imports the script that calls this
    chosen: dict[str, Any] = dict(doors or {"http": "127.0.0.1:8000"})
    if http_processes != 1:
        if not isinstance(chosen.get("http"), str):
            raise TypeError(f"http_processes={http_processes!r} needs http= as an address, such as '127.0.0.1:8000'")
        fronts: Callable[..., Transport] = load_transport("fronts")
        chosen["http"] = fronts(chosen["http"], http_processes)
    app = App(*handlers, **chosen)
    asyncio.run(serve_until_stopped(app))


async def _all(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run them side by side; the first error ends the others and is raised as it is."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _by_name(handlers: Sequence[Handler[..., Any]]) -> dict[str, Handler[..., Any]]:
    if not handlers:
        raise ValueError("an App needs at least one handler: App(square)")
    found: dict[str, Handler[..., Any]] = {}
    paths: dict[str, str] = {}
    for handler in handlers:
        path = handler.options.path
        if handler.name in RESERVED or path[1:] in RESERVED:
            raise ValueError(
                f"handler {handler.name!r} at {path}: the doors answer that themselves; give another name="
            )
        if path == "/predict" and len(handlers) > 1:
            raise ValueError(f"handler {handler.name!r} at /predict: only an app's one handler answers there")
        if handler.name in found:
            raise ValueError(f"two handlers are called {handler.name!r}: give one of them another name=")
        if path in paths:
            raise ValueError(f"handlers {paths[path]!r} and {handler.name!r} both answer at {path}: give another path=")
        found[handler.name] = handler
        paths[path] = handler.name
    return found
