import inspect
import json
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tidegate import Array, EncodeError, InvalidInput, MalformedBody
from tidegate.codec import Codec, NotAcceptable, UnsupportedMediaType


class Point(msgspec.Struct):
    x: int
    y: int = 0


@dataclass
class Question:
    text: str
    tokens: list[int]


class Answer(TypedDict):
    score: float


def decoded(annotation: Any, body: bytes) -> Any:
    return Codec(annotation).decode_json(body)


def refusal(annotation: Any, body: bytes) -> str:
    with pytest.raises(InvalidInput) as caught:
        decoded(annotation, body)
    assert caught.value.status == (400 if isinstance(caught.value, MalformedBody) else 422)
    return caught.value.detail


def encoded(value: Any) -> bytes:
    return Codec().encode_json(value)


def unencodable(value: Any) -> str:
    with pytest.raises(EncodeError) as caught:
        encoded(value)
    assert caught.value.status == 500
    return caught.value.detail


# ---------------------------------------------------------------------- values of this process


class Labelled(TypedDict):
    image: np.ndarray
    label: str


@pytest.mark.parametrize(
    ("annotation", "value", "item"),
    [
        (np.ndarray, [[1, 2], (3, 4)], np.array([[1, 2], [3, 4]])),
        (np.ndarray, torch.tensor([1.5]), np.array([1.5], "float32")),
        (Annotated[np.ndarray, Array("float32", (2,))], np.array([1, 2]), np.array([1, 2], "float32")),
        (Point, {"x": 1}, Point(1)),
        (Point | None, {"x": 1}, Point(1)),
        (list[Question], [{"text": "a", "tokens": [1]}], [Question("a", [1])]),
        (Labelled, {"image": [1, 2], "label": "a"}, {"image": np.array([1, 2]), "label": "a"}),
    ],
)
def test_what_the_wire_would_convert_is_converted(annotation: Any, value: Any, item: Any) -> None:
    np.testing.assert_equal(Codec(annotation).adopt(value), item)


def test_lists_become_a_tensor_where_one_is_wanted() -> None:
    assert torch.equal(Codec(torch.Tensor).adopt([1.5, 2]), torch.tensor([1.5, 2]))


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (np.ndarray, np.array([1j])),
        (torch.Tensor, torch.ones(2, dtype=torch.complex64)),
        (Point, Point(1)),
        (Answer, {"score": 0.5, "and": "more"}),
        (int, np.int64(3)),
        (list[float], [np.float32(1)]),
        (inspect.Parameter.empty, [1, 2]),
        (bytes, "no base64"),
    ],
)
def test_what_is_of_its_class_and_all_else_stays_as_it_is(annotation: Any, value: Any) -> None:
    assert Codec(annotation).adopt(value) is value


def test_what_does_not_fit_is_refused_as_on_the_wire() -> None:
    with pytest.raises(InvalidInput, match="missing required field `x`"):
        Codec(Point).adopt({"y": 1})
    with pytest.raises(InvalidInput, match="got text"):
        Codec(np.ndarray).adopt("one")


# ---------------------------------------------------------------------- bytes to values


@pytest.mark.parametrize("body", [b"1", b'"text"', b"[1, 2.5, null, true]", b'{"a": {"b": []}}'])
def test_without_an_annotation_the_item_is_the_json_value(body: bytes) -> None:
    assert Codec().decode_json(body) == json.loads(body)


@pytest.mark.parametrize(
    ("annotation", "body", "item"),
    [
        (int, b"3", 3),
        (str, b'"text"', "text"),
        (float, b"3", 3.0),
        (list[int], b"[1,2]", [1, 2]),
        (dict[str, float], b'{"a":1}', {"a": 1.0}),
        (Point, b'{"x":1}', Point(1)),
        (Question, b'{"text":"why","tokens":[1]}', Question("why", [1])),
        (Answer, b'{"score":0.5}', {"score": 0.5}),
        (Literal["yes", "no"], b'"yes"', "yes"),
        (int | None, b"null", None),
        (Annotated[int, msgspec.Meta(ge=0)], b"0", 0),
    ],
)
def test_the_annotation_decides_what_the_item_is(annotation: Any, body: bytes, item: Any) -> None:
    assert decoded(annotation, body) == item


