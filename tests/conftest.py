import os
import subprocess
import sysconfig
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from hypothesis import settings

# A slow machine is no failure, and the examples of a change's own run must not depend on the day: exploring is for
# whoever works on the code.
settings.register_profile("tidegate", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("tidegate")

Serving = Callable[..., AbstractContextManager[tuple["subprocess.Popen[str]", list[str]]]]


@pytest.fixture(scope="session")
def tidegate() -> str:
    """The installed command."""
    return str(Path(sysconfig.get_path("scripts")) / "tidegate")


@pytest.fixture(scope="session")
def serving(tidegate: str) -> Serving:
    """`with serving(target, …) as (process, printed):` runs `tidegate serve` on a free port until the block is left."""

    @contextmanager
    def serving(
        *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Iterator[tuple["subprocess.Popen[str]", list[str]]]:
        process = subprocess.Popen(
            [tidegate, "serve", *arguments, "--http", "127.0.0.1:0"],
            env={**os.environ, **(env or {})},
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        # Whatever goes wrong, no test waits for ever.
        watchdog = threading.Timer(120, process.kill)
        watchdog.start()
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            printed: list[str] = []
            # The line to paste comes last, when the door is open.
            while not any(line.startswith("curl ") for line in printed):
                line = process.stdout.readline()
                assert line, process.stderr.read()
                printed.append(line.rstrip("\n"))
            yield process, printed
        finally:
            process.kill()
            process.communicate()
            watchdog.cancel()

    return serving
