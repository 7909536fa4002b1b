"""What the GPU tests serve: in a module of its own, as worker processes import it."""

from __future__ import annotations

import os
from typing import Annotated, Any

import numpy as np
import torch

from tidegate import Array, serve

WIDTH = 256
VOCABULARY = 1000
GIB = 1 << 30


def load_classifier(device: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.GELU(), torch.nn.Linear(4 * WIDTH, 10), torch.nn.Softmax(-1)
    )
    return model.to(device).eval()


@serve(max_batch_size=64, setup=load_classifier)
def classify(model: torch.nn.Module, rows: Annotated[torch.Tensor, Array("float32", (WIDTH,))]) -> torch.Tensor:
    with torch.inference_mode():
        classes: torch.Tensor = model(rows.to("cuda:0", non_blocking=True))
    return classes


def load_table(device: str) -> torch.nn.Embedding:
    torch.manual_seed(0)
    return torch.nn.Embedding(VOCABULARY, 8).to(device)


@serve(max_batch_size=16, batch_timeout=0.2, setup=load_table)
def look_up(table: torch.nn.Embedding, indices: Annotated[torch.Tensor, Array("int64", ())]) -> torch.Tensor:
    found: torch.Tensor = table(indices.to("cuda:0"))
    torch.cuda.synchronize()
    return found.detach()


def load_ballast(device: str) -> list[torch.Tensor]:
    """Leave four gibibytes free."""
    free, _ = torch.cuda.mem_get_info()
    return [torch.empty(max(0, free - 4 * GIB), dtype=torch.uint8, device=device)]


@serve(max_batch_size=16, batch_timeout=0.2, setup=load_ballast)
def hungry(ballast: list[torch.Tensor], numbers: Annotated[torch.Tensor, Array("float32", ())]) -> torch.Tensor:
    """Needs half a gibibyte per item."""
    room = torch.ones((len(numbers), GIB // 8), device="cuda:0")
    return (room * numbers.to("cuda:0")[:, None])[:, -1].clone()


@serve(max_batch_size=8, setup=load_table)
def arrived(table: torch.nn.Embedding, rows: torch.Tensor) -> list[dict[str, Any]]:
    """How the batch came."""
    there = rows.to("cuda:0", non_blocking=True)
    return [{"pinned": rows.is_pinned(), "sum": float(row.sum())} for row in there]


@serve(max_batch_size=1)
def where(x: np.ndarray) -> list[dict[str, Any]]:
    """Which GPU this worker sees."""
    torch.cuda.synchronize()
    uuid = str(torch.cuda.get_device_properties(0).uuid)
    return [
        {
            "visible": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
            "count": torch.cuda.device_count(),
            "uuid": uuid.removeprefix("GPU-"),
            "pid": os.getpid(),
        }
    ]
