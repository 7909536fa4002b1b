"""Everything that can go wrong with a request, as one tree.

TidegateError
├── InvalidInput                422  the value is not what the handler takes
│   ├── MalformedBody           400  (tidegate) the body cannot be parsed
│   └── TooCostly               422  one item costs more than a whole batch may
├── UnsupportedMediaType        415  (tidegate) the handler does not read such bodies
├── NotAcceptable               406  (tidegate) the output cannot be written as what the client accepts
├── EncodeError                 500  (tidegate) the output cannot be written as the client asked
├── HTTPError               as given  the handler chose the status and the text
├── Refused                          the request never entered the queue, or left it unserved
│   ├── Overloaded              429  the queue is full
│   ├── Unavailable             503  no worker is alive
│   └── Closed                  503  the service is draining
├── SlowReader                  408  a stream's reader fell behind by more than is kept for it
├── Disconnected            502  (tidegate) no whole answer came over the connection
├── DeadlineExceeded            504  no answer in time
├── Cancelled                   499  the caller went away
├── HandlerError                500  the handler raised something of its own
├── BatchSizeMismatch           500  the handler returned more or fewer outputs than inputs
├── OutOfMemory                 500  the batch, or one lone item, did not fit
└── WorkerDied                  500  the worker's process ended under the item
    └── RunTimeout              500  the item's batch ran for longer than max_run_time

`code` is a stable kebab-case name for programs; `status` is a hint in HTTP's numbers for the transports: nothing in
this package speaks HTTP. `detail` is the text that a caller may see; it never holds a traceback.
"""

from __future__ import annotations

import traceback
from typing import Any, ClassVar

__all__ = [
    "BatchSizeMismatch",
    "Cancelled",
    "Closed",
    "DeadlineExceeded",
    "HTTPError",
    "HandlerError",
    "InvalidInput",
    "OutOfMemory",
    "Overloaded",
    "Refused",
    "RunTimeout",
    "SlowReader",
    "TidegateError",
    "TooCostly",
    "Unavailable",
    "WorkerDied",
]


class TidegateError(Exception):
    """Root of the tree: catch this to catch everything that tidegate raises for a request.

    Example:
        >>> try:
        ...     raise HTTPError(404, "no such speaker")
        ... except TidegateError as error:
        ...     error.code, error.status, error.detail
        ('handler-refused', 404, 'no such speaker')
    """

    code: ClassVar[str] = "internal-error"
    status: int = 500

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail)

    @property
    def detail(self) -> str:
        """What a caller may read."""
        first_line = (type(self).__doc__ or "").strip().partition("\n")[0]
        return str(self.args[0]) if self.args and self.args[0] else first_line.rstrip(".")

    def __str__(self) -> str:
        return self.detail


class InvalidInput(TidegateError):
    """The input is not what the handler takes.

    Example:
        >>> InvalidInput("`$.text`: expected `str`, got `int`").status
        422
    """

    code = "invalid-input"
    status = 422


class TooCostly(InvalidInput):
    """One item alone costs more than a whole batch may.

    Example:
        >>> TooCostly(5000, 4096).detail
        'this input costs 5000, and a whole batch may cost 4096 (max_batch_cost)'
    """

    code = "too-costly"

    def __init__(self, cost: float, limit: float) -> None:
        super().__init__(f"this input costs {cost:g}, and a whole batch may cost {limit:g} (max_batch_cost)")
        self.cost = cost
        self.limit = limit


class HTTPError(TidegateError):
    """The handler's own verdict: `raise HTTPError(404, "no such speaker")`.

    Example:
        >>> error = HTTPError(404, "no such speaker")
        >>> error.status, error.detail
        (404, 'no such speaker')
    """

    code = "handler-refused"

    def __init__(self, status: int, detail: str = "") -> None:
        if not 400 <= status <= 599:
            raise ValueError(f"status={status!r}: an error has a status from 400 to 599")
        super().__init__(detail)
        self.status = status


