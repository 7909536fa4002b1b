"""Forms: the fields and files of a multipart or urlencoded body, by name, for a handler that takes fields."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, get_args, get_origin
from urllib.parse import parse_qsl

import msgspec

from tidegate.annotations import array_of, fields_of, meaning_of, members_of
from tidegate.array_layout import Misfit, from_npy
from tidegate.media import FORM, JSON, MSGPACK_NAMES, NPY, MalformedBody, UnsupportedMediaType, parsed

__all__ = ["Form"]

_MAX_FIELDS = 1000
_MAX_NAME = 256
_MAX_HEADERS = 8192
_USE_JSON = "curl's -d says so of any text, and `--json` in its place sends JSON"
_LISTS = (list, set, frozenset, tuple)

# The parser tells every fault of a body as a warning, and as the exception that becomes the answer.
_SILENT = logging.Logger("tidegate.forms", logging.CRITICAL + 1)  # noqa: LOG001 - it must reach no handler


class Part(NamedTuple):
    """One field or file as it was sent; text of an urlencoded form has no content type."""

    name: str
    data: bytes
    content_type: str = ""
    is_file: bool = False


class Place(NamedTuple):
    """What a field's type makes of the parts of its name."""

    repeats: bool = False
    may_repeat: bool = False
    keeps_bytes: bool = False
    holds_fields: bool = False


class Form:
    """The fields that a handler takes, as far as a form must know them.

    Example:
        >>> Form(dict[str, list[int]]).read_urlencoded(b"a=1&a=2&b=3")
        {'a': ['1', '2'], 'b': ['3']}
    """

    def __init__(self, annotation: Any) -> None:
        kinds = members_of(annotation)
        named = [fields for kind in kinds if (fields := _named_fields(kind)) is not None]
        self._places = {field.wire_name: _place(field.type) for fields in named for field in fields}
        values = [get_args(meaning_of(kind))[1] for kind in kinds if _is_mapping(kind) and get_args(meaning_of(kind))]
        # Where the names are anyone's, one that comes twice is a list.
        self._other = _place(values[0]) if values else Place(may_repeat=not named)

    @staticmethod
    def fits(annotation: Any) -> bool:
        """Whether the type takes fields by name; no annotation does."""
        return annotation is Any or any(
            _named_fields(kind) is not None or _is_mapping(kind) for kind in members_of(annotation)
        )

    def read_urlencoded(self, body: bytes, taken: Collection[str] = ()) -> dict[str, Any]:
        """The values by field; raises UnsupportedMediaType for what is JSON in truth."""
        if body and (b"=" not in body or body.lstrip()[:1] in (b"{", b"[", b'"')):
            raise UnsupportedMediaType(FORM, tuple(taken), _USE_JSON)
        try:
            pairs = parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS)
        except UnicodeDecodeError:
            raise MalformedBody("text in the form is not UTF-8") from None
        except ValueError:
            raise MalformedBody(f"the form has more than {_MAX_FIELDS} fields") from None
        return self._gathered([Part(name, value.encode()) for name, value in pairs])

    def read_multipart(self, body: bytes, boundary: str | None) -> dict[str, Any]:
        """The values by field: text, bytes, or what the part's own content type says."""
        if not boundary:
            raise MalformedBody("the Content-Type of a multipart body names its boundary, and this one does not")
        return self._gathered(_parts(body, boundary.encode("latin-1", "replace")))

    def _gathered(self, parts: list[Part]) -> dict[str, Any]:
        gathered: dict[str, list[Any]] = {}
        for part in parts:
            if len(part.name) > _MAX_NAME:
                raise MalformedBody(f"a field's name is longer than {_MAX_NAME} characters")
            gathered.setdefault(part.name, []).append(_value(part, self._places.get(part.name, self._other)))
        values: dict[str, Any] = {}
        for name, found in gathered.items():
            place = self._places.get(name, self._other)
            if len(found) > 1 and not place.repeats and not place.may_repeat:
                raise Misfit(f"expected one value, got {len(found)}", f".{name}")
            values[name] = found if place.repeats or len(found) > 1 else found[0]
        return values


