"""Bytes to a handler's input and its output to bytes, driven by the handler's annotation."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin

import msgspec
import numpy as np
import orjson

from tidegate.array import Array
from tidegate.collate import is_tensor
from tidegate_batching import InvalidInput, TidegateError

__all__ = ["Codec", "EncodeError", "MalformedBody"]

_NON_FINITE = "it holds NaN or infinity, and JSON has no such number"


class MalformedBody(InvalidInput):
    """The body cannot be parsed."""

    code = "malformed-body"
    status = 400


class EncodeError(TidegateError):
    """The handler's output cannot be written as JSON."""

    code = "unencodable-output"


class Codec:
    """How one handler's inputs are read and its outputs written.

    annotation: the type of one item, `inspect.Parameter.empty` for any JSON value.
    """

    def __init__(self, annotation: Any = inspect.Parameter.empty) -> None:
        base, array = _unwrap(annotation)
        self.array = array if _is_array_type(base) else None
        self._to_item: Callable[[Any], Any] | None = None
        wanted: Any = Any
        if _is_array_type(base):
            self.array = array or Array()
            self._to_item = self._to_array if (get_origin(base) or base) is np.ndarray else self._to_tensor
        elif base is not inspect.Parameter.empty:
            wanted = base
        try:
            self._decoder = msgspec.json.Decoder(wanted)
        except TypeError as error:
            raise TypeError(f"annotation {annotation!r}: {error}; annotate with a type that msgspec reads") from None
        self.annotation = base

    def decode_json(self, body: bytes) -> Any:
        """Read one item; MalformedBody says where parsing stopped, InvalidInput which field is wrong and why."""
        try:
            value = self._decoder.decode(body)
        except msgspec.ValidationError as error:
            raise InvalidInput(str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise MalformedBody(_why_malformed(body, error)) from None
        return value if self._to_item is None else self._to_item(value)

    def encode_json(self, value: Any) -> bytes:
        """Write one output; arrays become nested lists."""
        try:
            body = msgspec.json.encode(value, enc_hook=_encode_array)
            # msgspec writes a Python float's NaN as null, so it is looked for only where there is one.
            if b"null" in body and _holds_non_finite(value):
                raise ValueError(_NON_FINITE)
        except (TypeError, ValueError, RecursionError) as error:
            raise EncodeError(f"the output cannot be written as JSON: {error}") from error
        return body

    def example(self) -> Any:
        """A small input that decodes, for documentation; None where only the author could give one."""
        if self.array is not None:
            shape = (3,) if self.array.shape is None else tuple(3 if n is None else n for n in self.array.shape)
            array = np.zeros(shape, self.array.dtype or "float64")
            return array.tolist() if array.size <= 256 else None
        simple: dict[Any, Any] = {str: "hello", int: 1, float: 0.5, bool: True}
        return simple.get(self.annotation)

    def _to_array(self, value: Any) -> np.ndarray:
        assert self.array is not None
        try:
            array = np.asarray(value)
        except ValueError:
            raise InvalidInput("expected an array, got nested lists of unequal lengths") from None
        if array.dtype.kind not in "biuf":
            raise InvalidInput(f"expected an array of numbers, got {_found(value)}")
        problem = self.array.problem(array)
        if problem is not None:
            raise InvalidInput(problem)
        if self.array.dtype is None:
            return array
        wanted = np.dtype(self.array.dtype)
        if array.dtype.kind == "f" and wanted.kind in "biu":
            raise InvalidInput(f"expected whole numbers ({wanted}), got numbers with a decimal point")
        with np.errstate(over="ignore"):
            converted = array.astype(wanted, copy=False)
        # A float may be rounded, but not to infinity.
        fits = np.isfinite(converted).all() if wanted.kind == "f" else np.array_equal(converted, array)
        if not fits:
            raise InvalidInput(f"a number does not fit into {wanted}")
        return converted

    def _to_tensor(self, value: Any) -> Any:
        import torch

        array = self._to_array(value)
        tensor = torch.from_numpy(array)
        is_default_float = self.array is not None and self.array.dtype is None and array.dtype.kind == "f"
        return tensor.to(torch.get_default_dtype()) if is_default_float else tensor


def _unwrap(annotation: Any) -> tuple[Any, Array | None]:
    if get_origin(annotation) is Annotated:
        base, *extras = get_args(annotation)
        array = next((extra for extra in extras if isinstance(extra, Array)), None)
        # Other metadata (msgspec.Meta) stays with the type.
        return (base if _is_array_type(base) else annotation), array
    return annotation, None


def _is_array_type(kind: Any) -> bool:
    kind = get_origin(kind) or kind
    return kind is np.ndarray or (getattr(kind, "__module__", None) == "torch" and kind.__name__ == "Tensor")


def _why_malformed(body: bytes, error: Exception) -> str:
    if not body.strip():
        return "the body is empty: send JSON"
    if isinstance(error, RecursionError):
        return "the JSON is nested too deeply"
    return str(error)


def _found(value: Any) -> str:
    """What the first leaf that is no number is."""
    kinds = {str: "text", dict: "an object", type(None): "null"}
    pending = [value]
    while pending:
        leaf = pending.pop()
        if isinstance(leaf, list):
            pending.extend(reversed(leaf))
        elif type(leaf) in kinds:
            return kinds[type(leaf)]
    return "a whole number of more than 64 bits"


def _holds_non_finite(value: Any) -> bool:
    """Whether a Python float in the structure is NaN or infinite; arrays have been looked at by then."""
    pending = [msgspec.to_builtins(value, enc_hook=lambda _: None)]
    while pending:
        leaf = pending.pop()
        if isinstance(leaf, float) and not math.isfinite(leaf):
            return True
        if isinstance(leaf, (list, tuple, dict)):
            pending.extend(leaf.values() if isinstance(leaf, dict) else leaf)
    return False


def _encode_array(value: Any) -> Any:
    if is_tensor(value):
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    if isinstance(value, np.generic):
        if value.dtype.kind in "biu":  # may be a dict's key, where nothing but a plain number will do
            return value.item()
        value = np.asarray(value)
    if not isinstance(value, np.ndarray):
        raise TypeError(f"no JSON form for {type(value).__module__}.{type(value).__qualname__}")
    if value.dtype.kind not in "biuf":
        return value.tolist()
    if value.dtype.itemsize > 8:
        with np.errstate(over="ignore"):
            value = value.astype("float64")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise ValueError(_NON_FINITE)
    native = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("="))
    # ascontiguousarray makes a scalar one-dimensional.
    return msgspec.Raw(
        orjson.dumps(native.reshape(value.shape) if value.ndim else native[0], option=orjson.OPT_SERIALIZE_NUMPY)
    )
