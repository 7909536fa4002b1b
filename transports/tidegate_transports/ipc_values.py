"""A value on its way between a front end and the hub: arrays as raw bytes, plain values as they are, the rest pickled.

The bytes of large ones lie in shared memory, if there is any; what is made of them there is no copy.

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
from tidegate.workers.pickling import as_tensor, by_value_pickler, bytes_of, tensor_dtypes
from tidegate_transports.ipc_memory import LARGE, Outbox, Place

__all__ = ["LARGEST_VALUE", "Value", "decode_value", "encode_value"]

LARGEST_VALUE = (1 << 30) - (1 << 20)
"""Bytes of one value; what a frame says of it besides must fit beside it."""

_PLAIN, _ARRAY, _TENSOR, _PICKLE, _SCALAR = range(5)
_SMALLEST, _LARGEST = -(1 << 63), (1 << 64) - 1
_AS_THEY_ARE = frozenset({bool, float, type(None)})

# Kinds of dtypes that their text says everything about. Those of other packages call themselves "V", as structures do.
_TOLD_BY_TEXT = frozenset("biufcmMSU")


class Value(msgspec.Struct, array_like=True, gc=False):
    """One value. data: itself, or its bytes. place: where these lie instead; who receives it looks there first."""

    kind: int
    data: Any = None
    dtype: str = ""
    shape: tuple[int, ...] = ()
    place: Place | None = None

    @property
    def nbytes(self) -> int:
        """About what it takes in memory."""
        data = self.data
        if self.place is not None:
            return 64 + self.place[1]
        return 64 + len(data) if isinstance(data, (bytes, str)) else 64


def encode_value(
    value: Any,
    outbox: Outbox | None = None,
    *,
    by_value: bool = False,
    unsendable: Callable[[str], TidegateError] = EncodeError,
) -> Value:
    """The value as a frame can hold it; raises `unsendable` with the reason if it cannot be sent at all.

    outbox: where the bytes of a large one go. by_value: classes and functions of the main script travel themselves.

    Example:
        >>> decode_value(encode_value({"a": (1, 2)}))
        {'a': (1, 2)}
    """
    kind = type(value)
    if kind is np.ndarray and value.dtype.kind in _TOLD_BY_TEXT:
        encoded = _array(value, outbox)
    elif kind is bytes:
        encoded = _placed(_PLAIN, value, outbox)
    elif kind in _AS_THEY_ARE or (kind is str and _is_text(value)) or (kind is int and _SMALLEST <= value <= _LARGEST):
        encoded = Value(_PLAIN, value)
    else:
        try:
            encoded = _tensor(value, outbox) or _scalar(value) or _placed(_PICKLE, _pickled(value, by_value), outbox)
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
    data = value.data
    if value.kind == _PLAIN:
        return data if value.place is None else data.tobytes()
    if value.kind == _PICKLE:
        return pickle.loads(data)
    if value.kind == _SCALAR:
        return np.ndarray((), value.dtype, data)[()]
    room = bytearray(data) if value.place is None else data
    if value.kind == _ARRAY:
        return np.ndarray(value.shape, value.dtype, room)
    # Without torch here, as in a service that only passes them on, they are arrays.
    return as_tensor(room, 0, value.dtype, value.shape)


def _placed(
    kind: int, data: bytes | memoryview, outbox: Outbox | None, dtype: str = "", shape: tuple[int, ...] = ()
) -> Value:
    """The bytes where the other process sees them, or else in the value."""
    place = None if outbox is None or len(data) < LARGE else outbox.put(memoryview(data))
    return Value(kind, bytes(data) if place is None else None, dtype, shape, place)


def _array(value: np.ndarray, outbox: Outbox | None) -> Value:
    dtype, shape = value.dtype.str, value.shape
    if outbox is None or value.nbytes < LARGE:
        return Value(_ARRAY, value.tobytes(), dtype, shape)
    # Flat, which copies only what lies scattered.
    return _placed(_ARRAY, value.ravel().view(np.uint8).data, outbox, dtype, shape)


def _is_text(value: str) -> bool:
    """Whether it is Unicode, of which half a surrogate pair is no part."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _scalar(value: Any) -> Value | None:
    """One of NumPy's, as of a class's number: pickling it takes longer than all the rest of an answer."""
    if (
        not isinstance(value, np.generic)
        or type(value) is not value.dtype.type
        or value.dtype.kind not in _TOLD_BY_TEXT
    ):
        return None
    return Value(_SCALAR, value.tobytes(), value.dtype.str)


def _tensor(value: Any, outbox: Outbox | None) -> Value | None:
    torch = sys.modules.get("torch")
    if torch is None or type(value) is not torch.Tensor or value.layout is not torch.strided or value.is_meta:
        return None
    name = tensor_dtypes().get(value.dtype)
    if name is None:
        return None
    data = bytes_of(value if value.is_cpu else value.cpu()).data
    return _placed(_TENSOR, data, outbox, name, tuple(value.shape))


def _pickled(value: Any, by_value: bool) -> bytes:
    if not by_value:
        return pickle.dumps(value, 5)
    written = io.BytesIO()
    by_value_pickler()(written, protocol=5).dump(value)
    return written.getvalue()