@pytest.mark.parametrize(
    ("annotation", "body", "told"),
    [
        (int, b'"3"', "Expected `int`, got `str`"),
        (Point, b'{"x":"1"}', "$.x"),
        (Point, b"{}", "`x`"),
        (Question, b'{"text":"why","tokens":[1,2,"3"]}', "$.tokens[2]"),
        (Annotated[int, msgspec.Meta(ge=0)], b"-1", ">= 0"),
        (list[Point], b'[{"x":1},{"x":null}]', "$[1].x"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_the_place_and_the_reason(
    annotation: Any, body: bytes, told: str
) -> None:
    assert told in refusal(annotation, body)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"[1,,2]", "byte 3"),
        (b"[1] x", "trailing characters"),
        (b"[1, 2", "truncated (byte 5)"),
        (b"{'a': 1}", "byte 1"),
        (b"[NaN]", "byte 1"),
        (b"[1, Infinity]", "byte 4"),
        (b"\xff\xfe", "byte 0"),
        (b'"\xff"', "utf-8"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
@pytest.mark.parametrize("annotation", [inspect.Parameter.empty, np.ndarray])
def test_a_body_that_is_no_json_is_malformed_and_says_where(annotation: Any, body: bytes, told: str) -> None:
    with pytest.raises(MalformedBody) as caught:
        decoded(annotation, body)
    assert told in caught.value.detail.lower()
    assert caught.value.code == "malformed-body"


def test_an_annotation_that_cannot_be_read_from_json_is_refused_when_the_handler_is_made() -> None:
    with pytest.raises(TypeError, match="annotate with a type that msgspec reads"):
        Codec(int | np.bool_ | Point | Question)


# ---------------------------------------------------------------------- bytes to arrays


@pytest.mark.parametrize(
    ("body", "dtype", "shape"),
    [
        (b"[1,2]", "int64", (2,)),
        (b"[1,2.5]", "float64", (2,)),
        (b"[[1,2,3],[4,5,6]]", "int64", (2, 3)),
        (b"[true,false]", "bool", (2,)),
        (b"7", "int64", ()),
        (b"[]", "float64", (0,)),
        (b"[[],[]]", "float64", (2, 0)),
    ],
)
@pytest.mark.parametrize("annotation", [np.ndarray, npt.NDArray[Any], Annotated[np.ndarray, Array()]])
def test_json_lists_become_arrays_of_float64_if_a_number_is_a_float_and_else_of_int64(
    annotation: Any, body: bytes, dtype: str, shape: tuple[int, ...]
) -> None:
    array = decoded(annotation, body)
    assert isinstance(array, np.ndarray)
    assert (array.dtype, array.shape) == (np.dtype(dtype), shape)
    assert array.tolist() == json.loads(body)


@pytest.mark.parametrize(
    ("body", "dtype", "shape"),
    [(b"[1,2]", torch.int64, (2,)), (b"[[1.5]]", torch.float32, (1, 1)), (b"[true]", torch.bool, (1,))],
)
def test_json_lists_become_tensors_of_torchs_default_dtype(
    body: bytes, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    tensor = decoded(torch.Tensor, body)
    assert (tensor.dtype, tuple(tensor.shape), tensor.tolist()) == (dtype, shape, json.loads(body))


@pytest.mark.parametrize(("body", "number"), [(b"3", 3), (b"1.5", 1.5)])
def test_a_single_number_becomes_a_tensor_without_axes(body: bytes, number: float) -> None:
    tensor = decoded(torch.Tensor, body)
    assert (tuple(tensor.shape), tensor.item()) == ((), number)


def test_a_tensors_promised_dtype_beats_torchs_default() -> None:
    assert decoded(Annotated[torch.Tensor, Array("float64")], b"[1.5]").dtype == torch.float64


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint8", "int32", "uint64", "bool"])
def test_numbers_that_fit_are_converted_to_the_promised_dtype(dtype: str) -> None:
    array = decoded(Annotated[np.ndarray, Array(dtype)], b"[0,1]")
    assert (array.dtype, array.tolist()) == (np.dtype(dtype), [0, 1])


def test_a_float_may_be_rounded_to_the_promised_dtype() -> None:
    assert decoded(Annotated[np.ndarray, Array("float32")], b"[0.1]")[0] == np.float32(0.1)


@pytest.mark.parametrize(
    ("dtype", "body"),
    [
        ("uint8", b"[256]"),
        ("uint8", b"[-1]"),
        ("int8", b"[0,128]"),
        ("uint64", b"[-1]"),
        ("int64", b"[9223372036854775808]"),
        ("bool", b"[2]"),
        ("float32", b"[1e39]"),
        ("float16", b"[-70000]"),
    ],
)
def test_a_number_that_does_not_fit_into_the_promised_dtype_is_refused_without_a_warning(
    dtype: str, body: bytes
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert f"does not fit into {dtype} - at `$[" in refusal(Annotated[np.ndarray, Array(dtype)], body)


def test_a_fraction_is_refused_where_whole_numbers_are_promised() -> None:
    told = refusal(Annotated[np.ndarray, Array("int64")], b"[1.0,1.5]")
    assert told == "1.5 does not fit into int64, which takes whole numbers - at `$[1]`"


@pytest.mark.parametrize("annotation", [np.ndarray, torch.Tensor])
@pytest.mark.parametrize("body", [b"[[1,2],[3]]", b"[[1],2]", b"[[[1]],[[1,2]]]"])
def test_ragged_lists_are_refused(annotation: Any, body: bytes) -> None:
    assert "unequal lengths" in refusal(annotation, body)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'"3"', "text"),
        (b"null", "null"),
        (b"{}", "an object"),
        (b'["a"]', "text - at `$[0]`"),
        (b"[1,2,null]", "null - at `$[2]`"),
        (b'[[1],["2"]]', "text - at `$[1][0]`"),
        (b'[1,{"a":1}]', "an object - at `$[1]`"),
        (b"[1,true]", "true or false among numbers - at `$[1]`"),
    ],
)
def test_what_is_no_number_is_refused_by_its_name_and_place(body: bytes, found: str) -> None:
    assert refusal(np.ndarray, body) == f"expected an array of numbers, got {found}"


@pytest.mark.parametrize("digits", [20, 400])
def test_a_whole_number_beyond_64_bits_is_a_float_among_floats_and_else_refused(digits: int) -> None:
    number = b"9" * digits
    assert "at `$[1]`" in refusal(np.ndarray, b"[1," + number + b"]")
    if digits == 20:
        assert decoded(np.ndarray, b"[0.5," + number + b"]").tolist() == [0.5, float(number)]
    else:
        assert "all that float64 holds" in refusal(np.ndarray, b"[0.5," + number + b"]")


def test_a_number_beyond_float64_is_refused_with_its_place() -> None:
    assert "$[1]" in refusal(np.ndarray, b"[1,1e400]")


def test_lists_nested_deeper_than_an_array_has_axes_are_refused() -> None:
    assert "expected an array" in refusal(np.ndarray, b"[" * 100 + b"1" + b"]" * 100)


@pytest.mark.parametrize("kind", [np.ndarray, torch.Tensor])
def test_a_wrong_shape_is_refused_with_both_shapes(kind: Any) -> None:
    annotation = Annotated[kind, Array("float32", (None, 2))]
    assert refusal(annotation, b"[[1,2,3]]") == "expected an array of shape (*, 2), got (1, 3)"


# ---------------------------------------------------------------------- values to bytes


@pytest.mark.parametrize(
    ("value", "body"),
    [
        (None, b"null"),
        ("ä", '"ä"'.encode()),
        ({"a": [1, 2.5, True, None]}, b'{"a":[1,2.5,true,null]}'),
        ((1, 2), b"[1,2]"),
        (2**70, b"1180591620717411303424"),
        (Point(1, 2), b'{"x":1,"y":2}'),
        (Question("why", [1]), b'{"text":"why","tokens":[1]}'),
        (b"hi", b'"aGk="'),
        ([], b"[]"),
    ],
)
def test_plain_values_become_json(value: Any, body: bytes) -> None:
    assert encoded(value) == body


@pytest.mark.parametrize(
    ("array", "body"),
    [
        (np.array([[1, 2], [3, 4]]), b"[[1,2],[3,4]]"),
        (np.array([0.1, -2.0]), b"[0.1,-2.0]"),
        (np.array([0.1], "float32"), b"[0.1]"),
        (np.array([0.5], "float16"), b"[0.5]"),
        (np.array([True, False]), b"[true,false]"),
        (np.array([2**64 - 1], "uint64"), b"[18446744073709551615]"),
        (np.zeros((0,)), b"[]"),
        (np.zeros((2, 0)), b"[[],[]]"),
        (np.array([1, 2, 3], ">i4"), b"[1,2,3]"),
        (np.array([0.5], ">f8"), b"[0.5]"),
        (np.array([[1, 2, 3], [4, 5, 6]]).T, b"[[1,4],[2,5],[3,6]]"),
        (np.arange(10)[::3], b"[0,3,6,9]"),
        (np.arange(3)[::-1], b"[2,1,0]"),
        (np.broadcast_to(np.array(1), (3,)), b"[1,1,1]"),
        (np.array([0.5, 1], "longdouble"), b"[0.5,1.0]"),
        (np.array(["a", "b"]), b'["a","b"]'),
        (np.array([1, "a", None], object), b'[1,"a",null]'),
    ],
)
def test_arrays_become_nested_lists_whatever_their_layout(array: np.ndarray, body: bytes) -> None:
    assert encoded(array) == body
    assert encoded({"deep": [array]}) == b'{"deep":[' + body + b"]}"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_survive_the_way_to_json_and_back_exactly(dtype: str) -> None:
    random = np.random.default_rng(0)
    array = (random.standard_normal((50, 3)) * 10.0 ** random.integers(-30, 30, (50, 3))).astype(dtype)
    assert np.array_equal(decoded(Annotated[np.ndarray, Array(dtype, (50, 3))], encoded(array)), array)


@pytest.mark.parametrize(
    ("scalar", "body"),
    [
        (np.array(3.5), b"3.5"),
        (np.array(3), b"3"),
        (np.array(True), b"true"),
        (np.array(3, ">i2"), b"3"),
        (np.float64(0.1), b"0.1"),
        (np.float32(0.1), b"0.1"),
        (np.longdouble(0.5), b"0.5"),
        (np.int8(-3), b"-3"),
        (np.uint64(2**64 - 1), b"18446744073709551615"),
        (np.bool_(True), b"true"),
        (np.str_("a"), b'"a"'),
    ],
)
def test_scalars_of_numpy_become_plain_json(scalar: Any, body: bytes) -> None:
    assert encoded(scalar) == body
    assert encoded({"deep": (scalar,)}) == b'{"deep":[' + body + b"]}"


def test_a_numpy_integer_may_be_an_objects_key() -> None:
    assert encoded({np.int64(7): "seven"}) == b'{"7":"seven"}'


@pytest.mark.parametrize(
    ("tensor", "body"),
    [
        (torch.tensor([[1, 2]]), b"[[1,2]]"),
        (torch.tensor([0.1]), b"[0.1]"),
        (torch.tensor(2.5), b"2.5"),
        (torch.tensor([1.5, 2.25], dtype=torch.bfloat16), b"[1.5,2.25]"),
        (torch.tensor([0.5], dtype=torch.float16), b"[0.5]"),
        (torch.tensor([True]), b"[true]"),
        (torch.ones(2, requires_grad=True), b"[1.0,1.0]"),
        (torch.arange(6).reshape(2, 3).T, b"[[0,3],[1,4],[2,5]]"),
    ],
)
def test_tensors_become_nested_lists(tensor: torch.Tensor, body: bytes) -> None:
    assert encoded(tensor) == body


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "make",
    [
        lambda number: number,
        lambda number: {"deep": [1, None, (number,)]},
        lambda number: Answer(score=number),
        lambda number: np.float64(number),
        lambda number: np.array([1.0, number]),
        lambda number: np.array(number, "float16"),
        lambda number: [np.array([number], ">f4")],
        lambda number: np.array([number], "longdouble"),
        lambda number: torch.tensor([number]),
        lambda number: torch.tensor([number], dtype=torch.bfloat16),
    ],
)
def test_nan_and_infinity_are_an_error_and_never_null(make: Any, number: float) -> None:
    assert "NaN or infinity" in unencodable(make(number))


def test_a_null_of_the_handlers_own_is_not_taken_for_nan() -> None:
    assert encoded({"a": None, "b": np.array([1.5]), "c": "null"}) == b'{"a":null,"b":[1.5],"c":"null"}'


@pytest.mark.parametrize(
    ("value", "named"),
    [(object(), "builtins.object"), ([1, {"a": Codec}], "type"), (np.array([1j]), "complex"), (1j, "complex")],
)
def test_what_json_cannot_hold_is_an_error_that_names_the_type(value: Any, named: str) -> None:
    assert named in unencodable(value)


def test_a_value_nested_without_end_is_an_error() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert "recursion" in unencodable(endless)


# ---------------------------------------------------------------------- bodies of every type


class Picture(msgspec.Struct):
    pixels: Annotated[np.ndarray, Array("float32", (2,))]
    name: str = ""


def npy(array: np.ndarray) -> bytes:
    return Codec().encode(array, "application/x-npy")[0]


def msgpack(value: Any) -> bytes:
    return Codec().encode_msgpack(value)


def boundless(value: Any) -> str:
    return repr(value.tolist() if isinstance(value, (np.ndarray, torch.Tensor)) else value)


@pytest.mark.parametrize(
    ("annotation", "taken"),
    [
        (int, "json msgpack"),
        (Point, "json msgpack form-data x-www-form-urlencoded"),
        (dict[str, int], "json msgpack form-data x-www-form-urlencoded"),
        (np.ndarray, "json msgpack x-npy"),
        (np.ndarray | None, "json msgpack x-npy"),
        (Annotated[np.ndarray, Array("int8", (2,))], "json msgpack x-npy octet-stream"),
        (Annotated[np.ndarray, Array("int8", (None,))], "json msgpack x-npy"),
        (Annotated[torch.Tensor, Array("bfloat16", (2,))], "json msgpack x-npy"),
        (inspect.Parameter.empty, "json msgpack x-npy form-data x-www-form-urlencoded"),
        (bytes, "octet-stream *"),
    ],
)
def test_a_handler_tells_the_types_of_bodies_that_it_takes(annotation: Any, taken: str) -> None:
    assert " ".join(media.partition("/")[2] for media in Codec(annotation).content_types) == taken


@pytest.mark.parametrize(
    ("annotation", "body", "content_type", "item"),
    [
        (int, b"3", None, "3"),
        (int, b"3", "", "3"),
        (int, b"3", "Application/JSON; charset=utf-8", "3"),
        (int, b"3", "application/vnd.api+json", "3"),
        (int, b"\xef\xbb\xbf3", None, "3"),
        (int, b"\x03", "application/msgpack", "3"),
        (Point, msgpack({"x": 3}), "application/x-msgpack", "Point(x=3, y=0)"),
        (Point, b"x=3", "application/x-www-form-urlencoded", "Point(x=3, y=0)"),
        (np.ndarray, npy(np.eye(2)), "application/x-npy", "[[1.0, 0.0], [0.0, 1.0]]"),
        (np.ndarray | None, npy(np.eye(1)), "application/x-npy", "[[1.0]]"),
        (np.ndarray | str, npy(np.eye(1)), "application/x-npy", "[[1.0]]"),
        (torch.Tensor, npy(np.eye(1, dtype=">f8")), "application/x-npy", "[[1.0]]"),
        (np.ndarray, msgpack(np.eye(1)), "application/msgpack", "[[1.0]]"),
        (np.ndarray, msgpack([1, 2.5]), "application/msgpack", "[1.0, 2.5]"),
        (Annotated[np.ndarray, Array("<i2", (2,))], b"\1\0\2\0", "application/octet-stream", "[1, 2]"),
        (inspect.Parameter.empty, msgpack({"a": [np.eye(1), 1]}), "application/msgpack", "{'a': [array([[1.]]), 1]}"),
        (inspect.Parameter.empty, npy(np.eye(1)), "application/x-npy", "[[1.0]]"),
        (inspect.Parameter.empty, b"a=1", "application/x-www-form-urlencoded", "{'a': '1'}"),
        (bytes, b"[1]", "application/json", "b'[1]'"),
        (bytes, b"", None, "b''"),
        (bytes, b"\xff", "image/png", "b'\\xff'"),
        (Annotated[bytes, msgspec.Meta(max_length=1)], b"a", "text/plain", "b'a'"),
    ],
)
def test_a_body_is_read_by_its_content_type(annotation: Any, body: bytes, content_type: Any, item: str) -> None:
    assert boundless(Codec(annotation).decode(body, content_type)) == item


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-npy", "application/octet-stream", "x", "image/png;"]
)
def test_a_body_of_another_type_is_refused_with_the_types_that_are_taken(content_type: str) -> None:
    with pytest.raises(UnsupportedMediaType) as caught:
        Codec(list[int]).decode(b"[1]", content_type)
    assert "takes application/json, application/msgpack, and" in caught.value.detail


