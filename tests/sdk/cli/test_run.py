import fcntl
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

APP = """
import os, sys, time
import numpy as np
from tidegate import serve
print("printed at import")

@serve(max_batch_size=16, worker="thread")
def echo(x):
    return x

@serve(max_batch_size=4, worker="thread")
def inverse(x: list[float]) -> list[float]:
    print("printed by the handler")
    assert sys.stdin.read() == ""
    return [1 / n for n in x]

@serve(max_batch_size=4, worker="thread")
def sizes(x: list[int]) -> list[int]:
    return [len(x) for _ in x]

@serve(worker="thread")
def count(n: int):
    yield from range(n)

@serve(max_batch_size=4)
def in_a_process(x: list[int]) -> list[int]:
    print("printed in the process")
    return [os.getpid() if n == 0 else n for n in x]

@serve(max_batch_size=2, worker="thread")
def held(x: list[str]) -> list[str]:
    for path in x:
        while not os.path.exists(path):
            time.sleep(0.001)
    return x

def no_weights(device):
    raise FileNotFoundError("no weights")

@serve(setup=no_weights, worker="thread")
def broken(state, x: int) -> int:
    return x
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


@pytest.fixture
def run(tidegate: str, folder: Path) -> Run:
    """`run("app.py:echo", input="…")` runs the command to its end."""

    def run(*arguments: str, input: str | bytes = "", timeout: float = 60) -> "subprocess.CompletedProcess[str]":
        data = input.encode() if isinstance(input, str) else input
        ran = subprocess.run(
            [tidegate, "run", *arguments], cwd=folder, input=data, capture_output=True, timeout=timeout, check=False
        )
        return subprocess.CompletedProcess(
            ran.args, ran.returncode, ran.stdout.decode(errors="surrogateescape"), ran.stderr.decode()
        )

    return run


@contextmanager
def started(tidegate: str, folder: Path, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(
        [tidegate, "run", *arguments],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
        watchdog.cancel()


# ---------------------------------------------------------------------- all is well


def test_every_line_is_answered_in_order_and_standard_output_carries_results_only(run: Run) -> None:
    ran = run("app.py:inverse", input="1\n2\n4\n8\n5")
    assert (ran.returncode, ran.stdout) == (0, "1.0\n0.5\n0.25\n0.125\n0.2\n")
    assert "printed at import" in ran.stderr
    assert "printed by the handler" in ran.stderr
    assert re.search(r"tidegate: 5 lines in .*, 0 failed, mean batch 2\.5, queue .*, run .*, workers busy", ran.stderr)


def test_a_process_runs_it_unless_told_otherwise_and_its_prints_go_to_standard_error(run: Run) -> None:
    ran = run("app.py:in_a_process", input="1\n0\n2\n")
    one, pid, two = map(json.loads, ran.stdout.splitlines())
    assert (one, two) == (1, 2)
    assert pid != os.getpid()
    assert "printed in the process" in ran.stderr
    assert "printed in the process" not in ran.stdout


def test_quietly_nothing_but_the_results_is_written(run: Run) -> None:
    ran = run("app.py:echo", "--quiet", input="1\nbad\n")
    assert ran.stdout.splitlines()[0] == "1"
    assert ran.stderr == "printed at import\n"
    assert ran.returncode == 1


def test_files_can_be_named(run: Run, folder: Path) -> None:
    (folder / "in.jsonl").write_text("1\n2\n")
    (folder / "out.jsonl").write_text("old\n" * 9)
    ran = run("app.py:echo", "--input", "in.jsonl", "--output", "out.jsonl")
    assert (ran.returncode, ran.stdout) == (0, "")
    assert (folder / "out.jsonl").read_text() == "1\n2\n"


@pytest.mark.parametrize(("source", "target"), [("-", "-"), ("/dev/stdin", "/dev/stdout")])
def test_files_may_be_the_standard_streams_by_their_names(source: str, target: str, run: Run) -> None:
    ran = run("app.py:inverse", "--input", source, "--output", target, input="1\n2\n")
    assert (ran.returncode, ran.stdout) == (0, "1.0\n0.5\n")


def test_an_empty_input_is_well(run: Run) -> None:
    ran = run("app.py:echo")
    assert (ran.returncode, ran.stdout) == (0, "")


def test_fields_are_read_and_results_added(run: Run) -> None:
    ran = run("app.py:inverse", "--input-field", "x", "--output-field", "y", input='{"x":2,"name":"a"}\n{"name":"b"}\n')
    first, second = map(json.loads, ran.stdout.splitlines())
    assert first == {"x": 2, "name": "a", "y": 0.5}
    assert second["error"]["line"] == 2
    assert ran.returncode == 1


def test_lines_of_openais_batch_api_are_answered_in_kind(run: Run) -> None:
    ran = run("app.py:echo", input='{"custom_id":"r-1","method":"POST","url":"/v1/x","body":{"input":"hi"}}\n')
    assert json.loads(ran.stdout) == {
        "id": "line-1",
        "custom_id": "r-1",
        "response": {"status_code": 200, "request_id": "line-1", "body": {"input": "hi"}},
        "error": None,
    }


def test_a_stream_is_a_list_or_comes_chunk_by_chunk(run: Run) -> None:
    assert run("app.py:count", input="3\n0\n").stdout == "[0,1,2]\n[]\n"
    assert run("app.py:count", "--stream", input="1\n").stdout == '{"line":1,"chunk":0}\n{"line":1,"end":true}\n'


def test_batches_are_full_and_flags_change_how_large_they_are(run: Run) -> None:
    assert run("app.py:sizes", input="1\n" * 9).stdout == "4\n" * 8 + "1\n"
    assert run("app.py:sizes", "--max-batch-size", "9", input="1\n" * 9).stdout == "9\n" * 9
    assert run("app.py:sizes", "--set", "sizes.max_batch_size=3", input="1\n" * 9).stdout == "3\n" * 9


# ---------------------------------------------------------------------- some lines fail


def test_broken_lines_in_the_middle_are_error_lines_and_the_exit_code_is_1(run: Run) -> None:
    ran = run("app.py:inverse", "--max-line", "1K", input=b'1\n1}\n0\n"x"\n\xff\xfe\n' + b"9" * 2000 + b"\n2\n")
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert ran.returncode == 1
    assert (lines[0], lines[-1]) == (1.0, 0.5)
    codes = [(line["error"]["code"], line["error"]["line"]) for line in lines[1:-1]]
    assert codes == [
        ("malformed-body", 2),
        ("handler-error", 3),
        ("invalid-input", 4),
        ("malformed-body", 5),
        ("malformed-body", 6),
    ]
    assert "line 3 failed: ZeroDivisionError" in ran.stderr
    assert "return [1 / n for n in x]" in ran.stderr
    assert "5 failed" in ran.stderr


def test_an_error_of_each_kind_is_shown_once(run: Run) -> None:
    ran = run("app.py:inverse", input="0\n" * 50 + "bad\n" * 50)
    assert ran.stderr.count("Traceback") == 1
    assert ran.stderr.count("malformed") <= 2


def test_too_many_errors_stop_it_with_4(run: Run) -> None:
    ran = run("app.py:echo", "--max-errors", "3", input="1\nbad\n" * 1000)
    assert ran.returncode == 4
    assert len(ran.stdout.splitlines()) == 6
    assert "stopped by --max-errors 3 after line 6; the rest: tail -n +7" in ran.stderr


# ---------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["app.py"], ["several handlers", "app.py:echo"]),
        (["app.py:ecko"], ["did you mean echo?"]),
        (["app.py:echo", "--resume"], ["--resume needs --output FILE", "emptied"]),
        (["app.py:echo", "--retry-errors"], ["--retry-errors needs --output FILE"]),
        (["app.py:echo", "--stream"], ["--stream", "one output"]),
        (["app.py:count", "--stream", "--output-field", "x"], ["--output-field", "--stream"]),
        (["app.py:count", "--stream", "--output", "o", "--resume"], ["--resume with --stream"]),
        (["app.py:echo", "--input", "nowhere.jsonl"], ["--input nowhere.jsonl", "No such file"]),
        (["app.py:echo", "--input", "."], ["--input .", "is a folder"]),
        (["app.py:echo", "--output", "no/where"], ["--output no/where", "No such file"]),
        (["app.py:echo", "--input", "app.py", "--output", "app.py"], ["--output app.py is the input"]),
        (["app.py:echo", "--output", "/dev/null", "--resume"], ["/dev/null", "no regular file"]),
        (["app.py:echo", "--max-batch-size", "0"], ["--max-batch-size 0", "1 or more"]),
        (["app.py:count", "--max-batch-size", "4"], ["count takes one item at a time"]),
    ],
)
def test_what_makes_no_sense_is_told_in_one_line_and_the_exit_code_is_2(
    arguments: list[str], parts: list[str], run: Run
) -> None:
    ran = run(*arguments)
    errors = [line for line in ran.stderr.splitlines() if line != "printed at import"]
    assert (ran.returncode, ran.stdout, len(errors)) == (2, "", 1)
    for part in parts:
        assert part in errors[0]


@pytest.mark.parametrize("size", ["many", "0", "-1", "1.5M", ""])
def test_a_size_that_is_none_is_told(size: str, run: Run) -> None:
    ran = run("app.py:echo", "--max-line", size)
    assert ran.returncode == 2
    assert "32M or 1G" in ran.stderr


def test_a_failing_setup_ends_with_3_and_leaves_no_output(run: Run) -> None:
    ran = run("app.py:broken", input="1\n")
    assert (ran.returncode, ran.stdout) == (3, "")
    assert "tidegate: setting up broken\n" in ran.stderr
    assert ran.stderr.splitlines()[-1] == "Error: setup of handler 'broken' failed: FileNotFoundError: no weights"


def test_help_shows_examples_and_exit_codes(run: Run) -> None:
    output = run("--help").stdout
    assert "tidegate run app.py:square < in.jsonl > out.jsonl" in output
    assert "143" in output


@pytest.mark.parametrize(
    ("closed", "text"), [("<&-", "standard input is closed"), (">&-", "standard output is closed")]
)
def test_a_closed_standard_stream_is_told(closed: str, text: str, tidegate: str, folder: Path) -> None:
    command = f"{tidegate} run app.py:echo {closed}"
    ran = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 2
    assert text in ran.stderr


# ---------------------------------------------------------------------- how it is stopped


@pytest.mark.parametrize("handler", ["echo", "in_a_process"])
def test_an_endless_input_ends_at_once_when_nobody_reads_the_output(handler: str, tidegate: str, folder: Path) -> None:
    command = f"yes 1 | {tidegate} run app.py:{handler} -q | head -1"
    ran = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, timeout=30, check=True)
    assert ran.stdout == "1\n"
    assert "Traceback" not in ran.stderr
    assert "Broken" not in ran.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_what_is_under_way_finish_and_says_where_to_go_on(
    number: signal.Signals, code: int, tidegate: str, folder: Path
) -> None:
    with started(tidegate, folder, "app.py:held") as process:
        assert process.stdin and process.stdout and process.stderr
        for _ in range(3):
            process.stdin.write(b'"app.py"\n"app.py"\n')
        process.stdin.write(b'"gone"\n"gone"\n')
        process.stdin.flush()
        for _ in range(6):
            assert process.stdout.readline() == b'"app.py"\n'
        process.send_signal(number)
        assert process.poll() is None
        (folder / "gone").touch()
        # Its input stays open: an end of that would be another reason to stop.
        output = process.stdout.readline() + process.stdout.readline()
        process.wait(30)
        errors = process.stderr.read()
    assert output == b'"gone"\n"gone"\n'
    assert process.returncode == code
    assert f"stopped by {number.name} after line 8; the rest: tail -n +9 INPUT" in errors.decode()


def test_a_second_signal_ends_it_now(tidegate: str, folder: Path) -> None:
    with started(tidegate, folder, "app.py:held") as process:
        assert process.stdin and process.stdout
        process.stdin.write(b'"app.py"\n"app.py"\n"never"\n"never"\n')
        process.stdin.flush()
        assert process.stdout.readline() == b'"app.py"\n'
        process.send_signal(signal.SIGINT)
        # Two that come at once are one to the system; a flood of them would hit the interpreter on its way out.
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
                break
            process.send_signal(signal.SIGINT)
    assert process.returncode == 130


def test_a_signal_before_the_first_line_ends_it_at_once(tidegate: str, folder: Path) -> None:
    (folder / "slow.py").write_text(
        "import sys, time\nfrom tidegate import serve\n"
        "print('importing', file=sys.stderr, flush=True)\nwhile True: time.sleep(0.01)\n"
    )
    with started(tidegate, folder, "slow.py:f") as process:
        assert process.stderr
        assert process.stderr.readline() == b"importing\n"
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (143, b"")


def test_a_full_disk_is_told_and_is_no_success(tidegate: str, folder: Path) -> None:
    command = f"echo 1 | {tidegate} run app.py:echo -q > /dev/full"
    ran = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 1
    assert "No space left on device" in ran.stderr
    assert "Traceback" not in ran.stderr


# ---------------------------------------------------------------------- descriptors of every kind


def test_results_come_while_input_stalls(tidegate: str, folder: Path) -> None:
    with started(tidegate, folder, "app.py:sizes") as process:
        assert process.stdin and process.stdout
        for lines in (1, 2, 3):
            process.stdin.write(b"1\n" * lines)
            process.stdin.flush()
            for _ in range(lines):
                assert process.stdout.readline() == b"%d\n" % lines


def test_descriptors_that_somebody_made_non_blocking_work(tidegate: str, folder: Path) -> None:
    read, write = os.pipe()
    out_read, out_write = os.pipe()
    for fd in (read, out_write):
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)
    data = b'"%s"\n' % (b"x" * 999) * 1000
    with subprocess.Popen([tidegate, "run", "app.py:echo", "-q"], cwd=folder, stdin=read, stdout=out_write) as process:
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        os.close(read)
        os.close(out_write)
        os.write(write, b"1\n")
        assert os.read(out_read, 10) == b"1\n"  # and now it waits for input
        writer = threading.Thread(target=_write_all, args=(write, data))
        writer.start()
        full = fcntl.fcntl(out_read, fcntl.F_GETPIPE_SZ) - 4096
        while _readable(out_read) < full:  # and now for room in its output
            time.sleep(0.001)
        with os.fdopen(out_read, "rb") as output:
            assert output.read() == data
        writer.join()
        assert process.wait(30) == 0
        watchdog.cancel()


def _readable(fd: int) -> int:
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


def _write_all(fd: int, data: bytes) -> None:
    with os.fdopen(fd, "wb") as file:
        file.write(data)


def test_a_terminal_works_as_input_and_gets_a_progress_bar(tidegate: str, folder: Path) -> None:
    parent, child = pty.openpty()
    attributes = termios.tcgetattr(child)
    attributes[3] &= ~termios.ECHO
    termios.tcsetattr(child, termios.TCSANOW, attributes)
    with subprocess.Popen(
        [tidegate, "run", "app.py:echo"],
        cwd=folder,
        stdin=child,
        stdout=subprocess.PIPE,
        stderr=child,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    ) as process:
        os.close(child)
        assert process.stdout
        os.write(parent, b"1\n")
        assert process.stdout.readline() == b"1\n"
        shown = b""
        while b"1 lines" not in shown or b"batch 1.0" not in shown:
            shown += os.read(parent, 4096)
        os.write(parent, b"2\n\x04")
        assert process.stdout.read() == b"2\n"
        assert process.wait(30) == 0
        os.close(parent)
    assert b"reading from the terminal" in shown


# ---------------------------------------------------------------------- with other tools


def test_gnu_split_and_a_loop(tidegate: str, folder: Path) -> None:
    (folder / "in.jsonl").write_text("".join(f"{n}\n" for n in range(100)))
    command = (
        "split --lines=30 --numeric-suffixes in.jsonl part. && "
        f'for part in part.*; do {tidegate} run app.py:echo -q < "$part"; done > out.jsonl'
    )
    subprocess.run(command, shell=True, cwd=folder, timeout=60, check=True)
    assert (folder / "out.jsonl").read_text() == (folder / "in.jsonl").read_text()


@pytest.mark.skipif(not shutil.which("jq"), reason="needs jq")
def test_jq_before_and_behind(tidegate: str, folder: Path) -> None:
    (folder / "in.json").write_text('[{"x":1},{"x":2},{"x":0}]')
    command = f"jq -c '.[].x' in.json | {tidegate} run app.py:inverse -q | jq -c 'if type == \"object\" then .error.line else . end'"
    ran = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.splitlines() == ["1", "0.5", "3"]


@pytest.mark.skipif(not shutil.which("parallel"), reason="needs GNU parallel")
def test_gnu_parallel_pipe(tidegate: str, folder: Path) -> None:
    (folder / "in.jsonl").write_text("".join(f"{n}\n" for n in range(300)))
    command = f"parallel --will-cite --pipe --keep-order --block 500 -j2 {tidegate} run app.py:echo -q < in.jsonl"
    ran = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout == (folder / "in.jsonl").read_text()
