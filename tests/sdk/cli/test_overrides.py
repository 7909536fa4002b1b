from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from tidegate import Handler, serve
from tidegate.cli.overrides import Change, apply_overrides, handler_options, loaded_handlers, parse_value


@serve(max_batch_size=4, timeout=9.0)
def square(x: list[int]) -> list[int]:
    return [n * n for n in x]


@serve
def shout(text: str) -> str:
    return text.upper()


@click.command()
@handler_options()
def show(settings: list[Change]) -> None:
    for handler in apply_overrides([square, shout], settings):
        options = handler.options
        click.echo(
            f"{handler.name} {options.max_batch_size} {options.batch_timeout} {options.timeout} {options.devices}"
        )


def shown(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(show, arguments, env=environment)


def table(*arguments: str, **environment: str) -> dict[str, list[str]]:
    ran = shown(*arguments, **environment)
    assert ran.exit_code == 0, ran.output
    return {line.split(" ")[0]: line.split(" ", 4)[1:] for line in ran.stdout.splitlines()}


# ---------------------------------------------------------------------- who wins


def test_without_flags_the_decorator_decides() -> None:
    assert table() == {"square": ["4", "auto", "9.0", "auto"], "shout": ["None", "auto", "30.0", "auto"]}


def test_a_flag_changes_every_handler_that_has_the_argument() -> None:
    assert table("--timeout", "2", "--max-batch-size", "64") == {
        "square": ["64", "auto", "2", "auto"],
        "shout": ["None", "auto", "2", "auto"],
    }


def test_set_changes_the_handler_that_it_names_and_without_a_name_all() -> None:
    assert table("--set", "square.timeout=3", "--set", "timeout=5")["square"][2] == "3"
    assert table("--set", "square.timeout=3", "--set", "timeout=5")["shout"][2] == "5"


def test_the_environment_beats_the_decorator() -> None:
    assert table(TIDEGATE_MAX_BATCH_SIZE="16")["square"][0] == "16"
    assert table(TIDEGATE_SET="square.timeout=1 shout.timeout=none")["shout"][2] == "None"


def test_an_empty_variable_is_none_at_all() -> None:
    assert table(TIDEGATE_MAX_BATCH_SIZE="") == table()


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["--timeout", "1"], {"TIDEGATE_TIMEOUT": "2"}),
        (["--timeout", "1"], {"TIDEGATE_SET": "square.timeout=2"}),
        (["--set", "timeout=1"], {"TIDEGATE_TIMEOUT": "2"}),
        (["--set", "square.timeout=1", "--timeout", "2"], {}),
        (["--set", "square.timeout=1", "--set", "timeout=2"], {}),
        ([], {"TIDEGATE_TIMEOUT": "2", "TIDEGATE_SET": "square.timeout=1"}),
    ],
)
def test_flags_beat_the_environment_and_names_beat_all(arguments: list[str], environment: dict[str, str]) -> None:
    assert table(*arguments, **environment)["square"][2] == "1"


def test_a_command_may_keep_a_flag_for_itself() -> None:
    @click.command()
    @click.option("--timeout")
    @handler_options(without=("timeout",))
    def own(timeout: str, settings: list[Change]) -> None:
        click.echo(f"{timeout} {len(settings)}")

    ran = CliRunner().invoke(own, ["--timeout", "x"], env={"TIDEGATE_TIMEOUT": "3"})
    assert ran.stdout == "x 0\n"


# ---------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("auto", "auto"),
        ("64", 64),
        ("0.005", 0.005),
        (".5", 0.5),
        ("none", None),
        ("None", None),
        ("true", True),
        ("0,1", [0, 1]),
        ("0,", [0]),
        ("[0, 3]", [0, 3]),
        ("cuda:0,cuda:1", ["cuda:0", "cuda:1"]),
        ("GPU-1f2e", "GPU-1f2e"),
        ('"64"', "64"),
        ("", ""),
    ],
)
def test_a_text_means_what_it_looks_like(text: str, value: Any) -> None:
    parsed = parse_value(text)
    assert (parsed, type(parsed)) == (value, type(value))


def test_values_reach_options_in_the_type_that_they_take() -> None:
    settings = [
        Change("batch_dim", [0, 1], "--set"),
        Change("forward_headers", "X-Tenant", "--set"),
        Change("devices", [0, 1], "--devices 0,1"),
    ]
    (changed,) = apply_overrides([square], settings)
    options = changed.options
    assert (options.batch_dim, options.forward_headers, list(options.devices)) == ((0, 1), ("x-tenant",), [0, 1])


