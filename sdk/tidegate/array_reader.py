"""Arrays from whatever a request holds in an array's place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from tidegate.array import Array
from tidegate.array_layout import MAX_AXES, Misfit, from_bytes, from_map, from_npy, from_tensor, is_map, is_npy
from tidegate.collate import is_tensor

__all__ = ["ArrayReader"]

_OPENING = re.compile(rb"[\s\[]*")
_LISTS = {list, tuple}
_END: tuple[int, Any] = (-1, None)
_FOUND = {str: "text", dict: "an object", type(None): "null", bool: "true or false among numbers"}


class ArrayReader:
    """What arrives for one annotation, as an array or tensor of the promised dtype and shape.

    tensor: whether a `torch.Tensor` is wanted; torch is imported when the first one is made.
    writable: False leaves an array over the request's own bytes where it can, for a caller that copies it anyway.

    Raises Misfit, with the place, for what is no such array.

    Example:
        >>> ArrayReader(Array("float32")).read([[1, 2], [3, 4.5]])
        array([[1. , 2. ],
               [3. , 4.5]], dtype=float32)
    """

    def __init__(self, array: Array, *, tensor: bool = False, writable: bool = True) -> None:
        if array.dtype == "bfloat16" and not tensor:
            raise TypeError("Array('bfloat16'): NumPy has no such dtype; annotate a torch.Tensor, or take 'float32'")
        self.array = array
        self.tensor = tensor
        self.writable = writable or tensor
        # Read as float32 first: bfloat16 has its range.
        self.dtype = None if array.dtype is None else np.dtype("float32" if array.dtype == "bfloat16" else array.dtype)
        self._is_float = self.dtype is not None and self.dtype.kind == "f"

    def read(self, value: Any, lax: bool = False) -> Any:
        """An array from a parsed value: numbers in lists, msgpack's map, an array of the caller's own.

        lax: the value stands in a form, where numbers are text and arrays may be files.
        """
        if isinstance(value, (np.ndarray, np.generic)):
            return self._finished(np.asarray(value))
        if is_tensor(value):
            is_wanted = self.array.dtype in (None, str(value.dtype).removeprefix("torch."))
            if self.tensor and is_wanted and self.array.problem(value) is None:
                return value
            return self._finished(from_tensor(value))
        if is_map(value):
            return self._finished(from_map(value))
        if lax:
            value = _from_form(value)
            if isinstance(value, bytes):
                is_raw = self.array.nbytes is not None and not is_npy(value)
                return self.read_raw(value) if is_raw else self.read_npy(value)
        return self._finished(self._from_numbers(value))

    def read_json(self, body: bytes) -> Any:
        """An array from JSON text; raises what msgspec raises where that is none."""
        is_float = self._is_float or b"." in body or b"e" in body or b"E" in body
        opening = _OPENING.match(body)
        depth = opening[0].count(b"[") if opening else 0
        if depth <= MAX_AXES:
            try:
                numbers = _decoder(float if is_float else int, depth).decode(body)
                array = np.array(numbers, np.float64 if is_float else np.int64)
            except (msgspec.DecodeError, ValueError, OverflowError):
                array = None  # read once more below, where there is time to find out why
            if array is not None and array.size:
                return self._finished(array)
        return self.read(msgspec.json.decode(body))

    def read_npy(self, body: bytes) -> Any:
        """An array from an .npy file."""
        return self._finished(from_npy(body))

    def read_raw(self, body: bytes) -> Any:
        """An array from its bare bytes; dtype and shape are promised in full."""
        assert self.dtype is not None
        return self._finished(from_bytes(body, self.dtype, [n or 0 for n in self.array.shape or ()]))

    def _from_numbers(self, value: Any) -> np.ndarray:
        level = [value]
        kinds = set(map(type, level))
        depth = 0
        # NumPy must not see anything but numbers: beside one long text it would pad a million short ones to its length.
        while kinds and kinds <= _LISTS:
            if depth == MAX_AXES:
                raise Misfit(f"expected an array, got lists nested deeper than its {MAX_AXES} possible axes")
            level, depth = list(chain.from_iterable(level)), depth + 1
            kinds = set(map(type, level))
        if kinds != {bool} and not all(
            issubclass(kind, (int, float, np.number)) and kind is not bool for kind in kinds
        ):
            raise _not_numbers(value)
        try:
            if kinds == {bool}:
                return np.array(value, np.bool_)
            is_float = self._is_float or not kinds or not all(issubclass(kind, (int, np.integer)) for kind in kinds)
            return np.array(value, np.float64) if is_float else self._from_integers(value)
        except Misfit:
            raise
        except OverflowError:
            raise Misfit("expected an array of numbers, got one beyond all that float64 holds") from None
        except ValueError:
            raise Misfit("expected an array, got nested lists of unequal lengths") from None

    def _from_integers(self, value: Any) -> np.ndarray:
        try:
            return np.array(value, np.int64)
        except OverflowError:
            lowest, end = (0, 2**64) if self.dtype == np.uint64 else (-(2**63), 2**63)
        number, path = _find(value, lambda number: not lowest <= number < end)
        if number is None:
            return np.array(value, np.uint64)
        if number is _NOT_LOOKED_FOR:
            raise Misfit(f"a number does not fit into {self.dtype or 'int64'}")
        shown = str(number) if abs(number) < 2**64 else f"a whole number of {number.bit_length()} bits"
        if self.dtype is not None:
            raise Misfit(f"{shown} does not fit into {self.dtype}", path)
        raise Misfit(f"expected an array of numbers, got {shown}: annotate Array('uint64') or a dtype of floats", path)

    def _finished(self, array: np.ndarray) -> Any:
        if array.dtype.kind not in "biuf":
            why = ": send the real and the imaginary parts as a last axis" if array.dtype.kind == "c" else ""
            raise Misfit(f"expected an array of numbers, got dtype {array.dtype}{why}")
        problem = self.array.problem(array)
        if problem is not None:
            raise Misfit(problem)
        if self.tensor:
            return self._to_tensor(array)
        array = _converted(array, self.dtype or array.dtype.newbyteorder("="))
        # Unaligned memory is slow in NumPy and undefined behind it.
        return array.copy() if self.writable and not array.flags.writeable or not array.flags.aligned else array

    def _to_tensor(self, array: np.ndarray) -> Any:
        import torch

        name = self.array.dtype
        if name is None and array.dtype == np.float64:
            name = str(torch.get_default_dtype()).removeprefix("torch.")
        wanted = "float32" if name == "bfloat16" else name or array.dtype.newbyteorder("=")
        array = _converted(array, np.dtype(wanted).newbyteorder("="))
        # torch reads memory that is writable, aligned and goes forward.
        array = np.require(array, requirements=["C", "A", "W"]).reshape(array.shape)
        tensor = torch.from_numpy(array)
        if name != "bfloat16":
            return tensor
        rounded = tensor.to(torch.bfloat16)
        _refuse_lost(array, (rounded.isinf() & tensor.isfinite()).numpy(), "bfloat16")
        return rounded


@lru_cache(maxsize=2 * (MAX_AXES + 1))
def _decoder(number: Any, depth: int) -> msgspec.json.Decoder[Any]:
    for _ in range(depth):
        number = list[number]
    return msgspec.json.Decoder(number)


def _converted(array: np.ndarray, wanted: np.dtype[Any]) -> np.ndarray:
    """The same numbers in this dtype; a float may be rounded, nothing else may change."""
    if array.dtype == wanted:
        return array
    if np.can_cast(array.dtype, wanted, "safe"):
        return array.astype(wanted)
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(wanted)
    if wanted.kind != "f":
        _refuse_lost(array, converted != array, str(wanted))
    elif not np.isfinite(converted).all():
        _refuse_lost(array, np.isinf(converted) & np.isfinite(array), str(wanted))
    return converted


def _refuse_lost(array: np.ndarray, lost: np.ndarray, wanted: str) -> None:
    """Raise for the first number that the dtype cannot hold, if there is one."""
    if lost.any():
        place = np.unravel_index(int(lost.argmax()), array.shape)
        number = array[place]
        why = "" if array.dtype.kind != "f" or number == np.trunc(number) else ", which takes whole numbers"
        raise Misfit(f"{number:.6g} does not fit into {wanted}{why}", "".join(f"[{n}]" for n in place))


def _from_form(value: Any) -> Any:
    """What a form's text means in an array's place: JSON, or one number per repetition."""
    if isinstance(value, list):
        return [_from_form(one) for one in value]
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Misfit("expected numbers as JSON, such as [1, 2.5], or an .npy file") from None


def _not_numbers(value: Any) -> Misfit:
    leaf, path = _find(value, lambda leaf: type(leaf) is bool or not isinstance(leaf, (int, float, np.number)))
    if leaf is _NOT_LOOKED_FOR:
        return Misfit("expected an array of numbers: lists of equal lengths with nothing but numbers in them")
    if leaf is None and not path and value is not None:
        return Misfit("expected an array, got nested lists of unequal lengths")
    return Misfit(f"expected an array of numbers, got {_FOUND.get(type(leaf), type(leaf).__name__)}", path)


_MOST_STEPS = 100_000
_NOT_LOOKED_FOR: Any = object()


def _find(value: Any, wanted: Callable[[Any], bool]) -> tuple[Any, str]:
    """The first leaf like this in nested lists and the path to it; None where there is none, _NOT_LOOKED_FOR if that takes long."""
    steps = 0
    pending: list[Iterator[tuple[int, Any]]] = [enumerate((value,))]
    path: list[int] = []
    while pending:
        # Only to word an error: a hostile body must not hold up everybody while its fault is looked for.
        steps += 1
        if steps > _MOST_STEPS:
            return _NOT_LOOKED_FOR, ""
        index, leaf = next(pending[-1], _END)
        path[len(pending) - 1 :] = [index]
        if index < 0:
            pending.pop()
        elif type(leaf) in _LISTS:
            pending.append(enumerate(leaf))
        elif wanted(leaf):
            return leaf, "".join(f"[{n}]" for n in path[1:])
    return None, ""
