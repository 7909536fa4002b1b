import doctest
import importlib
import pkgutil

import pytest

import tidegate

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


def test_every_public_name_has_an_example() -> None:
    parser = doctest.DocTestParser()
    without = [
        name
        for name in tidegate.__all__
        if name != "__version__" and not parser.get_examples(getattr(tidegate, name).__doc__ or "")
    ]
    assert without == []


def test_an_example_is_run_where_it_stands() -> None:
    # A public name's docstring is tested in the module that defines it, so that must be one of those that are run.
    homes = {getattr(tidegate, name).__module__ for name in tidegate.__all__ if name != "__version__"}
    assert homes <= set(modules())
