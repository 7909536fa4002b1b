"""Who is compared: how each is started, where it answers and how its answers read."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from environments import BENCH, python_of
from workloads import Body, Workload, as_form

__all__ = ["CONTENDERS", "Contender", "Settings"]

HERE = Path(__file__).resolve().parent
TIDEGATE = str(BENCH / "tidegate" / "bin" / "tidegate")


class Settings(NamedTuple):
    """What the faults are measured with: the same for all. Seconds."""

    max_batch: int
    window: float
    timeout: float


class Contender(NamedTuple):
    """One way to serve the workloads. `command(workload, port)` starts it there."""

    name: str
    environment: str
    command: Callable[[str, int], list[str]]
    path: Callable[[str], str]
    batches: bool
    form: bool = False
    """Bytes must come as a file in a form."""
    wrapped: bool = False
    """Inputs and outputs are fields of an object."""
    variables: tuple[tuple[str, str], ...] = ()
    only: tuple[str, ...] = ()
    """The workloads that it is there for; all if empty."""

    def takes(self, workload: Workload) -> bool:
        """Whether it is asked this at all."""
        if self.only and workload.name not in self.only:
            return False
        return self.batches or not workload.batched_only

    def with_settings(self, settings: Settings, **variables: str) -> Contender:
        """The same with these instead of its own."""
        chosen = {"MAX_BATCH": settings.max_batch, "WINDOW": settings.window, "TIMEOUT": settings.timeout}
        told = {**dict(self.variables), **{name: str(value) for name, value in chosen.items()}, **variables}
        command = self.command
        if self.environment == "tidegate":
            flags = ["--max-batch-size", f"{settings.max_batch}", "--batch-timeout", f"{settings.window}"]
            flags += ["--timeout", f"{settings.timeout}"]
            command = lambda workload, port: [*self.command(workload, port), *flags]
        return self._replace(variables=tuple(told.items()), command=command)

    def request_body(self, workload: Workload, value: Any) -> Body:
        """The value as this one wants to be asked."""
        body = workload.write(value)
        if self.form and not body.content_type.endswith("json"):
            return as_form(body)
        if self.wrapped and workload.name != "image64" and body.content_type.endswith("json"):
            return body._replace(content=b'{"input": ' + body.content + b"}")
        return body

    def answer_of(self, document: Any) -> Any:
        """What it says, out of what it wraps that in."""
        return document["output"] if self.wrapped else document


@functools.cache
def _has_fronts() -> bool:
    shown = subprocess.run(
        [TIDEGATE, "serve", "--help"], capture_output=True, check=True, env={**os.environ, "COLUMNS": "200"}
    )
    return b"--http-processes" in shown.stdout


def _tidegate(server: str = "aiohttp", worker: str = "process") -> Callable[[str, int], list[str]]:
    def command(workload: str, port: int) -> list[str]:
        target = f"{HERE / 'tidegate_service.py'}:{workload}"
        flags = ["--server", server, "--worker", worker, "--drain-delay", "0"]
        return [TIDEGATE, "serve", target, "--http", f"127.0.0.1:{port}", *flags]

    return command


def _fronts(processes: int) -> Callable[[str, int], list[str]]:
    def command(workload: str, port: int) -> list[str]:
        if _has_fronts():
            return [*_tidegate()(workload, port), "--http-processes", str(processes)]
        return [python_of("tidegate"), str(HERE / "tidegate_fronts.py"), workload, str(port), str(processes)]

    return command


def _script(environment: str, name: str, *after: str) -> Callable[[str, int], list[str]]:
    def command(workload: str, port: int) -> list[str]:
        return [python_of(environment), str(HERE / name), str(port), *after]

    return command


def _mosec(workload: str, port: int) -> list[str]:
    script = str(HERE / "mosec_service.py")
    flags = ["--address", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    return [python_of("mosec"), script, *flags]


def _own_path(workload: str) -> str:
    return f"/{workload}"


def _at(path: str) -> Callable[[str], str]:
    return lambda workload: path


_ALL = (
    Contender("tidegate aiohttp", "tidegate", _tidegate(), _own_path, True),
    Contender("tidegate uvicorn", "tidegate", _tidegate("uvicorn"), _own_path, True),
    Contender("tidegate granian", "tidegate", _tidegate("granian"), _own_path, True),
    Contender(
        "tidegate aiohttp, thread", "tidegate", _tidegate(worker="thread"), _own_path, True, only=("echo", "embed")
    ),
    Contender("tidegate, 1 front end", "tidegate", _fronts(1), _own_path, True, only=("echo", "embed", "image64")),
    Contender("tidegate, 2 front ends", "tidegate", _fronts(2), _own_path, True),
    Contender("Mosec", "mosec", _mosec, _at("/inference"), True),
    Contender(
        "Mosec, 1 ms window",
        "mosec",
        _mosec,
        _at("/inference"),
        True,
        variables=(("WINDOW", "0.001"),),
        only=("echo", "sleep5", "torch"),
    ),
    Contender(
        "LitServe",
        "litserve",
        _script("litserve", "litserve_service.py"),
        _at("/predict"),
        True,
        form=True,
        wrapped=True,
    ),
    Contender("bare aiohttp", "bare", _script("bare", "bare_aiohttp.py"), _at("/infer"), False),
    Contender("bare FastAPI", "bare", _script("bare", "bare_fastapi.py"), _at("/infer"), False),
    Contender("bare granian", "bare", _script("bare", "bare_granian.py"), _at("/infer"), False),
)
CONTENDERS = {one.name: one for one in _ALL}
