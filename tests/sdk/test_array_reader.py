import json
import time
from typing import Any

import numpy as np
import pytest
import torch

from tidegate import Array
from tidegate.array_layout import Misfit, to_map, to_npy
from tidegate.array_reader import ArrayReader


def read(value: Any, dtype: str | None = None, shape: Any = None, **options: Any) -> Any:
    return ArrayReader(Array(dtype, shape), **options).read(value)


def refusal(value: Any, dtype: str | None = None, **options: Any) -> tuple[str, str]:
    with pytest.raises(Misfit) as caught:
        read(value, dtype, **options)
    return caught.value.text, caught.value.path


# ---------------------------------------------------------------------- values of every kind


@pytest.mark.parametrize(
    "value",
    [
        [[1, 2.5]],
        ([1, 2.5],),
        np.array([[1, 2.5]]),
        np.array([[1, 2.5]], ">f4"),
        torch.tensor([[1, 2.5]]),
        torch.tensor([[1, 2.5]], dtype=torch.bfloat16),
        {"dtype": "float16", "shape": [1, 2], "data": np.array([1, 2.5], "float16").tobytes()},
        [[np.int64(1), np.float32(2.5)]],
    ],
)
@pytest.mark.parametrize("tensor", [False, True])
def test_an_array_may_come_as_lists_as_a_map_or_as_one(value: Any, tensor: bool) -> None:
    for dtype in ("float32", None):
        found = read(value, dtype, tensor=tensor)
        assert isinstance(found, torch.Tensor if tensor else np.ndarray)
        assert found.tolist() == [[1, 2.5]]
        assert dtype is None or str(found.dtype).endswith("float32")


@pytest.mark.parametrize(
    ("value", "dtype"), [(3, "int64"), (2.5, "float64"), (True, "bool"), (np.float32(1), "float32")]
)
def test_a_single_number_is_an_array_without_axes(value: Any, dtype: str) -> None:
    found = read(value)
    assert (found.shape, found.dtype) == ((), np.dtype(dtype))


def test_torchs_default_dtype_stands_in_for_float64_and_for_nothing_else() -> None:
    assert read([1.5], tensor=True).dtype == torch.float32
    assert read(np.array([1.5]), tensor=True).dtype == torch.float32
    assert read(np.array([1.5], "float16"), tensor=True).dtype == torch.float16
    assert read([1], tensor=True).dtype == torch.int64
    assert read(torch.tensor([1.5], dtype=torch.float64), tensor=True).dtype == torch.float64


def test_bfloat16_is_for_tensors() -> None:
    assert read([1.5, 2], "bfloat16", tensor=True).dtype == torch.bfloat16
    assert refusal([1.5, 3.4e38], "bfloat16", tensor=True) == ("3.4e+38 does not fit into bfloat16", "[1]")
    with pytest.raises(TypeError, match="annotate a torch.Tensor"):
        ArrayReader(Array("bfloat16"))


def test_a_tensor_of_the_wanted_dtype_is_passed_on() -> None:
    tensor = torch.ones(2)
    assert read(tensor, "float32", (2,), tensor=True) is tensor


@pytest.mark.parametrize(
    "array", [np.arange(6).reshape(2, 3).T, np.arange(4)[::-1], np.arange(3, dtype=">i4"), np.array(3)]
)
def test_any_layout_becomes_a_tensor(array: np.ndarray) -> None:
    assert read(array, tensor=True).tolist() == array.tolist()


def test_an_array_may_be_written_to_unless_its_reader_copies_it_anyway() -> None:
    body = to_npy(np.arange(3))
    assert ArrayReader(Array()).read_npy(body).flags.writeable
    kept = ArrayReader(Array(), writable=False).read_npy(body)
    assert np.shares_memory(kept, np.frombuffer(body, np.uint8))
    assert ArrayReader(Array(), tensor=True, writable=False).read_npy(body).add_(1).tolist() == [1, 2, 3]


def test_unaligned_bytes_are_copied() -> None:
    body = (
        b"\x93NUMPY\x01\x00\x3b\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }  \n"[:59] + bytes(16)
    )
    assert ArrayReader(Array(), writable=False).read_npy(body).flags.aligned


# ---------------------------------------------------------------------- numbers that do not fit


@pytest.mark.parametrize(
    ("value", "dtype", "told"),
    [
        ([0, 256], "uint8", ("256 does not fit into uint8", "[1]")),
        ([[-1]], "uint64", ("-1 does not fit into uint64", "[0][0]")),
        ([2], "bool", ("2 does not fit into bool", "[0]")),
        ([1.0, 1.5], "int32", ("1.5 does not fit into int32, which takes whole numbers", "[1]")),
        ([1e39], "float32", ("1e+39 does not fit into float32", "[0]")),
        ([1, -70000], "float16", ("-70000 does not fit into float16", "[1]")),
        ([2**63], "int64", ("9223372036854775808 does not fit into int64", "[0]")),
        ([1, 2**4000], "uint8", ("a whole number of 4001 bits does not fit into uint8", "[1]")),
        (np.array([np.nan]), "int8", ("nan does not fit into int8, which takes whole numbers", "[0]")),
        (np.array(300), "uint8", ("300 does not fit into uint8", "")),
    ],
)
def test_a_number_that_would_change_is_refused_with_its_place(value: Any, dtype: str, told: tuple[str, str]) -> None:
    assert refusal(value, dtype) == told


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ([1.0, 2.0], "int8"),
        ([2**63, 1], "uint64"),
        ([[2**64 - 1], [0]], "uint64"),
        ([2**70, 1], "float64"),
        ([0.1], "float16"),
        ([True, False], "float32"),
        ([0, 1], "bool"),
        ([2**53 + 1], "float64"),
        ([], "int8"),
    ],
)
def test_a_number_that_fits_is_taken(value: Any, dtype: str) -> None:
    assert np.array_equal(read(value, dtype), np.array(value, dtype))


