"""What the documentation tells a reader to type works, and says what it is said to say."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts]

Read = Callable[[str], Any]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_tells_a_reader_to_type_works(page: Path, read: Read) -> None:
    read(page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_links_to_is_there(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        assert "://" in link or link.startswith("mailto:") or (page.parent / link).exists(), link


HANDLER = """
```python
# app.py
from tidegate import serve

@serve(max_batch_size=8, worker="thread")
def double(x: list[int]) -> list[int]:
    return [2 * n for n in x]
```
"""


def test_a_page_is_read_from_top_to_bottom(read: Read) -> None:
    page = f"{HANDLER}\n```sh\ntidegate serve app.py\n```\n```console\n$ curl http://127.0.0.1:8000/double --json 21\n42\n```"
    assert read(page).ran == 2


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("```python\nraise OSError(3)\n```", "OSError: 3"),
        ("```python\nfrom tidegate import serve\n@serve\ndef f(x: int) -> int:\n    return {}[x]\n```", "HandlerError"),
        ("```sh\ntidegate launch app.py\n```", "No such command"),
        ("```sh\ntidegate serve none.py\n```", "no file none.py"),
        ("```console\n$ echo 1\n2\n```", "printed\n1\nand not\n2"),
        ("```console\necho 1\n```", "behind '\\$ '"),
        ("```nginx\nserver {}\n```", "say <!-- not run: why -->"),
        ("```pycon\n>>> 1 + 1\n3\n```", "Expected:"),
        (f"{HANDLER}\n```console\n$ echo 2 | tidegate run app.py -q\n5\n```", "printed\n4\nand not\n5"),
    ],
)
def test_a_page_that_is_wrong_is_seen(page: str, complaint: str, read: Read) -> None:
    with pytest.raises(AssertionError, match=complaint):
        read(page)


def test_what_cannot_be_run_says_why(read: Read) -> None:
    assert read("<!-- not run: needs Docker -->\n\n```sh\ndocker build .\n```").ran == 0
