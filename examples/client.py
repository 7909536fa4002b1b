"""The client: one answer, many, a stream and errors, without and with `async`; arrays go in and come out as arrays.

    tidegate serve examples/client.py
    python examples/client.py

Any HTTP client will do instead, and nothing of tidegate is needed for it: `curl http://127.0.0.1:8000/lines --json
'"with"'`. What `Client` adds: arrays as raw bytes, connections that are kept, another try where a service is busy or
starting, and errors as exceptions.
"""

import asyncio
import sys
from collections.abc import Iterator
from pydoc_data.topics import topics  # a dict of texts, for help()
from typing import Annotated

import numpy as np
from sklearn.datasets import load_digits

from tidegate import Array, Client, DeadlineExceeded, HTTPError, InvalidInput, serve

# ---------------------------------------------------------------------- what is asked


@serve(max_batch_size=64)
def edges(images: Annotated[np.ndarray, Array("float64", (8, 8))]) -> np.ndarray:
    """Images (N, 8, 8) to how steep the brightness is at each pixel, of the same shape."""
    down, across = np.gradient(images, axis=(1, 2))
    steepness: np.ndarray = np.hypot(down, across)
    return steepness


@serve
def lines(page: str) -> Iterator[str]:
    """The lines of a page of Python's documentation, one after the other."""
    if page not in topics:
        raise HTTPError(404, f"there is no page {page!r}")
    for line in topics[page].splitlines():
        if line:
            yield line


# ---------------------------------------------------------------------- without async


def plainly(url: str) -> None:
    images = load_digits().images
    with Client(url) as client:
        steep = client.call(images[0], handler="edges")
        print(f"one      {type(steep).__name__} {steep.shape}, at most {steep.max():.1f}")

        # 64 are under way at a time, so that the service has batches to make; answers come in the order of the inputs.
        steepest = [answer.max() for answer in client.map(images, handler="edges")]
        print(f"many     {len(steepest)} images, the steepest of all {max(steepest):.1f}")

        # Leaving the loop early would stop the generator at the service, too.
        count = sum(1 for _ in client.stream("with", handler="lines"))
        print(f"stream   {count} lines about `with`")

        try:
            client.call([1, 2, 3], handler="edges")
        except InvalidInput as error:
            print(f"refused  {error.status} {error.detail}")
        try:
            list(client.stream("goto", handler="lines"))
        except HTTPError as error:
            print(f"missing  {error.status} {error.detail}")
        try:
            client.call(images[0], handler="edges", timeout=0)
        except DeadlineExceeded as error:
            print(f"too late {error.status}")


# ---------------------------------------------------------------------- with async


async def at_once(url: str) -> None:
    # One connection for all requests: a WebSocket at the same port. The path says who is asked.
    async with Client(f"{url.replace('http', 'ws', 1)}/edges") as client:
        first, second = load_digits().images[:2]
        one, other = await asyncio.gather(client.call(first), client.call(second, priority=5))
        print(f"at once  {one.shape} {other.shape}")


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    plainly(url)
    asyncio.run(at_once(url))


if __name__ == "__main__":
    main()
