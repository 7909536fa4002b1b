"""Standard input and output kept for data, whatever a handler's module reads or prints."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["input_from", "is_same_file", "output_to", "set_aside"]


def set_aside() -> tuple[int | None, int | None]:
    """Descriptors of standard input and output, None for one that is closed.

    From now on who reads standard input finds it empty, and what is printed goes to standard error.
    """
    source, target = _duplicate(0), _duplicate(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2 if _is_open(2) else nothing, 1)
    if nothing > 2:
        os.close(nothing)
    return source, target


def input_from(path: Path) -> int:
    """A file to read; raises OSError, also for a folder."""
    fd = os.open(path, os.O_RDONLY)
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        raise IsADirectoryError(21, "is a folder", str(path))
    return fd


def output_to(path: Path) -> int:
    """A file to write, empty from now on."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)


def is_same_file(fd: int, path: Path) -> bool:
    """Whether a descriptor is of this very file on disk: what reads and writes it at once destroys it."""
    status = os.fstat(fd)
    return stat.S_ISREG(status.st_mode) and path.exists() and os.path.samestat(status, path.stat())


def _duplicate(fd: int) -> int | None:
    if not _is_open(fd):
        return None
    # Above the first three: one of those may be closed, and its number would be taken.
    copies = [os.dup(fd)]
    while copies[-1] <= 2:
        copies.append(os.dup(fd))
    for low in copies[:-1]:
        os.close(low)
    return copies[-1]


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
