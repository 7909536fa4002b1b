"""What reading an input and writing an output cost: `python -m pytest benchmarks/test_codec.py --benchmark-only`.

`floor` is what msgspec, NumPy and orjson alone take for the same, with nothing checked: the codec's own share is the rest.
"""

import io
from typing import Annotated, Any

import msgspec
import numpy as np
import orjson
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tidegate import Array
from tidegate.codec import Codec

FOUR = np.array([1.5, 2.0, 3.25, 4.0])
INTS = np.arange(128)
EMBEDDING = np.random.default_rng(0).standard_normal(768).astype("float32")
IMAGE = np.zeros((224, 224, 3), "float32")


class Picture(msgspec.Struct):
    name: str
    pixels: Annotated[np.ndarray, Array("float32")]


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("array", [FOUR, INTS, EMBEDDING], ids=["4 floats", "128 ints", "768 floats"])
def test_floor_of_decoding(benchmark: BenchmarkFixture, array: np.ndarray) -> None:
    body = msgspec.json.encode(array.tolist())
    benchmark(lambda: np.array(msgspec.json.decode(body)))


@pytest.mark.parametrize("array", [FOUR, INTS, EMBEDDING], ids=["4 floats", "128 ints", "768 floats"])
@pytest.mark.parametrize("annotation", [np.ndarray, Annotated[np.ndarray, Array("float32")]], ids=["any", "float32"])
def test_decode_json_to_an_array(benchmark: BenchmarkFixture, array: np.ndarray, annotation: Any) -> None:
    body = msgspec.json.encode(array.tolist())
    benchmark(Codec(annotation).decode, body, "application/json")


@pytest.mark.parametrize("array", [FOUR, INTS], ids=["4 floats", "128 ints"])
def test_decode_json_to_a_struct_with_an_array(benchmark: BenchmarkFixture, array: np.ndarray) -> None:
    body = msgspec.json.encode({"name": "x", "pixels": array.tolist()})
    benchmark(Codec(Picture).decode, body, "application/json")


@pytest.mark.parametrize("writable", [True, False], ids=["own memory", "body's memory"])
@pytest.mark.parametrize("media", ["application/x-npy", "application/octet-stream", "application/msgpack"])
def test_decode_an_image(benchmark: BenchmarkFixture, media: str, writable: bool) -> None:
    codec = Codec(Annotated[np.ndarray, Array("float32", (224, 224, 3))], writable=writable)
    body = IMAGE.tobytes() if media.endswith("stream") else codec.encode(IMAGE, media)[0]
    benchmark(codec.decode, body, media)


@pytest.mark.parametrize("array", [FOUR, EMBEDDING], ids=["4 floats", "768 floats"])
def test_floor_of_encoding(benchmark: BenchmarkFixture, array: np.ndarray) -> None:
    benchmark(orjson.dumps, array, option=orjson.OPT_SERIALIZE_NUMPY)


@pytest.mark.parametrize("media", ["application/json", "application/msgpack", "application/x-npy"])
@pytest.mark.parametrize("array", [FOUR, EMBEDDING], ids=["4 floats", "768 floats"])
def test_encode_an_array(benchmark: BenchmarkFixture, array: np.ndarray, media: str) -> None:
    benchmark(Codec().encode, array, media)


@pytest.mark.parametrize("array", [FOUR, EMBEDDING], ids=["4 floats", "768 floats"])
def test_encode_an_array_in_an_object(benchmark: BenchmarkFixture, array: np.ndarray) -> None:
    benchmark(Codec().encode, {"label": "cat", "scores": array})
