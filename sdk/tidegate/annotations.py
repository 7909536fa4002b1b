"""What annotations say: which of them are arrays, which have fields, which hold an array somewhere inside."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NamedTuple, NotRequired, Required, TypeVar, Union, get_args, get_origin

import msgspec
import numpy as np

from tidegate.array import Array

__all__ = [
    "Field",
    "array_of",
    "fields_of",
    "holds_array",
    "holds_object",
    "is_union",
    "meaning_of",
    "members_of",
    "stripped",
]


class Field(NamedTuple):
    """One field of a class: its name there, its name on the wire, its type, and how msgspec declares its default."""

    name: str
    wire_name: str
    type: Any
    default: dict[str, Any]


def array_of(annotation: Any) -> tuple[Any, Array] | None:
    """`np.ndarray` or `torch.Tensor`, and what the annotation promises of it; None for anything else.

    Example:
        >>> import numpy.typing as npt
        >>> array_of(npt.NDArray[np.float32])
        (<class 'numpy.ndarray'>, Array(dtype='float32', shape=None))
    """
    base, metadata = stripped(annotation)
    promised = next((extra for extra in metadata if isinstance(extra, Array)), None)
    kind = get_origin(base) or base
    # By name, so that torch is not imported to find out that it is not meant.
    is_tensor = getattr(kind, "__module__", None) == "torch" and kind.__name__ == "Tensor"
    if kind is not np.ndarray and not is_tensor:
        if promised is not None:
            raise TypeError(
                f"{promised} describes {base!r}: put it next to the array, as Annotated[np.ndarray, Array(…)]"
            )
        return None
    promised = promised or Array()
    return kind, promised if promised.dtype else dataclasses.replace(promised, dtype=_dtype_of(base))


def _dtype_of(annotation: Any) -> str | None:
    """The dtype that `np.ndarray[shape, np.dtype[np.float32]]` names; None for `Any` or an abstract one."""
    arguments = get_args(annotation)
    scalar = get_args(arguments[1])[0] if len(arguments) == 2 and get_args(arguments[1]) else None
    is_concrete = isinstance(scalar, type) and issubclass(scalar, np.generic) and not scalar.__subclasses__()
    return np.dtype(scalar).name if is_concrete else None


def stripped(annotation: Any) -> tuple[Any, list[Any]]:
    """The type behind `Annotated`, `Required`, a `NewType` or a `type` alias, and all that `Annotated` said about it."""
    metadata: list[Any] = []
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *extras = get_args(annotation)
            metadata += extras
        elif get_origin(annotation) in (Required, NotRequired):
            annotation = get_args(annotation)[0]
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        else:
            return annotation, metadata


def meaning_of(annotation: Any) -> Any:
    """The type behind `Annotated`, `Required`, a `NewType` or a `type` alias."""
    return stripped(annotation)[0]


def is_union(annotation: Any) -> bool:
    """Whether this is `X | Y` or `Union[X, Y]`."""
    return get_origin(annotation) in (Union, types.UnionType)


def members_of(annotation: Any) -> list[Any]:
    """The members of a union but None; of anything else itself."""
    meaning = meaning_of(annotation)
    return [member for member in get_args(meaning) if member is not type(None)] if is_union(meaning) else [annotation]


def holds_array(annotation: Any) -> bool:
    """Whether there is an array anywhere inside."""
    return _holds(annotation, lambda inside: array_of(inside) is not None)


def holds_object(annotation: Any) -> bool:
    """Whether there is a class with fields anywhere inside, one whose values are no dicts."""
    return _holds(annotation, lambda inside: fields_of(inside) is not None and not typing.is_typeddict(inside))


def _holds(annotation: Any, is_meant: Callable[[Any], bool]) -> bool:
    seen: list[Any] = []
    pending = [annotation]
    while pending:
        annotation = pending.pop()
        if is_meant(annotation):
            return True
        annotation = meaning_of(annotation)
        if annotation not in seen:
            seen.append(annotation)
            fields = fields_of(annotation)
            pending += get_args(annotation) if fields is None else [field.type for field in fields]
    return False


def fields_of(annotation: Any) -> list[Field] | None:
    """The fields of a Struct, dataclass, TypedDict or NamedTuple; None for a type of another kind."""
    origin = get_origin(annotation) or annotation
    if not isinstance(origin, type):
        return None
    if issubclass(origin, msgspec.Struct):
        make = _struct_fields
    elif dataclasses.is_dataclass(origin):
        make = _dataclass_fields
    elif typing.is_typeddict(origin):
        make = _typed_dict_fields
    elif issubclass(origin, tuple) and hasattr(origin, "_fields"):
        make = _named_tuple_fields
    else:
        return None
    hints = typing.get_type_hints(origin, include_extras=True)
    given = _type_arguments(annotation)
    return list(make(origin, {name: _filled_in(hint, given) for name, hint in hints.items()}))


def _struct_fields(origin: Any, hints: dict[str, Any]) -> Iterator[Field]:
    for field in msgspec.structs.fields(origin):
        default = _default(field.default, field.default_factory, msgspec.NODEFAULT)
        yield Field(field.name, field.encode_name, hints[field.name], default)


def _dataclass_fields(origin: Any, hints: dict[str, Any]) -> Iterator[Field]:
    for field in dataclasses.fields(origin):
        if field.init:
            default = _default(field.default, field.default_factory, dataclasses.MISSING)
            yield Field(field.name, field.name, hints[field.name], default)


def _typed_dict_fields(origin: Any, hints: dict[str, Any]) -> Iterator[Field]:
    for name, hint in hints.items():
        while get_origin(hint) in (Required, NotRequired):
            hint = get_args(hint)[0]
        yield Field(name, name, hint, {} if name in origin.__required_keys__ else {"default": None})


def _named_tuple_fields(origin: Any, hints: dict[str, Any]) -> Iterator[Field]:
    for name in origin._fields:
        default = {"default": origin._field_defaults[name]} if name in origin._field_defaults else {}
        yield Field(name, name, hints.get(name, Any), default)


def _default(value: Any, factory: Any, missing: Any) -> dict[str, Any]:
    if factory is not missing:
        return {"default_factory": factory}
    if value is missing:
        return {}
    # Only plain ones can be shown in a schema.
    is_plain = value is None or isinstance(value, (str, int, float))
    return {"default": value} if is_plain else {"default_factory": lambda: value}


def _type_arguments(annotation: Any) -> dict[Any, Any]:
    """What the type parameters of a generic class, and of those that it derives from, stand for."""
    origin = get_origin(annotation) or annotation
    given = dict(zip(getattr(origin, "__parameters__", ()), get_args(annotation), strict=False))
    for base in getattr(origin, "__orig_bases__", ()):
        for parameter, argument in _type_arguments(base).items():
            given.setdefault(parameter, _filled_in(argument, given))
    return given


def _filled_in(annotation: Any, given: dict[Any, Any]) -> Any:
    if isinstance(annotation, TypeVar):
        return given.get(annotation, annotation)
    parameters = getattr(annotation, "__parameters__", ())
    # A class without brackets has parameters of its own, which are not these.
    if not given or not parameters or get_origin(annotation) is None:
        return annotation
    return annotation[tuple(given.get(parameter, parameter) for parameter in parameters)]
