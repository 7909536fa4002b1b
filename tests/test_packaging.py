"""A new user's first minutes, with nothing but the wheel, outside of the checkout; and what the distributions hold.

Every test here builds environments from a package index, which takes its time: `make test-package`.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import tidegate

pytestmark = pytest.mark.package

ROOT = Path(__file__).parent.parent
SCRIPTS = Path(sysconfig.get_path("scripts"))
MOST_BYTES = 130_000_000

Environment = Callable[..., Path]


def run(*command: object, cwd: Path | None = None, stdin: str | None = None, timeout: float = 600) -> str:
    """Standard output of a command that must succeed, run where nothing of the checkout can be imported."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    ran = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        input=stdin,
        env=clean,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert ran.returncode == 0, f"{command}: {ran.stdout}{ran.stderr}"
    return ran.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (only,) = distributions.glob("*.whl")
    return only


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """`environment(python, extras)` is the folder of an environment with the wheel in it and nothing else."""
    made: dict[tuple[str, str], Path] = {}

    def environment(python: str = sys.executable, extras: str = "") -> Path:
        if (python, extras) not in made:
            folder = tmp_path_factory.mktemp("environment")
            run(python, "-m", "venv", folder)
            install = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            run(*install, "--constraint", ROOT / "constraints.txt", f"{wheel}{extras}")
            made[python, extras] = folder
        return made[python, extras]

    return environment


def pythons() -> list[str]:
    """Every supported Python that is on this machine."""
    found = []
    for minor in (11, 12, 13, 14):
        places = [shutil.which(f"python3.{minor}"), *Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python3")]
        for place in places:
            if place and subprocess.run([place, "-c", "import venv"], capture_output=True, check=False).returncode == 0:
                found.append(str(place))
                break
    return found


def test_the_distributions_are_as_an_index_wants_them(distributions: Path) -> None:
    run(SCRIPTS / "twine", "check", "--strict", *distributions.iterdir())


def test_the_wheel_holds_nothing_that_does_not_belong(wheel: Path) -> None:
    packages = ["sdk/tidegate", "batching/tidegate_batching", "transports/tidegate_transports"]
    run(
        SCRIPTS / "check-wheel-contents",
        "--toplevel",
        "tidegate,tidegate_batching,tidegate_transports",
        *(word for package in packages for word in ("--package", ROOT / package)),
        wheel,
    )


def test_the_source_distribution_brings_its_tests_and_its_documentation(distributions: Path) -> None:
    (archive,) = distributions.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "Makefile", "docs/conf.py", "tests/test_packaging.py"} <= names
    assert not any(re.search(r"(^|/)(_build|__pycache__|\.venv)(/|$)", name) for name in names)


def test_the_core_is_small_and_brings_no_torch(environment: Environment) -> None:
    packages = Path(
        run(environment() / "bin/python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    )
    own = [path for path in packages.iterdir() if not path.name.startswith(("pip", "setuptools"))]
    files = [file for path in own for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    assert size <= MOST_BYTES, f"{size:,} bytes"
    assert not any(path.name.startswith(("torch", "nvidia")) for path in own)


def test_all_extras_can_be_had(environment: Environment, wheel: Path) -> None:
    python = environment() / "bin/python"
    planned = run(
        python, "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-", "--constraint", ROOT / "constraints.txt", f"{wheel}[all]"
    )  # fmt: skip
    names = {one["metadata"]["name"].lower() for one in json.loads(planned)["install"]}
    assert {"torch", "granian", "uvicorn", "nvidia-ml-py", "uvloop"} <= names


@contextmanager
def serving(folder: Path, environment: Path, *arguments: str) -> Iterator[str]:
    """`tidegate serve` of the environment in the folder; the service's address."""
    process = subprocess.Popen(
        [environment / "bin/tidegate", "serve", *arguments, "--http", "127.0.0.1:0"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    assert process.stdout is not None
    try:
        printed = ""
        while not (found := re.search(r"^curl (http://[\d.:]+)", printed, re.MULTILINE)):
            line = process.stdout.readline()
            assert line, printed
            printed += line
        yield found[1]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, process.stdout.read()
    finally:
        process.kill()
        process.communicate()
        watchdog.cancel()


STREAM = """
from collections.abc import Iterator
from tidegate import END, serve

@serve(max_batch_size=8)
def countdown(starts: list[int]) -> Iterator[list[object]]:
    for step in range(max(starts) + 1):
        yield [start - step if step < start else END for start in starts]
"""
ASK = """
import sys, warnings
warnings.simplefilter("error")
import numpy as np
from tidegate import Client, LocalClient
from app import square

for url in sys.argv[1:]:
    with Client(url) as client:
        print(client.call(np.array([1, 2, 3])).tolist(), client.call([4], handler="square"))
with LocalClient(square) as client:
    print(client.call(np.array([5])).tolist())
"""


def first_block() -> str:
    """The handler that README begins with."""
    found = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


@pytest.mark.parametrize("python", pythons())
def test_a_new_user_serves_asks_streams_and_pipes_with_nothing_but_the_wheel(
    python: str, environment: Environment, tmp_path: Path
) -> None:
    made = environment(python)
    (tmp_path / "app.py").write_text(first_block())
    (tmp_path / "countdown.py").write_text(STREAM)
    (tmp_path / "ask.py").write_text(ASK)
    where = run(made / "bin/python", "-W", "error", "-c", "import tidegate; print(tidegate.__file__)", cwd=tmp_path)
    assert where.startswith(str(made))
    assert run(made / "bin/tidegate", "--version", cwd=tmp_path) == f"tidegate, version {tidegate.__version__}\n"
    with serving(tmp_path, made, "app.py", "countdown.py") as url:
        assert run("curl", "-s", f"{url}/square", "--json", "[1, 2, 3]") == "[1,4,9]"
        assert run("curl", "-sN", f"{url}/countdown", "--json", "1") == '{"chunk":1}\n{"end":true}\n'
        assert json.loads(run("curl", "-s", f"{url}/readyz"))["status"] == "ready"
        assert "<!doctype html>" in run("curl", "-s", f"{url}/docs")
        asked = run(made / "bin/python", "ask.py", f"{url}/square", f"{url.replace('http', 'ws')}/square", cwd=tmp_path)
        assert asked == "[1, 4, 9] [16]\n[1, 4, 9] [16]\n[25]\n"
    assert run(made / "bin/tidegate", "run", "app.py", "--quiet", cwd=tmp_path, stdin="1\n[2,3]\n") == "1\n[4,9]\n"
    assert "square" in run(made / "bin/tidegate", "info", "app.py", cwd=tmp_path)


@pytest.mark.parametrize("server", ["uvicorn", "granian"])
def test_the_other_servers_come_with_an_extra(server: str, environment: Environment, tmp_path: Path) -> None:
    made = environment(extras="[asgi]")
    (tmp_path / "app.py").write_text(first_block())
    with serving(tmp_path, made, "app.py", "--server", server) as url:
        assert run("curl", "-s", f"{url}/square", "--json", "[1, 2, 3]") == "[1,4,9]"
