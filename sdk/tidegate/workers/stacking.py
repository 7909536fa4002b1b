"""Which values of a batch can be stacked while they are written, and how they are read again.

Equal arrays are one column. Tuples and dicts with arrays in them are taken apart into columns, leaf by leaf as
`collate.stack` does, and what is left of them is their form.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from tidegate.collate import group_of, is_tensor
from tidegate.workers.pickling import as_tensor, bytes_of, tensor_dtypes

__all__ = [
    "BYTES",
    "SCALARS",
    "TENSORS",
    "Column",
    "Form",
    "Source",
    "column_of",
    "read_items",
    "read_stacked",
    "rows",
    "stacked",
    "take_apart",
    "whole_column",
]

ARRAYS, TENSORS, SCALARS, BYTES = range(4)

_LARGE_TENSOR = 16 * 1024
"""Bytes from which a tensor is copied by itself; torch takes less time for many small ones together."""

_JOINED = 256 * 1024
"""Bytes up to which copying them all twice takes less time than looking at each of them."""

_FLAT = frozenset({bool, bytes, float, int, str, type(None)})

_NUMBERS = frozenset("?bhilqBHILQefdgFDG")

Form = tuple[Any, ...]
"""("column", index) | ("list", values) | ("dict", keys, forms) | ("tuple", class, forms); of what pickle knows."""


class Column(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Where one leaf of all items lies, as one array. offset: from the start of the batch's memory."""

    kind: int
    dtype: str
    shape: tuple[int, ...]
    offset: int


class Source:
    """The leaves of all items that will be one column, where they are now. dim: the new axis. copy: how they get there."""

    __slots__ = ("copy", "dim", "dtype", "kind", "nbytes", "shape", "values")

    def __init__(
        self,
        kind: int,
        values: Sequence[Any],
        dtype: str,
        shape: tuple[int, ...],
        dim: int,
        nbytes: int,
        copy: Callable[[Source, Any, int], None] | None = None,
    ) -> None:
        self.copy = copy or _WRITE[kind]
        self.kind = kind
        self.values = values
        self.dtype = dtype
        self.shape = shape
        self.dim = dim
        self.nbytes = nbytes

    def write(self, buffer: Any, start: int, offset: int) -> Column:
        """Stack the leaves into memory, `offset` bytes from where the batch's begins."""
        if self.nbytes:
            self.copy(self, buffer, start + offset)
        return Column(self.kind, self.dtype, self.shape, offset)


# ---------------------------------------------------------------------- taking apart


def take_apart(values: Sequence[Any], dim: int, sources: list[Source]) -> Form | None:
    """The form of equal structures, their leaves added to `sources`; None if they are not equal, or hold no array."""
    first = values[0]
    if isinstance(first, np.ndarray) or is_tensor(first):
        source = column_of(values, set(map(type, values)), dim)
        if source is None:
            return None
        sources.append(source)
        return ("column", len(sources) - 1)
    if group_of(first) is None:
        return ("list", list(values))
    kind = type(first)
    if any(type(value) is not kind or len(value) != len(first) for value in values):
        return None
    if kind is dict:
        keys = tuple(first)
        if any(tuple(value) != keys for value in values):
            return None
        forms = [take_apart([value[key] for value in values], dim, sources) for key in keys]
        return None if None in forms else ("dict", keys, forms)
    if kind is tuple or hasattr(kind, "_make"):
        forms = [take_apart(leaves, dim, sources) for leaves in zip(*values, strict=True)]
        return None if None in forms else ("tuple", kind, forms)
    return None


def holds_arrays(value: Any) -> bool:
    """Whether there is an array in a structure that could be taken apart; said faster than by `group_of`."""
    if isinstance(value, (dict, tuple)):
        leaves = value.values() if isinstance(value, dict) else value
        return not _FLAT.issuperset(map(type, leaves)) and any(map(holds_arrays, leaves))
    return isinstance(value, np.ndarray) or is_tensor(value)


