from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, TypedDict

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from tidegate import Array, serve
from tidegate.cli.signature import describe, gives, takes


class Query(msgspec.Struct):
    text: str
    top: int = 3


@dataclass
class Nested:
    query: Query
    scores: Annotated[np.ndarray, Array("float32", (3,))]


class Wide(TypedDict):
    a: int
    b: int
    c: int
    d: int
    e: int
    f: int
    g: int
    h: int


class Pair(NamedTuple):
    left: int
    right: str


@pytest.mark.parametrize(
    ("annotation", "shown"),
    [
        (str, "str"),
        (Any, "anything"),
        (None, "None"),
        (bytes, "bytes"),
        (list[int], "list[int]"),
        (dict[str, list[float]], "dict[str, list[float]]"),
        (tuple[int, ...], "tuple[int, …]"),
        (int | None, "int | None"),
        (list[Query], "list[Query(text: str, top?: int)]"),
        (np.ndarray, "array"),
        (npt.NDArray[np.int64], "array int64"),
        (Annotated[np.ndarray, Array("float32", (None, 3))], "array float32 (*, 3)"),
        (Annotated[str, msgspec.Meta(max_length=3)], "str"),
        (Nested, "Nested(query: Query, scores: array float32 (3,))"),
        (Pair, "Pair(left: int, right: str)"),
        (Wide, "Wide(a: int, b: int, c: int, d: int, e: int, f: int, … 2 more)"),
    ],
)
def test_a_type_is_shown_in_short(annotation: Any, shown: str) -> None:
    assert describe(annotation) == shown


def test_a_batch_is_shown_as_one_of_its_items() -> None:
    @serve(max_batch_size=4)
    def rank(queries: list[Query]) -> list[float]:
        return []

    @serve(max_batch_size=4)
    def embed(images: Annotated[np.ndarray, Array("uint8", (2, 2))]) -> npt.NDArray[np.float32]:
        return np.zeros((1, 3), "float32")

    assert (takes(rank), gives(rank)) == ("Query(text: str, top?: int)", "float")
    assert (takes(embed), gives(embed)) == ("array uint8 (2, 2)", "array float32")


def test_a_stream_is_shown_as_its_chunks() -> None:
    @serve
    def talk(text: str) -> Iterator[str]:
        yield text

    @serve(max_batch_size=4)
    async def many(texts: list[str]) -> AsyncIterator[list[int]]:
        yield [1]

    assert gives(talk) == "stream of str"
    assert gives(many) == "stream of int"


def test_hooks_say_what_goes_in_and_out() -> None:
    @serve(max_batch_size=4)
    def double(x: np.ndarray) -> np.ndarray:
        return x * 2

    @double.decode_request
    def read(body: str) -> np.ndarray:
        return np.array(float(body))

    @double.encode_response
    def write(y: np.ndarray) -> str:
        return str(y)

    assert (takes(double), gives(double)) == ("str", "str")


def test_unbatch_says_what_each_item_gets() -> None:
    def split(output: Any) -> list[str]:
        return ["a"]

    @serve(max_batch_size=4, unbatch=split)
    def join(texts: list[str]) -> Any:
        return ",".join(texts)

    assert gives(join) == "str"


def test_what_nothing_tells_is_anything() -> None:
    @serve(max_batch_size=2)
    def untyped(xs):  # type: ignore[no-untyped-def]
        return xs

    @serve
    def loose(x: int) -> "Unknown":  # type: ignore[name-defined]  # noqa: F821
        return x

    assert (takes(untyped), gives(untyped)) == ("anything", "anything")
    assert gives(loose) == "anything"
