from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, NamedTuple, NotRequired, TypedDict, TypeVar

import msgspec
import numpy as np
import pytest
import torch

from tidegate import Array
from tidegate.array_layout import Misfit
from tidegate.plan import Plan, located

Two = Annotated[np.ndarray, Array("float32", (2,))]
T = TypeVar("T")


class Picture(msgspec.Struct, rename="camel", frozen=True):
    raw_pixels: Two
    name: str = "untitled"


@dataclass
class Question:
    image: Two | None
    pictures: dict[str, list[Picture]] = field(default_factory=dict)
    either: np.ndarray | str | Picture = "none"

    def __post_init__(self) -> None:
        if self.either == "bad":
            raise ValueError("either is bad")


class Options(TypedDict):
    mask: Two
    more: NotRequired[torch.Tensor]


class Row(NamedTuple):
    cells: Two
    label: int = 3


class Box(msgspec.Struct, Generic[T]):
    inside: T


class Tree(msgspec.Struct):
    value: Two
    children: list["Tree"] = []
    other: "Tree | str | None" = None


class Cat(msgspec.Struct, tag=True):
    fur: Two


class Dog(msgspec.Struct, tag=True):
    age: int


class Stranger:
    pass


def read(annotation: Any, value: Any, **options: Any) -> Any:
    plan = Plan(annotation)
    return plan.convert(value, plan.type, **options)


def refusal(annotation: Any, value: Any) -> tuple[str, str]:
    with pytest.raises((msgspec.ValidationError, Misfit)) as caught:
        read(annotation, value)
    error = caught.value
    return located(error) if isinstance(error, msgspec.ValidationError) else (str(error), getattr(error, "path", ""))


def is_two(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.float32 and value.tolist() == [1, 2]


# ---------------------------------------------------------------------- where arrays may stand


@pytest.mark.parametrize("annotation", [int, list[str], dict[str, Dog], Dog, Dog | None, Any, Stranger])
def test_what_holds_no_array_is_left_as_it_is(annotation: Any) -> None:
    assert Plan(annotation).type is annotation


@pytest.mark.parametrize(
    ("annotation", "value", "reach"),
    [
        (Two, [1, 2], lambda it: it),
        (list[Two], [[1, 2]], lambda it: it[0]),
        (tuple[int, Two], [3, [1, 2]], lambda it: it[1]),
        (tuple[Two, ...], [[1, 2]], lambda it: it[0]),
        (dict[int, Two], {"3": [1, 2]}, lambda it: it[3]),
        (Two | None, [1, 2], lambda it: it),
        (Two | str, [1, 2], lambda it: it),
        (Two | list[str], [1, 2], lambda it: it),
        (Picture, {"rawPixels": [1, 2]}, lambda it: it.raw_pixels),
        (Question, {"image": [1, 2]}, lambda it: it.image),
        (
            Question,
            {"image": None, "pictures": {"a": [{"rawPixels": [1, 2]}]}},
            lambda it: it.pictures["a"][0].raw_pixels,
        ),
        (Question, {"image": None, "either": {"rawPixels": [1, 2]}}, lambda it: it.either.raw_pixels),
        (Options, {"mask": [1, 2]}, lambda it: it["mask"]),
        (Row, [[1, 2]], lambda it: it.cells),
        (Box[Two], {"inside": [1, 2]}, lambda it: it.inside),
        (Box[list[Two | None]], {"inside": [None, [1, 2]]}, lambda it: it.inside[1]),
        (Tree, {"value": [0, 0], "children": [{"value": [1, 2]}]}, lambda it: it.children[0].value),
        (Tree, {"value": [0, 0], "other": {"value": [1, 2]}}, lambda it: it.other.value),
        (Cat | Dog, {"type": "Cat", "fur": [1, 2]}, lambda it: it.fur),
        (Annotated[list[Two], msgspec.Meta(max_length=1)], [[1, 2]], lambda it: it[0]),
    ],
)
def test_an_array_is_read_as_promised_wherever_it_stands(annotation: Any, value: Any, reach: Any) -> None:
    assert is_two(reach(read(annotation, value)))


@pytest.mark.parametrize(
    ("annotation", "value", "kind"),
    [
        (Picture, {"rawPixels": [1, 2]}, Picture),
        (Question, {"image": None}, Question),
        (Row, [[1, 2]], Row),
        (Options, {"mask": [1, 2]}, dict),
        (Box[Two], {"inside": [1, 2]}, Box),
        (Cat | Dog, {"type": "Cat", "fur": [1, 2]}, Cat),
        (Cat | Dog, {"type": "Dog", "age": 3}, Dog),
    ],
)
def test_the_object_is_of_the_users_own_class(annotation: Any, value: Any, kind: Any) -> None:
    assert type(read(annotation, value)) is kind


@pytest.mark.parametrize(
    ("annotation", "value", "found"),
    [
        (np.ndarray | str, "text", "text"),
        (np.ndarray | list[str], ["text"], ["text"]),
        (np.ndarray | float, 2.5, 2.5),
        (np.ndarray | int | None, None, None),
        (Question, {"image": None, "either": "text"}, Question(None, {}, "text")),
        (Options, {"mask": [1, 2]}, None),
    ],
)
def test_of_a_union_the_value_says_which(annotation: Any, value: Any, found: Any) -> None:
    if found is not None or value is None:
        assert read(annotation, value) == found


def test_defaults_are_the_users() -> None:
    one, other = (read(Question, {"image": None}) for _ in range(2))
    assert (one.pictures, one.either) == ({}, "none")
    assert one.pictures is not other.pictures
    assert read(Row, [[1, 2]]).label == 3
    assert read(Picture, {"rawPixels": [1, 2]}).name == "untitled"
    assert "more" not in read(Options, {"mask": [1, 2]})


# ---------------------------------------------------------------------- values of a caller in this process


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Picture, Picture(np.array([1, 2]))),
        (Cat | Dog, Cat(np.array([1, 2]))),
        (Question, Question(np.array([1, 2]))),
        (Row, Row(np.array([1, 2]))),
        (Picture | np.ndarray, Picture(np.array([1, 2]))),
    ],
)
def test_an_object_of_the_users_class_is_read_like_what_comes_over_a_wire(annotation: Any, value: Any) -> None:
    found = read(annotation, value)
    assert type(found) is type(value)
    first = found[0] if isinstance(found, tuple) else getattr(found, next(iter(type(found).__annotations__)))
    assert is_two(first)


