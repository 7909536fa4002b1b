"""tidegate's batching core: many callers, one batch. Knows the standard library and anyio only."""

from tidegate_batching.batcher import Batch, Batcher
from tidegate_batching.errors import (
    BatchSizeMismatch,
    Cancelled,
    Closed,
    DeadlineExceeded,
    HandlerError,
    HTTPError,
    InvalidInput,
    OutOfMemory,
    Overloaded,
    Refused,
    RunTimeout,
    SlowReader,
    TidegateError,
    TooCostly,
    Unavailable,
    WorkerDied,
)
from tidegate_batching.item import Action, Dispatch, Item, Outcome, Release, Settle, State
from tidegate_batching.policy import Policy
from tidegate_batching.scheduler import Scheduler
from tidegate_batching.statistics import Statistics
from tidegate_batching.stream import Stream

__all__ = [
    "Action",
    "Batch",
    "BatchSizeMismatch",
    "Batcher",
    "Cancelled",
    "Closed",
    "DeadlineExceeded",
    "Dispatch",
    "HTTPError",
    "HandlerError",
    "InvalidInput",
    "Item",
    "OutOfMemory",
    "Outcome",
    "Overloaded",
    "Policy",
    "Refused",
    "Release",
    "RunTimeout",
    "Scheduler",
    "Settle",
    "SlowReader",
    "State",
    "Statistics",
    "Stream",
    "TidegateError",
    "TooCostly",
    "Unavailable",
    "WorkerDied",
]
