"""The service as seen from outside: its example, its batches, its CPU; and one that is started to be measured."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, NamedTuple, Self
from urllib.parse import urlsplit

import msgspec

__all__ = ["Look", "Remote", "ServedProcess", "ServiceFailed", "cpu_seconds", "mean_batch"]

ASK_TIMEOUT = 5.0
"""Seconds that a service may take to tell about itself."""

STOP_TIMEOUT = 30.0
"""Seconds that a service that was started here may take to end."""

_URL = re.compile(r"^curl (https?://[^\s/]+)/")


class ServiceFailed(Exception):
    """A service did not start: its exit code and what it wrote."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"the service ended with {code} before it was ready")
        self.code = code
        self.text = text


class Look(NamedTuple):
    """A service at one moment: batches so far by size, CPU seconds so far; None for what nobody tells."""

    batch_sizes: dict[int, int] | None
    cpu: float | None


def mean_batch(before: Look | None, after: Look | None) -> float | None:
    """Items per batch between two looks.

    Example:
        >>> mean_batch(Look({1: 5}, None), Look({1: 7, 8: 2}, None))
        4.5
    """
    if before is None or after is None or before.batch_sizes is None or after.batch_sizes is None:
        return None
    fresh = {size: count - before.batch_sizes.get(size, 0) for size, count in after.batch_sizes.items()}
    batches = sum(fresh.values())
    return sum(size * count for size, count in fresh.items()) / batches if batches > 0 else None


class Remote:
    """What a service says of itself at `/info`, or at least at `/openapi.json`. Nothing is raised: it need not.

    unreachable: why no connection could be made, once that was so.
    """

    unreachable = ""

    def __init__(
        self, url: str, headers: Mapping[str, str], tls: ssl.SSLContext | None, pid: int | None = None
    ) -> None:
        """pid: of its main process, where that is on this machine."""
        parts = urlsplit(url)
        scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
        self._origin = f"{scheme}://{parts.netloc}"
        self._path = parts.path
        self._headers = {name: text for name, text in headers.items() if name.lower() != "content-type"}
        self._tls = tls
        self._pid = pid
        self._session: Any = None

    async def __aenter__(self) -> Self:
        import aiohttp

        self._session = aiohttp.ClientSession(
            self._origin, headers=self._headers, timeout=aiohttp.ClientTimeout(ASK_TIMEOUT)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def look(self) -> Look:
        """How it is now."""
        handler = self._own(await self._ask("/info"))
        sizes = handler.get("statistics", {}).get("batch_sizes") if handler else None
        cpu = cpu_seconds(self._pid) if self._pid is not None else None
        return Look({int(size): count for size, count in sizes.items()} if isinstance(sizes, dict) else None, cpu)

    async def paths(self) -> dict[str, bytes | None]:
        """Where its handlers answer, each with an example in JSON, if it says so."""
        told = await self._ask("/info")
        handlers = told.get("handlers") if isinstance(told, dict) else None
        if isinstance(handlers, dict):
            found = {str(one.get("path")): one.get("example") for one in handlers.values() if isinstance(one, dict)}
        else:
            found = _examples(await self._ask("/openapi.json"))
        return {path: None if example is None else msgspec.json.encode(example) for path, example in found.items()}

    def _own(self, told: Any) -> dict[str, Any] | None:
        """What `/info` has of the handler at this URL."""
        handlers = told.get("handlers") if isinstance(told, dict) else None
        if not isinstance(handlers, dict):
            return None
        known = [one for one in handlers.values() if isinstance(one, dict)]
        here = [one for one in known if one.get("path") == self._path]
        if not here and len(known) == 1 and self._path in ("", "/", "/predict"):
            here = known
        return here[0] if here else None

    async def _ask(self, path: str) -> Any:
        import aiohttp

        try:
            async with self._session.get(path, ssl=True if self._tls is None else self._tls) as answer:
                if answer.status == 200:
                    return msgspec.json.decode(await answer.read())
        except aiohttp.ClientConnectorError as error:
            self.unreachable = str(error.os_error)
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError):
            pass
        return None


def _examples(openapi: Any) -> dict[str, Any]:
    """Paths that take a POST, with the example of their JSON body if there is one."""
    found = {}
    with suppress(AttributeError, TypeError):
        for path, methods in openapi["paths"].items():
            if "post" not in methods:
                continue
            content = methods["post"].get("requestBody", {}).get("content", {}).get("application/json", {})
            found[path] = content.get("example", content.get("schema", {}).get("example"))
    return found


# ---------------------------------------------------------------------- one that is started here


class ServedProcess:
    """A command that serves on a free port and prints a `curl` line when it is ready.

    It has a session of its own, so that Ctrl-C here does not reach it, and ends when this process does.
    Raises ServiceFailed on entering when it ends before it is ready.
    """

    url = ""
    """Scheme, host and port."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._errors: IO[bytes]
        self._process: asyncio.subprocess.Process
        self._reading: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        # What it logs is kept out of the way, and shown when it fails.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the process has ended
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=pipe, stdout=pipe, stderr=self._errors, start_new_session=True
        )
        try:
            self.url = await self._printed_url()
        except BaseException:
            await self._end()
            raise
        self._reading = asyncio.create_task(self._read_on())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._end()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def errors(self) -> str:
        """The end of what it has written to standard error."""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - 8192))
        return self._errors.read().decode("utf-8", "replace").strip()

    async def _printed_url(self) -> str:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            found = _URL.match(line.decode("utf-8", "replace"))
            if found:
                return found[1]
        code = await self._process.wait()
        raise ServiceFailed(code, self.errors())

    async def _read_on(self) -> None:
        """What a handler prints must not fill the pipe."""
        assert self._process.stdout is not None
        while await self._process.stdout.read(65536):
            pass

    async def _end(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        self._errors.close()


# ---------------------------------------------------------------------- CPU


def cpu_seconds(pid: int) -> float | None:
    """CPU that a process and all below it have used so far; None where the system does not tell (outside Linux)."""
    children: dict[int, list[int]] = {}
    used: dict[int, float] = {}
    try:
        ticks = os.sysconf("SC_CLK_TCK")
        numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except (OSError, ValueError):
        return None
    for number in numbers:
        try:
            with open(f"/proc/{number}/stat", encoding="utf-8", errors="replace") as stat:
                # The name, in brackets, may hold anything.
                fields = stat.read().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        children.setdefault(int(fields[1]), []).append(number)
        # With that of children that have ended and were waited for.
        used[number] = sum(int(field) for field in fields[11:15]) / ticks
    if pid not in used:
        return None
    total, look_at = 0.0, [pid]
    while look_at:
        number = look_at.pop()
        total += used[number]
        look_at += children.get(number, [])
    return total
