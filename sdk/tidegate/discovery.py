"""Which devices this process may use: what the machine has, less what the environment hides."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import logging
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from tidegate.cuda_driver import LIBRARY
from tidegate.nvml import Gpu, Nvml, Usage

__all__ = ["CPU", "Device", "Kind", "Machine", "Probe", "discover"]

log = logging.getLogger("tidegate.devices")

Kind = Literal["cuda", "rocm", "mps", "cpu"]

_HIDES_ALL = frozenset({"", "-1", "nodevfiles", "none", "void"})
_PROBE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Device:
    """Something to run on. Its text is torch's name for it in this process: `cuda:1`, `mps`, `cpu`.

    index: among those of its kind that are visible here. uuid: as the driver tells it, empty when it does not.
    memory: bytes, 0 when unknown. entry: what names it to another process in CUDA_VISIBLE_DEVICES (ROCm:
    HIP_VISIBLE_DEVICES).
    """

    kind: Kind
    index: int = 0
    uuid: str = ""
    name: str = ""
    memory: int = 0
    entry: str = ""

    def __str__(self) -> str:
        # torch built for ROCm says "cuda" too.
        return self.kind if self.kind in ("cpu", "mps") else f"cuda:{self.index}"

    @property
    def mask(self) -> str:
        """What a child's environment calls it."""
        return self.entry or self.uuid or str(self.index)

    @property
    def is_slice(self) -> bool:
        """Whether it is a part of a GPU in MIG mode; CUDA shows a process one of these at most."""
        return self.mask.startswith("MIG-")

    @property
    def described(self) -> str:
        """Its text with what tells it from others: `cuda:0 (NVIDIA H200, GPU-8932f937-…)`."""
        details = ", ".join(part for part in (self.name, self.uuid) if part)
        return f"{self} ({details})" if details else str(self)


CPU = Device("cpu")


class Probe(Protocol):
    """Whom discovery asks; tests answer in the machine's place."""

    def nvml(self) -> Sequence[Gpu] | None:
        """Every NVIDIA GPU in PCI order; None when there is no answer."""
        ...

    def driver(self, environ: Mapping[str, str]) -> Sequence[Gpu] | None:
        """The GPUs that CUDA shows under this environment, in its order; None when there is no answer."""
        ...

    def torch(self, environ: Mapping[str, str]) -> Sequence[tuple[Kind, Gpu]]:
        """ROCm's and Apple's devices."""
        ...

    def usage(self, uuid: str) -> Usage | None:
        """How an NVIDIA GPU is; None when nobody can tell."""
        ...


def discover(environ: Mapping[str, str], probe: Probe) -> tuple[Device, ...]:
    """The visible accelerators, of one kind, and the CPU last; environ: the whole environment.

    NVIDIA's come from NVML, under CUDA_VISIBLE_DEVICES. NVML numbers by PCI bus and CUDA, unless CUDA_DEVICE_ORDER
    says PCI_BUS_ID, the fastest first; where the two could differ (numbers, several models) and where NVML is silent,
    CUDA's driver itself is asked, in a short-lived process. A GPU in MIG mode stands for its slices.

    Raises ValueError when CUDA_VISIBLE_DEVICES names a GPU twice, with which CUDA shows none at all.
    """
    return (*(_cuda(environ, probe) or _others(environ, probe)), CPU)


# ---------------------------------------------------------------------- NVIDIA


def _cuda(environ: Mapping[str, str], probe: Probe) -> list[Device]:
    gpus = probe.nvml()
    if gpus is None:
        return _as_shown(probe.driver(environ) or (), environ)
    if not gpus:
        return []
    mask = environ.get("CUDA_VISIBLE_DEVICES")
    named = _named(mask, gpus)
    if not named or _numbered_alike([entry for entry, _ in named], gpus, environ):
        return _devices([one for _, gpu in named for one in _usable(gpu)])
    shown = probe.driver(environ)
    if shown is not None:
        return _as_shown(shown, environ)
    # Which GPU is meant stays unknown, but the child reads the same entry in the same way.
    return [Device("cuda", index, entry=entry) for index, (entry, _) in enumerate(named)]


def _as_shown(gpus: Sequence[Gpu], environ: Mapping[str, str]) -> list[Device]:
    """What the driver shows; where it tells no UUID, a child gets the entry as it stands here."""
    mask = environ.get("CUDA_VISIBLE_DEVICES")
    return [replace(device, entry=device.uuid or _entry(mask, device.index)) for device in _devices(gpus)]


def _devices(gpus: Sequence[Gpu]) -> list[Device]:
    return [Device("cuda", index, gpu.uuid, gpu.name, gpu.memory) for index, gpu in enumerate(gpus)]


def _entry(mask: str | None, index: int) -> str:
    """The entry of a mask by which one of the visible devices was chosen; without a mask its own number."""
    entries = [entry.strip() for entry in mask.split(",")] if mask else []
    return entries[index] if index < len(entries) else str(index)


def _usable(gpu: Gpu) -> Sequence[Gpu]:
    return (gpu,) if gpu.slices is None else gpu.slices


