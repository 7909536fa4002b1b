import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

Serving = Callable[..., AbstractContextManager[tuple["subprocess.Popen[str]", list[str]]]]

APP = """
import os, socket, time
from typing import Annotated
import numpy as np
from tidegate import Array, serve

@serve(max_batch_size=4, worker="thread")
def square(x: Annotated[np.ndarray, Array("float32", (2,))]) -> np.ndarray:
    return x**2

@serve(worker="thread")
def shout(text: str) -> str:
    return text.upper() + "!"

@serve(worker="thread")
def held(text: str) -> str:
    with socket.create_connection(("127.0.0.1", int(os.environ["HELD_PORT"])), timeout=30) as caller:
        return caller.recv(100).decode()

def plain(x):
    return x
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


@pytest.fixture
def fails(tidegate: str, folder: Path) -> Callable[..., tuple[int, str]]:
    """Run `tidegate serve` with these arguments: its exit code and what it wrote to standard error."""

    def fails(*arguments: str) -> tuple[int, str]:
        ran = subprocess.run(
            [tidegate, "serve", *arguments], cwd=folder, capture_output=True, text=True, timeout=30, check=False
        )
        assert ran.stdout == ""
        return ran.returncode, ran.stderr

    return fails


@pytest.fixture
def caller() -> Iterator[socket.socket]:
    """Where the handler `held` waits for its answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        yield server


def url_in(printed: list[str]) -> str:
    found = re.search(r"http://127\.0\.0\.1:\d+", "\n".join(printed))
    assert found
    return found[0]


# ---------------------------------------------------------------------- it serves


def test_every_handler_is_printed_with_its_address_and_answers_there(serving: Serving, folder: Path) -> None:
    with serving("app.py:square", "app.py:shout", cwd=folder) as (_, printed):
        url = url_in(printed)
        panel = "\n".join(printed)
        assert f"POST  {url}/square  batches of up to 4" in panel
        assert f"POST  {url}/shout   one at a time" in panel
        assert f"GET   {url}/health" in panel
        assert httpx.post(f"{url}/square", json=[2, 3]).json() == [4.0, 9.0]
        assert httpx.post(f"{url}/shout", json="hello").json() == "HELLO!"
        health = httpx.get(f"{url}/health").json()
        assert list(health["handlers"]) == ["square", "shout"]


def test_a_printed_line_can_be_pasted_into_a_shell(serving: Serving, folder: Path) -> None:
    with serving("app.py:shout", cwd=folder) as (_, printed):
        (line,) = (line for line in printed if line.startswith("curl "))
        ran = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=30, check=True)
    assert ran.stdout == '"HELLO!"'


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_with_success_after_what_is_in_flight_is_answered(
    stop: signal.Signals, serving: Serving, folder: Path, caller: socket.socket
) -> None:
    environment = {"HELD_PORT": str(caller.getsockname()[1]), "TIDEGATE_DRAIN_DELAY": "0"}
    with serving("app.py:held", cwd=folder, env=environment) as (process, printed), ThreadPoolExecutor() as threads:
        url = url_in(printed)
        answer = threads.submit(httpx.post, f"{url}/held", json="", timeout=30)
        handler, _ = caller.accept()
        with handler:
            process.send_signal(stop)
            host, port = url.removeprefix("http://").split(":")
            refused = False
            while not refused:
                try:
                    socket.create_connection((host, int(port)), timeout=30).close()
                    time.sleep(0.01)  # connecting without a pause would fill the backlog
                except ConnectionError:
                    refused = True
            assert process.poll() is None
            handler.sendall(b"done")
        assert answer.result(30).json() == "done"
        assert process.wait(30) == 0


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
def test_a_setup_that_takes_long_is_announced_and_a_signal_ends_it_at_once(
    stop: signal.Signals, code: int, tidegate: str, folder: Path, caller: socket.socket
) -> None:
    port = caller.getsockname()[1]
    (folder / "slow.py").write_text(
        "import socket\n"
        "from tidegate import serve\n\n"
        "def load(device):\n"
        f"    return socket.create_connection(('127.0.0.1', {port})).recv(1)\n\n"
        "@serve(setup=load, worker='thread')\n"
        "def f(state, x: int) -> int:\n"
        "    return x\n"
    )
    with subprocess.Popen(
        [tidegate, "serve", "slow.py", "--http", "127.0.0.1:0"], cwd=folder, stderr=subprocess.PIPE, text=True
    ) as process:
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        handler, _ = caller.accept()
        assert process.stderr is not None
        with handler:
            assert "setting up f: " in process.stderr.readline()
            process.send_signal(stop)
            _, errors = process.communicate(timeout=30)
        watchdog.cancel()
    assert (process.returncode, errors.strip()) == (code, "")


