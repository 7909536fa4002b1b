"""Classify hand-written digits with a small convolutional network, batched over all callers.

    tidegate serve examples/image_classification.py
    python examples/image_classification_client.py

The network is trained on scikit-learn's 1,797 digits in a few seconds when the first worker sets up, and kept in
`~/.cache/tidegate-examples` for the next start. A fifth of the images is held out; the client asks about those.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from tidegate import Array, serve

Image = Annotated[np.ndarray, Array("float32", (8, 8))]


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images, held-out images, training labels, held-out labels; images are (n, 8, 8) from 0 to 16."""
    images, labels = load_digits().images.astype("float32"), load_digits().target
    train_x, held_x, train_y, held_y = train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)
    return train_x, held_x, train_y, held_y


class Net(nn.Module):
    """Two convolutions and a linear layer: (n, 8, 8) images to (n, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(64 * 4 * 4, 10),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(images.unsqueeze(1) / 16)
        return logits


def train() -> Net:
    """Fit the network to the training images; about three seconds on one core."""
    torch.manual_seed(0)
    train_x, _, train_y, _ = digits()
    images, labels = torch.from_numpy(train_x), torch.from_numpy(train_y)
    net = Net()
    epochs, size = 12, 64
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=epochs * (len(images) // size))
    for _ in range(epochs):
        order = torch.randperm(len(images))
        for batch in range(len(images) // size):
            picked = order[batch * size : (batch + 1) * size]
            optimizer.zero_grad()
            loss: torch.Tensor = nn.functional.cross_entropy(net(images[picked]), labels[picked])
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return net


def load_model(device: str) -> Net:
    """Train on the first start, read the file on every later one."""
    # The network is too small to gain from a second thread, and on a busy machine two would wait for each other.
    torch.set_num_threads(1)
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tidegate-examples"
    file = folder / "digits.pt"
    net = Net()
    if file.exists():
        net.load_state_dict(torch.load(file, map_location=device, weights_only=True))
    else:
        net = train()
        folder.mkdir(parents=True, exist_ok=True)
        # Written aside and renamed: a second worker never reads half a file.
        aside = file.with_suffix(f".{os.getpid()}")
        torch.save(net.state_dict(), aside)
        aside.replace(file)
    return net.to(device).eval()


def example() -> np.ndarray:
    """A held-out image: workers warm up with it, and `tidegate serve` prints it as a curl line."""
    _, held_out, _, _ = digits()
    image: np.ndarray = held_out[0]
    return image


@serve(max_batch_size=64, setup=load_model, warmup=example)
@torch.inference_mode()
def classify(net: Net, images: Image) -> dict[str, torch.Tensor]:
    """Images of one digit each, pixels from 0 to 16, to the digit and how sure the network is."""
    device = next(net.parameters()).device
    probabilities = net(torch.from_numpy(images).to(device)).softmax(1)
    confidence, digit = probabilities.max(1)
    return {"digit": digit, "confidence": confidence}


if __name__ == "__main__":
    import tidegate

    tidegate.run(classify)
