"""Docstrings as this project writes them, for Sphinx; and tables that are made of the code.

A paragraph of a docstring may tell of arguments or fields, one after the other, as `name: text` or `one, two: text`,
with what does not fit into a line indented below or not. Sphinx would take that for a definition list, or for an error.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import fields, is_dataclass
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from tables import TABLES

_ENTRY = re.compile(r"([a-z_]\w*(?:, [a-z_]\w*)*): (\S.*)")


def rewritten(lines: list[str], names: set[str]) -> list[str]:
    """The lines with their paragraphs of arguments as a list; `names` are what may be told of."""
    found: list[str] = []
    is_entry = False
    for line in lines:
        entry = _ENTRY.match(line)
        if entry and set(entry[1].split(", ")) <= names:
            if found and found[-1] and not is_entry:
                found.append("")
            told = ", ".join(f"``{name}``" for name in entry[1].split(", "))
            found.append(f"* {told}: {entry[2]}")
            is_entry = True
        elif is_entry and line.strip():
            found.append(f"  {line.strip()}")
        else:
            is_entry = False
            found.append(line)
    return found


def names_of(thing: Any) -> set[str]:
    """The arguments of a function or method, the fields and the arguments of a class."""
    names = {field.name for field in fields(thing)} if is_dataclass(thing) else set()
    if inspect.isclass(thing):
        names |= {name for name, value in vars(thing).items() if isinstance(value, property)}
    try:
        return names | set(inspect.signature(thing).parameters)
    except (TypeError, ValueError):
        return names


def _on_docstring(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    names = names_of(thing)
    if name == "tidegate.serve":
        from tidegate.options import Options

        names |= names_of(Options)
    lines[:] = rewritten(lines, names)


class Table(Directive):
    """`{table-of} metrics`: what `tables` makes of the code, as Markdown."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        lines = TABLES[self.arguments[0]]().splitlines()
        container = nodes.container()
        self.state.nested_parse(StringList(lines, "generated"), 0, container)
        return list(container.children)


def setup(app: Sphinx) -> dict[str, bool]:
    """What Sphinx calls."""
    # Before napoleon, which reads sections such as "Example:".
    app.connect("autodoc-process-docstring", _on_docstring, priority=100)
    app.add_directive("table-of", Table)
    return {"parallel_read_safe": True}
