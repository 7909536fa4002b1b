import pytest

from tidegate_transports.address import Address, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8000", Address("127.0.0.1", 8000)),
        ("0.0.0.0:80", Address("0.0.0.0", 80)),
        ("localhost:0", Address("localhost", 0)),
        (":8000", Address("127.0.0.1", 8000)),
        ("8000", Address("127.0.0.1", 8000)),
        ("[::1]:8000", Address("::1", 8000)),
        ("[::]:65535", Address("::", 65535)),
    ],
)
def test_an_address_is_read_as_users_write_it(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    ["", ":", "localhost", "localhost:", "localhost:http", "a:-1", "a:65536", "::1:8000", "a:8000/", "a:٣", "a: 1"],
)
def test_what_is_no_address_is_refused_with_the_text_and_examples(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_address(text)
    assert repr(text) in str(caught.value)
    assert "[::1]:8000" in str(caught.value)


@pytest.mark.parametrize("text", ["127.0.0.1:8000", "localhost:1", "[::1]:8000"])
def test_an_address_prints_as_it_is_written_in_a_url(text: str) -> None:
    assert str(parse_address(text)) == text
