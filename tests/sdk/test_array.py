import dataclasses
from typing import Any

import numpy as np
import pytest

from tidegate import Array


@pytest.mark.parametrize(
    ("shape", "array_shape"),
    [(None, (2, 3)), ((2, 3), (2, 3)), ((None, 3), (5, 3)), ((None, 3), (0, 3)), ((), ())],
)
def test_an_array_of_the_promised_shape_has_no_problem(
    shape: tuple[int | None, ...] | None, array_shape: tuple[int, ...]
) -> None:
    assert Array(shape=shape).problem(np.zeros(array_shape)) is None


@pytest.mark.parametrize(
    ("shape", "array_shape", "problem"),
    [
        ((2, 3), (3, 2), "expected an array of shape (2, 3), got (3, 2)"),
        ((None, 3), (5, 2), "expected an array of shape (*, 3), got (5, 2)"),
        ((3,), (3, 1), "expected an array of shape (3,), got (3, 1)"),
        ((3,), (), "expected an array of shape (3,), got ()"),
        ((), (1,), "expected an array of shape (), got (1,)"),
    ],
)
def test_a_wrong_shape_is_described_beside_the_one_that_was_found(
    shape: tuple[int | None, ...], array_shape: tuple[int, ...], problem: str
) -> None:
    assert Array(shape=shape).problem(np.zeros(array_shape)) == problem


@pytest.mark.parametrize("dtype", ["floaty", "str", "object", "datetime64[s]", []])
def test_a_dtype_that_holds_no_json_numbers_is_refused_with_the_value_and_a_fix(dtype: Any) -> None:
    with pytest.raises(TypeError) as caught:
        Array(dtype)
    assert f"dtype={dtype!r}" in str(caught.value)
    assert "'float32'" in str(caught.value)


@pytest.mark.parametrize("shape", [3, [3, 3], (-1,), (True,), (2.0,), ("3",)])
def test_a_shape_that_is_no_tuple_of_lengths_is_refused_with_the_value_and_a_fix(shape: Any) -> None:
    with pytest.raises(ValueError) as caught:
        Array(shape=shape)
    assert f"shape={shape!r}" in str(caught.value)
    assert "tuple of lengths" in str(caught.value)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_numbers_are_refused_with_a_way_around(dtype: str) -> None:
    with pytest.raises(TypeError, match="a last axis of length 2"):
        Array(dtype)


@pytest.mark.parametrize(
    ("array", "nbytes"),
    [
        (Array("float32", (2, 3)), 24),
        (Array("bool", ()), 1),
        (Array("int64", (0, 5)), 0),
        (Array("float32"), None),
        (Array(shape=(2,)), None),
        (Array("float32", (2, None)), None),
        (Array("bfloat16", (2,)), None),
    ],
)
def test_its_size_is_known_where_dtype_and_shape_are(array: Array, nbytes: int | None) -> None:
    assert array.nbytes == nbytes


def test_a_promise_cannot_be_changed_afterwards() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(Array("float32"), "dtype", "int8")  # noqa: B010 - mypy knows that it is frozen


def test_equal_promises_are_equal_and_hash_alike() -> None:
    assert {Array("float32", (3,)), Array("float32", (3,)), Array("float32")} == {
        Array("float32", (3,)),
        Array("float32"),
    }
