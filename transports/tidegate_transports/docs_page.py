"""The page at `/docs`: one file that needs nothing else, and the policy that lets it do what it does and no more."""

from __future__ import annotations

import base64
import re
from functools import cache
from hashlib import sha256
from pathlib import Path

__all__ = ["docs_page"]

_INLINE = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL)


@cache
def docs_page() -> tuple[bytes, str]:
    """The page, and its Content-Security-Policy: its own script and style by their hashes, and calls to this service.

    Example:
        >>> page, policy = docs_page()
        >>> page[:15], policy[:18]
        (b'<!doctype html>', "default-src 'none'")
    """
    page = Path(__file__).with_name("docs.html").read_bytes()
    hashes = {
        kind: base64.b64encode(sha256(text).digest()).decode()
        for kind, text in ((found[1].decode(), found[2]) for found in _INLINE.finditer(page))
    }
    policy = (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy
