"""JSON lines without I/O: bytes to lines, a line to what a handler takes, an answer to a line.

A line is an item; or an envelope, an object with `custom_id` and `body` whatever else it has; or, where a field is
named, an object that the result is added to. It is answered in kind, and a failed one says so in one line too.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tidegate.codec import MalformedBody
from tidegate_batching import InvalidInput, TidegateError

__all__ = [
    "Added",
    "Bare",
    "Enveloped",
    "Layout",
    "Splitter",
    "custom_id_in",
    "custom_id_of",
    "failed_line",
    "failed_number",
    "too_long",
]

_BOM = b"\xef\xbb\xbf"
_MAX_MESSAGE = 2000
_SIGN_OF_FAILURE = b'"error":{"code":'


def too_long(limit: int) -> MalformedBody:
    """What is said of a line that is longer than is read."""
    return MalformedBody(f"the line is over {limit} bytes: raise the limit with --max-line")


# ---------------------------------------------------------------------- bytes to lines


class Splitter:
    """Lines out of chunks of bytes, in memory bounded by the limit.

    max_line: bytes; a longer line comes as None, and what is left of it is dropped as it arrives.

    Example:
        >>> lines = Splitter(max_line=8)
        >>> lines.feed(b"1\\n[2,"), lines.feed(b"3]\\n123456789\\n4"), lines.end()
        ([b'1'], [b'[2,3]', None], [b'4'])
    """

    def __init__(self, max_line: int) -> None:
        self._max_line = max_line
        self._tail = bytearray()
        self._is_too_long = False
        self._at_start = True

    def feed(self, data: bytes) -> list[bytes | None]:
        """The lines that are complete now, without their ends."""
        lines: list[bytes | None] = [*data.split(b"\n")]
        tail = lines.pop()
        if lines:
            if len(data) > self._max_line:
                lines = [line if line is not None and len(line) <= self._max_line else None for line in lines]
            if self._tail or self._is_too_long:
                lines[0] = self._completed(data[: data.index(b"\n")])
            if self._at_start:
                lines[0] = self._without_mark(lines[0])
        self._grow(tail or b"")
        return lines

    def end(self) -> list[bytes | None]:
        """The last line, if it had no end of its own."""
        if not self._tail and not self._is_too_long:
            return []
        line = self._completed(b"")
        return [self._without_mark(line) if self._at_start else line]

    def _grow(self, data: bytes) -> None:
        if not self._is_too_long:
            self._tail += data
        if len(self._tail) > self._max_line:
            self._is_too_long, self._tail = True, bytearray()

    def _completed(self, data: bytes) -> bytes | None:
        self._grow(data)
        line = None if self._is_too_long else bytes(self._tail)
        self._is_too_long, self._tail = False, bytearray()
        return line

    def _without_mark(self, line: bytes | None) -> bytes | None:
        self._at_start = False
        return line if line is None else line.removeprefix(_BOM)


# ---------------------------------------------------------------------- a line and its answer


class Bare:
    """A line that is an item: its answer is the output and nothing else."""

    __slots__ = ()

    @property
    def custom_id(self) -> bytes | None:
        """What the caller knows the line by, as JSON."""
        return None

    def result(self, number: int, output: bytes) -> bytes:
        """The answer's line."""
        return output + b"\n"

    def failure(self, number: int, error: TidegateError) -> bytes:
        """The line that says what went wrong."""
        return failed_line(number, error)

    def chunk(self, number: int, output: bytes) -> bytes:
        """One line of a stream that is written as it comes."""
        return b'{"line":%d,"chunk":%b}\n' % (number, output)

    def end(self, number: int) -> bytes:
        """The line after a stream's last chunk."""
        return b'{"line":%d,"end":true}\n' % number


class Enveloped(Bare):
    """A line of OpenAI's Batch API, or what looks like one: its answer carries the `custom_id`, as JSON, back."""

    __slots__ = ("_custom_id",)

    def __init__(self, custom_id: bytes) -> None:
        self._custom_id = custom_id

    @property
    def custom_id(self) -> bytes:
        """What the caller knows the line by, as JSON."""
        return self._custom_id

    def result(self, number: int, output: bytes) -> bytes:
        return _ENVELOPE % (number, self._custom_id, 200, number, output, b"null")

    def failure(self, number: int, error: TidegateError) -> bytes:
        return _ENVELOPE % (number, self._custom_id, error.status, number, b"null", _told(number, error))

    def chunk(self, number: int, output: bytes) -> bytes:
        return b'{"custom_id":%b,"line":%d,"chunk":%b}\n' % (self._custom_id, number, output)

    def end(self, number: int) -> bytes:
        return b'{"custom_id":%b,"line":%d,"end":true}\n' % (self._custom_id, number)


# The ids follow from the line: what runs twice, before and after an interruption, is answered with the same bytes.
_ENVELOPE = (
    b'{"id":"line-%d","custom_id":%b,"response":{"status_code":%d,"request_id":"line-%d","body":%b},"error":%b}\n'
)


