"""`serve`: mark a function as a handler."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar, overload

from tidegate.handler import Handler, Options

__all__ = ["serve"]

P = ParamSpec("P")
R = TypeVar("R")


@overload
def serve(function: Callable[P, R], /) -> Handler[P, R]: ...
@overload
def serve(
    *,
    name: str | None = None,
    max_batch_size: int | None = None,
    batch_timeout: float | Literal["auto"] = "auto",
    batch_dim: int | tuple[int, int] = 0,
    batch: Callable[..., Any] | None = None,
    unbatch: Callable[..., Any] | None = None,
    setup: Callable[[str], Any] | None = None,
    max_queue_size: int | Literal["auto"] = "auto",
) -> Callable[[Callable[P, R]], Handler[P, R]]: ...


def serve(function: Callable[..., Any] | None = None, /, *, name: str | None = None, **options: Any) -> Any:
    """Turn a function into a handler that callers share in batches.

    name: how it is addressed, `/{name}` over HTTP; the function's own name by default.
    max_batch_size: None gives the function one item at a time; a number, also 1, gives it batches of up to that many.
    batch_timeout: seconds the oldest waiting item may wait for company, from its arrival; 0 never waits; "auto"
        decides by itself and never exceeds 10 ms.
    batch_dim: the axis on which arrays are stacked and outputs split; `(in, out)` when they differ.
    batch, unbatch: `batch(items)` builds the function's argument, `unbatch(output)` gives one output per item.
    setup: `setup(device)` runs once in each worker; what it returns is the function's first argument.
    max_queue_size: most items waiting; one more is refused with `Overloaded`. "auto" is max(1024, 4 full batches
        per worker).

    Arguments are checked here and now: TypeError and ValueError name the argument, the value and the fix.

    Example:
        >>> import numpy as np
        >>> @serve(max_batch_size=32)
        ... def square(x: np.ndarray) -> np.ndarray:
        ...     return x**2
        >>> square(np.array([1, 2, 3]))
        array([1, 4, 9])
    """

    for unknown in options.keys() - Options.__dataclass_fields__.keys():
        near = difflib.get_close_matches(unknown, Options.__dataclass_fields__, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(Options.__dataclass_fields__)}"
        raise TypeError(f"serve() has no argument {unknown!r}{hint}")

    def record(function: Callable[P, R]) -> Handler[P, R]:
        if not callable(function):
            raise TypeError(f"serve got {function!r}: decorate a function")
        return Handler(function, Options(name=getattr(function, "__name__", "") if name is None else name, **options))

    return record if function is None else record(function)
