"""Everything that `serve` can be told, checked at once and frozen."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from tidegate.selection import check_devices
from tidegate_batching import Policy

__all__ = ["HOOKS", "RESERVED", "Options"]

RESERVED = frozenset({"client.js", "docs", "health", "healthz", "info", "livez", "metrics", "openapi.json", "readyz"})
"""Paths that the doors answer themselves; `predict` is the door of an app's only handler."""

HOOKS = ("setup", "decode_request", "batch", "unbatch", "encode_response", "teardown")

_NAME = re.compile(r"[_-]*[A-Za-z0-9][A-Za-z0-9_-]*")
_HEADER = re.compile(r"[A-Za-z0-9-]+")
# A browser's key travels as a WebSocket subprotocol.
_CREDENTIALS = frozenset({"authorization", "cookie", "proxy-authorization", "sec-websocket-protocol", "x-api-key"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What `serve` was told; its docstring says what each means.

    Raises TypeError or ValueError, naming the argument, the value and the fix.
    """

    name: str
    path: str = ""
    max_batch_size: int | None = None
    batch_timeout: float | Literal["auto"] = "auto"
    batch_dim: int | tuple[int, int] = 0
    setup: Callable[..., Any] | None = None
    decode_request: Callable[..., Any] | None = None
    batch: Callable[..., Any] | None = None
    unbatch: Callable[..., Any] | None = None
    encode_response: Callable[..., Any] | None = None
    teardown: Callable[..., Any] | None = None
    max_batch_cost: float | None = None
    cost: Callable[[Any], float] | None = None
    group_by: Callable[[Any], Hashable] | None = None
    max_queue_size: int | Literal["auto"] = "auto"
    max_queue_bytes: int | Literal["auto"] = "auto"
    timeout: float | None = 30.0
    concurrency: int | None = None
    isolate_errors: bool = True
    devices: Any = "auto"
    workers_per_device: int = 1
    devices_per_worker: int = 1
    worker: Literal["process", "thread"] | None = None
    max_run_time: float | None = None
    overlap: bool = True
    forward_headers: tuple[str, ...] = ()
    warmup: Any = None
    allow_nan: bool = False

    def __post_init__(self) -> None:
        name: Any = self.name
        if not isinstance(name, str):
            raise TypeError(f"name={name!r}: give a text; it becomes a path")
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name={self.name!r}: use letters, digits, '-' and '_': it becomes the path /{self.name}")
        if not self.path:
            object.__setattr__(self, "path", f"/{self.name}")
        self._check_path()
        for hook in (*HOOKS, "cost", "group_by"):
            value = getattr(self, hook)
            if value is not None and not callable(value):
                raise TypeError(f"{hook}={value!r}: give a callable")
            if hook in ("cost", "group_by") and inspect.iscoroutinefunction(value):
                raise TypeError(f"{hook}={value!r}: write it without async; it is called as requests come in")
        self._check_batching()
        for name in ("workers_per_device", "devices_per_worker"):
            _whole(name, getattr(self, name), "1 is the default")
        if self.concurrency is not None:
            _whole("concurrency", self.concurrency, "1 runs one batch at a time")
        for name in ("timeout", "max_run_time"):
            _positive_seconds(name, getattr(self, name))
        for name in ("isolate_errors", "overlap", "allow_nan"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}={getattr(self, name)!r}: give True or False")
        if self.worker not in (None, "process", "thread"):
            raise ValueError(f"worker={self.worker!r}: give 'process' or 'thread'")
        self._check_headers()
        object.__setattr__(self, "devices", check_devices(self.devices))
        self.policy()

    @property
    def dims(self) -> tuple[int, int]:
        """The axes on which inputs are stacked and outputs split."""
        return self.batch_dim if isinstance(self.batch_dim, tuple) else (self.batch_dim, self.batch_dim)

    def policy(self, workers: int = 1) -> Policy:
        """The core's limits for this handler; raises what Policy raises."""
        size = 1 if self.max_batch_size is None else self.max_batch_size
        limits = Policy(
            max_batch_size=size,
            batch_timeout=self.batch_timeout,
            max_batch_cost=self.max_batch_cost,
            isolate_errors=self.isolate_errors,
        )
        return replace(
            limits,
            max_queue_size=max(1024, 4 * workers * size) if self.max_queue_size == "auto" else self.max_queue_size,
            max_queue_bytes=1 << 30 if self.max_queue_bytes == "auto" else self.max_queue_bytes,
        )

    def _check_path(self) -> None:
        if not isinstance(self.path, str) or not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", self.path):
            raise ValueError(f"path={self.path!r}: write it as '/segment' or '/several/segments'")

    def _check_batching(self) -> None:
        dims = self.dims
        if len(dims) != 2 or any(isinstance(dim, bool) or not isinstance(dim, int) for dim in dims):
            raise TypeError(f"batch_dim={self.batch_dim!r}: give an axis, or (axis of the input, axis of the output)")
        if self.max_batch_cost is not None and self.cost is None:
            raise ValueError(f"max_batch_cost={self.max_batch_cost!r} needs cost=, a function of one input")
        if self.cost is not None and self.max_batch_cost is None:
            raise ValueError("cost=… has nothing to be held against: give max_batch_cost=")
        if self.max_batch_size is not None:
            return
        unbatched = {field.name: field.default for field in fields(Options)}
        for name in ("batch", "unbatch", "batch_timeout", "batch_dim", "max_batch_cost", "group_by"):
            value = getattr(self, name)
            if value != unbatched[name]:
                shown = "…" if callable(value) else repr(value)
                raise ValueError(f"{name}={shown} needs a batch: give max_batch_size=, or take {name}= away")

    def _check_headers(self) -> None:
        names: Any = self.forward_headers
        if isinstance(names, str) or not isinstance(names, Iterable):
            raise TypeError(f"forward_headers={names!r}: give a tuple of names")
        names = tuple(names)
        for name in names:
            if not isinstance(name, str) or not _HEADER.fullmatch(name):
                raise ValueError(f"forward_headers={names!r}: {name!r} is no header name; write it like 'X-Tenant'")
            if name.lower() in _CREDENTIALS:
                raise ValueError(
                    f"forward_headers={names!r}: {name!r} carries credentials, which never reach a handler; take it away"
                )
        object.__setattr__(self, "forward_headers", tuple(name.lower() for name in names))


def _whole(name: str, value: object, hint: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r}: give a whole number; {hint}")
    if value < 1:
        raise ValueError(f"{name}={value!r}: must be 1 or more; {hint}")


def _positive_seconds(name: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}={value!r}: give seconds, or None for no limit")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value!r}: give finite seconds above 0, or None for no limit")