def _numbered_alike(entries: Sequence[str], gpus: Sequence[Gpu], environ: Mapping[str, str]) -> bool:
    """Whether NVML's numbers surely mean the same GPUs as CUDA's, or none are used."""
    if all(entry.startswith(("GPU-", "MIG-")) for entry in entries):
        return True
    if any(gpu.slices is not None for gpu in gpus):
        return True  # CUDA shows one slice and no more, and each is asked for by its own name
    if any(not gpu.uuid for gpu in gpus) or len({entry[:1].isdigit() for entry in entries}) > 1:
        return False  # one that CUDA may or may not count, or a list that only CUDA knows how to read
    one_model = len({(gpu.name, gpu.memory) for gpu in gpus}) == 1
    return one_model or environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"


def _named(mask: str | None, gpus: Sequence[Gpu]) -> list[tuple[str, Gpu]]:
    """What CUDA_VISIBLE_DEVICES leaves, in its order, each with its entry; like CUDA up to the first that is invalid."""
    if mask is None:
        return [(str(index), gpu) for index, gpu in enumerate(gpus) if gpu.uuid]
    found: list[tuple[str, Gpu]] = []
    taken: set[str] = set()
    for entry in map(str.strip, mask.split(",")):
        gpu = _meant(entry, gpus)
        if gpu is None:
            if entry.lower() not in _HIDES_ALL:
                log.warning("CUDA_VISIBLE_DEVICES=%s: there is no %r; CUDA ignores it and all after it", mask, entry)
            break
        uuids = {one.uuid for one in _usable(gpu)}
        if uuids & taken:
            raise ValueError(
                f"CUDA_VISIBLE_DEVICES={mask}: {entry} is a GPU that was named before, and CUDA then shows none; "
                "name each once"
            )
        taken |= uuids
        found.append((entry, gpu))
    return found


def _meant(entry: str, gpus: Sequence[Gpu]) -> Gpu | None:
    """The GPU of one entry: a number, a UUID or a beginning of one that no other shares, or a slice's."""
    slices = [slice_ for gpu in gpus for slice_ in gpu.slices or ()]
    if entry.startswith(("GPU-", "MIG-")):
        fitting = [gpu for gpu in (*gpus, *slices) if gpu.uuid.startswith(entry)]
        if len(fitting) == 1:
            return fitting[0]
        # NVML may not tell of slices, nor knows their older names: MIG-GPU-<uuid>/<instance>/<instance>.
        return Gpu(entry) if entry.startswith("MIG-") and not fitting else None
    number = re.match(r"\+?(\d+)", entry)  # CUDA reads what begins with a number as that number
    index = int(number[1]) if number else len(gpus)
    return gpus[index] if index < len(gpus) and gpus[index].uuid else None


# ---------------------------------------------------------------------- AMD and Apple


def _others(environ: Mapping[str, str], probe: Probe) -> list[Device]:
    """An AMD child gets the entry as it stands here: HIP counts within what ROCR_VISIBLE_DEVICES leaves."""
    # HIP takes an empty one for none given.
    mask = environ.get("HIP_VISIBLE_DEVICES") or environ.get("CUDA_VISIBLE_DEVICES")
    return [
        Device(kind, index, gpu.uuid, gpu.name, gpu.memory, _entry(mask, index))
        for index, (kind, gpu) in enumerate(probe.torch(environ))
    ]


# ---------------------------------------------------------------------- the real machine


class Machine:
    """This machine. Nothing that it is asked makes a CUDA context or imports torch in this process."""

    def __init__(self, *, system: str = sys.platform, kernel_driver: Path = Path("/dev/kfd")) -> None:
        self._system = system
        self._kernel_driver = kernel_driver

    @cached_property
    def _nvml(self) -> Nvml | None:
        return Nvml.open()

    def nvml(self) -> Sequence[Gpu] | None:
        return None if self._nvml is None else self._nvml.gpus()

    def driver(self, environ: Mapping[str, str]) -> Sequence[Gpu] | None:
        try:
            ctypes.CDLL(LIBRARY)  # loaded, not initialised: to know whether asking is worth a process
        except OSError:
            return None
        told = _asked("cuda_driver.py", environ, "-I")
        if told is None:
            return None
        if told["error"]:
            log.warning("CUDA's driver shows no GPU: error %d", told["error"])
        return [Gpu(**gpu) for gpu in told["gpus"]]

    def torch(self, environ: Mapping[str, str]) -> Sequence[tuple[Kind, Gpu]]:
        torch: Any = sys.modules.get("torch")
        if self._system == "darwin":
            if torch is not None:
                return [("mps", Gpu("", "Apple GPU"))] if torch.backends.mps.is_available() else []
            worth_asking = platform.machine() == "arm64"
        else:
            is_rocm = bool(getattr(getattr(torch, "version", None), "hip", None))
            worth_asking = is_rocm or self._kernel_driver.exists()
        if not worth_asking or (torch is None and importlib.util.find_spec("torch") is None):
            return []
        # Not -I: torch may live where PYTHONPATH says. -P: what lies in the current folder is not torch.
        told = _asked("torch_devices.py", environ, "-P")
        return [(gpu.pop("kind"), Gpu(**gpu)) for gpu in told or ()]

    def usage(self, uuid: str) -> Usage | None:
        return None if self._nvml is None else self._nvml.usage(uuid)


def _asked(script: str, environ: Mapping[str, str], flag: str) -> Any:
    """What a script beside this module prints as JSON; None when it fails."""
    command = [sys.executable, flag, str(Path(__file__).with_name(script))]
    try:
        ran = subprocess.run(
            command,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            check=True,
        )
        return json.loads(ran.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
        log.warning("%s could not look for devices: %s", script, *reason or [type(error).__name__])
        return None
