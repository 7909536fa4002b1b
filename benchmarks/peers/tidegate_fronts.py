"""tidegate behind several front ends, for a `tidegate serve` that has no --http-processes: WORKLOAD PORT PROCESSES."""

from __future__ import annotations

import asyncio
import sys

import tidegate_service
import uvloop

from tidegate import App
from tidegate.app import serve_until_stopped
from tidegate_transports.fronts import FrontsTransport

if __name__ == "__main__":
    workload, port, processes = sys.argv[1:]
    app = App(getattr(tidegate_service, workload), http=FrontsTransport(f"127.0.0.1:{port}", int(processes)))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve_until_stopped(app, drain_delay=0))
