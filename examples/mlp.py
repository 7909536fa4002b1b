"""A plain multi-layer perceptron on rows of fixed size: the usual case of a model that is busy with arithmetic.

    tidegate serve examples/mlp.py
    python examples/mlp.py

Its two million weights have to come from memory for every batch, whether that holds one row or 128: this is why
batches pay. The client asks about the tumours that were held out, first one after the other, then all at once.
"""

import sys
import time
from typing import Annotated

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from torch import nn

from tidegate import Array, Client, serve

# Each caller sends one row of 30 numbers. Whoever sends 29 gets 422 and the reason, and does not disturb the batch.
Row = Annotated[torch.Tensor, Array("float32", (30,))]

WIDTH = 1024


def tumours() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows to learn from, held-out rows, and whether each of the former and the latter is benign."""
    rows, benign = load_breast_cancer(return_X_y=True)
    learned, held_out, benign, held_benign = train_test_split(
        rows.astype("float32"), benign, test_size=0.3, random_state=0
    )
    return learned, held_out, benign, held_benign


def train(device: str) -> nn.Module:
    """Fit the network, once in each worker; a few seconds on one core."""
    torch.manual_seed(0)
    rows, _, benign, _ = tumours()
    x, y = torch.from_numpy(rows).to(device), torch.from_numpy(benign).to(device)
    net = nn.Sequential(
        nn.BatchNorm1d(30, momentum=None),
        nn.Linear(30, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, 1),
        nn.Flatten(0),
    ).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for _ in range(6):
        optimizer.zero_grad()
        loss: torch.Tensor = nn.functional.binary_cross_entropy_with_logits(net(x), y.float())
        torch.autograd.backward(loss)
        optimizer.step()
    return net.eval()


def example() -> torch.Tensor:
    """A held-out row: workers warm up with it, and `tidegate serve` prints it as a curl line."""
    _, held_out, _, _ = tumours()
    return torch.from_numpy(held_out[0])


@serve(max_batch_size=128, setup=train, warmup=example)
@torch.inference_mode()
def benign(net: nn.Module, rows: Row) -> torch.Tensor:
    """Measures of tumours (N, 30) to the probability of each (N,) that it is benign."""
    device = next(net.parameters()).device
    probabilities: torch.Tensor = net(rows.to(device)).sigmoid()
    return probabilities


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    _, rows, _, right = tumours()
    with Client(url) as client:
        begun = time.perf_counter()
        for row in rows:
            client.call(row)
        one_by_one = len(rows) / (time.perf_counter() - begun)

        begun = time.perf_counter()
        answers = np.array(list(client.map(rows)))
        at_once = len(rows) / (time.perf_counter() - begun)
    print(f"accuracy        {((answers > 0.5) == right).mean():.3f} of {len(rows)} tumours")
    print(f"one by one      {one_by_one:,.0f} rows/s")
    print(f"64 at once      {at_once:,.0f} rows/s")


if __name__ == "__main__":
    main()
