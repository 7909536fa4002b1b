import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tidegate
from tidegate import HandlerError, HTTPError, MalformedBody, Overloaded, Refused, TidegateError, Unavailable
from tidegate.wire import (
    MAX_ID,
    ErrorBody,
    Reply,
    error_from_wire,
    error_to_wire,
    id_of,
    read_call,
    read_reply,
    write,
)


def packed(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


def as_received(message: bytes, is_text: bool) -> str | bytes:
    return message.decode() if is_text else message


@pytest.mark.parametrize("is_text", [True, False])
@pytest.mark.parametrize(
    "fields",
    [
        {"id": 1, "input": [1, 2]},
        {"id": "a", "input": None, "handler": "square"},
        {"id": -(2**63), "input": {"text": "ü"}, "timeout": 0.5, "priority": 0},
        {"id": "", "input": 0},
        {"id": "x" * MAX_ID, "cancel": True},
        {"id": 7, "input": 1, "something": "new"},
    ],
)
def test_a_request_is_read_alike_from_both_kinds_of_message(fields: dict[str, Any], is_text: bool) -> None:
    message: str | bytes = json.dumps(fields) if is_text else packed(fields)
    call = read_call(message)
    assert (call.id, call.handler, call.timeout, call.priority, call.cancel) == (
        fields["id"],
        fields.get("handler"),
        fields.get("timeout"),
        fields.get("priority"),
        fields.get("cancel", False),
    )
    decode = msgspec.json.decode if is_text else msgspec.msgpack.decode
    if "input" in fields:
        assert decode(bytes(call.input)) == fields["input"]


@pytest.mark.parametrize("is_text", [True, False])
@pytest.mark.parametrize(
    ("fields", "told", "id"),
    [
        ({"input": 1}, "missing required field `id`", None),
        ({"id": None, "input": 1}, "$.id", None),
        ({"id": True, "input": 1}, "$.id", None),
        ({"id": 1.5, "input": 1}, "$.id", None),
        ({"id": "x" * (MAX_ID + 1), "input": 1}, "length <= 128", None),
        ({"id": 2**63, "input": 1}, "$.id", None),
        ({"id": 1}, 'needs "input"', 1),
        ({"id": 1, "cancel": False}, 'needs "input"', 1),
        ({"id": 1, "cancel": 1}, "$.cancel", 1),
        ({"id": "a", "input": 1, "handler": 5}, "$.handler", "a"),
        ({"id": "a", "input": 1, "timeout": -1}, "$.timeout", "a"),
        ({"id": "a", "input": 1, "timeout": "1"}, "$.timeout", "a"),
        ({"id": "a", "input": 1, "priority": 8}, "$.priority", "a"),
        ({"id": "a", "input": 1, "priority": 1.5}, "$.priority", "a"),
        ([1, 2], "Expected `object`", None),
        (None, "Expected `object`", None),
    ],
)
def test_what_is_no_request_is_told_why_with_its_id_where_it_has_one(
    fields: Any, told: str, id: Any, is_text: bool
) -> None:
    message: str | bytes = json.dumps(fields) if is_text else packed(fields)
    with pytest.raises(MalformedBody) as caught:
        read_call(message)
    assert told in str(caught.value)
    assert id_of(message) == id


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ('{"id":1,"input":nope}', "byte 17"),
        ('{"id":1,"input":"\\ud800"}', "no JSON"),
        ('{"id":1} x', "trailing characters"),
        ("[" * 100_000, "Expected `object`"),
        ('{"id":1,"input":' + "[" * 100_000, "nested too deeply"),
        (b"", "no msgpack"),
        (b'{"id":1,"input":2}', "send it as a text message"),
        (b"\x82\xa2id\x01\xa5input" + b"\x91" * 100_000, "nested too deeply"),
        (b"\x82\xa2id\xa1\xff\xa5input\x01", "no msgpack"),
        (b"\xc1", "no msgpack"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_cannot_be_parsed_is_told_where(message: str | bytes, told: str) -> None:
    with pytest.raises(MalformedBody, match=told):
        read_call(message)


def test_a_timeout_that_is_no_number_is_refused() -> None:
    with pytest.raises(MalformedBody, match="timeout"):
        read_call(packed({"id": 1, "input": 1, "timeout": math.nan}))


@given(st.one_of(st.text(), st.binary()))
def test_whatever_comes_is_read_or_refused_and_nothing_else_happens(message: str | bytes) -> None:
    for read in (read_call, read_reply):
        try:
            read(message)
        except MalformedBody as error:
            assert len(error.detail) < 700
    id_of(message)


@pytest.mark.parametrize("is_text", [True, False])
@pytest.mark.parametrize(
    ("reply", "fields"),
    [
        (Reply(1), {"id": 1}),
        (Reply("a", end=True), {"id": "a", "end": True}),
        (
            Reply(1, error=ErrorBody("closed", 503, "bye", 2.0)),
            {"id": 1, "error": {"code": "closed", "status": 503, "message": "bye", "retry_after": 2.0}},
        ),
        (
            Reply(error=ErrorBody("malformed-body", 400, "no")),
            {"error": {"code": "malformed-body", "status": 400, "message": "no"}},
        ),
    ],
)
def test_a_reply_holds_the_fields_that_it_has_and_no_other(reply: Reply, fields: Any, is_text: bool) -> None:
    data, kind = write(reply, is_text=is_text)
    assert kind is is_text
    assert (json.loads(data) if is_text else msgspec.msgpack.decode(data)) == fields
    assert read_reply(as_received(data, is_text)) == reply


@pytest.mark.parametrize("is_text", [True, False])
@pytest.mark.parametrize("field", ["output", "chunk"])
def test_what_was_written_before_is_put_in_as_it_is(field: str, is_text: bool) -> None:
    written = b"[1.50,null]" if is_text else packed({"dtype": "float32", "shape": [1], "data": b"\0\0\0\0"})
    data, _ = write(Reply(3, **{field: msgspec.Raw(written)}), is_text=is_text)  # type: ignore[arg-type]
    assert written in data
    assert bytes(getattr(read_reply(as_received(data, is_text)), field)) == written


# ---------------------------------------------------------------------- errors


def errors_of_the_tree() -> list[type[TidegateError]]:
    """All but those that a client raises of itself, which no service sends."""
    found = [getattr(tidegate, name) for name in tidegate.__all__]
    kinds = [kind for kind in found if isinstance(kind, type) and issubclass(kind, TidegateError)]
    return [kind for kind in kinds if not kind.__module__.startswith("tidegate.clients.")]


@pytest.mark.parametrize("kind", errors_of_the_tree())
def test_every_class_of_the_tree_comes_back_as_itself(kind: type[TidegateError]) -> None:
    error = error_from_wire(kind.code, kind.status, "what happened", 2.5)
    assert type(error) is kind
    assert (error.code, error.status, error.detail, str(error)) == (
        kind.code,
        kind.status,
        "what happened",
        "what happened",
    )
    with pytest.raises(kind):
        raise error
    body = error_to_wire(error)
    assert (body.code, body.status, body.message) == (kind.code, kind.status, "what happened")
    assert body.retry_after == (2.5 if issubclass(kind, Refused) else None)


@pytest.mark.parametrize("kind", errors_of_the_tree())
def test_every_field_of_an_error_can_be_asked_for(kind: type[TidegateError]) -> None:
    error = error_from_wire(kind.code, kind.status, "x")
    names = kind.__init__.__code__.co_varnames[1 : kind.__init__.__code__.co_argcount]
    for name in {"cost", "limit", "got", "taken", "accept", "offered", "expected", "type_name", "text"} & set(names):
        assert hasattr(error, name)


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("not-found", 404, HTTPError),
        ("teapot", 418, HTTPError),
        ("odd", 999, HTTPError),
        ("rate-limited", 429, Overloaded),
        ("bad-gateway", 503, Unavailable),
        ("gone-too-long", 500, HTTPError),
    ],
)
def test_an_unknown_code_is_kept_on_the_class_that_its_status_suggests(
    code: str, status: int, kind: type[TidegateError]
) -> None:
    error = error_from_wire(code, status, "text")
    assert type(error) is kind
    assert (error.code, error.status, error.detail) == (code, status, "text")
    assert kind.code != code


def test_a_refusal_without_a_time_says_a_second() -> None:
    error = error_from_wire("overloaded", 429, "full")
    assert isinstance(error, Overloaded)
    assert error.retry_after == 1.0


def test_a_handlers_status_travels() -> None:
    assert error_from_wire("handler-refused", 451, "no").status == 451


def test_a_handlers_exception_has_its_text() -> None:
    error = error_from_wire("handler-error", 500, "internal error")
    assert isinstance(error, HandlerError)
    assert (error.type_name, error.text, error.traceback) == ("", "internal error", "")


def test_half_a_surrogate_pair_in_an_error_is_written_all_the_same() -> None:
    body = error_to_wire(HTTPError(404, "no file \udcff"))
    assert json.loads(write(Reply(1, error=body), is_text=True).data)["error"]["message"] == "no file ?"
