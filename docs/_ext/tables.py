"""Tables and the drawing that are made of the code, and the pages that hold copies of them.

    python docs/_ext/tables.py          # writes them into the pages, between their marks
    python docs/_ext/tables.py --check  # says which are out of date

A copy stands in each page, so that it can be read without building anything; a test asks for `--check`.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING
from pathlib import Path

import tidegate
from tidegate import TidegateError
from tidegate.cli.overrides import FLAGS
from tidegate_transports.http_options import HTTPOptions
from tidegate_transports.metrics import DOCUMENTED

DOCS = Path(__file__).parent.parent
ROOT = DOCS.parent
LAYERS = {"tidegate_batching": "batching", "tidegate": "sdk", "tidegate_transports": "transports"}
ROOMS = ("workers", "clients", "bench", "cli")


def table(*rows: tuple[str, ...]) -> str:
    """Markdown; the first row is the head."""
    lines = [f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in rows]
    return "\n".join([lines[0], f"|{' --- |' * len(rows[0])}", *lines[1:]])


# ---------------------------------------------------------------------- what users see


def metrics() -> str:
    """Every metric of /metrics."""
    rows = [
        (f"`{name}`", kind, ", ".join(f"`{label}`" for label in labels) or "–", meaning)
        for name, (kind, labels, meaning) in DOCUMENTED.items()
    ]
    return table(("metric", "kind", "labels", "meaning"), *rows)


def errors() -> str:
    """Every error that users may catch, by its place in the tree."""
    rows = []

    def visit(error: type[TidegateError], depth: int) -> None:
        if getattr(tidegate, error.__name__, None) is not error:
            return
        status = "as given" if error.__name__ == "HTTPError" else str(error.status)
        told = (error.__doc__ or "").strip().partition("\n")[0]
        rows.append((f"{'· ' * depth}`{error.__name__}`", f"`{error.code}`", status, told))
        for child in error.__subclasses__():
            visit(child, depth + 1)

    visit(TidegateError, 0)
    return table(("class", "`code`", "status", "meaning"), *rows)


def environment() -> str:
    """Every variable that the command line reads, with the default of what it stands for."""
    rows = [
        ("`PORT`", "–", "listen on `0.0.0.0:PORT`, where neither `--http` nor `TIDEGATE_HTTP` says otherwise"),
        ("`TIDEGATE_API_KEY`", "–", "keys that callers must give, separated by commas or newlines"),
        ("`TIDEGATE_API_KEY_FILE`", "–", "a file with such keys, one per line"),
    ]
    for option in HTTPOptions.__dataclass_fields__.values():
        if option.name != "api_keys":
            default = () if option.default is MISSING else option.default
            shown = "–" if default in ((), None) else f"`{int(default) if isinstance(default, bool) else default}`"
            rows.append((f"`TIDEGATE_{option.name.upper()}`", shown, _meant(option.name)))
    from tidegate.cli.serve import serve

    for parameter in serve.params:
        name = getattr(parameter, "envvar", None)
        if isinstance(name, str) and name not in {row[0].strip("`") for row in rows}:
            default = parameter.default if isinstance(parameter.default, (int, float, str)) else "–"
            told = _sentence(getattr(parameter, "help", "") or "")
            flag = parameter.name in FLAGS or name == "TIDEGATE_SET"
            rows.append((f"`{name}`", "–" if flag or default == "–" else f"`{default}`", told))
    return table(("variable", "default", "meaning"), *rows)


def _meant(name: str) -> str:
    """What the docstring of HTTPOptions says of a field."""
    if name == "max_connections":
        return "connections at once"
    text = " ".join((HTTPOptions.__doc__ or "").split())
    found = re.search(rf"(?:^|[ ,]){name}(?:, \w+)*: (.+?)(?=[.] \w+(?:, \w+)*: |[.] Raises|$)", text)
    return found[1] if found else "the same" if name.endswith("_key") else ""


def _sentence(text: str) -> str:
    return " ".join(re.sub(r"\[default:.*", "", text).split()).rstrip(".")


# ---------------------------------------------------------------------- the packages


def modules() -> dict[str, Path]:
    """Every module of the three packages by its name."""
    found = {}
    for folder in LAYERS.values():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(known: Mapping[str, Path]) -> dict[str, set[str]]:
    """Every module's first-party imports, those inside functions and for types included."""
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        found[name] = {
            target
            for node in ast.walk(ast.parse(path.read_text()))
            for target in _targets(node, known)
            if target != name
        }
    return found


def _targets(node: ast.AST, known: Mapping[str, Path]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in known)
    elif isinstance(node, ast.ImportFrom) and node.module in known:
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            yield full if full in known else node.module


def room(module: str) -> str:
    """The part of the package that a module lies in."""
    top, _, rest = module.partition(".")
    inner = rest.partition(".")[0]
    return f"{top}.{inner}" if top == "tidegate" and inner in ROOMS else top


def edges() -> list[tuple[str, str]]:
    """Which room imports which."""
    known = modules()
    found = {(room(name), room(target)) for name, targets in imports(known).items() for target in targets}
    return sorted((one, other) for one, other in found if one != other)


