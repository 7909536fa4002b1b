"""A handler called over the wire, as if it were here."""

from __future__ import annotations

import math
import os
import ssl
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from pkgutil import resolve_name
from types import TracebackType
from typing import Any, Self

from tidegate.clients.asking import Asker, Job
from tidegate.clients.carrier import Carrier, Request
from tidegate.clients.place import Place, place_of
from tidegate.portal import Portal, map_in_order

__all__ = ["AsyncClient", "Client"]

# By name, since their libraries take longer to load than all of this one: only who opens a client pays for one.
_CARRIERS = {
    "http": "tidegate.clients.http:HTTPCarrier",
    "https": "tidegate.clients.http:HTTPCarrier",
    "ws": "tidegate.clients.websocket:WebSocketCarrier",
    "wss": "tidegate.clients.websocket:WebSocketCarrier",
}


class AsyncClient:
    """The asynchronous view of `Client`; what `async with Client(url) as client:` gives."""

    def __init__(self, place: Place, retries: int) -> None:
        self._place = place
        self._retries = retries
        self._stack = AsyncExitStack()
        self._asker: Asker | None = None

    async def __aenter__(self) -> Self:
        if self._asker is not None:
            raise RuntimeError("this client is open already: use one Client per `async with`")
        carrier: Carrier = resolve_name(_CARRIERS[self._place.scheme])(self._place)
        self._asker = Asker(await self._stack.enter_async_context(carrier), self._retries)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._asker is not None:
            self._asker.close()
            self._asker = None
        await self._stack.aclose()

    async def call(
        self, value: Any, *, handler: str | None = None, timeout: float | None = None, priority: int = 3
    ) -> Any:
        """One input to its output; see `Client.call`."""
        reply = await self._open().ask(_request(value, handler, timeout, priority))
        if reply.chunks is not None:
            await reply.chunks.aclose()
            raise TypeError(f"handler {self._shown(handler)} streams: read it with stream(), not call()")
        return reply.output

    async def stream(
        self, value: Any, *, handler: str | None = None, timeout: float | None = None, priority: int = 3
    ) -> AsyncGenerator[Any, None]:
        """One input to its chunks; breaking out and closing the iterator cancels the rest at the service."""
        reply = await self._open().ask(_request(value, handler, timeout, priority))
        if reply.chunks is None:
            raise TypeError(f"handler {self._shown(handler)} gives one output: use call(), not stream()")
        try:
            async for chunk in reply.chunks:
                yield chunk
        finally:
            await reply.chunks.aclose()

    async def map(
        self,
        values: Iterable[Any],
        *,
        handler: str | None = None,
        return_exceptions: bool = False,
        concurrency: int = 64,
    ) -> AsyncGenerator[Any, None]:
        """The outputs of many inputs, in their order; see `Client.map`."""
        job = self.job(handler, concurrency)
        outputs = map_in_order(job.ask, values, job.window, return_exceptions)
        try:
            async for output in outputs:
                yield output
        finally:
            await outputs.aclose()

    def job(self, handler: str | None, concurrency: int) -> Job:
        """What a `map` of either view asks."""
        return Job(self._open(), handler, concurrency)

    def _open(self) -> Asker:
        if self._asker is None:
            raise RuntimeError("this client is not open: use it inside `async with Client(...) as client:`")
        return self._asker

    def _shown(self, handler: str | None) -> str:
        return repr(handler or self._place.name or "predict")


