import doctest
import importlib
import pkgutil

import pytest

PACKAGES = ["tidegate_batching", "tidegate", "tidegate_transports"]


def modules() -> list[str]:
    names = list(PACKAGES)
    for package in PACKAGES:
        names += [info.name for info in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")]
    return names


@pytest.mark.parametrize("name", modules())
def test_the_examples_in_a_modules_docstrings_are_true(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0, capsys.readouterr().out


def test_there_are_examples_in_each_package() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    for package in PACKAGES:
        found = [
            example
            for name in modules()
            if name.split(".")[0] == package
            for test in finder.find(importlib.import_module(name))
            for example in test.examples
        ]
        assert found, package
