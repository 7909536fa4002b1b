import logging
import time
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, TypedDict

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate import Array, InvalidInput, MalformedBody
from tidegate.array_layout import Misfit, to_npy
from tidegate.codec import Codec
from tidegate.forms import Form
from tidegate.media import FORM, UnsupportedMediaType

MULTIPART = "multipart/form-data; boundary=B"


class Upload(msgspec.Struct):
    text: str = ""
    count: int = 0
    ratio: float | None = None
    yes: bool = False
    image: Annotated[np.ndarray, Array("float32", (2,))] | None = None
    data: bytes = b""
    tags: list[str] = []
    numbers: set[int] = set()
    files: list[bytes] = []
    meta: dict[str, int] = {}


@dataclass
class Question:
    text: str
    top: int = 1


class Options(TypedDict):
    text: str


class Row(NamedTuple):
    text: str


def part(name: str, data: bytes, *, file: str | None = None, kind: str | None = None, extra: bytes = b"") -> bytes:
    head = f'--B\r\nContent-Disposition: form-data; name="{name}"'
    head += "" if file is None else f'; filename="{file}"'
    head += "" if kind is None else f"\r\nContent-Type: {kind}"
    return head.encode() + extra + b"\r\n\r\n" + data + b"\r\n"


def upload(*parts: bytes) -> Any:
    return Codec(Upload).decode(b"".join(parts) + b"--B--\r\n", MULTIPART)


def refusal(call: Any) -> str:
    with pytest.raises((InvalidInput, Misfit)) as caught:
        call()
    return str(caught.value)


# ---------------------------------------------------------------------- who takes forms


@pytest.mark.parametrize(
    ("annotation", "fits"),
    [
        (Upload, True),
        (Question | None, True),
        (Options, True),
        (dict[str, int], True),
        (Any, True),
        (Row, False),
        (int, False),
        (list[Question], False),
        (np.ndarray, False),
        (str | int, False),
    ],
)
def test_a_form_is_for_types_with_named_fields(annotation: Any, fits: bool) -> None:
    assert Form.fits(annotation) is fits


@pytest.mark.parametrize("annotation", [int, np.ndarray, list[int], Row])
def test_a_handler_without_fields_tells_a_user_of_curl_about_its_json_flag(annotation: Any) -> None:
    with pytest.raises(UnsupportedMediaType, match="--json"):
        Codec(annotation).decode(b"[1,2]", FORM)


@pytest.mark.parametrize("annotation", [Question, dict[str, int], Any])
@pytest.mark.parametrize("body", [b'{"text":"a=b"}', b"[1]", b'"x"', b" {}", b"3"])
def test_json_that_curl_called_a_form_is_told_from_one(annotation: Any, body: bytes) -> None:
    with pytest.raises(UnsupportedMediaType, match="--json"):
        Codec(annotation).decode(body, FORM)


# ---------------------------------------------------------------------- fields


@pytest.mark.parametrize(
    ("annotation", "body", "value"),
    [
        (Question, b"text=hello+world%21&top=3", Question("hello world!", 3)),
        (Question, b"text=%C3%A4", Question("ä")),
        (Question, b"text=", Question("")),
        (Question, b"text=3&unknown=1", Question("3")),
        (dict[str, float], b"a=1&b=2.5", {"a": 1.0, "b": 2.5}),
        (dict[str, list[int]], b"a=1&a=2&b=3", {"a": [1, 2], "b": [3]}),
        (Any, b"a=1&a=2&b=3", {"a": ["1", "2"], "b": "3"}),
        (Any, b"", {}),
        (
            Upload,
            b"tags=a&tags=b&numbers=1&yes=true&ratio=0.5",
            Upload(tags=["a", "b"], numbers={1}, yes=True, ratio=0.5),
        ),
        (Upload, b"meta=%7B%22a%22%3A1%7D&data=raw", Upload(meta={"a": 1}, data=b"raw")),
    ],
)
def test_text_is_converted_by_the_annotation(annotation: Any, body: bytes, value: Any) -> None:
    assert Codec(annotation).decode(body, f"{FORM}; charset=utf-8") == value


@pytest.mark.parametrize("body", [b"image=%5B1%2C2%5D", b"image=1&image=2"])
def test_an_array_in_a_form_is_json_or_one_number_per_repetition(body: bytes) -> None:
    found = Codec(Upload).decode(body, FORM).image
    assert (found.dtype, found.tolist()) == (np.float32, [1, 2])


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"top=1", "missing required field `text`"),
        (b"text=a&top=x", "$.top"),
        (b"text=a&text=b", "expected one value, got 2 - at `$.text`"),
        (b"text=%ff", "not UTF-8"),
        (b"text=\xff", "not UTF-8"),
        (b"a=1&" * 1001, "more than 1000 fields"),
        (b"x" * 300 + b"=1", "longer than 256"),
    ],
)
def test_a_form_that_does_not_fit_is_refused_with_the_reason(body: bytes, told: str) -> None:
    assert told in refusal(lambda: Codec(Question).decode(body, FORM))


