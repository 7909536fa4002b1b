"""What a server without batching answers: body to value, one call of the model, value to body."""

from __future__ import annotations

import base64
import io
import os
from typing import Any

import numpy as np
import orjson
from models import model
from workloads import SIDE

WORKLOAD = os.environ["WORKLOAD"]
MODEL = model(WORKLOAD)


def item_of(body: bytes) -> np.ndarray:
    """The array that a body holds."""
    match WORKLOAD:
        case "image":
            return np.frombuffer(body, np.uint8).reshape(SIDE, SIDE, 3)
        case "npy":
            return np.asarray(np.load(io.BytesIO(body)))
        case "image64":
            return np.frombuffer(base64.b64decode(orjson.loads(body)["image"]), np.uint8).reshape(SIDE, SIDE, 3)
    return np.asarray(orjson.loads(body))


def answer(body: bytes) -> Any:
    """The one item's answer as plain lists."""
    return MODEL(item_of(body)[None])[0].tolist()


def answer_bytes(body: bytes) -> bytes:
    """The one item's answer as JSON."""
    return orjson.dumps(MODEL(item_of(body)[None])[0], option=orjson.OPT_SERIALIZE_NUMPY)
