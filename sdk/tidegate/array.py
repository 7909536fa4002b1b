"""`Array`: what an annotation may promise about an array's dtype and shape."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Array"]


@dataclass(frozen=True, slots=True)
class Array:
    """The dtype and shape of one item, for `Annotated[np.ndarray, Array("float32", (28, 28))]`.

    dtype: a NumPy dtype name; numbers are converted to it. None takes what arrives.
    shape: one entry per axis of a single item, without the batch's axis; None in a place allows any length there.

    Raises TypeError or ValueError, naming the field, the value and the fix.

    Example:
        >>> Array("float32", (None, 3)).problem(np.zeros((5, 2), "float32"))
        'expected an array of shape (*, 3), got (5, 2)'
    """

    dtype: str | None = None
    shape: tuple[int | None, ...] | None = None

    def __post_init__(self) -> None:
        if self.dtype is not None:
            try:
                holds_numbers = np.dtype(self.dtype).kind in "biuf"
            except TypeError:
                holds_numbers = False
            if not holds_numbers:
                raise TypeError(
                    f"Array(dtype={self.dtype!r}): not a NumPy dtype of numbers; write one such as 'float32' or 'int64'"
                )
        if self.shape is not None and not (
            isinstance(self.shape, tuple)
            and all(n is None or (isinstance(n, int) and not isinstance(n, bool) and n >= 0) for n in self.shape)
        ):
            raise ValueError(f"Array(shape={self.shape!r}): give a tuple of lengths, None where any length will do")

    def problem(self, array: np.ndarray) -> str | None:
        """What is wrong with this array's shape, or None."""
        if self.shape is None:
            return None
        if array.ndim == len(self.shape) and all(
            want is None or want == got for want, got in zip(self.shape, array.shape, strict=True)
        ):
            return None
        wanted = ", ".join("*" if n is None else str(n) for n in self.shape) + ("," if len(self.shape) == 1 else "")
        return f"expected an array of shape ({wanted}), got {array.shape}"