def test_what_the_user_sees_of_a_failing_request_has_the_traceback_and_its_id(serving: Serving, folder: Path) -> None:
    (folder / "fragile.py").write_text(
        "from tidegate import serve\n\n@serve(worker='thread')\ndef invert(x: int) -> float:\n    return 1 / x\n"
    )
    with serving("fragile.py", "--drain-delay", "0", cwd=folder) as (process, printed):
        answer = httpx.post(f"{url_in(printed)}/invert", json=0, headers={"X-Request-Id": "from-me"})
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert (answer.status_code, answer.json()["detail"]) == (500, "internal error")
    assert re.search("invert failed, request from-me: 500 handler-error .*ZeroDivisionError", errors)
    assert "return 1 / x" in errors


# ---------------------------------------------------------------------- what was asked for is not there


@pytest.mark.parametrize(
    ("arguments", "looked_for", "there_is"),
    [
        (["ap.py"], "ap.py", "app.py"),
        (["nowhere/app.py"], "nowhere/app.py", "no folder nowhere"),
        (["app.py:sqare"], "'sqare'", "did you mean square?"),
        (["app.py:plain"], "'plain'", "held, shout, square"),
        (["app.py:square", "app.py:nothing"], "'nothing'", "held, shout, square"),
        (["ap"], "'ap'", "sys.path"),
        (["package.missing"], "'package.missing'", "sys.path"),
        (["bare.py"], "no handler in bare.py", "embed"),
        (["app.py", "--http", "nonsense"], "'nonsense'", "HOST:PORT"),
        (["app.py", "--http", "127.0.0.1:65536"], "'127.0.0.1:65536'", "HOST:PORT"),
    ],
)
def test_what_is_missing_is_told_in_one_line_with_what_there_is(
    arguments: list[str], looked_for: str, there_is: str, fails: Callable[..., tuple[int, str]], folder: Path
) -> None:
    (folder / "bare.py").write_text("def embed(x):\n    return x\n")
    code, errors = fails(*arguments)
    assert code == 2
    assert len(errors.splitlines()) == 1
    assert errors.startswith("Error: ")
    assert looked_for in errors
    assert there_is in errors


