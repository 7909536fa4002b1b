"""What a running function may know about the batch that it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["BatchContext", "Contexts", "ItemContext", "RequestInfo", "RunningItem", "current_batch", "running_batch"]


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """What a door knows about a request beside its value.

    headers: those that the handler may see. nbytes: what its body took, against max_queue_bytes. patience: seconds that an unbatched stream waits for its reader before
    `SlowReader`; None waits for ever.
    """

    request_id: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    patience: float | None = None
    nbytes: int = 0


class RunningItem(Protocol):
    """What a worker knows about an item: the core's own, or its image in another process."""

    @property
    def info(self) -> Any: ...
    @property
    def deadline(self) -> float: ...
    @property
    def cancelled(self) -> bool: ...


class ItemContext:
    """One item of the running batch."""

    __slots__ = ("_item", "scope")

    def __init__(self, item: RunningItem) -> None:
        self._item = item
        self.scope: dict[str, Any] = {}
        """What the handler's own hooks keep for this item: the dict that LitServe's `context` parameter is."""

    @property
    def request_id(self) -> str:
        """The request's id, "" for a caller in this process."""
        info: RequestInfo | None = self._item.info
        return info.request_id if info else ""

    @property
    def headers(self) -> Mapping[str, str]:
        """The request headers named in `forward_headers`, names in lower case."""
        info: RequestInfo | None = self._item.info
        return info.headers if info else {}

    @property
    def deadline(self) -> float:
        """On the clock of `time.monotonic`; infinity for none."""
        return self._item.deadline

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for this item's answer any more."""
        return self._item.cancelled


class Contexts(Sequence[ItemContext]):
    """One context for each of a batch's items, made when somebody asks for one: most functions never do."""

    __slots__ = ("_items", "_made")

    def __init__(self, items: Sequence[RunningItem]) -> None:
        self._items = items
        self._made: list[ItemContext] | None = None

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._all()[index]

    def __iter__(self) -> Iterator[ItemContext]:
        return iter(self._all())

    def _all(self) -> list[ItemContext]:
        if self._made is None:
            self._made = [ItemContext(item) for item in self._items]
        return self._made


@dataclass(frozen=True, slots=True)
class BatchContext:
    """The running batch: where it runs (as `setup` was told) and, in the batch's order, who is in it."""

    device: str | list[str]
    items: Sequence[ItemContext]

    @property
    def size(self) -> int:
        """Items in the batch."""
        return len(self.items)


running_batch: ContextVar[BatchContext] = ContextVar("tidegate_batch")


def current_batch() -> BatchContext:
    """The batch that is running, for a handler's function and hooks; LookupError outside of one.

    Example:
        >>> from tidegate import LocalClient, serve
        >>> @serve(max_batch_size=8)
        ... def count(texts: list[str]) -> list[int]:
        ...     return [current_batch().size for _ in texts]
        >>> with LocalClient(count) as client:
        ...     client.call("alone")
        1
    """
    try:
        return running_batch.get()
    except LookupError:
        raise LookupError("no batch is running here: current_batch() is for a handler's function and hooks") from None
