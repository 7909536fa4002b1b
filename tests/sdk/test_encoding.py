import enum
import json
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from tidegate import EncodeError
from tidegate.array_layout import from_map, from_npy
from tidegate.encoding import is_array, write_json, write_msgpack, write_npy


class Answer(msgspec.Struct):
    scores: np.ndarray
    best: Any = None


@dataclass
class Row:
    values: Any


class Color(enum.Enum):
    RED = "red"


def unencodable(write: Any, value: Any) -> str:
    with pytest.raises(EncodeError) as caught:
        write(value)
    assert (caught.value.status, caught.value.code) == (500, "unencodable-output")
    return caught.value.detail


@pytest.mark.parametrize(
    ("value", "body"),
    [
        (Answer(np.array([0.5]), np.int64(3)), b'{"scores":[0.5],"best":3}'),
        (Row([np.array([1]), torch.tensor([2])]), b'{"values":[[1],[2]]}'),
        ({"a": {"b": (np.array([True]),)}}, b'{"a":{"b":[[true]]}}'),
        ({np.int64(7): np.float16(0.5), "color": {Color.RED}}, b'{"7":0.5,"color":["red"]}'),
        (np.array([[0.75]], "float16"), b"[[0.75]]"),
        (np.float16(0.75), b"0.75"),
        (np.array(0.1, ">f4"), b"0.1"),
        (np.array([Row(np.array(1)), None], object), b'[{"values":1},null]'),
        (np.array(["2026-01-02T03:04:05"], "M8[s]"), b'["2026-01-02T03:04:05"]'),
        (np.array(["2026-01-02"], "M8[ns]"), b'["2026-01-02T00:00:00.000000000"]'),
        (np.datetime64("2026-01-02"), b'"2026-01-02"'),
        (np.array([90], "m8[s]"), b'["PT90S"]'),
        (np.array([b"ab"]), b'["YWI="]'),
        (b"ab", b'"YWI="'),
    ],
)
def test_arrays_and_scalars_are_written_at_any_depth(value: Any, body: bytes) -> None:
    assert write_json(value) == body


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (float("nan"), "`$`"),
        ([1.0, None, {"a": [np.inf]}], "`$[2].a[0]`"),
        ({"a": None, "b": np.array([np.nan])}, "`$.b`"),
        (Answer(np.array([1.0]), np.float32("-inf")), "`$.best`"),
        (Row(torch.tensor([np.nan])), "`$.values`"),
        (np.array([[1, np.nan]]), "`$`"),
        (np.array([Row(np.nan)], object), "`$[0].values`"),
        ([np.datetime64("NaT")], "`$[0]`"),
        (np.array([1e300], "longdouble") ** 2, "`$`"),
    ],
)
def test_nan_and_infinity_are_an_error_that_tells_the_place(value: Any, place: str) -> None:
    assert f"NaN or infinity at {place}," in unencodable(write_json, value)


def test_where_it_is_allowed_nan_is_null() -> None:
    value = {"a": float("nan"), "b": np.array([1, np.inf]), "c": np.array(["NaT"], "M8[s]"), "d": np.float64("nan")}
    assert write_json(value, allow_nan=True) == b'{"a":null,"b":[1.0,null],"c":[null],"d":null}'


@pytest.mark.parametrize(
    "value",
    [None, {"a": None, "b": "null"}, ["u", None, 1.5], np.array(["null"]), {"null": np.zeros(3)}, [None] * 1000],
)
def test_a_null_of_the_handlers_own_is_written(value: Any) -> None:
    plain = value.tolist() if isinstance(value, np.ndarray) else value
    assert json.loads(write_json(value)) == json.loads(
        msgspec.json.encode(plain, enc_hook=lambda array: array.tolist())
    )


@pytest.mark.parametrize("write", [write_json, write_msgpack])
@pytest.mark.parametrize(
    ("value", "told"),
    [
        (object(), "builtins.object"),
        ([np.array([1j])], "complex numbers"),
        (torch.zeros(2).to_sparse(), "Sparse"),
        (torch.zeros(2, device="meta"), "meta"),
        ("\ud800", "surrogates"),
    ],
)
def test_what_has_no_form_is_an_error_that_names_it(write: Any, value: Any, told: str) -> None:
    assert told in unencodable(write, value)


def test_a_value_nested_without_end_is_an_error() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert "recursion" in unencodable(write_json, endless)
    assert "recursion" in unencodable(write_msgpack, endless)


def test_a_number_too_long_for_msgpack_is_an_error() -> None:
    assert "2**64" in unencodable(write_msgpack, 2**70)


@pytest.mark.parametrize(
    "array",
    [
        np.array([1, 2], ">f4"),
        np.arange(6).reshape(2, 3).T,
        np.array(3.5),
        np.zeros((2, 0)),
        np.array([1.5], "longdouble"),
        torch.tensor([1.5], dtype=torch.bfloat16),
        np.array([np.nan]),
    ],
)
def test_an_array_in_msgpack_is_the_map_at_any_depth(array: Any) -> None:
    for found in (
        msgspec.msgpack.decode(write_msgpack({"deep": [array]}))["deep"][0],
        msgspec.msgpack.decode(write_msgpack(array)),
    ):
        assert found.keys() == {"dtype", "shape", "data"}
        assert repr(from_map(found).astype(float).tolist()) == repr(np.asarray(array.tolist(), float).tolist())


def test_other_arrays_and_scalars_in_msgpack_are_plain() -> None:
    value = [
        np.float32(0.5),
        np.int8(3),
        np.bool_(True),
        np.array(["a"]),
        np.datetime64("2026-01-02"),
        b"raw",
        float("nan"),
    ]
    assert repr(msgspec.msgpack.decode(write_msgpack(value))) == "[0.5, 3, True, ['a'], '2026-01-02', b'raw', nan]"


@pytest.mark.parametrize("value", [np.array([1.5]), torch.tensor([1.5], dtype=torch.bfloat16), np.array([1.5], ">f2")])
def test_an_array_is_written_as_npy(value: Any) -> None:
    assert is_array(value)
    assert from_npy(write_npy(value)).tolist() == [1.5]


@pytest.mark.parametrize("value", [[1.5], np.array([{}], object), "text"])
def test_only_arrays_of_no_objects_are_written_as_npy(value: Any) -> None:
    assert ".npy" in unencodable(write_npy, value)
