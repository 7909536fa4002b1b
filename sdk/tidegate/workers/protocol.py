"""What a worker is to the service: it runs batches on a device, on a thread or in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from tidegate_batching import Batch, TidegateError

__all__ = ["SetupArgument", "Worker", "describe_devices"]

SetupArgument = str | list[str]
"""What `setup` gets: a device such as "cuda:0", or a list of them with devices_per_worker above 1."""


class Worker(Protocol):
    """Made in the service's event loop, and spoken to from there only; everything is reported there too.

    slots: batches that it takes at a time. prefetch: it prepares a second batch per slot while one runs, and says
    `Batch.prepared`. replaceable: whether a new one can take its place after a death. completed: batches done so far.
    """

    @property
    def kind(self) -> Literal["process", "thread"]: ...
    @property
    def replaceable(self) -> bool: ...
    @property
    def slots(self) -> int: ...
    @property
    def prefetch(self) -> bool: ...
    @property
    def pid(self) -> int: ...
    @property
    def completed(self) -> int: ...

    async def start(self, died: Callable[[TidegateError], None]) -> None:
        """Ready when it returns; raises what `setup` raises.

        `died` is called at most once, with what killed it, after this has returned and before `stop` or `kill`.
        """

    def run(self, batch: Batch) -> None:
        """Begin a batch."""

    def cancel(self, batch: Batch, index: int) -> None:
        """Nobody waits for this item of a running batch any more."""

    async def stop(self) -> None:
        """Finish what was begun, tear down, end; of one that was killed, is dead or never ready only the end is waited for."""

    def kill(self) -> None:
        """End now, whatever runs; a thread is left to itself."""


def describe_devices(device: SetupArgument) -> str:
    """The devices as one word."""
    return device if isinstance(device, str) else ",".join(device)
