"""Handlers are looked up in real processes, since what is looked up is what another process can find."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tidegate import Handler, serve
from tidegate.workers.reference import CannotLoad, Reference, reference_to

# What a worker does: load the reference, run one batch on values that were pickled, answer with pickled outputs.
CHILD = """
import pickle, sys
import msgspec
from tidegate.workers.pickling import Pickled
from tidegate.workers.reference import Reference

data, values = pickle.load(sys.stdin.buffer)
reference = msgspec.msgpack.decode(data, type=Reference)
handler = reference.load()
values = pickle.loads(values)
options = handler.options
if options.decode_request:
    values = [options.decode_request(value) for value in values]
function = handler.target().predict if handler.is_class else handler.function
outputs = b"".join(Pickled(list(function(values)), by_value=reference.by_value).chunks)
facts = {"name": handler.name, "size": options.max_batch_size, "dim": options.batch_dim, "path": options.path,
         "module": handler.function.__module__, "argv": sys.argv, "frozen": handler._frozen}
pickle.dump((outputs, facts), sys.stdout.buffer)
"""

# What a service does: find the handler called by its variable, and ask a worker.
PARENT = """
import pickle, subprocess, sys
import msgspec
from tidegate.handler import handler_of
from tidegate.workers.pickling import Pickled
from tidegate.workers.reference import reference_to

def ask(handler, values, **changes):
    handler = handler_of(handler)
    handler.freeze()
    reference = reference_to(handler, changes)
    values = b"".join(Pickled(values, by_value=reference.by_value).chunks)
    message = pickle.dumps((msgspec.msgpack.encode(reference), values))
    child = subprocess.run([sys.executable, "-c", CHILD], input=message, stdout=subprocess.PIPE, check=True, timeout=60)
    outputs, facts = pickle.loads(child.stdout)
    return pickle.loads(outputs), facts, reference
""".replace("CHILD", repr(CHILD))

APP = """
from dataclasses import dataclass
from tidegate import serve

@dataclass
class Point:
    x: int

@serve(max_batch_size=4)
def move(points: list[Point]) -> list[Point]:
    return [Point(p.x + 1) for p in points]

@serve(max_batch_size=4)
def lengths(texts: list[int]) -> list[int]:
    return texts

@lengths.decode_request
def measure(body: str) -> int:
    return len(body)

@serve(max_batch_size=2)
class Doubler:
    def predict(self, batch: list[int]) -> list[int]:
        return [2 * n for n in batch]

def times(factor):
    @serve(max_batch_size=8, setup=lambda device: None)
    def scaled(state, x: list[int]) -> list[int]:
        return [factor * n for n in x]

    @serve(max_batch_size=8)
    def plain(x: list[int]) -> list[int]:
        return [factor * n for n in x]

    return plain
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "asking.py").write_text(PARENT)
    return tmp_path


def python(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    ran = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(folder), **(env or {})},
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def script(folder: Path, text: str, *arguments: str) -> str:
    (folder / "script.py").write_text(text)
    return python(folder, str(folder / "script.py"), *arguments)


def test_a_modules_handler_is_imported_by_name_and_its_classes_cross_both_ways(folder: Path) -> None:
    script(
        folder,
        """
import app
from asking import ask
outputs, facts, reference = ask(app.move, [app.Point(1), app.Point(2)])
assert outputs == [app.Point(2), app.Point(3)] and type(outputs[0]) is app.Point
assert (reference.module, reference.variable, reference.file, reference.main) == ("app", "move", "", False)
assert facts["module"] == "app" and not facts["frozen"]
""",
    )


def test_hooks_that_were_attached_later_are_there(folder: Path) -> None:
    script(folder, "import app\nfrom asking import ask\nassert ask(app.lengths, ['abc', ''])[0] == [3, 0]")


def test_a_class_is_found_by_its_name(folder: Path) -> None:
    script(
        folder,
        """
import app
from asking import ask
outputs, facts, reference = ask(app.Doubler, [1, 2], max_batch_size=7)
assert outputs == [2, 4] and reference.variable == "Doubler" and facts["size"] == 7
""",
    )


def test_a_file_that_was_loaded_is_loaded_under_the_same_name(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "my-app.py").write_text(
        "from beside import OFFSET\n" + APP.replace("p.x + 1", "p.x + OFFSET")
    )
    (folder / "elsewhere" / "beside.py").write_text("OFFSET = 10")
    script(
        folder,
        """
import sys
from asking import ask
from tidegate.target import find_handlers
(move,) = find_handlers("elsewhere/my-app.py:move")
Point = sys.modules["my-app"].Point
outputs, facts, reference = ask(move, [Point(1)])
assert outputs == [Point(11)] and facts["module"] == "my-app"
assert reference.file.endswith("elsewhere/my-app.py")
""",
    )


