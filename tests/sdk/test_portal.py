"""What the clients' own tests leave open about the thread behind their synchronous views."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tidegate.portal import Portal, map_in_order

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def nothing() -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def fails(when: str) -> AsyncIterator[None]:
    if when == "entered":
        raise OSError("no room")
    yield
    raise OSError("no room")


@pytest.fixture
def portal() -> Iterator[Portal]:
    portal = Portal("Client", "tidegate-test")
    portal.open(nothing())
    yield portal
    portal.close()


def is_running() -> bool:
    return any(thread.name == "tidegate-test" for thread in threading.enumerate())


def test_a_coroutine_runs_in_the_portals_own_thread(portal: Portal) -> None:
    async def name() -> str:
        return threading.current_thread().name

    assert portal.run(name()) == "tidegate-test"


@pytest.mark.parametrize("when", ["entered", "left"])
def test_what_the_context_raises_is_raised_and_no_thread_is_left(when: str) -> None:
    portal = Portal("Client", "tidegate-test")
    with pytest.raises(OSError, match="no room"):
        portal.open(fails(when))
        portal.close()
    assert not is_running()
    with pytest.raises(RuntimeError, match="not open"):
        portal.check_open()


def test_whoever_waits_when_the_portal_closes_is_told_so() -> None:
    portal = Portal("Client", "tidegate-test")
    portal.open(nothing())
    begun = threading.Event()
    told: list[Any] = []

    async def endless() -> None:
        begun.set()
        await asyncio.Event().wait()

    def wait() -> None:
        try:
            portal.run(endless())
        except RuntimeError as error:
            told.append(str(error))

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert begun.wait(10)
    portal.close()
    waiting.join(10)
    assert told == ["this client is not open: use it inside `with Client(...) as client:`"]


def test_an_iterator_that_is_dropped_closes_its_source(portal: Portal) -> None:
    closed = threading.Event()

    async def numbers() -> Any:
        try:
            for n in range(10):
                yield n
        finally:
            closed.set()

    for n in portal.iterate(numbers()):
        assert n == 0
        break
    assert closed.wait(10)


async def test_a_map_that_is_left_cancels_what_is_under_way() -> None:
    ended: list[int] = []

    async def ask(value: int) -> int:
        try:
            await asyncio.sleep(0 if value == 0 else 3600)
        except asyncio.CancelledError:
            ended.append(value)
            raise
        return value

    outputs = map_in_order(ask, range(100), lambda: 4, return_exceptions=False)
    assert await anext(outputs) == 0
    await asyncio.sleep(0)
    await outputs.aclose()
    assert ended == [1, 2, 3]
