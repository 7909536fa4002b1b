"""The ceiling: the model in a loop, host arrays in and out, one batch after another in a process of its own.

Reads lines such as `bert 64 2.0` (model, batch size, seconds) and prints items per second and milliseconds per batch,
from pageable and from pinned host memory.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import gpu_models
import numpy as np
import torch


def run(model: gpu_models._Model, size: int, seconds: float, pinned: bool) -> list[float]:
    """Seconds that each batch took."""
    item = gpu_models.tokens if isinstance(model, gpu_models.Bert) else gpu_models.images
    array = np.stack([np.asarray(item(seed)) for seed in range(size)])
    batch = torch.from_numpy(array)
    if pinned and torch.cuda.is_available():
        batch = batch.pin_memory()
    took: list[float] = []
    for _ in range(5):
        model(batch).cpu()
    ends = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < ends:
        model(batch).cpu().numpy()
        took.append(time.perf_counter() - begun)
    return took


if __name__ == "__main__":
    device = gpu_models.device_here()
    loaded = {"bert": gpu_models.load("bert", device), "resnet": gpu_models.load("resnet", device)}
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        kind, size, seconds = line.split()
        told: dict[str, float] = {}
        for name, pinned in (("pageable", False), ("pinned", True)):
            took = run(loaded[kind], int(size), float(seconds) / 2, pinned)
            told[name] = int(size) * len(took) / sum(took)
            told[f"{name} ms"] = 1e3 * statistics.median(took)
        print(json.dumps(told), flush=True)
