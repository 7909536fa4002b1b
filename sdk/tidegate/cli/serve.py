"""`tidegate serve`: open the doors to a file's handlers."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shlex
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import click
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tidegate.app import DRAIN_DELAY, App, serve_until_stopped
from tidegate.cli.overrides import Change, handler_options, loaded_handlers, stop
from tidegate.handler import Handler
from tidegate.service import DRAIN_TIMEOUT, SetupFailed
from tidegate.transport import Transport, load_transport
from tidegate_transports.fronts import FrontsTransport
from tidegate_transports.logs import configure

__all__ = ["serve"]

log = logging.getLogger("tidegate.serve")

_SERVERS = {"aiohttp": "http", "uvicorn": "uvicorn", "granian": "granian"}
_ALL_INTERFACES = ("0.0.0.0", "[::]")
_SECONDS = click.FloatRange(min=0, min_open=True)
_COUNT = click.IntRange(min=1)

# Flags of the HTTP door: those that are not given leave their fields to the environment, TIDEGATE_ and the name.
_DOOR_FLAGS: dict[str, dict[str, Any]] = {
    "--cors-origin": {"multiple": True, "metavar": "ORIGIN", "help": "Let web pages of this origin call; repeatable."},
    "--max-body": {"type": _COUNT, "metavar": "BYTES", "help": "Largest body of a request."},
    "--trust-priority": {"is_flag": True, "default": None, "help": "Let callers raise their own priority."},
    "--no-metrics": {"is_flag": True, "help": "Do not answer at /metrics."},
    "--no-docs": {"is_flag": True, "help": "Do not answer at /docs."},
    "--tls-certificate": {"type": click.Path(), "help": "PEM file; with --tls-key, speak HTTPS."},
    "--tls-key": {"type": click.Path(), "help": "PEM file of the certificate's key."},
    "--header-timeout": {"type": _SECONDS, "metavar": "SECONDS", "help": "For a request's head to arrive."},
    "--body-timeout": {"type": _SECONDS, "metavar": "SECONDS", "help": "For a request's body to arrive."},
    "--keepalive-timeout": {"type": _SECONDS, "metavar": "SECONDS", "help": "For an idle connection to be used again."},
    "--write-timeout": {"type": _SECONDS, "metavar": "SECONDS", "help": "For a client to read its answer."},
    "--max-connections": {"type": _COUNT, "metavar": "N", "help": "Connections at once."},
}


def _door_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for flag, settings in reversed(_DOOR_FLAGS.items()):
        command = click.option(flag, **settings)(command)
    return command


@click.command(
    epilog="Every flag is also an environment variable: TIDEGATE_MAX_BODY, TIDEGATE_CORS_ORIGINS (several)… and PORT, which "
    "means 0.0.0.0:PORT. Keys that callers must give are never flags: TIDEGATE_API_KEY, or TIDEGATE_API_KEY_FILE."
)
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option(
    "--http",
    metavar="ADDR",
    envvar="TIDEGATE_HTTP",
    help="HOST:PORT, or :PORT on this machine only; 0.0.0.0:PORT listens on every interface.  [default: 127.0.0.1:8000]",
)
@click.option("--ws", metavar="ADDR", envvar="TIDEGATE_WS", help="Open a WebSocket door as well.")
@click.option(
    "--server",
    type=click.Choice(list(_SERVERS)),
    default="aiohttp",
    show_default=True,
    envvar="TIDEGATE_SERVER",
    help="What reads the HTTP.",
)
@click.option(
    "--http-processes",
    default="1",
    show_default=True,
    metavar="N",
    envvar="TIDEGATE_HTTP_PROCESSES",
    help="Processes that read and write the HTTP, one batcher behind them; auto: the cores that the workers leave.",
)
@click.option(
    "--drain-delay",
    type=click.FloatRange(min=0),
    default=DRAIN_DELAY,
    show_default=True,
    metavar="SECONDS",
    envvar="TIDEGATE_DRAIN_DELAY",
    help="After SIGTERM, keep accepting for this long while /readyz says 503.",
)
@click.option(
    "--drain-timeout",
    type=_SECONDS,
    default=DRAIN_TIMEOUT,
    show_default=True,
    metavar="SECONDS",
    envvar="TIDEGATE_DRAIN_TIMEOUT",
    help="For what is in flight to end.",
)
@_door_options
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    envvar="TIDEGATE_LOG_FORMAT",
    help="How failures are told on standard error.",
)
@handler_options()
def serve(
    targets: tuple[str, ...],
    http: str | None,
    ws: str | None,
    server: str,
    http_processes: str,
    drain_delay: float,
    drain_timeout: float,
    log_format: Literal["text", "json"],
    settings: list[Change],
    **given: Any,
) -> None:
    """Serve the handlers of each TARGET: file.py, file.py:name or package.module:name.

    \b
    Examples:
      tidegate serve app.py
      tidegate serve app.py:square --http :9000
      tidegate serve app.py --set square.max_batch_size=64
    """
    handlers = loaded_handlers(targets, settings)
    configure(log_format)
    try:
        fronts = _front_count(http_processes)
        doors: dict[str, Any] = {"http": _http_door(server, http or _default_address(), fronts, log_format, given)}
        if ws is not None:
            # The same keys, origins and limits: a second door must not be an open one.
            open_ws: Callable[..., Transport] = load_transport("ws")
            doors["ws"] = open_ws(ws, doors["http"].options)
        app = App(*handlers, drain_timeout=drain_timeout, **doors)
    except (ValueError, TypeError) as error:
        stop(2, f"Error: {error}")
    except OSError as error:
        stop(2, f"Error: {error.filename}: {error.strerror}")
    # A setup may take minutes, and until it is over nothing else is to be seen.
    log.info("setting up %s: the doors open when every worker is ready", ", ".join(app.handlers))
    _run(app, drain_delay)


def _default_address() -> str:
    port = os.environ.get("PORT", "").strip()
    return f"0.0.0.0:{port}" if port else "127.0.0.1:8000"


def _front_count(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--http-processes {text!r}: give a whole number, 1 or more, or auto")
    return int(text)


def _http_door(
    server: str, address: str, fronts: int | Literal["auto"], log_format: str, given: dict[str, Any]
) -> Transport:
    """The door of that server; what is not given is left to the environment."""
    origins: tuple[str, ...] = given.pop("cors_origin")
    options: dict[str, Any] = {name: value for name, value in given.items() if not name.startswith("no_")}
    options |= {name: False for name in ("metrics", "docs") if given[f"no_{name}"]}
    options["cors_origins"] = origins or None
    if fronts != 1:
        return FrontsTransport(address, fronts, _SERVERS[server], log_format=log_format, **options)
    door: Callable[..., Transport] = load_transport(_SERVERS[server])
    return door(address, **options)


def _run(app: App, drain_delay: float) -> None:
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(serve_until_stopped(app, lambda: _show(app), drain_delay=drain_delay))
    except SetupFailed as error:
        stop(3, f"{error.traceback}\nError: {error}")
    except ValueError as error:
        stop(2, f"Error: {error}")
    except OSError as error:
        where = error.filename or app.transports[0].url
        fix = "; stop what listens there, or give another address" if error.errno == errno.EADDRINUSE else ""
        stop(1, f"Error: cannot listen on {where}: {error.strerror or error}{fix}")


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


# ---------------------------------------------------------------------- what is shown


def _show(app: App) -> None:
    door = app.transports[0]
    url = door.url
    console = Console()
    table = Table.grid(padding=(0, 2))
    status = app.status()
    for name, handler in app.handlers.items():
        size = handler.options.max_batch_size
        batches = f"batches of up to {size}" if size else "one at a time"
        devices = Counter(worker.device for worker in status[name].workers)
        where = ", ".join(f"{device} × {count}" if count > 1 else device for device, count in devices.items())
        table.add_row(Text("POST", style="bold"), url + handler.options.path, batches, where)
    table.add_row(Text("GET", style="bold"), f"{url}/health", "", "")
    options: Any = getattr(door, "options", None)
    if options is not None and options.docs:
        table.add_row(Text("GET", style="bold"), f"{url}/docs", "", "")
    for other in app.transports[1:]:
        table.add_row(Text("open", style="bold"), other.url, "", "")
    console.print(Panel(table, title="tidegate", title_align="left", expand=False))
    keys = options is not None and bool(options.api_keys)
    if not keys and any(f"//{host}:" in transport.url for host in _ALL_INTERFACES for transport in app.transports):
        click.echo(
            "Warning: whoever can reach this machine can call it: set TIDEGATE_API_KEY, or listen on 127.0.0.1",
            err=True,
        )
    # Outside the panel and unwrapped: this line is there to be pasted.
    for handler in app.handlers.values():
        console.print(_curl(url, handler, keys), soft_wrap=True, markup=False, highlight=False)


def _curl(url: str, handler: Handler[..., Any], keys: bool) -> str:
    for host, local in zip(_ALL_INTERFACES, ("127.0.0.1", "[::1]"), strict=True):
        url = url.replace(f"//{host}:", f"//{local}:")
    key = ' -H "X-API-Key: $TIDEGATE_API_KEY"' if keys else ""
    return f"curl {url}{handler.options.path}{key} {_curl_body(handler)}"


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
