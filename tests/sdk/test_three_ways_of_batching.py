"""The three ways of batching, as the design names them, with both kinds of arrays and on every axis."""

from typing import Any

import numpy as np
import pytest
import torch

from tidegate import Handler, LocalClient, serve

KINDS: dict[str, Any] = {"numpy": np.asarray, "torch": torch.as_tensor}
STACKED = {0: (3, 2, 4), 1: (2, 3, 4), -1: (2, 4, 3)}


class Seen:
    """What the function got, and what callers got from it."""

    def __init__(self) -> None:
        self.batches: list[Any] = []

    def handler(self, function: Any, **options: Any) -> Handler[..., Any]:
        def noted(x: Any) -> Any:
            self.batches.append(x)
            return function(x)

        # The window is longer than any machine is slow: three callers are one batch.
        return serve(**{"max_batch_size": 3, "batch_timeout": 5.0, "name": "f", **options})(noted)


def requests(shape: tuple[int, ...] = (2, 4)) -> list[dict[str, Any]]:
    return [{"input": np.full(shape, float(n)).tolist()} for n in range(1, 4)]


def answers(handler: Handler[..., Any], inputs: list[Any]) -> list[Any]:
    with LocalClient(handler) as client:
        return list(client.map(inputs))


def is_of(kind: str, value: Any) -> bool:
    return isinstance(value, np.ndarray if kind == "numpy" else torch.Tensor)


