import json
import re
import subprocess
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

Ask = Callable[..., str]
Served = Callable[[str], AbstractContextManager[str]]

SCRIPT = Path(__file__).parent.parent.parent / "examples" / "two_models_one_gpu.py"


def test_both_models_run_in_three_processes_on_one_device(served: Served, ask: Ask) -> None:
    with served("two_models_one_gpu") as url:
        printed = ask("two_models_one_gpu", url)
        with urllib.request.urlopen(f"{url}/info", timeout=20) as response:
            handlers = json.load(response)["handlers"]
    found = re.findall(r"^(quick|careful) +(\d+) of 400 right, [\d,]+ images/s on (\S+)$", printed, re.MULTILINE)
    assert [name for name, _, _ in found] == ["quick", "careful"]
    assert all(int(right) > 320 for _, right, _ in found)
    assert len({device for _, _, device in found}) == 1
    assert {name: len(handler["workers"]) for name, handler in handlers.items()} == {"quick": 2, "careful": 1}


def test_the_plan_is_shown_before_anything_is_loaded(tidegate: str) -> None:
    assert "    tidegate info examples/two_models_one_gpu.py\n" in SCRIPT.read_text()
    ran = subprocess.run([tidegate, "info", str(SCRIPT)], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert len(re.findall(r"│ quick +│ process \d", ran.stdout)) == 2
    assert len(re.findall(r"│ careful +│ process \d", ran.stdout)) == 1
