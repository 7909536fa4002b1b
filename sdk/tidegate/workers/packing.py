"""A batch's values into memory that another process sees, and out of it.

Arrays are stacked straight into it and not copied again; the rest is pickled around them. A batch is one block of
memory, or if it is small part of the frame that tells of it. What `unpack` gives lies in the block, unless it was
asked to copy, and is valid until the block is freed.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from tidegate.collate import Rows
from tidegate.media import EncodeError
from tidegate.portable import Fields, from_fields, to_fields
from tidegate.sentinels import Sentinel
from tidegate.workers.pickling import Pickled, loads
from tidegate.workers.shared_memory import ALIGNMENT, Arena, Segment
from tidegate.workers.stacking import (
    BYTES,
    SCALARS,
    TENSORS,
    Column,
    Form,
    Source,
    column_of,
    holds_arrays,
    read_items,
    read_stacked,
    rows,
    stacked,
    take_apart,
    whole_column,
)
from tidegate_batching import HandlerError, TidegateError

__all__ = ["Packed", "Unpacked", "pack", "unpack"]

INLINE = 8 * 1024
"""Bytes up to which a batch travels in its frame: giving a block back takes longer than copying so few twice more."""

_SPECIAL = (BaseException, Sentinel)
# Numbers for short, and those whose pickling asks nobody.
_ATOMS = frozenset({bool, float, int, type(None)})
_WHOLE: Form = ("column", 0)


class Packed(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Where a batch's values are. All offsets are from the start of its block, or of `inline`.

    special: what is in the place of a value, by place: an error, or the value of a Sentinel. dim: the axis on which
    the columns are stacked; None where the reader is not to see them as one.
    """

    size: int
    block: tuple[int, int] | None = None
    inline: bytearray | None = None
    columns: list[Column] = []
    dim: int | None = None
    pickled: list[tuple[int, int]] = []
    buffers: list[tuple[int, int]] = []
    special: dict[int, Fields | str] = {}
    tensors: bool = False

    @property
    def freed(self) -> list[int]:
        """The block's offset, for who has to free it; nothing if there is none."""
        return [] if self.block is None else [self.block[0]]


class Unpacked:
    """A batch's values, one by one or as one."""

    __slots__ = ("_columns", "_dim", "_form", "_special", "_values", "_wholes", "size")

    def __init__(self, packed: Packed, form: Form | None, wholes: list[Any], values: list[Any] | None) -> None:
        self.size = packed.size
        self._columns = packed.columns
        self._dim = packed.dim
        self._special = packed.special
        self._form = form
        self._wholes = wholes
        self._values = values if values is None else self._with_special(values)

    @property
    def values(self) -> list[Any]:
        """One per item: its value, its error, or a sentinel. Arrays are views of the batch's."""
        if self._values is None:
            assert self._form is not None
            axis = self._dim or 0
            columns = [
                read_items(column, whole, axis) for column, whole in zip(self._columns, self._wholes, strict=True)
            ]
            self._values = self._with_special(rows(self._form, columns))
        return self._values

    @property
    def stacked(self) -> Any:
        """The batch as `collate.stack` would make it of the values, without a copy; None if it has to."""
        if self._form is None or self._dim is None or self._special:
            return None
        if self._columns[0].kind == SCALARS:
            # NumPy's scalars are no arrays: as a batch they are the list that they were.
            return self.values
        return stacked(self._form, self._wholes)

    def _with_special(self, values: list[Any]) -> list[Any]:
        if not self._special:
            return values
        ordinary = iter(values)
        return [
            _special_value(self._special[place]) if place in self._special else next(ordinary)
            for place in range(self.size)
        ]


# ---------------------------------------------------------------------- packing


def pack(
    values: Sequence[Any],
    arena: Arena,
    *,
    stack_dim: int | None = None,
    by_value: bool = False,
    unsendable: Callable[[str], TidegateError] = EncodeError,
) -> Packed:
    """Write a batch's values where the other process sees them; the block is the caller's to free.

    stack_dim: the axis on which the reader will stack arrays. by_value: classes of `__main__` travel themselves.
    unsendable: the error of an item that cannot be pickled, which is that item's alone. Exceptions and sentinels among
    the values stay in their places. Raises SharedMemoryFull.
    """
    special: dict[int, Fields | str] = {}
    if isinstance(values, Rows) and (source := whole_column(values.whole)) is not None:
        return _Writer(len(values), arena, stack_dim, special).write([source], None)
    ordinary = values if isinstance(values, list) else list(values)
    kinds = set(map(type, ordinary))
    for kind in kinds:
        if issubclass(kind, _SPECIAL):
            special = {place: _told(value) for place, value in enumerate(values) if isinstance(value, _SPECIAL)}
            ordinary = [value for place, value in enumerate(values) if place not in special]
            kinds = set(map(type, ordinary))
            break
    if not ordinary:
        return Packed(len(values), special=special)
    if kinds <= _ATOMS and len(stream := pickle.dumps(ordinary, 5)) <= INLINE:
        return Packed(len(values), None, bytearray(stream), [], stack_dim, [(0, len(stream))], [], special)
    writer = _Writer(len(values), arena, stack_dim, special)
    try:
        if (source := column_of(ordinary, kinds, stack_dim or 0)) is not None:
            return writer.write([source], None)
        if len(kinds) == 1 and holds_arrays(ordinary[0]):
            sources: list[Source] = []
            form = take_apart(ordinary, stack_dim or 0, sources)
            if form is not None:
                return writer.write(sources, Pickled(form, by_value=by_value))
        return writer.write([], Pickled(ordinary, by_value=by_value))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - which of them it was that cannot be sent is found out now
        kept: list[Any] = []
        for place, value in enumerate(values):
            if place not in special:
                reason = _why_not(value, by_value)
                if reason is None:
                    kept.append(value)
                else:
                    special[place] = to_fields(unsendable(reason))
    try:
        return writer.write([], Pickled(kept, by_value=by_value))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - each alone, but not all together: they are told all alike
        fields = to_fields(unsendable(f"cannot send these values between processes: {HandlerError.wrap(error).detail}"))
        return Packed(len(values), special={place: special.get(place, fields) for place in range(len(values))})


