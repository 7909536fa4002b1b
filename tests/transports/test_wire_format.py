import re

import pytest

from tidegate_transports.wire_format import head_of


def test_a_head_is_what_http_says() -> None:
    head = head_of(404, "application/json", {"X-One": "1", "X-Two": "2"}, 17, "close")
    pattern = (
        rb"HTTP/1\.1 404 Not Found\r\nDate: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\r\n"
        rb"Content-Type: application/json\r\nContent-Length: 17\r\nConnection: close\r\nX-One: 1\r\nX-Two: 2\r\n\r\n"
    )
    assert re.fullmatch(pattern, head)


def test_what_is_not_there_is_left_out() -> None:
    head = head_of(204, "", {}, None, "")
    assert [line.partition(b":")[0] for line in head.split(b"\r\n")] == [b"HTTP/1.1 204 No Content", b"Date", b"", b""]


def test_a_status_of_a_users_own_has_no_phrase() -> None:
    assert head_of(599, "", {}, None, "").startswith(b"HTTP/1.1 599 \r\n")


@pytest.mark.parametrize("text", ["a\r\nSet-Cookie: x", "a\nb", "a\rb", "\r\n\r\n"])
@pytest.mark.parametrize("place", ["name", "value", "content type"])
def test_a_header_cannot_begin_a_line_of_its_own(text: str, place: str) -> None:
    headers = {text if place == "name" else "X-One": text if place == "value" else "1"}
    with pytest.raises(ValueError, match="line break"):
        head_of(200, text if place == "content type" else "text/plain", headers, 0, "")


def test_bytes_that_are_no_text_go_back_as_they_came() -> None:
    assert b"X-One: a\xff\r\n" in head_of(200, "", {"X-One": "a\udcff"}, 0, "")
