"""Bytes to a handler's input and its output to bytes, driven by the handler's annotation."""

from __future__ import annotations

import inspect
import re
from functools import cached_property
from typing import Any

import msgspec
import numpy as np

from tidegate.annotations import holds_array, holds_object, meaning_of, members_of
from tidegate.array import Array
from tidegate.array_layout import Misfit, is_map
from tidegate.array_reader import ArrayReader
from tidegate.collate import is_tensor
from tidegate.encoding import is_array, write_json, write_msgpack, write_npy
from tidegate.forms import Form
from tidegate.media import (
    FORM,
    JSON,
    MSGPACK,
    MSGPACK_NAMES,
    MULTIPART,
    NPY,
    OCTETS,
    EncodeError,
    MalformedBody,
    NotAcceptable,
    UnsupportedMediaType,
    choose,
    parsed,
)
from tidegate.plan import Plan, UnionReader, located
from tidegate.schema import example_of, schema_of
from tidegate_batching import InvalidInput

__all__ = ["Codec", "EncodeError", "MalformedBody", "NotAcceptable", "UnsupportedMediaType"]

_BOM = b"\xef\xbb\xbf"
_OFFSET = re.compile(r"\(byte (\d+)\)$")
_NOT_JSON = re.compile(rb"-?(NaN|Infinity)")
_MAX_TEXT = 500
_UNREADABLE = (msgspec.DecodeError, Misfit, UnicodeDecodeError, RecursionError)