def test_nan_and_infinity_of_an_array_stay_what_they_are() -> None:
    assert str(read(np.array([np.nan, np.inf]), "float32").tolist()) == "[nan, inf]"


def test_whole_numbers_beyond_int64_need_a_dtype() -> None:
    text, path = refusal([1, 2**63])
    assert "got 9223372036854775808: annotate Array('uint64')" in text
    assert path == "[1]"
    assert refusal([-1, 2**63])[1] == "[1]"
    assert "float64 holds" in refusal([0.5, 10**400])[0]


# ---------------------------------------------------------------------- what is no array


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (["a"], ("expected an array of numbers, got text", "[0]")),
        ([[1], [None]], ("expected an array of numbers, got null", "[1][0]")),
        ([1, {"a": 1}], ("expected an array of numbers, got an object", "[1]")),
        ([1, True], ("expected an array of numbers, got true or false among numbers", "[1]")),
        (b"abc", ("expected an array of numbers, got bytes", "")),
        ([[1], [1, 2]], ("expected an array, got nested lists of unequal lengths", "")),
        ([[1], 2], ("expected an array, got nested lists of unequal lengths", "")),
        ([[], [1]], ("expected an array, got nested lists of unequal lengths", "")),
        (np.array(["a"]), ("expected an array of numbers, got dtype <U1", "")),
    ],
)
def test_what_is_no_number_is_refused_with_its_place(value: Any, told: tuple[str, str]) -> None:
    assert refusal(value) == told


def test_complex_numbers_are_refused_with_a_way_around() -> None:
    assert "as a last axis" in refusal(np.array([1j]))[0]
    assert "complex128" in refusal(torch.tensor([1j]).to(torch.complex128))[0]


@pytest.mark.parametrize("depth", [33, 900])
def test_lists_nested_deeper_than_an_array_has_axes_are_refused(depth: int) -> None:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    assert "nested deeper than its 32" in refusal(value)[0]
    assert read(json.loads("[" * 32 + "1" + "]" * 32)).ndim == 32


@pytest.mark.parametrize(
    "value",
    [
        ["x" * 1_000_000, *[""] * 200_000],
        [[1] * 1000] * 300 + [[1]],
        [[[]] * 200_000],
        [*range(300_000), "x"],
        [10**4000] * 500,
    ],
)
@pytest.mark.parametrize("dtype", [None, "float32", "int8"])
def test_hostile_lists_cost_neither_time_nor_memory(value: Any, dtype: str | None) -> None:
    began = time.perf_counter()
    try:
        read(value, dtype)
    except Misfit:
        pass
    assert time.perf_counter() - began < 5


# ---------------------------------------------------------------------- JSON text and forms


@pytest.mark.parametrize(
    "body",
    [b" [ [1 , 2],[3,4] ] ", b"[1.5]", b"[1e3]", b"[]", b"[[],[]]", b"7", b"[true]", b"[18446744073709551616.5]"],
)
@pytest.mark.parametrize("dtype", [None, "float32", "float64"])
def test_json_text_gives_what_its_parsed_value_gives(body: bytes, dtype: str | None) -> None:
    reader = ArrayReader(Array(dtype))
    one, other = reader.read_json(body), reader.read(json.loads(body))
    assert one.dtype == other.dtype
    assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("value", "numbers"),
    [("[1, 2]", [1, 2]), ("3.5", 3.5), (["1", "2.5"], [1, 2.5]), (to_npy(np.arange(2)), [0, 1]), ([1], [1])],
)
def test_in_a_form_numbers_are_text_and_arrays_may_be_files(value: Any, numbers: Any) -> None:
    assert ArrayReader(Array()).read(value, lax=True).tolist() == numbers


def test_in_a_form_a_file_may_be_bare_bytes_where_dtype_and_shape_are_promised() -> None:
    reader = ArrayReader(Array("int16", (2,)))
    assert reader.read(b"\1\0\2\0", lax=True).tolist() == [1, 2]
    assert reader.read(to_npy(np.array([1, 2])), lax=True).tolist() == [1, 2]


@pytest.mark.parametrize("value", ["", "one", "[" * 100_000, ["1", "x"]])
def test_in_a_form_text_that_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(Misfit, match="numbers as JSON"):
        ArrayReader(Array()).read(value, lax=True)


def test_a_map_is_read_over_its_bytes() -> None:
    written = to_map(np.arange(3))
    value = {**written, "shape": [3], "data": bytes(written["data"])}
    found = ArrayReader(Array(), writable=False).read(value)
    assert np.shares_memory(found, np.frombuffer(value["data"], np.uint8))
