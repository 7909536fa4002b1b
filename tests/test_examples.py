import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"

Serving = Callable[..., AbstractContextManager[tuple["subprocess.Popen[str]", list[str]]]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the example keeps its model."""
    return tmp_path_factory.mktemp("cache")


def paste(printed: list[str]) -> tuple[int, object]:
    """What the printed line gets when it is pasted into a shell: the status and the answer."""
    (line,) = (line for line in printed if line.startswith("curl "))
    ran = subprocess.run(
        f"{line} --silent --write-out '\\n%{{http_code}}'",
        shell=True,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    body, _, status = ran.stdout.rpartition("\n")
    return int(status), json.loads(body)


def test_the_digit_classifier_trains_serves_answers_64_callers_in_batches_and_starts_again_from_its_file(
    serving: Serving, cache: Path
) -> None:
    environment = {"XDG_CACHE_HOME": str(cache)}
    target = str(EXAMPLES / "image_classification.py")
    with serving(target, env=environment) as (process, printed):
        url = re.search(r"http://127\.0\.0\.1:\d+", "\n".join(printed))
        assert url
        client = subprocess.run(
            [sys.executable, str(EXAMPLES / "image_classification_client.py"), url[0], "--clients", "64"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (client.returncode, client.stderr) == (0, "")
        accuracy = re.search(r"^accuracy +([\d.]+) \((\d+) of (\d+)\)$", client.stdout, re.MULTILINE)
        sizes = re.search(r"^batch sizes +(.+)$", client.stdout, re.MULTILINE)
        assert accuracy
        assert sizes
        assert float(accuracy[1]) > 0.95
        assert int(accuracy[3]) == 5 * 360
        assert max(int(size) for size in re.findall(r"x (\d+)", sizes[1])) > 1
        status, answer = paste(printed)
        assert status == 200
        assert isinstance(answer, dict)
        assert answer["digit"] in range(10)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert [path.name for path in (cache / "tidegate-examples").iterdir()] == ["digits.pt"]

    trained = (cache / "tidegate-examples" / "digits.pt").stat().st_mtime_ns
    with serving(target, env=environment) as (process, printed):
        assert paste(printed) == (200, answer)
    assert (cache / "tidegate-examples" / "digits.pt").stat().st_mtime_ns == trained


def test_the_three_ways_of_batching_run_as_they_are() -> None:
    script = EXAMPLES / "three_ways_of_batching.py"
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    blocks = dict(zip(*[iter(re.split(r"^(\w+)$", ran.stdout, flags=re.MULTILINE)[1:])] * 2, strict=True))
    outputs = {name: [line.split(" -> ")[1] for line in body.strip().splitlines()] for name, body in blocks.items()}
    squares, means = ["[1.0, 4.0]", "[9.0, 16.0]"], ["{'mean': 2.0}", "{'mean': 4.0}"]
    softmaxes = ["[0.09, 0.245, 0.665]", "[1.0]"]
    expected = {"square": squares, "mean": means, "softmax": softmaxes}
    assert outputs == {f"{name}_{kind}": lines for name, lines in expected.items() for kind in ("numpy", "torch")}
    assert "python examples/three_ways_of_batching.py" in script.read_text()