def test_a_package_is_imported_with_its_relatives(folder: Path) -> None:
    package = folder / "package" / "inner"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "handlers.py").write_text("from .points import *\n" + APP)
    (package / "points.py").write_text("")
    # The outer folder has no __init__.py: a namespace.
    script(
        folder,
        """
from package.inner import handlers
from asking import ask
outputs, facts, reference = ask(handlers.move, [handlers.Point(1)])
assert outputs == [handlers.Point(2)] and reference.module == "package.inner.handlers" and not reference.file
""",
    )


MAIN = (
    APP
    + """
import sys
STARTED_AS = __name__

@serve(max_batch_size=4)
def where(x: list[int]) -> list[str]:
    return [STARTED_AS] * len(x)

if __name__ == "__main__":
    from asking import ask
    outputs, facts, reference = ask(move, [Point(1)])
    assert outputs == [Point(2)] and type(outputs[0]) is Point, outputs
    assert reference.main
    assert facts["argv"] == sys.argv
    assert ask(where, [1])[0] == ["__mp_main__"]
    assert ask(Doubler, [1])[0] == [2]
    print("done")
"""
)


def test_a_scripts_handlers_are_found_by_running_it_again_without_its_main_part(folder: Path) -> None:
    assert script(folder, MAIN, "--flag", "value") == "done\n"


@pytest.mark.parametrize("name", ["package.program", "package"])
def test_a_module_that_was_run_with_m_is_found_by_name(folder: Path, name: str) -> None:
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").write_text("")
    (folder / "package" / "beside.py").write_text("")
    for file in ("program.py", "__main__.py"):
        (folder / "package" / file).write_text("from . import beside\n" + MAIN)
    assert python(folder, "-m", name) == "done\n"


def test_a_closure_travels_by_value(folder: Path) -> None:
    script(
        folder,
        """
import app
from asking import ask
outputs, facts, reference = ask(app.times(7), [1, 2])
assert outputs == [7, 14] and reference.by_value
outputs, facts, reference = ask(app.times(7), [1, 2], max_batch_size=3)
assert facts["size"] == 3
""",
    )


NOTEBOOK = (
    APP
    + """
from asking import ask
outputs, facts, reference = ask(move, [Point(1)])
assert reference.by_value
assert outputs == [Point(2)] and type(outputs[0]) is Point, outputs
assert ask(Doubler, [3])[0] == [6]
assert ask(lengths, ["abc"])[0] == [3]

@serve(max_batch_size=2)
def countdown(x: list[int]) -> list[list[int]]:
    return [[n, *countdown([n - 1])[0]] if n else [] for n in x]

assert ask(countdown, [3])[0] == [[3, 2, 1]]

import msgspec
from typing import NamedTuple, TypedDict

class Base(msgspec.Struct, frozen=True, rename="camel"):
    text_given: str

    @property
    def text(self):
        return self.text_given

class Request(Base, frozen=True, kw_only=True):
    n: int = 3
    seen: list[int] = []

    def repeated(self) -> str:
        assert isinstance(self, Request) and super().text == self.text
        return self.text * self.n

    @classmethod
    def of(cls, text: str):
        return cls(text)

class Reply(TypedDict):
    text: str

class Pair(NamedTuple):
    text: str
    n: int

@serve(max_batch_size=2)
def reply(requests: list[Request]) -> list[Reply]:
    return [Reply(text=r.repeated()) for r in requests]

assert ask(reply, [Request.of("ab"), Request("c", n=1)])[0] == [{"text": "ababab"}, {"text": "c"}]

@serve(max_batch_size=2)
def echo(requests: list[Request]) -> list[Request]:
    return [msgspec.structs.replace(r, n=r.n + 1) for r in requests] + [msgspec.convert({"textGiven": "new"}, Request)]

outputs = ask(echo, [Request("ab")])[0]
assert outputs == [Request("ab", n=4), Request("new")] and type(outputs[0]) is Request, outputs

@serve(max_batch_size=2)
def pairs(requests: list[Reply]) -> list[Pair]:
    return [Pair(r["text"], 1) for r in requests]

outputs = ask(pairs, [Reply(text="x")])[0]
assert outputs == [Pair("x", 1)] and type(outputs[0]) is Pair, outputs
print("done")
"""
)


def test_what_was_typed_has_no_file_and_travels_by_value_with_its_classes(folder: Path) -> None:
    assert python(folder, "-c", NOTEBOOK) == "done\n"


