"""What a job over JSON lines is told, and what it tells of itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Ending", "LineOptions", "Report"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LineOptions:
    """How lines are read, run and written.

    handler: the one to run, where an app has several. ordered: answers come in the order of the input. input_field,
    output_field: the item is a field of an object, the output is added as one. as_they_come: a stream's chunks are
    written one by one instead of as a list. max_line: bytes of a line. max_errors: failed lines after which the job
    stops. timeout: seconds per item; None for no deadline. gather: hold items back until a batch is full or nothing
    came for 50 ms; False leaves that to the handler's batch_timeout. last: nobody else uses the app, so that what is
    waiting at the end of the input need not wait for company.
    """

    handler: str | None = None
    ordered: bool = True
    input_field: str | None = None
    output_field: str | None = None
    as_they_come: bool = False
    max_line: int = 32 * 1024 * 1024
    max_errors: int | None = None
    timeout: float | None = None
    gather: bool = True
    last: bool = False


class Ending(Enum):
    """Why a job is over."""

    DONE = "every line is answered"
    STOPPED = "it was told to stop"
    MAX_ERRORS = "too many lines failed"
    CLOSED = "nobody reads the output any more"
    BROKEN = "it could not go on"


@dataclass(frozen=True, slots=True)
class Report:
    """How far a job is.

    answered, failed: lines answered in this run, and those of them that failed. skipped, failed_before: lines that an
    earlier run has answered, and those of them that failed. nbytes: read so far. last_line: the number of the last
    line taken in. left_over: answers of the earlier run for which the input had no line. ending, error: why it is
    over, if it is.
    """

    answered: int = 0
    failed: int = 0
    skipped: int = 0
    failed_before: int = 0
    nbytes: int = 0
    last_line: int = 0
    left_over: int = 0
    ending: Ending | None = None
    error: BaseException | None = None
