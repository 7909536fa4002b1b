"""A batch's values into memory that another process sees, and out of it.

Arrays are stacked straight into it and not copied again; the rest is pickled around them. A batch is one block of
memory, or if it is small part of the frame that tells of it. What `unpack` gives lies in the block, unless it was
asked to copy, and is valid until the block is freed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from tidegate.collate import group_of
from tidegate.media import EncodeError
from tidegate.portable import Fields, from_fields, to_fields
from tidegate.sentinels import Sentinel
from tidegate.workers.pickling import Pickled, loads
from tidegate.workers.shared_memory import ALIGNMENT, Arena, Segment
from tidegate.workers.stacking import (
    SCALARS,
    TENSORS,
    Column,
    Form,
    Source,
    column_of,
    read_items,
    read_stacked,
    rows,
    stacked,
    take_apart,
)
from tidegate_batching import TidegateError

__all__ = ["Packed", "Unpacked", "pack", "unpack"]

INLINE = 8 * 1024
"""Bytes up to which a batch travels in its frame: giving a block back takes longer than copying so few twice more."""

WHOLE: Form = ("column", 0)


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
    pickled: tuple[int, int] | None = None
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
    ordinary = values
    if any(issubclass(kind, (BaseException, Sentinel)) for kind in set(map(type, values))):
        for place, value in enumerate(values):
            if isinstance(value, Sentinel):
                special[place] = value.value
            elif isinstance(value, BaseException):
                special[place] = to_fields(value)
        ordinary = [value for place, value in enumerate(values) if place not in special]
    if not ordinary:
        return Packed(len(values), special=special)
    writer = _Writer(len(values), arena, stack_dim, by_value)
    try:
        return writer.stacked(ordinary, special) or writer.pickled(ordinary, special)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - which of them it was that cannot be sent is found out now
        places = [place for place in range(len(values)) if place not in special]
        kept = []
        for place, value in zip(places, ordinary, strict=True):
            reason = _cannot_send(value, by_value)
            if reason is None:
                kept.append(value)
            else:
                special[place] = to_fields(unsendable(reason))
        return writer.pickled(kept, special) if kept else Packed(len(values), special=special)


class _Writer:
    """Lays one batch out and writes it."""

    def __init__(self, size: int, arena: Arena, dim: int | None, by_value: bool) -> None:
        self._size = size
        self._arena = arena
        self._dim = dim
        self._by_value = by_value

    def stacked(self, values: Sequence[Any], special: dict[int, Fields | str]) -> Packed | None:
        """The values as columns; None if they are not alike."""
        axis = self._dim or 0
        if (source := column_of(values, axis)) is not None:
            return self._write([source], None, special)
        if group_of(values[0]) is None:
            return None
        sources: list[Source] = []
        form = take_apart(values, axis, sources)
        return form and self._write(sources, Pickled(form, by_value=self._by_value), special)

    def pickled(self, values: Sequence[Any], special: dict[int, Fields | str]) -> Packed:
        """The values as they are, arrays apart."""
        return self._write([], Pickled(list(values), by_value=self._by_value), special)

    def _write(self, sources: list[Source], pickled: Pickled | None, special: dict[int, Fields | str]) -> Packed:
        end = 0
        places: list[tuple[int, int]] = []
        parts = [source.nbytes for source in sources]
        if pickled is not None:
            parts += [pickled.nbytes, *(buffer.nbytes for buffer in pickled.buffers)]
        for nbytes in parts:
            places.append((end, nbytes))
            end += -(-nbytes // ALIGNMENT) * ALIGNMENT
        end = sum(places[-1])
        block = None if end <= INLINE else self._arena.allocate(end)
        try:
            room, start = (bytearray(end), 0) if block is None else (self._arena.segment.buffer, block.offset)
            columns = [source.write(room, start, offset) for source, (offset, _) in zip(sources, places, strict=False)]
            rest = places[len(sources) :]
            if pickled is not None:
                _write_pickled(pickled, room, start, rest)
        except BaseException:
            if block is not None:
                self._arena.free(block.offset)
            raise
        return Packed(
            self._size,
            block=None if block is None else (block.offset, block.size),
            inline=room if block is None else None,
            columns=columns,
            dim=self._dim,
            pickled=rest[0] if rest else None,
            buffers=rest[1:],
            special=special,
            tensors=pickled is not None and pickled.tensors or any(source.kind == TENSORS for source in sources),
        )


def _write_pickled(pickled: Pickled, room: Any, start: int, places: Sequence[tuple[int, int]]) -> None:
    with memoryview(room) as view:
        position = start + places[0][0]
        for chunk in pickled.chunks:
            view[position : position + len(chunk)] = chunk
            position += len(chunk)
        for buffer, (offset, nbytes) in zip(pickled.buffers, places[1:], strict=True):
            view[start + offset : start + offset + nbytes] = buffer


def _cannot_send(value: object, by_value: bool) -> str | None:
    """Why a value cannot be pickled, if it cannot."""
    try:
        Pickled(value, by_value=by_value)
    except Exception as error:  # noqa: BLE001 - a class of the user's may raise anything
        kind = type(value)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        return f"cannot send a value of type {name} between processes: {type(error).__name__}: {error}"
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
    else:
        copy = False  # the frame is nobody else's
    form, values = WHOLE, None
    if packed.pickled is not None:
        offset, nbytes = packed.pickled
        buffers = [np.ndarray(length, np.uint8, buffer, start + place) for place, length in packed.buffers]
        if copy:
            buffers = [part.copy() for part in buffers]
        try:
            loaded = loads(memoryview(buffer)[start + offset : start + offset + nbytes], buffers)
        except Exception as error:
            raise TypeError(
                f"the batch's values cannot be made again in this process: {type(error).__name__}: {error}; "
                "define their classes in a module that both processes import"
            ) from error
        form, values = (loaded, None) if packed.columns else (None, loaded)
    elif not packed.columns:
        form, values = None, []
    wholes = [read_stacked(column, buffer, start, copy=copy) for column in packed.columns]
    return Unpacked(packed, form, wholes, values)


def _special_value(special: Fields | str) -> TidegateError | Sentinel:
    return Sentinel(special) if isinstance(special, str) else from_fields(special)
