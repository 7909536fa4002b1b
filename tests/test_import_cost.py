import json
import re
import subprocess
import sys

import pytest

# Prints what an import loads beyond what the interpreter had loaded at its start.
LOADED = """
import sys
before = set(sys.modules)
import {module}
import json
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def loaded_by(module: str) -> set[str]:
    code = LOADED.format(module=module)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stderr == ""
    return set(json.loads(ran.stdout))


def third_party(modules: set[str]) -> set[str]:
    tops = {module.partition(".")[0] for module in modules}
    # `__mp_main__` and what Cython and mypyc compile for their own use are not packages.
    return {top for top in tops - sys.stdlib_module_names if not top.startswith("_") and "__mypyc" not in top}


OURS = {"tidegate", "tidegate_batching"}
ANYIO = {"anyio", "exceptiongroup", "idna", "sniffio", "typing_extensions"}


def test_importing_tidegate_loads_only_what_every_handler_needs() -> None:
    loaded = loaded_by("tidegate")
    assert not {"torch", "aiohttp", "websockets", "rich", "click"} & loaded
    assert third_party(loaded) <= OURS | ANYIO | {"numpy", "msgspec", "orjson"}
    assert not {"tidegate.cli", "unittest", "doctest", "multiprocessing", "http.server", "sqlite3", "tkinter"} & loaded


def test_importing_the_core_loads_anyio_alone() -> None:
    loaded = loaded_by("tidegate_batching")
    assert not {"numpy", "msgspec", "tidegate"} & loaded
    assert third_party(loaded) <= {"tidegate_batching"} | ANYIO


def test_the_command_line_loads_a_door_only_when_one_is_opened() -> None:
    assert not {"torch", "aiohttp", "tidegate_transports"} & loaded_by("tidegate.cli")


def test_importing_changes_nothing_for_the_process() -> None:
    code = (
        "import logging, signal, sys, threading\n"
        "def state(): return (logging.root.level, list(logging.root.handlers), threading.active_count(),\n"
        "    [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)], list(sys.path))\n"
        "before = state()\n"
        "import tidegate\n"
        "assert state() == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_time_that_an_import_takes_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import tidegate"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = re.search(r"\| +(\d+) \| tidegate$", ran.stderr, re.MULTILINE)
    assert found
    with capsys.disabled():
        print(f"\nimport tidegate: {int(found[1]) / 1e6:.3f} s (aim: 0.25)")  # noqa: T201 - for whoever reads the log
