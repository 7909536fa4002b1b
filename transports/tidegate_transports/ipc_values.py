"""A value on its way between a front end and the hub: arrays as raw bytes, plain values as they are, the rest pickled.

Both ends are processes of one service on one machine, joined by a socket that only they have; nothing of a client's is
ever unpickled here that one of them did not make.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from tidegate import EncodeError, HandlerError, TidegateError
from tidegate.workers.pickling import PLAIN_TENSORS, as_tensor, by_value_pickler

__all__ = ["LARGEST_VALUE", "Value", "decode_value", "encode_value"]

LARGEST_VALUE = (1 << 30) - (1 << 20)
"""Bytes of one value; what a frame says of it besides must fit beside it."""

_PLAIN, _ARRAY, _TENSOR, _PICKLE = range(4)
_SMALLEST, _LARGEST = -(1 << 63), (1 << 64) - 1
_AS_THEY_ARE = frozenset({bytes, bool, float, type(None)})

# Kinds of dtypes that their text says everything about. Those of other packages call themselves "V", as structures do.
_TOLD_BY_TEXT = frozenset("biufcmMSU")


class Value(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One value. data: itself, or its bytes."""

    kind: int
    data: Any = None
    dtype: str = ""
    shape: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        """About what it takes in memory."""
        data = self.data
        return 64 + len(data) if isinstance(data, (bytes, str)) else 64


def encode_value(
    value: Any, *, by_value: bool = False, unsendable: Callable[[str], TidegateError] = EncodeError
) -> Value:
    """The value as a frame can hold it; raises `unsendable` with the reason if it cannot be sent at all.

    by_value: classes and functions of the main script travel themselves.

    Example:
        >>> decode_value(encode_value({"a": (1, 2)}))
        {'a': (1, 2)}
    """
    kind = type(value)
    if kind is np.ndarray and value.dtype.kind in _TOLD_BY_TEXT:
        encoded = Value(_ARRAY, value.tobytes(), value.dtype.str, value.shape)
    elif kind in _AS_THEY_ARE or (kind is str and _is_text(value)) or (kind is int and _SMALLEST <= value <= _LARGEST):
        encoded = Value(_PLAIN, value)
    else:
        try:
            encoded = _tensor(value) or Value(_PICKLE, _pickled(value, by_value))
        except MemoryError:
            raise
        except Exception as error:
            raise unsendable(
                f"cannot send a value of type {kind.__qualname__} between processes: {HandlerError.wrap(error).detail}"
            ) from error
    if encoded.nbytes > LARGEST_VALUE:
        raise unsendable(
            f"a value of {encoded.nbytes} bytes: between a front end and the batcher it may have {LARGEST_VALUE}; "
            "split it, or serve it with one HTTP process"
        )
    return encoded


def decode_value(value: Value) -> Any:
    """The value again; arrays are its own, and writable. Raises what unpickling raises."""
    if value.kind == _ARRAY:
        return np.ndarray(value.shape, value.dtype, bytearray(value.data))
    if value.kind == _PLAIN:
        return value.data
    if value.kind == _TENSOR:
        # Without torch here, as in a service that only passes them on, they are arrays.
        return as_tensor(bytearray(value.data), 0, value.dtype, value.shape)
    return pickle.loads(value.data)


def _is_text(value: str) -> bool:
    """Whether it is Unicode, of which half a surrogate pair is no part."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tensor(value: Any) -> Value | None:
    torch = sys.modules.get("torch")
    if torch is None or type(value) is not torch.Tensor or value.layout is not torch.strided or value.is_meta:
        return None
    name = str(value.dtype).removeprefix("torch.")
    if name not in PLAIN_TENSORS:
        return None
    plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
    data = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    return Value(_TENSOR, data, name, tuple(value.shape))


def _pickled(value: Any, by_value: bool) -> bytes:
    if not by_value:
        return pickle.dumps(value, 5)
    written = io.BytesIO()
    by_value_pickler()(written, protocol=5).dump(value)
    return written.getvalue()
