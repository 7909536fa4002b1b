"""Test a handler in three lines, through the real batcher and its hooks, without a server.

Example:
    >>> from tidegate import serve
    >>> from tidegate.testing import serve_batch
    >>> @serve(max_batch_size=8)
    ... def double(x: list[int]) -> list[int]:
    ...     return [2 * n for n in x]
    >>> serve_batch(double, [1, 2, 3])
    [2, 4, 6]
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tidegate.handler import Handler, handler_of
from tidegate.local import LocalClient

__all__ = ["request", "serve_batch"]


def serve_batch(
    handler: Handler[..., Any] | type, inputs: Sequence[Any], *, return_exceptions: bool = False
) -> list[Any]:
    """What callers that ask at the same time get, in their order; a streaming handler's chunks as lists.

    inputs: what the doors would decode. return_exceptions: give an item's error in its place instead of raising it.
    Raises `SetupFailed` and `TidegateError`.
    """
    with LocalClient(handler) as client:
        return list(client.map(inputs, return_exceptions=return_exceptions))


def request(handler: Handler[..., Any] | type, bodies: Iterable[bytes]) -> list[bytes]:
    """Request bodies to response bodies as over HTTP without headers: decoding, hooks, batch and encoding.

    Raises `TidegateError` where a door would answer with an error.

    Example:
        >>> from tidegate import serve
        >>> @serve
        ... def shout(text: str) -> str:
        ...     return text.upper()
        >>> request(shout, [b'"hello"'])
        [b'"HELLO"']
    """
    known = handler_of(handler)
    outputs = serve_batch(handler, [known.codec.decode(body) for body in bodies])
    return [known.codec.encode(output, allow_nan=known.options.allow_nan)[0] for output in outputs]
