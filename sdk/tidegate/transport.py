"""What a transport is, and how one is found by name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tidegate.app import App

__all__ = ["Transport", "load_transport"]

GROUP = "tidegate.transports"


class Transport(Protocol):
    """A door: made with its address, open as long as `serve` is entered. Published as an entry point of `GROUP`.

    One that has a method `check` is asked before the workers start: it raises OSError if its address is taken.
    """

    url: str

    def serve(self, app: App, /) -> AbstractAsyncContextManager[object]: ...


def load_transport(name: str) -> Callable[[str], Transport]:
    """The transport of that name; raises ValueError that lists what is installed."""
    from importlib.metadata import entry_points  # 15 ms, which only those pay who open a door

    found = entry_points(group=GROUP)
    if name not in found.names:
        raise ValueError(f"no transport is called {name!r}; installed: {', '.join(sorted(found.names)) or 'none'}")
    transport: Callable[[str], Transport] = found[name].load()
    return transport
