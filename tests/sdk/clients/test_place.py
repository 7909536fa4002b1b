import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from tidegate.clients.place import place_of


@pytest.mark.parametrize(
    ("url", "handler", "found"),
    [
        ("http://h:1", "embed", "http://h:1/embed"),
        ("http://h:1/", "embed", "http://h:1/embed"),
        ("http://h:1/embed", None, "http://h:1/embed"),
        ("http://h:1/embed", "rerank", "http://h:1/rerank"),
        ("https://h/models/", "embed", "https://h/models/embed"),
        ("https://h/models/embed", "rerank", "https://h/models/rerank"),
        ("https://h/models/embed", "/v1/rerank", "https://h/v1/rerank"),
        ("ws://[::1]:5", None, "ws://[::1]:5/"),
        ("wss://h/embed", None, "wss://h/embed"),
        ("http://h", "../admin?x", "http://h/..%2Fadmin%3Fx"),
    ],
)
def test_a_handler_is_found_beside_the_one_that_the_address_names(url: str, handler: str | None, found: str) -> None:
    assert place_of(url).url(handler) == found


@pytest.mark.parametrize("url", ["h:1", "127.0.0.1:8000", "ftp://h", "http://", "http:///x", "http://h:0", "", "h"])
def test_an_address_that_is_none_is_shown_how_to_write_it(url: str) -> None:
    with pytest.raises(ValueError, match=r"url=.*write it like http://127.0.0.1:8000"):
        place_of(url)


@pytest.mark.parametrize("url", ["http://h:99999", "http://h:x", "http://[::1"])
def test_a_port_or_host_that_is_none_is_an_error_that_shows_it(url: str) -> None:
    with pytest.raises(ValueError, match="url='http://"):
        place_of(url)


@pytest.mark.parametrize("url", ["http://h/x?y=1", "http://h/#x"])
def test_a_query_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="leave out what follows the path"):
        place_of(url)


def test_a_password_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="api_key=") as caught:
        place_of("http://me:sesame@h")
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("key", ["", "ses ame", "sesame\r\nX: y", "sésame"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(ValueError, match="api_key=") as caught:
        place_of("http://h", api_key=key)
    assert "ame" not in str(caught.value)


def test_a_key_goes_as_a_bearer_and_is_not_shown() -> None:
    place = place_of("http://h", api_key="sesame", headers={"X-Tenant": "blue"})
    assert place.headers == {"X-Tenant": "blue", "Authorization": "Bearer sesame"}
    assert "sesame" not in repr(place)


@pytest.mark.parametrize("headers", [{"X": "a\nb"}, {"X\r\n": "a"}, {"X": "é"}])
def test_a_header_that_would_break_the_request_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="headers="):
        place_of("http://h", headers=headers)


def test_a_pool_has_a_connection() -> None:
    with pytest.raises(ValueError, match="max_connections=0"):
        place_of("http://h", connections=0)


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(path)
    return path


def test_verify_says_which_certificates_are_trusted(authority: Path) -> None:
    def tls(verify: Any) -> ssl.SSLContext:
        found = place_of("https://h", verify=verify).tls
        assert found is not None
        return found

    assert (tls(True).verify_mode, tls(True).check_hostname) == (ssl.CERT_REQUIRED, True)
    assert (tls(False).verify_mode, tls(False).check_hostname) == (ssl.CERT_NONE, False)
    assert len(tls(str(authority)).get_ca_certs()) == len(tls(authority).get_ca_certs()) == 1
    assert tls(authority.parent).verify_mode == ssl.CERT_REQUIRED
    own = ssl.create_default_context()
    assert tls(own) is own
    assert place_of("http://h", verify=False).tls is None


def test_an_authority_that_is_not_there_is_an_error_at_once() -> None:
    with pytest.raises(FileNotFoundError):
        place_of("https://h", verify="/nowhere/ca.pem")
