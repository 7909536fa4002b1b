import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from tidegate_transports.preferences import Wait, priority_of, repeated, trace_of, wait_of

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("header", "priority"),
    [
        ("u=0", 0),
        ("u=7", 7),
        ("u=5, i", 5),
        ("i, u=5", 5),
        ("i;a=1,u=5;why=slow", 5),
        ("  u=5  ", 5),
        ("u=1\t,\tu=2", 2),
        ('x="a, u=1", u=6', 6),
        ("x=(a b;q=1 2.5), u=6", 6),
        ("x=(), u=6", 6),
        ("x=:aGk=:, y=?1, z=-1.5, u=6", 6),
        # No value of the field's own, or none that it may have: as if it were not there.
        ("u=8", 3),
        ("u=-1", 3),
        ("u=2.0", 3),
        ('u="2"', 3),
        ("u", 3),
        ("u=?1", 3),
        ("u=05", 3),
        ("u=1, u", 3),
        # Malformed, and then all of it is passed over.
        ("", 3),
        ("u=", 3),
        ("u=5,", 3),
        (",u=5", 3),
        ("u=5 i", 3),
        ("U=5", 3),
        ("u =5", 3),
        ("u=5, x=(", 3),
        ("u=5, x=\xe9", 3),
        ("u=5\n", 3),
        ("u=5," + "x," * 2000 + "y", 3),
    ],
)
def test_a_priority_is_a_structured_field(header: str, priority: int) -> None:
    assert priority_of(header) == priority


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        ("wait=10", Wait(10.0, "10")),
        ("wait=2.5", Wait(2.5, "2.5")),
        ("wait=0", Wait(0.0, "0")),
        ("WAIT = 10", Wait(10.0, "10")),
        ('wait="10"', Wait(10.0, "10")),
        ("respond-async, wait=10", Wait(10.0, "10")),
        ("wait=10; x=y; z, other", Wait(10.0, "10")),
        ('x="a, wait=1", wait=10', Wait(10.0, "10")),
        (",, wait=10", Wait(10.0, "10")),
        ("broken token, wait=10", Wait(10.0, "10")),
        # Of two the first counts, also when nothing can be made of it.
        ("wait=1, wait=2", Wait(1.0, "1")),
        ("wait=soon, wait=2", None),
        ("", None),
        ("wait", None),
        ("wait=", None),
        ("wait=-1", None),
        ("wait=1e3", None),
        ("wait=inf", None),
        ("wait=nan", None),
        ("wait=.5", None),
        ("wait=5s", None),
        ("wait=١", None),
        ("wait=" + "9" * 400, None),
        ("x, " * 1000 + "wait=1", None),
        ("waiting=1", None),
    ],
)
def test_a_patience_is_read_as_preferences_are_written(header: str, wait: Wait | None) -> None:
    assert wait_of(header) == wait


@pytest.mark.parametrize(
    ("header", "trace"),
    [
        (f"00-{TRACE}-{SPAN}-01", TRACE),
        (f"cc-{TRACE}-{SPAN}-01-what-comes-later", TRACE),
        (f"00-{TRACE}-{SPAN}-01-more", ""),
        (f"ff-{TRACE}-{SPAN}-01", ""),
        (f"00-{'0' * 32}-{SPAN}-01", ""),
        (f"00-{TRACE}-{'0' * 16}-01", ""),
        (f"00-{TRACE.upper()}-{SPAN}-01", ""),
        (f"00-{TRACE}-{SPAN}-1", ""),
        (f"00-{TRACE}-{SPAN}-01\n", ""),
        (f"01-{TRACE}-{SPAN}-01-{'x' * 2000}", ""),
        ("", ""),
    ],
)
def test_a_trace_is_known_by_its_form(header: str, trace: str) -> None:
    assert trace_of(header) == trace


def test_headers_that_come_twice_are_one() -> None:
    assert repeated({"prefer": "a"}, "prefer") == "a"
    assert repeated({}, "prefer") == ""
    assert repeated(CIMultiDict([("Prefer", "a"), ("prefer", "wait=1")]), "prefer") == "a, wait=1"


@given(st.text(max_size=200))
def test_nothing_that_a_header_may_hold_is_an_error(text: str) -> None:
    assert priority_of(text) in range(8)
    wait = wait_of(text)
    assert wait is None or wait.seconds >= 0
    assert trace_of(text) == "" or len(trace_of(text)) == 32


@pytest.mark.parametrize("piece", ["a;", "x=(a ", 'x="', "a;b;", "(", "x=( ", "a=b;", "\t,", "a ;", '"\\'])
def test_no_header_takes_long(piece: str) -> None:
    began = time.perf_counter()
    for prefix in ("", "x=", "x=(", "wait"):
        priority_of(prefix + piece * (1000 // len(piece)))
        wait_of(prefix + piece * (1000 // len(piece)))
    assert time.perf_counter() - began < 1
