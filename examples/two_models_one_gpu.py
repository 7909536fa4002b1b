"""Two models that share one GPU, or the CPU where there is none.

    tidegate info examples/two_models_one_gpu.py
    tidegate serve examples/two_models_one_gpu.py
    python examples/two_models_one_gpu.py

`info` shows who would run where, without loading anything. Each worker is a process with its own copy of its model, and
the GPU's memory has to hold them all: one of the careful model, two of the quick one, which is too small to keep a GPU
busy from one process.

Where there are several GPUs, both models would be on each of them. `--devices cuda:0` keeps them on one;
`--set careful.devices=cuda:1` moves one of them to another.
"""

import sys
import time
from typing import Annotated, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from tidegate import Array, Client, current_batch, serve

Image = Annotated[torch.Tensor, Array("float32", (64,))]


class Model(NamedTuple):
    net: nn.Module
    device: str


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images of digits, 64 pixels each from 0 to 16, and which digits they are; the last 400 are not learned."""
    images, labels = load_digits(return_X_y=True)
    return images.astype("float32"), labels


def fit(net: nn.Sequential, device: str, steps: int) -> Model:
    torch.manual_seed(0)
    images, labels = (torch.from_numpy(array[:-400]).to(device) for array in digits())
    net = net.to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        loss: torch.Tensor = nn.functional.cross_entropy(net(images), labels)
        torch.autograd.backward(loss)
        optimizer.step()
    return Model(net.eval(), device)


# `setup` gets the device that its worker was given: "cuda:0", or "cpu". A process sees no other GPU than its own, so
# "cuda:0" is right for a library that chooses by itself, too.


def quick_model(device: str) -> Model:
    return fit(nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 10)), device, steps=60)


def careful_model(device: str) -> Model:
    layers = [nn.Unflatten(1, (1, 8, 8)), nn.BatchNorm2d(1), nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten()]
    return fit(nn.Sequential(*layers, nn.Linear(32 * 6 * 6, 10)), device, steps=30)


@torch.inference_mode()
def read(model: Model, images: torch.Tensor) -> list[dict[str, object]]:
    found = model.net(images.to(model.device)).argmax(1).tolist()
    return [{"digit": digit, "device": current_batch().device} for digit in found]


@serve(max_batch_size=256, setup=quick_model, workers_per_device=2, warmup=torch.zeros(64))
def quick(model: Model, images: Image) -> list[dict[str, object]]:
    """One linear layer: images (N, 64) to digits."""
    return read(model, images)


@serve(max_batch_size=64, setup=careful_model, warmup=torch.zeros(64))
def careful(model: Model, images: Image) -> list[dict[str, object]]:
    """A small convolutional network: images (N, 64) to digits."""
    return read(model, images)


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    images, labels = (array[-400:] for array in digits())
    with Client(url) as client:
        for name in ("quick", "careful"):
            begun = time.perf_counter()
            answers = list(client.map(images, handler=name))
            seconds = time.perf_counter() - begun
            right = sum(answer["digit"] == label for answer, label in zip(answers, labels, strict=True))
            rate, devices = len(images) / seconds, ", ".join({answer["device"] for answer in answers})
            print(f"{name:<8} {right} of {len(images)} right, {rate:,.0f} images/s on {devices}")


if __name__ == "__main__":
    main()