class Added(Bare):
    """An object that comes back with the output as one more field."""

    __slots__ = ("_field", "_fields")

    def __init__(self, fields: dict[str, msgspec.Raw], field: str) -> None:
        self._fields = fields
        self._field = field

    def result(self, number: int, output: bytes) -> bytes:
        self._fields[self._field] = msgspec.Raw(output)
        return msgspec.json.encode(self._fields) + b"\n"


class _Envelope(msgspec.Struct):
    custom_id: Any
    body: msgspec.Raw


class Layout:
    """What a line is made of. `read` gives how it is answered, and the JSON of the item in it.

    input_field: the item is this field of an object. output_field: the output is added to the object as this one.
    With either a line is never an envelope.

    Example:
        >>> answer, body = Layout().read(b'{"custom_id": "a", "body": [1]}')
        >>> body, answer.custom_id
        (b'[1]', b'"a"')
        >>> answer, body = Layout("text", "size").read(b'{"text": "hello"}')
        >>> body, answer.result(1, b"5")
        (b'"hello"', b'{"text":"hello","size":5}\\n')
    """

    def __init__(self, input_field: str | None = None, output_field: str | None = None) -> None:
        self._input_field = input_field
        self._output_field = output_field
        self._is_object = input_field is not None or output_field is not None
        self._bare = Bare()
        self._envelopes = msgspec.json.Decoder(_Envelope)
        self._objects = msgspec.json.Decoder(dict[str, msgspec.Raw])

    def read(self, line: bytes) -> tuple[Bare, bytes]:
        """Raises InvalidInput for a line without the object, or the field, that was asked for."""
        if self._is_object:
            return self._read_object(line)
        # Most lines are no objects, and of those that are most have no such field: not even nested, or in a text.
        if b'"custom_id"' in line and line.lstrip().startswith(b"{"):
            try:
                envelope = self._envelopes.decode(line)
                return Enveloped(msgspec.json.encode(envelope.custom_id)), bytes(envelope.body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                pass  # an item that has the field and no body; or no JSON, which its decoder will tell better
        return self._bare, line

    def _read_object(self, line: bytes) -> tuple[Bare, bytes]:
        try:
            fields = self._objects.decode(line)
            if not line.isascii():
                line.decode()  # what is passed on raw has not been looked at
        except msgspec.ValidationError as error:
            raise InvalidInput(f"the line must be an object: {error}") from None
        except UnicodeDecodeError as error:
            raise MalformedBody(f"text in the JSON is not UTF-8 (byte {error.start})") from None
        except (msgspec.DecodeError, RecursionError) as error:
            raise MalformedBody(str(error)) from None
        body = line
        if self._input_field is not None:
            if self._input_field not in fields:
                raise InvalidInput(f"the object has no field {self._input_field!r} (--input-field)")
            body = bytes(fields[self._input_field])
        return (self._bare if self._output_field is None else Added(fields, self._output_field)), body


def custom_id_in(line: bytes) -> bytes | None:
    """The `custom_id`, as JSON, of an input line; None for an item without. Raises MalformedBody for no JSON."""
    answer, _ = _ENVELOPES.read(line)
    if answer.custom_id is None:
        try:
            msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise MalformedBody(str(error)) from None
    return answer.custom_id


_ENVELOPES = Layout()


# ---------------------------------------------------------------------- failures


def failed_line(number: int, error: TidegateError) -> bytes:
    """What a line without an envelope is answered with when it fails."""
    return b'{"error":%b}\n' % _told(number, error)


def _told(number: int, error: TidegateError) -> bytes:
    message = error.detail
    if len(message) > _MAX_MESSAGE:
        message = f"{message[:_MAX_MESSAGE]}…"
    # An exception's text may hold what no UTF-8 can.
    message = message.encode(errors="replace").decode()
    return msgspec.json.encode({"code": error.code, "message": message, "line": number})


class _Failure(msgspec.Struct, forbid_unknown_fields=True):
    code: str
    message: str
    line: int


class _Answer(msgspec.Struct):
    custom_id: Any
    response: msgspec.Raw


_FAILURE = msgspec.json.Decoder(_Failure)
_ANSWER = msgspec.json.Decoder(_Answer)
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_FAILED_KEYS = ({"error"}, {"id", "custom_id", "response", "error"})


def failed_number(answer: bytes) -> int | None:
    """The number of the line that this answer says to have failed; None for a result."""
    if _SIGN_OF_FAILURE not in answer:
        return None
    try:
        fields = _OBJECT.decode(answer)
        return _FAILURE.decode(fields["error"]).line if fields.keys() in _FAILED_KEYS else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError):
        return None


def custom_id_of(answer: bytes) -> bytes | None:
    """The `custom_id`, as JSON, that an answer carries back."""
    try:
        return msgspec.json.encode(_ANSWER.decode(answer).custom_id)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
