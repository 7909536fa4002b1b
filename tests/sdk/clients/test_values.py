import dataclasses
import enum
import math
from collections import namedtuple
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tidegate import InvalidInput
from tidegate.clients.carrier import Disconnected
from tidegate.clients.values import read_output, write_body, write_input
from tidegate.codec import Codec
from tidegate.media import JSON, MSGPACK, OCTETS


class Point(msgspec.Struct):
    x: float
    tag: Any = None


@dataclasses.dataclass
class Pair:
    left: Any
    right: Any = None


class Colour(enum.Enum):
    RED = "red"


Named = namedtuple("Named", "a b")

NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
ARRAYS = npst.arrays(
    st.sampled_from(["float16", "float32", "float64", "int8", "int64", "uint8", "uint64", "bool"]),
    npst.array_shapes(min_dims=1, max_dims=3, max_side=4, min_side=0),
)
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=8) | st.binary(max_size=8) | ARRAYS
KEYS = st.text(max_size=4) | st.integers(0, 9)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return bool(
            isinstance(one, np.ndarray)
            and isinstance(other, np.ndarray)
            and one.dtype == other.dtype
            and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
        )
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


@given(VALUES)
def test_what_is_sent_is_what_the_service_reads(value: Any) -> None:
    body, media = write_body(value)
    read = body if media == OCTETS else Codec().decode(body, media)
    assert same(read, value)
    assert same(Codec().decode(write_input(value), MSGPACK), value)


@given(VALUES)
def test_what_the_service_answers_is_what_is_returned(value: Any) -> None:
    body, media = Codec().encode(value, MSGPACK if not isinstance(value, bytes) else OCTETS)
    assert same(read_output(body, media), value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [1, 2.5, "x", True],
        {"a": [{"b": None}]},
        (1, 2),
        Point(0.5, "t"),
        Pair([Point(1.0)], {"k": Pair(1)}),
        Colour.RED,
        datetime(2024, 1, 2, tzinfo=UTC),
        UUID(int=7),
        Named(1, "b"),
        [[0.5] * 3] * 3,
        [],
    ],
)
def test_what_json_can_say_goes_as_json(value: Any) -> None:
    assert write_body(value)[1] == JSON


@pytest.mark.parametrize(
    "value",
    [
        np.arange(3),
        np.float32(0.5),
        torch.arange(3),
        {"a": [{"b": np.zeros(2)}]},
        [1.0, math.nan],
        [[math.inf]],
        {"raw": b"x"},
        [bytearray(b"x")],
        {1: "one"},
        [{"a": {2: 3}}],
        Point(math.nan),
        Point(1.0, b"x"),
        Pair([Pair(1, np.zeros(1))]),
        Named(1, np.zeros(1)),
        ({"a"}, {b"b"}),
    ],
)
def test_what_json_would_lose_goes_as_msgpack(value: Any) -> None:
    assert write_body(value)[1] == MSGPACK


@pytest.mark.parametrize("value", [b"raw", bytearray(b"raw"), memoryview(b"raw")])
def test_bytes_go_as_they_are(value: Any) -> None:
    assert write_body(value) == (b"raw", OCTETS)


def test_tensors_come_back_as_arrays() -> None:
    body, media = write_body({"x": torch.tensor([1.5, 2.5])})
    found = read_output(body, media)["x"]
    assert found.dtype == np.float32
    assert found.tolist() == [1.5, 2.5]


def test_an_array_that_comes_back_may_be_written_to() -> None:
    found = read_output(*write_body(np.zeros(3)))
    found[0] = 1
    assert found.tolist() == [1, 0, 0]


cyclic: list[Any] = []
cyclic.append(cyclic)


@pytest.mark.parametrize("value", [object(), [object()], {"x": np.array([1j])}, 2**70 + 0.5j, cyclic, [2**64, b""]])
def test_what_has_no_form_is_refused_before_it_is_sent(value: Any) -> None:
    with pytest.raises(InvalidInput, match="the input cannot be written as"):
        write_body(value)


@pytest.mark.parametrize(
    ("body", "media"),
    [
        (b"{", JSON),
        (b"", JSON),
        (b"\xc1", MSGPACK),
        (b"<html>", "text/html"),
        (b"[1]", ""),
        (msgspec.msgpack.encode({"dtype": "float32", "shape": [9], "data": b""}), MSGPACK),
    ],
)
def test_an_answer_that_cannot_be_read_is_no_answer(body: bytes, media: str) -> None:
    with pytest.raises(Disconnected, match="the answer cannot be read") as caught:
        read_output(body, media)
    assert caught.value.begun
