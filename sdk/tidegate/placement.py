"""Who runs where: for each handler its workers, each with its devices and the environment that shows it only those."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tidegate.discovery import Device
from tidegate.handler import Handler
from tidegate.selection import check_devices, chosen, listing

__all__ = ["Placement", "cores", "plan"]

log = logging.getLogger("tidegate.devices")

WorkerKind = Literal["process", "thread"]
Group = tuple[Device, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one worker runs.

    environment: what a process gets beside the service's own variables; empty for a thread. setup_argument: what
    `setup` gets, a list with `devices_per_worker` above 1.
    """

    handler: str
    worker: WorkerKind
    devices: Group
    environment: Mapping[str, str]
    setup_argument: str | list[str]

    @property
    def uuids(self) -> tuple[str, ...]:
        """The devices' UUIDs, where the driver tells them."""
        return tuple(device.uuid for device in self.devices if device.uuid)


def plan(
    handlers: Iterable[Handler[..., Any]],
    devices: Sequence[Device],
    *,
    worker: WorkerKind = "process",
    environ: Mapping[str, str],
    core_count: int | None = None,
) -> dict[str, list[Placement]]:
    """Each handler's workers: `workers_per_device` on every group of `devices_per_worker` devices.

    devices: what discovery found, the CPU included. worker: of handlers that do not say. environ: the service's own.

    "auto", "cuda" and lists put a handler on all that they name; where a number leaves the choice, the handler gets the
    devices with the fewest workers. Devices of a group are neighbours; what "auto" and "cuda" leave over stays idle,
    said in the log, and a list or a number that does not divide is an error.

    A process sees its own accelerators and no others, one that was told "cpu" none; one for which "auto" found none
    keeps the environment as it is. Where several processes share the CPU, each gets OMP_NUM_THREADS for its part of
    the cores unless that is set already: pools as wide as the machine in every one of them would fight for it.

    Raises ValueError, naming the handler, the value and what is there.
    """
    handlers = list(handlers)
    load: Counter[Device] = Counter()
    groups: dict[str, list[Group]] = {}
    # The more freedom a handler has, the later it chooses.
    for handler in sorted(handlers, key=_freedom):
        options = handler.options
        reachable = _reachable(devices) if (options.worker or worker) == "thread" else devices
        try:
            groups[handler.name] = _groups(handler, reachable, load)
        except ValueError as error:
            told = list(options.devices) if isinstance(options.devices, tuple) else options.devices
            raise ValueError(f"handler {handler.name!r}: devices={told!r}: {error}{_hidden(environ)}") from None
        for group in groups[handler.name]:
            load.update(dict.fromkeys(group, options.workers_per_device))
    placed = {handler.name: _placements(handler, groups[handler.name], worker) for handler in handlers}
    return _sharing_cores(placed, environ, core_count)


def _freedom(handler: Handler[..., Any]) -> tuple[bool, int]:
    options = handler.options
    return isinstance(options.devices, int), -options.workers_per_device


def _reachable(devices: Sequence[Device]) -> Sequence[Device]:
    """What threads of this process can use: of slices CUDA shows it the first and nothing beside."""
    first = next((device for device in devices if device.is_slice), None)
    return devices if first is None else [first, *(device for device in devices if device.kind == "cpu")]


def _hidden(environ: Mapping[str, str]) -> str:
    masks = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
    told = ", ".join(f"{name}={environ[name]}" for name in masks if name in environ)
    return f" (under {told})" if told else ""


# ---------------------------------------------------------------------- devices to groups


def _groups(handler: Handler[..., Any], there: Sequence[Device], load: Counter[Device]) -> list[Group]:
    size = handler.options.devices_per_worker
    wanted = check_devices(handler.options.devices)
    if isinstance(wanted, int):
        return _least_loaded(wanted, size, there, load)
    found = chosen(wanted, there)
    if size > 1:
        _check_groupable(found, size, there)
    rest = len(found) % size
    if rest and (len(found) < size or isinstance(wanted, tuple)):
        raise ValueError(f"there {_count(found)}, no multiple of devices_per_worker={size}")
    if rest:
        log.warning(
            "handler %s: devices_per_worker=%d leaves %s idle", handler.name, size, listing(found[len(found) - rest :])
        )
    return _in_blocks(found, size)


