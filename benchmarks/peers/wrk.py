"""wrk, if it is installed, else the load generator beside this file; both give the same figures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import load
from running import Running

__all__ = ["GENERATOR", "Measured", "ceiling", "measure"]

WRK = None if os.environ.get("NO_WRK") else shutil.which("wrk")
GENERATOR = "wrk" if WRK else "benchmarks/peers/load.py"

_SCRIPT = """
local file = io.open(os.getenv("BODY"), "rb")
wrk.method = os.getenv("METHOD")
wrk.body = file:read("*a")
wrk.headers["Content-Type"] = os.getenv("CONTENT_TYPE")
file:close()
done = function(summary, latency)
  local e = summary.errors
  io.write(string.format('\\n{"requests":%d,"us":%d,"bad":%d,"p50":%f,"p99":%f}\\n', summary.requests,
    summary.duration, e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(50), latency:percentile(99)))
end
"""


class Measured(NamedTuple):
    """One cell of one round: seconds, but rate per second; cores: CPU seconds per second."""

    rate: float
    p50: float
    p99: float
    errors: int
    cpu_per_1000: float
    service_cores: float
    load_cores: float


def measure(running: Running, connections: int, seconds: int) -> Measured:
    """Closed loop with that many connections."""
    body = running.body(0)
    before = running.cpu_seconds()
    begun = time.perf_counter()
    asked, errors, took, p50, p99, load_cpu = _drive(
        running.port, running.path, body.content, body.content_type, connections, seconds
    )
    spent = running.cpu_seconds() - before
    elapsed = time.perf_counter() - begun
    good = max(asked - errors, 0)
    return Measured(
        good / took,
        p50,
        p99,
        errors,
        1000 * spent / good if good else float("nan"),
        spent / elapsed,
        load_cpu / elapsed,
    )


def ceiling(port: int, path: str, connections: int = 64, seconds: int = 2) -> tuple[float, float]:
    """Requests per second at an address that does next to nothing, and the generator's own cores meanwhile."""
    asked, errors, took, _, _, cpu = _drive(port, path, b"", "text/plain", connections, seconds, method="GET")
    if errors:
        raise RuntimeError(f"{errors} errors at {path}")
    return asked / took, cpu / took


def _drive(
    port: int, path: str, body: bytes, content_type: str, connections: int, seconds: int, method: str = "POST"
) -> tuple[int, int, float, float, float, float]:
    if WRK is None:
        return _drive_own(port, path, body, content_type, connections, seconds, method)
    with tempfile.TemporaryDirectory() as folder:
        script, content = Path(folder, "ask.lua"), Path(folder, "body")
        script.write_text(_SCRIPT)
        content.write_bytes(body)
        command = [WRK, "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "--latency", "-s", str(script)]
        variables = {**os.environ, "BODY": str(content), "CONTENT_TYPE": content_type, "METHOD": method}
        process = subprocess.Popen([*command, f"http://127.0.0.1:{port}{path}"], env=variables, stdout=subprocess.PIPE)
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"wrk ended with {process.returncode}: {printed.decode()}")
    found = json.loads(printed.decode().strip().splitlines()[-1])
    cpu = usage.ru_utime + usage.ru_stime
    return found["requests"], found["bad"], found["us"] / 1e6, found["p50"] / 1e6, found["p99"] / 1e6, cpu


def _drive_own(
    port: int, path: str, body: bytes, content_type: str, connections: int, seconds: int, method: str
) -> tuple[int, int, float, float, float, float]:
    asked = load.question("", path, body, content_type)
    asked = asked._replace(request=asked.request.replace(b"POST", method.encode(), 1))
    tally = load.run(load.Plan(port, [asked], connections, float(seconds)))
    count, right = tally.count(), tally.count("right")
    return count, count - right, tally.seconds, tally.p(0.5), tally.p(0.99), tally.load_cpu
