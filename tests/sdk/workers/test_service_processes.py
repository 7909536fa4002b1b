"""A service's processes and the signals that reach them, as an init system, a terminal or a kernel sends them."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import psutil
import pytest

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform != "linux", reason="Linux signals")]

SERVICE = Path(__file__).with_name("worker_service.py")


class Service:
    """A running service; `told` is what it said last, `ended` its exit code and the rest of both streams."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.pid = process.pid

    async def told(self) -> list[Any]:
        assert self.process.stdout is not None
        async with asyncio.timeout(30):
            line = await self.process.stdout.readline()
        return list(json.loads(line)) if line else []

    async def opened(self) -> list[psutil.Process]:
        word, pids = await self.told()
        assert word == "open"
        return [psutil.Process(pid) for pid in pids]

    async def ended(self) -> tuple[int, list[Any], str]:
        async with asyncio.timeout(30):
            out, errors = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, [json.loads(line) for line in out.splitlines()], errors.decode()


@asynccontextmanager
async def service(
    name: str, *orders: Any, workers: int = 1, drain_timeout: float = 20.0, flags: Sequence[str] = ("-W", "error")
) -> AsyncIterator[Service]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *flags, str(SERVICE), name, str(workers), str(drain_timeout), json.dumps(orders)),
        # Open and silent, as a terminal's: nobody else may read from it.
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # A group of its own, as a shell's job has.
        process_group=0,
    )
    try:
        yield Service(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def gone(*processes: psutil.Process) -> None:
    """Wait until they are; a zombie is nobody's leak but its parent's."""
    with anyio.fail_after(20):
        _, alive = await anyio.to_thread.run_sync(psutil.wait_procs, processes, 15)
    assert not [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


# ---------------------------------------------------------------------- the service dies


async def test_a_service_that_is_killed_leaves_no_worker_whatever_they_do() -> None:
    # Asleep in C, busy in Python, in C with the interpreter's lock, survived by a process that holds its sockets; idle.
    orders = [["sleep", 1000], ["spin"], ["hold"], ["grandchild"]]
    async with service("one", *orders, workers=len(orders) + 1) as running:
        workers = await running.opened()
        assert len(workers) == len(orders) + 1
        word, grandchild = await running.told()
        assert word == "answer"
        os.kill(running.pid, signal.SIGKILL)
        await gone(*workers)
        os.kill(grandchild, signal.SIGKILL)


async def test_a_service_that_is_killed_while_its_workers_start_leaves_none(until: Any) -> None:
    async with service("one") as running:
        await until(psutil.Process(running.pid).children)
        workers = psutil.Process(running.pid).children()
        os.kill(running.pid, signal.SIGKILL)
        await gone(*workers)


# ---------------------------------------------------------------------- the service is asked to end


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_lets_work_in_flight_finish_tears_down_and_exits_with_0(
    number: signal.Signals, meeting: Any
) -> None:
    orders = (["meet", meeting.port], ["read"])
    async with service("torn_down", *orders, flags=("-X", "dev", "-W", "error")) as running:
        workers = await running.opened()
        _, go = await meeting.arrival()
        os.kill(running.pid, number)
        go()
        code, told, errors = await running.ended()
        assert code == 0
        assert told == [["answer", "go"], ["answer", ""]]
        assert errors == "torn down\n"
        await gone(*workers)


async def test_a_terminals_interrupt_of_the_whole_group_drains_and_shows_no_traceback(
    meeting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDDLES", "with signals")
    async with service("torn_down", ["meet", meeting.port]) as running:
        workers = await running.opened()
        _, go = await meeting.arrival()
        os.killpg(running.pid, signal.SIGINT)
        # And whoever means every process of a container means the workers too.
        for worker in workers:
            worker.send_signal(signal.SIGINT)
            worker.send_signal(signal.SIGTERM)
        go()
        code, told, errors = await running.ended()
        assert (code, len(told), errors) == (0, 1, "torn down\n")
        await gone(*workers)


async def test_a_second_signal_ends_everything_at_once(meeting: Any) -> None:
    async with service("torn_down", ["meet", meeting.port]) as running:
        workers = await running.opened()
        await meeting.arrival()
        os.kill(running.pid, signal.SIGTERM)
        os.kill(running.pid, signal.SIGINT)
        code, _, errors = await running.ended()
        assert code in (128 + signal.SIGINT, 128 + signal.SIGTERM)
        assert errors == ""
        await gone(*workers)


async def test_handlers_that_never_return_are_ended_when_the_time_to_drain_is_over() -> None:
    async with service("one", ["sleep", 1000], ["hold"], workers=2, drain_timeout=0.2) as running:
        workers = await running.opened()
        # They must run, or there is nothing to wait for.
        for worker in workers:
            await until_asleep_in_it(worker)
        os.kill(running.pid, signal.SIGTERM)
        code, told, errors = await running.ended()
        assert (code, told) == (0, [["error", "Closed"]] * 2)
        assert "did not end in time" in errors
        assert "Traceback" not in errors
        await gone(*workers)


async def until_asleep_in_it(worker: psutil.Process) -> None:
    # The one thing that every handler here does is to wait somewhere: it has answered nothing, and is not starting.
    with anyio.fail_after(20):
        before, now = -1, worker.num_ctx_switches().voluntary
        while before != now:
            await anyio.sleep(0.05)
            before, now = now, worker.num_ctx_switches().voluntary


async def test_a_service_whose_last_worker_cannot_be_replaced_says_so_and_exits_with_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONLY_ONCE", str(tmp_path))
    async with service("mortal", ["exit", 1]) as running:
        await running.opened()
        code, told, errors = await running.ended()
        assert code == 3
        assert ["error", "WorkerDied"] in told
        assert [
            "failed",
            f"handler 'mortal' has no worker left: FileExistsError: [Errno 17] File exists: '{tmp_path}/started'",
        ] in told
        assert "Traceback" not in errors
