"""Reads a page as its reader would: writes the files that it shows, types what it says, compares what it promises."""

from __future__ import annotations

import doctest
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

# Runs a block as a script. `tidegate.run` opens its doors on a free port and closes them again; afterwards every
# handler of the block is called through an app, as far as an input for it can be made up.
DRIVER = """
import asyncio, runpy, sys
import tidegate

def run(*handlers, **doors):
    async def open_and_close():
        async with tidegate.App(*handlers, **dict.fromkeys(doors or ["http"], "127.0.0.1:0")):
            pass
    asyncio.run(open_and_close())

async def call(handlers):
    async with tidegate.App(*handlers) as app:
        for handler in handlers:
            example = handler.codec.example()
            if example is None:
                continue
            value = handler.codec.decode_json(handler.codec.encode_json(example))
            try:
                if handler.streams:
                    async with app.stream(handler.name, value) as chunks:
                        output = [chunk async for chunk in chunks]
                else:
                    output = await app.call(handler.name, value)
            except tidegate.HTTPError:
                continue  # an input that is made up may be refused
            handler.codec.encode_json(output)

tidegate.run = run
namespace = runpy.run_path(sys.argv[1], run_name="__main__")
handlers = {id(h): h for h in map(tidegate.handler.handler_of, filter(tidegate.handler.is_handler, namespace.values()))}
if handlers:
    asyncio.run(call(handlers.values()))
"""

LONGEST = 90
"""Seconds for one command: a machine may be busy with everything else as well."""

SHELLS = ("sh", "console")
CHECKED = ("json", "yaml", "toml", "promql", "pycon")
OUTPUT = ("text", "http")
SERVERS = re.compile(r"(^|\s)(tidegate serve|uvicorn)\s(?!.*--help)")
PORTS = re.compile(r"(?<=:)(8000|8001|9000)\b|(?<=PORT=)8000\b|(?<=--port )8000\b")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. reason: why it cannot be run, if the page says that it is not."""

    language: str
    body: str
    line: int
    reason: str = ""

    @property
    def file(self) -> str:
        """The name that its first line gives it, "" for none."""
        found = re.match(r"# (\w+\.py)\n", self.body)
        return found[1] if found else ""


class PageError(AssertionError):
    """A page says what is not so."""

    def __init__(self, block: Block, text: str) -> None:
        super().__init__(f"line {block.line}: {text}")


def blocks(text: str) -> list[Block]:
    """Every fenced block that is no directive, with the comment before it."""
    found = []
    for match in re.finditer(
        r"^(?P<fence>```+)(?P<language>[^`\n]*)\n(?P<body>.*?)^(?P=fence)$", text, re.MULTILINE | re.DOTALL
    ):
        if match["language"].startswith("{"):
            continue  # a directive of the generator's
        before = re.search(r"<!-- not run: ([^>]+?) -->\n+\Z", text[: match.start()])
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(match["language"], match["body"], line, before[1] if before else ""))
    return found


def commands(block: Block) -> list[tuple[str, str]]:
    """Each command of a shell's block with what it is said to print."""
    text = block.body.replace("\\\n", " ")
    if block.language == "sh":
        return [(line, "") for line in text.splitlines() if line.strip() and not line.startswith("#")]
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)
    if parts[0].strip():
        raise PageError(block, "a console shows commands behind '$ '")
    return [(part.partition("\n")[0], part.partition("\n")[2].strip("\n")) for part in parts[1:]]


