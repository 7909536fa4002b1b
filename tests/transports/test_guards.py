import pytest

from tidegate_transports.guards import Keys, Origins


def test_without_keys_everybody_is_let_in() -> None:
    assert not Keys(())
    assert Keys(()).admit({})
    assert not Keys(["a"]).admit({})


def test_each_key_is_compared_whatever_was_found_before(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def noted(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr("tidegate_transports.guards.compare_digest", noted)
    keys = Keys(["first", "second", "a third one that is much longer"])
    for guess in ("first", "second", "nothing", "x" * 10_000):
        compared.clear()
        keys.know(guess)
        # Always as many, and always of one length.
        assert compared == [(32, 32)] * 3


@pytest.mark.parametrize("key", ["plain", "schlüssel", "鍵", "a b"])
def test_a_key_is_known_as_each_server_hands_it_on(key: str) -> None:
    keys = Keys([key])
    assert keys.know(key)
    assert keys.know(key.encode().decode("latin-1"))
    assert keys.know(key.encode().decode("ascii", "surrogateescape"))
    assert not keys.know(key[:-1])


def test_only_listed_origins_may_call_and_none_without_a_list() -> None:
    origins = Origins(["https://example.org"])
    assert origins.allow("https://example.org")
    assert not origins.allow("https://example.org.evil.example")
    assert not origins.allow("http://example.org")
    assert not origins.allow("null")
    assert Origins(["*"]).allow("null")
    assert not Origins(())
    assert not Origins(()).allow("https://example.org")


def test_a_page_may_send_what_handlers_want_to_see() -> None:
    allowed = Origins(["*"], ["x-tenant", "prefer"]).preflight("POST")["Access-Control-Allow-Headers"]
    assert allowed.split(", ")[-1] == "x-tenant"
    assert allowed.lower().split(", ").count("prefer") == 1
