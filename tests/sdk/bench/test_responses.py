from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.bench.responses import KEPT, BrokenResponse, ResponseReader

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\ncontent-LENGTH:  5 \r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\nContent-Type: application/x-ndjson\r\n\r\n"
    b"6;name=x\r\nhello,\r\nA\r\n 0123\r\n456\r\n0\r\nTrailer: x\r\n\r\n"
)
CONTINUED = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + PLAIN


def read(data: bytes, cuts: list[int]) -> tuple[ResponseReader, list[bool]]:
    """Fed in pieces."""
    reader = ResponseReader()
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return reader, [reader.feed(data[a:b]) for a, b in pairwise(places)]


@pytest.mark.parametrize(
    ("data", "body", "is_lines"),
    [(PLAIN, b"hello", False), (CHUNKED, b"hello, 0123\r\n456", True), (CONTINUED, b"hello", False)],
)
@given(cuts=st.lists(st.integers(0, 1000), max_size=12))
def test_a_response_is_whole_with_its_last_byte_wherever_it_was_cut(
    data: bytes, body: bytes, is_lines: bool, cuts: list[int]
) -> None:
    reader, whole = read(data, cuts)
    assert whole == [*([False] * (len(whole) - 1)), True]
    assert (reader.status, reader.tail, reader.keep_alive, reader.is_lines) == (200, body, True, is_lines)
    assert not reader.has_begun


@given(st.lists(st.sampled_from([PLAIN, CHUNKED, CONTINUED]), min_size=1, max_size=5))
def test_one_response_follows_another(responses: list[bytes]) -> None:
    reader = ResponseReader()
    for response in responses:
        assert not reader.feed(response[:20])
        assert reader.has_begun
        assert reader.feed(response[20:])


@given(st.binary(max_size=300))
def test_whatever_comes_is_read_or_refused(data: bytes) -> None:
    reader = ResponseReader()
    try:
        reader.feed(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + data)
    except BrokenResponse:
        pass


@pytest.mark.parametrize(
    ("head", "keep_alive"),
    [
        (b"HTTP/1.1 200 OK\r\n", True),
        (b"HTTP/1.1 200\r\nConnection: Close\r\n", False),
        (b"HTTP/1.0 200 OK\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n", True),
    ],
)
def test_a_connection_is_kept_as_the_version_and_the_header_say(head: bytes, keep_alive: bool) -> None:
    reader = ResponseReader()
    assert reader.feed(head + b"Content-Length: 0\r\n\r\n")
    assert reader.keep_alive is keep_alive


def test_without_a_length_the_end_of_the_connection_ends_it() -> None:
    reader = ResponseReader()
    assert not reader.feed(b"HTTP/1.1 200 OK\r\n\r\nsome")
    assert not reader.feed(b" more")
    assert reader.feed_eof()
    assert (reader.tail, reader.keep_alive) == (b"some more", False)


@pytest.mark.parametrize("data", [b"", PLAIN[:-1], CHUNKED[:-1], b"HTTP/1.1 2"])
def test_a_response_that_is_cut_off_has_not_ended(data: bytes) -> None:
    reader = ResponseReader()
    if data:
        assert not reader.feed(data)
    assert not reader.feed_eof()


def test_there_is_no_body_behind_204() -> None:
    assert ResponseReader().feed(b"HTTP/1.1 204 No Content\r\n\r\n")


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        PLAIN + b"!",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabcd",
        CHUNKED + b"!",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20_000,
    ],
)
def test_what_is_no_response_is_refused(data: bytes) -> None:
    with pytest.raises(BrokenResponse):
        ResponseReader().feed(data)


def test_of_a_large_body_only_the_end_is_kept() -> None:
    reader = ResponseReader()
    reader.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % (10 * KEPT))
    for _ in range(10):
        reader.feed(b"x" * (KEPT - 1) + b"y")
    assert reader.feed(b"\r\n0\r\n\r\n")
    assert len(reader.tail) == KEPT
    assert reader.tail.endswith(b"xy")
