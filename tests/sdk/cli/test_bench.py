import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tidegate.cli.bench import bench
from tidegate.cli.bench_grid import configurations, numbers
from tidegate.cli.overrides import Change

Serving = Callable[..., AbstractContextManager[tuple["subprocess.Popen[str]", list[str]]]]
Run = Callable[..., "subprocess.CompletedProcess[str]"]

APP = """
import os, sys
from tidegate import HTTPError, serve

print("printed by the module")

@serve(max_batch_size=4, batch_timeout=0.0, worker="thread")
def double(xs: list[int]) -> list[int]:
    return [2 * x for x in xs]

@serve(max_batch_size=4, worker="thread")
def picky(xs: list[int]) -> list[int]:
    return [x if x else HTTPError(422, "zero is no number") for x in xs]

@serve(max_batch_size=1, max_queue_size=1, worker="thread")
def narrow(xs: list[int]) -> list[int]:
    return xs

@serve(worker="thread")
def raw(body: bytes) -> int:
    return len(body)

def load(device):
    raise FileNotFoundError("no weights")

@serve(worker="thread", setup=load)
def broken(state, x: int) -> int:
    return x
"""

SHORT = ("--duration", "0.4", "--warmup-time", "0.1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


@pytest.fixture
def run(tidegate: str, folder: Path) -> Run:
    def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [tidegate, "bench", *arguments],
            cwd=folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    return run


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "out.json").read_text())["rows"]
    return found


def url_in(printed: list[str]) -> str:
    found = re.search(r"http://127\.0\.0\.1:\d+", "\n".join(printed))
    assert found
    return found[0]


# ---------------------------------------------------------------------- a target


def test_a_target_is_served_and_measured_with_a_table_json_and_a_plot(run: Run, folder: Path) -> None:
    ran = run("app.py:double", "--connections", "1,4", *SHORT, "--json", "out.json", "--plot", "out.html")
    assert ran.returncode == 0, ran.stderr
    assert "1 caller" in ran.stdout
    assert "4 callers" in ran.stdout
    assert "p99.9 ms" in ran.stdout
    assert "printed by the module" not in ran.stdout
    assert ran.stderr.splitlines()[-2:] == ["tidegate: 1 caller", "tidegate: 4 callers"]
    one, four = rows(folder)
    for row in (one, four):
        (measured,) = row["runs"]
        assert measured["ok"] == measured["sent"] > 10
        assert measured["mean_batch"] >= 1.0
        assert measured["cpu_per_1000"] > 0
    assert (folder / "out.html").read_text().startswith("<!DOCTYPE html>")


def test_several_values_of_options_are_all_measured_each_as_a_service_of_its_own(run: Run, folder: Path) -> None:
    options = ("--set", "double.max_batch_size=1,4", "--connections", "4", *SHORT, "--json", "out.json")
    ran = run("app.py:double", *options, TIDEGATE_BATCH_TIMEOUT="0.001")
    assert ran.returncode == 0, ran.stderr
    small, large = rows(folder)
    assert (small["config"], large["config"]) == ({"max_batch_size": 1}, {"max_batch_size": 4})
    assert small["runs"][0]["mean_batch"] == 1.0
    assert large["runs"][0]["mean_batch"] > 1.0


