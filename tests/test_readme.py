"""The commands of the first pages exist with their options; tests/docs runs what can be run."""

import re
import shlex
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import click
import pytest

from tidegate import serve
from tidegate.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = ["README.md", "CONTRIBUTING.md"]


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
        for block in blocks(page, "sh", "bash", "shell"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    found.append((page, words))
    return found


def is_tidegate(words: list[str]) -> bool:
    return Path(words[0]).name == "tidegate"


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
        command = main.get_command(click.Context(main), name)
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


def arguments() -> list[str]:
    @serve
    def handler(x: int) -> int:
        return x

    return [field.name for field in fields(handler.options)]


@pytest.mark.parametrize("page", ["README.md", "docs/reference/serve.md"])
def test_every_argument_of_serve_is_on_the_page(page: str) -> None:
    text = (ROOT / page).read_text()
    assert [name for name in arguments() if f"`{name}`" not in text] == []
