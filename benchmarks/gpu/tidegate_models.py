"""The models on tidegate, each with a maximum batch of 64 and of 256."""

from __future__ import annotations

import os
import statistics
import sys
import time
from functools import partial
from itertools import pairwise
from typing import Annotated, Any

import gpu_models
import msgspec
import numpy as np
import torch

from tidegate import Array, Handler, serve

Tokens = Annotated[torch.Tensor, Array("int64", (gpu_models.TOKENS,))]
Image = Annotated[torch.Tensor, Array("uint8", (gpu_models.SIDE, gpu_models.SIDE, 3))]


class Base64Image(msgspec.Struct):
    """An image in JSON; msgspec reads the base64 where the request is read."""

    image: bytes


def stack(items: list[Base64Image]) -> torch.Tensor:
    shape = (len(items), gpu_models.SIDE, gpu_models.SIDE, 3)
    cuda = torch.cuda.is_available() and not gpu_models.TINY
    batch = torch.empty(shape, dtype=torch.uint8, pin_memory=cuda)
    rows = batch.numpy().reshape(len(items), -1)
    for row, item in zip(rows, items, strict=True):
        row[:] = np.frombuffer(item.image, np.uint8)
    return batch


def load(kind: str, device: str) -> gpu_models._Model:
    """The model, on cores of the worker's own if WORKER_CORES names some."""
    if cores := os.environ.get("WORKER_CORES"):
        os.sched_setaffinity(0, map(int, cores.split(",")))
    return gpu_models.load(kind, device)


class Clock:
    """What a worker's time goes into: how long a call takes, and how long it is from one to the next."""

    EVERY = 250

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: list[tuple[float, float, int]] = []

    def note(self, begun: float, ended: float, size: int) -> None:
        """One call; every so many are told."""
        self._calls.append((begun, ended, size))
        if len(self._calls) < self.EVERY:
            return
        calls, self._calls = self._calls, []
        between = [after[0] - before[1] for before, after in pairwise(calls)]
        inside = [ended - begun for begun, ended, _ in calls]
        told = (
            f"{1e3 * statistics.median(one):.2f} ms (mean {1e3 * statistics.mean(one):.2f})"
            for one in (inside, between)
        )
        mean = statistics.mean(size for _, _, size in calls)
        print(f"{self._name}: batch {mean:.1f}, {' in the call, '.join(told)} between two", file=sys.stderr, flush=True)


def _bert(size: int) -> Handler[..., Any]:
    clock = Clock(f"bert_{size}")

    @serve(name=f"bert_{size}", max_batch_size=size, setup=partial(load, "bert"))
    def bert(model: gpu_models.Bert, tokens: Tokens) -> torch.Tensor:
        begun = time.perf_counter()
        output = model(tokens)
        clock.note(begun, time.perf_counter(), len(tokens))
        return output

    return bert


def _image(size: int) -> Handler[..., Any]:
    clock = Clock(f"image_{size}")

    @serve(name=f"image_{size}", max_batch_size=size, setup=partial(load, "resnet"))
    def image(model: gpu_models.ResNet, pixels: Image) -> torch.Tensor:
        begun = time.perf_counter()
        output = model(pixels)
        clock.note(begun, time.perf_counter(), len(pixels))
        return output

    return image


def _image64(size: int) -> Handler[..., Any]:
    @serve(name=f"image64_{size}", max_batch_size=size, setup=partial(load, "resnet"), batch=stack)
    def image64(model: gpu_models.ResNet, items: list[Base64Image]) -> torch.Tensor:
        return model(items)  # stacked by now

    return image64


KINDS = os.environ.get("KINDS", "bert,image,image64").split(",")
SIZES = [int(size) for size in os.environ.get("SIZES", "64,256").split(",")]
_MAKE = {"bert": _bert, "image": _image, "image64": _image64}
HANDLERS = tuple(_MAKE[kind](size) for kind in KINDS for size in SIZES)
globals().update({handler.name: handler for handler in HANDLERS})  # where a worker finds them
