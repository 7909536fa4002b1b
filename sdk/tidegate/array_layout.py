"""How an array lies in bytes: as an .npy file, as the msgpack map, or bare. Nothing here can run code or allocate beyond
what was sent.

In msgpack an array is the map `{"dtype": "float32", "shape": [2, 3], "data": <bin>}`: `data` is in C order and little-endian;
`dtype` is one of NumPy's names for booleans, integers and floats of 16 to 64 bits (`"<f4"` and `">f4"` are read too).
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from tidegate.media import MalformedBody

__all__ = [
    "MAX_AXES",
    "Misfit",
    "from_bytes",
    "from_map",
    "from_npy",
    "from_tensor",
    "is_map",
    "is_npy",
    "to_map",
    "to_npy",
]

_NAMES = [
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    "float16",
    "float32",
    "float64",
]
_DTYPES: dict[str, np.dtype[Any]] = {}
# By `dtype.str`, since `dtype.name` is ten times as slow.
_NAME_OF: dict[str, str] = {}
for _name in _NAMES:
    _little = np.dtype(_name).newbyteorder("<")
    # A single byte has no order: `.str` gives it as "|u1".
    _big = _little.newbyteorder(">")
    _DTYPES |= {_name: _little, _little.str: _little, _big.str: _big}
    _NAME_OF |= {_little.str: _name, _big.str: _name}

_MAP_KEYS = {"dtype", "shape", "data"}
_MAGIC = b"\x93NUMPY"
# NumPy writes 118 bytes for all but absurd shapes.
_MAX_HEADER = 1024
_DESCR = re.compile(rb"""['"]descr['"]\s*:\s*(?:['"]([^'"]*)['"])?""")
_FORTRAN = re.compile(rb"""['"]fortran_order['"]\s*:\s*(True|False)""")
_SHAPE = re.compile(rb"""['"]shape['"]\s*:\s*\(((?:\s*\d+\s*,)*\s*\d*)\s*\)""")
# NumPy's own limit before version 2.
MAX_AXES = 32
# An array without elements costs nothing to send, whatever its other axes claim, and must not cost more to write down.
_MAX_EMPTY = 2**16


class Misfit(ValueError):
    """A value that is not what its place in the input takes; `path` leads from there to the culprit."""

    def __init__(self, text: str, path: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.path = path


def is_map(value: Any) -> bool:
    """Whether this is msgpack's form of an array."""
    return isinstance(value, dict) and value.keys() == _MAP_KEYS and isinstance(value["data"], (bytes, memoryview))


def from_map(value: dict[str, Any]) -> np.ndarray:
    """The array that msgpack's form tells, over the same memory."""
    dtype = _DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if dtype is None:
        raise Misfit(f"{value['dtype']!r:.40} is no dtype that is taken: use one of {', '.join(_NAMES)}", ".dtype")
    shape = value["shape"]
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise Misfit("expected a list of lengths", ".shape")
    return _laid_over(value["data"], 0, dtype, shape)


def to_map(array: np.ndarray) -> dict[str, Any]:
    """msgpack's form of an array, over the same memory where that is in order."""
    name = _NAME_OF.get(array.dtype.str)
    if name is None:
        raise TypeError(f"an array of {array.dtype} has no form in msgpack: return one of {', '.join(_NAMES)}")
    return {"dtype": name, "shape": array.shape, "data": np.ascontiguousarray(array, _DTYPES[name]).data}


def is_npy(body: bytes) -> bool:
    """Whether these bytes begin as an .npy file does."""
    return body.startswith(_MAGIC)


def from_npy(body: bytes) -> np.ndarray:
    """The array in an .npy file (versions 1 to 3), over the same memory.

    The header is read by pattern: NumPy's own reader takes ten times as long, since it evaluates Python.
    """
    if not is_npy(body):
        raise MalformedBody(f"not an .npy file: it begins with {bytes(body[:6])!r} where {_MAGIC!r} belongs (byte 0)")
    if body[6:7] not in (b"\x01", b"\x02", b"\x03"):
        raise MalformedBody("an .npy file of an unknown version (byte 6)")
    start = 10 if body[6] == 1 else 12
    length = int.from_bytes(body[8:start], "little")
    if length > _MAX_HEADER:
        raise MalformedBody(f"the .npy header is {length} bytes long, and {_MAX_HEADER} are taken (byte 8)")
    header = body[start : start + length]
    descr, fortran, shape = (pattern.search(header) for pattern in (_DESCR, _FORTRAN, _SHAPE))
    if len(header) < length or not descr or not fortran or not shape:
        raise MalformedBody(f"the .npy header does not tell descr, fortran_order and shape (byte {start})")
    # A list of fields is no text, and the pattern leaves it out.
    name = (descr[1] or b"record").decode("latin-1")
    if name not in _DTYPES:
        why = ": it holds pickled objects" if name.endswith("O") else ""
        raise Misfit(f"an .npy file of dtype {name!r:.40} is not taken{why}; save one of {', '.join(_NAMES)}")
    lengths = [int(n) for n in shape[1].split(b",") if n.strip()]
    return _laid_over(body, start + length, _DTYPES[name], lengths, "F" if fortran[1] == b"True" else "C")


def to_npy(array: np.ndarray) -> bytes:
    """An .npy file."""
    if array.dtype.hasobject:
        raise TypeError("an array of objects has no form in .npy without pickle: return an array of numbers")
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=False)
    return file.getvalue()


def from_tensor(tensor: Any) -> np.ndarray:
    """A tensor's numbers on the host, over the same memory where they are there; NumPy lacks bfloat16, so that widens."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    is_foreign = str(tensor.dtype).startswith(("torch.bfloat16", "torch.float8"))
    array: np.ndarray = (tensor.float() if is_foreign else tensor).numpy()
    return array


def from_bytes(body: bytes, dtype: np.dtype[Any], shape: Sequence[int]) -> np.ndarray:
    """The array whose elements these bytes are, in C order."""
    return _laid_over(body, 0, dtype, shape)


def _laid_over(
    buffer: bytes | memoryview, offset: int, dtype: np.dtype[Any], shape: Sequence[int], order: Any = "C"
) -> np.ndarray:
    size, expected = len(buffer) - offset, math.prod(shape) * dtype.itemsize
    wanted = f"dtype {dtype}, shape {tuple(shape)}"
    if len(shape) > MAX_AXES:
        raise Misfit(f"expected at most {MAX_AXES} axes, got {len(shape)}")
    if size != expected:
        raise Misfit(f"expected exactly {expected} bytes of data ({wanted}), got {size}")
    if not expected and math.prod(n for n in shape if n) > _MAX_EMPTY:
        raise Misfit(f"an empty array may not claim so many rows ({wanted})")
    return np.ndarray(shape, dtype, buffer, offset, order=order)
