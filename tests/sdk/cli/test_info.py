import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tidegate.cli import main
from tidegate.discovery import Kind
from tidegate.nvml import Gpu, Usage

APP = """
from typing import Annotated
import numpy as np
from tidegate import Array, serve

print("of the module")

def load(device):
    raise AssertionError("setup was run")

@serve(max_batch_size=4, batch_timeout=0.005)
def square(x: Annotated[np.ndarray, Array("float32", (2,))]) -> np.ndarray:
    return x**2

@serve(setup=load, workers_per_device=2)
def shout(model, text: str) -> str:
    return text.upper()
"""


class Fake:
    """A machine with two GPUs, of which the first tells how it is."""

    def nvml(self) -> Sequence[Gpu] | None:
        return [Gpu("GPU-a1", "NVIDIA H200", 140 * 2**30), Gpu("GPU-b2", "NVIDIA H200", 140 * 2**30)]

    def driver(self, environ: Mapping[str, str]) -> Sequence[Gpu] | None:
        return None

    def torch(self, environ: Mapping[str, str]) -> Sequence[tuple[Kind, Gpu]]:
        return ()

    def usage(self, uuid: str) -> Usage | None:
        return Usage(10 * 2**30, 130 * 2**30, 0.25, 41.0) if uuid == "GPU-a1" else None


class Bare(Fake):
    """A machine without any."""

    def nvml(self) -> Sequence[Gpu] | None:
        return []


Info = Callable[..., Result]


@pytest.fixture
def app(tmp_path: Path) -> Path:
    path = tmp_path / "app.py"
    path.write_text(APP)
    return path


