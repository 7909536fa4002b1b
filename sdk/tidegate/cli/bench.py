"""`tidegate bench`: how much a service takes, and how fast it answers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from tidegate.bench.clock import precise_loop
from tidegate.bench.driver import Timing
from tidegate.bench.inputs import InputError, payloads_from, payloads_of
from tidegate.bench.places import Address, at_address, first_answer, in_process, served
from tidegate.bench.plot import PlotError, check_plot, draw
from tidegate.bench.report import show, written_json
from tidegate.bench.scenarios import Bench, Place, Plan
from tidegate.bench.schedule import Bursts, Closed, Load, Poisson
from tidegate.bench.sender import Ending, Payload
from tidegate.bench.service import ServedProcess, ServiceFailed
from tidegate.cli.bench_grid import Configuration, configurations, numbers
from tidegate.cli.overrides import Change, handler_options, stop
from tidegate.clients.place import place_of
from tidegate.service import SetupFailed

__all__ = ["bench"]

_SCHEMES = ("http://", "https://", "ws://", "wss://")
_SECONDS = click.FloatRange(min=0, min_open=True)
_COUNT = click.IntRange(min=1)
_SERVICE = ("-m", "tidegate.cli.bench_service", "serve")
_CONNECTIONS = "1,16,64"


@click.command(
    epilog="Exit status: 0 all well, refusals included; 1 some requests failed otherwise; 2 usage; 3 setup failed or "
    "nobody answers; 130 stopped by Ctrl-C, after printing what there is. The key for a service that asks for one: "
    "TIDEGATE_API_KEY."
)
@click.argument("target", metavar="URL|TARGET")
@click.option("--connections", metavar="N[,N…]", help="Callers that send when they are answered.  [default: 1,16,64]")
@click.option("--rate", metavar="R[,R…]", help="Poisson arrivals, so many a second on average.")
@click.option("--burst", type=_COUNT, metavar="N", help="So many at the same instant, with --every.")
@click.option("--every", type=_SECONDS, metavar="SECONDS", help="From one burst to the next.")
@click.option(
    "--scenario",
    type=click.Choice(["single-stream", "server", "offline"]),
    help="MLPerf's: one at a time (its figure is p90); the highest Poisson rate with p99 within --latency-bound; "
    "everything at once.",
)
@click.option("--latency-bound", type=_SECONDS, metavar="SECONDS", help="For server, and for goodput in all others.")
@click.option("--requests", type=_COUNT, metavar="N", help="Of offline.  [default: what fits the duration]")
@click.option("--duration", type=_SECONDS, default=10.0, show_default=True, metavar="SECONDS", help="Of each run.")
@click.option(
    "--warmup-time",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Before each run, under the same load, and not counted.",
)
@click.option("--repeat", type=_COUNT, default=1, show_default=True, metavar="N", help="Run each so often.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the arrivals.")
@click.option(
    "--request-timeout",
    type=_SECONDS,
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="After which a request has failed.",
)
@click.option(
    "--input",
    "source",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What to send: a .jsonl holds one input per line, sent in turn; any other file is one.",
)
@click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="With every request; repeatable.")
@click.option("--max-connections", type=_COUNT, default=1000, show_default=True, help="With --rate and --burst.")
@click.option("--sockets", type=_COUNT, default=1, show_default=True, help="WebSockets that requests share.")
@click.option("--insecure", is_flag=True, help="Take any TLS certificate.")
@click.option("--in-process", is_flag=True, help="Run the TARGET here, without HTTP; threads unless --worker process.")
@click.option(
    "--server", type=click.Choice(["aiohttp", "uvicorn", "granian"]), help="What reads a TARGET's HTTP, as for serve."
)
@click.option("--json", "as_json", metavar="FILE|-", help="Everything, for programs; - is standard output.")
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="FILE", help="Latency by throughput: .html, .svg, .png."
)
@click.option("--quiet", "-q", is_flag=True, help="Do not say what is being run.")
@handler_options()
def bench(target: str, settings: list[Change], **given: Any) -> None:
    """Measure a service at a URL, or start TARGET (file.py:name) as `tidegate serve` does and measure that.

    Latencies count from when a request was due, also when it could not be sent then. Options of serve may list several
    values, and every combination is measured.

    \b
    Examples:
      tidegate bench http://127.0.0.1:8000/embed --connections 1,16,64
      tidegate bench ws://127.0.0.1:8000/embed --rate 500 --input texts.jsonl
      tidegate bench app.py:embed --max-batch-size 1,8,32 --batch-timeout 0,0.005,auto
      tidegate bench app.py:embed --scenario server --latency-bound 0.1 --plot embed.html
      tidegate bench app.py:embed --burst 64 --every 0.5 --in-process --json out.json
    """
    is_url = target.startswith(_SCHEMES)
    plan = _plan(given)
    _check(given, settings, is_url=is_url)
    # What the user's module prints is no part of the answer.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            payloads = payloads_from(given["source"]) if given["source"] else None
            job = _Job(target, plan, given, payloads)
            if is_url:
                code = job.run(_at_url(job))
            else:
                code = job.run(_of_target(job, configurations(target, settings)))
        except (InputError, ValueError) as error:
            stop(2, f"Error: {error}")
    job.report()
    sys.exit(code)


# ---------------------------------------------------------------------- what was asked for


def _plan(given: dict[str, Any]) -> Plan:
    """The loads; exits with 2 and one line when they do not fit together."""
    scenario = given["scenario"]
    shapes = [name for name in ("rate", "burst", "scenario") if given[name] is not None]
    if len(shapes) > 1:
        stop(2, f"Error: --{shapes[0]} and --{shapes[1]}: give one of them")
    if (given["burst"] is None) != (given["every"] is None):
        stop(2, "Error: --burst N and --every SECONDS belong together: give both")
    if given["connections"] is not None and scenario is None and shapes:
        stop(2, f"Error: --connections and --{shapes[0]}: give one of them; connections are opened as they are needed")
    if scenario == "single-stream" and given["connections"] is not None:
        stop(2, "Error: --connections with single-stream: it sends one request at a time; take it away")
    if scenario == "server" and given["latency_bound"] is None:
        stop(2, "Error: --scenario server needs --latency-bound SECONDS, such as 0.1")
    if given["requests"] is not None and scenario != "offline":
        stop(2, "Error: --requests belongs to --scenario offline; the others run for --duration")
    try:
        rates = numbers("--rate", given["rate"] or "", float)
        callers = numbers("--connections", given["connections"] or "", int)
    except ValueError as error:
        stop(2, f"Error: {error}")
    if scenario is not None and len(callers) > 1:
        stop(2, f"Error: --connections {given['connections']}: give one number with --scenario {scenario}")
    loads: list[Load] = [Poisson(rate) for rate in rates]
    if given["burst"] is not None:
        loads.append(Bursts(given["burst"], given["every"]))
    loads += [Closed(count) for count in callers or (() if loads else numbers("", _CONNECTIONS, int))]
    return Plan(
        scenario or "loads",
        tuple(loads),
        Timing(given["warmup_time"], given["duration"], given["request_timeout"]),
        repeat=given["repeat"],
        seed=given["seed"],
        bound=given["latency_bound"],
        connections=callers[0] if callers else 64,
        requests=given["requests"],
        max_connections=given["max_connections"],
    )


def _check(given: dict[str, Any], settings: Sequence[Change], *, is_url: bool) -> None:
    typed = [change.origin for change in settings if change.origin.startswith("--")]
    for flag in ("in_process", "server"):
        typed += [f"--{flag.replace('_', '-')}"] if given[flag] else []
    if is_url and typed:
        stop(2, f"Error: {typed[0]} with a URL: that service is running already; give a TARGET such as app.py:embed")
    if given["in_process"] and given["server"]:
        stop(2, "Error: --server with --in-process: there is no HTTP then; take one away")
    try:
        if given["plot"] is not None:
            check_plot(given["plot"])
    except PlotError as error:
        stop(2, f"Error: {error}")
    out = given["as_json"]
    if out not in (None, "-") and not Path(out).absolute().parent.is_dir():
        stop(2, f"Error: --json {out}: there is no folder {Path(out).parent}")


def _headers(given: Sequence[str]) -> dict[str, str]:
    headers = {}
    for text in given:
        name, colon, value = text.partition(":")
        if not colon or not name.strip():
            stop(2, f"Error: --header {text.split(' ')[0]!r}: write it as 'NAME: VALUE'")
        headers[name.strip()] = value.strip()
    return headers


def _api_key() -> str | None:
    """The first of those that a service on this machine would take."""
    text = os.environ.get("TIDEGATE_API_KEY", "")
    path = os.environ.get("TIDEGATE_API_KEY_FILE")
    if not text.strip() and path:
        try:
            text = Path(path).read_text("utf-8")
        except OSError as error:
            stop(2, f"Error: TIDEGATE_API_KEY_FILE={path}: {error.strerror}")
    return next((key.strip() for key in text.replace("\n", ",").split(",") if key.strip()), None)


# ---------------------------------------------------------------------- running it


class _Job:
    """One command: runs every place, then reports."""

    def __init__(self, target: str, plan: Plan, given: dict[str, Any], payloads: list[Payload] | None) -> None:
        self.target = target
        self.given = given
        self.payloads = payloads
        own = _headers(given["headers"])
        has_key = any(name.lower() in ("authorization", "x-api-key") for name in own)
        self.address: Address = place_of(
            target if target.startswith(_SCHEMES) else "http://127.0.0.1",
            api_key=None if has_key else _api_key(),
            headers=own,
            verify=not given["insecure"],
        )
        self._plan = plan
        self._bench = Bench(plan, (lambda line: None) if given["quiet"] else _say)
        self._main: asyncio.Task[Any] | None = None

    def run(self, places: AsyncIterator[tuple[Configuration, Place, ServedProcess | None]]) -> int:
        """The exit code."""
        with asyncio.Runner(loop_factory=precise_loop) as runner:
            try:
                return runner.run(self._run(places))
            except asyncio.CancelledError:
                return 130

    async def _run(self, places: AsyncIterator[tuple[Configuration, Place, ServedProcess | None]]) -> int:
        self._main = asyncio.current_task()
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._interrupted)
        async with contextlib.aclosing(places):  # type: ignore[type-var]  # it is a generator
            async for configuration, place, process in places:
                ending = await first_answer(place, self._plan.timing.timeout)
                if ending.code != "ok" and not ending.is_refusal:
                    _first_failed(self.target, ending, process)
                await self._bench.run(place, configuration.shown)
                if self._bench.stopped:
                    return 130
        failed = any(run.failed or run.timeouts for row in self._bench.rows for run in row.runs)
        return int(failed)

    def _interrupted(self) -> None:
        if self._bench.stopped:
            os._exit(130)  # whoever sends a second one does not want to wait
        if not self._bench.stop() and self._main is not None:
            self._main.cancel()

    def report(self) -> None:
        """Table, JSON and plot of what there is."""
        rows, given = self._bench.rows, self.given
        show(rows, sys.stderr if given["as_json"] == "-" else None)
        if given["as_json"] is not None:
            told = {
                "target": self.target,
                "scenario": self._plan.scenario,
                "duration": self._plan.timing.duration,
                "warmup_time": self._plan.timing.warmup,
                "repeat": self._plan.repeat,
                "seed": self._plan.seed,
                "latency_bound": self._plan.bound,
                "in_process": given["in_process"],
            }
            written = written_json(rows, told)
            if given["as_json"] == "-":
                sys.stdout.buffer.write(written)
            else:
                Path(given["as_json"]).write_bytes(written)
        if given["plot"] is not None:
            draw(given["plot"], rows, f"tidegate bench {self.target}")


async def _at_url(job: _Job) -> AsyncIterator[tuple[Configuration, Place, ServedProcess | None]]:
    address = job.address
    async with at_address(address, job.payloads, headers=address.headers, sockets=job.given["sockets"]) as place:
        yield Configuration({}, []), place, None


async def _of_target(
    job: _Job, found: Sequence[Configuration]
) -> AsyncIterator[tuple[Configuration, Place, ServedProcess | None]]:
    """Each configuration as a service of its own, one after another."""
    for configuration in found:
        handler = configuration.handler
        assert handler is not None
        try:
            if job.given["in_process"]:
                async with in_process(handler, job.payloads) as place:
                    yield configuration, place, None
            else:
                server = ["--server", job.given["server"]] if job.given["server"] else []
                command = [
                    sys.executable,
                    *_SERVICE,
                    job.target,
                    "--http",
                    "127.0.0.1:0",
                    *server,
                    *configuration.flags,
                ]
                payloads = job.payloads or payloads_of(handler)
                async with served(command, handler, payloads, job.address.headers) as (place, process):
                    yield configuration, place, process
        except SetupFailed as error:
            stop(3, f"{error.traceback}\nError: {error}")
        except ServiceFailed as error:
            stop(3, error.text or f"Error: {error}")


def _first_failed(target: str, ending: Ending, process: ServedProcess | None) -> NoReturn:
    if ending.code in ("connection-failed", "connection-lost") and process is None:
        stop(3, f"Error: {target}: {ending.detail}; is the service running there?")
    if process is not None and (errors := process.errors()):
        click.echo(errors, err=True)
    status = f"{ending.status} " if ending.status else ""
    stop(1, f"Error: the first request failed: {status}{ending.code}: {ending.detail}; try another --input")


def _say(line: str) -> None:
    click.echo(f"tidegate: {line}", err=True)
