"""Handlers by what a user types, with the arguments of `serve` that flags and the environment change.

Flags beat the environment, the environment beats the decorator; within each, what names a handler beats what does not.
"""

from __future__ import annotations

import difflib
import functools
import json
import sys
import traceback as tracebacks
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from tidegate.handler import Handler
from tidegate.options import HOOKS, Options
from tidegate.target import TargetError, find_handlers

__all__ = ["Change", "apply_overrides", "handler_options", "loaded_handlers", "parse_value", "stop"]


@dataclass(frozen=True, slots=True)
class Change:
    """One argument of `serve` with its new value: of the handler named, of all for None.

    origin: what the user wrote, for messages.
    """

    argument: str
    value: Any
    origin: str
    handler: str | None = None


FLAGS = {
    "devices": ("DEVICES", "auto, cpu, cuda, how many, or which: 0,1 or cuda:1."),
    "workers_per_device": ("N", "Workers on each device."),
    "devices_per_worker": ("N", "Devices that each worker gets."),
    "worker": ("KIND", "process or thread."),
    "max_batch_size": ("N", "Most items in a batch."),
    "batch_timeout": ("SECONDS", "How long the oldest item may wait for company; 0 never waits, or auto."),
    "timeout": ("SECONDS", "Deadline of a request, waiting and running together; none for no limit."),
    "max_queue_size": ("N", "Most items waiting, or auto."),
}
"""Arguments with a flag of their own; all plain ones can be given with --set."""

_NOT_TYPED = {*HOOKS, "cost", "group_by"}
_BATCHED = {"max_batch_size", "batch_timeout", "batch_dim", "max_batch_cost"}
SETTABLE = tuple(field.name for field in fields(Options) if field.name not in _NOT_TYPED | {"name"})
"""What can be typed: everything but functions and the name, by which a handler is addressed here."""


# ---------------------------------------------------------------------- from the command line


