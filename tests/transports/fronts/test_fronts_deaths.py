"""What becomes of a service of several processes when one of them ends."""

import asyncio
import gc
import os
import signal
import socket
import sys
import textwrap
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

import tidegate_transports.front_place
from tidegate_transports.ipc_messages import VERSION

pytestmark = pytest.mark.anyio

SLOW = 3
"""Times longer than promised that something may take on a machine that others use as well."""


async def test_one_that_is_killed_is_replaced_and_the_others_callers_see_nothing(
    handlers: Any, served: Any, gate: Any, until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(handlers.held) as service:
        (victim, lost), (_, kept) = (await service.connected(5)).items()
        for number, client in enumerate([*kept, *lost]):
            client.ask("/held", gate.body(number))
            await until(lambda n=number: service.app.statistics()["held"].submitted == n + 1)
        number, let_go = await gate.arrival()
        assert number == 0
        os.kill(victim, signal.SIGKILL)
        died = time.monotonic()
        await until(lambda: service.app.statistics()["held"].waiting == 4)
        let_go()
        for expected in range(1, 5):
            number, let_go = await gate.arrival()
            assert number == expected
            let_go()
        assert [await client.answer() for client in kept] == ["0", "1", "2", "3", "4"]
        assert [await client.answer() for client in lost] == [""] * 5
        await service.replaced(victim)
        assert time.monotonic() - died < 2 * SLOW
        assert "was ended by SIGKILL" in caplog.text
        outcomes = service.app.statistics()["held"].outcomes
        assert outcomes == {"ok": 5, "cancelled": 5}


async def test_under_load_only_the_dead_ones_connections_fail(handlers: Any, served: Any) -> None:
    async with served(handlers.square) as service, aiohttp.ClientSession(service.door.url) as session:
        right = [0] * 16
        failed = 0
        stop = asyncio.Event()

        async def caller(number: int) -> None:
            nonlocal failed
            while not stop.is_set():
                try:
                    async with session.post("/square", json=[number, right[number]]) as response:
                        assert await response.json() == [number**2, right[number] ** 2]
                        right[number] += 1
                except aiohttp.ClientConnectionError:
                    failed += 1

        async with asyncio.TaskGroup() as callers:
            for number in range(16):
                callers.create_task(caller(number))
            while min(right) < 5:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            victim = service.pids[0]
            os.kill(victim, signal.SIGKILL)
            await service.replaced(victim)
            before = list(right)
            while any(now < then + 5 for now, then in zip(right, before, strict=True)):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            stop.set()
        # At most one for each connection, and one more for who was just connecting.
        assert failed <= 32


async def test_deaths_amid_pictures_harm_nobody_and_leave_no_memory_behind(
    handlers: Any, served: Any, until: Any
) -> None:
    def kept() -> tuple[int, int]:
        """Mappings and descriptors of shared memory."""
        gc.collect()
        maps = Path("/proc/self/maps").read_text()
        links = Counter(
            os.readlink(f"/proc/self/fd/{file.name}") for file in os.scandir("/proc/self/fd") if file.is_symlink()
        )
        return maps.count("memfd:tidegate"), links["/memfd:tidegate (deleted)"]

    picture = bytes(range(256)) * (224 * 224 * 3 // 256)
    headers = {"Content-Type": "application/octet-stream", "Accept": "application/x-npy"}
    async with served(handlers.invert) as service, aiohttp.ClientSession(service.door.url) as session:
        began = kept()
        right = [0] * 8
        stop = asyncio.Event()

        async def caller(number: int) -> None:
            while not stop.is_set():
                with suppress(aiohttp.ClientConnectionError):
                    async with session.post("/invert", data=picture, headers=headers) as response:
                        assert (await response.read()).endswith(bytes(range(255, -1, -1)))
                        right[number] += 1

        async with asyncio.TaskGroup() as callers:
            for number in range(8):
                callers.create_task(caller(number))
            for victim in service.pids:
                before = list(right)
                while any(now < then + 3 for now, then in zip(right, before, strict=True)):  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                os.kill(victim, signal.SIGKILL)
                await service.replaced(victim)
            stop.set()
        links = [place._front.link for place in service.door.places]
        await until(lambda: not any(link.under_way for link in links))
        # A segment that has grown is mapped once, like any other.
        await until(lambda: all(now <= then for now, then in zip(kept(), began, strict=True)))


async def test_they_leave_signals_to_the_service(handlers: Any, served: Any) -> None:
    async with served(handlers.square) as service:
        before = service.pids
        for pid in before:
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
        for some in (await service.connected(1)).values():
            some[0].ask("/square", "[2]")
            assert await some[0].answer() == "[4]"
        assert service.pids == before


async def test_one_whose_line_is_cut_is_ended_and_replaced(
    handlers: Any, served: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(handlers.square) as service:
        victim = service.pids[0]
        place: Any = service.door.places[0]
        os.kill(victim, signal.SIGSTOP)  # so that it does not end by itself
        place._front.link.channel.data_received(b"\xff\xff\xff\xff")
        await service.replaced(victim)
        assert "makes no sense" in caplog.text
        assert not psutil.pid_exists(victim)


async def test_one_that_dies_again_and_again_is_replaced_ever_later(
    handlers: Any, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def at_once(failures: int) -> float:
        asked.append(failures)
        return 0.0

    monkeypatch.setattr(tidegate_transports.front_place, "restart_delay", at_once)
    async with served(handlers.square) as service:
        for _ in range(3):
            victim = service.pids[0]
            os.kill(victim, signal.SIGKILL)
            await service.replaced(victim)
        assert asked == [0, 1, 2]
        monkeypatch.setattr(tidegate_transports.front_place, "STEADY", 0.0)
        victim = service.pids[0]
        os.kill(victim, signal.SIGKILL)
        await service.replaced(victim)
        assert asked == [0, 1, 2, 0]


async def test_when_none_can_be_started_any_more_the_app_has_failed(
    handlers: Any,
    served: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ruin = tmp_path / "ruin"
    monkeypatch.setenv("TEST_FAILS_WHERE", str(ruin))
    monkeypatch.setattr(tidegate_transports.front_place, "restart_delay", lambda failures: 0.0)
    monkeypatch.setattr(tidegate_transports.front_place, "MAX_FAILED_STARTS", 2)
    async with served(handlers.square) as service:
        ruin.write_text(str(os.getpid()))
        for pid in service.pids:
            os.kill(pid, signal.SIGKILL)
        failure = await service.app.failure
        assert "this module cannot be imported" in str(failure)
        assert "start 2 failed" in caplog.text


async def test_one_that_was_changed_meanwhile_is_not_left_running(
    handlers: Any, served: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, until: Any
) -> None:
    monkeypatch.setattr(tidegate_transports.front_place, "restart_delay", lambda failures: 0.0)
    others = {child.pid for child in psutil.Process().children()}
    async with served(handlers.square) as service:
        spoken = VERSION
        monkeypatch.setattr(tidegate_transports.front_place, "VERSION", 99)
        victim, other = service.pids
        os.kill(victim, signal.SIGKILL)
        await until(lambda: "start 2 failed" in caplog.text)
        monkeypatch.setattr(tidegate_transports.front_place, "VERSION", spoken)
        await until(lambda: "a new process" in caplog.text)
        running = {child.pid for child in psutil.Process().children()} - others
        assert running == {other, service.pids[0]}
        assert "start the service again" in caplog.text


# ---------------------------------------------------------------------- the hub


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
        return port


SCRIPT = """
    import os, sys
    from tidegate import run, serve
    from tidegate_transports.fronts import FrontsTransport

    with open(sys.argv[1], "a") as file:
        print(os.getpid(), file=file)

    @serve(worker="thread")
    def first(x: int) -> int:
        return x + 1

    @serve(worker="thread")
    def second(x: int) -> int:
        return x + 2

    run(first, second, http=FrontsTransport("127.0.0.1:" + sys.argv[2], 2))
"""


async def test_a_script_runs_once_in_each_and_a_dead_hub_takes_all_along(
    tmp_path: Path, until: Any, free_port: int
) -> None:
    script, notes = tmp_path / "script.py", tmp_path / "notes"
    script.write_text(textwrap.dedent(SCRIPT))
    notes.touch()
    process = await asyncio.create_subprocess_exec(sys.executable, script, notes, str(free_port))
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{free_port}") as session:
            for path, expected in (("/first", 2), ("/second", 3)):
                while True:
                    try:
                        async with session.post(path, json=1) as response:
                            assert await response.json() == expected
                            break
                    except aiohttp.ClientConnectionError:
                        await asyncio.sleep(0.01)  # not yet there
        ran = [int(pid) for pid in notes.read_text().split()]
        fronts = [psutil.Process(pid) for pid in ran if pid != process.pid]
        assert (len(ran), len(fronts)) == (3, 2)
    finally:
        process.kill()
        await process.wait()
    gone, alive = await asyncio.to_thread(psutil.wait_procs, fronts, 10)
    assert (len(gone), alive) == (2, [])
