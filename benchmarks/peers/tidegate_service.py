"""The workloads on tidegate."""

from __future__ import annotations

import time
from typing import Annotated, Any

import numpy as np

from tidegate import Array, serve

SIDE = 224


@serve(max_batch_size=64)
def echo(rows: np.ndarray) -> np.ndarray:
    return rows


def load_table(device: str) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, 768), dtype=np.float32)


@serve(max_batch_size=64, setup=load_table)
def embed(table: np.ndarray, tokens: Annotated[np.ndarray, Array("int64", (128,))]) -> np.ndarray:
    return np.repeat(table, len(tokens), axis=0)


@serve(max_batch_size=64)
def image(pixels: Annotated[np.ndarray, Array("uint8", (SIDE, SIDE, 3))]) -> list[int]:
    return [int(one[0, 0, 0]) for one in pixels]


@serve(max_batch_size=64)
def image64(bodies: list[dict[str, Any]]) -> list[int]:
    return [int(body["first"]) for body in bodies]


@image64.decode_request
def from_base64(body: dict[str, str]) -> dict[str, int]:
    import base64

    return {"first": base64.b64decode(body["image"])[0]}


@serve(max_batch_size=64)
def sleep5(rows: np.ndarray) -> np.ndarray:
    time.sleep(0.005)
    return rows


@serve(max_batch_size=64)
def sleep50(rows: np.ndarray) -> np.ndarray:
    time.sleep(0.05)
    return rows
