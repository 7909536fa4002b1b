"""tidegate: turn a Python function into a model service that batches on its own."""

from tidegate.app import App, run
from tidegate.array import Array
from tidegate.client import Client
from tidegate.clients.carrier import Disconnected
from tidegate.codec import EncodeError, MalformedBody, NotAcceptable, UnsupportedMediaType
from tidegate.context import current_batch
from tidegate.decorator import serve
from tidegate.handler import Handler
from tidegate.local import LocalClient
from tidegate.padding import pad, unpad
from tidegate.sentinels import END, SKIP
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
    RunTimeout,
    SlowReader,
    Statistics,
    TidegateError,
    TooCostly,
    Unavailable,
    WorkerDied,
)

__all__ = [
    "END",
    "SKIP",
    "App",
    "Array",
    "BatchSizeMismatch",
    "Cancelled",
    "Client",
    "Closed",
    "DeadlineExceeded",
    "Disconnected",
    "EncodeError",
    "HTTPError",
    "Handler",
    "HandlerError",
    "InvalidInput",
    "LocalClient",
    "MalformedBody",
    "NotAcceptable",
    "OutOfMemory",
    "Overloaded",
    "Refused",
    "RunTimeout",
    "SetupFailed",
    "SlowReader",
    "Statistics",
    "TidegateError",
    "TooCostly",
    "Unavailable",
    "UnsupportedMediaType",
    "WorkerDied",
    "__version__",
    "current_batch",
    "pad",
    "run",
    "serve",
    "unpad",
]
