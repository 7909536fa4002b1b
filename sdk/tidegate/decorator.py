"""`serve`: mark a function or a class as a handler."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Hashable, Sequence
from dataclasses import fields
from typing import Any, Literal, ParamSpec, Protocol, TypeVar, overload

from tidegate.handler import Handler, mark_class
from tidegate.options import Options

__all__ = ["serve"]

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)


class _Serve(Protocol):
    # A class is callable too; it comes first, and back as itself.
    @overload
    def __call__(self, target: C, /) -> C: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, target: Callable[P, R], /) -> Handler[P, R]: ...


@overload
def serve(target: C, /) -> C: ...  # type: ignore[overload-overlap]
@overload
def serve(target: Callable[P, R], /) -> Handler[P, R]: ...
@overload
def serve(
    *,
    name: str | None = None,
    path: str = "",
    max_batch_size: int | None = None,
    batch_timeout: float | Literal["auto"] = "auto",
    batch_dim: int | tuple[int, int] = 0,
    setup: Callable[..., Any] | None = None,
    decode_request: Callable[..., Any] | None = None,
    batch: Callable[..., Any] | None = None,
    unbatch: Callable[..., Any] | None = None,
    encode_response: Callable[..., Any] | None = None,
    teardown: Callable[..., Any] | None = None,
    max_batch_cost: float | None = None,
    cost: Callable[[Any], float] | None = None,
    group_by: Callable[[Any], Hashable] | None = None,
    max_queue_size: int | Literal["auto"] = "auto",
    max_queue_bytes: int | Literal["auto"] = "auto",
    timeout: float | None = 30.0,
    concurrency: int | None = None,
    isolate_errors: bool = True,
    devices: int | str | Sequence[int | str] = "auto",
    workers_per_device: int = 1,
    devices_per_worker: int = 1,
    worker: Literal["process", "thread"] | None = None,
    max_run_time: float | None = None,
    overlap: bool = True,
    forward_headers: Sequence[str] = (),
    warmup: Any = None,
    allow_nan: bool = False,
) -> _Serve: ...


def serve(target: Any = None, /, *, name: str | None = None, **options: Any) -> Any:
    """Turn a function, or a class with a `predict` method, into a handler that callers share in batches.

    name, path: how it is addressed; the function's own name and `/{name}` by default.
    max_batch_size: None gives the function one item at a time; a number, also 1, gives it batches of up to that many.
    batch_timeout: seconds the oldest waiting item may wait for company, from its arrival; 0 never waits; "auto"
        learns when a short wait pays and never exceeds 10 ms.
    batch_dim: the axis on which arrays are stacked and outputs split; `(in, out)` when they differ.
    setup: `setup(device)` runs once in each worker; what it returns is the function's first argument.
    decode_request, encode_response: `decode_request(body)` gives an item, `encode_response(output)` the answer; per
        item, beside the batches.
    batch, unbatch: `batch(items)` builds the function's argument, `unbatch(output)` gives one output per item.
    teardown: `teardown(state)` runs in each worker when it drains.
    max_batch_cost, cost: a second limit on the batch, on the sum of `cost(input)`.
    group_by: only items for which `group_by(input)` gives an equal value share a batch; by default arrays of one
        shape and dtype do.
    max_queue_size, max_queue_bytes: most items, and bytes of items, waiting; beyond either a caller gets `Overloaded`.
        "auto" is max(1024, 4 full batches per worker) and 1 GiB.
    timeout: seconds until a caller gets `DeadlineExceeded`, waiting and running together; None for no limit.
    concurrency: batches in flight per worker; more than 1 needs `async def`. 100 for an unbatched `async def`, else 1.
    isolate_errors: re-run a failed batch in parts to find the culprit; False never runs anything twice.
    devices: "auto" (every accelerator, else the CPU), "cpu", "cuda", how many, or which: [0, 3], "cuda:1", a UUID.
    workers_per_device, devices_per_worker: how many workers on each device, how many devices for each worker.
    worker: "process" (a process of its own; what doors get) or "thread" (of this process; what calls in process get).
    max_run_time: seconds after which a batch counts as a death of its worker; None for no limit.
    overlap: run decode_request and encode_response of neighbouring batches beside the function.
    forward_headers: names of request headers that `current_batch()` may see; never credentials.
    warmup: an example input, or a callable that makes one; workers run it before they count as ready.
    allow_nan: write NaN and infinity in JSON as null instead of failing the request.

    A generator is a stream. Arguments are checked here and now: TypeError and ValueError name the argument, the value
    and the fix. A function becomes a `Handler`, which calls straight through; a class comes back itself.

    Example:
        >>> import numpy as np
        >>> @serve(max_batch_size=32)
        ... def square(x: np.ndarray) -> np.ndarray:
        ...     return x**2
        >>> square(np.array([1, 2, 3]))
        array([1, 4, 9])
    """
    known = [field.name for field in fields(Options)]
    for unknown in options.keys() - set(known):
        near = difflib.get_close_matches(unknown, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
        raise TypeError(f"serve has no argument {unknown!r}; {hint}")

    def record(target: Any) -> Any:
        if not callable(target):
            raise TypeError(f"serve got {target!r}: decorate a function or a class")
        if isinstance(target, Handler):
            raise TypeError(f"serve got {target!r}, which is a handler already: decorate a function once")
        chosen = Options(name=getattr(target, "__name__", "") if name is None else name, **options)
        if inspect.isclass(target):
            mark_class(target, chosen)
            return target
        return Handler(target, chosen)

    return record if target is None else record(target)