# ---------------------------------------------------------------------- files


def test_fields_and_files_of_a_multipart_body_are_read_by_name() -> None:
    found = upload(
        part("text", "ä".encode()),
        part("count", b"3"),
        part("image", to_npy(np.array([1, 2])), file="a.npy", kind="application/octet-stream"),
        part("data", b"\xff\x00\r\n--not the boundary", file="x.bin"),
        part("tags", b"a"),
        part("files", b"1", file="1"),
        part("files", b"2", file="2"),
        part("meta", b'{"a":1}', kind="application/json"),
    )
    assert found.image.tolist() == [1, 2]
    found.image = None
    assert found == Upload(
        "ä", 3, data=b"\xff\x00\r\n--not the boundary", tags=["a"], files=[b"1", b"2"], meta={"a": 1}
    )


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (to_npy(np.array([1, 2])), "application/x-npy"),
        (np.array([1, 2], "<f4").tobytes(), "application/octet-stream"),
        (msgspec.msgpack.encode([1, 2]), "application/msgpack"),
        (b"[1,2]", "application/json"),
        (Codec().encode_msgpack(np.array([1, 2])), "application/x-msgpack"),
    ],
)
def test_a_file_is_read_by_its_own_content_type(data: bytes, kind: str) -> None:
    assert upload(part("image", data, file="x", kind=kind)).image.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ([part("image", b"123", file="x")], "exactly 8 bytes"),
        ([part("image", b"\x93NUMPY\x01\0", file="x")], "npy header"),
        ([part("text", b"\xff")], "'text' cannot be read"),
        ([part("text", b"x", file="x")], "Expected `str`, got `bytes`"),
        ([part("meta", b"{")], "'meta' cannot be read"),
        ([part("meta", b"[" * 100_000, kind="application/json")], "'meta' cannot be read"),
        ([part("x", b"")] * 1001, "more than 1000 fields"),
        ([part("x" * 300, b"")], "longer than 256"),
        ([part("x", b"", extra=b"\r\nA: " + b"x" * 9000)], "eader"),
        ([part("x", b"", extra=b"\r\nA: x" * 3000)], "eader"),
        ([b"--B\r\nContent-Type: text/plain\r\n\r\nx\r\n"], "Content-Disposition"),
        ([b"--B\r\nContent-Disposition: attachment\r\n\r\nx\r\n"], "Content-Disposition"),
        ([b"nonsense"], "malformed"),
        ([b"--B\r\nbad header\r\n\r\n"], "malformed"),
    ],
)
def test_a_multipart_body_that_does_not_fit_is_refused_with_the_reason(parts: list[bytes], told: str) -> None:
    assert told in refusal(lambda: upload(*parts))


@pytest.mark.parametrize("body", [b"", b"--B\r\n", part("a", b"1"), part("a", b"1") + b"--B"])
def test_a_multipart_body_that_was_cut_off_is_malformed(body: bytes) -> None:
    assert "without its closing boundary" in refusal(lambda: Codec(Upload).decode(body, MULTIPART))


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=", f"{MULTIPART}{'x' * 300}"])
def test_a_multipart_body_needs_a_boundary(kind: str) -> None:
    assert "oundary" in refusal(lambda: Codec(Upload).decode(part("a", b"1"), kind))


def test_the_parser_logs_nothing_about_hostile_bodies(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        refusal(lambda: upload(b"nonsense"))
    assert caplog.records == []


@pytest.mark.parametrize("piece", [b"\r", b"\r\n", b"\r\n--", b"\r\n--B", b"\r\n--Bx", b"-", b"B"])
def test_a_hostile_multipart_body_costs_no_time(piece: bytes) -> None:
    body = part("data", piece * (4_000_000 // len(piece)), file="x") + b"--B--\r\n"
    began = time.perf_counter()
    try:
        Codec(Upload).decode(body, MULTIPART)
    except InvalidInput:
        pass
    assert time.perf_counter() - began < 5


@given(st.binary(max_size=300))
def test_no_bytes_are_more_than_a_refusal(body: bytes) -> None:
    for kind in (FORM, MULTIPART):
        for annotation in (Upload, Any):
            try:
                Codec(annotation).decode(body, kind)
                Codec(annotation).decode(part("data", body, file="x") + body, kind)
            except (InvalidInput, UnsupportedMediaType):
                pass


def test_a_form_is_malformed_and_not_a_fault_of_the_handlers() -> None:
    with pytest.raises(MalformedBody):
        Form(Question).read_multipart(b"", None)
