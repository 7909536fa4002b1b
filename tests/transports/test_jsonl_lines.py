import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate import HandlerError, InvalidInput
from tidegate.codec import MalformedBody
from tidegate_transports.jsonl_lines import (
    Bare,
    Layout,
    Splitter,
    custom_id_in,
    custom_id_of,
    failed_line,
    failed_number,
    too_long,
)

BOM = b"\xef\xbb\xbf"
ERROR = HandlerError("ValueError", "no")

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def in_pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(places)]


def split(pieces: list[bytes], max_line: int) -> list[bytes | None]:
    splitter = Splitter(max_line)
    lines = [line for piece in pieces for line in splitter.feed(piece)]
    return lines + splitter.end()


# ---------------------------------------------------------------------- bytes to lines


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=20), st.integers(1, 40))
def test_wherever_the_bytes_are_cut_the_lines_are_the_same(data: bytes, cuts: list[int], limit: int) -> None:
    assert split(in_pieces(data, cuts), limit) == split([data], limit)


@given(
    st.lists(st.binary(min_size=1, max_size=30).map(lambda line: line.replace(b"\n", b"x")), max_size=9),
    st.integers(1, 20),
)
def test_lines_within_the_limit_come_whole_and_the_others_as_none(lines: list[bytes], limit: int) -> None:
    first = b"0\n"  # a mark belongs to the first line
    expected = [b"0", *(line if len(line) <= limit else None for line in lines)]
    assert split([first + b"\n".join(lines)], limit) == expected


