"""msgspec Structs of a notebook by value: cloudpickle makes a class empty and fills it, which a Struct's is made against."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Mapping
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import msgspec

__all__ = ["is_struct_class", "reduce_struct_class"]

# A class that comes back, or comes twice, is the one that was there.
_names: WeakKeyDictionary[type, str] = WeakKeyDictionary()
_classes: WeakValueDictionary[str, type] = WeakValueDictionary()
_filled: WeakKeyDictionary[type, bool] = WeakKeyDictionary()

_MADE_ANEW = frozenset({"__annotations__", "__doc__", "__match_args__", "__module__", "__qualname__", "__slots__"})
_CONFIGURED = ("array_like", "dict", "eq", "forbid_unknown_fields", "frozen", "gc", "omit_defaults", "order", "weakref")


def is_struct_class(value: object) -> bool:
    """Whether this is a class made from msgspec.Struct."""
    return isinstance(value, type) and issubclass(value, msgspec.Struct) and value is not msgspec.Struct


def reduce_struct_class(cls: Any) -> tuple[Any, ...]:
    """How pickle makes the class again: its fields first, then what refers to it, such as its methods."""
    name = _names.setdefault(cls, uuid.uuid4().hex)
    _classes[name] = cls
    _filled[cls] = True
    own = vars(cls).get("__annotations__", {})
    found = [_field(field) for field in msgspec.structs.fields(cls) if field.name in own]
    parameters = inspect.signature(cls).parameters
    config = {option: getattr(cls.__struct_config__, option) for option in _CONFIGURED}
    config["tag"], config["tag_field"] = cls.__struct_config__.tag, cls.__struct_config__.tag_field
    config["kw_only"] = bool(found) and all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in own)
    namespace = {
        key: value
        for key, value in vars(cls).items()
        if key not in own
        and key not in _MADE_ANEW
        and not key.startswith(("__struct_", "__msgspec_"))
        and not isinstance(value, (GetSetDescriptorType, MemberDescriptorType))
    }
    described = (name, cls.__name__, cls.__qualname__, cls.__module__, cls.__bases__, found, config)
    return _made, described, namespace, None, None, _fill


def _field(field: msgspec.structs.FieldInfo) -> tuple[str, Any, dict[str, Any]]:
    options = {"default": field.default, "default_factory": field.default_factory}
    options = {key: value for key, value in options.items() if value is not msgspec.NODEFAULT}
    if field.encode_name != field.name:
        options["name"] = field.encode_name
    return field.name, field.type, options


def _made(
    name: str,
    title: str,
    qualified: str,
    module: str,
    bases: tuple[type, ...],
    found: list[tuple[str, Any, dict[str, Any]]],
    config: Mapping[str, Any],
) -> type:
    known = _classes.get(name)
    if known is not None:
        return known
    fields = [(field, kind, msgspec.field(**options)) for field, kind, options in found]
    cls: Any = msgspec.defstruct(title, fields, bases=bases, module=module, **config)
    cls.__qualname__ = qualified
    _names[cls] = name
    _classes[name] = cls
    return cls  # type: ignore[no-any-return]


def _fill(cls: type, namespace: Mapping[str, Any]) -> None:
    if cls not in _filled:
        _filled[cls] = True
        for key, value in namespace.items():
            setattr(cls, key, value)
