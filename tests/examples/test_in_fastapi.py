import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx

from tidegate import Client

Ask = Callable[..., str]

SCRIPT = Path(__file__).parent.parent.parent / "examples" / "in_fastapi.py"


def test_a_handler_is_asked_by_a_route_and_beside_it(ask: Ask) -> None:
    assert "    python examples/in_fastapi.py\n" in SCRIPT.read_text()
    process = subprocess.Popen([sys.executable, str(SCRIPT), "0"], stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        line = ""
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", line)):
            line = process.stderr.readline()
            assert line, "it ended before it was ready"
        url = found[0]
        # uvicorn says so after the lifespan's start, and that waits for the workers.
        assert httpx.get(f"{url}/models/readyz").json()["status"] == "ready"
        assert ask("in_fastapi", "ask", url).splitlines() == [
            "How does a for loop end early? help('break')",
            "What does a lambda expression give? help('lambda')",
            str({"page": "assert", "text": httpx.get(f"{url}/help", params={"question": "assert"}).json()["text"]}),
        ]
        with Client(f"{url}/models/page") as client:
            assert client.call("lambda") == "lambda"
        process.send_signal(signal.SIGINT)
        process.wait(30)
        assert "Application shutdown complete." in process.stderr.read()
    finally:
        process.kill()
        process.communicate()
