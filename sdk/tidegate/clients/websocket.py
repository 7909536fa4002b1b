"""Requests over a WebSocket: all of them on one connection, which is made anew when it is lost."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any, Self

import websockets.asyncio.client as websockets_client
from websockets.exceptions import InvalidStatus, WebSocketException

from tidegate.clients.answers import error_of_response
from tidegate.clients.carrier import Disconnected, Reply, Request
from tidegate.clients.link import Link
from tidegate.clients.place import Place
from tidegate.clients.retries import BACKOFF, LONGEST_BACKOFF
from tidegate.version import __version__
from tidegate.wire import SUBPROTOCOL
from tidegate_batching import TidegateError

__all__ = ["WebSocketCarrier"]

# The library's own records would hold headers, and with them keys, at DEBUG.
_library_log = logging.getLogger("tidegate.client.library")
_library_log.setLevel(logging.ERROR)

CONNECT_TIMEOUT = 10.0
"""Seconds that the handshake may take, with all that comes before it."""

CLOSE_TIMEOUT = 2.0
"""Seconds that the service has to agree that the connection ends."""

PING = 20.0
"""Seconds between pings, and for the answer to each."""

MAX_MESSAGE = 256 * 1024 * 1024
"""Bytes of one message from the service."""


class _Connect(websockets_client.connect):
    """Follows no redirect: the headers, and the key in them, are for the address that was given."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class WebSocketCarrier:
    """Carries requests to `ws://` and `wss://`."""

    def __init__(self, place: Place, draw: Callable[[float, float], float] = random.uniform) -> None:
        self._place = place
        self._draw = draw
        self._link: Link | None = None
        self._opening: asyncio.Task[Link] | None = None
        self._links: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._not_before = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        # Again, since what is being opened may have become a connection in the meantime.
        while self._links or self._opening is not None:
            tasks: set[asyncio.Task[Any]] = {*self._links, *([self._opening] if self._opening else [])}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def ask(self, request: Request) -> Reply:
        """One message; the reply begins with the first that has its id."""
        link = await self._open_link()
        return await link.ask(request)

    async def _open_link(self) -> Link:
        """The connection, made by the first who asks; the others wait for the same."""
        if self._link is not None and self._link.is_open:
            return self._link
        if self._opening is None:
            self._opening = asyncio.create_task(self._connect())
            self._opening.add_done_callback(self._opened)
        opening = self._opening
        await asyncio.wait([opening])
        if opening.cancelled():
            raise Disconnected("this client was closed", sent=False)
        error = opening.exception()
        if error is None:
            return opening.result()
        # One error for many: each gets its own traceback.
        raise error.with_traceback(None)

    def _opened(self, opening: asyncio.Task[Link]) -> None:
        self._opening = None
        if opening.cancelled():
            return
        if opening.exception() is None:
            self._link, self._failures = opening.result(), 0
            running = asyncio.create_task(self._link.run())
            self._links.add(running)
            running.add_done_callback(self._links.discard)
        else:
            # However many ask, the address is tried ever less often while nobody answers there.
            backoff = min(LONGEST_BACKOFF, BACKOFF * 2 ** min(self._failures, 10))
            self._failures += 1
            self._not_before = asyncio.get_running_loop().time() + self._draw(0, backoff)

    async def _connect(self) -> Link:
        await asyncio.sleep(self._not_before - asyncio.get_running_loop().time())
        place, url = self._place, self._place.url()
        try:
            connection = await _Connect(
                url,
                additional_headers=dict(place.headers),
                subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]  # a NewType of str
                compression=None,  # arrays do not shrink
                proxy=None,
                open_timeout=CONNECT_TIMEOUT,
                close_timeout=CLOSE_TIMEOUT,
                ping_interval=PING,
                ping_timeout=PING,
                max_size=MAX_MESSAGE,
                max_queue=None,  # what comes is taken at once; and a close must not wait behind what nobody reads
                user_agent_header=f"tidegate/{__version__}",
                logger=_library_log,
                ssl=place.tls,
            )
        except InvalidStatus as error:
            response = error.response
            raise _not_open(
                error_of_response(response.status_code, response.headers, bytes(response.body)), url
            ) from None
        except (OSError, WebSocketException) as error:
            # The library's own traceback would bury the one line that says so.
            raise Disconnected(f"{url} cannot be reached: {str(error) or type(error).__name__}", sent=False) from None
        return Link(connection, url)


def _not_open(error: TidegateError, url: str) -> TidegateError:
    """What the handshake was answered with."""
    if isinstance(error, Disconnected):
        return Disconnected(f"{url} is no WebSocket: {error}", sent=False)
    return error