def test_a_namespace_that_is_no_module_travels_by_value(folder: Path) -> None:
    (folder / "cells.py").write_text(NOTEBOOK)
    text = "exec(compile(open('cells.py').read(), '<cell>', 'exec'), {'__name__': '__main__'})"
    assert script(folder, text) == "done\n"


def test_what_is_typed_after_a_script_is_not_looked_for_in_its_file(folder: Path) -> None:
    (folder / "script.py").write_text(NOTEBOOK)
    python(folder, "-i", str(folder / "script.py"))


def test_a_handler_under_another_modules_name_is_found_there(folder: Path) -> None:
    (folder / "library.py").write_text("def double(x):\n    return [2 * n for n in x]\n")
    (folder / "served.py").write_text(
        "import library\nfrom tidegate import serve\nHANDLER = serve(max_batch_size=4)(library.double)\n"
    )
    script(
        folder,
        """
from served import HANDLER
from asking import ask
outputs, facts, reference = ask(HANDLER, [1])
assert outputs == [2] and (reference.module, reference.variable) == ("served", "HANDLER"), reference
""",
    )


def test_overrides_are_found_and_applied(folder: Path) -> None:
    script(
        folder,
        """
import app
from asking import ask
overridden = app.move.override(max_batch_size=9, batch_dim=(0, 1), path="/elsewhere")
outputs, facts, reference = ask(overridden, [app.Point(1)])
assert outputs == [app.Point(2)]
assert reference.changes == {"max_batch_size": 9, "batch_dim": (0, 1), "path": "/elsewhere"}
assert (facts["size"], facts["dim"], facts["path"]) == (9, (0, 1), "/elsewhere")
""",
    )


def test_pytests_own_modules_are_found_as_well() -> None:
    reference = reference_to(served_here)
    code = (
        "import msgspec, sys\n"
        "from tidegate.workers.reference import Reference\n"
        "handler = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Reference).load()\n"
        "assert handler([1]) == [Here(2)] if False else handler.name == 'served_here'\n"
        f"assert handler.function.__module__ == {__name__!r}\n"
    )
    data = msgspec.msgpack.encode(reference)
    subprocess.run([sys.executable, "-c", code], input=data, check=True, timeout=60)


def test_a_handler_that_is_gone_in_the_worker_is_told_with_the_fix(folder: Path) -> None:
    text = """
import os
from tidegate import serve
if "INSIDE" not in os.environ:
    @serve
    def square(x: int) -> int:
        return x * x
"""
    (folder / "shy.py").write_text(text)
    python(
        folder,
        "-c",
        """
import msgspec, os, subprocess, sys
import shy
from tidegate.workers.reference import reference_to
data = msgspec.msgpack.encode(reference_to(shy.square))
code = '''
import msgspec, sys
from tidegate.workers.reference import CannotLoad, Reference
try:
    msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Reference).load()
except CannotLoad as error:
    assert "shy has no handler called 'square'" in str(error) and "top of the module" in str(error)
else:
    raise AssertionError("found")
'''
subprocess.run([sys.executable, "-c", code], input=data, check=True, env={**os.environ, "INSIDE": "1"})
""",
    )


def test_a_handler_that_cannot_be_sent_is_told_with_the_fix() -> None:
    lines = (line for line in [1])

    @serve(max_batch_size=2)
    def stuck(x: list[int]) -> list[int]:
        return [*x, *lines]

    with pytest.raises(CannotLoad, match=r"'stuck' cannot be sent .*generator.*; .*worker='thread'"):
        reference_to(stuck)


def test_finding_a_handler_leaves_it_as_it_is() -> None:
    @serve(max_batch_size=2)
    def closed(x: list[int]) -> list[int]:
        return x

    closed.freeze()
    codec = closed.codec
    assert reference_to(closed).by_value
    assert closed.codec is codec
    with pytest.raises(RuntimeError, match="being served"):
        closed.batch(lambda items: items)


class Proxy:
    """Somebody's lazy object: it raises when it is asked for its class."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


def test_lazy_objects_in_modules_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(sys)("a_module_with_a_proxy")
    vars(module)["proxy"] = object.__new__(Proxy)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert reference_to(served_here).variable == "served_here"


@dataclass
class Here:
    x: int


@serve(max_batch_size=2)
def served_here(x: list[int]) -> list[Here]:
    return [Here(n + 1) for n in x]


def test_a_reference_is_plain_data() -> None:
    handler: Handler[..., Any] = served_here
    reference = reference_to(handler, {"workers_per_device": 3, "forward_headers": ("x-tenant",)})
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(reference), type=Reference)
    assert again.changes == {"workers_per_device": 3, "forward_headers": ["x-tenant"]}
    assert again.path == [entry or os.getcwd() for entry in sys.path]
