"""NVIDIA's management library: which GPUs there are and how they are, without touching CUDA."""

from __future__ import annotations

import importlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

__all__ = ["Gpu", "Nvml", "Usage"]


class Gpu(NamedTuple):
    """A GPU or a slice of one. uuid: empty when it could not be read. memory: bytes, 0 when unknown.

    slices: None for a whole GPU; what a GPU in MIG mode was cut into, of which CUDA uses nothing else.
    """

    uuid: str
    name: str = ""
    memory: int = 0
    slices: tuple[Gpu, ...] | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """How a device is right now; None for what its driver does not tell.

    memory_used, memory_free: bytes. utilisation: 0 to 1. temperature: degrees Celsius.
    """

    memory_used: int | None = None
    memory_free: int | None = None
    utilisation: float | None = None
    temperature: float | None = None


class Nvml:
    """The library, opened; what it cannot answer is None or left out, never an exception."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._handles: dict[str, Any] = {}

    @classmethod
    def open(cls) -> Self | None:
        """None without nvidia-ml-py, or without a driver that works."""
        with suppress(Exception):
            library = importlib.import_module("pynvml")
            library.nvmlInit()
            return cls(library)
        return None

    def gpus(self) -> list[Gpu] | None:
        """Every GPU of the machine in the order of the PCI bus, whatever CUDA_VISIBLE_DEVICES says."""
        count = self._ask("nvmlDeviceGetCount")
        return None if count is None else [self._gpu(index) for index in range(count)]

    def usage(self, uuid: str) -> Usage:
        """How a GPU or a slice is; costs some tens of microseconds."""
        if uuid not in self._handles:
            self._handles[uuid] = self._ask("nvmlDeviceGetHandleByUUID", uuid)
        handle = self._handles[uuid]
        if handle is None:
            del self._handles[uuid]  # a GPU that is being reset comes back
            return Usage()
        memory = self._ask("nvmlDeviceGetMemoryInfo", handle)
        rates = self._ask("nvmlDeviceGetUtilizationRates", handle)
        temperature = self._ask("nvmlDeviceGetTemperatureV", handle, 0)
        if temperature is None:  # an older driver
            temperature = self._ask("nvmlDeviceGetTemperature", handle, 0)
        return Usage(
            memory_used=None if memory is None else int(memory.used),
            memory_free=None if memory is None else int(memory.free),
            utilisation=None if rates is None else rates.gpu / 100,
            temperature=None if temperature is None else float(temperature),
        )

    def _gpu(self, index: int) -> Gpu:
        handle = self._ask("nvmlDeviceGetHandleByIndex", index)
        if handle is None:  # fallen off the bus, or not ours to use
            return Gpu("")
        gpu = self._described(handle)
        mode = self._ask("nvmlDeviceGetMigMode", handle)
        return gpu._replace(slices=self._slices(handle)) if mode and mode[0] == 1 else gpu

    def _slices(self, handle: Any) -> tuple[Gpu, ...]:
        most = self._ask("nvmlDeviceGetMaxMigDeviceCount", handle) or 0
        found = [self._ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, index) for index in range(most)]
        return tuple(self._described(slice_) for slice_ in found if slice_ is not None)

    def _described(self, handle: Any) -> Gpu:
        memory = self._ask("nvmlDeviceGetMemoryInfo", handle)
        return Gpu(
            self._ask("nvmlDeviceGetUUID", handle) or "",
            self._ask("nvmlDeviceGetName", handle) or "",
            0 if memory is None else int(memory.total),
        )

    def _ask(self, function: str, *arguments: Any) -> Any:
        """None for every failure: a missing function, a lost GPU, a figure that this model does not have."""
        try:
            return getattr(self._library, function)(*arguments)
        except Exception:  # noqa: BLE001 - the driver's errors are many, and none of them is the service's
            return None
