"""`devices=`: what may be written there, and which devices it means on a machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tidegate.discovery import Device

__all__ = ["check_devices", "chosen", "listing"]

_HOW = "give 'auto', 'cpu', 'cuda', 'mps', how many, or a list of indices, 'cuda:1' and UUIDs"

# A UUID or the beginning of one; torch prints them without the prefix.
_UUID = re.compile(r"((GPU|MIG)-[0-9a-f][0-9a-f/-]*|MIG-GPU-[0-9a-f/-]+|[0-9a-f]{8}[0-9a-f-]*)", re.IGNORECASE)
_ONE = re.compile(r"cpu|mps|(cuda|mps|cpu):\d+")


def check_devices(devices: Any) -> str | int | tuple[int | str, ...]:
    """The argument as it is kept, a list as a tuple; says nothing of what this machine has.

    Raises TypeError or ValueError, naming the value and the fix.

    Example:
        >>> check_devices([0, "cuda:1"])
        (0, 'cuda:1')
        >>> check_devices("gpu")
        Traceback (most recent call last):
            ...
        ValueError: devices='gpu': give 'auto', 'cpu', 'cuda', 'mps', how many, or a list of indices, 'cuda:1' and UUIDs
    """
    if isinstance(devices, bool) or not isinstance(devices, (str, int, list, tuple)):
        raise TypeError(f"devices={devices!r}: {_HOW}")
    if isinstance(devices, int):
        if devices < 1:
            raise ValueError(f"devices={devices!r}: must be 1 or more; 'auto' takes every accelerator, 'cpu' none")
        return devices
    if isinstance(devices, str):
        if devices not in ("auto", "cuda") and not _names_one(devices):
            raise ValueError(f"devices={devices!r}: {_HOW}")
        return devices
    if not devices:
        raise ValueError("devices=[]: name at least one device; 'cpu' takes no accelerator")
    for one in devices:
        if isinstance(one, bool) or not isinstance(one, (int, str)):
            raise TypeError(f"devices={devices!r}: {one!r} is neither an index nor a name; {_HOW}")
        if one != "cuda" and not (_names_one(one) if isinstance(one, str) else one >= 0):
            raise ValueError(f"devices={devices!r}: {one!r} names no device; {_HOW}")
    return tuple(devices)


def _names_one(name: str) -> bool:
    return bool(_ONE.fullmatch(name) or _UUID.fullmatch(name))


def listing(there: Sequence[Device]) -> str:
    """What there is, for an error; long UUIDs in full, since they are there to be copied."""
    described = [device.described for device in there]
    return " and ".join([", ".join(described[:-1]), described[-1]] if len(described) > 1 else described)


def chosen(devices: str | tuple[int | str, ...], there: Sequence[Device]) -> list[Device]:
    """The devices that are meant, in the order in which they were named.

    devices: as `check_devices` gives it, but for a number. there: what discovery found, the CPU included.
    Raises ValueError, naming what is missing and what is there.
    """
    if devices == "auto":
        return _accelerators(there) or [device for device in there if device.kind == "cpu"]
    found: list[Device] = []
    for one in (devices,) if isinstance(devices, str) else devices:
        for device in _meant(one, there):
            if device in found:
                raise ValueError(f"{one!r} is {device}, named before: for more workers on it give workers_per_device=")
            found.append(device)
    return found


def _accelerators(there: Sequence[Device]) -> list[Device]:
    return [device for device in there if device.kind != "cpu"]


def _meant(one: int | str, there: Sequence[Device]) -> list[Device]:
    """Every device that one name fits: several for "cuda" alone."""
    if isinstance(one, int):
        fitting = [device for device in _accelerators(there) if device.index == one]
    elif one == "cuda":
        fitting = [device for device in there if str(device).startswith("cuda:")]
    elif _ONE.fullmatch(one):
        fitting = [device for device in there if one in (str(device), f"{device}:0")]
    else:
        fitting = _by_uuid(one, there)
    if not fitting:
        raise ValueError(f"there is no {one if isinstance(one, str) else f'accelerator {one}'}; {_there_is(there)}")
    return fitting


def _by_uuid(beginning: str, there: Sequence[Device]) -> list[Device]:
    wanted = beginning.lower()
    fitting = [
        device
        for device in there
        if device.uuid and (device.uuid.lower().startswith(wanted) or device.uuid.lower()[4:].startswith(wanted))
    ]
    if len(fitting) > 1:
        raise ValueError(f"{beginning!r} begins several UUIDs: {listing(fitting)}; write more of it")
    return fitting


def _there_is(there: Sequence[Device]) -> str:
    return f"there {'is only' if len(there) == 1 else 'is'} {listing(there)}"