class Codec:
    """How one handler's inputs are read and its outputs written.

    annotation: the type of one item, `inspect.Parameter.empty` for any value.
    writable: False leaves arrays over the body's own bytes where it can, for a reader that copies them anyway.

    What cannot be read raises MalformedBody (where parsing stopped), InvalidInput (which field is wrong, and why) or
    UnsupportedMediaType; what cannot be written raises EncodeError or NotAcceptable.

    Example:
        >>> codec = Codec(dict[str, float])
        >>> codec.decode(b"score=0.5", "application/x-www-form-urlencoded")
        {'score': 0.5}
        >>> codec.encode({"score": 0.5}, accept="application/msgpack")
        (b'\\x81\\xa5score\\xcb?\\xe0\\x00\\x00\\x00\\x00\\x00\\x00', 'application/msgpack')
    """

    def __init__(self, annotation: Any = inspect.Parameter.empty, *, writable: bool = True) -> None:
        self._is_untyped = annotation in (inspect.Parameter.empty, Any)
        try:
            wanted = Any if self._is_untyped else annotation
            self._plan = Plan(wanted, writable=writable)
            self._json = msgspec.json.Decoder(self._plan.type, dec_hook=self._plan.hook)
            self._msgpack = msgspec.msgpack.Decoder(
                self._plan.type, dec_hook=self._plan.hook, ext_hook=_refuse_extension
            )
            self._form = Form(wanted) if Form.fits(wanted) else None
        except (TypeError, NameError) as error:
            raise TypeError(f"annotation {annotation!r}: {error}; annotate with a type that msgspec reads") from error
        readers = [self._plan.readers.get(meaning_of(member)) for member in members_of(self._plan.type)]
        readers += [reader.array for reader in readers if isinstance(reader, UnionReader)]
        array = next((reader for reader in readers if isinstance(reader, ArrayReader)), None)
        self._is_array = array is not None and self._plan.readers.get(meaning_of(self._plan.type)) is array
        # No annotation takes arrays too, where they come as such.
        self._array = ArrayReader(Array(), writable=writable) if self._is_untyped else array
        self._is_raw = meaning_of(annotation) is bytes
        self.annotation = meaning_of(annotation) if self._is_array else annotation
        self.array = self._array.array if self._array and self._is_array else None

    @cached_property
    def content_types(self) -> tuple[str, ...]:
        """The media types of bodies that are taken, the usual one first."""
        if self._is_raw:
            return (OCTETS, "*/*")
        taken = [JSON, MSGPACK]
        if self._array is not None:
            taken.append(NPY)
        if self._array is not None and self._array.array.nbytes is not None:
            taken.append(OCTETS)
        return (*taken, MULTIPART, FORM) if self._form is not None else tuple(taken)

    # ------------------------------------------------------------------ inputs

    def check_content_type(self, content_type: str | None) -> None:
        """Raise UnsupportedMediaType for a body that would be refused for its type, whatever it holds."""
        media = parsed(content_type)[0] if content_type else JSON
        if self._is_raw or media == JSON or media.endswith("+json") or media in (*self.content_types, *MSGPACK_NAMES):
            return
        raise self._unsupported(media)

    def decode(self, body: bytes, content_type: str | None = None) -> Any:
        """Read one item from a body; none that says its type is JSON."""
        if self._is_raw:
            return self.decode_object(body)
        if not content_type or content_type == JSON:
            return self.decode_json(body)
        media, parameters = parsed(content_type)
        if media == JSON or media.endswith("+json"):
            return self.decode_json(body)
        try:
            return self._decode(body, media, parameters)
        except _UNREADABLE as error:
            raise _refusal(error, body, media) from None

    def decode_json(self, body: bytes) -> Any:
        """Read one item from JSON, where `bytes` are base64."""
        try:
            if self._is_array and self._array is not None:
                return self._array.read_json(body)
            return self._json.decode(body)
        except _UNREADABLE as error:
            # A mark that some editors and PowerShell leave; once is enough.
            if body.startswith(_BOM) and not body.startswith(_BOM, len(_BOM)):
                return self.decode_json(body[len(_BOM) :])
            raise _refusal(error, body, JSON) from None

    def adopt(self, value: Any) -> Any:
        """One item from a caller in this process, who writes what the wire would convert: lists for an array, a dict
        for an object with fields. What is of its class already, and all else, stays as it is."""
        if self._is_array and self._array is not None:
            is_kind = is_tensor(value) if self._array.tensor else isinstance(value, np.ndarray)
            return value if is_kind and self._array.array == Array() else self.decode_object(value)
        return self.decode_object(value) if self._is_converted and type(value) in (dict, list, tuple) else value

    @cached_property
    def _is_converted(self) -> bool:
        """Whether what JSON knows becomes something else here."""
        return not self._is_untyped and (holds_array(self.annotation) or holds_object(self.annotation))

    def decode_object(self, value: Any) -> Any:
        """Read one item from a value that is parsed already."""
        if self._is_untyped:
            return value
        try:
            return self._array.read(value) if self._is_array and self._array else self._convert(value)
        except _UNREADABLE as error:
            raise _refusal(error, b"", "") from None

    def _decode(self, body: bytes, media: str, parameters: dict[str, str]) -> Any:
        if media in MSGPACK_NAMES:
            value = self._msgpack.decode(body)
            return self._with_arrays(value) if self._is_untyped and b"dtype" in body else value
        if media == NPY and self._array is not None:
            return self._array.read_npy(body)
        if media == OCTETS and self._array is not None and OCTETS in self.content_types:
            return self._array.read_raw(body)
        if media == MULTIPART and self._form is not None:
            return self._convert(self._form.read_multipart(body, parameters.get("boundary")), lax=True)
        if media == FORM and self._form is not None:
            return self._convert(self._form.read_urlencoded(body, self.content_types), lax=True)
        raise self._unsupported(media)

    def _unsupported(self, media: str) -> UnsupportedMediaType:
        hint = "for JSON, curl's flag is `--json` where you wrote -d" if media == FORM else ""
        return UnsupportedMediaType(media, self.content_types, hint)

    def _with_arrays(self, value: Any) -> Any:
        """The same value with arrays in the place of their maps."""
        if is_map(value) and self._array is not None:
            return self._array.read(value)
        if isinstance(value, dict):
            return {key: self._with_arrays(one) for key, one in value.items()}
        return [self._with_arrays(one) for one in value] if isinstance(value, list) else value

    def _convert(self, value: Any, *, lax: bool = False) -> Any:
        return self._plan.convert(value, self._plan.type, lax=lax)

    # ------------------------------------------------------------------ outputs

    def encode(self, value: Any, accept: str | None = None, *, allow_nan: bool = False) -> tuple[bytes, str]:
        """Write one output in the form that the caller likes best, and say which: JSON where the caller does not care.

        allow_nan: NaN and infinity become null in JSON, instead of an error.
        """
        is_bytes = isinstance(value, (bytes, bytearray, memoryview))
        if not is_bytes and accept in (None, JSON, "*/*"):
            return write_json(value, allow_nan=allow_nan), JSON
        offered = [OCTETS] if is_bytes else []
        offered += [JSON, *MSGPACK_NAMES]
        media = choose(accept, [*offered, NPY] if is_array(value) else offered)
        if media == OCTETS:
            return bytes(value), media
        if media == NPY:
            return write_npy(value), media
        return (write_msgpack(value) if media in MSGPACK_NAMES else write_json(value, allow_nan=allow_nan)), media

    def encode_json(self, value: Any, *, allow_nan: bool = False) -> bytes:
        """Write one output as JSON; arrays become nested lists, bytes become base64."""
        return write_json(value, allow_nan=allow_nan)

    def encode_msgpack(self, value: Any) -> bytes:
        """Write one output as msgpack; arrays become the map that `array_layout` tells of."""
        return write_msgpack(value)

    @staticmethod
    def check_accept(accept: str | None) -> None:
        """Raise NotAcceptable where no output of any kind could be accepted, before there is one."""
        if accept:
            choose(accept, (JSON, *MSGPACK_NAMES, NPY, OCTETS))

    # ------------------------------------------------------------------ documentation

    def input_schema(self) -> dict[str, Any]:
        """JSON Schema 2020-12 of one item in JSON."""
        return schema_of(self._plan)

    def example(self) -> Any:
        """A small input that decodes, for documentation; None where only the author could give one."""
        if self._is_raw:
            return None
        try:
            example = example_of(self.input_schema())
            self.decode_object(example)
        except (LookupError, TypeError, InvalidInput):
            return None
        return example