class Client:
    """Call handlers of a service over HTTP or a WebSocket, as `LocalClient` calls them in process.

    `with` gives a synchronous view, which threads may share, `async with` the asynchronous one; both work where an
    event loop runs already.

    url: `http://`, `https://`, `ws://` or `wss://`. Its path names the usual handler (`http://127.0.0.1:8000/embed`);
    without one it is the app's only handler. Over `http` each request has a connection of a pool, and a stream that is
    read slowly holds its generator back; over `ws` all share one connection, and a stream whose reader falls far behind
    ends with `SlowReader`.
    api_key: sent as a Bearer token. It is not taken from the environment, since it is for this service alone.
    headers: sent with every request, or with the WebSocket's handshake.
    verify: False takes any TLS certificate; a file or folder holds the authorities to trust; or an `ssl.SSLContext`.
    retries: how often a request goes again, after a random pause, that was refused (429, 503, after `Retry-After`) or
    whose connection failed before the answer began. It may then have run already, since inference may be repeated;
    with 0 nothing is sent twice. Nothing goes again after a stream's first chunk, nor past the caller's timeout.
    max_connections: of the pool; further requests wait for one.

    Arrays and tensors are sent and come back as NumPy arrays (but as lists in a stream's chunks over `http`), Structs
    and dataclasses are sent as objects and come back as dicts: `msgspec.convert(answer, MyStruct)` makes them whole.

    Example:
        >>> with Client("http://127.0.0.1:8000/double") as client:  # doctest: +SKIP
        ...     client.call(21), list(client.map(range(5)))
        (42, [0, 2, 4, 6, 8])
        >>> Client("ws://127.0.0.1:8001", api_key="sesame")
        Client('ws://127.0.0.1:8001')
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        verify: bool | str | os.PathLike[str] | ssl.SSLContext = True,
        retries: int = 3,
        max_connections: int = 100,
    ) -> None:
        if retries < 0:
            raise ValueError(f"retries={retries!r}: give a whole number, 0 for none")
        place = place_of(url, api_key=api_key, headers=headers, verify=verify, connections=max_connections)
        self._url = url
        self._client = AsyncClient(place, retries)
        self._portal = Portal("Client", "tidegate-client")

    def __repr__(self) -> str:
        return f"Client({self._url!r})"

    # ------------------------------------------------------------------ asynchronous

    async def __aenter__(self) -> AsyncClient:
        return await self._client.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.__aexit__()

    # ------------------------------------------------------------------ synchronous

    def __enter__(self) -> Self:
        self._portal.open(self._client)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._portal.close()

    def call(self, value: Any, *, handler: str | None = None, timeout: float | None = None, priority: int = 3) -> Any:
        """One input to its output.

        timeout: seconds for everything, retries included; None leaves it to the handler's own. priority: 0 (first) to 7.
        Raises the service's `TidegateError` (`HTTPError` where there is no such handler), `DeadlineExceeded` also where
        the service is silent, `Disconnected` where it cannot be reached, TypeError for a handler that streams.
        """
        return self._portal.run(self._client.call(value, handler=handler, timeout=timeout, priority=priority))

    def stream(
        self, value: Any, *, handler: str | None = None, timeout: float | None = None, priority: int = 3
    ) -> Iterator[Any]:
        """One input to its chunks; breaking out cancels the rest at the service.

        timeout: seconds until the first chunk. Raises what `call` raises, and what the service tells after some chunks.
        """
        self._portal.check_open()
        return self._portal.iterate(self._client.stream(value, handler=handler, timeout=timeout, priority=priority))

    def map(
        self,
        values: Iterable[Any],
        *,
        handler: str | None = None,
        return_exceptions: bool = False,
        concurrency: int = 64,
    ) -> Iterator[Any]:
        """The outputs of many inputs, in their order, `concurrency` of them under way, without a deadline of their own.

        What the service refuses for now is asked again until it takes it, up to 300 s without any progress. A stream's
        chunks come as a list.
        return_exceptions: give an item's error in its place instead of raising it.
        """
        self._portal.check_open()
        job = self._client.job(handler, concurrency)
        return self._portal.map(job.ask, values, job.window, return_exceptions)


def _request(value: Any, handler: str | None, timeout: float | None, priority: int) -> Request:
    if priority not in range(8):
        raise ValueError(f"priority={priority!r}: give a whole number from 0 (first) to 7")
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"timeout={timeout!r}: give seconds, 0 or more, or None for the handler's own")
    return Request(value, handler, None if timeout == math.inf else timeout, priority)
