import subprocess
import sys
import zipfile
from configparser import ConfigParser
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

import tidegate

ROOT = Path(__file__).parent.parent
FOLDERS = {"batching": "tidegate_batching", "sdk": "tidegate", "transports": "tidegate_transports"}
INFO = f"tidegate-{tidegate.__version__}.dist-info"
# What the doors give out beside code.
DATA = {".py", ".html", ".js"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The text of every file in the wheel as `pip install .` would build it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (built,) = folder.iterdir()
    assert built.name == f"tidegate-{tidegate.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(built) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


@pytest.fixture(scope="module")
def metadata(wheel: dict[str, str]) -> Message:
    return message_from_string(wheel[f"{INFO}/METADATA"])


def test_it_holds_exactly_the_files_of_the_three_packages(wheel: dict[str, str]) -> None:
    expected = {
        path.relative_to(ROOT / folder).as_posix()
        for folder, package in FOLDERS.items()
        for path in (ROOT / folder / package).rglob("*")
        if path.name == "py.typed" or path.suffix in DATA
    }
    assert {name for name in wheel if not name.startswith(f"{INFO}/")} == expected


@pytest.mark.parametrize("package", FOLDERS.values())
def test_each_package_tells_type_checkers_that_it_is_typed(package: str, wheel: dict[str, str]) -> None:
    assert f"{package}/py.typed" in wheel


def test_it_brings_the_command_and_the_transports(wheel: dict[str, str]) -> None:
    entry_points = ConfigParser()
    entry_points.read_string(wheel[f"{INFO}/entry_points.txt"])
    assert dict(entry_points["console_scripts"]) == {"tidegate": "tidegate.cli:main"}
    doors = dict(entry_points["tidegate.transports"])
    assert set(doors) == {"asgi", "fronts", "granian", "http", "jsonl", "uvicorn", "ws"}
    for door in doors.values():
        module = door.partition(":")[0].replace(".", "/")
        assert f"{module}.py" in wheel


def test_its_licence_and_its_readme_are_in_it(wheel: dict[str, str], metadata: Message) -> None:
    assert wheel[f"{INFO}/licenses/LICENSE"] == (ROOT / "LICENSE").read_text()
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "# tidegate" in str(metadata.get_payload())


def test_it_says_on_what_it_runs(metadata: Message) -> None:
    classifiers = metadata.get_all("Classifier", [])
    assert metadata["Requires-Python"] == ">=3.11"
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13, 14)} <= set(classifiers)
    assert "Operating System :: POSIX :: Linux" in classifiers
    assert not any("Windows" in one for one in classifiers)
    assert "Typing :: Typed" in classifiers


def test_torch_is_an_extra(metadata: Message) -> None:
    needed = [requirement for requirement in metadata.get_all("Requires-Dist", []) if "extra ==" not in requirement]
    assert {requirement.split(">")[0] for requirement in needed} >= {"aiohttp", "anyio", "msgspec", "numpy"}
    assert not any(requirement.startswith("torch") for requirement in needed)
    assert set(metadata.get_all("Provides-Extra", [])) == {"torch", "gpu", "asgi", "all"}
