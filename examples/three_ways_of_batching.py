"""The three ways to make a batch, once with NumPy and once with torch.

Run it:

    python examples/three_ways_of_batching.py

It calls each handler in this process, through the real batcher, and prints what goes in and what comes out.
"""

from typing import Any

import numpy as np
import torch

from tidegate import Handler, LocalClient, serve

Request = dict[str, Any]

# (1) `decode_request` gives an array, and nothing else is written: arrays of one shape and dtype are stacked on a new
#     first axis, and the output is split along it. `batch_dim=` names another axis.


def read_array(request: Request) -> np.ndarray:
    return np.asarray(request["input"])


@serve(max_batch_size=8, decode_request=read_array)
def square_numpy(x: np.ndarray) -> np.ndarray:
    return x**2


def read_tensor(request: Request) -> torch.Tensor:
    return torch.as_tensor(request["input"])


@serve(max_batch_size=8, decode_request=read_tensor)
def square_torch(x: torch.Tensor) -> torch.Tensor:
    return x**2


# (2) `batch` and `unbatch` of one's own: for items that are no arrays, or not of one shape. Here `batch` gets the JSON
#     values and pads them.


@serve(max_batch_size=8)
def mean_numpy(batch: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    padded, lengths = batch
    means: np.ndarray = padded.sum(axis=1) / lengths
    return means


@mean_numpy.batch
def pad(requests: list[Request]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(request["input"]) for request in requests])
    padded = np.zeros((len(requests), lengths.max()))
    for row, request in zip(padded, requests, strict=True):
        row[: len(request["input"])] = request["input"]
    return padded, lengths


@mean_numpy.unbatch
def one_by_one(means: np.ndarray) -> list[Request]:
    return [{"mean": float(mean)} for mean in means]


@serve(max_batch_size=8)
def mean_torch(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    padded, lengths = batch
    return padded.sum(dim=1) / lengths


@mean_torch.batch
def pad_torch(requests: list[Request]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [torch.tensor(request["input"], dtype=torch.float32) for request in requests]
    lengths = torch.tensor([len(row) for row in rows])
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths


@mean_torch.unbatch
def one_by_one_torch(means: torch.Tensor) -> list[Request]:
    return [{"mean": mean} for mean in means.tolist()]


# (3) Both: `decode_request` gives arrays, one by one and beside the running batch; `batch` puts them together in a way
#     of its own, here end to end, and `unbatch` takes the output apart again.


@serve(max_batch_size=8, decode_request=read_array)
def softmax_numpy(batch: tuple[np.ndarray, list[int]]) -> tuple[np.ndarray, list[int]]:
    joined, starts = batch
    exponents = np.exp(joined - joined.max())
    sums = np.add.reduceat(exponents, starts)
    return exponents / np.repeat(sums, np.diff([*starts, len(joined)])), starts


@softmax_numpy.batch
def join(arrays: list[np.ndarray]) -> tuple[np.ndarray, list[int]]:
    lengths = [len(array) for array in arrays]
    return np.concatenate(arrays), [0, *np.cumsum(lengths[:-1]).tolist()]


@softmax_numpy.unbatch
def part(output: tuple[np.ndarray, list[int]]) -> list[np.ndarray]:
    joined, starts = output
    return np.split(joined, starts[1:])


@serve(max_batch_size=8, decode_request=read_tensor)
def softmax_torch(batch: tuple[torch.Tensor, list[int]]) -> tuple[torch.Tensor, list[int]]:
    joined, lengths = batch
    return torch.cat([row.softmax(0) for row in torch.split(joined, lengths)]), lengths


@softmax_torch.batch
def join_torch(tensors: list[torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
    return torch.cat(tensors).float(), [len(tensor) for tensor in tensors]


@softmax_torch.unbatch
def part_torch(output: tuple[torch.Tensor, list[int]]) -> list[torch.Tensor]:
    joined, lengths = output
    return list(torch.split(joined, lengths))


HANDLERS: list[Handler[..., Any]] = [square_numpy, square_torch, mean_numpy, mean_torch, softmax_numpy, softmax_torch]


def main() -> None:
    equal: list[Request] = [{"input": [1.0, 2.0]}, {"input": [3.0, 4.0]}]
    ragged: list[Request] = [{"input": [1.0, 2.0, 3.0]}, {"input": [4.0]}]
    with LocalClient(*HANDLERS) as client:
        for handler in HANDLERS:
            requests = equal if handler in (square_numpy, square_torch) else ragged
            print(handler.name)
            for request, output in zip(requests, client.map(requests, handler=handler.name), strict=True):
                print(
                    f"    {request} -> {output if isinstance(output, dict) else [round(n, 3) for n in output.tolist()]}"
                )


if __name__ == "__main__":
    main()
