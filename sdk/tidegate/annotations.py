"""A handler's annotation in terms that msgspec reads: every array in it becomes a type of its own.

msgspec shows a `dec_hook` only `np.ndarray`, not what `Annotated` says about it. So each array leaf is replaced by a generated
type, by which the hook finds its reader, and each class that holds arrays by a shadow of itself, whose fields become
an object of the user's own class again. Types without an array in them are left as they are.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections import namedtuple
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NotRequired, Protocol, Required, TypedDict, TypeVar, Union, get_args, get_origin

import msgspec
import numpy as np

from tidegate.array import Array
from tidegate.array_layout import Misfit, is_map
from tidegate.array_reader import ArrayReader
from tidegate.collate import is_tensor

__all__ = ["Plan", "array_of", "explain", "fields_of", "without_none"]

_PATH = re.compile(r" - at `\$([^`]*)`$")
_WRAPPERS: tuple[Any, ...] = (Required, NotRequired)


def array_of(annotation: Any) -> tuple[Any, Array] | None:
    """`np.ndarray` or `torch.Tensor`, and what the annotation promises of it; None for anything else.

    Example:
        >>> import numpy.typing as npt
        >>> array_of(npt.NDArray[np.float32])
        (<class 'numpy.ndarray'>, Array(dtype='float32', shape=None))
    """
    metadata: tuple[Any, ...] = ()
    if get_origin(annotation) is Annotated:
        annotation, *metadata = get_args(annotation)
    kind = get_origin(annotation) or annotation
    # Named, so that torch is not imported to find out that it is not meant.
    is_torch = getattr(kind, "__module__", None) == "torch" and kind.__name__ == "Tensor"
    if kind is not np.ndarray and not is_torch:
        return None
    promised = next((extra for extra in metadata if isinstance(extra, Array)), Array())
    if promised.dtype is None:
        promised = dataclasses.replace(promised, dtype=_dtype_of(annotation))
    return kind, promised


def _dtype_of(annotation: Any) -> str | None:
    """The dtype that `np.ndarray[shape, np.dtype[np.float32]]` names; None for `Any` or an abstract one."""
    arguments = get_args(annotation)
    scalar = get_args(arguments[1])[0] if len(arguments) == 2 and get_args(arguments[1]) else None
    is_concrete = isinstance(scalar, type) and issubclass(scalar, np.generic) and not scalar.__subclasses__()
    return np.dtype(scalar).name if is_concrete else None