# ---------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("arguments", "environment", "parts"),
    [
        (["--max-batch-size", "0"], {}, ["--max-batch-size 0", "must be 1 or more"]),
        (["--max-batch-size", "many"], {}, ["--max-batch-size many", "whole number"]),
        ([], {"TIDEGATE_MAX_BATCH_SIZE": "0"}, ["TIDEGATE_MAX_BATCH_SIZE=0", "must be 1 or more"]),
        (["--max-batch-size", "none"], {}, ["--max-batch-size none", "@serve"]),
        (["--worker", "fiber"], {}, ["--worker fiber", "'process' or 'thread'"]),
        (["--set", "sqare.timeout=1"], {}, ["sqare.timeout=1", "did you mean square?"]),
        (["--set", "zzz.timeout=1"], {}, ["'zzz'", "square, shout"]),
        (["--set", "square.max_batch=1"], {}, ["'max_batch'", "did you mean max_batch_size?"]),
        (["--set", "square.setup=load"], {}, ["setup is a function", "@serve"]),
        (["--set", "square.name=other"], {}, ["name", "@serve"]),
        (["--set", "shout.max_batch_size=8"], {}, ["shout takes one item at a time", "@serve(max_batch_size=…)"]),
        (["--set", "shout.batch_timeout=8"], {}, ["shout takes one item at a time"]),
        (["--set", "square.timeout"], {}, ["--set square.timeout", "HANDLER.ARGUMENT=VALUE"]),
        (["--set", ".timeout=1"], {}, ["HANDLER.ARGUMENT=VALUE"]),
        ([], {"TIDEGATE_SET": "square.tmeout=1"}, ["TIDEGATE_SET square.tmeout=1", "did you mean timeout?"]),
    ],
)
def test_what_does_not_fit_is_told_in_one_line_with_the_fix(
    arguments: list[str], environment: dict[str, str], parts: list[str]
) -> None:
    ran = shown(*arguments, **environment)
    assert ran.exit_code == 2
    assert ran.stdout == ""
    (line,) = ran.stderr.splitlines()
    assert line.startswith("Error: ")
    for part in parts:
        assert part in line


def test_a_dash_in_an_argument_is_an_underscore() -> None:
    assert table("--set", "square.max-batch-size=8")["square"][0] == "8"


def test_help_names_the_flags_and_their_variables() -> None:
    output = shown("--help").stdout
    assert "--max-batch-size N" in output
    assert "TIDEGATE_SET" in output


# ---------------------------------------------------------------------- overriding


def test_an_override_leaves_the_original_and_keeps_its_hooks() -> None:
    @serve(max_batch_size=2)
    def f(x: list[int]) -> list[int]:
        return x

    @f.decode_request
    def decode(body: str) -> int:
        return int(body)

    changed = f.override(max_batch_size=8)
    assert (f.options.max_batch_size, changed.options.max_batch_size) == (2, 8)
    assert changed.options.decode_request is decode
    assert changed([1]) == [1]
    assert changed.name == "f"


def test_a_class_can_be_overridden_too(tmp_path: Path) -> None:
    (tmp_path / "classy.py").write_text(
        "from tidegate import serve\n@serve(max_batch_size=2)\nclass Model:\n"
        "    def setup(self, device): ...\n    def predict(self, batch): return batch\n"
    )
    (handler,) = loaded_handlers([f"{tmp_path}/classy.py:Model"], [Change("max_batch_size", 5, "--max-batch-size 5")])
    assert handler.is_class
    assert handler.options.max_batch_size == 5


def test_a_frozen_handler_gives_a_new_one_that_is_not() -> None:
    @serve
    def f(x: int) -> int:
        return x

    f.freeze()
    changed = f.override(timeout=1.0)
    changed.encode_response(lambda output: output)
    assert f.options.encode_response is None


@pytest.mark.parametrize("changes", [{"setup": print}, {"name": "g"}])
def test_hooks_and_the_name_cannot_be_overridden(changes: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="@serve"):
        square.override(**changes)


def test_an_override_is_checked_with_the_function() -> None:
    @serve
    def count(x: int) -> Iterator[int]:
        yield x

    with pytest.raises(ValueError, match="max_run_time"):
        count.override(max_run_time=1.0)


def test_a_target_named_twice_is_one_handler(tmp_path: Path) -> None:
    (tmp_path / "twice.py").write_text("from tidegate import serve\n@serve\ndef f(x: int) -> int:\n    return x\n")
    place = f"{tmp_path}/twice.py"
    handlers: list[Handler[..., Any]] = loaded_handlers([place, f"{place}:f"])
    assert [handler.name for handler in handlers] == ["f"]
