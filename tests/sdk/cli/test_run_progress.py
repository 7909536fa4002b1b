import io

import pytest
from rich.console import Console

from tidegate import HandlerError, InvalidInput
from tidegate.cli.progress import Bar, Lines, Standing, progress_on
from tidegate.cli.watch import Complaints


def half_way() -> Standing:
    return Standing(answered=1500, failed=2, nbytes=50, size=100, batch=31.5, skipped=7)


def test_where_there_is_no_terminal_a_plain_line_comes_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with Lines(half_way, every=0.0) as progress:
        progress.show()
    with Lines(half_way, every=3600.0) as progress:
        progress.show()
    (line,) = capsys.readouterr().err.splitlines()
    for part in ("tidegate: 1,500 lines", "batch 31.5", "2 failed", "7 answered before", "left"):
        assert part in line


def test_of_an_input_of_unknown_size_no_end_is_foretold(capsys: pytest.CaptureFixture[str]) -> None:
    with Lines(lambda: Standing(answered=1, failed=0, nbytes=50, size=None, batch=1.0), every=0.0) as progress:
        progress.show()
    assert "left" not in capsys.readouterr().err


def test_a_terminal_gets_a_bar_that_goes_away() -> None:
    file = io.StringIO()
    with Bar(half_way, Console(file=file, force_terminal=True, width=120)) as progress:
        progress.show()
    assert "50 %" in file.getvalue()
    assert "1,500 lines" in file.getvalue()


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_on(half_way, quiet=True) as progress:
        progress.show()
    assert capsys.readouterr() == ("", "")


def test_of_each_kind_of_error_the_first_is_told_and_of_too_many_kinds_no_more(
    capsys: pytest.CaptureFixture[str],
) -> None:
    complaints = Complaints(quiet=False)
    for number in range(1, 4):
        complaints.add(number, InvalidInput("bad"))
    for number in range(4, 20):
        complaints.add(number, HandlerError(f"Error{number}", "text", "Traceback…\n"))
    told = capsys.readouterr().err
    assert told.count("bad") == 1
    assert told.count("Traceback") == 4
    assert "line 4 failed: Error4: text" in told
