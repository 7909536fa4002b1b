import io
import itertools
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tidegate import MalformedBody
from tidegate.array_layout import Misfit, from_bytes, from_map, from_npy, from_tensor, is_map, to_map, to_npy

DTYPES = [
    "bool",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "float16",
    "float32",
    "float64",
]

arrays = st.sampled_from([*DTYPES, ">f4", ">i8", ">u2"]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return (
        one.shape == other.shape
        and one.dtype.name == other.dtype.name
        and one.tolist().__repr__() == repr(other.tolist())
    )


def header(text: bytes, version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + len(text).to_bytes(2 if version[0] == 1 else 4, "little") + text


def map_of(dtype: Any = "float32", shape: Any = (), data: Any = bytes(4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data": data}


# ---------------------------------------------------------------------- there and back


@given(arrays)
def test_an_array_comes_back_from_npy_as_it_was(array: np.ndarray) -> None:
    assert same(from_npy(to_npy(array)), array)
    assert same(from_npy(to_npy(array.T)), array.T)
    assert same(np.load(io.BytesIO(to_npy(array)), allow_pickle=False), array)


@given(arrays)
def test_an_array_comes_back_from_msgpacks_map_as_it_was(array: np.ndarray) -> None:
    for one in (array, array.T):
        written = to_map(one)
        again = from_map({**written, "shape": list(written["shape"]), "data": bytes(written["data"])})
        assert same(again, one)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_version_and_order_of_npy_is_read(version: Any, order: Any) -> None:
    array = np.array([[1.5, 2, 3], [4, 5, 6]], order=order)
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    assert same(from_npy(file.getvalue()), array)


def test_the_header_may_be_written_by_others_than_numpy() -> None:
    text = b'{"shape":(2 ,),"fortran_order" : False , "descr":"<i2"}'
    assert from_npy(header(text) + b"\1\0\2\0").tolist() == [1, 2]


def test_what_is_read_lies_over_the_bytes_that_were_sent() -> None:
    body = to_npy(np.arange(3))
    assert np.shares_memory(from_npy(body), np.frombuffer(body, np.uint8))
    data = bytes(12)
    assert np.shares_memory(from_map(map_of(shape=(3,), data=data)), np.frombuffer(data, np.uint8))
    assert np.shares_memory(from_bytes(data, np.dtype("<f4"), (3,)), np.frombuffer(data, np.uint8))


@pytest.mark.parametrize(("dtype", "numbers"), [("<f4", [1.0]), (">f4", [1.0]), ("uint16", [0, 16256])])
def test_a_map_may_name_its_dtype_as_numpy_does_in_either_way(dtype: str, numbers: list[float]) -> None:
    data = b"\x3f\x80\0\0" if dtype == ">f4" else b"\0\0\x80\x3f"
    assert from_map(map_of(dtype, (len(numbers),), data)).tolist() == numbers


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor([1.5], dtype=torch.bfloat16),
        torch.tensor([1.5], dtype=torch.float8_e4m3fn),
        torch.tensor([1.5], requires_grad=True),
        torch.tensor([1.5 + 2j]).conj().real,
    ],
)
def test_a_tensors_numbers_are_told_by_numpy_whatever_keeps_it_from_them(value: torch.Tensor) -> None:
    assert from_tensor(value).tolist() == [1.5]


# ---------------------------------------------------------------------- hostile bytes


class Bomb:
    def __reduce__(self) -> Any:
        return pytest.fail, ("unpickled",)


def test_pickle_is_never_read() -> None:
    file = io.BytesIO()
    np.save(file, np.array([Bomb()], object), allow_pickle=True)
    with pytest.raises(Misfit, match="pickled objects"):
        from_npy(file.getvalue())
    with pytest.raises(MalformedBody, match="begins with"):
        from_npy(pickle.dumps(Bomb()))


def test_objects_are_not_written_to_npy() -> None:
    with pytest.raises(TypeError, match="without pickle"):
        to_npy(np.array([{}], object))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "does not tell"),
        (b"{'descr': '<f4', 'fortran_order': False}", "does not tell"),
        (b"{'descr': '<f4', 'fortran_order': maybe, 'shape': (1,)}", "does not tell"),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", "does not tell"),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (1 2,)}", "does not tell"),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': __import__('os')}", "does not tell"),
        (b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", "'record'"),
        (b"{'descr': '<c8', 'fortran_order': False, 'shape': (1,)}", "'<c8'"),
        (b"{'descr': '<f99', 'fortran_order': False, 'shape': (1,)}", "'<f99'"),
        (b"{'descr': '|S9', 'fortran_order': False, 'shape': (1,)}", "'|S9'"),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", "exactly 8 bytes"),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}", "exactly"),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"9" * 900 + b",)}", "exactly"),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"1," * 33 + b")}", "at most 32 axes"),
    ],
)
def test_an_npy_file_that_is_not_what_it_says_is_refused_with_the_reason(text: bytes, told: str) -> None:
    with pytest.raises((Misfit, MalformedBody), match=told):
        from_npy(header(text) + bytes(4))


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "byte 0"),
        (b"[1,2]", "byte 0"),
        (b"\x93NUMPY", "unknown version"),
        (b"\x93NUMPY\x09\0", "unknown version"),
        (b"\x93NUMPY\x01\0\xff\xff", "65535 bytes long"),
        (b"\x93NUMPY\x02\0\xff\xff\xff\xff", "4294967295 bytes long"),
        (b"\x93NUMPY\x01\0\x40\0{'descr'", "does not tell"),
    ],
)
def test_an_npy_header_that_lies_about_itself_is_malformed(body: bytes, told: str) -> None:
    with pytest.raises(MalformedBody, match=told):
        from_npy(body)


