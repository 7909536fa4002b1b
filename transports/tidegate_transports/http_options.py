"""What an HTTP door may be told: limits, keys, origins; checked once, and frozen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

__all__ = ["HTTPOptions"]

_PREFIX = "TIDEGATE_"
_YES = frozenset({"1", "true", "yes", "on"})
_NO = frozenset({"0", "false", "no", "off", ""})


@dataclass(frozen=True, slots=True, kw_only=True)
class HTTPOptions:
    """What one HTTP door may be told. The exchange reads the first half, the shells read the second.

    max_body: bytes of a request's body, and of what it inflates to. api_keys: any of them opens every path but the
    probes; none opens all to everybody. cors_origins: web pages of these origins may call, "*" for those of any.
    trust_priority: callers may raise their own priority. metrics, docs: whether `/metrics` and `/docs` are there.
    gzip: compress answers for callers that ask for it.

    header_timeout, body_timeout: seconds that a request's head and then its body may take to arrive.
    keepalive_timeout: seconds that an idle connection is kept. write_timeout: seconds that a caller may leave an answer
    unread. max_connections: at once. tls_certificate, tls_key: PEM files; with them the door speaks HTTPS.

    Raises TypeError or ValueError that names the field, the value (never a key) and the fix.

    Example:
        >>> HTTPOptions(api_keys=["secret"], max_body=1 << 20)
        HTTPOptions(max_body=1048576, cors_origins=(), trust_priority=False, metrics=True, docs=True, gzip=True, \
header_timeout=10.0, body_timeout=60.0, keepalive_timeout=75.0, write_timeout=60.0, max_connections=4096, \
tls_certificate=None, tls_key=None)
    """

    max_body: int = 32 * 1024 * 1024
    api_keys: Sequence[str] = field(default=(), repr=False)
    cors_origins: Sequence[str] = ()
    trust_priority: bool = False
    metrics: bool = True
    docs: bool = True
    gzip: bool = True
    header_timeout: float = 10.0
    body_timeout: float = 60.0
    keepalive_timeout: float = 75.0
    write_timeout: float = 60.0
    max_connections: int = 4096
    tls_certificate: str | None = None
    tls_key: str | None = None

    def __post_init__(self) -> None:
        for name in _numbers("int"):
            _check_whole(name, getattr(self, name))
        for name in _numbers("float"):
            _check_seconds(name, getattr(self, name))
        for name in _numbers("bool"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise TypeError(f"{name}={value!r}: give True or False")
        object.__setattr__(self, "api_keys", _checked_keys(self.api_keys))
        object.__setattr__(self, "cors_origins", _checked_origins(self.cors_origins))
        for name in ("tls_certificate", "tls_key"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, (str, Path)):
                raise TypeError(f"{name}={value!r}: give the path of a PEM file")
            object.__setattr__(self, name, None if value is None else str(value))
        if (self.tls_certificate is None) != (self.tls_key is None):
            given, missing = ("tls_certificate", "tls_key") if self.tls_certificate else ("tls_key", "tls_certificate")
            raise ValueError(f"{given}={getattr(self, given)!r} without {missing}=: TLS takes both files; give both")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], **given: Any) -> Self:
        """What `TIDEGATE_…` says, where `given` does not say otherwise (None says nothing).

        `TIDEGATE_MAX_BODY` and so on by the fields' names; `TIDEGATE_API_KEY` and `TIDEGATE_CORS_ORIGINS` hold several,
        separated by commas or newlines, and `TIDEGATE_API_KEY_FILE` names a file of such keys.
        Raises ValueError that names the variable, OSError for a file that cannot be read.

        Example:
            >>> HTTPOptions.from_environment({"TIDEGATE_GZIP": "no", "TIDEGATE_MAX_BODY": "1000"}, max_body=2000).gzip
            False
        """
        found: dict[str, Any] = {}
        for name in (one.name for one in fields(cls) if one.name != "api_keys"):
            text = environ.get(_PREFIX + name.upper())
            if text is not None:
                found[name] = _read(name, text.strip())
        keys = _several(environ.get("TIDEGATE_API_KEY", ""))
        if path := environ.get("TIDEGATE_API_KEY_FILE"):
            in_file = _several(Path(path).read_text("utf-8"))
            if not in_file:
                raise ValueError(f"TIDEGATE_API_KEY_FILE={path!r}: the file holds no key; write one per line")
            keys += in_file
        found["api_keys"] = keys
        return cls(**{**found, **{name: value for name, value in given.items() if value is not None}})


def _numbers(kind: str) -> list[str]:
    return [one.name for one in fields(HTTPOptions) if one.type == kind]


def _several(text: str) -> tuple[str, ...]:
    return tuple(part for line in text.splitlines() for one in line.split(",") if (part := one.strip()))


def _read(name: str, text: str) -> Any:
    """One variable's text as its field's type."""
    kind = next(one.type for one in fields(HTTPOptions) if one.name == name)
    if name == "cors_origins":
        return _several(text)
    if kind == "bool":
        if text.lower() not in _YES | _NO:
            raise ValueError(f"{_PREFIX}{name.upper()}={text!r}: write 1 or 0")
        return text.lower() in _YES
    if kind in ("int", "float"):
        try:
            return int(text) if kind == "int" else float(text)
        except ValueError:
            wanted = "a whole number" if kind == "int" else "seconds"
            raise ValueError(f"{_PREFIX}{name.upper()}={text!r}: write {wanted}") from None
    return text or None


def _check_whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r}: give a whole number")
    if value < 1:
        raise ValueError(f"{name}={value!r}: must be 1 or more")


def _check_seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}={value!r}: give seconds")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value!r}: give finite seconds above 0")


def _checked_keys(keys: object) -> tuple[str, ...]:
    if isinstance(keys, str) or not isinstance(keys, Iterable):
        raise TypeError("api_keys is no list of texts: give a tuple of keys, ('…',) for one")
    checked = tuple(keys)
    for number, key in enumerate(checked, 1):
        # The text itself is never shown: messages end up in logs.
        if not isinstance(key, str):
            raise TypeError(f"api_keys: number {number} is a {type(key).__name__}; give a text")
        if not key or not key.isprintable() or key != key.strip():
            raise ValueError(f"api_keys: number {number} is empty or has spaces around it or control characters in it")
    return checked


def _checked_origins(origins: object) -> tuple[str, ...]:
    if isinstance(origins, str) or not isinstance(origins, Iterable):
        raise TypeError(f"cors_origins={origins!r}: give a tuple of origins, such as ('https://example.org',)")
    checked = tuple(origins)
    for origin in checked:
        if origin != "*" and not _is_origin(origin):
            raise ValueError(
                f"cors_origins: {origin!r} is no origin; write it as browsers do, 'https://example.org' or "
                "'http://localhost:3000', without a path, or '*' for any"
            )
    return checked


def _is_origin(text: object) -> bool:
    if not isinstance(text, str):
        return False
    parts = urlsplit(text)
    return bool(parts.scheme and parts.netloc) and text == f"{parts.scheme}://{parts.netloc}".lower()
