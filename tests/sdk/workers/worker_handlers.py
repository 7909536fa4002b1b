"""Handlers that workers of both kinds are tried with; what they do is said by what they are asked."""

import asyncio
import atexit
import ctypes
import dataclasses
import gc
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tidegate import END, SKIP, HTTPError, current_batch, serve

if os.environ.get("MEDDLES"):  # as libraries do
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

# ---------------------------------------------------------------------- values


@dataclasses.dataclass
class Point:
    x: int
    y: list[float]


class Label(msgspec.Struct):
    name: str
    score: float


Pair = namedtuple("Pair", "left right")


class Unpicklable:
    def __reduce__(self) -> str:
        raise TypeError("not for export")


class UnpicklableError(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class HTTPException(Exception):
    """What FastAPI, Starlette and LitServe raise."""

    def __init__(self, status_code: int, detail: str) -> None:
        super().__init__()
        self.status_code = status_code
        self.detail = detail


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


# ---------------------------------------------------------------------- what a handler can be asked to do


def meet(port: int, word: str = "") -> str:
    """Tell the test that we are here, and wait for it."""
    with socket.create_connection(("127.0.0.1", port)) as there:
        there.sendall(word.encode() + b"\n")
        return there.recv(16).decode()


def fail(name: str, text: str) -> None:
    kinds: dict[str, Callable[[str], BaseException]] = {
        "ValueError": ValueError,
        "HTTPError": lambda text: HTTPError(404, text),
        "HTTPException": lambda text: HTTPException(404, text),
        "RuntimeError": RuntimeError,
        "MemoryError": MemoryError,
        "SystemExit": lambda text: SystemExit(3),
        "KeyboardInterrupt": lambda text: KeyboardInterrupt(),
        "UnpicklableError": UnpicklableError,
    }
    raise kinds[name](text)


def spin() -> None:
    while True:
        pass


def grandchild() -> int:
    """A process that holds on to all that it was given."""
    pid = os.fork()
    if pid == 0:
        time.sleep(1000)
        os._exit(0)
    return pid


def write_to(array: Any) -> Any:
    array += 1
    return array


def segfault() -> None:
    ctypes.string_at(0)


def hold() -> None:
    """Keep the interpreter's lock in a call that never comes back."""
    ctypes.PyDLL(None).pause()


def junk() -> None:
    """What a library might do that closes or writes to descriptors which it does not own."""
    for entry in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{entry}").startswith("socket:"):
                os.write(int(entry), b"\xff" * 64)
                return


def shortage(size: int) -> bytes:
    """An answer for which there is no shared memory."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, resource.RLIM_INFINITY))
    return bytes(size)


def unending() -> None:
    """A thread that nobody ends."""
    threading.Thread(target=time.sleep, args=(1000,)).start()


def at_exit(word: str) -> None:
    atexit.register(print, word, file=sys.stderr)


def started_program() -> int:
    return subprocess.Popen(["sleep", "1000"]).pid


def terminated_program() -> int:
    program = subprocess.Popen(["sleep", "1000"])
    program.terminate()
    return program.wait(10)


def inherited() -> list[str]:
    """What a program that is started carelessly finds open."""
    told = subprocess.run(["ls", "/proc/self/fd"], close_fds=False, capture_output=True, text=True, check=True)
    return told.stdout.split()


ORDERS: dict[str, Callable[..., Any]] = {
    "at exit": at_exit,
    "exit": os._exit,
    "fail": fail,
    "grandchild": grandchild,
    "environ": lambda: dict(os.environ),
    "hold": hold,
    "inherited": inherited,
    "junk": junk,
    "meet": meet,
    "nested": nested,
    "pid": os.getpid,
    "print": print,
    "read": lambda: sys.stdin.read(),
    "return": lambda value: value,
    "segfault": segfault,
    "shortage": shortage,
    "sleep": time.sleep,
    "spin": spin,
    "started program": started_program,
    "terminated program": terminated_program,
    "unending": unending,
    "unpicklable": Unpicklable,
    "write": write_to,
}


def obey(order: Any) -> Any:
    """[name, argument…]; anything else is itself the answer."""
    if isinstance(order, list) and order and isinstance(order[0], str) and order[0] in ORDERS:
        return ORDERS[order[0]](*order[1:])
    return order


# ---------------------------------------------------------------------- plain ones


@serve
def one(x: Any) -> Any:
    return obey(x)


@serve(max_batch_size=8, batch_timeout=0.02)
def mirror(x: Any) -> Any:
    """The batch as it came."""
    return x


@serve(max_batch_size=16, batch_timeout=5.0)
def sixteen(x: list[Any]) -> list[Any]:
    """Full batches only, so that a test knows who runs with whom."""
    return [obey(order) for order in x]


@serve(max_batch_size=16, batch_timeout=5.0)
def in_place(x: list[Any]) -> list[Any]:
    """What an order raises stands in its place."""
    answers: list[Any] = []
    for order in x:
        try:
            answers.append(obey(order))
        except Exception as error:  # noqa: BLE001 - that is the point
            answers.append(error)
    return answers


@serve(max_batch_size=4, batch_timeout=5.0)
def too_few(x: list[Any]) -> list[Any]:
    return x[1:]


ROOM = np.zeros((8, 4))


@serve(max_batch_size=8, batch_timeout=0.02)
def reused(x: np.ndarray) -> np.ndarray:
    """The same memory for every answer."""
    room = ROOM[: len(x)]
    np.multiply(x, 2, out=room)
    return room


@serve(max_batch_size=8, batch_timeout=0.02)
def modified(x: np.ndarray) -> np.ndarray:
    x += 1
    return x


@serve(max_batch_size=16, batch_timeout=5.0)
def four_fit(x: list[int]) -> list[Any]:
    if len(x) > 4:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return [[len(x), os.getpid()] for _ in x]


@serve(max_batch_size=4, batch_timeout=5.0, forward_headers=("x-user",))
def about(x: list[Any]) -> list[Any]:
    batch = current_batch()
    return [
        [batch.device, batch.size, item.request_id, dict(item.headers), item.deadline, item.cancelled]
        for item in batch.items
    ]


@serve(max_batch_size=2, batch_timeout=5.0)
def watched(ports: list[int]) -> list[list[bool]]:
    """Who has gone when the test says so."""
    meet(ports[0])
    deadline = time.monotonic() + 10
    while not any(item.cancelled for item in current_batch().items) and time.monotonic() < deadline:
        time.sleep(0.001)
    return [[item.cancelled for item in current_batch().items]] * 2


@serve
def forked(x: int) -> int:
    os.fork()
    return x


@serve
def frozen(x: Any) -> bool:
    """Whether the collector leaves alone what setup has loaded."""
    return gc.get_freeze_count() > 1000


@serve(max_batch_size=4, batch_timeout=5.0)
def patient(orders: list[str]) -> list[bool]:
    """Who has gone; one that is told to wait does so until its first caller goes."""
    items = current_batch().items
    deadline = time.monotonic() + 20
    while orders[0] == "wait" and not items[0].cancelled and time.monotonic() < deadline:
        time.sleep(0.001)
    return [item.cancelled for item in items]


# ---------------------------------------------------------------------- with hooks


def load(device: str) -> dict[str, Any]:
    return {"device": device, "seen": 0}


@serve(max_batch_size=4, batch_timeout=5.0, setup=load)
def hooked(state: dict[str, Any], x: dict[str, Any]) -> dict[str, Any]:
    state["seen"] += len(x["texts"])
    return {"texts": [f"{text}@{state['device']}" for text in x["texts"]]}


@hooked.batch
def together(state: dict[str, Any], items: list[str]) -> dict[str, Any]:
    return {"texts": items}


@hooked.unbatch
def apart(output: dict[str, Any]) -> list[str]:
    return list(output["texts"])


@hooked.decode_request
def decode(body: dict[str, Any]) -> str:
    if "text" not in body:
        raise ValueError("no text")
    return str(obey(body["text"]))


@hooked.encode_response
def encode(output: str) -> dict[str, Any]:
    if output.startswith("bad"):
        raise KeyError("bad")
    return {"out": output, "thread": threading.current_thread().name}


@serve
def ahead(x: dict[str, int]) -> int:
    if "run" in x:
        meet(x["run"], "ran")
    return len(x)


@ahead.decode_request
def decode_ahead(body: dict[str, int]) -> dict[str, int]:
    if "decode" in body:
        meet(body["decode"], "decoded")
    return body


@serve(max_batch_size=4)
class Classifier:
    device: str

    def setup(self, device: str) -> None:
        self.labels = {0: "cat", 1: "dog"}

    def decode_request(self, request: dict[str, int]) -> int:
        return request["n"]

    def predict(self, x: list[int]) -> list[str]:
        return [self.labels[n % 2] for n in x]

    def encode_response(self, output: str) -> dict[str, str]:
        return {"label": output, "device": self.device}


# ---------------------------------------------------------------------- async


async def make_barrier(device: str) -> asyncio.Barrier:
    return asyncio.Barrier(3)


@serve(concurrency=3, setup=make_barrier)
async def three_at_once(barrier: asyncio.Barrier, x: Any) -> Any:
    if isinstance(x, list):
        await asyncio.sleep(0)
        return obey(x)
    await barrier.wait()
    return x


# ---------------------------------------------------------------------- streams


def steps(x: dict[str, Any]) -> Iterator[Any]:
    try:
        for n in range(x["length"]):
            if n == x.get("meet_at"):
                meet(x["port"], str(n))
            yield x.get("chunk", n)
        if "then" in x:
            obey(x["then"])
    finally:
        if "closed" in x:
            meet(x["closed"], "closed")


@serve
def count(x: dict[str, Any]) -> Iterator[Any]:
    yield from steps(x)


@serve
async def count_later(x: dict[str, Any]) -> AsyncIterator[Any]:
    for chunk in steps(x):
        yield chunk
        await asyncio.sleep(0)


MARKS: dict[str, Any] = {"END": END, "SKIP": SKIP}


@serve(max_batch_size=3, batch_timeout=5.0)
def rows(x: list[list[Any]]) -> Iterator[list[Any]]:
    """Each item says what its place holds at every step."""
    for row in zip(*x, strict=True):
        chunks: list[Any] = []
        for order in row:
            try:
                chunks.append(MARKS[order] if isinstance(order, str) and order in MARKS else obey(order))
            except ValueError as error:
                chunks.append(error)
        yield chunks


@serve(max_batch_size=2, batch_timeout=5.0)
def endless(ports: list[int]) -> Iterator[list[int]]:
    """Steps until nobody is left; says how many it made."""
    n = 0
    try:
        while True:
            yield [n] * len(ports)
            n += 1
    finally:
        meet(ports[0], str(n))


# ---------------------------------------------------------------------- for services that come to harm


HARMED = ("timed", "busy", "torn_down", "placed", "mortal")


@serve(max_batch_size=16, batch_timeout=5.0, max_run_time=0.5)
def timed(x: list[Any]) -> list[Any]:
    return [obey(order) for order in x]


@serve(max_batch_size=4, workers_per_device=2)
def busy(x: list[int]) -> list[int]:
    time.sleep(0.002)
    return [2 * n for n in x]


def leave(state: dict[str, Any]) -> None:
    print("torn down", flush=True)  # noqa: T201 - it goes to standard error in a worker


@serve(setup=load, teardown=leave)
def torn_down(state: dict[str, Any], x: Any) -> Any:
    return obey(x)


SEEN_AT_IMPORT = os.environ.get("CUDA_VISIBLE_DEVICES")


def look(device: str) -> list[Any]:
    return [device, SEEN_AT_IMPORT, os.environ.get("OMP_NUM_THREADS"), os.getpid()]


@serve(setup=look, workers_per_device=2)
def placed(state: list[Any], port: int) -> list[Any]:
    meet(port)
    return state


def only_once(device: str) -> None:
    """Succeeds in one process, as the folder in ONLY_ONCE remembers."""
    Path(os.environ["ONLY_ONCE"], "started").touch(exist_ok=False)


@serve(setup=only_once)
def mortal(state: None, x: Any) -> Any:
    return obey(x)
