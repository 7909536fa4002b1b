import dataclasses
import datetime
import decimal
import enum
import pathlib
import sys
import uuid
from fractions import Fraction
from typing import Any, TypedDict

import cloudpickle
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import tidegate_transports.ipc_values
from tidegate import EncodeError, InvalidInput
from tidegate_transports.ipc_messages import Answer, Message
from tidegate_transports.ipc_values import Value, decode_value, encode_value

decoder = msgspec.msgpack.Decoder(list[Message])


def sent(value: Any, *, by_value: bool = False) -> Any:
    """The value as the other process makes it again, the frame included."""
    frame = msgspec.msgpack.encode([Answer(1, encode_value(value, by_value=by_value), 0.0, 0.0, 1)])
    (answer,) = decoder.decode(frame)
    assert isinstance(answer, Answer)
    return decode_value(answer.value)


class Point(msgspec.Struct):
    x: float
    tags: list[str] = []


class Frozen(msgspec.Struct, frozen=True, array_like=True, tag=True):
    when: datetime.datetime


@dataclasses.dataclass
class Box:
    corner: tuple[int, int]
    label: str | None = None


class Movie(TypedDict):
    title: str
    year: int


class Colour(enum.Enum):
    RED = "red"


class Loud(str):
    """A text with a class of its own."""


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.characters(categories=["Cs"])
    | st.binary()
    | st.binary().map(bytearray)
    | st.datetimes(timezones=st.none() | st.just(datetime.UTC))
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.uuids()
    | st.sampled_from([Colour.RED, Loud("a"), pathlib.PurePosixPath("/a"), ..., range(3), np.float32(0.5), int])
    | st.builds(Point, st.floats(allow_nan=False), st.lists(st.text()))
    | st.builds(Frozen, st.datetimes())
    | st.builds(Box, st.tuples(st.integers(), st.integers()), st.none() | st.text())
    | st.builds(Movie, title=st.text(), year=st.integers())
)
hashable = st.none() | st.booleans() | st.integers() | st.text() | st.tuples(st.integers(), st.text())
values = st.recursive(
    leaves,
    lambda children: (
        st.lists(children)
        | st.lists(children).map(tuple)
        | st.sets(hashable)
        | st.frozensets(hashable)
        | st.dictionaries(hashable, children)
    ),
    max_leaves=20,
)
dtypes = (
    arrays.scalar_dtypes()
    | arrays.unicode_string_dtypes()
    | arrays.byte_string_dtypes()
    | arrays.nested_dtypes(max_itemsize=64)
    | st.sampled_from([np.dtype("f2"), np.dtype(">f4"), np.dtype("longdouble"), np.dtype("clongdouble")])
)
shapes = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)


def _same(one: Any, other: Any) -> bool:
    """Equal, and of the same classes all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    return bool(one == other)


@given(values)
def test_whatever_a_handler_takes_or_gives_is_the_same_on_the_other_side(value: Any) -> None:
    assert _same(sent(value), value)


@given(values)
@settings(max_examples=25)
def test_and_also_for_handlers_of_a_notebook(value: Any) -> None:
    assert _same(sent(value, by_value=True), value)


@given(st.data(), dtypes, shapes, st.sampled_from("CF"))
def test_an_array_of_any_dtype_and_shape_is_the_same_and_ones_own(
    data: st.DataObject, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any
) -> None:
    array: Any = data.draw(arrays.arrays(dtype, shape)).copy(order)
    array.flags.writeable = False
    again = sent(array)
    assert (type(again), again.dtype, again.shape) == (np.ndarray, array.dtype, array.shape)
    assert again.tobytes() == array.tobytes()
    assert again.flags.writeable or dtype.kind == "V"
    assert not np.shares_memory(again, array)


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a", None, [1]], object),
        np.array(["a", "ä" * 100], np.dtypes.StringDType()),
        np.arange(12).reshape(3, 4)[::2, ::-1],
        np.broadcast_to(np.float32(1), (3, 4)),
        np.ma.masked_array([1, 2], [True, False]),
    ],
)
def test_an_array_that_is_no_plain_memory_is_the_same_too(array: Any) -> None:
    again = sent(array)
    assert (type(again), again.dtype, again.shape) == (type(array), array.dtype, array.shape)
    assert again.tolist() == array.tolist()


def test_not_a_number_stays_what_it_is() -> None:
    assert np.isnan(sent(float("nan")))
    assert sent(decimal.Decimal("sNaN")).is_snan()
    assert sent(Fraction(1, 3)) == Fraction(1, 3)
    assert sent(uuid.UUID(int=1)) == uuid.UUID(int=1)


def test_tensors_of_every_kind_are_the_same() -> None:
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.complex64, torch.float8_e5m2):
        for shape in ((), (0, 3), (2, 3)):
            tensor = torch.ones(shape).to(dtype)
            again = sent(tensor)
            assert (type(again), again.dtype, again.shape) == (torch.Tensor, dtype, tensor.shape)
            assert torch.equal(again.to(torch.complex64), tensor.to(torch.complex64))
    for tensor in (torch.arange(6.0).view(2, 3).T, torch.ones(3, requires_grad=True), torch.ones(2, 2).to_sparse()):
        assert torch.equal(sent(tensor).to_dense(), tensor.detach().to_dense())
    nested = sent({"a": [torch.arange(3)]})
    assert nested["a"][0].tolist() == [0, 1, 2]


def test_a_tensor_is_an_array_where_torch_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    encoded = encode_value(torch.tensor([1.5, 2], dtype=torch.bfloat16))
    monkeypatch.delitem(sys.modules, "torch")
    again = decode_value(encoded)
    assert (again.dtype, again.tolist()) == (np.float32, [1.5, 2])


def test_a_class_of_a_notebook_comes_back_as_itself() -> None:
    class Local(msgspec.Struct):
        n: int

    Local.__module__ = "__main__"
    with pytest.raises(EncodeError, match="Local"):
        encode_value(Local(1))
    assert sent(Local(1), by_value=True) == Local(1)


@pytest.mark.parametrize("unsendable", [EncodeError, InvalidInput])
def test_what_cannot_be_sent_names_its_type_and_fails_as_told(unsendable: Any) -> None:
    with pytest.raises(unsendable, match="generator"):
        encode_value((n for n in range(3)), unsendable=unsendable)


def test_a_value_too_large_for_any_frame_is_refused_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tidegate_transports.ipc_values, "LARGEST_VALUE", 1000)
    with pytest.raises(EncodeError, match="one HTTP process"):
        encode_value(np.zeros(1000))
    assert encode_value(np.zeros(100)).nbytes < 1000


@pytest.mark.parametrize("text", ["", "a", "ä", "\ud800", "a\udcffb", "\x00"])
def test_any_text_is_sent_also_one_that_is_no_unicode(text: str) -> None:
    assert sent(text) == text
    assert sent([text]) == [text]


def test_small_things_are_not_pickled() -> None:
    for value in (None, True, 1, 1.5, "ä", b"ab", -(1 << 63), (1 << 64) - 1):
        assert encode_value(value) == Value(0, value)
    assert cloudpickle.loads(encode_value(1 << 64).data) == 1 << 64
