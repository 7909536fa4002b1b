"""The workloads on Mosec: one worker, batches of 64, the 5 ms window of its examples."""

from __future__ import annotations

import base64
import io
import os
from typing import Any

import numpy as np
from models import model
from mosec import Server, Worker
from workloads import SIDE

WORKLOAD = os.environ["WORKLOAD"]


class Model(Worker):
    """JSON in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.model = model(WORKLOAD)

    def forward(self, data: list[Any]) -> list[Any]:
        if WORKLOAD == "image64":
            data = [np.frombuffer(base64.b64decode(body["image"]), np.uint8).reshape(SIDE, SIDE, 3) for body in data]
        return self.model(np.asarray(data)).tolist()


class Raw(Model):
    """Bytes in, JSON out."""

    def deserialize(self, data: bytes) -> Any:
        if WORKLOAD == "npy":
            return np.load(io.BytesIO(data))
        return np.frombuffer(data, np.uint8).reshape(SIDE, SIDE, 3)


if __name__ == "__main__":
    # Its window and its timeout are whole milliseconds; a window of 0 would mean the default of 10.
    window = max(1, round(1000 * float(os.environ.get("WINDOW", "0.005"))))
    os.environ["MOSEC_TIMEOUT"] = str(round(1000 * float(os.environ.get("TIMEOUT", "30"))))
    server = Server()
    server.append_worker(
        Raw if WORKLOAD in ("image", "npy") else Model,
        num=int(os.environ.get("WORKERS", "1")),
        max_batch_size=int(os.environ.get("MAX_BATCH", "64")),
        max_wait_time=window,
    )
    server.run()
