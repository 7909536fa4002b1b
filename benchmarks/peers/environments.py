"""One virtual environment per contender, so that nobody's pins decide what another one runs with.

`python3 environments.py` makes those that are missing, in .bench/; a change of what one needs makes it anew.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["ENVIRONMENTS", "python_of", "versions"]

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / ".bench"
TORCH_INDEX = os.environ.get("TORCH_INDEX", "https://download.pytorch.org/whl/cpu")

_MODEL = ["numpy", "torch"]
ENVIRONMENTS: dict[str, list[str]] = {
    "tidegate": ["-e", f"{ROOT}[all]", "psutil"],
    "litserve": ["litserve", "python-multipart"],
    "mosec": ["mosec"],
    "bare": ["aiohttp", "fastapi", "uvicorn[standard]", "granian", "uvloop", "orjson"],
}
_TOLD = (
    "aiohttp",
    "fastapi",
    "granian",
    "litserve",
    "mosec",
    "numpy",
    "orjson",
    "tidegate",
    "torch",
    "uvicorn",
    "uvloop",
)


def python_of(environment: str) -> str:
    """Its interpreter."""
    return str(BENCH / environment / "bin" / "python")


def make(environment: str) -> None:
    """Create it if it is missing or was made for other needs."""
    where = BENCH / environment
    needs = json.dumps(ENVIRONMENTS[environment])
    stamp = where / "needs.json"
    if stamp.exists() and stamp.read_text() == needs:
        return
    print(f"making {where.relative_to(ROOT)}", flush=True)
    shutil.rmtree(where, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(where)], check=True)
    # torch first and alone: a plain one would bring gigabytes of CUDA libraries, so the constraints name the CPU build.
    torch = [*_MODEL, "--constraint", str(ROOT / "constraints.txt")]
    if not _install(environment, torch):
        _install(environment, [*torch, "--extra-index-url", TORCH_INDEX], must=True)
    _install(environment, ENVIRONMENTS[environment], must=True)
    stamp.write_text(needs)


def _install(environment: str, arguments: list[str], *, must: bool = False) -> bool:
    command = [python_of(environment), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, check=must, stderr=None if must else subprocess.DEVNULL).returncode == 0


def versions(environment: str) -> dict[str, str]:
    """What is installed there, of what matters."""
    program = (
        "import importlib.metadata as m, json, sys\n"
        "found = {}\n"
        "for name in sys.argv[1:]:\n"
        "    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps({'python': sys.version.split()[0], **found}))"
    )
    printed = subprocess.run([python_of(environment), "-c", program, *_TOLD], check=True, capture_output=True).stdout
    return dict(json.loads(printed))


if __name__ == "__main__":
    for name in ENVIRONMENTS:
        make(name)
        print(name, versions(name), flush=True)
