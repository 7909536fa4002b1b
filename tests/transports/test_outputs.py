import dataclasses
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Annotated, Any, Optional

import msgspec
import numpy as np
import pytest

from tidegate import Array, Handler, serve
from tidegate_transports.outputs import NOTHING, output_of, output_schema


class Label(msgspec.Struct):
    name: str


@dataclasses.dataclass
class Scored:
    vector: np.ndarray
    score: float


class Strange:
    pass


def plain(x: int) -> float: ...  # type: ignore[empty-body]
def nothing_said(x): ...  # type: ignore[no-untyped-def]
def maybe(x: int) -> Optional[Label]: ...  # noqa: UP045
def strange(x: int) -> Strange: ...  # type: ignore[empty-body]
def array(x: int) -> np.ndarray: ...  # type: ignore[empty-body]
def chunks(x: int) -> Iterator[str]:
    yield ""


def generator(x: int) -> Generator[Label, None, None]:
    yield Label("")


async def later(x: int) -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "annotation"),
    [
        (plain, float),
        (nothing_said, NOTHING),
        (maybe, Optional[Label]),  # noqa: UP045
        (chunks, str),
        (generator, Label),
        (later, int),
    ],
)
def test_one_output_is_what_the_function_returns_or_yields(function: Callable[..., Any], annotation: Any) -> None:
    assert output_of(serve(function)) == annotation


def batched(annotation: Any) -> Handler[..., Any]:
    def function(x: list[int]) -> Any: ...

    function.__annotations__["return"] = annotation
    return serve(max_batch_size=2)(function)


@pytest.mark.parametrize(
    ("annotation", "one"),
    [
        (list[Label], Label),
        (tuple[int, ...], int),
        (np.ndarray, np.ndarray),
        (tuple[int, str], NOTHING),
        (dict[str, int], NOTHING),
        (list, NOTHING),
        (Any, NOTHING),
    ],
)
def test_one_output_of_a_batch_is_an_element_of_it(annotation: Any, one: Any) -> None:
    assert output_of(batched(annotation)) is one


def test_a_batched_streams_chunk_is_an_element_of_what_it_yields() -> None:
    @serve(max_batch_size=2)
    def tokens(x: list[str]) -> Iterator[list[str]]:
        yield x

    assert output_of(tokens) is str


def test_hooks_behind_the_function_have_the_last_word() -> None:
    @serve(max_batch_size=2)
    def classify(x: list[str]) -> np.ndarray:
        return np.zeros(len(x))

    @classify.unbatch
    def split(output: np.ndarray) -> list[float]:
        return list(output)

    assert output_of(classify) is float

    @classify.encode_response
    def label(score: float) -> Label:
        return Label(str(score))

    assert output_of(classify) is Label


def test_schemas_follow() -> None:
    assert output_schema(serve(plain)) == {"type": "number"}
    assert output_schema(serve(nothing_said)) == {}
    assert output_schema(serve(strange)) == {"title": "Strange"} or output_schema(serve(strange)) == {}
    # An item of a batch's one axis is a number.
    assert set(output_schema(serve(array))["type"]) >= {"array", "number"}
    assert output_schema(batched(list[Label]))["$defs"]["Label"]["properties"] == {"name": {"type": "string"}}
    assert output_schema(batched(Annotated[np.ndarray, Array("float32", (2,))]))["description"]
    assert output_schema(serve(allow_nan=True)(plain)) == {}

    def scored(x: int) -> Scored: ...  # type: ignore[empty-body]

    assert output_schema(serve(scored))["$defs"]["Scored"]["required"] == ["vector", "score"]


def test_hints_that_cannot_be_read_say_nothing() -> None:
    def unknown(x): ...  # type: ignore[no-untyped-def]

    unknown.__annotations__["return"] = "NoSuchType"

    @serve
    class Wrapped:
        predict = staticmethod(unknown)

    handler = vars(Wrapped)["__tidegate_handler__"]
    assert output_of(handler) is NOTHING
    assert output_schema(handler) == {}