@pytest.mark.parametrize(
    ("annotation", "body", "content_type", "status", "told"),
    [
        (int, b"", "application/msgpack", 400, "empty: send msgpack"),
        (int, b"\xc1", "application/msgpack", 400, "byte 0"),
        (int, b"\x01\x02", "application/msgpack", 400, "byte 1"),
        (str, b"\xa1\xff", "application/msgpack", 400, "UTF-8"),
        (Any, b"\xdd\xff\xff\xff\xff", "application/msgpack", 400, "truncated"),
        (Any, b"\xc6\xff\xff\xff\xff", "application/msgpack", 400, "truncated"),
        (Any, b"\x91" * 100_000, "application/msgpack", 400, "nested too deeply"),
        (Any, b"\xd4\x05\x00", "application/msgpack", 422, "extension type 5"),
        (Any, msgpack({"dtype": "O", "shape": [], "data": b""}), "application/msgpack", 422, "no dtype"),
        (np.ndarray, b"", "application/x-npy", 400, "not an .npy file"),
        (np.ndarray, npy(np.eye(2))[:-1], "application/x-npy", 422, "exactly 32 bytes"),
        (Annotated[np.ndarray, Array("int8", (2, 3))], b"12345", "application/octet-stream", 422, "exactly 6 bytes"),
        (Picture, b'{"pixels":[1]}', None, 422, "shape (2,), got (1,) - at `$.pixels`"),
        (Picture, msgpack({"pixels": np.zeros(3)}), "application/msgpack", 422, "got (3,) - at `$.pixels`"),
        (list[Picture], b'[{"pixels":[1,2]},{"pixels":["a"]}]', None, 422, "text - at `$[1].pixels[0]`"),
        (Any, b"[1, NaN]", None, 400, "byte 4): JSON has no NaN"),
        (Any, b"[-Infinity]", None, 400, "JSON has no NaN and no Infinity"),
        (Any, b'{"a":"\xff"}', None, 400, "UTF-8 (byte 6)"),
        (Any, b"\xef\xbb\xbf" * 1000, None, 400, "byte 0"),
        (Literal["a"], b'"' + b"x" * 100_000 + b'"', None, 422, "…"),
        (Annotated[bytes, msgspec.Meta(max_length=1)], b"ab", None, 422, "length <= 1"),
    ],
)
def test_a_hostile_body_is_told_what_is_wrong(
    annotation: Any, body: bytes, content_type: Any, status: int, told: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        Codec(annotation).decode(body, content_type)
    assert caught.value.status == status
    assert told in caught.value.detail
    assert len(caught.value.detail) < 700


@pytest.mark.parametrize(
    ("annotation", "value", "item"),
    [
        (inspect.Parameter.empty, [1, {"a": None}], "[1, {'a': None}]"),
        (int, 3, "3"),
        (bytes, "aGk=", "b'hi'"),
        (bytes, b"hi", "b'hi'"),
        (Point, {"x": 3}, "Point(x=3, y=0)"),
        (Point, Point(3), "Point(x=3, y=0)"),
        (dict[int, str], {"3": "a"}, "{3: 'a'}"),
        (np.ndarray, np.eye(1), "[[1.0]]"),
        (np.ndarray, torch.eye(1), "[[1.0]]"),
        (torch.Tensor, [1, 2], "[1, 2]"),
    ],
)
def test_a_parsed_value_is_read_like_a_body(annotation: Any, value: Any, item: str) -> None:
    assert boundless(Codec(annotation).decode_object(value)) == item


@pytest.mark.parametrize(
    ("annotation", "value", "told"),
    [
        (int, "3", "Expected `int`, got `str`"),
        (Picture, {"pixels": np.zeros(3)}, "shape (2,), got (3,) - at `$.pixels`"),
        (np.ndarray, np.array(["a"]), "array of numbers"),
    ],
)
def test_a_parsed_value_is_refused_like_a_body(annotation: Any, value: Any, told: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Codec(annotation).decode_object(value)
    assert told in caught.value.detail


def test_torch_is_imported_only_for_a_handler_that_takes_tensors() -> None:
    code = (
        "import sys, numpy as np\n"
        "from tidegate.codec import Codec\n"
        "for kind in (np.ndarray, dict[str, np.ndarray | None], int):\n"
        "    codec = Codec(kind); codec.example(); codec.encode(np.zeros(2), 'application/x-npy')\n"
        "assert 'torch' not in sys.modules and 'python_multipart' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ---------------------------------------------------------------------- answers of every type


@pytest.mark.parametrize(
    ("value", "accept", "body", "media"),
    [
        ([1], None, b"[1]", "json"),
        ([1], "*/*", b"[1]", "json"),
        ([1], "text/html, application/*;q=0.5", b"[1]", "json"),
        ([1], "application/msgpack", b"\x91\x01", "msgpack"),
        ([1], "application/x-msgpack", b"\x91\x01", "x-msgpack"),
        (b"hi", None, b"hi", "octet-stream"),
        (memoryview(b"hi"), "*/*", b"hi", "octet-stream"),
        (b"hi", "application/json", b'"aGk="', "json"),
        (b"hi", "application/json, text/plain, */*", b'"aGk="', "json"),
        (b"hi", "application/msgpack", b"\xc4\x02hi", "msgpack"),
        (np.float32(0.5), None, b"0.5", "json"),
        (np.zeros(1), "application/x-npy;q=0.1, text/html", npy(np.zeros(1)), "x-npy"),
        (torch.zeros(1, dtype=torch.float64), "application/x-npy", npy(np.zeros(1)), "x-npy"),
    ],
)
def test_an_answer_has_the_type_that_the_caller_likes_best(value: Any, accept: Any, body: bytes, media: str) -> None:
    assert Codec().encode(value, accept) == (body, f"application/{media}")


@pytest.mark.parametrize(
    ("value", "accept"), [([1], "application/x-npy"), ([1], "application/octet-stream"), (1, "a/b")]
)
def test_an_answer_of_no_acceptable_type_is_an_error_that_lists_those_there_are(value: Any, accept: str) -> None:
    with pytest.raises(NotAcceptable, match="application/json, application/msgpack"):
        Codec().encode(value, accept)


def test_a_caller_that_accepts_nothing_at_all_is_refused_before_there_is_an_answer() -> None:
    for accept in (None, "", "*/*", "application/x-npy", "application/octet-stream", "text/html, application/*;q=0.1"):
        Codec.check_accept(accept)
    with pytest.raises(NotAcceptable):
        Codec.check_accept("text/html")


def test_nan_in_an_answer_is_null_where_that_is_allowed() -> None:
    assert Codec().encode([float("nan")], allow_nan=True) == (b"[null]", "application/json")
    with pytest.raises(EncodeError):
        Codec().encode([float("nan")])


# ---------------------------------------------------------------------- there and back

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(), inside, max_size=4),
    max_leaves=20,
)
numbers = st.sampled_from(["bool", "int8", "uint16", "int64", "float16", "float32", "float64"]).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        hnp.array_shapes(min_dims=0, max_dims=3, max_side=4),
        elements={"allow_nan": False, "allow_infinity": False} if dtype.startswith("float") else None,
    )
)
wire = st.sampled_from(["application/json", "application/msgpack"])


