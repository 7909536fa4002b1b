"""How msgspec reads an annotation that holds arrays.

msgspec shows a `dec_hook` only `np.ndarray`, not what `Annotated` says about it. So each array is replaced by a generated
type, a leaf, by which the hook finds its reader. A class that holds arrays is replaced by a leaf too: msgspec reads a shadow
of the class, and its fields become an object of the user's own class. So is a union that msgspec would refuse because
of its leaves. What holds no array is left as it is.
"""

from __future__ import annotations

import re
import typing
from collections import namedtuple
from collections.abc import Callable
from typing import Annotated, Any, NotRequired, Protocol, Required, TypedDict, Union, get_args, get_origin

import msgspec
import numpy as np

from tidegate.annotations import Field, array_of, fields_of, holds_array, is_union, meaning_of, stripped
from tidegate.array_layout import Misfit, is_map
from tidegate.array_reader import ArrayReader
from tidegate.collate import is_tensor

__all__ = ["ClassReader", "Plan", "UnionReader", "located"]

_PATH = re.compile(r" - at `\$([^`]*)`$")


class Reader(Protocol):
    """Makes what belongs in a leaf's place from a parsed value; raises Misfit or msgspec's ValidationError."""

    def read(self, value: Any, lax: bool = False) -> Any: ...


class Leaf(type):
    """The type of generated types: msgspec checks what a hook returned, and whatever that is counts as an instance."""

    def __instancecheck__(cls, instance: object) -> bool:
        return True


class Plan:
    """What msgspec decodes for an annotation (`type`), and the `hook` that fills its leaves.

    Example:
        >>> plan = Plan(dict[str, np.ndarray | str])
        >>> plan.convert({"a": [1, 2], "b": "text"}, plan.type)
        {'a': array([1, 2]), 'b': 'text'}
    """

    def __init__(self, annotation: Any, *, writable: bool = True) -> None:
        self.readers: dict[Any, Reader] = {}
        self._writable = writable
        self._classes: dict[Any, Any] = {}
        self.type = self._rewritten(annotation)
        # Only now are the shadows of classes that hold themselves complete.
        for reader in self.readers.values():
            if isinstance(reader, UnionReader):
                reader.seal()

    def hook(self, kind: Any, value: Any) -> Any:
        """msgspec's `dec_hook`."""
        return self._read(kind, value, lax=False)

    def convert(self, value: Any, kind: Any, *, lax: bool = False, from_attributes: bool = False) -> Any:
        """A parsed value as this type; what arrives as JSON has text for keys, whatever they were."""
        hook = self._lax_hook if lax else self.hook
        return msgspec.convert(
            value, kind, strict=not lax, dec_hook=hook, str_keys=True, from_attributes=from_attributes
        )

    def _lax_hook(self, kind: Any, value: Any) -> Any:
        return self._read(kind, value, lax=True)

    def _read(self, kind: Any, value: Any, lax: bool) -> Any:
        reader = self.readers.get(kind)
        if reader is None:
            # A type that msgspec does not know. An object of it can come from a caller in this process only.
            if isinstance(value, get_origin(kind) or kind):
                return value
            raise Misfit(f"a {kind.__name__} cannot be read from a request: the handler needs a decode_request for it")
        try:
            return reader.read(value, lax)
        except msgspec.ValidationError as error:
            # msgspec would pass this on without the path that leads here.
            raise Misfit(*located(error)) from None

    # ------------------------------------------------------------------ rewriting

    def _rewritten(self, annotation: Any) -> Any:
        array = array_of(annotation)
        meaning, metadata = stripped(annotation)
        if array is not None:
            kind, promised = array
            leaf = self._leaf("array", ArrayReader(promised, tensor=kind is not np.ndarray, writable=self._writable))
            return _annotated(leaf, [extra for extra in metadata if isinstance(extra, msgspec.Meta)])
        if not holds_array(annotation):
            return annotation
        return _annotated(self._rewritten_type(meaning), metadata)

    def _rewritten_type(self, annotation: Any) -> Any:
        if is_union(annotation):
            return self._union([self._rewritten(member) for member in get_args(annotation)])
        fields = fields_of(annotation)
        if fields is not None:
            return self._class(annotation, fields)
        origin: Any = get_origin(annotation)
        return origin[tuple(self._rewritten(argument) for argument in get_args(annotation))]

    def _leaf(self, name: str, reader: Reader) -> Any:
        leaf = Leaf(name, (), {})
        self.readers[leaf] = reader
        return leaf

    def _class(self, annotation: Any, fields: list[Field]) -> Any:
        if annotation not in self._classes:
            origin = get_origin(annotation) or annotation
            reader = ClassReader(self, origin, fields)
            self._classes[annotation] = self._leaf(origin.__name__, reader)
            # After the leaf is known, since a field may hold the class itself.
            number = sum(known.__name__ == origin.__name__ for known in self._classes.values())
            name = origin.__name__ if number == 1 else f"{origin.__name__}_{number}"
            rewritten = [field._replace(type=self._rewritten(field.type)) for field in fields]
            reader.shadow = _shadow(name, origin, rewritten)
        return self._classes[annotation]

    def _union(self, members: list[Any]) -> Any:
        leaves = [member for member in members if meaning_of(member) in self.readers]
        if not leaves or len(members) - (type(None) in members) == 1:
            return Union[tuple(members)]  # noqa: UP007 - made from a list
        return self._leaf("union", UnionReader(self, members))


