"""Where a door listens, as a user writes it."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Address", "parse_address"]


class Address(NamedTuple):
    """A host and a TCP port; port 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Read `host:port`, `:port`, `port` or `[ipv6]:port`; without a host it is 127.0.0.1.

    Raises ValueError that says what an address looks like.

    Example:
        >>> parse_address(":8000")
        Address(host='127.0.0.1', port=8000)
    """
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit()) or int(port) > 65535 or (":" in host and not host.startswith("[")):
        raise ValueError(f"{text!r} is no address: write HOST:PORT, such as 127.0.0.1:8000, 0.0.0.0:8000 or [::1]:8000")
    return Address(host.strip("[]") or "127.0.0.1", int(port))
