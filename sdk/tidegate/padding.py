"""Ragged items to one array and back, for handlers that take waves, texts or boxes of unequal length."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from tidegate.collate import is_tensor

__all__ = ["pad", "unpad"]


def pad(items: Sequence[Any], dim: int = 0, value: float = 0) -> tuple[Any, Any]:
    """Stack arrays that differ in length along one axis, filling the shorter ones up.

    items: NumPy arrays or torch tensors, equal in dtype and in every axis but `dim`. value: what fills the gaps.
    Returns the batch, of shape (N, ...) with the longest length along `dim` of each item, and the N lengths: an int64
    array, or a tensor on the items' device. As `batch=pad` it gives the function that pair.

    Raises ValueError that names the item which does not fit.

    Example:
        >>> batch, lengths = pad([np.array([1, 2, 3]), np.array([4])])
        >>> batch.tolist(), lengths.tolist()
        ([[1, 2, 3], [4, 0, 0]], [3, 1])
    """
    first = items[0]
    tensors = is_tensor(first)
    axis = dim + first.ndim if dim < 0 else dim
    if not 0 <= axis < first.ndim:
        raise ValueError(f"pad(dim={dim}): the items have {first.ndim} axes")
    rest = _without(first.shape, axis)
    for i, item in enumerate(items):
        if item.ndim != first.ndim or _without(item.shape, axis) != rest or item.dtype != first.dtype:
            raise ValueError(
                f"pad: item {i} has shape {tuple(item.shape)} and dtype {item.dtype}, item 0 {tuple(first.shape)} and "
                f"{first.dtype}: only axis {axis} may differ"
            )
    lengths = [int(item.shape[axis]) for item in items]
    shape = (len(items), *first.shape[:axis], max(lengths), *first.shape[axis + 1 :])
    before = (slice(None),) * axis
    batch: Any
    if tensors:
        torch = sys.modules["torch"]
        batch = torch.full(shape, value, dtype=first.dtype, device=first.device)
    else:
        batch = np.full(shape, value, dtype=first.dtype)
    for row, item, length in zip(batch, items, lengths, strict=True):
        row[(*before, slice(length))] = item
    if tensors:
        return batch, sys.modules["torch"].tensor(lengths, device=first.device)
    return batch, np.array(lengths)


def unpad(batch: Any, lengths: Any, dim: int = 0) -> list[Any]:
    """The items of a padded batch without their padding, the reverse of `pad`.

    batch: (N, ...). lengths: N of them. dim: the padded axis of one item.

    Raises ValueError if there are not as many lengths as items.

    Example:
        >>> [item.tolist() for item in unpad(np.array([[1, 2, 3], [4, 0, 0]]), [3, 1])]
        [[1, 2, 3], [4]]
    """
    if len(batch) != len(lengths):
        raise ValueError(f"unpad: {len(batch)} items and {len(lengths)} lengths")
    before = (slice(None),) * (dim + batch.ndim - 1 if dim < 0 else dim)
    return [row[(*before, slice(int(length)))] for row, length in zip(batch, lengths, strict=True)]


def _without(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])
