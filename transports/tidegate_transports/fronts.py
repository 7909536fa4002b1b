"""Several processes at one HTTP port, one hub behind them: the door of a service whose Python is what it waits for."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

from tidegate import App, SetupFailed
from tidegate.placement import cores
from tidegate.status import DoorCounts
from tidegate.transport import load_transport
from tidegate.workers.reference import CannotLoad, reference_to
from tidegate_transports.address import Address, parse_address
from tidegate_transports.front_place import FrontPlace
from tidegate_transports.http_options import HTTPOptions
from tidegate_transports.ipc_messages import News, Start
from tidegate_transports.listening import probe, reserve, tls_context, url_of

__all__ = ["FrontsTransport", "spare_processes"]

LOOKS_EVERY = 0.25
"""Seconds between two looks at whether the app is still ready, for the front ends to say."""

ANSWERS_WITHIN = 0.5
"""Seconds that a front end gets to say what it has counted."""

MOST_SPARE = 8
"""Front ends that "auto" starts at most: about as many as one hub can keep up with."""


def spare_processes(workers: int, core_count: int) -> int:
    """How many front ends a machine has cores left for, beside the hub and so many workers; 1 if none.

    Example:
        >>> [spare_processes(workers=1, core_count=cores) for cores in (1, 2, 4, 16)]
        [1, 1, 2, 8]
    """
    return max(1, min(MOST_SPARE, core_count - 1 - workers))


class FrontsTransport:
    """Serves an app at `address` through `processes` front ends, each with the door named `transport` of its own.

    Each parses, validates, decodes and encodes; the hub, which is this process, owns the batcher and the workers. A
    front end that dies takes its own connections along and is replaced. They share the port by SO_REUSEPORT, which is
    tried without first: where another service listens already this fails. processes: "auto" is one for each core that
    hub and workers leave, at most 8; with 1 there is no front end but the door itself, in this process.

    Raises ValueError for a number below 1, and what `HTTPOptions` raises.
    """

    def __init__(
        self,
        address: str,
        processes: int | Literal["auto"] = "auto",
        transport: str = "http",
        options: HTTPOptions | None = None,
        log_format: str = "text",
        **given: Any,
    ) -> None:
        if processes != "auto" and (isinstance(processes, bool) or not isinstance(processes, int) or processes < 1):
            raise ValueError(f"http_processes={processes!r}: give a whole number, 1 or more, or 'auto'")
        self._address = parse_address(address)
        self._processes = processes
        self._door = load_transport(transport)  # a missing one is found out now
        self._transport = transport
        self._log_format = log_format
        self.options = options or HTTPOptions.from_environment(os.environ, **given)
        self._scheme = "https" if self.options.tls_certificate else "http"
        self.places: list[FrontPlace] = []
        self.url = f"{self._scheme}://{self._address}"

    def check(self) -> None:
        """Raise OSError if the address is taken."""
        probe(self._address)

    @asynccontextmanager
    async def serve(self, app: App) -> AsyncIterator[None]:
        """Open the doors; raises OSError when the address cannot be taken, SetupFailed or ValueError as a door may."""
        processes = self._processes
        if processes == "auto":
            workers = sum(len(status.workers) for status in app.status().values())
            processes = spare_processes(workers, cores())
        if processes == 1:
            door: Any = self._door(str(self._address), self.options)  # type: ignore[call-arg]  # doors of HTTP take them
            async with door.serve(app):
                self.url = door.url
                yield
            return
        tls_context(self.options)  # says what is wrong with the files
        reserved = reserve(self._address)
        try:
            self.url = url_of(reserved, self._address, self._scheme)
            start = self._start(app, self._address._replace(port=reserved[0].getsockname()[1]), processes)
            async with _opened(app, start, processes) as self.places:
                yield
        finally:
            for one in reserved:
                one.close()

    def _start(self, app: App, address: Address, processes: int) -> Start:
        references = []
        for handler in app.handlers.values():
            try:
                references.append(reference_to(handler))
            except CannotLoad as error:
                raise SetupFailed(handler.name, error) from error
        windows = {name: app.window(name) for name in app.handlers}
        options = dataclasses.asdict(self.options)
        # The limit is the service's; the system shares connections out about evenly.
        options["max_connections"] = -(-self.options.max_connections // processes)
        return Start(references, windows, self._transport, *address, options, self._log_format, app.drain_timeout)


@asynccontextmanager
async def _opened(app: App, start: Start, processes: int) -> AsyncIterator[list[FrontPlace]]:
    """The places, filled; in the end drained until the app's own end."""
    by_value = [name for name, one in zip(app.handlers, start.handlers, strict=True) if one.by_value]
    lost: list[SetupFailed] = []

    def lose(failure: SetupFailed) -> None:
        lost.append(failure)
        # As long as one is left there is somebody to answer.
        if len(lost) == processes and not app.failure.done():
            app.failure.set_result(failure)

    places = [FrontPlace(app, number, start, by_value, lose) for number in range(processes)]
    told = _Teller(app, places)
    # What the body raises passes it by: it would wrap it.
    tasks = await asyncio.TaskGroup().__aenter__()
    try:
        await _all(place.start(tasks) for place in places)
        watching = tasks.create_task(told.watch())
        app.watchers.append(told.tell)
        app.counters.append(_counter(places))
        try:
            yield places
        finally:
            app.watchers.remove(told.tell)
            watching.cancel()
            ends_at = min(app.drain_ends_at, asyncio.get_running_loop().time() + app.drain_timeout)
            await _all(place.drain(ends_at) for place in places)
    finally:
        await _all(place.kill() for place in places)
        await tasks.__aexit__(None, None, None)


class _Teller:
    """Lets the front ends know how the app is, when that changes."""

    def __init__(self, app: App, places: Sequence[FrontPlace]) -> None:
        self._app = app
        self._places = places
        self._last: News | None = None

    def tell(self) -> None:
        """Say it now if it is news."""
        now = News(self._app.ready, self._app.alive, self._app.draining)
        if now != self._last:
            self._last = now
            for place in self._places:
                place.tell(now)

    async def watch(self) -> None:
        """Look every now and then: a worker's death, unlike the end, tells nobody."""
        while True:
            self.tell()
            await asyncio.sleep(LOOKS_EVERY)


def _counter(places: Sequence[FrontPlace]) -> Any:
    async def counts() -> DoorCounts:
        counted = DoorCounts()
        for one in await asyncio.gather(*(place.counts(ANSWERS_WITHIN) for place in places)):
            counted += one
        return counted

    return counts


async def _all(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run them side by side; the first error ends the others and is raised as it is."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