def column_of(values: Sequence[Any], kinds: set[type], dim: int) -> Source | None:
    """The values, which are of these types, as one column; None if their dtypes or shapes differ."""
    if len(kinds) == 1:
        kind = next(iter(kinds))
        if kind is np.ndarray:
            return _arrays(values, dim)
        if kind is bytes:
            lengths = tuple(map(len, values))
            return Source(BYTES, values, "bytes", lengths, 0, sum(lengths))
        if issubclass(kind, np.generic):
            return _scalars(values)
    torch = sys.modules.get("torch")
    if torch is not None and kinds <= {torch.Tensor, torch.nn.Parameter}:
        return _tensors(values, dim)
    return None


def whole_column(whole: Any) -> Source | None:
    """What is one array or tensor on the host already, as a column; None if its rows have to be looked at."""
    if isinstance(whole, np.ndarray):
        dtype, shape = whole.dtype, whole.shape
        if type(whole) is not np.ndarray or dtype.isbuiltin != 1 or dtype.char not in _NUMBERS:
            return None
        kind, name, nbytes = SCALARS if len(shape) == 1 else ARRAYS, dtype.str, whole.nbytes
        flat = np.ascontiguousarray(whole).reshape(-1).view(np.uint8)
    else:
        torch: Any = sys.modules["torch"]
        found = tensor_dtypes().get(whole.dtype)
        if found is None or type(whole) is not torch.Tensor or whole.layout is not torch.strided:
            return None
        kind, name, shape = TENSORS, found, tuple(whole.shape)
        flat = bytes_of(whole)
        nbytes = flat.nbytes
    return Source(kind, [flat], name, shape, 0, nbytes, _write_bytes)


def _arrays(values: Sequence[Any], dim: int) -> Source | None:
    dtype, shape, size = values[0].dtype, values[0].shape, len(values)
    # Counted, which compares in C. What is not in the machine's own order would be turned round by stacking.
    if [value.shape for value in values].count(shape) != size or not dtype.isnative or dtype.hasobject:
        return None
    if dtype.isbuiltin != 1 and dtype.kind not in "SUmM":
        return None
    if [value.dtype for value in values].count(dtype) != size:
        return None
    if not -len(shape) <= dim + 1 <= len(shape) + 1:
        return None  # there is no such axis: stacking them says so, where the function's errors are told
    return Source(ARRAYS, values, dtype.str, _inserted(shape, size, dim), dim, size * values[0].nbytes)


def _scalars(values: Sequence[Any]) -> Source | None:
    dtype = values[0].dtype
    if dtype.char not in _NUMBERS:
        return None
    return Source(SCALARS, values, dtype.str, (len(values),), 0, len(values) * dtype.itemsize)


def _tensors(values: Sequence[Any], dim: int) -> Source | None:
    torch: Any = sys.modules["torch"]
    first, size = values[0], len(values)
    dtype, shape = first.dtype, first.shape
    name = tensor_dtypes().get(dtype)
    if name is None or [value.dtype for value in values].count(dtype) != size:
        return None
    if [value.shape for value in values].count(shape) != size or not -len(shape) <= dim + 1 <= len(shape) + 1:
        return None
    if any(value.layout is not torch.strided or value.is_meta for value in values):
        return None
    nbytes = size * math.prod(shape) * first.element_size()
    return Source(TENSORS, values, name, _inserted(tuple(shape), size, dim), dim, nbytes)


def _inserted(shape: tuple[int, ...], size: int, dim: int) -> tuple[int, ...]:
    place = dim if dim >= 0 else dim + len(shape) + 1
    return (*shape[:place], size, *shape[place:])


# ---------------------------------------------------------------------- writing


def _write_arrays(source: Source, buffer: Any, offset: int) -> None:
    values, dim = source.values, source.dim
    if not dim:
        try:
            _write_bytes(source, buffer, offset)
        except (BufferError, TypeError, ValueError):  # scattered in memory, or of a kind that buffers do not know
            pass
        else:
            return
    np.stack(values, axis=dim, out=np.ndarray(source.shape, source.dtype, buffer, offset))


