"""Where a service is and how a client makes itself known there."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

__all__ = ["Place", "place_of"]

_SCHEMES = ("http", "https", "ws", "wss")


@dataclass(frozen=True, slots=True)
class Place:
    """A service's address taken apart, and what every request or handshake says beside it.

    folder: the path up to its last slash. name: what follows there, "" for nothing. tls: None without it.
    """

    scheme: str
    authority: str
    folder: str
    name: str
    headers: Mapping[str, str] = field(repr=False, default_factory=dict)
    tls: ssl.SSLContext | None = field(repr=False, default=None)
    connections: int = 100

    def url(self, handler: str | None = None) -> str:
        """Where a handler answers: in the folder under its name, or where its path says if it starts with a slash."""
        if handler is not None and handler.startswith("/"):
            return f"{self.origin}{quote(handler, safe='/')}"
        return f"{self.origin}{self.folder}{self.name if handler is None else quote(handler, safe='')}"

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"{self.scheme}://{self.authority}"


def place_of(
    url: str,
    *,
    api_key: str | None = None,
    headers: Mapping[str, str] | None = None,
    verify: bool | str | os.PathLike[str] | ssl.SSLContext = True,
    connections: int = 100,
) -> Place:
    """Check what a client was given; ValueError names the argument and the fix, and never the key.

    Example:
        >>> place = place_of("http://127.0.0.1:8000/models/embed")
        >>> place.url(), place.url("rerank")
        ('http://127.0.0.1:8000/models/embed', 'http://127.0.0.1:8000/models/rerank')
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"url={url!r}: {error}") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError("url=…: holds a user or a password; give a key as api_key=, or as one of headers=")
    if parts.scheme not in _SCHEMES or not parts.hostname or port == 0:
        raise ValueError(f"url={url!r}: write it like http://127.0.0.1:8000 (or https, ws, wss)")
    if parts.query or parts.fragment:
        raise ValueError(f"url={url!r}: leave out what follows the path")
    if connections < 1:
        raise ValueError(f"max_connections={connections!r}: give a whole number from 1")
    folder, _, name = parts.path.rpartition("/")
    sent = {str(name): str(text) for name, text in (headers or {}).items()}
    if not all(_is_safe(name) and _is_safe(text) for name, text in sent.items()):
        raise ValueError("headers=…: names and values must be printable ASCII without line breaks")
    if api_key is not None:
        if not api_key or not _is_safe(api_key) or " " in api_key:
            raise ValueError("api_key=…: must be printable ASCII without spaces")
        sent["Authorization"] = f"Bearer {api_key}"
    tls = _tls(verify) if parts.scheme in ("https", "wss") else None
    return Place(parts.scheme, parts.netloc, f"{folder}/", name, sent, tls, connections)


def _is_safe(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _tls(verify: bool | str | os.PathLike[str] | ssl.SSLContext) -> ssl.SSLContext:
    if isinstance(verify, ssl.SSLContext):
        return verify
    if isinstance(verify, bool):
        context = ssl.create_default_context()
        if not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context
    if os.path.isdir(verify):
        return ssl.create_default_context(capath=verify)
    return ssl.create_default_context(cafile=verify)