def rooms() -> str:
    """Which part imports which, as a table."""
    reached: dict[str, list[str]] = {}
    for one, other in edges():
        reached.setdefault(one, []).append(f"`{other}`")
    every = sorted({room(name) for name in modules()}, key=_height)
    return table(
        ("part", "imports"), *((f"`{one}`", ", ".join(reached.get(one, ["nothing of ours"]))) for one in every)
    )


def every_module() -> str:
    """Every module with the first line of its docstring and what it imports."""
    known = modules()
    graph = imports(known)
    parts = []
    for one in sorted({room(name) for name in known}, key=_height):
        rows = []
        for name in (name for name in known if room(name) == one):
            doc = (ast.get_docstring(ast.parse(known[name].read_text())) or "").partition("\n")[0]
            shown = sorted(target.removeprefix("tidegate_") for target in graph[name])
            rows.append((f"`{name}`", doc, " ".join(f"`{target}`" for target in shown) or "–"))
        parts.append(f"**`{one}`**\n\n{table(('module', 'what it is', 'imports'), *rows)}")
    return "\n\n".join(parts)


# From the bottom of the drawing up: x in columns of 1, y in rows.
_PLACES = {
    "tidegate_batching": (1.0, 0),
    "tidegate.workers": (0.0, 1.4),
    "tidegate": (1.0, 1.0),
    "tidegate.clients": (2.0, 1.4),
    "tidegate_transports": (1.0, 2.4),
    "tidegate.bench": (2.0, 2.8),
    "tidegate.cli": (1.0, 3.4),
}
_WIDTH, _HEIGHT, _ACROSS, _UP = 190, 46, 250, 105


def _height(name: str) -> tuple[float, str]:
    return _PLACES.get(name, (0.0, 9.0))[1], name


def drawing() -> str:
    """The parts and their imports as an SVG: an arrow leads from who imports to what is imported."""
    places = dict(_PLACES)
    for number, name in enumerate(sorted({room(module) for module in modules()} - places.keys())):
        places[name] = (0.0, 2.4 + number)
    top = max(y for _, y in places.values())
    centre = {
        name: (20 + _WIDTH / 2 + x * _ACROSS, 20 + _HEIGHT / 2 + (top - y) * _UP) for name, (x, y) in places.items()
    }
    width, height = 40 + _WIDTH + 2 * _ACROSS, 40 + _HEIGHT + top * _UP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img"',
        '  aria-label="Which part of the packages imports which" font-family="sans-serif" font-size="15">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="9" markerHeight="9" orient="auto">',
        '<path d="M0 0 8 4 0 8z" fill="#667"/></marker></defs>',
        f'<rect width="{width:g}" height="{height:g}" fill="#fff"/>',
    ]
    for one, other in edges():
        (x1, y1), (x2, y2) = _ends(centre[one], centre[other])
        lines.append(
            f'<line x1="{x1:.0f}" y1="{y1:.0f}" x2="{x2:.0f}" y2="{y2:.0f}" stroke="#667" stroke-width="1.3" '
            'marker-end="url(#tip)"/>'
        )
    for name, (x, y) in centre.items():
        lines.append(
            f'<rect x="{x - _WIDTH / 2:.0f}" y="{y - _HEIGHT / 2:.0f}" width="{_WIDTH}" height="{_HEIGHT}" rx="8" '
            'fill="#eaf1f8" stroke="#356"/>'
        )
        lines.append(f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle" fill="#123">{name}</text>')
    return "\n".join([*lines, "</svg>", ""])


Point = tuple[float, float]


def _ends(start: Point, end: Point) -> tuple[Point, Point]:
    """Where a line between two boxes leaves the one and meets the other."""
    return _edge(start, end), _edge(end, start)


def _edge(box: Point, towards: Point) -> Point:
    (x, y), (dx, dy) = box, (towards[0] - box[0], towards[1] - box[1])
    scale = min(
        _WIDTH / 2 / abs(dx) if dx else float("inf"),
        _HEIGHT / 2 / abs(dy) if dy else float("inf"),
    )
    return x + dx * scale, y + dy * scale


# ---------------------------------------------------------------------- their copies

TABLES: dict[str, Callable[[], str]] = {
    "metrics": metrics,
    "errors": errors,
    "environment": environment,
    "rooms": rooms,
    "modules": every_module,
}
_MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
DRAWING = DOCS / "imports.svg"


def current() -> dict[Path, str]:
    """Every file that holds a copy, as it should be."""
    found = {DRAWING: drawing()}
    for page in DOCS.rglob("*.md"):
        text = page.read_text()
        written = _MARKED.sub(lambda mark: f"{mark[1]}\n{TABLES[mark[2]]()}\n\n{mark[3]}", text)
        if "<!-- table: " in text:
            found[page] = written
    return found


def main() -> int:
    """Write them, or say what is out of date."""
    stale = [path for path, text in current().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        for path in stale:
            sys.stderr.write(f"{path.relative_to(ROOT)} is out of date: python docs/_ext/tables.py\n")
        return int(bool(stale))
    for path in stale:
        path.write_text(current()[path])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
