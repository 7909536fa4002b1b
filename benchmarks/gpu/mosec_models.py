"""One model on Mosec: KIND, WORKERS and MAX_BATCH are in the environment."""

from __future__ import annotations

import os
from typing import Any

import gpu_models
import numpy as np
from mosec import Server, Worker

KIND = os.environ["KIND"]


class Served(Worker):
    """JSON in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.model = gpu_models.load("bert" if KIND == "bert" else "resnet", gpu_models.device_here())

    def forward(self, data: list[Any]) -> list[Any]:
        if KIND == "bert":
            return self.model.on_host(np.asarray(data, dtype=np.int64)).tolist()
        if KIND == "image64":
            data = [gpu_models.from_base64(body["image"]) for body in data]
        return self.model.on_host(gpu_models.stacked(data)).tolist()


class Raw(Served):
    """Bytes in, JSON out."""

    def deserialize(self, data: bytes) -> Any:
        return np.frombuffer(data, np.uint8).reshape(gpu_models.SIDE, gpu_models.SIDE, 3)


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Raw if KIND == "image" else Served,
        num=int(os.environ["WORKERS"]),
        max_batch_size=int(os.environ["MAX_BATCH"]),
        max_wait_time=5,
        timeout=120,
    )
    server.run()
