"""BERT-base and ResNet-50 with random weights in bf16: what is served, and what the bare loop runs, is this very code.

TINY=1 makes small ones that a CPU runs, with the same shapes at the door, to try everything where there is no GPU.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

__all__ = ["SIDE", "TINY", "TOKENS", "Bert", "ResNet", "images", "load", "tokens"]

TINY = os.environ.get("TINY") == "1"
TOKENS = 128
SIDE = 224
WIDTH = 768
VOCABULARY = 30_522


class _Model:
    """A model on a device. Host tensors in, pinned if they came pinned; a tensor on the device out."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __init__(self, device: str) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        self.device = "cuda:0" if device.startswith("cuda") else device
        self.model = self.make().to(self.device, torch.bfloat16).eval()

    def make(self) -> torch.nn.Module:
        """The module, on the host."""
        raise NotImplementedError

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        """The outputs, on the device."""
        raise NotImplementedError

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return self.run(batch.to(self.device, non_blocking=True))

    def on_host(self, batch: np.ndarray) -> np.ndarray:
        """Arrays in and out, as one writes it where nothing pins memory."""
        return np.asarray(self(torch.from_numpy(batch)).cpu().numpy())

    def warm(self, *sizes: int) -> None:
        """Run each size a few times: the first are slow."""
        for size in sizes:
            for _ in range(3):
                self(torch.zeros((size, *self.shape), dtype=self.dtype)).cpu()


class Bert(_Model):
    """(N, 128) int64 to (N, 768) float32: the pooled output."""

    shape, dtype = (TOKENS,), torch.int64

    def make(self) -> torch.nn.Module:
        from transformers import BertConfig, BertModel

        if TINY:
            return BertModel(BertConfig(num_hidden_layers=1, intermediate_size=64))
        return BertModel(BertConfig())

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=batch).pooler_output.float()


class ResNet(_Model):
    """(N, 224, 224, 3) uint8 to (N,) int64: the likeliest class."""

    shape, dtype = (SIDE, SIDE, 3), torch.uint8

    def make(self) -> torch.nn.Module:
        if TINY:
            pool = torch.nn.AvgPool2d(32)
            return torch.nn.Sequential(pool, torch.nn.Flatten(), torch.nn.Linear(3 * 7 * 7, 1000))
        import torchvision

        return torchvision.models.resnet50(weights=None).to(memory_format=torch.channels_last)

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        return self.model(batch.permute(0, 3, 1, 2).to(torch.bfloat16) / 255).argmax(-1)


def load(kind: str, device: str) -> _Model:
    """The model of that kind, warm."""
    made: _Model = Bert(device) if kind == "bert" else ResNet(device)
    made.warm(1, 8, 64, *((256,) if not TINY else ()))
    return made


def tokens(seed: int) -> list[int]:
    """One item of BERT's."""
    return [int(one) for one in np.random.default_rng(seed).integers(0, VOCABULARY, TOKENS)]


def images(seed: int) -> np.ndarray:
    """One item of ResNet's."""
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def device_here() -> str:
    """Where it runs if nobody says."""
    return "cuda:0" if torch.cuda.is_available() and not TINY else "cpu"


def from_base64(text: str | bytes) -> np.ndarray:
    """An image out of what JSON carries."""
    import base64

    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(SIDE, SIDE, 3)


def stacked(pixels: list[Any]) -> np.ndarray:
    """A batch of images."""
    return np.stack(pixels)