@pytest.fixture
def info(monkeypatch: pytest.MonkeyPatch) -> Iterator[Info]:
    """Run `tidegate info` on a machine of one's choice."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = set(sys.modules)
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "OMP_NUM_THREADS", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)

    def info(*arguments: str | Path, machine: type[Fake] = Fake) -> Result:
        monkeypatch.setattr("tidegate.devices.Machine", machine)
        return CliRunner().invoke(main, ["info", *map(str, arguments)], catch_exceptions=False)

    yield info
    for name in {"app", "eager"} & (set(sys.modules) - modules):
        del sys.modules[name]


def rows(output: str) -> list[list[str]]:
    """The cells of every line of the tables."""
    lines = [line for line in output.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


# ---------------------------------------------------------------------- tables


def test_it_shows_handlers_devices_and_who_runs_where(info: Info, app: Path) -> None:
    ran = info(app)
    assert ran.exit_code == 0
    assert rows(ran.stdout) == [
        ["square", "/square", "up to 4, waits 0.005 s", "array float32 (2,)", "array"],
        ["shout", "/shout", "one at a time", "str", "str"],
        ["cuda:0", "NVIDIA H200", "140.0 GiB", "10.0 GiB", "25%", "41", "GPU-a1"],
        ["cuda:1", "NVIDIA H200", "140.0 GiB", "", "", "", "GPU-b2"],
        ["cpu", rows(ran.stdout)[4][1], "", "", "", "", ""],
        ["square", "process 0", "cuda:0", "CUDA_VISIBLE_DEVICES=GPU-a1", "cuda:0"],
        ["square", "process 1", "cuda:1", "CUDA_VISIBLE_DEVICES=GPU-b2", "cuda:0"],
        ["shout", "process 0", "cuda:0", "CUDA_VISIBLE_DEVICES=GPU-a1", "cuda:0"],
        ["shout", "process 1", "cuda:1", "CUDA_VISIBLE_DEVICES=GPU-b2", "cuda:0"],
        ["shout", "process 2", "cuda:0", "CUDA_VISIBLE_DEVICES=GPU-a1", "cuda:0"],
        ["shout", "process 3", "cuda:1", "CUDA_VISIBLE_DEVICES=GPU-b2", "cuda:0"],
    ]
    assert "Note" not in ran.stdout


def test_columns_that_say_nothing_are_left_out(info: Info, app: Path) -> None:
    ran = info(f"{app}:square", machine=Bare)
    heads = [line for line in ran.stdout.splitlines() if line.startswith("┃")]
    assert [cell.strip() for cell in heads[1].strip("┃").split("┃")] == ["device", "name"]
    assert rows(ran.stdout)[-1] == ["square", "process 0", "cpu", "cpu"]


def test_what_a_user_wrote_is_not_markup(info: Info, tmp_path: Path) -> None:
    path = tmp_path / "app.py"
    path.write_text("from tidegate import serve\n@serve\ndef f(x: list[int]) -> dict[str, list[str]]:\n    return {}\n")
    assert rows(info(path).stdout)[0][-2:] == ["list[int]", "dict[str, list[str]]"]


# ---------------------------------------------------------------------- JSON


def told(ran: Result) -> dict[str, Any]:
    assert ran.exit_code == 0, ran.output
    value: dict[str, Any] = json.loads(ran.stdout)
    return value


def test_as_json_it_tells_the_same_and_the_schema(info: Info, app: Path) -> None:
    everything = told(info(app, "--json"))
    assert set(everything) == {"handlers", "devices", "placement", "cuda_context_made"}
    square, shout = everything["handlers"]
    assert square["input_schema"]["maxItems"] == 2
    assert {
        key: shout[key] for key in ("name", "path", "max_batch_size", "batch_timeout", "streams", "takes", "gives")
    } == {
        "name": "shout",
        "path": "/shout",
        "max_batch_size": None,
        "batch_timeout": None,
        "streams": False,
        "takes": "str",
        "gives": "str",
    }
    assert everything["devices"][0] == {
        "device": "cuda:0",
        "kind": "cuda",
        "name": "NVIDIA H200",
        "uuid": "GPU-a1",
        "memory": 140 * 2**30,
        "memory_used": 10 * 2**30,
        "memory_free": 130 * 2**30,
        "utilisation": 0.25,
        "temperature": 41.0,
    }
    assert everything["placement"][1] == {
        "handler": "square",
        "worker": 1,
        "kind": "process",
        "devices": ["cuda:1"],
        "uuids": ["GPU-b2"],
        "environment": {"CUDA_VISIBLE_DEVICES": "GPU-b2"},
        "setup_argument": "cuda:0",
    }
    assert everything["cuda_context_made"] is False


def test_what_the_module_prints_is_no_part_of_the_json(info: Info, app: Path) -> None:
    ran = info(app, "--json")
    told(ran)
    assert "of the module" in ran.stderr


def test_flags_move_handlers_before_anything_is_served(info: Info, app: Path) -> None:
    placement = told(info(app, "--json", "--set", "shout.devices=cpu", "--set", "workers_per_device=1"))["placement"]
    assert [(one["handler"], one["devices"]) for one in placement] == [
        ("square", ["cuda:0"]),
        ("square", ["cuda:1"]),
        ("shout", ["cpu"]),
    ]


# ---------------------------------------------------------------------- a context that nobody needs


def test_a_context_that_the_module_made_is_told_with_the_fix(info: Info, app: Path, tmp_path: Path) -> None:
    path = tmp_path / "eager.py"
    path.write_text(
        "import sys, types\n"
        "from tidegate import serve\n"
        "cuda = types.SimpleNamespace(is_initialized=lambda: True, is_available=lambda: True)\n"
        "sys.modules['torch'] = types.SimpleNamespace(cuda=cuda)\n"
        "@serve\ndef f(x: int) -> int:\n    return x\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        assert "give it as setup=" in info(path).stdout
        assert told(info(path, "--json"))["cuda_context_made"] is True


# ---------------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(("target", "told"), [("ap.py", "ap.py"), ("app.py:sqare", "did you mean square?")])
def test_it_ends_as_serve_does_where_there_is_nothing_to_show(target: str, told: str, tidegate: str, app: Path) -> None:
    shown, served = (
        subprocess.run(
            [tidegate, command, target], cwd=app.parent, capture_output=True, text=True, timeout=60, check=False
        )
        for command in ("info", "serve")
    )
    assert (shown.returncode, shown.stdout) == (2, "")
    assert told in shown.stderr
    assert shown.stderr.splitlines()[-1] == served.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("@serve(name='health')\ndef f(x: int) -> int:\n    return x\n", "'health'"),
        ("@serve(devices_per_worker=4)\ndef f(x: int) -> int:\n    return x\n", "devices_per_worker=4"),
    ],
)
def test_what_could_not_be_served_is_told_in_one_line(source: str, message: str, info: Info, tmp_path: Path) -> None:
    path = tmp_path / "app.py"
    path.write_text(f"from tidegate import serve\n{source}")
    ran = info(path)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert len(ran.stderr.splitlines()) == 1
    assert ran.stderr.startswith("Error: handler ")
    assert message in ran.stderr


def test_help_names_what_can_be_shown(info: Info) -> None:
    ran = info("--help")
    assert ran.exit_code == 0
    assert "--json" in ran.stdout
    assert "--devices" in ran.stdout
