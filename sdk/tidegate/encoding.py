"""Outputs to bytes: arrays and NumPy's scalars at any depth of what msgspec writes."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import orjson

from tidegate.array_layout import from_tensor, to_map, to_npy
from tidegate.collate import is_tensor
from tidegate.media import EncodeError

__all__ = ["is_array", "write_json", "write_msgpack", "write_npy"]

# NumPy's letters for booleans, integers and floats of up to 64 bits.
_PLAIN = "?bhilqBHILQefd"
_CANNOT = (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError, RuntimeError)


def is_array(value: Any) -> bool:
    """Whether this is NumPy's or torch's; their scalars count as arrays without axes."""
    return isinstance(value, (np.ndarray, np.generic)) or is_tensor(value)


def write_json(value: Any, *, allow_nan: bool = False) -> bytes:
    """JSON, arrays as nested lists. NaN, infinity and NaT raise EncodeError, or become null with `allow_nan`.

    Example:
        >>> write_json({"scores": np.array([0.25, 0.5], "float16"), "label": np.int64(3)})
        b'{"scores":[0.25,0.5],"label":3}'
    """
    try:
        # msgspec and orjson both write null for what is no number in JSON, so it is looked for only where there is one.
        # Searching for one letter first is a hundred times as fast, and digits hold none.
        if type(value) is np.ndarray and value.dtype.char in _PLAIN:
            body = _numbers(value)
        else:
            body = msgspec.json.encode(value, enc_hook=_json_form)
        if not allow_nan and b"u" in body and b"null" in body:
            _refuse_non_finite(value)
    except _CANNOT as error:
        raise EncodeError(f"the output cannot be written as JSON: {error}") from error
    return body


def write_msgpack(value: Any) -> bytes:
    """msgpack, arrays as the map `{"dtype", "shape", "data"}`."""
    try:
        return msgspec.msgpack.encode(value, enc_hook=_msgpack_form)
    except _CANNOT as error:
        raise EncodeError(f"the output cannot be written as msgpack: {error}") from error


def write_npy(value: Any) -> bytes:
    """An .npy file from an array, a tensor or a NumPy scalar."""
    try:
        return to_npy(_array(value))
    except _CANNOT as error:
        raise EncodeError(f"the output cannot be written as .npy: {error}") from error


def _array(value: Any) -> np.ndarray:
    if is_tensor(value):
        return from_tensor(value)
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        if array.dtype.char != "g":
            return array
        # No format of these knows long doubles.
        with np.errstate(over="ignore"):
            return array.astype("float64")
    raise TypeError(f"there is no form for {type(value).__module__}.{type(value).__qualname__}")


def _json_form(value: Any) -> Any:
    """What msgspec writes in the place of something that it does not know."""
    # A scalar may be a dict's key, where nothing but a plain number will do; a float32 of 0.1 is to read 0.1.
    if isinstance(value, np.generic) and (value.dtype.kind in "biu" or isinstance(value, float)):
        return value.item()
    array = _array(value)
    return msgspec.Raw(_numbers(array)) if array.dtype.kind in "biuf" else _objects(array)


def _numbers(array: np.ndarray) -> bytes:
    if not (array.dtype.isnative and array.flags.c_contiguous):
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    return orjson.dumps(array if array.ndim else array[()], option=orjson.OPT_SERIALIZE_NUMPY)


def _objects(array: np.ndarray) -> Any:
    """An array of something else than numbers as lists of what msgspec may know."""
    if array.dtype.kind == "c":
        raise TypeError("complex numbers have no form in it: return the real and the imaginary parts as two arrays")
    if array.dtype.kind == "M":
        texts = np.array(np.datetime_as_string(array), object)
        texts[np.isnat(array)] = None
        return texts.tolist()
    if array.dtype.kind == "m":
        return array.astype("timedelta64[us]").tolist()
    return array.tolist()


def _msgpack_form(value: Any) -> Any:
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return float(value) if value.dtype.kind == "f" else value.item()
    array = _array(value)
    if array.dtype.kind not in "biuf":
        return _objects(array)
    return to_map(array)


def _refuse_non_finite(value: Any) -> None:
    """Raise ValueError with the path to the first NaN or infinity, if there is one."""
    pending: list[tuple[Any, Any]] = [((), msgspec.to_builtins(value, enc_hook=_finite_form))]
    while pending:
        path, leaf = pending.pop()
        if isinstance(leaf, float) and not math.isfinite(leaf):
            raise ValueError(f"there is NaN or infinity at {_shown(path)}, and JSON has no such number")
        if isinstance(leaf, dict):
            pending += [((path, f".{key}"), one) for key, one in leaf.items()]
        elif isinstance(leaf, (list, tuple)):
            pending += [((path, f"[{index}]"), one) for index, one in enumerate(leaf)]


def _finite_form(value: Any) -> Any:
    """NaN for an array that is not finite throughout, None for one that is."""
    array = _array(value)
    if array.dtype.kind in "fmM":
        return None if np.isfinite(array).all() else math.nan
    return array.tolist() if array.dtype.kind == "O" else None


def _shown(path: Any) -> str:
    steps = []
    while path:
        path, step = path
        steps.append(step)
    return "`$" + "".join(reversed(steps)) + "`"
