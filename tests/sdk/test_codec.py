import inspect
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch

from tidegate import Array, EncodeError, InvalidInput, MalformedBody
from tidegate.codec import Codec


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
        (b"[1, 2", "truncated"),
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
@pytest.mark.parametrize("annotation", [np.ndarray, npt.NDArray[np.float64], Annotated[np.ndarray, Array()]])
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
        assert refusal(Annotated[np.ndarray, Array(dtype)], body) == f"a number does not fit into {dtype}"


def test_a_float_is_refused_where_whole_numbers_are_promised() -> None:
    assert "whole numbers (int64)" in refusal(Annotated[np.ndarray, Array("int64")], b"[1.5]")


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
        (b'["a"]', "text"),
        (b"[1,2,null]", "null"),
        (b'[[1],["2"]]', "text"),
        (b'[1,{"a":1}]', "an object"),
        (b"[18446744073709551616]", "a whole number of more than 64 bits"),
    ],
)
def test_what_is_no_number_is_refused_by_its_name(body: bytes, found: str) -> None:
    assert refusal(np.ndarray, body) == f"expected an array of numbers, got {found}"


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
    [inspect.Parameter.empty, Point, Mapping[str, int], Annotated[np.ndarray, Array("float32", (224, 224, 3))]],
)
def test_there_is_no_example_where_only_the_author_could_give_one(annotation: Any) -> None:
    assert Codec(annotation).example() is None
