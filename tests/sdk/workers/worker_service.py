"""A service without doors. Arguments: a handler of `worker_handlers`, how many workers, seconds to drain, and what to
ask it, as JSON.

Says on standard output, a JSON line each: the workers' processes when it is open, and each answer.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from tidegate import App, SetupFailed
from tidegate.app import serve_until_stopped
from tidegate.devices import DeviceManager
from tidegate.discovery import CPU
from tidegate.target import find_handlers
from tidegate.workers import replica


def say(*words: Any) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


# Nobody here has the time to wait for better days.
replica.MAX_FAILED_STARTS = 2
replica.restart_delay = lambda failures: 0.0


async def main(name: str, workers: str, drain_timeout: str, orders: str) -> int:
    file = Path(__file__).with_name("worker_handlers.py")
    (handler,) = find_handlers(f"{file}:{name}")
    handler = handler.override(workers_per_device=int(workers))
    app = App(handler, worker="process", devices=DeviceManager([CPU]), drain_timeout=float(drain_timeout))
    calls: list[asyncio.Future[None]] = []

    async def ask(order: Any) -> None:
        try:
            say("answer", await app.call(name, order))
        except Exception as error:  # noqa: BLE001 - told
            say("error", type(error).__name__)

    def opened() -> None:
        say("open", [worker.pid for worker in app.status()[name].workers])
        calls.extend(asyncio.ensure_future(ask(order)) for order in json.loads(orders))

    try:
        await serve_until_stopped(app, opened, drain_delay=0.0)
    except SetupFailed as failure:
        say("failed", str(failure))
        return 3
    await asyncio.gather(*calls)
    return 0


if __name__ == "__main__":
    # Not in debug mode, which tells of everything that is slow.
    sys.exit(asyncio.run(main(*sys.argv[1:]), debug=False))
