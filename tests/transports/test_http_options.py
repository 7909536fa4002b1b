from pathlib import Path
from typing import Any

import pytest

from tidegate_transports.http_options import HTTPOptions


def test_the_defaults_are_safe_and_finite() -> None:
    options = HTTPOptions()
    assert (options.max_body, options.api_keys, options.cors_origins) == (32 * 1024 * 1024, (), ())
    assert (options.trust_priority, options.metrics, options.docs, options.gzip) == (False, True, True, True)


def test_a_key_is_shown_nowhere() -> None:
    options = HTTPOptions(api_keys=["geheim", "streng geheim"])
    assert options.api_keys == ("geheim", "streng geheim")
    assert "geheim" not in repr(options)
    for wrong in (["geheim", ""], ["geheim", " a"], ["geheim\n"], ["geheim", "a\x00"], [b"geheim"], "geheim", 7):
        with pytest.raises((TypeError, ValueError)) as caught:
            HTTPOptions(api_keys=wrong)  # type: ignore[arg-type]
        assert "geheim" not in str(caught.value)
        assert "api_keys" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("max_body", 0, ValueError),
        ("max_body", 1.5, TypeError),
        ("max_body", True, TypeError),
        ("max_connections", -1, ValueError),
        ("header_timeout", 0, ValueError),
        ("body_timeout", float("nan"), ValueError),
        ("keepalive_timeout", float("inf"), ValueError),
        ("write_timeout", "5", TypeError),
        ("gzip", 1, TypeError),
        ("docs", None, TypeError),
        ("cors_origins", "https://example.org", TypeError),
        ("cors_origins", ["example.org"], ValueError),
        ("cors_origins", ["https://example.org/"], ValueError),
        ("cors_origins", ["https://Example.org"], ValueError),
        ("cors_origins", [7], ValueError),
        ("tls_key", 7, TypeError),
    ],
)
def test_a_wrong_value_is_told_with_its_name_and_what_to_write(field: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        HTTPOptions(**{field: value})
    told = str(caught.value)
    assert field in told
    assert str(value if not isinstance(value, list) else value[0]) in told
    assert any(word in told for word in ("give", "must be", "write"))


def test_tls_takes_both_files() -> None:
    both = HTTPOptions(tls_certificate="cert.pem", tls_key=Path("key.pem"))  # type: ignore[arg-type]
    assert (both.tls_certificate, both.tls_key) == ("cert.pem", "key.pem")
    for half in ({"tls_certificate": "cert.pem"}, {"tls_key": "key.pem"}):
        with pytest.raises(ValueError, match="give both"):
            HTTPOptions(**half)  # type: ignore[arg-type]


def test_any_origin_is_a_star() -> None:
    assert HTTPOptions(cors_origins=["*"]).cors_origins == ("*",)


def test_the_environment_names_every_field() -> None:
    options = HTTPOptions.from_environment(
        {
            "TIDEGATE_MAX_BODY": "1000",
            "TIDEGATE_API_KEY": " one, two\nthree,,",
            "TIDEGATE_CORS_ORIGINS": "https://a.example, https://b.example",
            "TIDEGATE_TRUST_PRIORITY": "Yes",
            "TIDEGATE_METRICS": "0",
            "TIDEGATE_DOCS": "",
            "TIDEGATE_GZIP": "off",
            "TIDEGATE_HEADER_TIMEOUT": "2.5",
            "TIDEGATE_MAX_CONNECTIONS": "7",
            "TIDEGATE_TLS_CERTIFICATE": "c.pem",
            "TIDEGATE_TLS_KEY": "k.pem",
            "PATH": "/bin",
        }
    )
    assert options == HTTPOptions(
        max_body=1000,
        api_keys=("one", "two", "three"),
        cors_origins=("https://a.example", "https://b.example"),
        trust_priority=True,
        metrics=False,
        docs=False,
        gzip=False,
        header_timeout=2.5,
        max_connections=7,
        tls_certificate="c.pem",
        tls_key="k.pem",
    )
    assert HTTPOptions.from_environment({}) == HTTPOptions()


def test_what_is_given_beats_the_environment_and_nothing_given_does_not() -> None:
    environ = {"TIDEGATE_MAX_BODY": "1000", "TIDEGATE_API_KEY": "one"}
    options = HTTPOptions.from_environment(environ, max_body=2000, api_keys=None, gzip=False)
    assert (options.max_body, options.api_keys, options.gzip) == (2000, ("one",), False)


def test_keys_come_from_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("two\n\nthree\n")
    environ = {"TIDEGATE_API_KEY": "one", "TIDEGATE_API_KEY_FILE": str(path)}
    assert HTTPOptions.from_environment(environ).api_keys == ("one", "two", "three")
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no key"):
        HTTPOptions.from_environment(environ)
    path.unlink()
    # Better no service than an open one.
    with pytest.raises(FileNotFoundError):
        HTTPOptions.from_environment(environ)


@pytest.mark.parametrize(
    ("name", "text"), [("TIDEGATE_MAX_BODY", "32M"), ("TIDEGATE_GZIP", "maybe"), ("TIDEGATE_BODY_TIMEOUT", "1m")]
)
def test_a_wrong_variable_is_told_by_its_name(name: str, text: str) -> None:
    with pytest.raises(ValueError) as caught:
        HTTPOptions.from_environment({name: text})
    assert f"{name}={text!r}: write" in str(caught.value)