def test_in_process_there_is_no_http_and_repeats_have_a_spread(run: Run, folder: Path) -> None:
    ran = run(
        "app.py:double",
        "--in-process",
        *("--max-batch-size", "1,4", "--batch-timeout", "0,auto", "--connections", "8", "--repeat", "2"),
        *SHORT,
        *("--json", "out.json", "--latency-bound", "0.1"),
    )
    assert ran.returncode == 0, ran.stderr
    found = rows(folder)
    assert [tuple(row["config"].values()) for row in found] == [(1, 0), (1, "auto"), (4, 0), (4, "auto")]
    assert all(len(row["runs"]) == 2 for row in found)
    assert "goodput/s" in ran.stdout
    assert "share one process" in ran.stdout
    assert re.search(r"\d \([\d,.]+–[\d,.]+\)", ran.stdout)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (("--rate", "200,400"), ["Poisson 200/s", "Poisson 400/s"]),
        (("--burst", "10", "--every", "0.1"), ["10 every 0.1 s"]),
        (("--scenario", "single-stream"), ["one at a time"]),
        (("--scenario", "offline", "--requests", "500"), ["500 at once"]),
    ],
)
def test_each_shape_of_load_gets_its_rows(options: tuple[str, ...], shown: list[str], run: Run, folder: Path) -> None:
    ran = run("app.py:double", "--in-process", *options, *SHORT, "--json", "out.json", "--quiet")
    assert ran.returncode == 0, ran.stderr
    assert [row["load"] for row in rows(folder)] == shown
    assert all(row["runs"][0]["ok"] for row in rows(folder))
    assert ran.stderr == "printed by the module\n"


def test_the_highest_rate_within_a_bound_is_searched_for(run: Run, folder: Path) -> None:
    options = ("--scenario", "server", "--latency-bound", "30", "--duration", "0.2", "--warmup-time", "0")
    ran = run("app.py:double", "--in-process", *options, "--json", "out.json")
    assert ran.returncode == 0, ran.stderr
    (row,) = rows(folder)
    assert "p99 within 30000 ms" in row["note"]
    assert "tried" in ran.stderr


# ---------------------------------------------------------------------- a URL


def test_a_service_that_is_not_there_is_told_in_one_line(run: Run) -> None:
    ran = run("http://127.0.0.1:1/f", *SHORT)
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert line.startswith("Error: http://127.0.0.1:1 cannot be reached: ")


def test_a_url_is_measured_with_the_example_that_the_service_tells_of(run: Run, serving: Serving, folder: Path) -> None:
    with serving("app.py:double", "app.py:raw", cwd=folder, env={"TIDEGATE_API_KEY": "sesame,other"}) as (_, printed):
        url = url_in(printed)
        ran = run(f"{url}/double", "--connections", "2", *SHORT, "--json", "out.json", TIDEGATE_API_KEY="sesame\nother")
        assert ran.returncode == 0, ran.stderr
        assert rows(folder)[0]["runs"][0]["mean_batch"] >= 1.0
        assert "sesame" not in (folder / "out.json").read_text() + ran.stdout + ran.stderr
        unlocked = run(f"{url}/double", "--input", "app.py", *SHORT)
        assert unlocked.returncode == 1
        assert "401" in unlocked.stderr
        (folder / "blob.bin").write_bytes(b"\x00" * 100)
        header = ("--header", "X-API-Key: other")
        sent = run(f"{url}/raw", "--input", "blob.bin", *header, "--connections", "2", *SHORT)
        assert sent.returncode == 0, sent.stderr
        lost = run(f"{url}/nothing", *SHORT, TIDEGATE_API_KEY="sesame")
        assert lost.returncode == 2
        assert f"there is {url}/double, {url}/raw" in lost.stderr
        aimless = run(f"{url}/raw", *SHORT, TIDEGATE_API_KEY="sesame")
        assert aimless.returncode == 2
        assert "give --input FILE" in aimless.stderr


