"""What the black-box suite serves. Thread workers: they start at once, and the workers are not what is tested here."""

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any

import numpy as np

from tidegate import END, Array, HTTPError, current_batch, serve


@serve(worker="thread", max_batch_size=8)
def square(x: Annotated[np.ndarray, Array("float64", (2,))]) -> np.ndarray:
    return x**2


@serve(worker="thread")
def echo(x: Any) -> Any:
    return x


@serve(worker="thread")
def shout(text: str) -> str:
    return text.upper()


@serve(worker="thread")
def size(body: bytes) -> int:
    return len(body)


@serve(worker="thread")
def refuse(x: int) -> int:
    raise HTTPError(409, "not today")


@serve(worker="thread")
def fail(x: int) -> int:
    raise RuntimeError("secret")


@serve(worker="thread", forward_headers=["X-Tenant"])
def who(x: int) -> dict[str, Any]:
    (item,) = current_batch().items
    return {"id": item.request_id, "headers": dict(item.headers)}


@serve(worker="thread", max_batch_size=8)
def countdown(starts: list[int]) -> Iterator[list[object]]:
    for step in range(max(starts) + 1):
        if 13 in starts and step == 2:
            raise RuntimeError("secret")
        yield [start - step if step < start else END for start in starts]


@serve(worker="thread")
def held(at: dict[str, int]) -> int:
    """Tells the test that it runs, and answers when the test says so."""
    with socket.create_connection(("127.0.0.1", at["port"]), timeout=30) as test:
        test.sendall(b"%d\n" % at["number"])
        with suppress(ConnectionError):
            test.recv(1)
    return at["number"]


@serve(worker="thread")
def forever(port: int) -> Iterator[str]:
    """Never ends by itself; tells the test when it is closed."""
    try:
        while True:
            yield "x" * 1000
    finally:
        socket.create_connection(("127.0.0.1", port), timeout=30).close()


@serve(worker="thread")
def ticks(plan: dict[str, float]) -> Iterator[int]:
    for step in range(int(plan["steps"])):
        yield step
        time.sleep(plan["seconds"])
