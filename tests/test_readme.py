"""What the pages tell a reader to type works."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import fields
from pathlib import Path

import click
import pytest

from tidegate import serve
from tidegate.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = ["README.md", "CONTRIBUTING.md"]

Serving = Callable[..., AbstractContextManager[tuple["subprocess.Popen[str]", list[str]]]]

# Runs a block as a script. `tidegate.run` opens its doors on a free port and closes them again; afterwards every
# handler of the block is called through an app, as far as an input for it can be made up.
DRIVER = """
import asyncio, runpy, sys
import tidegate

def run(*handlers, **doors):
    async def open_and_close():
        async with tidegate.App(*handlers, **dict.fromkeys(doors or ["http"], "127.0.0.1:0")):
            pass
    asyncio.run(open_and_close())

async def call(handlers):
    async with tidegate.App(*handlers) as app:
        for handler in handlers:
            example = handler.codec.example()
            if example is not None:
                value = handler.codec.decode_json(handler.codec.encode_json(example))
                if handler.streams:
                    async with app.stream(handler.name, value) as chunks:
                        output = [chunk async for chunk in chunks]
                else:
                    output = await app.call(handler.name, value)
                handler.codec.encode_json(output)
                print("called", handler.name)

tidegate.run = run
namespace = runpy.run_path(sys.argv[1], run_name="__main__")
handlers = [value for value in namespace.values() if isinstance(value, tidegate.Handler)]
if handlers:
    asyncio.run(call(handlers))
"""


def blocks(page: str, *languages: str) -> list[str]:
    text = (ROOT / page).read_text()
    return [
        body
        for language, body in re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        if language in languages
    ]


def commands() -> list[tuple[str, list[str]]]:
    """Every command line of the pages' shell blocks, with its page."""
    found = []
    for page in PAGES:
        for block in blocks(page, "sh", "bash", "shell", "console"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words:
                    found.append((page, words))
    return found


def is_tidegate(words: list[str]) -> bool:
    return Path(words[0]).name == "tidegate"


@pytest.mark.parametrize("number", range(len(blocks("README.md", "python", "py"))))
def test_a_python_block_runs_by_itself_and_its_handlers_answer(number: int, tmp_path: Path) -> None:
    block = blocks("README.md", "python", "py")[number]
    (tmp_path / "app.py").write_text(block)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", DRIVER, "app.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_there_is_python_to_try() -> None:
    assert any("@serve" in block for block in blocks("README.md", "python", "py"))


@pytest.mark.parametrize(
    ("page", "words"), commands(), ids=lambda value: " ".join(value) if isinstance(value, list) else value
)
def test_a_command_exists_with_its_options_and_files(page: str, words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    if words[0] == "make":
        for target in (word for word in words[1:] if "=" not in word and not word.startswith("-")):
            assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), f"the Makefile has no target {target}"
    elif is_tidegate(words):
        assert isinstance(main, click.Group)
        name, *rest = words[1:]
        command = main.commands.get(name)
        assert command or name.startswith("-"), f"tidegate has no command {name}"
        with suppress(click.exceptions.Exit):  # what --help does
            # Raises a usage error for an option that there is not.
            command.make_context(name, rest) if command else main.make_context("tidegate", words[1:])
    for word in words[1:]:
        if re.match(r"(examples|tests|benchmarks|batching|sdk|transports)\b(/|$)", word):
            assert (ROOT / word).exists(), f"{page} names {word}"


def test_a_command_that_does_not_exist_would_be_seen() -> None:
    with pytest.raises(AssertionError, match="no target launch"):
        test_a_command_exists_with_its_options_and_files("README.md", ["make", "launch"])
    with pytest.raises(AssertionError, match="no command launch"):
        test_a_command_exists_with_its_options_and_files("README.md", ["tidegate", "launch", "app.py"])
    with pytest.raises(click.UsageError):
        test_a_command_exists_with_its_options_and_files("README.md", ["tidegate", "serve", "app.py", "--fast"])
    with pytest.raises(click.UsageError):
        test_a_command_exists_with_its_options_and_files("README.md", ["tidegate", "--fast"])
    with pytest.raises(AssertionError, match="names examples/none.py"):
        test_a_command_exists_with_its_options_and_files("README.md", ["python", "examples/none.py"])


@pytest.mark.parametrize(
    "line", [shlex.join(words) for page, words in commands() if page == "README.md" and words[0] == "curl"]
)
def test_a_curl_line_gets_an_answer_from_the_handler_that_the_page_shows(
    line: str, serving: Serving, tmp_path: Path
) -> None:
    address = re.search(r"http://[\w.]+:\d+", line)
    path = re.search(r":\d+/(\w+)", line)
    assert address
    assert path
    shown = [block for block in blocks("README.md", "python", "py") if f"def {path[1]}(" in block]
    assert shown, f"no block defines {path[1]}"
    (tmp_path / "app.py").write_text(shown[0])
    with serving("app.py", cwd=tmp_path) as (_, printed):
        url = re.search(r"http://127\.0\.0\.1:\d+", "\n".join(printed))
        assert url
        ran = subprocess.run(
            line.replace(address[0], url[0]) + " --silent --fail-with-body",
            shell=True,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert ran.returncode == 0, ran.stdout
    # The page tells the answer as code in its text.
    assert f"`{ran.stdout}`" in README


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_links_to_in_the_repository_is_there(page: str) -> None:
    for link in re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text()):
        assert "://" in link or (ROOT / link).exists(), link


def test_every_argument_of_serve_is_in_the_readme() -> None:
    @serve
    def handler(x: int) -> int:
        return x

    assert [field.name for field in fields(handler.options) if f"`{field.name}`" not in README] == []
