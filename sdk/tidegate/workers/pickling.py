"""Pickle for values that leave the process: the bytes of arrays and tensors apart, wherever they are in a structure."""

from __future__ import annotations

import copyreg
import functools
import math
import pickle
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tidegate.workers.struct_pickling import is_struct_class, reduce_struct_class

__all__ = ["PLAIN_TENSORS", "Pickled", "as_tensor", "by_value_pickler", "bytes_of", "loads", "tensor_dtypes"]

OUT_OF_BAND = 2048
"""Bytes from which a buffer is kept apart: below, finding its place takes longer than copying it once more."""

_NUMBERS = "bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 bfloat16 float16 float32 float64"
_COMPLEX = "complex32 complex64 complex128"
_SMALL = "float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu"
PLAIN_TENSORS = frozenset(f"{_NUMBERS} {_COMPLEX} {_SMALL}".split())
"""torch's own dtypes that are plain numbers; quantized ones know more than their bytes say."""

# Those that NumPy has as well, with nothing about them that is put off, as a conjugate may be.
_NUMPYS = frozenset(_NUMBERS.split()) - {"bfloat16"}


@functools.cache
def tensor_dtypes() -> dict[Any, str]:
    """The same as torch has them, with their names; asking one for its name takes as long as sending it."""
    import torch  # whoever asks has a tensor

    return {getattr(torch, name): name for name in PLAIN_TENSORS if hasattr(torch, name)}


class Pickled:
    """A value in pieces: the stream in `chunks`, in order, and the buffers that it refers to.

    by_value: classes and functions of `__main__` travel themselves, for those whom the other side cannot import.
    Raises whatever pickling raises.
    """

    def __init__(self, value: object, *, by_value: bool = False) -> None:
        self.chunks = _Chunks()
        self.buffers: list[memoryview] = []
        self.tensors = False
        own = _ARRAYS
        torch = sys.modules.get("torch")
        if torch is not None:
            own = {**own, torch.Tensor: self._reduce_tensor, torch.nn.Parameter: self._reduce_tensor}
        if by_value:
            pickler: Any = by_value_pickler()(self.chunks, protocol=5, buffer_callback=self._keep)
            pickler.own = own
        else:
            pickler = pickle.Pickler(self.chunks, protocol=5, buffer_callback=self._keep)
            pickler.dispatch_table = {**copyreg.dispatch_table, **own}
        pickler.dump(value)

    @property
    def nbytes(self) -> int:
        """Bytes of the stream, the buffers not counted."""
        return sum(map(len, self.chunks))

    def _keep(self, buffer: pickle.PickleBuffer) -> bool:
        """Whether the buffer goes into the stream after all."""
        raw = buffer.raw()
        if raw.nbytes < OUT_OF_BAND:
            return True
        self.buffers.append(raw)
        return False

    def _reduce_tensor(self, tensor: Any) -> Any:
        torch: Any = sys.modules["torch"]
        name = tensor_dtypes().get(tensor.dtype)
        if name is None or tensor.layout is not torch.strided or tensor.is_meta:
            return tensor.__reduce_ex__(5)
        self.tensors = True
        # Gradients belong to the process that computed them, and so does a place on the GPU.
        data: Any = bytes_of(tensor.cpu())
        return _tensor, (pickle.PickleBuffer(data), name, tuple(tensor.shape))


@functools.cache
def by_value_pickler() -> Any:
    """A class of picklers that send what cannot be imported elsewhere; `own` are reducers by exact type."""
    import cloudpickle  # slow to load, and rarely needed

    class ByValuePickler(cloudpickle.Pickler):  # type: ignore[misc]  # it says nothing of its types
        own: Mapping[type, Any] = {}

        def reducer_override(self, value: Any) -> Any:
            reduce = self.own.get(type(value))
            if reduce is not None:
                return reduce(value)
            reduced = super().reducer_override(value)
            if isinstance(value, type) and isinstance(reduced, tuple) and len(reduced) > 2:
                if is_struct_class(value):
                    return reduce_struct_class(value)
                # What msgspec notes on a class that it has seen is for its own process.
                reduced[2][0].pop("__msgspec_cache__", None)
            return reduced

    return ByValuePickler


class _Chunks(list[bytes]):
    """What a pickler writes: it gives large `bytes` as they are, so that none of them is copied here."""

    write = list.append


def loads(stream: Any, buffers: Sequence[Any]) -> Any:
    """The value again, its arrays on the buffers; these must be writable. Raises whatever unpickling raises."""
    return pickle.loads(stream, buffers=buffers)


def _reduce_array(array: Any) -> Any:
    flags = array.flags
    if array.dtype.hasobject or not array.nbytes:
        return np.asarray(array).__reduce_ex__(5)
    if array.nbytes < OUT_OF_BAND and flags.writeable and flags.forc and type(array) is np.ndarray:
        return array.__reduce_ex__(5)
    order: Any = "F" if flags.f_contiguous and not flags.c_contiguous else "C"
    # `ravel` copies only what lies scattered.
    data: Any = np.asarray(array).ravel(order).view(np.uint8)
    dtype = array.dtype.str if array.dtype.isbuiltin == 1 else array.dtype
    return _array, (pickle.PickleBuffer(data), dtype, array.shape, order)


_ARRAYS: dict[type, Any] = {np.ndarray: _reduce_array, np.memmap: _reduce_array}


def _array(buffer: Any, dtype: Any, shape: tuple[int, ...], order: Any) -> Any:
    return np.ndarray(shape, dtype, _writable(buffer), order=order)


def _tensor(buffer: Any, dtype: str, shape: tuple[int, ...]) -> Any:
    return as_tensor(_writable(buffer), 0, dtype, shape)


def bytes_of(tensor: Any) -> np.ndarray:
    """The bytes of a plain tensor on the host, flat: its own memory if that is in one piece, else a copy."""
    if tensor_dtypes()[tensor.dtype] in _NUMPYS:
        # Half the time that torch would take.
        return np.ascontiguousarray(tensor.detach().numpy()).reshape(-1).view(np.uint8)
    torch: Any = sys.modules["torch"]
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    # A single element counts as contiguous whatever its stride, and could not be viewed as bytes with that.
    viewed: np.ndarray = plain.as_strided((plain.numel(),), (1,)).view(torch.uint8).numpy()
    return viewed


def as_tensor(buffer: Any, offset: int, dtype: str, shape: Sequence[int]) -> Any:
    """A tensor on these bytes; where torch is not loaded, an array of the same numbers, bfloat16 as float32."""
    shape = tuple(shape)
    torch: Any = sys.modules.get("torch")
    if torch is None and dtype == "bfloat16":
        upper = np.ndarray(shape, np.uint16, buffer, offset)
        return (upper.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if torch is None and dtype in np.sctypeDict:
        return np.ndarray(shape, dtype, buffer, offset)
    if torch is None:
        import torch  # nothing else knows these
    if dtype in _NUMPYS:
        return torch.from_numpy(np.ndarray(shape, dtype, buffer, offset))  # in half the time
    kind = getattr(torch, dtype)
    count = math.prod(shape)
    if not count:
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(buffer, dtype=kind, count=count, offset=offset).view(shape)


def _writable(buffer: Any) -> Any:
    """The memory behind a buffer of an array that was read-only where it came from: here it is nobody else's."""
    if isinstance(buffer, memoryview) and buffer.readonly:
        return buffer.obj
    return bytearray(buffer) if isinstance(buffer, bytes) else buffer
