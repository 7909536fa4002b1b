"""What is asked, and how an answer is known to be right: the same questions for every contender."""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

SIDE = 224
ROW = 4
TOKENS = 128
WIDTH = 768
FEATURES = 128
CLASSES = 10
POISON = 1000.0
"""A first number from which on a row makes its batch fail."""

JSON_TYPE = "application/json"
BYTES_TYPE = "application/octet-stream"
NPY_TYPE = "application/x-npy"
_BOUNDARY = "tidegate-benchmark"


class Body(NamedTuple):
    """One request's body."""

    content: bytes
    content_type: str


class Workload(NamedTuple):
    """A question: `value(seed)` makes one, `write` puts it on the wire, `is_right` judges what came back."""

    name: str
    about: str
    value: Callable[[int], Any]
    write: Callable[[Any], Body]
    is_right: Callable[[Any, Any], bool]
    batched_only: bool = False
    """Whether it says something about batching alone, so that servers without it are left out."""


def table() -> np.ndarray:
    """The embedding that every contender answers with, (1, 768) float32."""
    return np.random.default_rng(0).standard_normal((1, WIDTH), dtype=np.float32)


def _row(seed: int) -> list[float]:
    return [float(number) for number in np.random.default_rng(seed).integers(-1000, 1000, ROW) / 8]


def _tokens(seed: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, 30_000, TOKENS)]


def _image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def _features(seed: int) -> list[float]:
    return [float(number) for number in np.random.default_rng(seed).integers(-1000, 1000, FEATURES) / 1000]


def _as_json(value: Any) -> Body:
    return Body(json.dumps(value).encode(), JSON_TYPE)


def _as_base64(image: np.ndarray) -> Body:
    return _as_json({"image": base64.b64encode(image.tobytes()).decode()})


def _as_bytes(image: np.ndarray) -> Body:
    return Body(image.tobytes(), BYTES_TYPE)


def _as_npy(image: np.ndarray) -> Body:
    file = io.BytesIO()
    np.save(file, image)
    return Body(file.getvalue(), NPY_TYPE)


def as_form(body: Body) -> Body:
    """The same content as a file in a form, for those that take no plain bytes."""
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n'
    head += f"Content-Type: {body.content_type}\r\n\r\n"
    content = head.encode() + body.content + f"\r\n--{_BOUNDARY}--\r\n".encode()
    return Body(content, f"multipart/form-data; boundary={_BOUNDARY}")


def _is_same(row: list[float], answer: Any) -> bool:
    return bool(answer == row)


def _is_embedding(tokens: list[int], answer: Any) -> bool:
    """The first number depends on the tokens, so that answers cannot be mixed up unseen."""
    expected = table()[0].tolist()
    expected[0] = float(sum(tokens))
    return bool(np.allclose(answer, expected, rtol=1e-6))


def _are_corners(image: np.ndarray, answer: Any) -> bool:
    return bool(answer == [int(image[0, 0, 0]), int(image[-1, -1, -1])])


def _is_likely(features: list[float], answer: Any) -> bool:
    return len(answer) == CLASSES and bool(np.allclose(answer, scores(features), atol=1e-3))


def weights() -> list[np.ndarray]:
    """The small model: three layers of 512 over 128 features, 10 classes; float32."""
    generator = np.random.default_rng(1)
    sizes = [FEATURES, 512, 512, CLASSES]
    return [
        (generator.standard_normal((before, after)) / before**0.5).astype(np.float32)
        for before, after in itertools.pairwise(sizes)
    ]


def scores(features: list[float]) -> np.ndarray:
    """What the small model says of one item, by NumPy."""
    hidden = np.asarray(features, np.float32)
    *inner, last = weights()
    for layer in inner:
        hidden = np.maximum(hidden @ layer, 0)
    return np.asarray(hidden @ last)


DELICATE = Workload("delicate", "5 ms a batch; a poisoned row makes it fail", _row, _as_json, _is_same)
COUNTED = Workload("counted", "20 ms a batch; what is run is counted", _row, _as_json, _is_same)

WORKLOADS = {
    one.name: one
    for one in (
        Workload("echo", "4 numbers in and out", _row, _as_json, _is_same),
        Workload("embed", "128 integers in, 768 floats out", _tokens, _as_json, _is_embedding),
        Workload("image64", "150 kB image as base64 in JSON", _image, _as_base64, _are_corners),
        Workload("image", "150 kB image as raw bytes", _image, _as_bytes, _are_corners),
        Workload("npy", "150 kB image as npy", _image, _as_npy, _are_corners),
        Workload("sleep5", "a model that takes 5 ms a batch", _row, _as_json, _is_same, batched_only=True),
        Workload("sleep50", "a model that takes 50 ms a batch", _row, _as_json, _is_same, batched_only=True),
        Workload("torch", "a small torch model on the CPU, 128 floats in, 10 out", _features, _as_json, _is_likely),
    )
}
