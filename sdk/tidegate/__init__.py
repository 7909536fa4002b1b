"""tidegate: turn a Python function into a model service that batches on its own."""

from tidegate.app import App, run
from tidegate.array import Array
from tidegate.codec import EncodeError, MalformedBody
from tidegate.decorator import serve
from tidegate.handler import Handler
from tidegate.service import SetupFailed
from tidegate.version import __version__
from tidegate_batching import (
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
    Statistics,
    TidegateError,
    TooCostly,
    Unavailable,
    WorkerDied,
)

__all__ = [
    "App",
    "Array",
    "BatchSizeMismatch",
    "Cancelled",
    "Closed",
    "DeadlineExceeded",
    "EncodeError",
    "HTTPError",
    "Handler",
    "HandlerError",
    "InvalidInput",
    "MalformedBody",
    "OutOfMemory",
    "Overloaded",
    "Refused",
    "SetupFailed",
    "Statistics",
    "TidegateError",
    "TooCostly",
    "Unavailable",
    "WorkerDied",
    "__version__",
    "run",
    "serve",
]
