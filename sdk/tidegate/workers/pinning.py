"""Memory that a GPU may read and write by itself, so that copies run beside the CPU: CUDA's page-locked memory."""

from __future__ import annotations

import logging
import mmap
import sys
from contextlib import suppress
from typing import Any

import numpy as np

__all__ = ["Pinned", "pinned"]

log = logging.getLogger("tidegate.worker")

_PORTABLE = 1
"""cudaHostRegisterPortable: pinned for every CUDA context of this process."""


class Pinned:
    """A mapping that CUDA has pinned. It is held until it is undone: CUDA must not keep what is unmapped."""

    def __init__(self, mapped: mmap.mmap, address: int, runtime: Any) -> None:
        self._mapped = mapped
        self._address = address
        self._runtime = runtime

    def undo(self) -> None:
        """Unpin it. Copies that are on their way end first."""
        with suppress(Exception):  # the device may have failed, or the driver be unloading: there is nothing to undo
            self._runtime.cudaHostUnregister(self._address)


def pinned(mapped: mmap.mmap) -> Pinned | None:
    """Pin a mapping if torch is loaded and at work on a CUDA device, else None; a failure is logged."""
    torch: Any = sys.modules.get("torch")
    # Asked before cudart(), which would set CUDA up.
    if torch is None or not torch.cuda.is_initialized():
        return None
    address = np.frombuffer(mapped, np.uint8).ctypes.data
    try:
        runtime = torch.cuda.cudart()
        status = int(runtime.cudaHostRegister(address, len(mapped), _PORTABLE))
    except Exception as error:  # noqa: BLE001 - costs speed only, whatever it is
        status, reason = -1, str(error)
    else:
        reason = f"CUDA error {status}"
    if status == 0:
        return Pinned(mapped, address, runtime)
    log.warning("shared memory is not pinned, so copies to the GPU are slower: %s (%d bytes)", reason, len(mapped))
    # The failed call is remembered, and would be reported to whoever launches the next kernel.
    with suppress(Exception):
        torch.ones(1, device="cuda")
    return None