@given(plain, wire)
def test_any_plain_value_comes_back_as_it_was(value: Any, media: str) -> None:
    body, told = Codec().encode(value, media)
    assert told == media
    # An object of exactly these fields is an array, and this one's may not fit.
    assert Codec().decode(body, media) == value


@given(
    numbers,
    st.sampled_from(["application/json", "application/msgpack", "application/x-npy", "application/octet-stream"]),
)
def test_any_array_comes_back_as_it_was(array: np.ndarray, media: str) -> None:
    codec = Codec(Annotated[np.ndarray, Array(array.dtype.name, array.shape)])
    body = array.tobytes() if media == "application/octet-stream" else codec.encode(array, media)[0]
    found = codec.decode(body, media)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert np.array_equal(found, array)


@given(hnp.arrays("float32", (2,), elements={"allow_nan": False, "allow_infinity": False}), st.text(), wire)
def test_any_object_with_an_array_comes_back_as_it_was(array: np.ndarray, name: str, media: str) -> None:
    found = Codec(Picture).decode(*Codec(Picture).encode(Picture(array, name), media))
    assert isinstance(found, Picture)
    assert (found.name, found.pixels.tolist()) == (name, array.tolist())


@given(
    st.binary(max_size=100) | st.text().map(str.encode), st.sampled_from(["application/json", "application/msgpack"])
)
def test_no_bytes_are_more_than_a_refusal(body: bytes, media: str) -> None:
    for annotation in (Any, np.ndarray, torch.Tensor, Picture, Annotated[np.ndarray, Array("uint8", (2,))], Question):
        try:
            Codec(annotation).decode(body, media)
        except InvalidInput:
            pass


# ---------------------------------------------------------------------- examples


@pytest.mark.parametrize(
    "annotation",
    [
        int,
        float,
        str,
        bool,
        np.ndarray,
        torch.Tensor,
        Annotated[np.ndarray, Array("int64", (2, None))],
        Annotated[np.ndarray, Array("bool", ())],
        Annotated[torch.Tensor, Array("float32", (1, 4))],
    ],
)
def test_an_example_decodes(annotation: Any) -> None:
    codec = Codec(annotation)
    example = codec.example()
    assert example is not None
    codec.decode_json(json.dumps(example).encode())


@pytest.mark.parametrize(
    "annotation",
    [inspect.Parameter.empty, bytes, Mapping[str, int], Annotated[np.ndarray, Array("float32", (224, 224, 3))]],
)
def test_there_is_no_example_where_only_the_author_could_give_one(annotation: Any) -> None:
    assert Codec(annotation).example() is None
