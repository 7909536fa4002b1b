"""One model on LitServe: KIND, API_SERVERS and MAX_BATCH are in the environment; the argument is the port."""

from __future__ import annotations

import os
import sys
from typing import Any

import gpu_models
import litserve
import numpy as np

KIND = os.environ["KIND"]


class Served(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = gpu_models.load("bert" if KIND == "bert" else "resnet", gpu_models.device_here())

    def decode_request(self, request) -> Any:
        if KIND == "bert":
            return np.asarray(request["input"], dtype=np.int64)
        return gpu_models.from_base64(request["image"])

    def predict(self, batch: Any) -> Any:
        return self.model.on_host(np.asarray(batch))

    def encode_response(self, output: Any) -> Any:
        return {"output": output.tolist()}


if __name__ == "__main__":
    api = Served(max_batch_size=int(os.environ["MAX_BATCH"]), batch_timeout=0.005)
    accelerator = "cpu" if gpu_models.TINY else "cuda"
    server = litserve.LitServer(api, accelerator=accelerator, devices=1, workers_per_device=1, timeout=60)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=int(os.environ["API_SERVERS"]),
        generate_client_file=False,
        log_level="error",
    )
