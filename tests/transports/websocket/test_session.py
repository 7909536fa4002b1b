"""The session alone: no socket, no clock, no loop."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tidegate import Cancelled, Closed, Handler, HandlerError, HTTPError, serve
from tidegate_transports.pulse import GiveUp, Pulse
from tidegate_transports.session import Action, Limits, Send, Session, Start, Stop
from tidegate_transports.session_request import Request


@serve(max_batch_size=8)
def double(x: list[int]) -> list[int]:
    return [2 * n for n in x]


@serve(forward_headers=["X-Tenant"])
def shout(x: str) -> Iterator[str]:
    yield x.upper()


HANDLERS: dict[str, Handler[..., Any]] = {"double": double, "shout": shout}


def session(usual: str | None = "double", trust_priority: bool = False, **limits: Any) -> Session:
    headers = {"x-tenant": "blue", "x-other": "no"}
    return Session(
        HANDLERS,
        Limits(**limits),
        Pulse(0.0),
        usual=usual,
        name="c1",
        headers=headers,
        trust_priority=trust_priority,
    )


def text(**fields: Any) -> str:
    return json.dumps(fields)


def started(actions: list[Action]) -> Request:
    (action,) = actions
    assert isinstance(action, Start)
    return action.request


def told(actions: list[Action]) -> dict[str, Any]:
    """The fields of the one message that is to be sent."""
    (action,) = actions
    assert isinstance(action, Send)
    data, is_text = action.message
    fields: dict[str, Any] = json.loads(data) if is_text else msgspec.msgpack.decode(data)
    return fields


def test_a_request_is_started_with_what_it_says() -> None:
    request = started(session().receive(text(id="a", input=3, handler="shout", timeout=1.5, priority=5), 0.0))
    assert (request.id, request.handler, request.timeout, request.priority) == ("a", shout, 1.5, 5)
    assert (request.info.request_id, request.info.headers) == ("c1/a", {"x-tenant": "blue"})
    assert (request.info.patience, request.info.nbytes, request.is_text) == (30.0, 1, True)


def test_where_no_handler_is_named_the_usual_one_is_meant() -> None:
    assert started(session().receive(text(id=1, input=3), 0.0)).handler is double
    error = told(session(usual=None).receive(text(id=1, input=3), 0.0))["error"]
    assert error == {
        "code": "not-found",
        "status": 404,
        "message": 'this connection has no usual handler, so name one in "handler"; there is double, shout',
    }


@pytest.mark.parametrize(
    ("trusted", "given", "taken"),
    [(False, 0, 3), (False, None, 3), (False, 7, 7), (True, 0, 0), (True, None, 3), (True, 7, 7)],
)
def test_a_priority_may_be_raised_by_who_is_trusted(trusted: bool, given: int | None, taken: int) -> None:
    message = text(id=1, input=1, **({} if given is None else {"priority": given}))
    assert started(session(trust_priority=trusted).receive(message, 0.0)).priority == taken


def test_an_id_in_a_log_cannot_begin_a_line_of_its_own() -> None:
    request = started(session().receive(text(id="a\nERROR b", input=1), 0.0))
    assert request.info.request_id == "c1/a%0AERROR%20b"


def test_an_integer_and_its_text_are_two_ids() -> None:
    one = session()
    started(one.receive(text(id=1, input=1), 0.0))
    started(one.receive(text(id="1", input=1), 0.0))


def test_an_id_is_free_when_its_last_message_is_about_to_go_and_not_before() -> None:
    one = session()
    request = started(one.receive(text(id=1, input=1), 0.0))
    assert told(one.receive(text(id=1, input=1), 0.0))["error"]["code"] == "duplicate-id"
    one.ended(request)
    again = started(one.receive(text(id=1, input=1), 0.0))
    assert one.finished(request, 1.0) == []
    # What ended was the first of that id, not the second.
    assert told(one.receive(text(id=1, input=1), 0.0))["error"]["code"] == "duplicate-id"
    one.ended(again)
    one.finished(again, 2.0)
    assert one.idle


def test_a_cancel_stops_what_runs_and_is_not_heard_for_what_does_not() -> None:
    one = session()
    request = started(one.receive(text(id=1, input=1), 0.0))
    (stop,) = one.receive(text(id=1, cancel=True), 0.0)
    assert isinstance(stop, Stop)
    assert (stop.request, type(stop.error)) == (request, Cancelled)
    assert one.receive(text(id=2, cancel=True), 0.0) == []


def test_beyond_the_limit_requests_wait_in_order_and_cancels_are_heard() -> None:
    one = session(max_in_flight=2)
    first, second = (started(one.receive(text(id=n, input=n), 0.0)) for n in range(2))
    assert [one.receive(text(id=n, input=n), 0.0) for n in range(2, 6)] == [[]] * 4
    assert told(one.receive(text(id=3, cancel=True), 0.0))["error"]["code"] == "cancelled"
    assert one.receive(text(id=3, cancel=True), 0.0) == []
    assert told(one.receive(text(id=4, input=1), 0.0))["error"]["code"] == "duplicate-id"
    order = []
    for request in (first, second):
        one.ended(request)
        order.append(started(one.finished(request, 0.0)).id)
    assert order == [2, 4]


def test_when_the_backlog_is_full_nothing_may_be_read_until_there_is_room() -> None:
    one = session(max_in_flight=1, max_backlog=5000)
    request = started(one.receive(text(id=0, input=0), 0.0))
    n = 0
    while one.reading:
        n += 1
        one.receive(text(id=n, input="x" * 1000), 0.0)
    assert 2 <= n <= 4
    one.ended(request)
    request = started(one.finished(request, 0.0))
    assert (request.id, one.reading) == (1, True)


def test_a_backlog_takes_one_message_that_is_larger_than_itself() -> None:
    one = session(max_in_flight=1, max_backlog=10)
    request = started(one.receive(text(id=0, input=0), 0.0))
    before = one.reading
    assert one.receive(text(id=1, input="x" * 1000), 0.0) == []
    assert (before, one.reading) == (True, False)
    one.ended(request)
    assert started(one.finished(request, 0.0)).id == 1


def test_small_messages_count_for_what_they_take_in_memory() -> None:
    one = session(max_in_flight=1, max_backlog=1 << 20)
    n = 0
    while one.reading:
        one.receive(text(id=n, input=0), 0.0)
        n += 1
    assert n < 3000


def test_while_draining_what_is_new_is_refused_and_what_is_in_goes_on() -> None:
    one = session(max_in_flight=1)
    request = started(one.receive(text(id=1, input=1), 0.0))
    one.receive(text(id=2, input=1), 0.0)
    one.drain()
    error = told(one.receive(text(id=3, input=1), 0.0))["error"]
    assert (error["code"], error["status"]) == ("closed", 503)
    assert error["retry_after"] > 0
    one.ended(request)
    assert started(one.finished(request, 0.0)).id == 2
    assert not one.idle


def test_what_is_abandoned_ends_as_closed() -> None:
    one = session(max_in_flight=1)
    request = started(one.receive(text(id=1, input=1), 0.0))
    one.receive(text(id=2, input=1), 0.0)
    waiting, running = one.abandon()
    assert told([waiting])["id"] == 2
    assert told([waiting])["error"]["code"] == "closed"
    assert isinstance(running, Stop)
    assert (running.request, type(running.error)) == (request, Closed)
    one.ended(request)
    assert one.finished(request, 0.0) == []
    assert one.idle


def test_idle_time_counts_from_the_last_message_and_from_the_last_end_of_a_request() -> None:
    one = Session(HANDLERS, Limits(), Pulse(0.0, ping_interval=None, idle_timeout=100.0), usual="double")
    request = started(one.receive(text(id=1, input=1), 50.0))
    assert one.pulse.tick(149.0, idle=one.idle) is None
    one.ended(request)
    one.finished(request, 200.0)
    assert one.pulse.tick(299.0, idle=one.idle) is None
    assert one.pulse.tick(300.0, idle=one.idle) == GiveUp("idle")
    one.receive(text(id="gone", cancel=True), 300.0)
    assert one.pulse.tick(399.0, idle=one.idle) is None


# ---------------------------------------------------------------------- requests


def request_of(message: str | bytes) -> Request:
    return started(session().receive(message, 0.0))


def test_an_input_is_read_by_its_handlers_codec_and_what_it_comes_to_is_written_by_it() -> None:
    request = request_of(text(id=1, input=21))
    assert request.value() == 21
    assert request.output(42).data == b'{"id":1,"output":42}'
    assert request.chunk("a").data == b'{"id":1,"chunk":"a"}'
    assert request.end().data == b'{"id":1,"end":true}'
    packed = request_of(msgspec.msgpack.encode({"id": 1, "input": 21}))
    assert packed.value() == 21
    assert msgspec.msgpack.decode(packed.output(42).data) == {"id": 1, "output": 42}


def test_an_error_is_told_as_it_is_and_a_handlers_own_only_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    request = request_of(text(id=1, input=21))
    told_error = json.loads(request.failed(HTTPError(404, "no such speaker")).data)["error"]
    assert told_error == {"code": "handler-refused", "status": 404, "message": "no such speaker"}
    assert not caplog.records
    told_error = json.loads(request.failed(HandlerError("ValueError", "secret", "Traceback: secret")).data)["error"]
    assert told_error == {"code": "handler-error", "status": 500, "message": "internal error, request c1/1"}
    assert "c1/1" in caplog.text
    assert "secret" in caplog.text


# ---------------------------------------------------------------------- limits


@pytest.mark.parametrize("field", ["max_in_flight", "max_backlog", "ping_interval", "ping_timeout", "idle_timeout"])
@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), ("1", TypeError), (True, TypeError)])
def test_a_limit_that_makes_no_sense_is_refused_by_name(field: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"{field}={value!r}"):
        Limits(**{field: value})


def test_a_number_of_requests_is_whole() -> None:
    with pytest.raises(TypeError, match="max_in_flight=1.5: give a whole number"):
        Limits(max_in_flight=1.5)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- whatever happens in whatever order


class SessionMachine(RuleBasedStateMachine):
    """A client that sends what it likes and a driver that finishes requests in any order: each id ends exactly once."""

    def __init__(self) -> None:
        super().__init__()
        self.session = session(max_in_flight=3, max_backlog=3000)
        self.places: set[Request] = set()
        self.sending: set[Request] = set()
        self.owed: dict[int, int] = {}
        self.draining = False

    def apply(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Start):
                assert action.request not in self.places
                self.places.add(action.request)
            elif isinstance(action, Send):
                fields = json.loads(action.message.data)
                if fields["error"]["code"] != "duplicate-id":
                    self.end(fields["id"])
            else:
                assert action.request in self.places - self.sending

    def end(self, id: Any) -> None:
        self.owed[id] -= 1
        if not self.owed[id]:
            del self.owed[id]

    @rule(id=st.integers(0, 9), size=st.integers(0, 600))
    def ask(self, id: int, size: int) -> None:
        if self.session.reading:
            duplicate = id in self.owed
            if not duplicate:
                self.owed[id] = 1
            actions = self.session.receive(text(id=id, input="x" * size), 0.0)
            if duplicate:
                assert told(actions)["error"]["code"] == "duplicate-id"
            self.apply(actions)

    @rule(id=st.integers(0, 9))
    def cancel(self, id: int) -> None:
        if self.session.reading:
            self.apply(self.session.receive(text(id=id, cancel=True), 0.0))

    @rule(message=st.one_of(st.text(), st.binary()))
    def babble(self, message: str | bytes) -> None:
        if self.session.reading:
            for action in self.session.receive(message, 0.0):
                assert isinstance(action, Send)

    @rule(pick=st.randoms(use_true_random=False))
    def send_last_message(self, pick: Any) -> None:
        ready = sorted(self.places - self.sending, key=lambda request: request.id)
        if ready:
            request = pick.choice(ready)
            self.sending.add(request)
            self.session.ended(request)
            self.end(request.id)

    @rule(pick=st.randoms(use_true_random=False))
    def message_is_out(self, pick: Any) -> None:
        if self.sending:
            request = pick.choice(sorted(self.sending, key=lambda request: (request.id, id(request))))
            self.sending.discard(request)
            self.places.discard(request)
            self.apply(self.session.finished(request, 0.0))

    @rule()
    def drain(self) -> None:
        self.draining = True
        self.session.drain()

    @invariant()
    def places_are_bounded_and_used(self) -> None:
        assert len(self.places) <= 3
        waiting = len(self.owed) - len(self.places - self.sending)
        assert waiting >= 0
        if len(self.places) < 3:
            assert waiting == 0
        assert self.session.idle is (not self.places and not waiting)

    def teardown(self) -> None:
        self.apply(self.session.abandon())
        while self.places:
            for request in list(self.places - self.sending):
                self.session.ended(request)
                self.end(request.id)
                self.sending.add(request)
            for request in list(self.sending):
                self.sending.discard(request)
                self.places.discard(request)
                self.apply(self.session.finished(request, 0.0))
        assert self.owed == {}
        assert self.session.idle
        assert self.session.reading


TestSessionMachine = SessionMachine.TestCase