@pytest.mark.parametrize(
    ("source", "line", "error"),
    [
        ("import numpy\nraise ValueError('of the user')\n", 2, "ValueError: of the user"),
        ("x = 1\n\nimport nowhere_at_all\n", 3, "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("x = 1\ndef f(:\n", 2, "SyntaxError: invalid syntax"),
        (
            "from tidegate import serve\n@serve(max_batch_size=0)\ndef f(x):\n    return x\n",
            2,
            "ValueError: max_batch_size=0:",
        ),
    ],
)
@pytest.mark.parametrize("target", ["mine.py", "mine"])
def test_a_module_that_raises_shows_its_own_traceback_from_its_first_line_on(
    target: str, source: str, line: int, error: str, fails: Callable[..., tuple[int, str]], folder: Path
) -> None:
    (folder / "mine.py").write_text(source)
    code, errors = fails(target)
    assert code == 2
    frames = re.findall(r'File "([^"]+)", line (\d+)', errors)
    assert frames[0] == (str(folder / "mine.py"), str(line))
    assert error in errors
    assert "importlib" not in errors
    assert errors.splitlines()[-1] == f"Error: {target} cannot be imported"


def test_a_script_that_exits_when_it_is_imported_is_told_so(
    fails: Callable[..., tuple[int, str]], folder: Path
) -> None:
    (folder / "script.py").write_text("from app import shout\nimport sys\n\nsys.exit(0)\n")
    code, errors = fails("script.py")
    assert code == 2
    assert f'File "{folder / "script.py"}", line 4' in errors
    assert errors.splitlines()[-1] == (
        'Error: script.py exits when it is imported: put what a script does below `if __name__ == "__main__":`'
    )


def test_a_failing_setup_shows_its_traceback_and_exits_with_3(
    fails: Callable[..., tuple[int, str]], folder: Path
) -> None:
    (folder / "broken.py").write_text(
        "from app import shout\n"
        "from tidegate import serve\n\n"
        "def load(device):\n    raise FileNotFoundError('no weights')\n\n"
        "@serve(setup=load, worker='thread')\ndef classify(state, x: int) -> int:\n    return x\n"
    )
    code, errors = fails("broken.py", "--http", "127.0.0.1:0")
    assert code == 3
    assert f'File "{folder / "broken.py"}", line 5, in load' in errors
    assert errors.splitlines()[-1] == ("Error: setup of handler 'classify' failed: FileNotFoundError: no weights")


def test_a_busy_port_is_told_in_one_line(fails: Callable[..., tuple[int, str]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        address = f"127.0.0.1:{busy.getsockname()[1]}"
        code, errors = fails("app.py:shout", "--http", address)
    assert code == 1
    announcement, error = errors.splitlines()
    assert "setting up shout" in announcement
    assert error.startswith(f"Error: cannot listen on {address}: ")
    assert "in use" in errors


def test_without_a_target_the_usage_is_told(fails: Callable[..., tuple[int, str]]) -> None:
    code, errors = fails()
    assert code == 2
    assert "Missing argument 'TARGET...'" in errors


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "-h"]])
def test_help_names_what_can_be_served_and_where(arguments: list[str], tidegate: str) -> None:
    ran = subprocess.run([tidegate, *arguments], capture_output=True, text=True, timeout=30, check=True)
    assert ("file.py:name" in ran.stdout and "--http ADDR" in ran.stdout) or "serve " in ran.stdout


def test_a_script_that_serves_itself_is_served_where_the_command_line_says(serving: Serving, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "from tidegate import run, serve\n\n"
        "@serve(worker='thread')\ndef shout(text: str) -> str:\n    return text.upper()\n\n"
        "run(shout, http='nowhere')\n"
    )
    with serving("script.py", cwd=tmp_path) as (_, printed):
        assert httpx.post(f"{url_in(printed)}/shout", json="hello").json() == "HELLO"


def test_a_file_that_is_named_twice_runs_once_and_serves_each_handler_once(serving: Serving, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "from pathlib import Path\nfrom tidegate import serve\n"
        "with Path('runs').open('a') as runs:\n    runs.write('x')\n"
        "@serve(worker='thread')\ndef one(x: int) -> int:\n    return x\n@serve(worker='thread')\ndef two(x: int) -> int:\n    return x\n"
    )
    with serving("app.py:one", "app.py", "app.py:two", cwd=tmp_path) as (_, printed):
        assert sum("/one" in line and "POST" in line for line in printed) == 1
    assert (tmp_path / "runs").read_text() == "x"


def test_an_example_that_cannot_be_written_is_no_reason_not_to_serve(serving: Serving, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import numpy as np\nfrom tidegate import serve\n"
        "@serve(worker='thread', max_batch_size=2, warmup=np.full(3, np.nan))\ndef double(x: np.ndarray) -> np.ndarray:\n    return x * 2\n"
    )
    with serving("app.py", cwd=tmp_path) as (_, printed):
        assert printed[-1].endswith("/double --json @input.json")


# ---------------------------------------------------------------------- how it serves


@pytest.mark.parametrize("server", ["aiohttp", "uvicorn", "granian"])
def test_each_server_reads_the_http_and_both_streams_stay_silent_while_it_does(
    server: str, serving: Serving, folder: Path
) -> None:
    with serving("app.py:shout", "--server", server, "--drain-delay", "0", cwd=folder) as (process, printed):
        assert httpx.post(f"{url_in(printed)}/shout", json="hello").json() == "HELLO!"
        process.send_signal(signal.SIGTERM)
        printed_later, errors = process.communicate(timeout=30)
        assert (printed_later, len(errors.splitlines())) == ("", 1)  # what was being set up
        assert process.returncode == 0


def test_flags_beat_the_environment_which_beats_the_decorator(serving: Serving, folder: Path) -> None:
    environment = {"TIDEGATE_MAX_BODY": "5", "TIDEGATE_DOCS": "no", "TIDEGATE_MAX_BATCH_SIZE": "2"}
    with serving("app.py:square", cwd=folder, env=environment) as (_, printed):
        url = url_in(printed)
        assert "batches of up to 2" in "\n".join(printed)
        assert httpx.post(f"{url}/square", json=[1, 22]).status_code == 413
        assert httpx.get(f"{url}/docs").status_code == 404
    flags = ("--max-body", "50", "--max-batch-size", "3")
    with serving("app.py:square", *flags, cwd=folder, env=environment) as (_, printed):
        assert "batches of up to 3" in "\n".join(printed)
        assert httpx.post(f"{url_in(printed)}/square", json=[1, 22]).status_code == 200


@pytest.mark.parametrize(
    ("flag", "path", "status"),
    [("--no-metrics", "/metrics", 404), ("--no-docs", "/docs", 404), ("--trust-priority", "/metrics", 200)],
)
def test_pages_can_be_switched_off(flag: str, path: str, status: int, serving: Serving, folder: Path) -> None:
    with serving("app.py:shout", flag, cwd=folder) as (_, printed):
        assert httpx.get(f"{url_in(printed)}{path}").status_code == status
        assert (f"{path} " in "\n".join(printed)) is (path == "/docs" and status == 200)


def test_failures_can_be_told_as_json(serving: Serving, folder: Path) -> None:
    (folder / "fragile.py").write_text(
        "from tidegate import serve\n\n@serve(worker='thread')\ndef invert(x: int) -> float:\n    return 1 / x\n"
    )
    flags = ("--log-format", "json", "--drain-delay", "0")
    with serving("fragile.py", *flags, cwd=folder) as (process, printed):
        httpx.post(f"{url_in(printed)}/invert", json=0, headers={"X-Request-Id": "from-me"})
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    announcement, line = (json.loads(line) for line in errors.splitlines())
    assert "setting up invert" in announcement["message"]
    assert (line["level"], "from-me" in line.values()) == ("error", True)


def test_keys_are_asked_for_in_the_line_to_paste_and_never_shown(serving: Serving, folder: Path) -> None:
    with serving("app.py:shout", cwd=folder, env={"TIDEGATE_API_KEY": "a-secret"}) as (_, printed):
        assert httpx.post(f"{url_in(printed)}/shout", json="x").status_code == 401
        assert "a-secret" not in "\n".join(printed)
        command, environment = printed[-1], {"TIDEGATE_API_KEY": "a-secret", "PATH": "/usr/bin:/bin"}
        ran = subprocess.run(
            command, shell=True, env=environment, capture_output=True, text=True, timeout=30, check=True
        )
    assert ran.stdout == '"HELLO!"'


def test_a_websocket_door_asks_for_the_same_keys(serving: Serving, folder: Path) -> None:
    arguments = ("app.py:shout", "--ws", "127.0.0.1:0")
    with serving(*arguments, cwd=folder, env={"TIDEGATE_API_KEY": "a-secret"}) as (_, printed):
        found = re.search(r"ws://127\.0\.0\.1:\d+", "\n".join(printed))
        assert found
        with pytest.raises(InvalidStatus, match="401"):
            connect(f"{found[0]}/shout", open_timeout=20)
        with connect(f"{found[0]}/shout", additional_headers={"X-API-Key": "a-secret"}) as socket_:
            socket_.send('{"id": 1, "input": "hello"}')
            assert json.loads(socket_.recv(20)) == {"id": 1, "output": "HELLO!"}


@pytest.mark.parametrize(("key", "warned"), [("", True), ("a-secret", False)])
def test_open_to_everybody_is_a_warning(key: str, warned: bool, tidegate: str, folder: Path) -> None:
    environment = {**os.environ, "TIDEGATE_API_KEY": key, "PORT": "0", "TIDEGATE_DRAIN_DELAY": "0"}
    command = [tidegate, "serve", "app.py:shout"]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        assert process.stdout is not None
        printed = [""]
        while not printed[-1].startswith("curl "):
            printed.append(process.stdout.readline())
        process.terminate()
        _, errors = process.communicate(timeout=30)
        watchdog.cancel()
    assert "http://0.0.0.0:" in "".join(printed[:-1])
    assert "http://127.0.0.1:" in printed[-1]
    assert ("Warning: " in errors, "TIDEGATE_API_KEY" in errors) == (warned, warned)


@pytest.mark.parametrize(
    ("arguments", "named", "fix"),
    [
        (["--server", "nginx"], "nginx", "granian"),
        (["--tls-key", "key.pem"], "tls_certificate", "give both"),
        (["--tls-key", "key.pem", "--tls-certificate", "c.pem", "--http", "127.0.0.1:0"], "c.pem", "PEM"),
        (["--cors-origin", "page.example"], "page.example", "https://"),
        (["--max-body", "0"], "--max-body", "x>=1"),
        (["--drain-delay", "-1"], "--drain-delay", "x>=0"),
    ],
)
def test_an_option_that_makes_no_sense_is_told_with_the_fix(
    arguments: list[str], named: str, fix: str, fails: Callable[..., tuple[int, str]]
) -> None:
    code, errors = fails("app.py:shout", *arguments)
    assert (code, named in errors, fix in errors) == (2, True, True)


def test_a_variable_that_makes_no_sense_is_told_by_its_name(
    fails: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEGATE_MAX_BODY", "much")
    code, errors = fails("app.py:shout")
    assert (code, len(errors.splitlines())) == (2, 1)
    assert "TIDEGATE_MAX_BODY='much'" in errors
