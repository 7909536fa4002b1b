import dataclasses
import inspect
from collections.abc import Sequence
from typing import Annotated, Any, assert_type

import msgspec
import numpy as np
import pytest

from tidegate import Array, Handler, serve


class Point(msgspec.Struct):
    x: int


def first(x: int) -> int:
    """Give it back."""
    return x


def test_calling_a_handler_calls_the_function_with_all_its_arguments() -> None:
    @serve(max_batch_size=4)
    def scale(x: list[float], by: float = 2.0, *, plus: float = 0.0) -> list[float]:
        return [n * by + plus for n in x]

    answer = scale([1.0], 3.0, plus=1.0)
    assert_type(answer, list[float])
    assert answer == [4.0]


def test_a_handler_looks_like_its_function() -> None:
    handler = serve(first)
    assert vars(handler)["__name__"] == "first"
    assert (handler.__doc__, handler.__module__) == ("Give it back.", __name__)
    assert inspect.signature(handler) == inspect.signature(first)
    assert handler.function is first
    assert repr(handler) == "<Handler first>"


def test_a_size_makes_a_handler_batched_also_when_it_is_one() -> None:
    def echo(x: list[int]) -> list[int]:
        return x

    assert [serve(max_batch_size=size)(echo).batched for size in (None, 1, 2)] == [False, True, True]


def test_options_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(serve(first).options, "name", "other")  # noqa: B010 - mypy knows that it is frozen


@pytest.mark.parametrize(
    ("annotation", "item"),
    [
        (list[int], int),
        (list[Point], Point),
        (Sequence[str], str),
        (list[dict[str, int]], dict[str, int]),
        (list[np.ndarray], np.ndarray),
        (list[Annotated[np.ndarray, Array("float32", (2,))]], np.ndarray),
        (np.ndarray, np.ndarray),
        (list, inspect.Parameter.empty),
        (inspect.Parameter.empty, inspect.Parameter.empty),
    ],
)
def test_a_batched_functions_annotation_says_what_one_item_is(annotation: Any, item: Any) -> None:
    def function(x):  # type: ignore[no-untyped-def]
        return x

    if annotation is not inspect.Parameter.empty:
        function.__annotations__["x"] = annotation
    assert serve(max_batch_size=4)(function).codec.annotation == item


def test_an_unbatched_functions_annotation_is_the_items_own() -> None:
    @serve
    def total(x: list[int]) -> int:
        return sum(x)

    assert total.codec.annotation == list[int]


def test_the_arrays_promise_is_kept_for_its_items() -> None:
    @serve(max_batch_size=4)
    def double(x: Annotated[np.ndarray, Array("float32", (2,))]) -> np.ndarray:
        return x * 2

    assert double.codec.array == Array("float32", (2,))


def test_with_setup_the_second_parameter_is_the_data() -> None:
    @serve(max_batch_size=4, setup=lambda device: 3)
    def scale(factor: float, x: list[int]) -> list[float]:
        return [factor * n for n in x]

    assert scale.codec.annotation is int


def test_behind_a_batch_hook_the_annotation_says_nothing_about_an_item_unless_it_is_a_list() -> None:
    def padded(x: np.ndarray) -> np.ndarray:
        return x

    def listed(x: list[int]) -> list[int]:
        return x

    assert serve(max_batch_size=4, batch=np.stack)(padded).codec.annotation is inspect.Parameter.empty
    assert serve(max_batch_size=4, batch=list)(listed).codec.annotation is int


def no_data() -> int:
    return 1


def two(a: int, b: int) -> int:
    return a + b


def keyword(a: int, *, b: int) -> int:
    return a + b


def optional(a: int = 1) -> int:
    return a


def many(*a: int) -> int:
    return sum(a)


@pytest.mark.parametrize("function", [no_data, two, keyword, optional, many])
def test_a_function_that_does_not_take_exactly_the_data_is_refused_by_name_with_a_fix(function: Any) -> None:
    with pytest.raises(TypeError) as caught:
        serve(function)
    assert f"{function.__name__}() takes" in str(caught.value)
    assert "a handler takes (data)" in str(caught.value)
    assert "one tuple, dict or Struct" in str(caught.value)


@pytest.mark.parametrize(("size", "data"), [(None, "one item"), (4, "a batch")])
def test_with_setup_the_refusal_says_that_the_state_comes_first(size: int | None, data: str) -> None:
    with pytest.raises(TypeError) as caught:
        serve(max_batch_size=size, setup=str)(first)
    assert "takes (state, data)" in str(caught.value)
    assert f"data is {data}" in str(caught.value)


def test_annotations_that_cannot_be_read_are_refused_with_the_handlers_name() -> None:
    def lost(x: "Nowhere") -> int:  # type: ignore[name-defined]  # noqa: F821
        return 1

    with pytest.raises(TypeError) as caught:
        serve(lost)
    assert "lost()" in str(caught.value)
    assert "Nowhere" in str(caught.value)


def test_a_class_of_the_users_may_be_named_by_a_string() -> None:
    def shift(p: "Point") -> int:
        return p.x

    assert serve(shift).codec.annotation is Point


@pytest.mark.parametrize(
    ("size", "workers", "expected"), [(None, 1, 1024), (64, 1, 1024), (512, 1, 2048), (64, 8, 2048)]
)
def test_an_automatic_queue_holds_four_full_batches_per_worker_and_1024_at_least(
    size: int | None, workers: int, expected: int
) -> None:
    assert serve(max_batch_size=size)(first).options.policy(workers).max_queue_size == expected


def test_a_given_queue_size_and_window_reach_the_policy() -> None:
    policy = serve(max_batch_size=3, batch_timeout=0.5, max_queue_size=7)(first).options.policy()
    assert (policy.max_batch_size, policy.batch_timeout, policy.max_queue_size) == (3, 0.5, 7)


def test_an_unbatched_function_runs_its_items_one_by_one() -> None:
    assert serve(first).options.policy().max_batch_size == 1


@pytest.mark.parametrize(("given", "dims"), [(0, (0, 0)), (-1, (-1, -1)), ((1, 0), (1, 0))])
def test_one_batch_axis_is_that_of_input_and_output(given: int | tuple[int, int], dims: tuple[int, int]) -> None:
    assert serve(max_batch_size=2, batch_dim=given)(first).options.dims == dims


def test_only_arrays_of_one_shape_and_dtype_share_a_batch_unless_there_is_a_batch_hook() -> None:
    def echo(x: list[Any]) -> list[Any]:
        return x

    short, long = np.zeros(2), np.zeros(3)
    plain: Handler[..., Any] = serve(max_batch_size=4)(echo)
    assert plain.group(short) == plain.group(np.ones(2)) != plain.group(long)
    assert plain.group("text") == plain.group({"any": 1})
    hooked: Handler[..., Any] = serve(max_batch_size=4, batch=list)(echo)
    assert hooked.group(short) == hooked.group(long)
