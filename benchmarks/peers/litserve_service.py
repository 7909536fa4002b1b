"""The workloads on LitServe, with a window of 5 ms."""

from __future__ import annotations

import base64
import os
import sys
import time
from typing import Any

import litserve
import numpy as np

WORKLOAD = os.environ["WORKLOAD"]
TABLE = np.random.default_rng(0).standard_normal((1, 768), dtype=np.float32)


class Model(litserve.LitAPI):
    def setup(self, device: str) -> None:
        pass

    def decode_request(self, request) -> Any:
        if WORKLOAD == "image64":
            return np.frombuffer(base64.b64decode(request["image"]), np.uint8)
        return np.asarray(request["input"])

    def predict(self, batch: Any) -> Any:
        if WORKLOAD == "embed":
            return np.repeat(TABLE, len(batch), axis=0)
        if WORKLOAD == "image64":
            return np.asarray(batch)[:, 0]
        if WORKLOAD.startswith("sleep"):
            time.sleep(int(WORKLOAD[5:]) / 1000)
        return np.asarray(batch)

    def encode_response(self, output: Any) -> Any:
        return {"output": output.tolist()}


if __name__ == "__main__":
    api = Model(max_batch_size=64, batch_timeout=0.005)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=30)
    server.run(port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False, log_level="error")
