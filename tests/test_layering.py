"""What may import what. The rules look at sources, so that one that is broken on purpose shows that they see it."""

import ast
import sys
from collections.abc import Callable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
# From the bottom up: each may import itself and those before it.
LAYERS = {"tidegate_batching": "batching", "tidegate": "sdk", "tidegate_transports": "transports"}
SAYS_NOTHING = {"base", "common", "helpers", "misc", "util", "utils"}


class Import(NamedTuple):
    """One imported name: `importer` has `import module`, or `from module import name`."""

    importer: str
    module: str
    name: str
    in_function: bool
    for_types_only: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]

    @property
    def first_party(self) -> bool:
        return self.top in LAYERS

    def __str__(self) -> str:
        return f"{self.importer} imports {self.module}" + (f".{self.name}" if self.name else "")


def sources() -> dict[str, str]:
    """Every module of the three packages by its name."""
    found = {}
    for folder in LAYERS.values():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path.read_text()
    return found


def imports_of(importer: str, source: str) -> list[Import]:
    """Every import in a module, wherever it stands."""

    def visit(node: ast.AST, in_function: bool, for_types_only: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(importer, alias.name, "", in_function, for_types_only)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{importer}: relative import"
            for alias in node.names:
                yield Import(importer, node.module or "", alias.name, in_function, for_types_only)
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for guarded in node.body:
                yield from visit(guarded, in_function, True)
            for other in node.orelse:
                yield from visit(other, in_function, for_types_only)
        else:
            inside = in_function or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for child in ast.iter_child_nodes(node):
                yield from visit(child, inside, for_types_only)

    return list(visit(ast.parse(source), False, False))


def imports_in(modules: Mapping[str, str]) -> list[Import]:
    return [found for importer, source in modules.items() for found in imports_of(importer, source)]


def upward(modules: Mapping[str, str]) -> list[str]:
    """Imports from a layer above; the command line is above them all."""
    rank = list(LAYERS).index
    return [
        str(found)
        for found in imports_in(modules)
        if found.first_party
        and not f"{found.importer}.".startswith("tidegate.cli.")
        and rank(found.top) > rank(found.importer.partition(".")[0])
    ]


def foreign_to_the_core(modules: Mapping[str, str]) -> list[str]:
    """What the core imports beside the standard library and anyio."""
    allowed = sys.stdlib_module_names | {"anyio", "tidegate_batching"}
    return [
        str(found)
        for found in imports_in(modules)
        if found.importer.partition(".")[0] == "tidegate_batching" and found.top not in allowed
    ]


def under_the_roof(modules: Mapping[str, str]) -> list[str]:
    """Imports of the command line from elsewhere."""

    def roof(module: str) -> bool:
        return f"{module}.".startswith("tidegate.cli.")

    return [
        str(found)
        for found in imports_in(modules)
        if not roof(found.importer) and (roof(found.module) or roof(f"{found.module}.{found.name}"))
    ]


def in_functions(modules: Mapping[str, str]) -> list[str]:
    """First-party imports inside functions."""
    return [
        str(found)
        for found in imports_in(modules)
        if found.first_party and found.in_function and not found.for_types_only
    ]


def of_torch_at_import(modules: Mapping[str, str]) -> list[str]:
    """Imports of torch that run when the module is imported."""
    return [
        str(found)
        for found in imports_in(modules)
        if found.top == "torch" and not found.in_function and not found.for_types_only
    ]


def of_private_names(modules: Mapping[str, str]) -> list[str]:
    """Names with an underscore that a module takes from another."""
    return [
        str(found)
        for found in imports_in(modules)
        if found.first_party and any(part.startswith("_") and not part.endswith("__") for part in str(found).split("."))
    ]


def cycles(modules: Mapping[str, str]) -> list[str]:
    """A ring of modules that import each other while they are imported, if there is one."""
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for found in imports_in(modules):
        if found.for_types_only or found.in_function:
            continue
        named = f"{found.module}.{found.name}"
        target = named if named in modules else found.module
        # Importing a.b.c runs a and a.b first; who is inside of them has them already.
        parts = target.split(".")
        packages = {".".join(parts[:n]) for n in range(1, len(parts))}
        inside = {package for package in packages if f"{found.importer}.".startswith(f"{package}.")}
        graph[found.importer] |= {target} | packages - inside
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" -> ".join(error.args[1])]
    return []


def with_names_that_say_nothing(modules: Mapping[str, str]) -> list[str]:
    return [module for module in modules if SAYS_NOTHING & {part.strip("_") for part in module.split(".")}]


Rule = Callable[[Mapping[str, str]], list[str]]

RULES: list[Rule] = [
    upward,
    foreign_to_the_core,
    under_the_roof,
    in_functions,
    of_torch_at_import,
    of_private_names,
    cycles,
    with_names_that_say_nothing,
]


@pytest.mark.parametrize("rule", RULES)
def test_the_packages_keep_the_rule(rule: Rule) -> None:
    assert rule(sources()) == []


@pytest.mark.parametrize(
    ("rule", "broken"),
    [
        (upward, {"tidegate_batching.x": "from tidegate.app import App"}),
        (upward, {"tidegate.x": "import tidegate_transports.http"}),
        (upward, {"tidegate.x": "if TYPE_CHECKING:\n    from tidegate_transports.http import HTTPTransport"}),
        (foreign_to_the_core, {"tidegate_batching.x": "import numpy as np"}),
        (foreign_to_the_core, {"tidegate_batching.x": "def f():\n    from msgspec.json import encode"}),
        (under_the_roof, {"tidegate.app": "from tidegate.cli.serve import serve"}),
        (under_the_roof, {"tidegate_transports.http": "from tidegate import cli"}),
        (in_functions, {"tidegate.x": "class A:\n    async def f(self):\n        from tidegate import app"}),
        (of_torch_at_import, {"tidegate.x": "import torch.nn"}),
        (of_torch_at_import, {"tidegate.x": "try:\n    from torch import Tensor\nexcept ImportError: ..."}),
        (of_private_names, {"tidegate.x": "from tidegate.codec import _unwrap"}),
        (of_private_names, {"tidegate.x": "from tidegate._hidden import shown"}),
        (cycles, {"a": "import b", "b": "from c import d", "c.d": "", "c": "if x:\n    import a"}),
        (cycles, {"p": "from p.a import f", "p.a": "from p import b", "p.b": "from p import f"}),
        (with_names_that_say_nothing, {"tidegate.workers.utils": ""}),
        (with_names_that_say_nothing, {"tidegate._common": ""}),
    ],
)
def test_a_broken_rule_is_seen(rule: Rule, broken: dict[str, str]) -> None:
    assert len(rule(broken)) == 1


def test_what_is_allowed_is_not_complained_about() -> None:
    fine = {
        "tidegate_batching.x": "import asyncio, anyio.abc\nfrom tidegate_batching.item import Item",
        "tidegate.x": "from tidegate_batching import Item\nif TYPE_CHECKING:\n    from tidegate.y import Y\n    import torch",
        "tidegate.y": "from tidegate.x import X\nfrom tidegate.version import __version__\ndef f():\n    import torch",
        "tidegate.cli": "from tidegate.cli.run import run\nfrom tidegate.x import X",
        "tidegate.cli.run": "from tidegate import y",
        "tidegate.database": "",
    }
    assert [rule(fine) for rule in RULES] == [[] for _ in RULES]


def test_every_package_was_looked_at() -> None:
    assert {module.partition(".")[0] for module in sources()} == set(LAYERS)
    assert {"tidegate_batching.scheduler", "tidegate.cli.serve", "tidegate_transports.http"} <= set(sources())
