"""The models on tidegate behind several doors at once: arguments are `PROCESSES:PORT`, 0 processes for none of their own."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import tidegate_models
import uvloop

from tidegate import App
from tidegate.app import serve_until_stopped
from tidegate.transport import load_transport
from tidegate_transports.fronts import FrontsTransport


def main() -> None:
    """Serve until stopped."""
    transport, *wanted = sys.argv[1:]
    doors: dict[str, Any] = {}
    for one in wanted:
        processes, port = map(int, one.split(":"))
        address = f"127.0.0.1:{port}"
        if processes:
            doors[f"fronts_{processes}"] = FrontsTransport(address, processes, transport)
        else:
            make: Any = load_transport(transport)
            doors["inside"] = make(address)
    app = App(*tidegate_models.HANDLERS, **doors)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve_until_stopped(app, lambda: print("open", flush=True), drain_delay=0))


if __name__ == "__main__":
    main()