def _named_fields(kind: Any) -> Any:
    meaning = meaning_of(kind)
    is_tuple = isinstance(get_origin(meaning) or meaning, type) and issubclass(get_origin(meaning) or meaning, tuple)
    # msgspec reads a NamedTuple from a list.
    return None if is_tuple else fields_of(meaning)


def _is_mapping(kind: Any) -> bool:
    meaning = get_origin(meaning_of(kind)) or meaning_of(kind)
    return isinstance(meaning, type) and issubclass(meaning, Mapping) and fields_of(meaning) is None


def _place(annotation: Any) -> Place:
    kinds = members_of(annotation)
    if any(array_of(kind) is not None for kind in kinds):
        return Place(may_repeat=True)
    meanings = [meaning_of(kind) for kind in kinds]
    lists = [kind for kind in meanings if _is_list(get_origin(kind) or kind)]
    elements = [meaning_of(one) for kind in lists for element in get_args(kind)[:1] for one in members_of(element)]
    holds_fields = any(_named_fields(kind) is not None or _is_mapping(kind) for kind in (*meanings, *elements))
    return Place(
        repeats=bool(lists),
        may_repeat=Any in meanings,
        keeps_bytes=any(kind in (bytes, bytearray, memoryview) for kind in (*meanings, *elements)),
        holds_fields=holds_fields and str not in (*meanings, *elements),
    )


def _is_list(kind: Any) -> bool:
    if not isinstance(kind, type) or issubclass(kind, (str, bytes, bytearray, memoryview, Mapping)):
        return False
    return issubclass(kind, _LISTS) or kind.__module__ == "collections.abc"


def _value(part: Part, place: Place) -> Any:
    media = parsed(part.content_type)[0]
    is_text = not part.is_file and (not media or media.startswith("text/"))
    try:
        if media == NPY:
            return from_npy(part.data)
        if media in MSGPACK_NAMES:
            return msgspec.msgpack.decode(part.data)
        if media == JSON or (is_text and place.holds_fields):
            return msgspec.json.decode(part.data)
        return part.data.decode() if is_text and not place.keeps_bytes else part.data
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedBody(f"the field {part.name!r} cannot be read: {error}") from None


def _parts(body: bytes, boundary: bytes) -> list[Part]:
    """The parts of a multipart body."""
    # Not at the top: most services never see a form.
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser

    collector = _Collector()
    try:
        parser = MultipartParser(boundary, collector.callbacks())
        parser.logger = _SILENT
        parser.write(body)
    except FormParserError as error:
        offset = getattr(error, "offset", -1)
        where = f" (byte {offset})" if offset >= 0 else ""
        raise MalformedBody(f"the multipart body is malformed: {error}{where}") from None
    if not collector.ended:
        raise MalformedBody(f"the multipart body ends without its closing boundary (byte {len(body)})")
    return collector.parts


class _Collector:
    """Hears the parser's events and keeps the parts."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.ended = False
        self._data: list[bytes] = []
        self._header = [b"", b""]
        self._headers: dict[str, str] = {}
        self._size = 0

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._add(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._add(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_part_data": lambda data, start, end: self._data.append(data[start:end]),
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        if len(self.parts) == _MAX_FIELDS:
            raise MalformedBody(f"the form has more than {_MAX_FIELDS} fields")
        self._data, self._headers, self._size = [], {}, 0

    def _add(self, which: int, data: bytes) -> None:
        self._size += len(data)
        if self._size > _MAX_HEADERS:
            raise MalformedBody(f"the headers of part {len(self.parts) + 1} are longer than {_MAX_HEADERS} bytes")
        self._header[which] += data

    def _end_header(self) -> None:
        name, value = self._header
        self._headers[name.decode("latin-1").lower()] = value.decode("utf-8", "replace")
        self._header = [b"", b""]

    def _end(self) -> None:
        disposition, parameters = parsed(self._headers.get("content-disposition", ""))
        if disposition != "form-data" or "name" not in parameters:
            raise MalformedBody(f"part {len(self.parts) + 1} has no `Content-Disposition: form-data; name=…`")
        content_type = self._headers.get("content-type", "")
        data = b"".join(self._data)
        self.parts.append(Part(parameters["name"], data, content_type, is_file="filename" in parameters))

    def _finish(self) -> None:
        self.ended = True
