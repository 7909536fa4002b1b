"""`Array`: what an annotation may promise about an array's dtype and shape."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Array"]


@dataclass(frozen=True, slots=True)
class Array:
    """The dtype and shape of one item, for `Annotated[np.ndarray, Array("float32", (28, 28))]`.

    dtype: a NumPy dtype name, or "bfloat16" for tensors; numbers are converted to it. None takes what arrives.
    shape: one entry per axis of a single item, without the batch's axis; None in a place allows any length there.

    Raises TypeError or ValueError, naming the field, the value and the fix.

    Example:
        >>> Array("float32", (None, 3)).problem(np.zeros((5, 2), "float32"))
        'expected an array of shape (*, 3), got (5, 2)'
    """

    dtype: str | None = None
    shape: tuple[int | None, ...] | None = None

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype != "bfloat16":
            try:
                kind: str = np.dtype(self.dtype).kind
            except TypeError:
                kind = ""
            if kind == "c":
                raise TypeError(
                    f"Array(dtype={self.dtype!r}): complex numbers have no form in JSON; take the real and the "
                    "imaginary parts as a last axis of length 2, of dtype 'float32' or 'float64'"
                )
            if kind not in ("b", "i", "u", "f"):
                raise TypeError(
                    f"Array(dtype={self.dtype!r}): not a NumPy dtype of numbers; write one such as 'float32' or 'int64'"
                )
        if self.shape is not None and not (
            isinstance(self.shape, tuple)
            and all(n is None or (isinstance(n, int) and not isinstance(n, bool) and n >= 0) for n in self.shape)
        ):
            raise ValueError(f"Array(shape={self.shape!r}): give a tuple of lengths, None where any length will do")

    @property
    def nbytes(self) -> int | None:
        """How many bytes the array takes; None where dtype or shape leave that open.

        Example:
            >>> Array("float32", (224, 224, 3)).nbytes
            602112
        """
        # NumPy has no bfloat16, so nothing here can be laid over such bytes.
        if self.dtype in (None, "bfloat16") or self.shape is None:
            return None
        lengths = [n for n in self.shape if n is not None]
        return math.prod(lengths) * np.dtype(self.dtype).itemsize if len(lengths) == len(self.shape) else None

    @property
    def wanted_shape(self) -> str:
        """The shape as an error shows it.

        Example:
            >>> Array(shape=(None, 3)).wanted_shape
            '(*, 3)'
        """
        shape = self.shape or ()
        return f"({', '.join('*' if n is None else str(n) for n in shape)}{',' if len(shape) == 1 else ''})"

    def problem(self, array: Any) -> str | None:
        """What is wrong with this array's or tensor's shape, or None."""
        if self.shape is None:
            return None
        if array.ndim == len(self.shape) and all(
            want is None or want == got for want, got in zip(self.shape, array.shape, strict=True)
        ):
            return None
        return f"expected an array of shape {self.wanted_shape}, got {tuple(array.shape)}"
