import time
from contextlib import suppress

import pytest

from tidegate.media import JSON, MSGPACK, NPY, NotAcceptable, UnsupportedMediaType, choose, parsed

OFFERED = [JSON, MSGPACK, NPY]


@pytest.mark.parametrize(
    ("header", "value", "parameters"),
    [
        ("application/json", JSON, {}),
        (" Application/JSON ; Charset=UTF-8", JSON, {"charset": "UTF-8"}),
        ('multipart/form-data; boundary="a;b"', "multipart/form-data", {"boundary": "a;b"}),
        (r'form-data; name="a\"b"; filename=c', "form-data", {"name": 'a"b', "filename": "c"}),
        ("a/b; x=1; x=2", "a/b", {"x": "1"}),
        ("a/b; filename*=utf-8''c; =; ;", "a/b", {"filename*": "utf-8''c"}),
        ("", "", {}),
    ],
)
def test_a_header_is_its_value_and_its_parameters(header: str, value: str, parameters: dict[str, str]) -> None:
    assert parsed(header) == (value, parameters)


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        (MSGPACK, MSGPACK),
        ("application/MsgPack; q=0.5", MSGPACK),
        ("application/json;q=0.5, application/msgpack;q=0.6", MSGPACK),
        ("application/json;q=0.5, */*;q=0.6", MSGPACK),
        ("application/json;q=0, */*;q=0.1", MSGPACK),
        ("text/html, application/x-npy, */*", NPY),
        ("text/html;q=0.9, */*;q=0.8", JSON),
        ("application/msgpack;q=high, application/x-npy", NPY),
        ("nonsense", JSON),
    ],
)
def test_the_caller_gets_what_it_likes_best(accept: str | None, chosen: str) -> None:
    assert choose(accept, OFFERED) == chosen


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "text/*", "*/*;q=0.0"])
def test_a_caller_that_accepts_nothing_of_what_there_is_is_told_what_there_is(accept: str) -> None:
    with pytest.raises(NotAcceptable) as caught:
        choose(accept, [JSON])
    assert (caught.value.status, caught.value.code) == (406, "not-acceptable")
    assert caught.value.detail == f"Accept: {accept} matches none of {JSON}"
    assert caught.value.offered == (JSON,)


def test_a_body_of_a_wrong_type_is_told_which_ones_are_taken() -> None:
    error = UnsupportedMediaType("text/html", [JSON, NPY], "a hint")
    assert (error.status, error.code) == (415, "unsupported-media-type")
    assert error.detail == f"this handler takes {JSON}, {NPY}, and the body came as text/html; a hint"


@pytest.mark.parametrize("piece", [";", ";a=", ';a="', "\\", ';a="\\"', "; ", ",", "a/b;q=1,", "/"])
def test_a_hostile_header_costs_no_time(piece: str) -> None:
    header = "a/b" + piece * (16_384 // len(piece))
    began = time.perf_counter()
    parsed(header)
    with suppress(NotAcceptable):
        choose(header, OFFERED)
    assert time.perf_counter() - began < 1
