"""On what handlers run: the devices that are there, who gets which, and how they are."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any, Self

from tidegate.discovery import CPU, Device, Machine, Probe, discover
from tidegate.handler import Handler
from tidegate.nvml import Usage
from tidegate.placement import Placement, WorkerKind, plan

__all__ = ["Device", "DeviceManager", "Placement", "Usage", "cuda_context_made"]


class DeviceManager:
    """The devices of this machine, or those that a test says there are.

    Example:
        >>> from tidegate import serve
        >>> @serve(devices=1, workers_per_device=2)
        ... def embed(text: str) -> list[float]:
        ...     return [float(len(text))]
        >>> manager = DeviceManager([Device("cuda", 0, "GPU-a1"), Device("cuda", 1, "GPU-b2")], environ={})
        >>> [(dict(one.environment), one.setup_argument) for one in manager.plan([embed])["embed"]]
        [({'CUDA_VISIBLE_DEVICES': 'GPU-a1'}, 'cuda:0'), ({'CUDA_VISIBLE_DEVICES': 'GPU-a1'}, 'cuda:0')]
    """

    def __init__(
        self,
        devices: Iterable[Device] | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        probe: Probe | None = None,
    ) -> None:
        self._given = devices
        self._environ = dict(os.environ if environ is None else environ)
        self._probe = probe

    @classmethod
    def discover(cls, environ: Mapping[str, str] | None = None, probe: Probe | None = None) -> Self:
        """What this machine has and CUDA_VISIBLE_DEVICES leaves; looked for when it is first needed.

        environ: the whole environment, by default this process's as it is now. Looking may take seconds, where a
        process has to be started for it.
        """
        return cls(environ=environ, probe=Machine() if probe is None else probe)

    @cached_property
    def devices(self) -> tuple[Device, ...]:
        """The visible accelerators and, last, the CPU; raises ValueError as `discovery.discover` does."""
        if self._given is not None or self._probe is None:
            given = tuple(self._given or ())
            return given if any(device.kind == "cpu" for device in given) else (*given, CPU)
        return discover(self._environ, self._probe)

    def plan(self, handlers: Iterable[Handler[..., Any]], worker: WorkerKind = "process") -> dict[str, list[Placement]]:
        """Who runs where, by handler; see `placement.plan`, of which this raises the ValueError too."""
        handlers = list(handlers)
        # Handlers that want nothing but the CPU are not kept waiting for what else there is.
        only_cpu = all(handler.options.devices == "cpu" for handler in handlers)
        return plan(handlers, (CPU,) if only_cpu else self.devices, worker=worker, environ=self._environ)

    def usage(self) -> dict[Device, Usage]:
        """How the GPUs are right now, as NVML tells; empty where it is silent. Never raises."""
        if self._probe is None:
            return {}
        found: dict[Device, Usage | None] = {}
        with suppress(ValueError):  # a wrong CUDA_VISIBLE_DEVICES, which `plan` tells of
            found = {device: self._probe.usage(device.uuid) for device in self.devices if device.kind == "cuda"}
        return {device: usage for device, usage in found.items() if usage is not None and usage != Usage()}


def cuda_context_made() -> bool:
    """Whether torch has made a CUDA context in this process; a service has no use for one, only its workers do."""
    torch = sys.modules.get("torch")
    is_initialized = getattr(getattr(torch, "cuda", None), "is_initialized", None)
    return bool(is_initialized is not None and is_initialized())
