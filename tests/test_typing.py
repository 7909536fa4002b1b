"""What users write is typed: right uses pass both type checkers, and wrong ones are errors."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RIGHT = ROOT / "tests" / "typing" / "handlers.py"
WRONG = ROOT / "tests" / "typing" / "wrong.py"


def checked(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_right_uses_pass_mypy_and_every_error_that_wrong_ones_expect_is_one() -> None:
    ran = checked("mypy", "--strict", str(RIGHT), str(WRONG))
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_right_uses_are_not_refused_when_they_run() -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(RIGHT)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_an_error_that_is_none_would_be_seen(tmp_path: Path) -> None:
    file = tmp_path / "right_after_all.py"
    file.write_text('from tidegate import serve\n\nserve(name="a")  # type: ignore[call-overload]\n')
    ran = checked("mypy", "--strict", str(file))
    assert ran.returncode == 1
    assert 'Unused "type: ignore" comment' in ran.stdout


@pytest.mark.skipif(find_spec("pyright") is None, reason="pyright is not installed")
def test_right_uses_pass_pyright() -> None:
    ran = checked("pyright", "--pythonpath", sys.executable, str(RIGHT))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "0 errors, 0 warnings" in ran.stdout


@pytest.mark.skipif(find_spec("pyright") is None, reason="pyright is not installed")
def test_pyright_refuses_what_mypy_refuses(tmp_path: Path) -> None:
    source = WRONG.read_text()
    expected = {n for n, line in enumerate(source.splitlines(), 1) if "# type: ignore[" in line}
    file = tmp_path / "wrong.py"
    file.write_text(re.sub(r"  # type: ignore\[.*\]", "", source))
    ran = checked("pyright", "--pythonpath", sys.executable, str(file))
    assert {int(line) for line in re.findall(r"wrong\.py:(\d+):\d+ - error", ran.stdout)} == expected, ran.stdout
