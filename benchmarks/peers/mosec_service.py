"""The workloads on Mosec, with the 5 ms window of its examples."""

from __future__ import annotations

import base64
import os
import time
from typing import Any

import numpy as np
from mosec import Server, Worker

WORKLOAD = os.environ["WORKLOAD"]
TABLE = np.random.default_rng(0).standard_normal((1, 768), dtype=np.float32)


class Model(Worker):
    def forward(self, data: list[Any]) -> list[Any]:
        if WORKLOAD == "echo":
            return np.asarray(data).tolist()
        if WORKLOAD == "embed":
            tokens = np.asarray(data, dtype=np.int64)
            return np.repeat(TABLE, len(tokens), axis=0).tolist()
        if WORKLOAD == "image64":
            return [base64.b64decode(body["image"])[0] for body in data]
        time.sleep({"sleep5": 0.005, "sleep50": 0.05}[WORKLOAD])
        return np.asarray(data).tolist()


class Raw(Worker):
    def deserialize(self, data: bytes) -> Any:
        return np.frombuffer(data, np.uint8)

    def forward(self, data: list[Any]) -> list[Any]:
        return [int(one[0]) for one in data]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Raw if WORKLOAD == "image" else Model, num=1, max_batch_size=64, max_wait_time=5)
    server.run()