class ClassReader:
    """Reads a class that holds arrays, through its shadow."""

    def __init__(self, plan: Plan, origin: Any, fields: list[Field]) -> None:
        self._plan = plan
        self._fields = [field.name for field in fields]
        self.origin = origin
        self.shadow: Any = None

    def read(self, value: Any, lax: bool = False) -> Any:
        """An object of the user's class."""
        is_own = not typing.is_typeddict(self.origin) and isinstance(value, self.origin)
        return self.made(self._plan.convert(value, self.shadow, lax=lax, from_attributes=is_own))

    def made(self, shadow: Any) -> Any:
        """The user's object for the shadow's."""
        if typing.is_typeddict(self.origin):
            return shadow
        return self.origin(**{name: getattr(shadow, name) for name in self._fields})


class UnionReader:
    """Reads a union of which one member at least is a leaf, and not the only one."""

    def __init__(self, plan: Plan, members: list[Any]) -> None:
        readers = [plan.readers.get(meaning_of(member)) for member in members]
        arrays = [reader for reader in readers if isinstance(reader, ArrayReader)]
        if len(arrays) > 1:
            raise TypeError("a union takes one kind of array: which of two is meant cannot be told from what arrives")
        self._plan = plan
        self.array = arrays[0] if arrays else None
        self.classes = [reader for reader in readers if isinstance(reader, ClassReader)]
        self.others = [member for member, reader in zip(members, readers, strict=True) if reader is None]
        self._rest: Any = None

    def seal(self) -> None:
        """Check that msgspec can tell the members apart; raises TypeError."""
        rest = [*(reader.shadow for reader in self.classes), *self.others]
        self._rest = Union[tuple(rest)]  # noqa: UP007 - made from a list
        msgspec.json.Decoder(self._rest, dec_hook=self._plan.hook)

    def read(self, value: Any, lax: bool = False) -> Any:
        """Whichever member the value is; of an array and a number, the number."""
        for reader in self.classes:
            if not typing.is_typeddict(reader.origin) and isinstance(value, reader.origin):
                return reader.read(value, lax)
        if self.array is None:
            return self._read_rest(value, lax)
        looks_like_array = isinstance(value, (list, np.ndarray)) or is_tensor(value) or is_map(value)
        ways: list[Callable[[Any, bool], Any]] = [self._read_rest, self.array.read]
        first, second = reversed(ways) if looks_like_array else ways
        try:
            return first(value, lax)
        except (Misfit, msgspec.ValidationError) as error:
            try:
                return second(value, lax)
            except (Misfit, msgspec.ValidationError):
                raise error from None

    def _read_rest(self, value: Any, lax: bool) -> Any:
        found = self._plan.convert(value, self._rest, lax=lax)
        reader = next((reader for reader in self.classes if type(found) is reader.shadow), None)
        return found if reader is None else reader.made(found)


def located(error: msgspec.ValidationError) -> tuple[str, str]:
    """What is wrong, and the path to it from the value that was read."""
    text, cause = str(error), error.__cause__
    inner = cause.path if isinstance(cause, Misfit) else ""
    outer = _PATH.search(text)
    path = (outer[1] if outer else "") + inner
    return (cause.text if isinstance(cause, Misfit) else text[: outer.start()] if outer else text), path


def _annotated(kind: Any, metadata: list[Any]) -> Any:
    return Annotated[kind, *metadata] if metadata else kind


def _shadow(name: str, origin: Any, fields: list[Field]) -> Any:
    """A class with these fields that msgspec reads as it would read the original."""
    shadow: Any
    if typing.is_typeddict(origin):
        make: Any = TypedDict
        shadow = make(name, {field.name: (NotRequired if field.default else Required)[field.type] for field in fields})
    elif issubclass(origin, tuple):
        defaults = [field.default["default"] for field in fields if field.default]
        make = namedtuple
        shadow = make(name, [field.name for field in fields], defaults=defaults)
        shadow.__annotations__ = {field.name: field.type for field in fields}
    else:
        config = getattr(origin, "__struct_config__", None)
        kept = ("tag", "tag_field", "array_like", "forbid_unknown_fields") if config else ()
        shadow = msgspec.defstruct(
            name,
            [(field.name, field.type, msgspec.field(name=field.wire_name, **field.default)) for field in fields],
            kw_only=True,
            **{key: getattr(config, key) for key in kept},
        )
    shadow.__module__, shadow.__doc__ = origin.__module__, origin.__doc__
    return shadow