def _least_loaded(count: int, size: int, there: Sequence[Device], load: Counter[Device]) -> list[Group]:
    accelerators = [device for device in there if device.kind != "cpu"]
    if not accelerators:
        raise ValueError(
            f"there is only the CPU; for more workers on it give devices='cpu', workers_per_device={count}"
        )
    if count > len(accelerators):
        raise ValueError(f"there {_count(accelerators)}: {listing(accelerators)}")
    if size > 1:
        _check_groupable(accelerators, size, there)
    if count % size:
        raise ValueError(f"{count} is no multiple of devices_per_worker={size}")
    blocks = _in_blocks(accelerators, size)
    # A stable sort: of equals the first.
    by_load = sorted(range(len(blocks)), key=lambda place: max(load[device] for device in blocks[place]))
    return [blocks[place] for place in sorted(by_load[: count // size])]


def _check_groupable(found: Sequence[Device], size: int, there: Sequence[Device]) -> None:
    if any(device.kind in ("cpu", "mps") for device in found):
        raise ValueError(f"devices_per_worker={size} needs GPUs; there is {listing(there)}")
    if any(device.is_slice for device in found):
        raise ValueError(f"devices_per_worker={size}: CUDA shows a process one slice of a GPU in MIG mode; give 1")


def _in_blocks(devices: Sequence[Device], size: int) -> list[Group]:
    return [tuple(devices[start : start + size]) for start in range(0, len(devices) - size + 1, size)]


def _count(devices: Sequence[Device]) -> str:
    return "is 1 accelerator" if len(devices) == 1 else f"are {len(devices)} accelerators"


# ---------------------------------------------------------------------- groups to workers


def _placements(handler: Handler[..., Any], groups: Sequence[Group], default: WorkerKind) -> list[Placement]:
    """In rounds over the groups, so that the first workers to get work are on different devices."""
    options = handler.options
    kind: WorkerKind = options.worker or default
    placements = []
    for _ in range(options.workers_per_device):
        for group in groups:
            environment = _mask(group, explicit=options.devices != "auto") if kind == "process" else {}
            names = _names_in_child(group) if kind == "process" else _names_here(group)
            argument = names if options.devices_per_worker > 1 else names[0]
            placements.append(Placement(handler.name, kind, group, environment, argument))
    return placements


def _mask(group: Group, *, explicit: bool) -> dict[str, str]:
    """The variables that show a process these devices and no others."""
    masks = ",".join(device.mask for device in group)
    match group[0].kind:
        case "cuda":
            return {"CUDA_VISIBLE_DEVICES": masks}
        case "rocm":  # HIP reads both, and libraries object when they differ
            return {"HIP_VISIBLE_DEVICES": masks, "CUDA_VISIBLE_DEVICES": masks}
        case "cpu" if explicit:  # HIP takes an empty one for none given
            return {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "-1"}
    return {}


def _names_in_child(group: Group) -> list[str]:
    return [f"cuda:{index}" if device.kind in ("cuda", "rocm") else str(device) for index, device in enumerate(group)]


def _names_here(group: Group) -> list[str]:
    return ["cuda:0" if device.is_slice else str(device) for device in group]


# ---------------------------------------------------------------------- cores


def _sharing_cores(
    placed: dict[str, list[Placement]], environ: Mapping[str, str], core_count: int | None
) -> dict[str, list[Placement]]:
    every = [one for placements in placed.values() for one in placements]
    on_cpu = [one for one in every if one.worker == "process" and one.devices[0].kind == "cpu"]
    if len(on_cpu) < 2 or "OMP_NUM_THREADS" in environ:
        return placed
    share = {"OMP_NUM_THREADS": str(max(1, (core_count or cores()) // len(on_cpu)))}
    return {
        name: [replace(one, environment={**one.environment, **share}) if one in on_cpu else one for one in placements]
        for name, placements in placed.items()
    }


def cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """CPU cores that this process may use: its affinity, and its container's quota rounded up."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        allowed, period = quota.read_text().split()
        return min(usable, math.ceil(int(allowed) / int(period)))
    except (OSError, ValueError):  # no such file, or "max"
        return usable
