from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    TypedDict,
    TypeVar,
    Union,
)

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch

from tidegate import Array
from tidegate.annotations import array_of, fields_of, holds_array, is_union, meaning_of, members_of

T = TypeVar("T")
U = TypeVar("U")
Pixels = NewType("Pixels", np.ndarray)


class Box(msgspec.Struct, Generic[T]):
    inside: T
    more: list[T] = []


class Pair(Box[int], Generic[U]):
    other: U | None = None


@dataclass
class Point(Generic[T]):
    x: T
    y: int = 3
    z: list[int] = field(default_factory=list)
    hidden: int = field(default=0, init=False)


class Tree(msgspec.Struct, rename="camel"):
    child_nodes: list["Tree"] = []


class Options(TypedDict):
    a: int
    b: NotRequired[Annotated[str, "x"]]


class Row(NamedTuple):
    a: int
    b: str = "b"


@pytest.mark.parametrize(
    ("annotation", "kind", "promised"),
    [
        (np.ndarray, np.ndarray, Array()),
        (torch.Tensor, torch.Tensor, Array()),
        (npt.NDArray[np.float32], np.ndarray, Array("float32")),
        (npt.NDArray[np.bool_], np.ndarray, Array("bool")),
        (npt.NDArray[np.floating], np.ndarray, Array()),
        (npt.NDArray[Any], np.ndarray, Array()),
        (Annotated[np.ndarray, Array("int8", (3,))], np.ndarray, Array("int8", (3,))),
        (Annotated[npt.NDArray[np.int16], Array(shape=(3,))], np.ndarray, Array("int16", (3,))),
        (Annotated[torch.Tensor, "note", Array("bfloat16")], torch.Tensor, Array("bfloat16")),
    ],
)
def test_an_array_is_known_with_what_is_promised_of_it(annotation: Any, kind: Any, promised: Array) -> None:
    assert array_of(annotation) == (kind, promised)


@pytest.mark.parametrize(
    "annotation", [int, list[np.ndarray], np.ndarray | None, Any, Literal["Tensor"], "Tensor", 3, ...]
)
def test_anything_else_is_no_array(annotation: Any) -> None:
    assert array_of(annotation) is None


@pytest.mark.parametrize("annotation", [npt.NDArray[np.complex64], npt.NDArray[np.str_], npt.NDArray[np.object_]])
def test_an_array_of_what_is_no_number_is_refused(annotation: Any) -> None:
    with pytest.raises(TypeError, match="Array"):
        array_of(annotation)


@pytest.mark.parametrize(
    "annotation", [Annotated[np.ndarray | None, Array()], Annotated[list[np.ndarray], Array("int8")]]
)
def test_a_promise_about_something_else_than_an_array_is_refused_with_the_fix(annotation: Any) -> None:
    with pytest.raises(TypeError, match=r"next to the array, as Annotated\[np.ndarray"):
        array_of(annotation)


def test_the_meaning_is_what_stands_behind_wrappers() -> None:
    assert meaning_of(Annotated[NewType("A", NewType("B", int)), "x"]) is int
    assert meaning_of(list[int]) == list[int]


def test_the_members_of_a_union_are_told_without_none() -> None:
    assert members_of(Optional[int]) == [int]  # noqa: UP045 - the old way must do too
    assert members_of(Annotated[int | str | None, "x"]) == [int, str]
    assert members_of(list[int]) == [list[int]]
    assert is_union(Union[int, str])  # noqa: UP007 - the old way must do too
    assert not is_union(list[int])


@pytest.mark.parametrize(
    "annotation",
    [
        np.ndarray,
        Pixels,
        list[Pixels],
        dict[str, tuple[int, np.ndarray | None]],
        Sequence[torch.Tensor],
        Box[np.ndarray],
        Pair[np.ndarray],
        Point[list[np.ndarray]],
        Annotated[list[np.ndarray], msgspec.Meta(max_length=3)],
    ],
)
def test_an_array_is_found_wherever_it_is(annotation: Any) -> None:
    assert holds_array(annotation)


@pytest.mark.parametrize(
    "annotation", [int, Any, Tree, Box[int], Pair[str], Literal["a", 3], Point[int], Options, Row, None]
)
def test_where_there_is_no_array_none_is_found(annotation: Any) -> None:
    assert not holds_array(annotation)


@pytest.mark.parametrize(
    ("annotation", "fields"),
    [
        (Tree, [("child_nodes", "childNodes", list[Tree])]),
        (Box[int], [("inside", "inside", int), ("more", "more", list[int])]),
        (Pair[str], [("inside", "inside", int), ("more", "more", list[int]), ("other", "other", str | None)]),
        (Point[str], [("x", "x", str), ("y", "y", int), ("z", "z", list[int])]),
        (Options, [("a", "a", int), ("b", "b", Annotated[str, "x"])]),
        (Row, [("a", "a", int), ("b", "b", str)]),
    ],
)
def test_a_class_tells_its_fields(annotation: Any, fields: list[Any]) -> None:
    found = fields_of(annotation)
    assert found is not None
    assert [one[:3] for one in found] == fields


def test_a_field_tells_its_default() -> None:
    found = {one.name: one.default for one in fields_of(Point[int]) or ()}
    assert found == {"x": {}, "y": {"default": 3}, "z": {"default_factory": list}}


@pytest.mark.parametrize("annotation", [int, dict[str, int], list[Tree], Any, "Tree", tuple[int, str]])
def test_other_types_have_no_fields(annotation: Any) -> None:
    assert fields_of(annotation) is None
