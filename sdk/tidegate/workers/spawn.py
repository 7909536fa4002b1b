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

import tidegate_batching

__all__ = ["Child", "follow_parent", "ignore_signals", "kill_all", "spawned"]

_PR_SET_PDEATHSIG = 1

# The signals first, before an import takes its time: whoever stops the service sends them to every process.
_BOOT = (
    "import importlib, signal, sys;"
    "signal.signal(signal.SIGINT, lambda *_: None);"
    "signal.signal(signal.SIGTERM, lambda *_: None);"
    "sys.path.extend(path for path in sys.argv[4:] if path not in sys.path);"
    "importlib.import_module(sys.argv[2]).main(*map(int, sys.argv[3].split(',')))"
)

_living: set[Child] = set()
_spawned = False


class Child:
    """A running process of ours. `ended` is called in the event loop, once, when it has ended; it is reaped by then.

    It runs `main` of `module` with the numbers of the `descriptors` that it inherits.
    """

    def __init__(
        self,
        name: str,
        descriptors: Sequence[int],
        environment: Mapping[str, str],
        ended: Callable[[], None],
        module: str = "tidegate.workers.child",
    ) -> None:
        roots = _roots(module)
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # as multiprocessing does
        self._process = subprocess.Popen(
            # -P: nothing in the working directory may stand in for the standard library.
            [sys.executable, *flags, "-P", "-c", _BOOT, name, module, ",".join(map(str, descriptors)), *roots],
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
        # Nobody else may reap it: until then its number is nobody else's.
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

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
        if self._process.returncode is None:
            # What it started should end with it; what has to tidy up first, as multiprocessing's tracker, ignores this.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGTERM)
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
    """Leave SIGINT and SIGTERM to the service; user code may have set handlers of its own at import.

    Not by SIG_IGN, which the programs that user code starts would inherit: nobody could terminate them.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
        signal.siginterrupt(number, False)


def _roots(module: str) -> list[str]:
    """Where this interpreter found our packages; in a fresh one that may not be on its path."""
    packages = (__name__, tidegate_batching.__name__, module)
    files = [sys.modules[name.partition(".")[0]].__file__ for name in packages]
    return list(dict.fromkeys(str(Path(file).parent.parent) for file in files if file))


def _standard_error() -> int:
    """The real descriptor: `sys.stderr` may be a test's or a notebook's object."""
    return 2
