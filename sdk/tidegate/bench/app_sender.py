"""Requests to an app in this process: no bytes, no sockets, so that what is left is batching and the handler."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from typing import Any, Self

from tidegate.app import App
from tidegate.bench.sender import OK, Ending, Shot
from tidegate_batching import Item, TidegateError

__all__ = ["AppSender"]


class AppSender:
    """Values for one of an app's handlers; the same few objects again and again."""

    waited = 0

    def __init__(self, app: App, name: str, values: Sequence[Any]) -> None:
        self._app = app
        self._name = name
        self._values = values
        self._send = self._stream if app.handlers[name].streams else self._post
        self._streams: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for stream in self._streams:
            stream.cancel()
        await asyncio.gather(*self._streams, return_exceptions=True)

    def send(self, payload: int, shot: Shot) -> None:
        """Into the handler's batcher."""
        self._send(self._values[payload], shot)

    def abandon(self, shot: Shot) -> None:
        """It is taken out again."""
        if isinstance(shot.place, asyncio.Task):
            shot.place.cancel()
        elif isinstance(shot.place, Item):
            self._app.withdraw(self._name, shot.place)

    def _post(self, value: Any, shot: Shot) -> None:
        try:
            shot.place = self._app.post(self._name, value, _Waiter(shot))
        except TidegateError as error:
            shot.end(_ending(error))

    def _stream(self, value: Any, shot: Shot) -> None:
        task = asyncio.ensure_future(self._read(value, shot))
        shot.place = task
        self._streams.add(task)
        task.add_done_callback(self._streams.discard)

    async def _read(self, value: Any, shot: Shot) -> None:
        try:
            async with self._app.stream(self._name, value) as chunks:
                async for _ in chunks:
                    pass
        except TidegateError as error:
            shot.end(_ending(error))
        else:
            shot.end(OK)


class _Waiter:
    """Hands an outcome on."""

    __slots__ = ("_is_done", "_shot")

    def __init__(self, shot: Shot) -> None:
        self._shot = shot
        self._is_done = False

    def done(self) -> bool:
        return self._is_done

    def set_result(self, outcome: Any, /) -> None:
        self._is_done = True
        self._shot.end(OK if outcome.error is None else _ending(outcome.error))

    def __await__(self) -> Generator[Any, Any, Any]:
        raise TypeError("nobody waits for this one")


def _ending(error: BaseException) -> Ending:
    if isinstance(error, TidegateError):
        return Ending(error.code, error.status, error.detail)
    return Ending("internal-error", 500, str(error))