def _told(value: Any) -> Fields | str:
    """What stands in the place of a value, as plain data."""
    if isinstance(value, Sentinel):
        name: str = value.value
        return name
    return to_fields(value)


class _Writer:
    """Lays one batch out and writes it."""

    __slots__ = ("_arena", "_dim", "_size", "_special")

    def __init__(self, size: int, arena: Arena, dim: int | None, special: dict[int, Fields | str]) -> None:
        self._size = size
        self._arena = arena
        self._dim = dim
        self._special = special

    def write(self, sources: Sequence[Source], pickled: Pickled | None) -> Packed:
        """Columns first, then what is pickled and then its buffers, each aligned."""
        if not sources and pickled is not None and not pickled.buffers and (end := pickled.nbytes) <= INLINE:
            # The most frequent case after arrays, and one whose time is felt.
            inline = bytearray().join(pickled.chunks)
            return Packed(self._size, None, inline, [], self._dim, [(0, end)], [], self._special, pickled.tensors)
        parts = [source.nbytes for source in sources]
        tensors = any(source.kind == TENSORS for source in sources)
        if pickled is not None:
            parts += [pickled.nbytes, *[buffer.nbytes for buffer in pickled.buffers]]
            tensors = tensors or pickled.tensors
        places = []
        end = 0
        for nbytes in parts:
            places.append((end, nbytes))
            end += -(-nbytes // ALIGNMENT) * ALIGNMENT
        end = sum(places[-1])
        if end <= INLINE:
            inline = bytearray(end)
            columns, rest = _fill(sources, pickled, inline, 0, places)
            return Packed(self._size, None, inline, columns, self._dim, rest[:1], rest[1:], self._special, tensors)
        block = self._arena.allocate(end)
        try:
            columns, rest = _fill(sources, pickled, self._arena.segment.buffer, block.offset, places)
        except BaseException:
            self._arena.free(block.offset)
            raise
        return Packed(self._size, block, None, columns, self._dim, rest[:1], rest[1:], self._special, tensors)


Places = list[tuple[int, int]]


def _fill(
    sources: Sequence[Source], pickled: Pickled | None, room: Any, start: int, places: Places
) -> tuple[list[Column], Places]:
    """Write it all to where it belongs; the columns, and the places of the rest."""
    columns = [source.write(room, start, place[0]) for source, place in zip(sources, places, strict=False)]
    if pickled is None:
        return columns, []
    rest = places[len(sources) :]
    _write_pickled(pickled, room, start, rest)
    return columns, rest


def _write_pickled(pickled: Pickled, room: Any, start: int, places: Sequence[tuple[int, int]]) -> None:
    with memoryview(room) as view:
        position = start + places[0][0]
        for chunk in pickled.chunks:
            view[position : position + len(chunk)] = chunk
            position += len(chunk)
        for buffer, (offset, nbytes) in zip(pickled.buffers, places[1:], strict=True):
            view[start + offset : start + offset + nbytes] = buffer


def _why_not(value: object, by_value: bool) -> str | None:
    """Why a value cannot be sent, if it cannot."""
    try:
        Pickled(value, by_value=by_value)
    except Exception as error:  # noqa: BLE001 - a class of the user's may raise anything
        kind = type(value)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        return f"cannot send a value of type {name} between processes: {HandlerError.wrap(error).detail}"
    return None


# ---------------------------------------------------------------------- unpacking


def unpack(packed: Packed, segment: Segment, *, copy: bool = False) -> Unpacked:
    """The values again. With `copy` they outlive the block; otherwise arrays lie in it, and may be written to.

    Raises ValueError if the memory is not there, TypeError if this process cannot make such values.
    """
    if packed.tensors and not copy:
        import torch  # noqa: F401 - a worker gets tensors; who only passes them on may do with arrays
    buffer: Any = packed.inline
    start = 0
    if packed.block is not None:
        start, size = packed.block
        segment.ensure(start + size)
        buffer = segment.buffer
        if copy and (packed.buffers or any(column.kind != BYTES for column in packed.columns)):
            # All at once, and not by NumPy, which would give up the GIL and wait for it again beside a busy thread.
            with memoryview(buffer) as view:
                buffer, start = bytearray(view[start : start + size]), 0
    form: Form | None = _WHOLE if packed.columns else None
    values: list[Any] | None = None if packed.columns else []
    if packed.pickled:
        ((offset, nbytes),) = packed.pickled
        buffers = [np.ndarray(length, np.uint8, buffer, start + place) for place, length in packed.buffers]
        try:
            loaded = loads(memoryview(buffer)[start + offset : start + offset + nbytes], buffers)
        except Exception as error:
            raise TypeError(
                f"the batch's values cannot be made again in this process: {HandlerError.wrap(error).detail}; "
                "define their classes in a module that both processes import"
            ) from error
        form, values = (loaded, None) if packed.columns else (None, loaded)
    wholes = [read_stacked(column, buffer, start) for column in packed.columns]
    return Unpacked(packed, form, wholes, values)


def _special_value(special: Fields | str) -> TidegateError | Sentinel:
    return Sentinel(special) if isinstance(special, str) else from_fields(special)
