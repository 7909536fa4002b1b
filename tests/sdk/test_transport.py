from pathlib import Path

import pytest

from tidegate.transport import load_transport


def test_http_is_found_by_its_name() -> None:
    door = load_transport("http")("127.0.0.1:0")
    assert door.url == "http://127.0.0.1:0"


def test_a_transport_of_a_third_party_is_found_by_its_name(third_party: Path) -> None:
    assert load_transport("null")("here").url == "null://here"


def test_an_unknown_name_is_refused_with_those_that_are_installed(third_party: Path) -> None:
    with pytest.raises(ValueError) as caught:
        load_transport("gopher")
    assert (
        str(caught.value)
        == "no transport is called 'gopher'; installed: asgi, fronts, granian, http, jsonl, null, uvicorn, ws"
    )
