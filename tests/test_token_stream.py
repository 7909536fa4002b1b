import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "examples" / "token_stream.py"


@pytest.fixture
def url() -> Iterator[str]:
    """Where the example serves, until the test is over."""
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "serve", "--address", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stderr
    try:
        found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert found, process.stderr.read()
        yield found[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()


def test_several_prompts_are_written_at_the_same_time_on_one_connection(url: str) -> None:
    prompts = ["The class ", "A function ", "If "]
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), "ask", "--url", url, "--length", "40", *prompts],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert sorted(len(line) for line in lines) == sorted(len(prompt) + 40 for prompt in prompts)
    assert {prompt for prompt in prompts for line in lines if line.startswith(prompt)} == set(prompts)


def test_the_page_and_its_script_come_from_the_same_port(url: str) -> None:
    with urllib.request.urlopen(url, timeout=20) as response:
        assert 'import { Client } from "/client.js"' in response.read().decode()
    with urllib.request.urlopen(f"{url}/client.js", timeout=20) as response:
        assert response.headers["Content-Type"].startswith("text/javascript")
        assert "export class Client" in response.read().decode()


def test_how_to_run_it_is_told_at_its_top() -> None:
    source = SCRIPT.read_text()
    assert "    python examples/token_stream.py\n" in source
    assert '    python examples/token_stream.py ask "The class " "A function "\n' in source
