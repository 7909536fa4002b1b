from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import pytest

from tidegate import Array, serve
from tidegate.bench.inputs import InputError, payloads_from, payloads_of, values_of
from tidegate.bench.sender import Payload


@pytest.mark.parametrize(
    ("name", "content", "payloads"),
    [
        ("one.json", b"[1,\n2]", [Payload(b"[1,\n2]")]),
        ("many.jsonl", b'\xef\xbb\xbf"a"\r\n\n"b"', [Payload(b'"a"'), Payload(b'"b"')]),
        ("many.NDJSON", b"1\n2\n", [Payload(b"1"), Payload(b"2")]),
        ("array.npy", b"\x93NUMPY", [Payload(b"\x93NUMPY", "application/x-npy")]),
        ("map.msgpack", b"\x80", [Payload(b"\x80", "application/msgpack")]),
        ("cat.jpg", b"\xff\xd8", [Payload(b"\xff\xd8", "application/octet-stream")]),
    ],
)
def test_a_file_is_what_its_name_says(name: str, content: bytes, payloads: list[Payload], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert payloads_from(tmp_path / name) == payloads


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--input .*none\.json: No such file"):
        payloads_from(tmp_path / "none.json")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(InputError, match="no line"):
        payloads_from(tmp_path / "empty.jsonl")


def test_a_handlers_example_is_its_warmup_or_what_its_annotations_give() -> None:
    @serve(max_batch_size=2, warmup=np.array([0.5, 1.0], "float32"))
    def warm(x: np.ndarray) -> np.ndarray:
        return x

    @serve(max_batch_size=2)
    def cold(x: Annotated[np.ndarray, Array("float32", (2,))]) -> np.ndarray:
        return x

    @serve(warmup=lambda: b"raw")
    def raw(body: bytes) -> int:
        return len(body)

    assert payloads_of(warm) == [Payload(b"[0.5,1.0]")]
    (payload,) = payloads_of(cold)
    assert len(msgspec.json.decode(payload.body)) == 2
    (value,) = values_of(cold, None)
    assert (value.dtype, value.shape) == (np.float32, (2,))
    assert payloads_of(raw) == [Payload(b"raw", "application/octet-stream")]


def test_a_handler_without_an_example_says_what_to_give() -> None:
    @serve
    def raw(body: bytes) -> int:
        return len(body)

    for call in (lambda: payloads_of(raw), lambda: values_of(raw, None)):
        with pytest.raises(InputError, match=r"raw has no example: give --input FILE, or warmup= to @serve"):
            call()


def test_files_are_decoded_for_a_handler_in_this_process_and_refused_before_it_starts() -> None:
    @serve
    def double(n: int) -> int:
        return 2 * n

    assert values_of(double, [Payload(b"1"), Payload(b"2")]) == [1, 2]
    with pytest.raises(InputError, match="double does not take it"):
        values_of(double, [Payload(b'"one"')])
