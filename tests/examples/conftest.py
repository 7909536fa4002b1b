import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"

Serving = Callable[..., AbstractContextManager[tuple["subprocess.Popen[str]", list[str]]]]
Ask = Callable[..., str]
Served = Callable[[str], AbstractContextManager[str]]


@pytest.fixture(scope="session")
def ask() -> Ask:
    """`ask("mlp", url)` is what `python examples/mlp.py` prints; the docstring has that command, for another URL."""

    def ask(name: str, *arguments: str) -> str:
        script = EXAMPLES / f"{name}.py"
        assert f"    python examples/{name}.py" in script.read_text()
        command = [sys.executable, "-W", "error", str(script), *arguments]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert (ran.returncode, ran.stderr) == (0, "")
        return ran.stdout

    return ask


@pytest.fixture(scope="session")
def served(serving: Serving) -> Served:
    """`with served("mlp") as url:` runs the docstring's command, on a free port, and sees that the service ends well."""

    @contextmanager
    def served(name: str) -> Iterator[str]:
        script = EXAMPLES / f"{name}.py"
        assert f"    tidegate serve examples/{name}.py\n" in script.read_text()
        with serving(str(script)) as (process, printed):
            url = re.search(r"http://127\.0\.0\.1:\d+", "\n".join(printed))
            assert url
            yield url[0]
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0

    return served
