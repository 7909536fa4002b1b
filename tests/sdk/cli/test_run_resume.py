import json
import random
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

LINES = 3000

APP = """
import os, time
from tidegate import serve

@serve(max_batch_size=16, worker="thread")
def square(x: list[int]) -> list[int]:
    time.sleep(0.002)
    return [ValueError("thirteen") if n % 13 == 0 and not os.path.exists("cured") else n * n for n in x]
"""


@pytest.fixture(scope="module")
def inputs() -> dict[str, str]:
    bare = [str(n) if n % 50 else "broken" for n in range(1, LINES)]
    ids = [json.dumps({"custom_id": f"id-{n}", "body": n}) if n % 50 else "broken" for n in range(1, LINES)]
    return {"bare": "\n\n".join(bare) + "\n", "ids": "\n".join(ids)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def command(tidegate: str, *arguments: str) -> list[str]:
    return [tidegate, "run", "app.py:square", "--input", "in.jsonl", "--output", "out.jsonl", "-q", *arguments]


def uninterrupted(tidegate: str, folder: Path, *arguments: str) -> list[str]:
    whole = [tidegate, "run", "app.py:square", "--input", "in.jsonl", "--output", "whole.jsonl", "-q", *arguments]
    assert subprocess.run(whole, cwd=folder, timeout=60, check=False).returncode == 1
    return (folder / "whole.jsonl").read_text().splitlines()


def interrupt(process: "subprocess.Popen[bytes]", output: Path, size: int, number: signal.Signals) -> None:
    """Send the signal when the output is so large, or the process has ended before."""
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    while process.poll() is None and (not output.exists() or output.stat().st_size < size):
        time.sleep(0.0005)
    process.send_signal(number)
    process.wait()
    watchdog.cancel()


@pytest.mark.parametrize("kind", ["bare", "ids"])
def test_killed_at_twenty_moments_and_resumed_the_output_is_the_uninterrupted_one(
    kind: str, inputs: dict[str, str], tidegate: str, folder: Path
) -> None:
    (folder / "in.jsonl").write_text(inputs[kind])
    expected = uninterrupted(tidegate, folder)
    total = (folder / "whole.jsonl").stat().st_size
    moments = sorted(random.Random(kind).sample(range(total), 10))
    output = folder / "out.jsonl"
    for size in moments:
        with subprocess.Popen(command(tidegate, "--resume"), cwd=folder) as process:
            interrupt(process, output, size, signal.SIGKILL)
        # As if it had been cut in the middle of a line, which one kill in many does by itself.
        with output.open("r+b") as file:
            end = file.seek(0, 2)
            file.truncate(max(0, end - random.Random(size).randrange(12)))
    assert subprocess.run(command(tidegate, "--resume"), cwd=folder, timeout=60, check=False).returncode == 1
    assert output.read_text().splitlines() == expected


def test_without_an_order_every_line_is_answered_once_however_often_it_is_killed(
    inputs: dict[str, str], tidegate: str, folder: Path
) -> None:
    (folder / "in.jsonl").write_text(inputs["ids"])
    expected = uninterrupted(tidegate, folder, "--unordered")
    output = folder / "out.jsonl"
    total = (folder / "whole.jsonl").stat().st_size
    for size in (total // 7, total // 2):
        with subprocess.Popen(command(tidegate, "--unordered", "--resume"), cwd=folder) as process:
            interrupt(process, output, size, signal.SIGKILL)
    subprocess.run(command(tidegate, "--unordered", "--resume"), cwd=folder, timeout=60, check=False)
    assert sorted(output.read_text().splitlines()) == sorted(expected)


@pytest.mark.parametrize("order", [[], ["--unordered"]])
def test_stopped_by_a_signal_and_resumed_nothing_is_missing_or_twice(
    order: list[str], inputs: dict[str, str], tidegate: str, folder: Path
) -> None:
    (folder / "in.jsonl").write_text(inputs["ids"])
    expected = uninterrupted(tidegate, folder, *order)
    output = folder / "out.jsonl"
    with subprocess.Popen(command(tidegate, "--resume", *order), cwd=folder) as process:
        interrupt(process, output, 5000, signal.SIGINT)
        assert process.returncode == 130
    assert output.read_bytes().endswith(b"\n")
    subprocess.run(command(tidegate, "--resume", *order), cwd=folder, timeout=60, check=False)
    assert sorted(output.read_text().splitlines()) == sorted(expected)


@pytest.mark.parametrize("order", [[], ["--unordered"]])
def test_lines_that_failed_run_again_when_told_so(
    order: list[str], inputs: dict[str, str], tidegate: str, folder: Path
) -> None:
    (folder / "in.jsonl").write_text(inputs["ids"].replace("broken", '{"custom_id":"x","body":13}'))
    subprocess.run(command(tidegate, *order), cwd=folder, timeout=60, check=False)
    output = folder / "out.jsonl"
    before = output.read_text().splitlines()
    assert any("thirteen" in line for line in before)
    # Without the flag they stay, and the exit code says that there are some.
    again = subprocess.run(command(tidegate, "--resume", *order), cwd=folder, timeout=60, check=False)
    assert (again.returncode, output.read_text().splitlines()) == (1, before)
    (folder / "cured").touch()
    again = subprocess.run(command(tidegate, "--retry-errors", *order), cwd=folder, timeout=60, check=False)
    assert again.returncode == 0
    after = output.read_text().splitlines()
    assert len(after) == len(before)
    assert not any("thirteen" in line for line in after)
    if not order:
        assert [json.loads(line)["custom_id"] for line in after] == [json.loads(line)["custom_id"] for line in before]
    assert sorted(entry.name for entry in folder.iterdir() if "retry" in entry.name) == []


def test_killed_while_it_retries_nothing_is_lost(inputs: dict[str, str], tidegate: str, folder: Path) -> None:
    (folder / "in.jsonl").write_text(inputs["ids"])
    before = uninterrupted(tidegate, folder)
    output = folder / "out.jsonl"
    (folder / "whole.jsonl").rename(output)
    beside = folder / "out.jsonl.retry"
    with subprocess.Popen(command(tidegate, "--retry-errors"), cwd=folder) as process:
        interrupt(process, beside, 5000, signal.SIGKILL)
    assert output.read_text().splitlines() == before
    with subprocess.Popen(command(tidegate, "--retry-errors"), cwd=folder) as process:
        interrupt(process, beside, 50000, signal.SIGINT)
    # Stopped in good order, what is known of the rest is kept.
    assert output.read_text().splitlines() == before
    assert not beside.exists()


def test_an_output_of_another_input_is_refused(tidegate: str, folder: Path) -> None:
    (folder / "in.jsonl").write_text("1\n2\n")
    (folder / "out.jsonl").write_text("1\n4\n9\n")
    ran = subprocess.run(
        command(tidegate, "--resume"), cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 2
    assert "1 more answers than the input has lines" in ran.stderr
    assert (folder / "out.jsonl").read_text() == "1\n4\n9\n"


def test_a_line_without_an_id_cannot_be_resumed_without_an_order(tidegate: str, folder: Path) -> None:
    (folder / "in.jsonl").write_text('{"custom_id":"a","body":1}\n2\n')
    (folder / "out.jsonl").write_text("")
    ran = subprocess.run(
        command(tidegate, "--resume", "--unordered"),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 2
    assert "line 2 has no custom_id" in ran.stderr