def handler_options(*, without: Collection[str] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Flags for what `serve` takes; the command gets them as one argument, `settings: list[Change]`.

    without: arguments in FLAGS for which the command has flags of its own.
    """
    offered = [argument for argument in FLAGS if argument not in without]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def called(**given: Any) -> Any:
            typed = {argument: given.pop(argument) for argument in offered}
            settings = _settings(click.get_current_context(), typed, given.pop("set_"))
            return command(settings=settings, **given)

        # click lists options in the order of decorators, which is from the last to the first.
        option = click.option(
            "--set",
            "set_",
            multiple=True,
            metavar="[HANDLER.]ARGUMENT=VALUE",
            envvar="TIDEGATE_SET",
            show_envvar=True,
            help="Any plain argument of serve, for one handler or for all; may be repeated.",
        )
        decorated: Callable[..., Any] = option(called)
        for argument in reversed(offered):
            metavar, text = FLAGS[argument]
            variable = _variable(argument)
            option = click.option(_flag(argument), argument, metavar=metavar, envvar=variable, help=text)
            decorated = option(decorated)
        return decorated

    return decorate


def _settings(context: click.Context, typed: dict[str, str | None], named: Sequence[str]) -> list[Change]:
    """Everything that was typed, the weakest first."""
    weak: list[Change] = []
    strong: list[Change] = []
    for argument, text in typed.items():
        if text is None:
            continue
        from_environment = context.get_parameter_source(argument) is ParameterSource.ENVIRONMENT
        origin = f"{_variable(argument)}={text}" if from_environment else f"{_flag(argument)} {text}"
        (weak if from_environment else strong).append(Change(argument, parse_value(text), origin))
    from_environment = context.get_parameter_source("set_") is ParameterSource.ENVIRONMENT
    changes = [_parse_set(text, "TIDEGATE_SET" if from_environment else "--set") for text in named]
    changes.sort(key=lambda change: change.handler is not None)
    return [*weak, *changes, *strong] if from_environment else [*weak, *strong, *changes]


def _parse_set(text: str, source: str) -> Change:
    key, equals, value = text.partition("=")
    handler, dot, argument = key.rpartition(".")
    argument = argument.replace("-", "_")
    if not equals or not argument or (dot and not handler):
        stop(2, f"Error: {source} {text}: write it as HANDLER.ARGUMENT=VALUE, such as embed.max_batch_size=64")
    if argument not in SETTABLE:
        stop(2, f"Error: {source} {text}: {_no_argument(argument)}")
    return Change(argument, parse_value(value), f"{source} {text}", handler or None)


def _no_argument(argument: str) -> str:
    if argument in _NOT_TYPED:
        return f"{argument} is a function: give it to @serve"
    if argument == "name":
        return "the name is how a handler is addressed here: give it to @serve"
    return f"serve has no argument {argument!r}; {_near(argument, SETTABLE)}"


def parse_value(text: str) -> Any:
    """What a flag's text means: JSON where it is JSON, `auto`, `none`, `true`, a list such as `0,1`; else the text.

    Example:
        >>> parse_value("0.005"), parse_value("none"), parse_value("0,cuda:1"), parse_value("cuda")
        (0.005, None, [0, 'cuda:1'], 'cuda')
    """
    text = text.strip()
    words = {"none": None, "null": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for read in (json.loads, float):  # .5 is no JSON
        with suppress(ValueError):
            return read(text)
    if "," in text:
        return [parse_value(part) for part in text.split(",") if part.strip()]
    return text


# ---------------------------------------------------------------------- onto handlers


def loaded_handlers(targets: Sequence[str], settings: Sequence[Change] = ()) -> list[Handler[..., Any]]:
    """The handlers that the targets name, each once, changed as told; exits with 2 and one line, or the traceback of
    a user's module that cannot be imported."""
    try:
        found = [handler for target in targets for handler in find_handlers(target)]
    except TargetError as error:
        stop(2, f"Error: {error}")
    except SystemExit as error:
        fix = 'put what a script does below `if __name__ == "__main__":`'
        stop(2, f"{_traceback_in_module(error)}\nError: {' '.join(targets)} exits when it is imported: {fix}")
    except Exception as error:  # noqa: BLE001 - whatever the user's module raises
        stop(2, f"{_traceback_in_module(error)}\nError: {' '.join(targets)} cannot be imported")
    # `app.py app.py:name` names one twice.
    return apply_overrides(list({id(handler): handler for handler in found}.values()), settings)


def apply_overrides(handlers: Sequence[Handler[..., Any]], settings: Sequence[Change]) -> list[Handler[..., Any]]:
    """New handlers in the place of those that a setting changes; exits with 2 and one line when one does not fit."""
    names = [handler.name for handler in handlers]
    changed = {handler.name: handler for handler in handlers}
    for setting in settings:
        if setting.handler is not None and setting.handler not in changed:
            stop(
                2, f"Error: {setting.origin}: no handler is called {setting.handler!r}; {_near(setting.handler, names)}"
            )
        meant = names if setting.handler is None else [setting.handler]
        if setting.argument in _BATCHED:
            meant = _only_batched(setting, [changed[name] for name in meant])
        for name in meant:
            try:
                changed[name] = changed[name].override(**{setting.argument: _fitted(setting)})
            except (TypeError, ValueError) as error:
                stop(2, f"Error: {setting.origin}: {error}")
    if len(changed) < len(handlers):
        return list(handlers)  # two share a name, which App tells better
    return [changed[name] for name in names]


def _only_batched(setting: Change, meant: Sequence[Handler[..., Any]]) -> list[str]:
    """Those that take a batch: whether a function does is its signature, which no flag can change."""
    batched = [handler.name for handler in meant if handler.batched]
    if setting.argument == "max_batch_size" and setting.value is None:
        stop(2, f"Error: {setting.origin}: whether a function takes a batch is up to @serve; 1 gives batches of one")
    if not batched:
        whose = ", ".join(handler.name for handler in meant)
        verb = "takes" if len(meant) == 1 else "take"
        stop(2, f"Error: {setting.origin}: {whose} {verb} one item at a time; give @serve(max_batch_size=…) first")
    return batched


def _fitted(setting: Change) -> Any:
    """The value in the type that `serve` takes where one could be typed as another."""
    value = setting.value
    if setting.argument == "batch_dim" and isinstance(value, list):
        return tuple(value)
    if setting.argument == "forward_headers":
        return tuple(value) if isinstance(value, list) else (value,)
    return value


# ---------------------------------------------------------------------- how it ends


def stop(code: int, text: str) -> NoReturn:
    """Say it on standard error and exit."""
    click.echo(text, err=True)
    sys.exit(code)


def _traceback_in_module(error: BaseException) -> str:
    """The traceback from the user's first line on; the frames that led to it are not the user's."""
    traceback = error.__traceback__
    while traceback and traceback.tb_frame.f_globals["__name__"].partition(".")[0] in ("tidegate", "importlib"):
        traceback = traceback.tb_next
    return "".join(tracebacks.format_exception(type(error), error, traceback))


def _near(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there is {', '.join(known)}"


def _flag(argument: str) -> str:
    return f"--{argument.replace('_', '-')}"


def _variable(argument: str) -> str:
    return f"TIDEGATE_{argument.upper()}"
