import logging

import pytest

from tidegate.reruns import QUIET, Reruns
from tidegate_batching import BatchSizeMismatch, OutOfMemory


def test_a_failed_batch_is_told_with_the_handler_its_size_and_why(caplog: pytest.LogCaptureFixture) -> None:
    Reruns("embed").failed(8, BatchSizeMismatch(8, 7))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "handler embed: a batch of 8 items failed and is run again in parts: "
        "the handler got 8 items and returned 7 outputs: return one per item, in the items' order"
    )


def test_out_of_memory_is_told_as_such(caplog: pytest.LogCaptureFixture) -> None:
    Reruns("embed").failed(64, OutOfMemory("tried to allocate 2 GiB"))
    (message,) = caplog.messages
    assert message.endswith("is run again in smaller batches: OutOfMemory: tried to allocate 2 GiB")


def test_a_batch_of_one_is_its_callers_to_hear_of(caplog: pytest.LogCaptureFixture) -> None:
    Reruns("embed").failed(1, ValueError("no"))
    assert caplog.messages == []


def test_failures_of_one_type_are_told_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    reruns = Reruns("embed", now=lambda: now)
    for error in (ValueError("one"), ValueError("two"), KeyError("three")):
        reruns.failed(4, error)
    now = QUIET
    reruns.failed(2, ValueError("four"))
    assert [message.rpartition(": ")[2] for message in caplog.messages] == ["one", "'three'", "four"]
