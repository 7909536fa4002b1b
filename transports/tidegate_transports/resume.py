"""An output file that holds the answers to some of the input's lines already."""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

from tidegate_batching import InvalidInput
from tidegate_transports.jsonl_lines import custom_id_in, custom_id_of, failed_number

__all__ = ["NoCustomId", "Nothing", "Previous", "complete_lines", "reopened"]

_CHUNK = 1024 * 1024


class NoCustomId(ValueError):
    """A line cannot be found again in an output that is in no order."""


class Previous(Protocol):
    """What the lines of the input were answered with before; asked once for every line, in their order.

    failed: of the answers that stay, those that say so. left: answers that no line has asked for yet. A line over the
    limit is None.
    """

    failed: int

    @property
    def left(self) -> int: ...

    def answered(self, number: int, line: bytes | None) -> bytes | None:
        """None for a line that is still to be run; else its answer, b"" if that is in the file and stays there."""

    def written(self, lines: int) -> None:
        """So many answers are in the new file by now."""

    def rest(self) -> Iterator[bytes]:
        """Answers that are not in the new file yet and no line has asked for: they are kept."""


class Nothing:
    """There is no earlier output."""

    failed = left = 0

    def answered(self, number: int, line: bytes | None) -> bytes | None:
        return None

    def written(self, lines: int) -> None:
        pass

    def rest(self) -> Iterator[bytes]:
        return iter(())


class InOrder:
    """The first lines are answered already, however many the file holds."""

    def __init__(self, lines: int, failed: int) -> None:
        self.left = lines
        self.failed = failed

    def answered(self, number: int, line: bytes | None) -> bytes | None:
        if not self.left:
            return None
        self.left -= 1
        return b""

    def written(self, lines: int) -> None:
        pass

    def rest(self) -> Iterator[bytes]:
        return iter(())


class WithRetries:
    """Old answers are copied into a file beside, but for those that failed, whose lines run again.

    The file beside takes the old one's place as soon as it holds as many answers; until then the old one is whole.
    """

    failed = 0

    def __init__(self, path: Path, beside: Path, lines: int) -> None:
        self._path = path
        self._beside = beside
        self._lines = self.left = lines
        self._old = _lines_of(path)
        self._is_beside = True

    def answered(self, number: int, line: bytes | None) -> bytes | None:
        if not self.left:
            return None
        self.left -= 1
        answer = next(self._old)
        return None if failed_number(answer) is not None else answer

    def written(self, lines: int) -> None:
        if self._is_beside and lines >= self._lines:
            self._beside.replace(self._path)
            self._is_beside = False

    def rest(self) -> Iterator[bytes]:
        while self.left:
            self.left -= 1
            yield next(self._old)


class ByCustomId:
    """Answers in any order, known by their `custom_id`, or for lines that had none to read by the line's number."""

    def __init__(self, answers: Counter[bytes], numbers: set[int], failed: int) -> None:
        self._answers = answers
        self._numbers = numbers
        self.failed = failed

    def answered(self, number: int, line: bytes | None) -> bytes | None:
        if number in self._numbers:
            self._numbers.discard(number)
            return b""
        if line is None:
            return None
        try:
            known = custom_id_in(line)
        except InvalidInput:
            return None  # it has never been run, and will say so then
        if known is None:
            raise NoCustomId(f"line {number} has no custom_id: without an order every line needs one to resume")
        key = _key(known)
        if not self._answers.get(key):
            return None
        self._answers[key] -= 1
        return b""

    @property
    def left(self) -> int:
        return self._answers.total() + len(self._numbers)

    def written(self, lines: int) -> None:
        pass

    def rest(self) -> Iterator[bytes]:
        return iter(())


# ---------------------------------------------------------------------- what a file holds


def reopened(path: Path, *, ordered: bool, retry: bool) -> tuple[int, Previous]:
    """A descriptor for what is still to be written, and what the file holds already; no file holds nothing.

    retry: lines that failed are to be run again. Raises NoCustomId, OSError, and ValueError when another process
    writes to the file or it cannot be read back.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no regular file, and what it held cannot be read back: take --resume away")
    fd = _locked(path)
    complete_lines(path)
    if not ordered:
        if retry:
            os.close(fd)
            _keep(path, lambda answer: failed_number(answer) is None)
            fd = _locked(path)
        return fd, by_custom_id(path)
    lines, failed = _counted(path)
    if not (retry and failed):
        return fd, InOrder(lines, failed)
    beside = _beside(path)
    previous = WithRetries(path, beside, lines)
    os.close(fd)
    return os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), previous


def complete_lines(path: Path) -> None:
    """Cut a last line that was not written to its end, as a killed process leaves it."""
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _CHUNK)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        file.truncate(end)


def by_custom_id(path: Path) -> ByCustomId:
    """Which lines' answers a file holds."""
    answers: Counter[bytes] = Counter()
    numbers: set[int] = set()
    failed = 0
    for answer in _lines_of(path):
        known = custom_id_of(answer)
        number = failed_number(answer)
        failed += number is not None
        if known is not None:
            answers[_key(known)] += 1
        elif number is not None:
            numbers.add(number)
        else:
            raise NoCustomId(f"{path} holds answers without a custom_id: without an order they belong to no line")
    return ByCustomId(answers, numbers, failed)


def _locked(path: Path) -> int:
    """The file to append to, which no other run may do as long as this one lives."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise ValueError(f"{path} is being written to by another run: wait for it, or end it") from None
    except OSError:
        pass  # a file system without locks
    return fd


def _counted(path: Path) -> tuple[int, int]:
    """Answers, and those that failed."""
    lines = failed = 0
    for answer in _lines_of(path):
        lines += 1
        failed += failed_number(answer) is not None
    return lines, failed


def _keep(path: Path, wanted: Callable[[bytes], bool]) -> None:
    beside = _beside(path)
    with beside.open("wb") as file:
        file.writelines(answer for answer in _lines_of(path) if wanted(answer))
    beside.replace(path)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.retry")


def _lines_of(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=_CHUNK) as file:
        yield from file


def _key(custom_id: bytes) -> bytes:
    # However long they are: memory is bounded by how many there are.
    return blake2b(custom_id, digest_size=16).digest()