@pytest.mark.parametrize("dim", STACKED)
@pytest.mark.parametrize("kind", KINDS)
def test_first_decode_request_gives_arrays_and_nothing_else_is_written(kind: str, dim: int) -> None:
    def decode_request(request: dict[str, Any]) -> Any:
        return KINDS[kind](request["input"])

    seen = Seen()
    outputs = answers(seen.handler(lambda x: x**2, decode_request=decode_request, batch_dim=dim), requests())
    (batch,) = seen.batches
    assert is_of(kind, batch)
    assert tuple(batch.shape) == STACKED[dim]
    assert all(is_of(kind, output) for output in outputs)
    assert [output.tolist() for output in outputs] == [np.full((2, 4), float(n**2)).tolist() for n in range(1, 4)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_axes_of_input_and_output_may_differ(kind: str) -> None:
    seen = Seen()
    handler = seen.handler(lambda x: x.sum(0), decode_request=lambda r: KINDS[kind](r["input"]), batch_dim=(-1, 1))
    outputs = answers(handler, requests())
    # (2, 4) stacked on the last axis is (2, 4, 3); summed over the first it is (4, 3).
    assert [output.tolist() for output in outputs] == [[2.0 * n] * 4 for n in range(1, 4)]


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_several_shapes_are_never_stacked(kind: str) -> None:
    seen = Seen()
    handler = seen.handler(lambda x: x + 1, decode_request=KINDS[kind])
    outputs = answers(handler, [[1, 2], [3], [4, 5]])
    assert sorted(tuple(batch.shape) for batch in seen.batches) == [(1, 1), (2, 2)]
    assert [output.tolist() for output in outputs] == [[2, 3], [4], [5, 6]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_annotation_alone_makes_arrays_too(kind: str) -> None:
    def triple_numpy(x: np.ndarray) -> np.ndarray:
        return x * 3

    def triple_torch(x: torch.Tensor) -> torch.Tensor:
        return x * 3

    handler: Handler[..., Any] = serve(max_batch_size=3)(triple_numpy if kind == "numpy" else triple_torch)
    inputs = [handler.codec.decode_json(body) for body in (b"[1, 2]", b"[3, 4]")]
    assert all(is_of(kind, value) for value in inputs)
    assert [output.tolist() for output in answers(handler, inputs)] == [[3, 6], [9, 12]]


@pytest.mark.parametrize("kind", KINDS)
def test_second_batch_and_unbatch_of_ones_own(kind: str) -> None:
    def batch(items: list[dict[str, Any]]) -> Any:
        assert all(isinstance(item, dict) for item in items)
        longest = max(len(item["input"]) for item in items)
        return KINDS[kind]([item["input"] + [0] * (longest - len(item["input"])) for item in items])

    def unbatch(output: Any) -> list[dict[str, Any]]:
        return [{"sum": row} for row in output.tolist()]

    seen = Seen()
    handler = seen.handler(lambda x: x.sum(1), batch=batch, unbatch=unbatch)
    outputs = answers(handler, [{"input": [1, 2, 3]}, {"input": [4]}, {"input": []}])
    (padded,) = seen.batches
    assert is_of(kind, padded)
    assert padded.tolist() == [[1, 2, 3], [4, 0, 0], [0, 0, 0]]
    assert outputs == [{"sum": 6}, {"sum": 4}, {"sum": 0}]


@pytest.mark.parametrize("dim", STACKED)
@pytest.mark.parametrize("kind", KINDS)
def test_third_decode_request_gives_tensors_and_batch_and_unbatch_are_ones_own(kind: str, dim: int) -> None:
    def decode_request(request: dict[str, Any]) -> Any:
        return KINDS[kind](request["input"])

    def batch(items: list[Any]) -> Any:
        assert all(is_of(kind, item) for item in items)
        return np.stack(items, dim) if kind == "numpy" else torch.stack(items, dim)

    def unbatch(output: Any) -> list[Any]:
        return list(np.moveaxis(output, dim, 0)) if kind == "numpy" else list(output.unbind(dim))

    seen = Seen()
    handler = seen.handler(lambda x: x * 10, decode_request=decode_request, batch=batch, unbatch=unbatch)
    outputs = answers(handler, requests())
    (stacked,) = seen.batches
    assert tuple(stacked.shape) == STACKED[dim]
    assert [output.tolist() for output in outputs] == [np.full((2, 4), 10.0 * n).tolist() for n in range(1, 4)]


@pytest.mark.parametrize("kind", KINDS)
def test_behind_a_batch_hook_arrays_of_several_shapes_share_a_batch(kind: str) -> None:
    seen = Seen()
    join: Any = np.concatenate if kind == "numpy" else torch.cat
    handler = seen.handler(
        lambda x: x * 2,
        decode_request=KINDS[kind],
        batch=join,
        unbatch=lambda output: [output[:2], output[2:3], output[3:]],
    )
    assert [output.tolist() for output in answers(handler, [[1, 2], [3], [4, 5]])] == [[2, 4], [6], [8, 10]]
    assert len(seen.batches) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_ones_own_batch_goes_with_the_default_way_back_and_the_other_way_round(kind: str) -> None:
    decode = KINDS[kind]
    join: Any = np.stack if kind == "numpy" else torch.stack
    own_batch = Seen().handler(lambda x: x + 1, decode_request=decode, batch=join)
    own_unbatch = Seen().handler(lambda x: x + 1, decode_request=decode, unbatch=lambda output: output.tolist())
    assert [output.tolist() for output in answers(own_batch, [[1], [2], [3]])] == [[2], [3], [4]]
    assert answers(own_unbatch, [[1], [2], [3]]) == [[2], [3], [4]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_function_may_use_its_output_buffer_again(kind: str) -> None:
    buffer: Any = np.zeros((1, 2)) if kind == "numpy" else torch.zeros((1, 2), dtype=torch.float64)

    def reuse(x: Any) -> Any:
        buffer[:] = x
        return buffer

    handler: Handler[..., Any] = serve(max_batch_size=1, decode_request=KINDS[kind])(reuse)
    outputs = answers(handler, [[1.0, 1.0], [2.0, 2.0]])
    assert [output.tolist() for output in outputs] == [[1.0, 1.0], [2.0, 2.0]]


def test_tensors_come_back_without_their_gradients() -> None:
    weight = torch.ones(2, requires_grad=True)
    handler = Seen().handler(lambda x: x * weight, decode_request=torch.as_tensor)
    (output,) = answers(handler, [[1.0, 2.0]])
    assert not output.requires_grad
