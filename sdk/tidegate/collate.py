"""Items to a batch and a batch's output back to one output per item, for NumPy arrays and torch tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["Rows", "group_of", "is_tensor", "rows_of", "split", "stack"]


def is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """Whether this is a torch tensor, without importing torch: if it is not loaded, nothing is one."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def group_of(value: Any) -> Hashable:
    """What must be equal for two items to be stacked: the shape and dtype of every array in the structure.

    Example:
        >>> group_of(np.zeros((2, 3), "float32")) == group_of(np.ones((2, 3), "float32"))
        True
        >>> group_of("any text") is None
        True
    """
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str
    if is_tensor(value):
        return value.shape, value.dtype
    if isinstance(value, dict):
        leaves = tuple((key, group_of(leaf)) for key, leaf in value.items())
        return leaves if any(leaf is not None for _, leaf in leaves) else None
    if isinstance(value, tuple):
        shapes = tuple(map(group_of, value))
        return shapes if any(shape is not None for shape in shapes) else None
    return None


def stack(items: Sequence[Any], dim: int = 0) -> Any:
    """One batch from equal items: arrays are stacked on a new axis `dim`, tuples and dicts leaf by leaf, the rest listed.

    Example:
        >>> stack([np.zeros((2, 3)), np.ones((2, 3))], dim=1).shape
        (2, 2, 3)
    """
    first = items[0]
    if isinstance(first, np.ndarray):
        return np.stack(items, axis=dim)
    if is_tensor(first):
        return sys.modules["torch"].stack(list(items), dim=dim)
    # A structure without an array in it stays a list of the caller's own objects.
    if group_of(first) is None:
        return list(items)
    if isinstance(first, dict):
        return {key: stack([item[key] for item in items], dim) for key in first}
    columns = [stack(column, dim) for column in zip(*items, strict=True)]
    return type(first)(*columns) if hasattr(first, "_fields") else tuple(columns)


def split(output: Any, dim: int = 0) -> list[Any]:
    """One output per item: arrays are cut along `dim`, a list has one element per item, tuples and dicts leaf by leaf.

    Raises TypeError, naming the type, for anything else.

    Example:
        >>> split({"label": [3, 5], "score": np.array([0.9, 0.8])})
        [{'label': 3, 'score': np.float64(0.9)}, {'label': 5, 'score': np.float64(0.8)}]
    """
    if isinstance(output, list):
        return output
    if isinstance(output, np.ndarray) or is_tensor(output):
        return list(rows_of(output, dim))
    if isinstance(output, dict) and output:
        columns = _columns(list(output.items()), dim, lambda key: f"[{key!r}]")
        return [dict(zip(output, row, strict=True)) for row in zip(*columns, strict=True)]
    if isinstance(output, tuple) and output:
        columns = _columns(list(enumerate(output)), dim, lambda index: f"[{index}]")
        rebuild: Any = type(output)._make if hasattr(output, "_make") else tuple
        return [rebuild(row) for row in zip(*columns, strict=True)]
    raise TypeError(
        f"cannot split {_describe(output)} into one output per item: "
        "return an array, a tensor, a list, a tuple or dict of those, or give unbatch="
    )


class Rows(Sequence[Any]):
    """A batch's output, one row per item, cut up only when somebody looks at a single one.

    whole: an array or a tensor on the host, the items on its first axis. It may still be the function's own memory: it
    is copied when it is cut, and whoever takes it whole does so before the function runs again.
    """

    __slots__ = ("_rows", "whole")

    def __init__(self, whole: Any) -> None:
        self.whole = whole
        self._rows: list[Any] | None = None

    def __len__(self) -> int:
        return int(self.whole.shape[0])  # a tensor's own len() takes ten times as long

    def __getitem__(self, index: Any) -> Any:
        return self._cut()[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._cut())

    def _cut(self) -> list[Any]:
        if self._rows is None:
            # Copied once per batch: a function may use its output buffer again for the next one.
            self._rows = list(self.whole.clone().unbind(0) if is_tensor(self.whole) else self.whole.copy())
        return self._rows


def rows_of(output: Any, dim: int = 0) -> Sequence[Any]:
    """`split`, but an array or a tensor stays whole until it is looked at: copied to the host, and not yet cut."""
    if isinstance(output, np.ndarray):
        _has_axis(output.ndim, dim)
        return Rows(np.moveaxis(output, dim, 0))
    if is_tensor(output):
        _has_axis(output.ndim, dim)
        host = output.detach().cpu()
        return Rows(host.movedim(dim, 0) if dim else host)
    return split(output, dim)


def _columns(leaves: list[tuple[Any, Any]], dim: int, label: Callable[[Any], str]) -> list[list[Any]]:
    columns = [split(leaf, dim) for _, leaf in leaves]
    lengths = {len(column) for column in columns}
    if len(lengths) > 1:
        found = ", ".join(f"output{label(key)}: {len(c)}" for (key, _), c in zip(leaves, columns, strict=True))
        raise ValueError(f"the parts of the output disagree about the number of items: {found}")
    return columns


def _has_axis(axes: int, dim: int) -> None:
    if not -axes <= dim < axes:
        raise ValueError(f"the output has {axes} axes and none is batch_dim={dim}: return one row per item")


def _describe(output: object) -> str:
    kind = type(output)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"an empty {name}" if isinstance(output, (dict, tuple)) else f"a value of type {name}"