def test_a_websocket_is_measured_too(run: Run, serving: Serving, folder: Path) -> None:
    (folder / "in.jsonl").write_text("1\n2\n3\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with serving("app.py:double", "--ws", address, cwd=folder):
        options = ("--input", "in.jsonl", "--connections", "8", "--sockets", "2", "--json", "out.json")
        ran = run(f"ws://{address}/double", *options, *SHORT)
    assert ran.returncode == 0, ran.stderr
    assert rows(folder)[0]["runs"][0]["ok"] > 8


def test_nobody_there_is_told_with_3(run: Run, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/double"
    ran = run(url, "--input", "app.py")
    assert ran.returncode == 3
    assert "is the service running there?" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


# ---------------------------------------------------------------------- what goes wrong


def test_requests_that_fail_make_it_1_and_have_a_line(run: Run, folder: Path) -> None:
    (folder / "in.jsonl").write_text("1\n0\n")
    ran = run("app.py:picky", "--in-process", "--input", "in.jsonl", "--connections", "2", "--duration", "2")
    assert ran.returncode == 1
    assert "422 handler-refused, such as: zero is no number" in ran.stdout
    assert "failed" in ran.stdout


def test_an_input_that_fails_at_once_is_told_before_thousands_are_sent(run: Run, folder: Path) -> None:
    (folder / "in.json").write_text("0")
    ran = run("app.py:picky", "--input", "in.json", *SHORT)
    assert ran.returncode == 1
    assert "the first request failed: 422 handler-refused: zero is no number; try another --input" in ran.stderr
    assert ran.stdout == ""


def test_refusals_are_no_failures(run: Run, folder: Path) -> None:
    ran = run("app.py:narrow", "--in-process", "--connections", "16", *SHORT)
    assert ran.returncode == 0, ran.stdout
    assert "429 overloaded" in ran.stdout
    assert "refused" in ran.stdout


@pytest.mark.parametrize("where", [[], ["--in-process"]])
def test_a_setup_that_fails_makes_it_3_with_its_traceback(where: list[str], run: Run) -> None:
    ran = run("app.py:broken", *where, *SHORT)
    assert ran.returncode == 3
    assert "in load" in ran.stderr
    assert ran.stderr.splitlines()[-1] == "Error: setup of handler 'broken' failed: FileNotFoundError: no weights"


def test_ctrl_c_prints_what_there_is_and_leaves_no_service_behind(tidegate: str, folder: Path) -> None:
    with subprocess.Popen(
        [tidegate, "bench", "app.py:double", "--connections", "1,2,4", "--duration", "60", "--warmup-time", "0"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        assert process.stderr is not None
        while "1 caller" not in process.stderr.readline():
            assert process.poll() is None
        children = _children(process.pid)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, errors = process.communicate(timeout=60)
        watchdog.cancel()
    assert process.returncode == 130
    assert "1 caller" in out
    assert "2 callers" not in out
    assert "Stopped early" in out
    assert "Traceback" not in errors
    assert children
    assert not any(Path(f"/proc/{child}").exists() for child in children)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_a_bench_that_is_killed_takes_its_service_with_it(tidegate: str, folder: Path) -> None:
    (folder / "told.py").write_text(
        "import os, socket\nfrom tidegate import serve\n\n"
        "def load(device):\n"
        "    held = socket.create_connection(('127.0.0.1', int(os.environ['HELD_PORT'])))\n    return held\n\n"
        "@serve(worker='thread', setup=load)\ndef f(held, x: int) -> int:\n    return x\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(60)
        environment = {**os.environ, "HELD_PORT": str(listening.getsockname()[1])}
        process = subprocess.Popen([tidegate, "bench", "told.py", "--duration", "60"], cwd=folder, env=environment)
        held, _ = listening.accept()
        with held:
            held.settimeout(60)
            process.kill()
            process.wait(60)
            # End of file: the service that had it open is gone.
            assert held.recv(1) == b""


def _children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found.append(int(stat.parent.name))
    return found


# ---------------------------------------------------------------------- usage


@pytest.fixture
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(folder)
    yield folder
    sys.modules.pop("app", None)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["app.py"], ["several handlers", "app.py:double"]),
        (["app.py:dubble"], ["did you mean double?"]),
        (["app.py:double", "--rate", "0"], ["--rate 0", "numbers above 0"]),
        (["app.py:double", "--rate", "inf"], ["--rate inf"]),
        (["app.py:double", "--connections", "1,x"], ["--connections 1,x", "whole numbers"]),
        (["app.py:double", "--rate", "5", "--connections", "2"], ["--connections", "--rate"]),
        (["app.py:double", "--rate", "5", "--burst", "2"], ["--rate", "--burst"]),
        (["app.py:double", "--burst", "2"], ["--every"]),
        (["app.py:double", "--scenario", "server"], ["--latency-bound"]),
        (["app.py:double", "--scenario", "offline", "--connections", "1,2"], ["one number"]),
        (["app.py:double", "--scenario", "single-stream", "--connections", "1"], ["one request at a time"]),
        (["app.py:double", "--requests", "5"], ["offline"]),
        (["app.py:double", "--max-batch-size", "1,0"], ["--max-batch-size", "must be 1 or more"]),
        (["app.py:raw", "--max-batch-size", "1,2"], ["raw takes one item at a time"]),
        (["app.py:raw"], ["raw has no example", "--input FILE"]),
        (["app.py:double", "--input", "none.json"], ["none.json", "No such file"]),
        (["app.py:double", "--header", "nonsense"], ["--header 'nonsense'", "NAME: VALUE"]),
        (["app.py:double", "--plot", "out.pdf"], ["out.pdf", ".html"]),
        (["app.py:double", "--json", "none/out.json"], ["no folder none"]),
        (["app.py:double", "--server", "granian", "--in-process"], ["--server", "no HTTP"]),
        (["http://127.0.0.1:1/x", "--max-batch-size", "8"], ["--max-batch-size 8", "give a TARGET"]),
        (["http://127.0.0.1:1/x", "--in-process"], ["--in-process", "give a TARGET"]),
        (["http://user:secret@127.0.0.1:1/x", "--input", "app.py"], ["a user or a password"]),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(arguments: list[str], parts: list[str], in_folder: Path) -> None:
    ran = CliRunner().invoke(bench, arguments)
    assert ran.exit_code == 2, ran.output
    assert ran.stdout == ""
    line = ran.stderr.splitlines()[-1]
    assert line.startswith("Error: ")
    for part in parts:
        assert part in line
    assert "secret" not in line


def test_the_environments_options_of_a_service_do_not_keep_a_url_from_being_measured(in_folder: Path) -> None:
    ran = CliRunner().invoke(bench, ["http://127.0.0.1:1/x", "--input", "app.py"], env={"TIDEGATE_MAX_BATCH_SIZE": "8"})
    assert ran.exit_code == 3


def test_help_has_examples_and_exit_codes() -> None:
    text = CliRunner().invoke(bench, ["--help"]).stdout
    assert "tidegate bench app.py:embed --max-batch-size 1,8,32 --batch-timeout 0,0.005,auto" in text
    assert "Exit status: 0 all well" in text
    assert "TIDEGATE_API_KEY" in text


def test_json_on_standard_output_stands_there_alone(run: Run) -> None:
    ran = run("app.py:double", "--in-process", "--connections", "2", *SHORT, "--json", "-")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["target"] == "app.py:double"
    assert "items/s" in ran.stderr


# ---------------------------------------------------------------------- combinations


def test_combinations_are_all_of_all_and_lists_that_are_one_value_stay_whole(in_folder: Path) -> None:
    settings = [
        Change("max_batch_size", [1, 8], "--max-batch-size 1,8"),
        Change("timeout", 5, "--timeout 5"),
        Change("batch_timeout", [0, "auto"], "--batch-timeout 0,auto", "double"),
        Change("batch_dim", [0, 1], "--set batch_dim=0,1"),
    ]
    found = configurations("app.py:double", settings)
    assert [dict(one.shown) for one in found] == [
        {"max_batch_size": size, "batch_timeout": wait} for size in (1, 8) for wait in (0, "auto")
    ]
    last = found[-1]
    assert last.flags == [
        "--set=double.max_batch_size=8",
        "--set=double.timeout=5",
        '--set=double.batch_timeout="auto"',
        "--set=double.batch_dim=[0, 1]",
    ]
    assert last.handler is not None
    options = last.handler.options
    assert (options.max_batch_size, options.batch_timeout, options.batch_dim) == (8, "auto", (0, 1))


def test_numbers_are_read_from_lists() -> None:
    assert numbers("--rate", "0.5, 100", float) == [0.5, 100.0]
    assert numbers("--rate", "", float) == []