def _refuse_extension(code: int, _: memoryview) -> Any:
    raise Misfit(f"msgpack's extension type {code} is not taken: an array is the map of dtype, shape and data")


def _refusal(error: Exception, body: bytes, media: str) -> InvalidInput:
    """What a caller is told about a value that does not fit or a body that cannot be parsed."""
    if isinstance(error, (msgspec.ValidationError, Misfit)):
        text, path = (error.text, error.path) if isinstance(error, Misfit) else located(error)
        # Some of msgspec's texts quote the value, however long.
        text = text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"
        return InvalidInput(f"{text} - at `${path}`" if path else text)
    name = "msgpack" if media in MSGPACK_NAMES else "JSON"
    if not body.strip():
        return MalformedBody(f"the body is empty: send {name}")
    if isinstance(error, RecursionError):
        return MalformedBody(f"the {name} is nested too deeply")
    if isinstance(error, UnicodeDecodeError):
        return MalformedBody(f"text in the {name} is not UTF-8{_where_not_utf8(body) if name == 'JSON' else ''}")
    found = _OFFSET.search(str(error))
    offset = int(found[1]) if found else 0
    # "-Infinity" fails at its second byte.
    if name == "JSON" and _NOT_JSON.search(body, max(0, offset - 1), offset + 9):
        return MalformedBody(
            f"{error}: JSON has no NaN and no Infinity; send null, or msgpack or .npy, which have them"
        )
    # A body that stops too early says nothing of where.
    return MalformedBody(str(error) if found else f"{error} (byte {len(body)})")


def _where_not_utf8(body: bytes) -> str:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return f" (byte {error.start})"
    return ""
