from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import pytest
import torch

from tidegate import Array
from tidegate.codec import Codec
from tidegate.plan import Plan
from tidegate.schema import example_of, schema_of

Two = Annotated[np.ndarray, Array("float32", (2,)), msgspec.Meta(title="A pair")]


class Picture(msgspec.Struct, rename="camel"):
    """A picture."""

    raw_pixels: Two
    name: str = "untitled"


class Tree(msgspec.Struct):
    value: Two
    children: list["Tree"] = []
    either: "np.ndarray | str | Tree | None" = None


@dataclass
class Plain:
    text: str
    kind: Literal["a", "b"]
    top: Annotated[int, msgspec.Meta(ge=3)] = 3


class Endless(msgspec.Struct):
    inside: "Endless"


class Stranger:
    pass


def test_an_array_is_nested_lists_of_its_shape() -> None:
    assert schema_of(Plan(Annotated[np.ndarray, Array("uint8", (None, 3))])) == {
        "type": "array",
        "items": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 255},
            "minItems": 3,
            "maxItems": 3,
        },
        "description": "nested lists of numbers of shape (*, 3), read as uint8",
        "examples": [[[0, 0, 0]] * 3],
    }
    assert schema_of(Plan(torch.Tensor))["type"] == "array"
    assert schema_of(Plan(Annotated[torch.Tensor, Array("bfloat16", ())]))["type"] == "number"
    assert schema_of(Plan(Annotated[np.ndarray, Array("bool", (1,))]))["items"] == {"type": "boolean"}


def test_a_class_with_arrays_is_defined_under_the_users_name() -> None:
    schema = schema_of(Plan(list[Picture]))
    assert schema["items"] == {"$ref": "#/$defs/Picture"}
    picture = schema["$defs"]["Picture"]
    assert picture["required"] == ["rawPixels"]
    assert picture["description"] == "A picture."
    assert picture["properties"]["name"] == {"type": "string", "default": "untitled"}
    assert picture["properties"]["rawPixels"]["title"] == "A pair"
    assert picture["properties"]["rawPixels"]["minItems"] == 2


def test_a_class_may_hold_itself_and_unions() -> None:
    tree = schema_of(Plan(Tree))["$defs"]["Tree"]["properties"]
    assert tree["children"]["items"] == {"$ref": "#/$defs/Tree"}
    kinds = tree["either"]["anyOf"]
    assert kinds[0]["type"] == "array"
    assert {"$ref": "#/$defs/Tree"} in kinds
    assert {"type": "string"} in kinds
    assert {"type": "null"} in kinds


def test_two_classes_of_one_name_are_two_definitions() -> None:
    class Box(msgspec.Struct):
        inside: Two

    one = Box

    class Box(msgspec.Struct):  # type: ignore[no-redef]
        inside: np.ndarray

    schema = schema_of(Plan(tuple.__class_getitem__((one, Box))))
    assert len(schema["$defs"]) == 2
    assert len({item["$ref"] for item in schema["prefixItems"]}) == 2


@pytest.mark.parametrize("annotation", [int, list[str], dict[str, int], Plain, Any, bytes, int | None])
def test_a_type_without_arrays_has_msgspecs_schema(annotation: Any) -> None:
    assert schema_of(Plan(annotation)) == msgspec.json.schema(annotation)


def test_a_type_that_msgspec_does_not_know_is_named() -> None:
    assert schema_of(Plan(Stranger)) == {"title": "Stranger"}


@pytest.mark.parametrize(
    ("annotation", "example"),
    [
        (str, "hello"),
        (int | None, 1),
        (Plain, {"text": "hello", "kind": "a"}),
        (list[Plain], [{"text": "hello", "kind": "a"}]),
        (tuple[int, str], [1, "hello"]),
        (Picture, {"rawPixels": [0.0, 0.0]}),
        (Annotated[str, msgspec.Meta(examples=["bonjour"])], "bonjour"),
        (np.ndarray, [0.0, 0.0, 0.0]),
        (Annotated[np.ndarray, Array("int8", ())], 0),
        (dict[str, int], None),
        (Endless, None),
        (Annotated[int, msgspec.Meta(ge=10)], None),
        (bytes, None),
        (Any, None),
        (Annotated[np.ndarray, Array("float32", (224, 224, 3))], None),
        (Annotated[list[list[int]], msgspec.Meta(min_length=10**9)], None),
    ],
)
def test_an_example_decodes_and_is_none_where_only_the_author_could_give_one(annotation: Any, example: Any) -> None:
    assert Codec(annotation).example() == example


def test_an_example_that_would_not_end_is_refused() -> None:
    with pytest.raises(LookupError):
        example_of(schema_of(Plan(Endless)))