@given(st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")), max_size=20))
def test_what_is_joined_by_newlines_comes_apart_again(lines: list[bytes]) -> None:
    joined = b"".join(line + b"\n" for line in lines)
    expected = [lines[0].removeprefix(BOM), *lines[1:]] if lines else []
    assert split([joined], 1000) == expected


def test_a_line_over_the_limit_is_not_kept_while_it_arrives() -> None:
    splitter = Splitter(max_line=10)
    for _ in range(1000):
        assert splitter.feed(b"x" * 8) == []
        assert len(splitter._tail) <= 18
    assert splitter.feed(b"y\n1\n") == [None, b"1"]


@pytest.mark.parametrize("first", [b"", b"\n"])
def test_a_mark_is_taken_off_the_first_line_only(first: bytes) -> None:
    splitter = Splitter(100)
    found = [
        line for line in (*splitter.feed(BOM[:2]), *splitter.feed(BOM[2:] + b"1" + first), *splitter.end()) if line
    ]
    assert found == [b"1"]
    assert split([BOM + b"1\n" + BOM + b"2\n"], 100) == [b"1", BOM + b"2"]


# ---------------------------------------------------------------------- a line


@given(json_values)
def test_any_value_on_a_line_is_an_item_and_answered_bare(value: Any) -> None:
    line = json.dumps(value).encode()
    answer, body = Layout().read(line)
    if isinstance(value, dict) and {"custom_id", "body"} <= value.keys():
        return
    assert body == line
    assert answer.result(3, b"1") == b"1\n"


@given(json_values, json_values, st.dictionaries(st.text(max_size=5), json_values, max_size=3), st.booleans())
def test_an_envelope_is_opened_and_its_id_comes_back(
    custom_id: Any, body: Any, rest: dict[str, Any], text: bool
) -> None:
    line = json.dumps({**rest, "custom_id": custom_id, "body": body}, ensure_ascii=text).encode()
    answer, inside = Layout().read(line)
    assert json.loads(inside) == body
    result = answer.result(7, json.dumps("out").encode())
    assert result.endswith(b"\n")
    assert json.loads(result) == {
        "id": "line-7",
        "custom_id": custom_id,
        "response": {"status_code": 200, "request_id": "line-7", "body": "out"},
        "error": None,
    }
    assert custom_id_of(result) == custom_id_in(line)
    assert failed_number(result) is None
    failure = json.loads(answer.failure(7, ERROR))
    assert (failure["custom_id"], failure["response"]["status_code"], failure["response"]["body"]) == (
        custom_id,
        500,
        None,
    )
    assert failure["error"] == {"code": "handler-error", "message": "ValueError: no", "line": 7}
    assert failed_number(answer.failure(7, ERROR)) == 7


def test_a_line_of_openais_batch_api_works_as_it_is() -> None:
    line = b'{"custom_id": "request-1", "method": "POST", "url": "/v1/embeddings", "body": {"input": "hello"}}'
    answer, body = Layout().read(line)
    assert (body, answer.custom_id) == (b'{"input": "hello"}', b'"request-1"')


@pytest.mark.parametrize(
    "line",
    [
        b'{"custom_id": 1}',
        b'{"x": {"custom_id": 1, "body": 2}}',
        b'["custom_id", "body"]',
        b'"a \\"custom_id\\" in a text"',
        b'{"custom_id": 1, "body": ',
        b'{"custom_id": "\xff", "body": 1}',
    ],
)
def test_what_only_looks_like_an_envelope_is_an_item(line: bytes) -> None:
    answer, body = Layout().read(line)
    assert body == line
    assert answer.custom_id is None


# ---------------------------------------------------------------------- fields


@given(st.dictionaries(st.text(max_size=8), json_values, max_size=5), json_values)
def test_a_field_is_read_and_the_result_is_added_to_what_was_there(fields: dict[str, Any], value: Any) -> None:
    line = json.dumps({**fields, "in": value}, ensure_ascii=False).encode()
    answer, body = Layout("in", "out").read(line)
    assert json.loads(body) == value
    assert json.loads(answer.result(1, b'"done"')) == {**fields, "in": value, "out": "done"}


def test_other_fields_keep_their_text_to_the_digit() -> None:
    answer, _ = Layout("text", "out").read(b'{"text": "a", "n": 1.50, "big": 123456789012345678901234567890}')
    assert answer.result(1, b"1") == b'{"text":"a","n":1.50,"big":123456789012345678901234567890,"out":1}\n'


def test_with_an_input_field_alone_the_result_is_bare() -> None:
    answer, body = Layout(input_field="body").read(b'{"custom_id": "a", "body": 1}')
    assert (body, answer.result(1, b"2")) == (b"1", b"2\n")


def test_with_an_output_field_alone_the_item_is_the_object() -> None:
    line = b'{"a": 1}'
    answer, body = Layout(output_field="b").read(line)
    assert (body, answer.result(1, b"2")) == (line, b'{"a":1,"b":2}\n')


@pytest.mark.parametrize(
    ("line", "error", "text"),
    [
        (b"[1]", InvalidInput, "must be an object"),
        (b'{"other": 1}', InvalidInput, "no field 'text'"),
        (b'{"text": ', MalformedBody, "truncated"),
        (b'{"text": 1, "x": "\xff"}', MalformedBody, "not UTF-8 (byte 18)"),
    ],
)
def test_an_object_without_the_field_is_told_so(line: bytes, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        Layout("text", "out").read(line)
    assert text in str(caught.value)


# ---------------------------------------------------------------------- failures


@given(st.text(), st.integers(1, 10**9))
def test_whatever_an_error_says_its_line_is_one_line_of_json(text: str, number: int) -> None:
    line = failed_line(number, HandlerError("ValueError", text))
    assert line.count(b"\n") == 1
    assert json.loads(line)["error"]["line"] == number
    assert failed_number(line) == number


def test_an_error_s_text_is_cut_where_it_quotes_the_whole_input() -> None:
    assert len(failed_line(1, HandlerError("ValueError", "x" * 10**6))) < 3000


def test_half_a_surrogate_in_an_error_is_written_all_the_same() -> None:
    assert json.loads(failed_line(1, HandlerError("ValueError", "a\udc80b")))["error"]["message"] == "ValueError: a?b"


@pytest.mark.parametrize(
    "answer",
    [
        b"1\n",
        b'{"error":null}\n',
        b'{"error":{"code":"x"}}\n',
        b'{"error":{"code":"x","message":"y","line":1},"more":2}\n',
        b'"{\\"error\\":{\\"code\\":1}}"\n',
        Bare().result(1, b'[{"error":{"code":"x","message":"y","line":1}}]'),
    ],
)
def test_a_result_that_looks_like_an_error_is_none(answer: bytes) -> None:
    assert failed_number(answer) is None


def test_a_line_without_an_id_has_none_and_no_json_is_told() -> None:
    assert custom_id_in(b"[1]") is None
    assert custom_id_of(b"[1]\n") is None
    with pytest.raises(MalformedBody):
        custom_id_in(b"[1")


def test_a_line_that_is_too_long_names_the_flag() -> None:
    assert "over 10 bytes" in too_long(10).detail
    assert "--max-line" in too_long(10).detail
