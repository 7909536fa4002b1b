"""`tidegate run`: a handler over a file or a pipe of JSON lines."""

from __future__ import annotations

import asyncio
import gc
import os
import shlex
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import click

from tidegate.app import App
from tidegate.cli.overrides import Change, handler_options, loaded_handlers, stop
from tidegate.cli.progress import Progress, progress_on
from tidegate.cli.standard_streams import input_from, is_same_file, output_to, set_aside
from tidegate.cli.watch import Complaints, Watch
from tidegate.devices import DeviceManager
from tidegate.handler import Handler
from tidegate.service import SetupFailed
from tidegate.workers.spawn import kill_all
from tidegate_transports.jsonlines import STALL, Ending, JSONLinesTransport, LineOptions, NoCustomId, reopened, size_of

__all__ = ["run"]

LOOK = 0.1
"""Seconds between two looks at how far it is."""

_STANDARD = ("-", "/dev/stdin", "/dev/stdout", "/dev/fd/0", "/dev/fd/1", "/proc/self/fd/0", "/proc/self/fd/1")


def _bytes(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """A size as `65536`, `64K`, `32M` or `1G`."""
    text = value.upper().removesuffix("B").removesuffix("I")
    unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
    digits = text[:-1] if unit > 1 else text
    if not (digits.isascii() and digits.isdecimal() and int(digits)):
        raise click.BadParameter(f"{value!r}: give bytes, such as 65536, 64K, 32M or 1G", context, parameter)
    return int(digits) * unit


@click.command(
    epilog="Exit status: 0 all well, 1 some lines failed, 2 usage, 3 setup failed, 4 stopped by --max-errors, 130 and "
    "143 after SIGINT and SIGTERM."
)
@click.argument("target", metavar="TARGET")
@click.option("--input", "source", type=click.Path(path_type=Path), metavar="FILE", help="Instead of standard input.")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Instead of standard output.")
@click.option("--unordered", is_flag=True, help="Write answers as they come, not in the order of the input.")
@click.option("--input-field", metavar="NAME", help="Lines are objects; the item is this field.")
@click.option("--output-field", metavar="NAME", help="Lines are objects; add the result to each as this field.")
@click.option("--stream", is_flag=True, help="Write a stream's chunks one by one, not as a list.")
@click.option("--resume", is_flag=True, help="Go on after what --output holds already.")
@click.option("--retry-errors", is_flag=True, help="Like --resume, and run the lines that failed again.")
@click.option("--max-errors", type=click.IntRange(min=0), metavar="N", help="Stop when so many lines have failed.")
@click.option("--max-line", callback=_bytes, default="32M", show_default=True, metavar="SIZE", help="Longer ones fail.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Deadline of each item; without this flag there is none.",
)
@click.option("--quiet", "-q", is_flag=True, help="Results only: no progress, no summary, no tracebacks.")
@handler_options(without=("timeout",))
def run(target: str, settings: list[Change], **given: Any) -> None:
    """Run the handler that TARGET names over JSON lines: one line in, one line out, in full batches.

    TARGET is file.py:name or package.module:name, or without the name where there is one handler only. A line is an
    item; or an object with custom_id and body, as in OpenAI's Batch API, which is answered in kind.

    \b
    Examples:
      tidegate run app.py:square < in.jsonl > out.jsonl
      tidegate run app.py:embed --input in.jsonl --output out.jsonl --resume
      tidegate run app.py:embed --input-field text --output-field vector < docs.jsonl
      zcat big.jsonl.gz | tidegate run app.py:embed --max-batch-size 256 | gzip > out.gz
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end_now)  # an import or a setup may take minutes, and nothing is lost yet
    for name in ("source", "output"):
        if str(given[name]) in _STANDARD:
            given[name] = None
    _check(given)
    source, target_fd = _descriptors(given)
    handler = _only(loaded_handlers([target], settings), target)
    if given["stream"] and not handler.streams:
        stop(2, f"Error: --stream: {handler.name} gives one output; take the flag away, or write it as a generator")
    job = _Job(handler, given, source, target_fd, is_set=any(one.argument == "batch_timeout" for one in settings))
    try:
        # What stood in memory before the first line is no garbage, and need not be looked at again and again.
        gc.freeze()
        code = asyncio.run(job.run())
    except SetupFailed as error:
        stop(3, f"{error.traceback}\nError: {error}")
    except (ValueError, TypeError) as error:
        stop(2, f"Error: {error}")
    sys.exit(code)


class _Job:
    """One handler over one input."""

    def __init__(
        self, handler: Handler[..., Any], given: dict[str, Any], source: int, target: int | None, *, is_set: bool
    ) -> None:
        self._given = given
        self._signal: int | None = None
        self._complaints = Complaints(quiet=given["quiet"])
        if handler.batched and not is_set:
            # A pipe has no latency to protect: a batch goes when it is full, or when nothing comes.
            handler = handler.override(batch_timeout=STALL)
        self._handler = handler
        options = LineOptions(
            ordered=not given["unordered"],
            input_field=given["input_field"],
            output_field=given["output_field"],
            as_they_come=given["stream"],
            max_line=given["max_line"],
            max_errors=given["max_errors"],
            timeout=given["timeout"],
            gather=not is_set,
            last=True,
        )
        target, previous = self._target(target)
        self._jsonl = JSONLinesTransport(
            options=options, source=source, target=target, previous=previous, on_error=self._complaints.add
        )
        self._size = size_of(source)

    def _target(self, standard_output: int | None) -> tuple[int, Any]:
        """Where answers go, and what an earlier run has left there."""
        output, retry = self._given["output"], self._given["retry_errors"]
        try:
            if output is None:
                assert standard_output is not None
                return standard_output, None
            if self._given["resume"] or retry:
                return reopened(output, ordered=not self._given["unordered"], retry=retry)
            return output_to(output), None
        except ValueError as error:
            stop(2, f"Error: --output {output}: {error}")
        except OSError as error:
            stop(2, f"Error: --output {output}: {error.strerror}; give a file that can be written")

    async def run(self) -> int:
        """The exit code."""
        manager = DeviceManager.discover()
        app = App(self._handler, devices=manager, jsonl=self._jsonl)
        if not self._given["quiet"]:
            # A setup may take minutes, and until it is over there is no progress to show.
            click.echo(f"tidegate: setting up {self._handler.name}", err=True)
        async with app:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self._stop, number)
            watch = Watch(app, manager, self._jsonl.report, self._size)
            with progress_on(watch.standing, quiet=self._given["quiet"]) as progress:
                report = await self._look(watch, progress)
            if report.ending is Ending.CLOSED:
                # Nobody is left to finish anything for.
                kill_all()
                os._exit(0 if self._signal is None else 128 + self._signal)
            if not self._given["quiet"]:
                click.echo(watch.summary(), err=True)
        if app.failure.done():
            raise app.failure.result()
        return self._exit_code(report)

    async def _look(self, watch: Watch, progress: Progress) -> Any:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    return await self._jsonl.finished()
            watch.sample()
            progress.show()

    def _stop(self, number: int) -> None:
        if self._signal is not None:
            # Whoever sends a second one does not want to wait.
            _end_now(number, None)
        self._signal = number
        self._jsonl.stop()

    def _exit_code(self, report: Any) -> int:
        ending = Ending
        if report.ending is ending.BROKEN:
            self._tell_why(report.error)
        if report.ending is ending.DONE and report.left_over:
            return _told(
                2, f"Error: --output holds {report.left_over:,} more answers than the input has lines: is it the same?"
            )
        if report.ending is ending.STOPPED and self._signal is not None:
            self._tell_where(report, f"stopped by {signal.Signals(self._signal).name}")
            return 128 + self._signal
        if report.ending is ending.MAX_ERRORS:
            self._tell_where(report, f"stopped by --max-errors {self._given['max_errors']}")
            return 4
        return 1 if report.failed or report.failed_before else 0

    def _tell_why(self, error: BaseException | None) -> NoReturn:
        if isinstance(error, NoCustomId):
            stop(2, f"Error: --resume: {error}")
        if isinstance(error, OSError):
            stop(1, f"Error: cannot go on: {error.strerror}; what is written stays, and --resume goes on from there")
        if isinstance(error, Exception) and not hasattr(error, "code"):
            raise error
        stop(3, f"Error: no worker of {self._handler.name} is left: {error}")

    def _tell_where(self, report: Any, why: str) -> None:
        if self._given["quiet"]:
            return
        if self._given["output"] is None:
            rest = f"the rest: tail -n +{report.last_line + 1} INPUT; with --output FILE it could be resumed"
        else:
            again = [*sys.argv[1:], *(["--resume"] if "--resume" not in sys.argv else [])]
            rest = f"to go on: {shlex.join(['tidegate', *again])}"
            rest += "" if self._given["source"] else " < the same input"
        click.echo(f"tidegate: {why} after line {report.last_line:,}; {rest}", err=True)


# ---------------------------------------------------------------------- before it begins


def _check(given: dict[str, Any]) -> None:
    again = "--retry-errors" if given["retry_errors"] else "--resume"
    is_again = given["resume"] or given["retry_errors"]
    if is_again and given["output"] is None:
        stop(
            2,
            f"Error: {again} needs --output FILE: after `> out` the shell has emptied the file before tidegate starts",
        )
    if given["stream"] and is_again:
        stop(2, f"Error: {again} with --stream: a line has several answers then, which are not counted; take one away")
    if given["stream"] and given["output_field"]:
        stop(2, "Error: --output-field with --stream: a chunk is no field; take one away")


def _descriptors(given: dict[str, Any]) -> tuple[int, int | None]:
    """Where lines come from, and standard output, which from now on is nobody else's."""
    source: Path | None = given["source"]
    try:
        # First: it may be a descriptor's name.
        named = None if source is None else input_from(source)
    except OSError as error:
        stop(2, f"Error: --input {source}: {error.strerror}; give a file that can be read")
    standard_input, standard_output = set_aside()
    fd = standard_input if named is None else named
    if fd is None:
        stop(2, "Error: standard input is closed: give --input FILE, or < FILE")
    if standard_output is None and given["output"] is None:
        stop(2, "Error: standard output is closed: give --output FILE, or > FILE")
    if given["output"] is not None and is_same_file(fd, given["output"]):
        stop(2, f"Error: --output {given['output']} is the input: give another file")
    if os.isatty(fd) and not given["quiet"]:
        click.echo("tidegate: reading from the terminal, one JSON value per line; Ctrl-D ends", err=True)
    return fd, standard_output


def _only(handlers: list[Handler[..., Any]], target: str) -> Handler[..., Any]:
    if len(handlers) > 1:
        names = ", ".join(f"{target}:{handler.name}" for handler in handlers)
        stop(2, f"Error: {target} has several handlers: name one of {names}")
    return handlers[0]


# ---------------------------------------------------------------------- how it ends


def _told(code: int, text: str) -> int:
    click.echo(text, err=True)
    return code


def _end_now(number: int, frame: object) -> NoReturn:
    kill_all()
    os._exit(128 + number)
