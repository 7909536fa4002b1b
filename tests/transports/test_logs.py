import io
import json
import logging
from collections.abc import Iterator

import pytest

from tidegate_transports.logs import JSONFormatter, configure, failed


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """Whatever a test sets up is undone: the log is the process's."""
    logger = logging.getLogger("tidegate")
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)


def test_a_line_of_json_holds_the_requests_facts_and_leaves_out_what_is_not_known() -> None:
    stream = io.StringIO()
    configure("json", stream=stream)
    failed(
        logging.ERROR, "%s failed: %s", "embed", 'a "quoted"\ntext', request_id="7", status=500, handler="", client=None
    )
    (line,) = stream.getvalue().splitlines()
    found = json.loads(line)
    assert list(found) == ["time", "level", "logger", "message", "request_id", "status"]
    assert found["message"] == 'embed failed: a "quoted"\ntext'
    assert (found["level"], found["logger"], found["status"]) == ("error", "tidegate.http", 500)
    assert found["time"].endswith("Z")


def test_a_line_of_text_is_for_people() -> None:
    stream = io.StringIO()
    configure(stream=stream)
    failed(logging.WARNING, "embed failed", request_id="7")
    assert stream.getvalue().endswith("Z WARNING tidegate.http: embed failed\n")


@pytest.mark.parametrize("format", ["json", "text"])
def test_a_traceback_is_shown_in_either(format: str) -> None:
    stream = io.StringIO()
    configure(format, stream=stream)  # type: ignore[arg-type]
    try:
        raise ValueError("broken")
    except ValueError:
        failed(logging.ERROR, "embed failed", exc_info=True)
    assert "ValueError: broken" in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 1 or format == "text"


def test_what_no_utf_8_can_hold_is_no_reason_to_lose_a_line() -> None:
    stream = io.StringIO()
    configure("json", stream=stream)
    failed(logging.ERROR, "half a pair \ud800", code=object())
    assert json.loads(stream.getvalue())["message"] == "half a pair ?"


def test_below_the_level_nothing_is_written() -> None:
    stream = io.StringIO()
    configure(level="error", stream=stream)
    failed(logging.INFO, "refused")
    assert stream.getvalue() == ""


def test_configuring_again_replaces_what_was_and_leaves_other_logs_alone() -> None:
    before = logging.root.handlers[:]
    first, second = io.StringIO(), io.StringIO()
    configure(stream=first)
    configure("json", stream=second)
    logging.getLogger("tidegate.service").warning("one line")
    assert first.getvalue() == ""
    assert len(second.getvalue().splitlines()) == 1
    assert logging.root.handlers == before


def test_a_wrong_format_is_told() -> None:
    with pytest.raises(ValueError, match="format='xml': write text or json"):
        configure("xml")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="LOUD"):
        configure(level="loud")


def test_records_of_other_libraries_have_a_form_too() -> None:
    record = logging.LogRecord("asyncio", logging.WARNING, "", 0, "slow %d", (7,), None)
    assert json.loads(JSONFormatter().format(record))["message"] == "slow 7"
