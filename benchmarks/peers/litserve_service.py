"""The workloads on LitServe: batches of 64, a window of 5 ms."""

from __future__ import annotations

import base64
import io
import os
import sys
from typing import Any

import litserve
import numpy as np
from models import model
from workloads import SIDE

WORKLOAD = os.environ["WORKLOAD"]


class Model(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = model(WORKLOAD)

    def decode_request(self, request) -> Any:
        match WORKLOAD:
            case "image64":
                return np.frombuffer(base64.b64decode(request["image"]), np.uint8).reshape(SIDE, SIDE, 3)
            case "image":
                return np.frombuffer(request["image"].file.read(), np.uint8).reshape(SIDE, SIDE, 3)
            case "npy":
                return np.load(io.BytesIO(request["image"].file.read()))
        return np.asarray(request["input"])

    def predict(self, batch: Any) -> Any:
        return self.model(np.asarray(batch))

    def encode_response(self, output: Any) -> Any:
        return {"output": output.tolist()}


if __name__ == "__main__":
    size, window = int(os.environ.get("MAX_BATCH", "64")), float(os.environ.get("WINDOW", "0.005"))
    api = Model(max_batch_size=size, batch_timeout=window)
    timeout = float(os.environ.get("TIMEOUT", "30"))
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=timeout)
    servers = int(os.environ.get("API_SERVERS", "1"))
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=servers,
        generate_client_file=False,
        log_level="error",
    )
