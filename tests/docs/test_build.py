"""The documentation builds without a warning, needs nothing from elsewhere, and holds what the code has."""

import html
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import tidegate

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
SPHINX = all(importlib.util.find_spec(name) for name in ("sphinx", "furo", "myst_parser", "sphinx_click"))
needs_sphinx = pytest.mark.skipif(not SPHINX, reason="the generator is not installed: pip install --group docs")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages as `make docs` builds them."""
    folder = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q"]
    doctrees = folder / "doctrees"
    ran = subprocess.run(
        [*command, "-d", str(doctrees), str(DOCS), str(folder / "html")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    """The module that makes tables of the code."""
    spec = importlib.util.spec_from_file_location("tables", DOCS / "_ext" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))


@needs_sphinx
def test_every_page_is_built_and_nothing_is_fetched_when_it_is_read(built: Path) -> None:
    sources = [path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md") if "_build" not in path.parts]
    assert [path for path in sources if not (built / path).exists()] == []
    for page in built.rglob("*.html"):
        fetched = re.findall(
            r"<(?:script|img|iframe|source)[^>]+src=\"(?:https?:)?//[^\"]+|<link[^>]+href=\"(?:https?:)?//[^\"]+",
            page.read_text(),
        )
        assert fetched == [], page
    for sheet in built.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text()), sheet


@needs_sphinx
def test_the_reference_has_every_public_name_and_every_command(built: Path) -> None:
    python = (built / "reference/python.html").read_text()
    names = [name for name in tidegate.__all__ if name != "__version__"]
    assert [name for name in names if f'id="tidegate.{name}"' not in python] == []
    commands = text_of(built / "reference/command-line.html")
    for command in ("bench", "info", "run", "serve"):
        assert f"tidegate {command} [OPTIONS]" in commands
    assert "--max-batch-size" in commands


@needs_sphinx
def test_arguments_told_in_a_docstring_are_a_list(built: Path) -> None:
    page = (built / "reference/python.html").read_text()
    assert re.search(r"<li><p><code[^>]*><span class=\"pre\">max_batch_size</span></code>: None gives", page)


def test_the_copies_in_the_pages_are_what_the_code_has(tables: ModuleType) -> None:
    stale = [path.name for path, text in tables.current().items() if not path.exists() or path.read_text() != text]
    assert stale == [], "python docs/_ext/tables.py writes them anew"


def test_every_table_that_is_copied_stands_in_a_page(tables: ModuleType) -> None:
    pages = "".join(path.read_text() for path in DOCS.rglob("*.md") if "_build" not in path.parts)
    assert [
        name for name in tables.TABLES if f"table: {name} -->" not in pages and f"{{table-of}} {name}" not in pages
    ] == []


def test_the_drawing_shows_the_imports_that_there_are(tables: ModuleType) -> None:
    edges = tables.edges()
    assert ("tidegate", "tidegate_batching") in edges
    assert ("tidegate_transports", "tidegate") in edges
    # Nothing leads up.
    assert not {
        ("tidegate_batching", "tidegate"),
        ("tidegate", "tidegate_transports"),
        ("tidegate", "tidegate.cli"),
    } & {*edges}
    drawn = tables.drawing()
    assert drawn.count("<line ") == len(edges)
    assert all(f">{room}<" in drawn for edge in edges for room in edge)


def test_every_import_is_found(tables: ModuleType, tmp_path: Path) -> None:
    source = "import a.b\nfrom a import c, d\ndef f():\n    from a.b import g\nimport os\n"
    (tmp_path / "x.py").write_text(source)
    (tmp_path / "empty.py").write_text("")
    empty = tmp_path / "empty.py"
    known = {"x": tmp_path / "x.py", "a": empty, "a.b": empty, "a.c": empty}
    assert tables.imports(known)["x"] == {"a", "a.b", "a.c"}
