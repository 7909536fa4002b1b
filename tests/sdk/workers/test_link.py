import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import psutil
import pytest

from tidegate.workers import frames
from tidegate.workers.link import Link
from tidegate.workers.reference import reference_to
from tidegate_batching import TidegateError, WorkerDied

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")]


class Noted:
    """A link, and what was heard through it."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[frames.Message] = asyncio.Queue()
        self.reasons: list[TidegateError] = []
        self.ended = asyncio.Event()
        self.link = Link(self.heard.put_nowait, self.end)

    def end(self, reason: TidegateError) -> None:
        self.reasons.append(reason)
        self.ended.set()

    async def reason(self) -> str:
        with anyio.fail_after(30):
            await self.ended.wait()
        for _ in range(3):
            await asyncio.sleep(0)
        (reason,) = self.reasons
        return reason.detail

    async def hears(self, kind: type) -> Any:
        with anyio.fail_after(30):
            message = await self.heard.get()
        assert isinstance(message, kind), message
        return message


@asynccontextmanager
async def opened(handler: Any) -> AsyncIterator[Noted]:
    before = len(os.listdir("/proc/self/fd"))
    noted = Noted()
    await noted.link.open("test", {})
    noted.link.send(frames.Start(reference_to(handler), "cpu"))
    yield noted
    noted.link.end()
    await noted.reason()
    assert noted.link.closed
    assert len(os.listdir("/proc/self/fd")) == before


async def test_what_a_process_says_last_is_heard_before_its_end(handlers: Any) -> None:
    async with opened(handlers.one) as noted:
        await noted.hears(frames.Ready)
        noted.link.send(frames.Stop())
        await noted.hears(frames.Ended)
        assert await noted.reason() == "the worker's process exited with status 0"


async def test_it_is_heard_also_when_the_end_is_known_first(handlers: Any) -> None:
    async with opened(handlers.one) as noted:
        await noted.hears(frames.Ready)
        noted.link.send(frames.Stop())
        child = noted.link._child
        assert child is not None
        # Nothing is read in the meantime.
        while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
            threading.Event().wait(0.001)
        child._reap()
        assert not noted.ended.is_set()
        await noted.hears(frames.Ended)
        assert await noted.reason() == "the worker's process exited with status 0"


async def test_the_first_verdict_is_the_reason(handlers: Any) -> None:
    async with opened(handlers.one) as noted:
        await noted.hears(frames.Ready)
        noted.link.end(WorkerDied("first"))
        noted.link.end(WorkerDied("second"))
        assert await noted.reason() == "first"


async def test_a_process_that_closes_its_sockets_is_ended(handlers: Any) -> None:
    async with opened(handlers.one) as noted:
        await noted.hears(frames.Ready)
        noted.link._pipes[0].abort()
        assert "was ended by SIGKILL" in await noted.reason()


async def test_a_process_that_cannot_go_on_ends_and_says_why_on_standard_error(
    handlers: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    async with opened(handlers.one) as noted:
        await noted.hears(frames.Ready)
        noted.link.send(frames.Ended())  # which nobody says to a worker
        assert await noted.reason() == "the worker's process exited with status 1"
    assert "the worker's process cannot go on" in capfd.readouterr().err


async def test_at_the_end_messages_go_nowhere(handlers: Any) -> None:
    async with opened(handlers.one) as noted:
        os.kill(noted.link.pid, signal.SIGKILL)
        await noted.reason()
        noted.link.send(frames.Stop())
        noted.link.send_at_once(frames.Cancel(1, 1))
        noted.link.end()
        assert len(noted.reasons) == 1


async def test_a_message_that_is_too_large_is_refused_and_nothing_of_it_sent(
    handlers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(handlers.one) as noted:
        await noted.hears(frames.Ready)
        monkeypatch.setattr(frames, "LARGEST", 10)
        with pytest.raises(frames.ProtocolError):
            noted.link.send(frames.Cancel(1 << 60, 1 << 60))
        noted.link.send(frames.Stop())
        await noted.hears(frames.Ended)


async def test_an_opening_that_fails_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    before = len(os.listdir("/proc/self/fd"))
    noted = Noted()
    with pytest.raises(FileNotFoundError):
        await noted.link.open("test", {})
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(os.listdir("/proc/self/fd")) == before
    assert noted.reasons == []
    assert noted.link.pid == 0
