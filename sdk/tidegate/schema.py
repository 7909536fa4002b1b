"""JSON Schema for what a handler takes, and an example that follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from tidegate.array import Array
from tidegate.array_reader import ArrayReader
from tidegate.plan import ClassReader, Plan, UnionReader

__all__ = ["example_of", "schema_of"]

_REFERENCE = "#/$defs/"
_MAX_PARTS = 256
_SIMPLE: dict[Any, Any] = {"string": "hello", "integer": 1, "number": 0.5, "boolean": True}


def schema_of(plan: Plan) -> dict[str, Any]:
    """The type as JSON Schema 2020-12; named classes are under `$defs`.

    Example:
        >>> schema_of(Plan(list[int]))
        {'type': 'array', 'items': {'type': 'integer'}}
    """
    classes = [(leaf, reader) for leaf, reader in plan.readers.items() if isinstance(reader, ClassReader)]
    unions = [(leaf, reader) for leaf, reader in plan.readers.items() if isinstance(reader, UnionReader)]
    others = [other for _, union in unions for other in union.others]
    types = [plan.type, *(reader.shadow for _, reader in classes), *others]
    known: dict[Any, dict[str, Any]] = {}

    def of_leaf(kind: Any) -> dict[str, Any]:
        reader = plan.readers.get(kind)
        if isinstance(reader, ArrayReader):
            return _array_schema(reader.array)
        # A type that msgspec does not know is named and no more. A copy, since msgspec adds a field's default to it.
        return dict(known.get(kind, {"title": kind.__name__}))

    # msgspec names the definitions while it goes, and a leaf's schema is made of such names: again until all are known,
    # which takes one round more than unions are nested.
    for _ in range(len(unions) + 2):
        (schema, *rest), definitions = msgspec.json.schema_components(
            types, schema_hook=of_leaf, ref_template=_REFERENCE + "{name}"
        )
        found = dict(zip((leaf for leaf, _ in classes), rest, strict=False))
        left = iter(rest[len(classes) :])
        for leaf, union in unions:
            arrays = [_array_schema(union.array.array)] if union.array else []
            shadows = [found[known_leaf] for known_leaf, reader in classes if reader in union.classes]
            found[leaf] = {"anyOf": [*arrays, *shadows, *(next(left) for _ in union.others)]}
        if found == known:
            break
        known = found
    return {**schema, "$defs": definitions} if definitions else schema


def _array_schema(array: Array) -> dict[str, Any]:
    dtype = np.dtype("float32" if array.dtype == "bfloat16" else array.dtype or "float64")
    number: dict[str, Any] = {"type": "boolean" if dtype.kind == "b" else "integer" if dtype.kind in "iu" else "number"}
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        number |= {"minimum": int(limits.min), "maximum": int(limits.max)}
    schema: dict[str, Any] = {"type": "array"} if array.shape is None else number
    for length in reversed(array.shape or ()):
        limits_of_axis = {} if length is None else {"minItems": length, "maxItems": length}
        schema = {"type": "array", "items": schema, **limits_of_axis}
    shape = "of any shape" if array.shape is None else f"of shape {array.wanted_shape}"
    schema["description"] = f"nested lists of numbers {shape}" + (f", read as {array.dtype}" if array.dtype else "")
    example_shape = (3,) if array.shape is None else tuple(3 if n is None else n for n in array.shape)
    if np.prod(example_shape, dtype=float) <= _MAX_PARTS:
        schema["examples"] = [np.zeros(example_shape, dtype).tolist()]
    return schema


def example_of(schema: Mapping[str, Any]) -> Any:
    """A small value that follows the schema; raises LookupError where only the author could give one.

    Example:
        >>> example_of({"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]})
        {'text': 'hello'}
    """
    return _Example(schema.get("$defs", {})).of(schema)


class _Example:
    """Makes one example, of a bounded number of parts."""

    def __init__(self, definitions: Mapping[str, Any]) -> None:
        self._definitions = definitions
        self._left = _MAX_PARTS

    def of(self, schema: Mapping[str, Any]) -> Any:
        self._left -= 1
        if self._left < 0:
            raise LookupError("an example would be too large, or hold itself")
        if "$ref" in schema:
            return self.of(self._definitions[schema["$ref"].removeprefix(_REFERENCE)])
        for told in ("examples", "enum"):
            if schema.get(told):
                return schema[told][0]
        if "anyOf" in schema:
            return self.of(next((one for one in schema["anyOf"] if one.get("type") != "null"), {}))
        kind = schema.get("type")
        if kind == "object" and "properties" in schema:
            return {name: self.of(schema["properties"][name]) for name in schema.get("required", ())}
        if kind == "array":
            return [self.of(item) for item in self._items(schema)]
        if kind not in _SIMPLE:
            raise LookupError(f"nothing tells what {dict(schema)!r} is for")
        return _SIMPLE[kind]

    def _items(self, schema: Mapping[str, Any]) -> list[Any]:
        if "prefixItems" in schema:
            return list(schema["prefixItems"])
        return [schema.get("items") or {}] * min(max(1, schema.get("minItems", 1)), self._left + 1)
