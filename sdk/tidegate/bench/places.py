"""Where requests can go: a URL, a service that is started for it, or an app in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tidegate.app import App
from tidegate.bench.app_sender import AppSender
from tidegate.bench.http_sender import HTTPSender
from tidegate.bench.inputs import InputError, values_of
from tidegate.bench.scenarios import Place
from tidegate.bench.sender import Ending, Payload, Sender
from tidegate.bench.service import Look, Remote, ServedProcess
from tidegate.bench.websocket_sender import WebSocketSender
from tidegate.clients.place import Place as Address
from tidegate.handler import Handler

__all__ = ["Address", "at_address", "first_answer", "in_process", "served"]


@asynccontextmanager
async def at_address(
    address: Address,
    payloads: Sequence[Payload] | None,
    *,
    headers: Mapping[str, str],
    sockets: int = 1,
    pid: int | None = None,
) -> AsyncIterator[Place]:
    """A service that runs already. payloads: None for the example that it tells of. sockets: WebSockets to open.

    headers: what every request says. pid: of the service, where it is known. Raises InputError where there is nothing
    to send.
    """
    async with Remote(address.url(), headers, address.tls, pid) as remote:
        url = address.url()
        if payloads is None:
            paths = await remote.paths()
            if remote.unreachable:
                raise InputError(f"{address.origin} cannot be reached: {remote.unreachable}")
            path, body = _chosen(paths, address)
            url, payloads = f"{address.origin}{path}", [Payload(body)]
        is_socket = address.scheme in ("ws", "wss")
        kind = WebSocketSender if is_socket else HTTPSender
        known = list(payloads)

        def sender(connections: int) -> Sender:
            limit = sockets if is_socket else connections
            return kind(url, known, headers=headers, connections=limit, tls=address.tls)

        try:
            sender(1)
        except ValueError as error:
            raise InputError(f"{url}: {error}") from None
        yield Place(sender, len(known), remote.look)


def _chosen(paths: Mapping[str, bytes | None], address: Address) -> tuple[str, bytes]:
    """The path that was meant, and the example for it."""
    path = f"{address.folder}{address.name}"
    found = {known: example for known, example in paths.items() if known != "/predict"}
    if not found:
        raise InputError(f"{address.origin} tells of no example at /info or /openapi.json: give --input FILE")
    if path in ("/", "/predict") and len(found) == 1:
        path = next(iter(found)) if path == "/" else path
        example = next(iter(found.values()))
    elif path in found:
        example = found[path]
    else:
        known = ", ".join(f"{address.origin}{one}" for one in found)
        raise InputError(f"{address.url()}: no handler answers there; there is {known}")
    if example is None:
        raise InputError(f"{address.origin}{path} tells of no example: give --input FILE")
    return path, example


@asynccontextmanager
async def served(
    command: Sequence[str], handler: Handler[..., Any], payloads: Sequence[Payload], headers: Mapping[str, str]
) -> AsyncIterator[tuple[Place, ServedProcess]]:
    """A service of its own process that `command` starts. Raises ServiceFailed when it does not get ready."""
    async with ServedProcess(command) as process:
        scheme, _, authority = process.url.partition("://")
        folder, _, name = handler.options.path.rpartition("/")
        address = Address(scheme, authority, f"{folder}/", name)
        async with at_address(address, payloads, headers=headers, pid=process.pid) as place:
            yield place, process


@asynccontextmanager
async def in_process(handler: Handler[..., Any], payloads: Sequence[Payload] | None) -> AsyncIterator[Place]:
    """An app with this one handler, without a door. Raises InputError, SetupFailed."""
    values = values_of(handler, None if payloads is None else list(payloads))
    async with App(handler) as app:

        async def look() -> Look:
            return Look(dict(app.statistics()[handler.name].batch_sizes), None)

        yield Place(lambda _: AppSender(app, handler.name, values), len(values), look, shared=True)


class _First:
    """One request that somebody waits for."""

    place: object = None

    def __init__(self) -> None:
        self.answer: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()

    def end(self, ending: Ending) -> None:
        if not self.answer.done():
            self.answer.set_result(ending)


async def first_answer(place: Place, timeout: float) -> Ending:
    """How a single request ends, before thousands are sent."""
    async with place.sender(1) as sender:
        shot = _First()
        sender.send(0, shot)
        try:
            async with asyncio.timeout(timeout):
                return await shot.answer
        except TimeoutError:
            sender.abandon(shot)
            return Ending("timeout", detail=f"no answer within {timeout:g} s")
