"""What the front ends of the tests serve; imported by each of them."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from tidegate import END, Array, HTTPError, current_batch, serve

if note := os.environ.get("TEST_NOTES_IMPORTS"):
    with open(note, "a") as file:
        print(f"{os.getpid()} import", file=file)

# Packages that a front end is to miss.
for hidden in os.environ.get("TEST_HIDES", "").split():
    sys.modules[hidden] = None  # type: ignore[assignment]  # so that importing it fails

ruin = Path(os.environ.get("TEST_FAILS_WHERE", "nowhere"))
if ruin.exists() and os.getppid() == int(ruin.read_text()):
    raise RuntimeError("this module cannot be imported in a front end")


def load(device: str) -> str:
    if note:
        with open(note, "a") as file:
            print(f"{os.getpid()} setup", file=file)
    return device


@dataclass
class Here:
    """Made where a request is read, and pickled from there on."""

    pid: int = 0

    def __post_init__(self) -> None:
        self.pid = os.getpid()


@serve(worker="thread")
def where(here: Here) -> int:
    return here.pid


@serve(worker="thread", max_batch_size=8, setup=load)
def square(state: str, x: np.ndarray) -> np.ndarray:
    return x**2


@serve(worker="thread", max_batch_size=8)
def invert(pictures: Annotated[np.ndarray, Array("uint8", (224, 224, 3))]) -> np.ndarray:
    return 255 - pictures


@serve(worker="thread")
def halve(pictures: dict[str, np.ndarray]) -> list[int]:
    for picture in pictures.values():
        picture //= 2
    return [int(picture.max()) for picture in pictures.values()]


@serve(worker="process", max_batch_size=8)
def brightest(pictures: Annotated[np.ndarray, Array("uint8", (224, 224, 3))]) -> np.ndarray:
    largest: np.ndarray = pictures.max(axis=(1, 2, 3))
    return largest


@serve(worker="thread")
def darken(picture: Annotated[np.ndarray, Array("uint8", (224, 224, 3))]) -> int:
    picture //= 2
    return int(picture.max())


@serve(worker="thread", max_batch_size=8, batch_timeout=5)
def gathered(x: list[int]) -> list[int]:
    return [len(x) for _ in x]


@serve(worker="thread")
def refuse(x: int) -> int:
    raise HTTPError(409, "not today")


@serve(worker="thread")
def held(at: dict[str, int]) -> int:
    """Tells the test that it runs, and answers when the test says so."""
    with socket.create_connection(("127.0.0.1", at["port"]), timeout=30) as test:
        test.sendall(b"%d\n" % at["number"])
        with suppress(ConnectionError):
            test.recv(1)
    return at["number"]


@serve(worker="thread", max_batch_size=8)
def countdown(starts: list[int]) -> Iterator[list[Any]]:
    for step in range(max(starts) + 1):
        yield [start - step if step < start else END for start in starts]


@serve(worker="thread", forward_headers=["X-Tenant"])
def who(x: int) -> dict[str, Any]:
    (item,) = current_batch().items
    return {"id": item.request_id, "headers": dict(item.headers), "pid": os.getpid()}