class Refused(TidegateError):
    """The service cannot take the request now; `retry_after` (seconds) says when to try again.

    Example:
        >>> Overloaded(retry_after=2.5).retry_after, isinstance(Overloaded(), Refused)
        (2.5, True)
    """

    code = "refused"
    status = 503

    def __init__(self, detail: str = "", *, retry_after: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class Overloaded(Refused):
    """The queue is full.

    Example:
        >>> Overloaded().status, str(Overloaded())
        (429, 'The queue is full')
    """

    code = "overloaded"
    status = 429


class Unavailable(Refused):
    """No worker is alive.

    Example:
        >>> Unavailable().status, str(Unavailable())
        (503, 'No worker is alive')
    """

    code = "unavailable"


class Closed(Refused):
    """The service is shutting down.

    Example:
        >>> Closed().status, str(Closed())
        (503, 'The service is shutting down')
    """

    code = "closed"


class SlowReader(TidegateError):
    """The stream was not read fast enough.

    Example:
        >>> SlowReader().status, SlowReader().code
        (408, 'slow-reader')
    """

    code = "slow-reader"
    status = 408


class DeadlineExceeded(TidegateError):
    """There was no answer within the request's timeout.

    Example:
        >>> DeadlineExceeded().status, DeadlineExceeded().code
        (504, 'deadline-exceeded')
    """

    code = "deadline-exceeded"
    status = 504


class Cancelled(TidegateError):
    """The caller went away before there was an answer.

    Example:
        >>> Cancelled().status, Cancelled().code
        (499, 'cancelled')
    """

    code = "cancelled"
    status = 499


class HandlerError(TidegateError):
    """The handler raised an exception of its own.

    Callers on the wire read "internal error" only; `type_name`, `text` and `traceback` are for logs and for callers in
    the same process, where `__cause__` is the original as long as the worker is a thread.

    Example:
        >>> error = HandlerError.wrap(ZeroDivisionError("division by zero"))
        >>> error.type_name, error.text, type(error.__cause__)
        ('ZeroDivisionError', 'division by zero', <class 'ZeroDivisionError'>)
    """

    code = "handler-error"

    def __init__(self, type_name: str, text: str, traceback: str = "") -> None:
        super().__init__(f"{type_name}: {text}" if text else type_name)
        self.type_name = type_name
        self.text = text
        self.traceback = traceback

    @classmethod
    def wrap(cls, error: BaseException) -> HandlerError:
        """Describe a foreign exception and keep it as the cause."""
        kind = type(error)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        wrapped = cls(name, _text(error), _traceback(error))
        wrapped.__cause__ = error
        return wrapped


class BatchSizeMismatch(TidegateError):
    """The handler returned more or fewer outputs than it got inputs.

    Example:
        >>> BatchSizeMismatch(4, 3).detail
        "the handler got 4 items and returned 3 outputs: return one per item, in the items' order"
    """

    code = "batch-size-mismatch"

    def __init__(self, expected: int, got: int) -> None:
        super().__init__(
            f"the handler got {expected} items and returned {got} outputs: return one per item, in the items' order"
        )
        self.expected = expected
        self.got = got


class OutOfMemory(TidegateError):
    """The item did not fit into the device's memory.

    Example:
        >>> OutOfMemory().status, OutOfMemory().code
        (500, 'out-of-memory')
    """

    code = "out-of-memory"


class WorkerDied(TidegateError):
    """The worker's process ended while it ran this item.

    Example:
        >>> WorkerDied().status, WorkerDied().code
        (500, 'worker-died')
    """

    code = "worker-died"


class RunTimeout(WorkerDied):
    """The item's batch ran for longer than max_run_time.

    Example:
        >>> RunTimeout(2.5).code, str(RunTimeout(2.5))
        ('run-timeout', 'the batch ran for longer than max_run_time=2.5 s')
    """

    code = "run-timeout"

    def __init__(self, limit: float) -> None:
        super().__init__(f"the batch ran for longer than max_run_time={limit:g} s")
        self.limit = limit


def alike(one: BaseException, other: BaseException) -> bool:
    """Whether two failures are of one kind: same class, and for a wrapped foreign exception the same class inside."""
    if isinstance(one, HandlerError) and isinstance(other, HandlerError):
        return one.type_name == other.type_name
    return type(one) is type(other)


def from_foreign(error: BaseException) -> TidegateError:
    """Translate whatever a handler raised into the tree, once, at the border."""
    if isinstance(error, TidegateError):
        return error
    if isinstance(error, MemoryError) or _is_device_memory(error):
        return OutOfMemory(_text(error) or "out of memory")
    return _http_error(error) or HandlerError.wrap(error)


# What follows asks an exception of the user's about itself. Its __str__, __getattr__ or notes may raise anything, and
# an answer is owed all the same.


def _http_error(error: BaseException) -> HTTPError | None:
    """FastAPI's, Starlette's and LitServe's HTTPException keep their meaning without being imported here."""
    try:
        status: Any = getattr(error, "status_code", None)
        detail: Any = getattr(error, "detail", None)
        if not isinstance(status, int) or isinstance(status, bool) or not 400 <= status <= 599 or detail is None:
            return None
        translated = HTTPError(status, str(detail))
    except Exception:  # noqa: BLE001 - see above
        return None
    translated.__cause__ = error
    return translated


def _is_device_memory(error: BaseException) -> bool:
    """Whether a GPU library ran out of memory: torch by its class, others by what they say."""
    kind = type(error)
    if kind.__name__ == "OutOfMemoryError" and kind.__module__.partition(".")[0] in ("torch", "cupy"):
        return True
    if not isinstance(error, RuntimeError):
        return False
    text = _text(error).lower()
    signs = (
        "cuda out of memory",
        "hip out of memory",
        "cudaerrormemoryallocation",
        "defaultcpuallocator: can't allocate memory",
        "resource_exhausted: out of memory",
    )
    return any(sign in text for sign in signs)


_POISON = (
    "device-side assert",
    "illegal memory access",
    "illegal instruction was encountered",
    "unspecified launch failure",
    "misaligned address",
    "invalid program counter",
    "hardware stack error",
    "uncorrectable ecc error",
    "launch timed out and was terminated",
    "cudaerrorassert",
    "cudaerrorillegaladdress",
    "cudaerrorlaunchfailure",
    "cuda_error_assert",
    "cuda_error_illegal_address",
    "cuda_error_launch_failed",
    "memory access fault by gpu",
)


def is_poison(error: BaseException) -> bool:
    """Whether it leaves a process's GPU context unusable, so that nothing but a new process helps.

    Source: the error codes of which CUDA's runtime reference says that "the process must be terminated and relaunched".
    """
    known: BaseException | None = error
    for _ in range(4):  # a library may have wrapped it
        if known is None:
            return False
        text = _text(known).lower()
        if isinstance(known, (RuntimeError, HandlerError)) and any(sign in text for sign in _POISON):
            return True
        known = known.__cause__
    return False


def _text(error: BaseException) -> str:
    """What an exception says of itself, even if saying it fails."""
    try:
        return str(error)
    except Exception as failure:  # noqa: BLE001 - see above
        return f"<no text: its __str__ raised {type(failure).__name__}>"


def _traceback(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception:  # noqa: BLE001 - see above
        return "".join(traceback.format_tb(error.__traceback__))
