"""The workloads on tidegate: `tidegate serve tidegate_service.py:echo`."""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
from models import Corners, Counted, Delicate, Embedding, Sleep, Small
from workloads import FEATURES, SIDE, TOKENS

from tidegate import Array, serve

Image = Annotated[np.ndarray, Array("uint8", (SIDE, SIDE, 3))]


@serve(max_batch_size=64)
def echo(rows: np.ndarray) -> np.ndarray:
    return rows


@serve(max_batch_size=64, setup=lambda device: Embedding())
def embed(model: Embedding, tokens: Annotated[np.ndarray, Array("int64", (TOKENS,))]) -> np.ndarray:
    return model(tokens)


@serve(max_batch_size=64)
def image(pixels: Image) -> np.ndarray:
    return Corners()(pixels)


@serve(max_batch_size=64)
def npy(pixels: Image) -> np.ndarray:
    return Corners()(pixels)


class Base64Image(msgspec.Struct):
    """The door reads the base64 as it reads the JSON."""

    image: bytes


def stack(items: list[Base64Image]) -> np.ndarray:
    return np.stack([np.frombuffer(item.image, np.uint8).reshape(SIDE, SIDE, 3) for item in items])


@serve(max_batch_size=64, batch=stack)
def image64(pixels: np.ndarray) -> np.ndarray:
    return Corners()(pixels)


@serve(max_batch_size=64)
def sleep5(rows: np.ndarray) -> np.ndarray:
    return Sleep(0.005)(rows)


@serve(max_batch_size=64)
def sleep50(rows: np.ndarray) -> np.ndarray:
    return Sleep(0.05)(rows)


@serve(max_batch_size=64, setup=lambda device: Small())
def torch(model: Small, features: Annotated[np.ndarray, Array("float32", (FEATURES,))]) -> np.ndarray:
    return model(features)


@serve(max_batch_size=64)
def delicate(rows: np.ndarray) -> np.ndarray:
    return Delicate()(rows)


@serve(max_batch_size=64, setup=lambda device: Counted())
def counted(model: Counted, rows: np.ndarray) -> np.ndarray:
    return model(rows)