@given(st.binary(max_size=200), st.integers(0, 200), st.binary(max_size=4))
def test_no_damage_to_an_npy_file_is_more_than_a_refusal(tail: bytes, at: int, put: bytes) -> None:
    whole = to_npy(np.arange(4, dtype="int16"))
    for body in (whole[:at] + put + whole[at:], whole[:at], b"\x93NUMPY\x01\0" + tail):
        try:
            from_npy(body)
        except (Misfit, MalformedBody):
            pass


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (map_of(dtype="object"), "no dtype"),
        (map_of(dtype="complex64"), "no dtype"),
        (map_of(dtype="f4,f4"), "no dtype"),
        (map_of(dtype=["x"]), "no dtype"),
        (map_of(dtype=None), "no dtype"),
        (map_of(shape=3), "list of lengths"),
        (map_of(shape=[-1]), "list of lengths"),
        (map_of(shape=[True]), "list of lengths"),
        (map_of(shape=[1.0]), "list of lengths"),
        (map_of(shape=[2**64, 2**64]), "exactly"),
        (map_of(shape=[2]), "exactly 8 bytes"),
        (map_of(data=b""), "exactly 4 bytes"),
        (map_of(shape=[2**40, 0], data=b""), "so many rows"),
        (map_of(shape=[0] * 40, data=b""), "32 axes"),
    ],
)
def test_a_map_that_is_not_what_it_says_is_refused_with_the_reason(value: dict[str, Any], told: str) -> None:
    assert is_map(value)
    with pytest.raises(Misfit, match=told):
        from_map(value)


@pytest.mark.parametrize(
    "value", [{}, [], {"dtype": "f4", "shape": []}, map_of(data="text"), {**map_of(), "more": 1}, {**map_of(data=[1])}]
)
def test_an_object_with_other_fields_is_no_array(value: Any) -> None:
    assert not is_map(value)


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]", "U3", "object"])
def test_what_msgpacks_map_cannot_hold_is_refused_by_name(dtype: str) -> None:
    with pytest.raises(TypeError, match="no form in msgpack"):
        to_map(np.zeros(1, dtype))


def test_bare_bytes_must_be_as_many_as_were_promised() -> None:
    for size, length in itertools.product([0, 5, 7], [6]):
        with pytest.raises(Misfit, match=rf"exactly {length} bytes of data \(dtype int16, shape \(3,\)\), got {size}"):
            from_bytes(bytes(size), np.dtype("int16"), (3,))
