"""`tidegate serve`: open the doors to a file's handlers."""

from __future__ import annotations

import asyncio
import shlex
import sys
import traceback as tracebacks
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tidegate.app import App, serve_until_stopped
from tidegate.handler import Handler
from tidegate.service import SetupFailed
from tidegate.target import TargetError, find_handlers

__all__ = ["serve"]


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option(
    "--http",
    default="127.0.0.1:8000",
    show_default=True,
    metavar="ADDR",
    help="HOST:PORT, or :PORT on this machine only; 0.0.0.0:PORT listens on every interface.",
)
def serve(targets: tuple[str, ...], http: str) -> None:
    """Serve the handlers of each TARGET: file.py, file.py:name or package.module:name.

    \b
    Examples:
      tidegate serve app.py
      tidegate serve app.py:square --http :9000
    """
    try:
        found = [handler for target in targets for handler in find_handlers(target)]
        handlers = list({id(handler): handler for handler in found}.values())  # `app.py app.py:name` names one twice
    except TargetError as error:
        _stop(2, f"Error: {error}")
    except Exception as error:  # noqa: BLE001 - whatever the user's module raises
        _stop(2, f"{_traceback_in_module(error)}\nError: {' '.join(targets)} cannot be imported")
    try:
        app = App(*handlers, http=http)
    except (ValueError, TypeError) as error:
        _stop(2, f"Error: {error}")
    try:
        asyncio.run(serve_until_stopped(app, lambda: _show(app)))
    except SetupFailed as error:
        _stop(3, f"{error.traceback}\nError: {error}")
    except OSError as error:
        _stop(1, f"Error: cannot listen on {http}: {error.strerror or error}")


def _stop(code: int, text: str) -> NoReturn:
    click.echo(text, err=True)
    sys.exit(code)


def _traceback_in_module(error: Exception) -> str:
    """The traceback from the user's first line on; the frames that led to it are not the user's."""
    traceback = error.__traceback__
    while traceback and traceback.tb_frame.f_globals["__name__"].partition(".")[0] in ("tidegate", "importlib"):
        traceback = traceback.tb_next
    return "".join(tracebacks.format_exception(type(error), error, traceback))


def _show(app: App) -> None:
    url = app.transports[0].url
    console = Console()
    table = Table.grid(padding=(0, 2))
    for handler in app.handlers.values():
        size = handler.options.max_batch_size
        batches = f"batches of up to {size}" if size else "one at a time"
        table.add_row(Text("POST", style="bold"), url + handler.options.path, batches)
    table.add_row(Text("GET", style="bold"), f"{url}/health", "")
    console.print(Panel(table, title="tidegate", title_align="left", expand=False))
    # Outside the panel and unwrapped: this line is there to be pasted.
    for handler in app.handlers.values():
        console.print(_curl(url, handler), soft_wrap=True, markup=False, highlight=False)


def _curl(url: str, handler: Handler[..., Any]) -> str:
    return f"curl {url}{handler.options.path} {_curl_body(handler)}"


def _curl_body(handler: Handler[..., Any]) -> str:
    if handler.codec.annotation is bytes:
        return "--data-binary @input"
    example = handler.options.warmup
    try:
        example = example() if callable(example) else example
        example = handler.codec.example() if example is None else example
        body = handler.codec.encode_json(example, allow_nan=handler.options.allow_nan).decode()
    except Exception:  # noqa: BLE001 - an example that cannot be shown is no reason not to serve
        example = None
    return f"--json {shlex.quote(body)}" if example is not None else "--json @input.json"
