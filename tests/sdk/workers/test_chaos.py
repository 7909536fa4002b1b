"""Workers that are killed under load, again and again."""

import asyncio
import gc
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from tidegate import App, WorkerDied
from tidegate.devices import DeviceManager
from tidegate.discovery import CPU

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")]

KILLS = 50


class Load:
    """Callers that never stop asking; each knows the right answer."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.right = self.died = 0
        self.wrong: list[Any] = []
        self.last = time.monotonic()
        self.longest_gap = 0.0
        self.over = False

    def has_answered(self, enough: int) -> bool:
        return self.right >= enough

    async def ask(self, number: int) -> None:
        while not self.over:
            number += 1
            try:
                answer = await self.app.call("busy", number, timeout=20.0)
            except WorkerDied:
                self.died += 1
            except Exception as error:  # noqa: BLE001 - looked at by the test
                self.wrong.append(error)
            else:
                if answer != 2 * number:
                    self.wrong.append((number, answer))
                self.right += 1
                now = time.monotonic()
                self.longest_gap = max(self.longest_gap, now - self.last)
                self.last = now


def belongings() -> tuple[int, int, int]:
    gc.collect()
    return (
        len(os.listdir("/proc/self/fd")),
        Path("/proc/self/maps").read_text().count("memfd:tidegate"),
        len(psutil.Process().children(recursive=True)),
    )


async def test_every_request_is_answered_while_workers_are_killed_and_nothing_of_them_is_left(
    handlers: Any, until: Any
) -> None:
    before = belongings()
    async with App(handlers.busy, worker="process", devices=DeviceManager([CPU])) as app:
        load = Load(app)

        def ready() -> list[int]:
            return [worker.pid for worker in app.status()["busy"].workers if worker.state == "ready"]

        callers = [asyncio.ensure_future(load.ask(1000 * n)) for n in range(16)]
        chance = random.Random(0)
        with anyio.fail_after(110):
            kills = 0
            while kills < KILLS:
                await until(ready)
                for pid in chance.choice((ready(), ready()[:1])):
                    os.kill(pid, signal.SIGKILL)
                    kills += 1
                # Some of the time in the middle of work, some of the time as it begins.
                enough = load.right + chance.choice((1, 8, 20))
                await until(partial(load.has_answered, enough))
            await until(lambda: len(ready()) == 2)
            await until(partial(load.has_answered, load.right + 200))
            load.over = True
            await asyncio.gather(*callers)
        assert load.wrong == []
        assert app.alive
        # Twice killed while alone, within one retry: that is rare.
        assert load.died <= 4 * KILLS
        assert load.right > 3 * KILLS
        # Ten times what it takes on a machine with nothing else to do.
        assert load.longest_gap < 20.0
        assert app.status()["busy"].restarts <= kills
        statistics = app.statistics()["busy"]
        assert sum(statistics.outcomes.values()) == load.right + load.died
        restarts, gap = app.status()["busy"].restarts, load.longest_gap
    assert belongings() == before
    print(f"{load.right} right, {load.died} died, {restarts} restarts, longest gap {gap:.2f} s")  # noqa: T201
