import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tidegate.target import TargetError, find_handlers

APP = """
from dataclasses import dataclass
from tidegate import serve

@dataclass
class Point:
    x: int

@serve(max_batch_size=4)
def square(x: list[int]) -> list[int]:
    return [n * n for n in x]

@serve
def length(text: str) -> int:
    return len(text)

def plain(x):
    return x

again = square
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, with an app in it; imports are undone afterwards."""
    (tmp_path / "app_of_target_test.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    loaded = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - loaded:
        del sys.modules[name]


def names(target: str) -> list[str]:
    return [handler.name for handler in find_handlers(target)]


def refusal(target: str) -> str:
    with pytest.raises(TargetError) as caught:
        find_handlers(target)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("target", ["app_of_target_test.py", "./app_of_target_test.py", "app_of_target_test"])
def test_a_file_or_a_module_gives_each_of_its_handlers_once(target: str) -> None:
    assert names(target) == ["square", "length"]


@pytest.mark.parametrize("place", ["app_of_target_test.py", "app_of_target_test"])
def test_a_name_after_the_colon_gives_that_handler(place: str) -> None:
    assert names(f"{place}:length") == ["length"]
    assert names(f"{place}:again") == ["square"]


def test_an_absolute_path_works_from_anywhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert names(str(folder / "app_of_target_test.py")) == ["square", "length"]


def test_a_module_of_a_package_is_found_by_its_dotted_name(folder: Path) -> None:
    package = folder / "package_of_target_test"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "inner.py").write_text(APP)
    assert names("package_of_target_test.inner:square") == ["square"]


def test_a_files_neighbours_can_be_imported(folder: Path) -> None:
    sub = folder / "sub"
    sub.mkdir()
    (sub / "neighbour_of_target_test.py").write_text(APP)
    (sub / "main_of_target_test.py").write_text("from neighbour_of_target_test import square\n")
    assert names("sub/main_of_target_test.py") == ["square"]


def test_a_file_is_run_under_its_own_name_so_that_its_classes_can_be_found(folder: Path) -> None:
    find_handlers("app_of_target_test.py")
    assert sys.modules["app_of_target_test"].Point.__module__ == "app_of_target_test"


def test_a_missing_file_is_told_with_the_files_that_are_there(folder: Path) -> None:
    told = refusal("ap.py")
    assert told.startswith("no file ap.py; ")
    assert str(folder) in told
    assert "app_of_target_test.py" in told


def test_a_long_list_of_files_is_cut(folder: Path) -> None:
    for n in range(20):
        (folder / f"file_{n:02}.py").touch()
    assert refusal("ap.py").endswith("file_06.py and 13 more")


def test_a_missing_folder_is_told(folder: Path) -> None:
    assert refusal("nowhere/app.py") == "no file nowhere/app.py; there is no folder nowhere"


def test_a_folder_is_no_target(folder: Path) -> None:
    (folder / "sub").mkdir()
    assert "no .py file" in refusal("sub/x.py")
    assert refusal("./sub").startswith("no file sub; ")


def test_a_missing_name_is_told_with_the_handlers_and_the_one_that_was_meant() -> None:
    assert refusal("app_of_target_test.py:sqare") == (
        "app_of_target_test.py:sqare: app_of_target_test.py has no handler called 'sqare'; "
        "it has again, length, square; did you mean square?"
    )


def test_a_function_that_is_not_decorated_is_no_handler() -> None:
    assert "no handler called 'plain'" in refusal("app_of_target_test.py:plain")


def test_a_module_without_handlers_is_told_with_a_function_to_decorate(folder: Path) -> None:
    (folder / "bare_of_target_test.py").write_text("from os.path import join\n\ndef embed(x):\n    return x\n")
    assert refusal("bare_of_target_test.py") == (
        "bare_of_target_test.py: no handler in bare_of_target_test.py; decorate one of embed with @serve"
    )


def test_an_empty_module_is_told_to_have_nothing(folder: Path) -> None:
    (folder / "empty_of_target_test.py").touch()
    assert refusal("empty_of_target_test").endswith("decorate a function with @serve")


@pytest.mark.parametrize(
    "target", ["nowhere_of_target_test", "nowhere_of_target_test.inner", "nowhere_of_target_test:x"]
)
def test_a_missing_module_is_told_with_where_it_was_looked_for(target: str, folder: Path) -> None:
    told = refusal(target)
    assert told.startswith(f"no module {target.partition(':')[0]!r} on {folder}")


def test_a_missing_module_whose_file_is_there_is_told_how_to_write_it(folder: Path) -> None:
    (folder / "my-app.py").write_text(APP)
    assert refusal("my-app").endswith("there is a file my-app.py: write my-app.py")
    assert names("my-app.py") == ["square", "length"]


@pytest.mark.parametrize("target", ["", ".", ".app_of_target_test", "app of target test", ":square"])
def test_what_is_neither_a_file_nor_a_name_is_told_as_a_missing_module(target: str) -> None:
    assert refusal(target).startswith("no module ")


def test_what_the_module_raises_passes_through_and_leaves_nothing_behind(folder: Path) -> None:
    (folder / "raises_of_target_test.py").write_text("raise ValueError('of the user')\n")
    with pytest.raises(ValueError, match="of the user"):
        find_handlers("raises_of_target_test.py")
    assert "raises_of_target_test" not in sys.modules


def test_an_import_that_the_module_misses_is_not_taken_for_the_target(folder: Path) -> None:
    (folder / "misses_of_target_test.py").write_text("import nowhere_of_target_test\n")
    with pytest.raises(ModuleNotFoundError, match="nowhere_of_target_test"):
        find_handlers("misses_of_target_test")


def test_a_failing_file_named_like_a_loaded_module_does_not_unload_that(folder: Path) -> None:
    import json

    (folder / "json.py").write_text("raise ValueError('of the user')\n")
    with pytest.raises(ValueError, match="of the user"):
        find_handlers("json.py")
    assert sys.modules["json"] is json