def test_a_type_that_msgspec_does_not_know_can_come_from_this_process_only() -> None:
    stranger = Stranger()
    assert read(Stranger, stranger) is stranger
    assert read(list[Stranger], [stranger]) == [stranger]
    assert "decode_request" in refusal(Stranger, {})[0]


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("annotation", "value", "told"),
    [
        (Picture, {"rawPixels": [1, 2, 3]}, ("expected an array of shape (2,), got (3,)", ".rawPixels")),
        (list[Picture], [{"rawPixels": [1, 1e39]}], ("1e+39 does not fit into float32", "[0].rawPixels[1]")),
        (
            Tree,
            {"value": [1, 2], "other": {"value": [1, "a"]}},
            ("expected an array of numbers, got text", ".other.value[1]"),
        ),
        (Tree, {"value": [1, 2], "children": [{}]}, ("Object missing required field `value`", ".children[0]")),
        (Question, {"image": None, "either": "bad"}, ("either is bad", "")),
        (list[Question], [{"image": None, "either": "bad"}], ("either is bad", "[0]")),
        (Cat | Dog, {"type": "Cow"}, ("Invalid value 'Cow'", ".type")),
        (dict[str, Cat | Dog], {"a": {"type": "Dog"}}, ("Object missing required field `age`", "[...]")),
        (np.ndarray | str, {}, ("Expected `str`, got `object`", "")),
        (np.ndarray | str, [None], ("expected an array of numbers, got null", "[0]")),
    ],
)
def test_an_error_tells_the_whole_path(annotation: Any, value: Any, told: tuple[str, str]) -> None:
    text, path = refusal(annotation, value)
    assert text.startswith(told[0].split("`object`")[0])
    assert path == told[1]


@pytest.mark.parametrize(
    ("annotation", "told"),
    [
        (np.ndarray | torch.Tensor, "one kind of array"),
        (Picture | Question, "union"),
        (Picture | Dog | dict[str, int], "union"),
    ],
)
def test_a_union_that_cannot_be_told_apart_is_refused_when_the_plan_is_made(annotation: Any, told: str) -> None:
    with pytest.raises(TypeError, match=told):
        Plan(annotation)


def test_settings_of_a_struct_hold_for_its_shadow() -> None:
    class Strict(msgspec.Struct, forbid_unknown_fields=True, array_like=True):
        a: Two
        b: int = 0

    assert is_two(read(Strict, [[1, 2], 3]).a)
    assert "at most length 2" in refusal(Strict, [[1, 2], 3, 4])[0]


def test_in_a_form_numbers_are_text_however_deep() -> None:
    found = read(Box[Picture], {"inside": {"rawPixels": ["1", "2"], "name": "x"}}, lax=True)
    assert is_two(found.inside.raw_pixels)
