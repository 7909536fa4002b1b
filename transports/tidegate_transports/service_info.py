"""What a service says of itself: whether it lives, whether it is ready, and all of `/info`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from tidegate import Handler, Statistics, __version__
from tidegate.options import HOOKS, Options
from tidegate.status import HandlerStatus, Overview
from tidegate_transports.outputs import output_schema

__all__ = ["health", "info", "liveness", "readiness"]

Handlers = Mapping[str, Handler[..., Any]]

_CALLABLES = frozenset({*HOOKS, "cost", "group_by"})
# A name and a path have places of their own, and an example item may be as large as it likes.
_ELSEWHERE = frozenset({"name", "path", "warmup"})


def health(handlers: Handlers, overview: Overview) -> tuple[int, dict[str, Any]]:
    """The status and document of `/health` and `/healthz`: ready or not, in short."""
    ready = overview.ready
    status = "ok" if ready else "draining" if overview.draining else "not ready"
    return 200 if ready else 503, {"status": status, "handlers": list(handlers)}


def liveness(overview: Overview) -> tuple[int, dict[str, Any]]:
    """The status and document of `/livez`; 503 when nothing but a new process can help."""
    if overview.alive:
        return 200, {"status": "alive"}
    stuck = [name for name, status in overview.status.items() if not status.alive]
    return 503, {"status": "not alive", "detail": "a batch has outlived max_run_time in a thread", "handlers": stuck}


def readiness(handlers: Handlers, overview: Overview) -> tuple[int, dict[str, Any]]:
    """The status and document of `/readyz`, which says of each handler what is missing."""
    statuses = overview.status
    found: dict[str, Any] = {}
    for name in handlers:
        workers = Counter(worker.state for worker in statuses[name].workers) if name in statuses else Counter()
        is_ready = name in statuses and statuses[name].ready
        found[name] = {"ready": is_ready, "workers": dict(workers)}
        if not is_ready:
            found[name]["missing"] = _missing(workers)
    if overview.ready:
        return 200, {"status": "ready", "handlers": found}
    return 503, {"status": "draining" if overview.draining else "not ready", "handlers": found}


def _missing(workers: Counter[Any]) -> str:
    if not workers:
        return "its workers have not been started"
    states = ", ".join(f"{count} {state}" for state, count in workers.items())
    return f"no worker is ready: {states}"


def info(handlers: Handlers, overview: Overview) -> dict[str, Any]:
    """Everything about the version, the handlers, their workers and their statistics."""
    statuses, statistics = overview.status, overview.statistics
    return {
        "version": __version__,
        "ready": overview.ready,
        "draining": overview.draining,
        "handlers": {
            name: _handler(handler, statuses.get(name), statistics.get(name)) for name, handler in handlers.items()
        },
    }


def _handler(handler: Handler[..., Any], status: HandlerStatus | None, statistics: Statistics | None) -> dict[str, Any]:
    codec = handler.codec
    return {
        "path": handler.options.path,
        "batched": handler.batched,
        "streams": handler.streams,
        "options": {
            one.name: _shown(one.name, getattr(handler.options, one.name))
            for one in fields(Options)
            if one.name not in _ELSEWHERE
        },
        "content_types": list(codec.content_types),
        "input_schema": codec.input_schema(),
        "output_schema": output_schema(handler),
        "example": codec.example(),
        "ready": status is not None and status.ready,
        "workers": [] if status is None else [asdict(worker) for worker in status.workers],
        "statistics": None if statistics is None else _statistics(statistics),
    }


def _shown(name: str, value: Any) -> Any:
    """An option as JSON can hold it; functions by their names."""
    if name in _CALLABLES and value is not None:
        return getattr(value, "__qualname__", type(value).__qualname__)
    if isinstance(value, (list, tuple)):
        return [_shown("", one) for one in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)[:200]


def _statistics(found: Statistics) -> dict[str, Any]:
    answered = max(1, found.queue_seconds.count)
    return {
        "waiting": found.waiting,
        "running": found.running,
        "submitted": found.submitted,
        "outcomes": dict(found.outcomes),
        "batches": found.batches,
        "mean_batch_size": round(found.mean_batch_size, 3),
        "batch_sizes": {str(size): count for size, count in sorted(found.batch_sizes.items())},
        "released": dict(found.released),
        "rerun": found.rerun,
        "mean_queue_seconds": found.queue_seconds.sum / answered,
        "mean_run_seconds": found.run_seconds.sum / answered,
    }
