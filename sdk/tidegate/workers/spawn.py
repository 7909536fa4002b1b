"""Start a worker's process, and make sure that it ends."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import tidegate
import tidegate_batching

__all__ = ["Child", "follow_parent", "ignore_signals", "kill_all", "spawned"]

_PR_SET_PDEATHSIG = 1

# The signals first, before an import takes its time: whoever stops the service sends them to every process.
_BOOT = (
    "import signal, sys;"
    "signal.signal(signal.SIGINT, signal.SIG_IGN);"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "sys.path.extend(path for path in sys.argv[3:] if path not in sys.path);"
    "from tidegate.workers.child import main;"
    "main(*map(int, sys.argv[2].split(',')))"
)

_living: set[Child] = set()
_spawned = False


class Child:
    """A running worker process. `ended` is called in the event loop, once, when it has ended; it is reaped by then."""

    def __init__(
        self, name: str, descriptors: Sequence[int], environment: Mapping[str, str], ended: Callable[[], None]
    ) -> None:
        # What this interpreter found tidegate by may be gone in a fresh one.
        roots = [str(Path(package.__file__ or "").parent.parent) for package in (tidegate, tidegate_batching)]
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # as multiprocessing does
        self._process = subprocess.Popen(
            [sys.executable, *flags, "-c", _BOOT, name, ",".join(map(str, descriptors)), *dict.fromkeys(roots)],
            env={**os.environ, **environment},
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            # Standard output may be a pipe that carries results.
            stdout=_standard_error(),
            stderr=_standard_error(),
            # A terminal's Ctrl-C goes to the foreground group: the service decides what it means for its workers.
            process_group=0,
        )
        self.pid = self._process.pid
        self._ended = ended
        self._watching: int | None = None
        _living.add(self)
        self._watch()

    @property
    def returncode(self) -> int | None:
        """As `subprocess.Popen` has it: negative for a signal, None while it runs."""
        return self._process.returncode

    def describe_end(self) -> str:
        """How the process ended, for people."""
        code = self._process.returncode
        if code is None:
            return "still runs"
        if code >= 0:
            return f"exited with status {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = " (by the kernel, if memory ran out)" if name == "SIGKILL" else ""
        return f"was ended by {name}{hint}"

    def kill(self) -> None:
        """End it now; `ended` follows."""
        with suppress(ProcessLookupError):
            self._process.kill()

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            self._watching = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # not Linux, or an old one
            loop.run_in_executor(None, self._wait, loop)
            return
        loop.add_reader(self._watching, self._reap)

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self._process.wait()
        with suppress(RuntimeError):  # the loop has gone
            loop.call_soon_threadsafe(self._reap)

    def _reap(self) -> None:
        if self._watching is not None:
            asyncio.get_running_loop().remove_reader(self._watching)
            os.close(self._watching)
            self._watching = None
        self._process.wait()
        _living.discard(self)
        self._ended()


def kill_all() -> None:
    """End every worker of this process now; may be called from a signal handler."""
    for child in list(_living):
        child.kill()


def spawned() -> bool:
    """Whether this is a worker's process."""
    return _spawned


def follow_parent() -> None:
    """Ask the kernel to end this process with its parent. The control socket says so too, unless the GIL is held."""
    global _spawned
    _spawned = True
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def ignore_signals() -> None:
    """Leave SIGINT and SIGTERM to the service; user code may have set handlers of its own at import."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _standard_error() -> int:
    """The real descriptor: `sys.stderr` may be a test's or a notebook's object."""
    return 2
