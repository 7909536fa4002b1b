"""On what a handler runs."""

from __future__ import annotations

import sys

__all__ = ["default_device"]


def default_device() -> str:
    """The first accelerator that torch sees if the handler's module loaded torch, else the CPU."""
    torch = sys.modules.get("torch")
    return "cuda:0" if torch is not None and torch.cuda.is_available() else "cpu"
