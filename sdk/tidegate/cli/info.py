"""`tidegate info`: what a file's handlers are and where their workers would run."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidegate.app import App
from tidegate.cli.overrides import Change, handler_options, loaded_handlers, stop
from tidegate.cli.signature import gives, takes
from tidegate.devices import Device, DeviceManager, Placement, Usage, cuda_context_made
from tidegate.handler import Handler
from tidegate.placement import cores

__all__ = ["info"]

_WIDE = 160
_CONTEXT = (
    "CUDA was initialised while the file was imported: that costs GPU memory in the service, which runs nothing there; "
    "move what does it into a function and give it as setup="
)


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@handler_options()
@click.option("--json", "as_json", is_flag=True, help="The same as one JSON object, for programs.")
def info(targets: tuple[str, ...], settings: list[Change], as_json: bool) -> None:
    """Show the handlers of each TARGET, the devices that are there, and who would run where.

    Nothing is served and no setup runs.

    \b
    Examples:
      tidegate info app.py
      tidegate info app.py --devices 0,1 --json
    """
    # What the user's module prints is no part of the answer.
    with contextlib.redirect_stdout(sys.stderr):
        handlers = loaded_handlers(targets, settings)
    # After the import, which may set CUDA_VISIBLE_DEVICES.
    manager = DeviceManager.discover()
    try:
        App(*handlers)
        placed = manager.plan(handlers)
        devices = manager.devices
    except (ValueError, TypeError) as error:
        stop(2, f"Error: {error}")
    if as_json:
        told = _told(handlers, devices, manager.usage(), placed)
        click.echo(json.dumps(told, indent=2))
    else:
        _show(handlers, devices, manager.usage(), placed)


# ---------------------------------------------------------------------- for programs


def _told(
    handlers: Sequence[Handler[..., Any]],
    devices: Sequence[Device],
    usage: Mapping[Device, Usage],
    placed: Mapping[str, Sequence[Placement]],
) -> dict[str, Any]:
    return {
        "handlers": [_handler(handler) for handler in handlers],
        "devices": [_device(device, usage.get(device, Usage())) for device in devices],
        "placement": [
            {
                "handler": name,
                "worker": number,
                "kind": one.worker,
                "devices": [str(device) for device in one.devices],
                "uuids": list(one.uuids),
                "environment": dict(one.environment),
                "setup_argument": one.setup_argument,
            }
            for name, placements in placed.items()
            for number, one in enumerate(placements)
        ],
        "cuda_context_made": cuda_context_made(),
    }


def _handler(handler: Handler[..., Any]) -> dict[str, Any]:
    options = handler.options
    return {
        "name": handler.name,
        "path": options.path,
        "max_batch_size": options.max_batch_size,
        "batch_timeout": options.batch_timeout if handler.batched else None,
        "streams": handler.streams,
        "takes": takes(handler),
        "gives": gives(handler),
        "content_types": list(handler.codec.content_types),
        "input_schema": handler.codec.input_schema(),
    }


def _device(device: Device, usage: Usage) -> dict[str, Any]:
    return {
        "device": str(device),
        "kind": device.kind,
        "name": device.name,
        "uuid": device.uuid,
        "memory": device.memory or None,
        "memory_used": usage.memory_used,
        "memory_free": usage.memory_free,
        "utilisation": usage.utilisation,
        "temperature": usage.temperature,
    }


# ---------------------------------------------------------------------- for people


def _show(
    handlers: Sequence[Handler[..., Any]],
    devices: Sequence[Device],
    usage: Mapping[Device, Usage],
    placed: Mapping[str, Sequence[Placement]],
) -> None:
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=_WIDE)  # a pipe has no edge to wrap at
    console.print(_handler_table(handlers))
    console.print(_device_table(devices, usage))
    console.print(_placement_table(placed))
    if cuda_context_made():
        console.print(Text(f"Note: {_CONTEXT}", style="yellow"), soft_wrap=True)


def _handler_table(handlers: Sequence[Handler[..., Any]]) -> Table:
    rows = [(one.name, one.options.path, _batches(one), takes(one), gives(one)) for one in handlers]
    return _table("Handlers", ("handler", "path", "batches", "takes", "gives"), rows)


def _batches(handler: Handler[..., Any]) -> str:
    options = handler.options
    if not handler.batched:
        return "one at a time"
    wait = options.batch_timeout
    return f"up to {options.max_batch_size}, waits {wait if wait == 'auto' else f'{wait:g} s'}"


def _device_table(devices: Sequence[Device], usage: Mapping[Device, Usage]) -> Table:
    rows = []
    for device in devices:
        name = f"{cores()} cores" if device.kind == "cpu" else device.name
        now = usage.get(device, Usage())
        busy = "" if now.utilisation is None else f"{now.utilisation:.0%}"
        warm = "" if now.temperature is None else f"{now.temperature:g}"
        sizes = (_gib(device.memory or None), _gib(now.memory_used))
        rows.append((str(device), name, *sizes, busy, warm, device.uuid))
    return _table("Devices", ("device", "name", "memory", "used", "busy", "°C", "UUID"), rows)


def _placement_table(placed: Mapping[str, Sequence[Placement]]) -> Table:
    rows = []
    for name, placements in placed.items():
        for number, one in enumerate(placements):
            # An empty value is to be seen.
            environment = " ".join(f"{key}={value or json.dumps(value)}" for key, value in one.environment.items())
            argument = one.setup_argument if isinstance(one.setup_argument, str) else json.dumps(one.setup_argument)
            rows.append((name, f"{one.worker} {number}", ", ".join(map(str, one.devices)), environment, argument))
    return _table("Placement", ("handler", "worker", "runs on", "environment", "setup gets"), rows)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Without the columns that are empty from top to bottom."""
    filled = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    table = Table(title=title, title_justify="left")
    for place in filled:
        table.add_column(columns[place], overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[place]) for place in filled))
    return table


def _gib(size: int | None) -> str:
    return "" if size is None else f"{size / 2**30:.1f} GiB"
