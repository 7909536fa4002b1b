"""The client for pages: one JavaScript module that needs nothing else, to be given out at `/client.js`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

__all__ = ["client_script"]


@cache
def client_script() -> bytes:
    """The module's source.

    Example:
        >>> b"export class Client" in client_script()
        True
    """
    return Path(__file__).with_name("client.js").read_bytes()
