"""A value on its way between a front end and the hub: arrays as raw bytes, plain values as they are, the rest pickled.

Both ends are processes of one service on one machine, joined by a socket that only they have; nothing of a client's is
ever unpickled here that one of them did not make.
"""

from __future__ import annotations

import io
import pickle
import sys
from typing import Any

import msgspec
import numpy as np

from tidegate.workers.pickling import PLAIN_TENSORS, as_tensor

__all__ = ["Value", "decode_value", "encode_value"]

_PLAIN, _ARRAY, _TENSOR, _PICKLE = range(4)
_SMALLEST, _LARGEST = -(1 << 63), (1 << 64) - 1
_AS_THEY_ARE = frozenset({str, bytes, bool, float, type(None)})


class Value(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One value. data: itself, or its bytes."""

    kind: int
    data: Any = None
    dtype: str = ""
    shape: tuple[int, ...] = ()


def encode_value(value: Any, *, by_value: bool = False) -> Value:
    """The value as a frame can hold it; raises what pickling raises.

    by_value: classes of the main script travel themselves.

    Example:
        >>> decode_value(encode_value({"a": (1, 2)}))
        {'a': (1, 2)}
    """
    kind = type(value)
    if kind in _AS_THEY_ARE or (kind is int and _SMALLEST <= value <= _LARGEST):
        return Value(_PLAIN, value)
    if kind is np.ndarray and not value.dtype.hasobject and value.dtype.names is None:
        return Value(_ARRAY, value.tobytes(), value.dtype.str, value.shape)
    torch = sys.modules.get("torch")
    if torch is not None and kind is torch.Tensor and value.layout is torch.strided:
        name = str(value.dtype).removeprefix("torch.")
        if name in PLAIN_TENSORS:
            plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
            data = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
            return Value(_TENSOR, data, name, tuple(value.shape))
    return Value(_PICKLE, _pickled(value, by_value))


def decode_value(value: Value) -> Any:
    """The value again; arrays are its own, and writable. Raises what unpickling raises."""
    if value.kind == _PLAIN:
        return value.data
    if value.kind == _ARRAY:
        return np.ndarray(value.shape, value.dtype, bytearray(value.data))
    if value.kind == _TENSOR:
        import torch  # noqa: F401 - only where somebody sent a tensor

        return as_tensor(bytearray(value.data), 0, value.dtype, value.shape)
    return pickle.loads(value.data)


def _pickled(value: Any, by_value: bool) -> bytes:
    if not by_value:
        return pickle.dumps(value, 5)
    import cloudpickle  # third-party, and only for handlers that cannot be imported

    written = io.BytesIO()
    cloudpickle.Pickler(written, protocol=5).dump(value)
    return written.getvalue()
