import io
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from tidegate.bench.record import Measurement, Record
from tidegate.bench.report import figures_of, notes_of, show, written_json
from tidegate.bench.scenarios import Row
from tidegate.bench.sender import OK, Ending


def measurement(seconds: float = 0.01, count: int = 2000, bad: Sequence[Ending] = (), **changes: Any) -> Measurement:
    record = Record(0.0, 10.0)
    for ending in [OK] * count + list(bad):
        record.sending(1.0, None)
        record.ended(1.0, ending, 1.0 + (seconds if ending is OK else 7.0))
    return replace(record.measurement(None, 0.05), **changes)


def row(*runs: Measurement, **changes: Any) -> Row:
    return Row(**{"config": {}, "scenario": "loads", "load": "8 callers", "runs": list(runs), **changes})


def shown(rows: Sequence[Row]) -> str:
    file = io.StringIO()
    show(rows, file)
    return file.getvalue()


def test_a_table_has_what_there_is_and_no_empty_columns() -> None:
    text = shown([row(measurement(mean_batch=4.25)), row(measurement(0.5), load="16 callers")])
    head = text.splitlines()[1]
    assert "batch" in head
    for absent in ("CPU", "failed", "refused", "max_batch_size"):
        assert f" {absent}" not in head.replace("generator", "")
    (line,) = (line for line in text.splitlines() if "8 callers" in line)
    assert "200" in line
    assert "10.0" in line
    assert "4.2" in line
    assert "\x1b" not in text


def test_errors_have_columns_and_lines_of_their_own() -> None:
    bad = [Ending("overloaded", 429, "The queue is full")] * 3 + [
        Ending("handler-error", 500, "boom"),
        Ending("timeout"),
    ]
    text = shown([row(measurement(bad=bad))])
    head, _, line = text.splitlines()[1:4]
    for kind, count in {"refused": "3", "timeouts": "1", "failed": "1"}.items():
        assert kind in head
        assert count in line.split()
    assert "8 callers: 3 × 429 overloaded, such as: The queue is full" in text
    assert "8 callers: 1 × 500 handler-error, such as: boom" in text
    assert "these took up to 7,000 ms" in text


def test_several_runs_show_their_median_and_spread() -> None:
    found = row(measurement(0.010, 1000), measurement(0.030, 3000), measurement(0.020, 2000))
    figures = figures_of(found)
    assert figures["throughput"] is not None
    assert (figures["throughput"].median, figures["throughput"].low, figures["throughput"].high) == (200, 100, 300)
    text = shown([found])
    assert "200 (100–300)" in text
    assert "20.0 (10.0–30.0)" in text
    assert "Of several runs the median" in text


def test_tails_without_samples_are_dashes_and_said_to_be() -> None:
    text = shown([row(measurement(count=50))])
    assert text.count("–") >= 2
    assert "too few samples" in text


def test_a_generator_that_may_be_what_limits_is_marked_and_named() -> None:
    slow = replace(measurement().generator, cpu=0.97)
    text = shown([row(measurement(generator=slow), config={"max_batch_size": 8})])
    assert "97% CPU !" in text
    assert "! max_batch_size 8, 8 callers: the load generator may be what limits here: it used 97% of a core" in text


def test_a_narrow_terminal_loses_columns_and_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for width, lost in ((70, "generator"), (200, None)):
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("TERM", "xterm")
        file = Terminal()
        show([row(measurement(mean_batch=4.25))], file)
        text = re.sub("\x1b[^m]*m", "", file.getvalue())
        assert ("8 callers" in text, "200" in text) == (True, True)
        assert ("Left out" in text) == (lost is not None)
        assert ("% CPU" in text) == (lost is None)


def test_without_rows_nothing_is_shown() -> None:
    assert shown([]) == ""
    assert "found nothing." in shown([row(note="found nothing", load="Poisson")])


def test_the_json_holds_runs_and_figures_in_seconds() -> None:
    rows = [row(measurement(), config={"batch_timeout": "auto"}, note="as asked")]
    told = msgspec.json.decode(written_json(rows, {"target": "app.py:f", "seed": 3}))
    assert (told["target"], told["seed"]) == ("app.py:f", 3)
    (found,) = told["rows"]
    assert found["config"] == {"batch_timeout": "auto"}
    assert found["figures"]["p50"]["median"] == pytest.approx(0.01)
    assert found["runs"][0]["latency"]["count"] == 2000
    assert found["runs"][0]["goodput"] == pytest.approx(200)
    assert found["runs"][0]["complaint"] is None
    assert told["notes"] == notes_of(rows)
