"""Who may call, and from which web pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from hmac import compare_digest

__all__ = ["PAGE_HEADERS", "Keys", "Origins"]

PAGE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
"""What a page is sent with, beside its own Content-Security-Policy."""

_ASKED_FOR = (
    "Accept",
    "Authorization",
    "Content-Type",
    "Prefer",
    "Priority",
    "traceparent",
    "X-API-Key",
    "X-Request-Id",
)
_SHOWN = "Preference-Applied, Retry-After, Server-Timing, X-Request-Id"
_REMEMBERED = "600"


class Keys:
    """The keys that open the door; without any it is open.

    Example:
        >>> keys = Keys(["one", "two"])
        >>> keys.admit({"x-api-key": "two"}), keys.admit({"authorization": "Bearer one"}), keys.admit({})
        (True, True, False)
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [sha256(key.encode("utf-8", "surrogateescape")).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admit(self, headers: Mapping[str, str]) -> bool:
        """Whether a request with these headers may pass, with its key in `X-API-Key` or as a Bearer."""
        if not self._digests:
            return True
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        known = self.know(headers.get("x-api-key", ""))
        return self.know(bearer.strip() if scheme.lower() == "bearer" else "") or known

    def know(self, key: str) -> bool:
        """Whether this is one of them, in a time that says nothing of how nearly it is."""
        known = False
        for form in _forms(key):
            # Digests are of one length, whatever is guessed, and each of the keys is looked at.
            digest = sha256(form).digest()
            for one in self._digests:
                known |= compare_digest(one, digest)
        return known


def _forms(key: str) -> list[bytes]:
    """The bytes that a header's text may have been: servers read them as UTF-8 or as Latin-1."""
    try:
        forms = [key.encode("utf-8", "surrogateescape")]
    except UnicodeEncodeError:
        return []
    if not key.isascii() and max(key) <= "\xff":
        forms.append(key.encode("latin-1"))
    return forms


class Origins:
    """The origins of web pages that may call (CORS).

    Example:
        >>> origins = Origins(["https://example.org"])
        >>> origins.headers({"origin": "https://example.org"})["Access-Control-Allow-Origin"]
        'https://example.org'
        >>> origins.headers({"origin": "https://evil.example"})
        {'Vary': 'Origin'}
    """

    def __init__(self, origins: Iterable[str], forwarded: Iterable[str] = ()) -> None:
        self._allowed = frozenset(origins)
        self._any = "*" in self._allowed
        self._asked_for = ", ".join([*_ASKED_FOR, *sorted({*forwarded} - {name.lower() for name in _ASKED_FOR})])

    def __bool__(self) -> bool:
        return bool(self._allowed)

    def allow(self, origin: str) -> bool:
        """Whether pages of this origin may call; without a list none of another origin may."""
        return self._any or origin.lower() in self._allowed

    def headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """What an answer to a request with these headers says; credentials of a browser's own are never asked for."""
        if self._any:
            return {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": _SHOWN}
        origin = headers.get("origin")
        if origin is None or not self.allow(origin):
            return {"Vary": "Origin"}
        return {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": _SHOWN, "Vary": "Origin"}

    def preflight(self, methods: str) -> dict[str, str]:
        """What a page that may call is told beside that, before it does."""
        return {
            "Access-Control-Allow-Methods": methods,
            "Access-Control-Allow-Headers": self._asked_for,
            "Access-Control-Max-Age": _REMEMBERED,
        }
