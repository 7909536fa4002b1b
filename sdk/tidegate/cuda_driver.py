"""Ask CUDA's driver which GPUs it shows, in its own order: run as a script, so that nothing is left behind.

`cuInit` reads the environment once per process and keeps memory on every GPU's node; a service wants neither.
"""

from __future__ import annotations

import ctypes
import json
import sys
import uuid
from typing import Any

__all__ = ["LIBRARY", "answer"]

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

_NO_DEVICE = 100


def answer(library: Any) -> dict[str, Any]:
    """The visible GPUs as CUDA numbers them, and the driver's error number, 0 for none; no context is made."""
    error = library.cuInit(0)
    if error:
        return {"error": 0 if error == _NO_DEVICE else error, "gpus": []}
    count = ctypes.c_int()
    error = library.cuDeviceGetCount(ctypes.byref(count))
    return {"error": error, "gpus": [_gpu(library, index) for index in range(count.value)]}


def _gpu(library: Any, index: int) -> dict[str, Any]:
    device = ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    memory = ctypes.c_size_t()
    library.cuDeviceGet(ctypes.byref(device), index)
    library.cuDeviceGetName(name, len(name), device)
    library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    text = name.value.decode(errors="replace")
    return {"uuid": _uuid(library, device, text), "name": text, "memory": memory.value}


def _uuid(library: Any, device: ctypes.c_int, name: str) -> str:
    """As CUDA_VISIBLE_DEVICES takes it; empty where the driver is too old to tell."""
    raw = (ctypes.c_ubyte * 16)()
    # The first form gives a slice the identity of the whole GPU.
    for form in ("cuDeviceGetUuid_v2", "cuDeviceGetUuid"):
        get = getattr(library, form, None)
        if get is not None and get(ctypes.byref(raw), device) == 0:
            return f"{'MIG' if ' MIG ' in name else 'GPU'}-{uuid.UUID(bytes=bytes(raw))}"
    return ""


if __name__ == "__main__":
    sys.stdout.write(json.dumps(answer(ctypes.CDLL(LIBRARY))))