class Reader:
    """One reader with an empty folder, who goes through a page from top to bottom."""

    def __init__(self, text: str, folder: Path) -> None:
        self.text = text
        self.blocks = blocks(text)
        self.folder = folder
        self.home = folder / ".home"
        self.home.mkdir()
        (self.home / ".curlrc").write_text("silent\nshow-error\nmax-time = 30\n")
        self.files: dict[str, str] = {}
        self.ports: dict[str, int] = {}
        self.servers: dict[str, subprocess.Popen[str]] = {}
        self.ran = 0

    def read(self) -> None:
        """Do all that the page says; raises PageError."""
        try:
            for block in self.blocks:
                self._do(block)
        finally:
            for port in list(self.servers):
                self._stop(port)

    def _do(self, block: Block) -> None:
        if block.reason or block.language in OUTPUT:
            return
        if block.language == "python":
            self._python(block)
        elif block.language in SHELLS:
            for command, output in commands(block):
                self._type(block, command, output)
        elif block.language in CHECKED:
            self._check(block)
        else:
            raise PageError(block, f"nobody runs {block.language or 'no language'}: say <!-- not run: why -->")

    # ------------------------------------------------------------------ Python

    def _python(self, block: Block) -> None:
        if block.file:
            self.files[block.file] = block.body
            (self.folder / block.file).write_text(block.body)
            if self._is_used(block.file):
                return
        (self.folder / "block.py").write_text(self._here(block.body))
        ran = self._run([sys.executable, "-W", "error", "-c", DRIVER, "block.py"])
        self.ran += 1
        if ran.returncode:
            raise PageError(block, ran.stdout)

    def _is_used(self, file: str) -> bool:
        """Whether something on the page runs or imports the file, so that it need not be run by itself."""
        typed = "\n".join(one.body for one in self.blocks if one.language in SHELLS and not one.reason)
        return file in typed or bool(
            re.search(rf"^(from|import) {file.removesuffix('.py')}\b", self.text, re.MULTILINE)
        )

    def _check(self, block: Block) -> None:
        if block.language == "json":
            for value in [block.body] if block.body.startswith(("{\n", "[\n")) else block.body.splitlines():
                json.loads(value)
        elif block.language == "toml":
            tomllib.loads(block.body)
        elif block.language == "yaml":
            list(pytest.importorskip("yaml").safe_load_all(block.body))
        elif block.language == "promql":
            pytest.importorskip("promql_parser").parse(block.body)
        else:
            test = doctest.DocTestParser().get_doctest(block.body, {}, "page", None, block.line)
            told: list[str] = []
            doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=told.append)
            if told:
                raise PageError(block, "".join(told))
        self.ran += 1

    # ------------------------------------------------------------------ commands

    def _type(self, block: Block, command: str, output: str) -> None:
        for name, text in self.files.items():
            (self.folder / name).write_text(self._here(text))
        served = re.match(r"python (\S+\.py)$", command)
        if SERVERS.search(command) or (served and "run(" in self.files.get(served[1], "")):
            self._serve(block, command)
        else:
            # An answer that is shown may be an error; any other must be none.
            fail = "" if output else 'curl() { command curl --fail-with-body "$@"; }; '
            ran = self._run(["bash", "-o", "pipefail", "-c", fail + self._here(command)])
            if output and not matches(output, self._there(ran.stdout)):
                raise PageError(block, f"{command} printed\n{self._there(ran.stdout)}\nand not\n{output}")
            if not output and ran.returncode:
                raise PageError(block, f"{command} ended with {ran.returncode}: {ran.stdout}")
        self.ran += 1

    def _serve(self, block: Block, command: str) -> None:
        """Start it, wait until somebody listens, leave it running."""
        # A WebSocket door has another port, which opens together with the first.
        found = PORTS.search(re.sub(r"--ws \S+", "", command))
        found = found or (PORTS.search(self._file_of(command)) if "python" in command else None)
        port = found[0] if found else "8000"
        if port in self.servers:
            self._stop(port)
        here = self._here(command)
        if "tidegate serve" in command and not found:
            here += f" --http 127.0.0.1:{self._port(port)}"
        with (self.folder / f"server-{port}.log").open("w") as log:
            process = subprocess.Popen(
                ["bash", "-c", f"exec env {here}"],
                cwd=self.folder,
                env=self._environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.servers[port] = process
        until = time.monotonic() + 60
        while True:
            if is_ready(self._port(port)):
                return
            if process.poll() is not None or time.monotonic() > until:
                del self.servers[port]
                process.kill()
                process.wait()
                raise PageError(block, f"{command}: {(self.folder / f'server-{port}.log').read_text()}")
            # Nobody tells when a process that is not ours listens.
            time.sleep(0.02)

    def _stop(self, port: str) -> None:
        process = self.servers.pop(port)
        process.send_signal(signal.SIGINT)
        try:
            code = process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        assert code in (0, -signal.SIGINT), (self.folder / f"server-{port}.log").read_text()

    def _file_of(self, command: str) -> str:
        return next((text for name, text in self.files.items() if name in command), "")

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        with subprocess.Popen(
            command,
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=LONGEST)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # what it has started as well
                raise
        return subprocess.CompletedProcess(command, process.returncode, output)

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TIDEGATE_", "COV"))}
        scripts = sysconfig.get_path("scripts")
        return {**kept, "PATH": f"{scripts}:{kept['PATH']}", "HOME": str(self.home), "COLUMNS": "120"}

    # ------------------------------------------------------------------ ports of the page and of this machine

    def _port(self, written: str) -> int:
        if written not in self.ports:
            self.ports[written] = free_port()
        return self.ports[written]

    def _here(self, text: str) -> str:
        return PORTS.sub(lambda found: str(self._port(found[0])), text)

    def _there(self, text: str) -> str:
        for written, port in self.ports.items():
            text = text.replace(str(port), written)
        return text.strip("\n")


def is_ready(port: int) -> bool:
    """Whether something listens there, and if it is a service of ours, whether all its doors are open."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status != 503
    except http.client.HTTPException:
        return True  # it speaks something else
    except OSError:
        return False
    finally:
        connection.close()


def matches(expected: str, printed: str) -> bool:
    """Whether it is what was said; an ellipsis stands for anything."""
    pattern = re.escape("\n".join(line.rstrip() for line in expected.splitlines())).replace("…", ".*?")
    return bool(re.fullmatch(pattern, "\n".join(line.rstrip() for line in printed.splitlines()), re.DOTALL))


def free_port() -> int:
    """A port below those that the system hands out to whoever connects somewhere."""
    while True:
        port = random.randrange(15000, 32000)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str], Reader]:
    """Read a page's text in an empty folder."""

    def read(text: str) -> Reader:
        reader = Reader(text, tmp_path)
        reader.read()
        return reader

    return read
