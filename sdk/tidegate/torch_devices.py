"""Ask torch for AMD's and Apple's GPUs: run as a script, so that the service itself need not load torch for it."""

from __future__ import annotations

import json
import sys
from typing import Any

__all__ = ["answer"]


def answer() -> list[dict[str, Any]]:
    """ROCm's devices as torch numbers them, else the one of Metal, else none."""
    import torch

    if torch.version.hip:
        return [_rocm(torch.cuda.get_device_properties(index)) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        return [{"kind": "mps", "uuid": "", "name": "Apple GPU", "memory": torch.mps.recommended_max_memory()}]
    return []


def _rocm(properties: Any) -> dict[str, Any]:
    uuid = getattr(properties, "uuid", None)
    return {
        "kind": "rocm",
        "uuid": "" if uuid is None else f"GPU-{uuid}",
        "name": properties.name,
        "memory": properties.total_memory,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(answer()))
