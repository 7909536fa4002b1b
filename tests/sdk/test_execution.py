import threading
from typing import Any

import numpy as np
import pytest
import torch

from tidegate import Handler, serve
from tidegate.execution import Execution, drive
from tidegate_batching import Batch, BatchSizeMismatch


def started(handler: Handler[..., Any], device: str = "cpu") -> Execution:
    handler.freeze()
    execution = Execution(handler, device)
    drive(execution.start())
    return execution


def outputs_of(execution: Execution, values: list[Any]) -> list[Any]:
    prepared = drive(execution.decode(Batch.of(values)))
    return list(drive(execution.encode(prepared, drive(execution.run(prepared)))))


def ran(handler: Handler[..., Any], values: list[Any]) -> list[Any]:
    return outputs_of(started(handler), values)


def test_an_unbatched_function_gets_the_item_itself() -> None:
    assert ran(serve(name="length")(len), ["text"]) == [4]


def test_an_unbatched_functions_list_is_one_output() -> None:
    @serve
    def pair(x: int) -> list[int]:
        return [x, x]

    assert ran(pair, [3]) == [[3, 3]]


def test_a_batched_function_gets_the_stacked_batch_also_for_one_item() -> None:
    shapes = []

    @serve(max_batch_size=4)
    def double(x: np.ndarray) -> np.ndarray:
        shapes.append(x.shape)
        return x * 2

    assert [output.tolist() for output in ran(double, [np.array([1, 2])])] == [[2, 4]]
    assert [output.tolist() for output in ran(double, [np.array([1, 2]), np.array([3, 4])])] == [[2, 4], [6, 8]]
    assert shapes == [(1, 2), (2, 2)]


def test_values_without_arrays_are_given_as_a_list() -> None:
    @serve(max_batch_size=4)
    def upper(x: list[str]) -> list[str]:
        assert type(x) is list
        return [text.upper() for text in x]

    assert ran(upper, ["a", "b"]) == ["A", "B"]


def test_setup_gets_the_device_once_and_its_state_comes_before_the_data() -> None:
    devices = []

    def load(device: str) -> dict[str, int]:
        devices.append(device)
        return {"factor": 3}

    @serve(max_batch_size=4, setup=load)
    def scale(state: dict[str, int], x: list[int]) -> list[int]:
        return [state["factor"] * n for n in x]

    execution = started(scale, "cuda:1")
    assert outputs_of(execution, [1, 2]) == [3, 6]
    assert outputs_of(execution, [5]) == [15]
    assert devices == ["cuda:1"]


def test_a_setup_that_returns_none_still_gives_a_state() -> None:
    @serve(setup=lambda device: None)
    def which(state: None, x: int) -> tuple[None, int]:
        return state, x

    assert ran(which, [1]) == [(None, 1)]


def test_batch_and_unbatch_replace_stacking_and_splitting() -> None:
    def pad(items: list[list[int]]) -> np.ndarray:
        longest = max(map(len, items))
        return np.array([item + [0] * (longest - len(item)) for item in items])

    @serve(max_batch_size=4, batch=pad, unbatch=lambda output: (int(n) for n in output))
    def total(x: np.ndarray) -> Any:
        return x.sum(1)

    assert ran(total, [[1, 2, 3], [4]]) == [6, 4]


def test_the_batch_may_be_on_different_axes_of_input_and_output() -> None:
    @serve(max_batch_size=4, batch_dim=(-1, 0))
    def columns(x: torch.Tensor) -> torch.Tensor:
        assert tuple(x.shape) == (3, 2)
        return x.T * 2

    outputs = ran(columns, [torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])])
    assert [output.tolist() for output in outputs] == [[2, 4, 6], [8, 10, 12]]


def test_structures_pass_through_leaf_by_leaf() -> None:
    @serve(max_batch_size=4)
    def swap(x: dict[str, Any]) -> dict[str, Any]:
        return {"b": x["a"] + 1, "name": x["name"]}

    assert ran(swap, [{"a": np.array(1), "name": "one"}, {"a": np.array(2), "name": "two"}]) == [
        {"b": 2, "name": "one"},
        {"b": 3, "name": "two"},
    ]


def test_a_wrong_number_of_outputs_is_an_error_and_not_guessed_at() -> None:
    @serve(max_batch_size=4)
    def short(x: list[int]) -> list[int]:
        return x[:-1]

    with pytest.raises(BatchSizeMismatch, match="3 items and returned 2"):
        ran(short, [1, 2, 3])


def test_an_exception_in_an_items_place_stays_there() -> None:
    refused = ValueError("odd")

    @serve(max_batch_size=4)
    def even(x: list[int]) -> list[int | ValueError]:
        return [refused if n % 2 else n for n in x]

    assert ran(even, [1, 2]) == [refused, 2]


@pytest.mark.parametrize("hook", ["batch", "function", "unbatch"])
def test_what_a_hook_or_the_function_raises_comes_out(hook: str) -> None:
    error = ZeroDivisionError(hook)

    def at(place: str) -> Any:
        def step(x: Any) -> Any:
            if place == hook:
                raise error
            return x

        return step

    handler: Handler[..., Any] = serve(name="f", max_batch_size=2, batch=at("batch"), unbatch=at("unbatch"))(
        at("function")
    )
    with pytest.raises(ZeroDivisionError) as caught:
        ran(handler, [1])
    assert caught.value is error


def test_an_output_of_a_type_that_cannot_be_split_is_an_error_that_names_it() -> None:
    @serve(max_batch_size=4)
    def total(x: np.ndarray) -> float:
        return float(x.sum())

    with pytest.raises(TypeError, match="a value of type float"):
        ran(total, [np.zeros(2)])


def test_everything_runs_on_the_thread_that_runs_the_execution() -> None:
    threads = set()

    def seen(x: Any) -> Any:
        threads.add(threading.get_ident())
        return x

    @serve(max_batch_size=2, setup=seen, batch=seen, unbatch=seen)
    def handler(state: Any, x: list[int]) -> list[int]:
        seen(x)
        return x

    assert ran(handler, [1]) == [1]
    assert threads == {threading.get_ident()}