def _write_tensors(source: Source, buffer: Any, offset: int) -> None:
    torch: Any = sys.modules["torch"]
    values = source.values
    devices = {value.device for value in values}
    size = source.nbytes // len(values)
    if not source.dim and size >= _LARGE_TENSOR and devices == {torch.device("cpu")}:
        # torch would share a large copy among all cores, and wait for each: seconds where they have other work.
        with memoryview(buffer) as room:
            for place, value in enumerate(values):
                room[offset + place * size : offset + (place + 1) * size] = bytes_of(value).data
        return
    out = as_tensor(buffer, offset, source.dtype, source.shape)
    # Gradients belong to the process that computed them.
    with torch.no_grad():
        if devices == {torch.device("cpu")}:
            torch.stack(list(values), dim=source.dim, out=out)
        elif len(devices) == 1:
            out.copy_(torch.stack(list(values), dim=source.dim))
        else:
            torch.stack([value.cpu() for value in values], dim=source.dim, out=out)


def _write_scalars(source: Source, buffer: Any, offset: int) -> None:
    np.ndarray(source.shape, source.dtype, buffer, offset)[:] = source.values


def _write_bytes(source: Source, buffer: Any, offset: int) -> None:
    """One after the other, whatever they are as long as it is bytes.

    The GIL is kept: NumPy would give it up once per item and wait for it again, 5 ms each beside a busy thread.
    """
    with memoryview(buffer) as room:
        if source.nbytes <= _JOINED and len(source.values) > 1:
            room[offset : offset + source.nbytes] = b"".join(source.values)
            return
        for value in source.values:
            with memoryview(value) as whole, whole.cast("B") as flat:
                room[offset : offset + len(flat)] = flat
                offset += len(flat)


_WRITE: dict[int, Callable[[Source, Any, int], None]] = {
    ARRAYS: _write_arrays,
    TENSORS: _write_tensors,
    SCALARS: _write_scalars,
    BYTES: _write_bytes,
}


# ---------------------------------------------------------------------- reading


def read_stacked(column: Column, buffer: Any, start: int) -> Any:
    """All of a column, on the memory: one array or tensor, or a list of bytes."""
    offset = start + column.offset
    if column.kind == BYTES:
        return _read_bytes(column.shape, buffer, offset)
    if column.kind == TENSORS:
        return as_tensor(buffer, offset, column.dtype, column.shape)
    return np.ndarray(column.shape, column.dtype, buffer, offset)


def _read_bytes(lengths: Sequence[int], buffer: Any, offset: int) -> list[bytes]:
    values = []
    with memoryview(buffer) as room:
        for length in lengths:
            values.append(bytes(room[offset : offset + length]))
            offset += length
    return values


def read_items(column: Column, whole: Any, dim: int) -> list[Any]:
    """A column's leaf of each item, as views of the whole."""
    if column.kind == BYTES:
        items: list[Any] = whole
        return items
    if column.kind == SCALARS:
        return list(whole)
    if is_tensor(whole):
        return list(whole.unbind(dim))
    if whole.ndim == 1:
        # Indexed by a number alone it would give NumPy's scalars, which cannot be written to.
        return [whole[place, ...] for place in range(len(whole))]
    return list(np.moveaxis(whole, dim, 0) if dim else whole)


def stacked(form: Form, wholes: Sequence[Any]) -> Any:
    """The batch as `collate.stack` would have made it."""
    if form[0] == "column":
        return wholes[form[1]]
    if form[0] == "list":
        return form[1]
    parts = [stacked(one, wholes) for one in form[2]]
    if form[0] == "dict":
        return dict(zip(form[1], parts, strict=True))
    return tuple(parts) if form[1] is tuple else form[1](*parts)


def rows(form: Form, columns: Sequence[list[Any]]) -> list[Any]:
    """The items again, one by one."""
    if form[0] == "column":
        return columns[form[1]]
    if form[0] == "list":
        values: list[Any] = form[1]
        return values
    parts = zip(*(rows(one, columns) for one in form[2]), strict=True)
    if form[0] == "dict":
        return [dict(zip(form[1], row, strict=True)) for row in parts]
    return list(parts) if form[1] is tuple else [form[1]._make(row) for row in parts]
