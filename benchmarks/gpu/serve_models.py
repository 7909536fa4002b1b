"""What a served model reaches of its own bare loop, on one GPU: unattended, one table at the end.

    benchmarks/gpu/run.sh                 on a machine with a GPU, where the packages lie in .whl and .bench/wheels
    serve_models.py --tiny                small models on the CPU, to see that everything works

The bare loop, tidegate with 0, 1, 2… front ends, Mosec with six workers and LitServe with four API servers: the same
models, the same requests, one after another on the same machine, the bare loop before and after. `--limit` seconds
are kept: what is left then is not measured, and the table is printed.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "peers"))

import gpu_models
import load

JSON_TYPE = "application/json"
FRONTS = (0, 1, 2, 4, 8, 12)
KINDS = ("bert", "image", "image64")
QUESTIONS = 32
STARTS_WITHIN = 120.0


class Line(NamedTuple):
    """One line of the table."""

    kind: str
    size: int
    who: str
    rate: float
    p50: float
    p99: float
    cores: float
    load_cores: float
    bad: int


class Run:
    """What has been measured, and how much time is left."""

    def __init__(self, limit: float, seconds: float, load_processes: int) -> None:
        self._ends = time.monotonic() + limit
        self.seconds = seconds
        self.load_processes = load_processes
        self.lines: list[Line] = []
        self.ceilings: dict[tuple[str, int], list[dict[str, float]]] = {}
        self.notes: list[str] = []

    @property
    def left(self) -> float:
        """Seconds."""
        return self._ends - time.monotonic()

    def note(self, text: str) -> None:
        """Something to be told."""
        self.notes.append(text)
        print(text, flush=True)


# ---------------------------------------------------------------------- requests


def body_of(kind: str, seed: int, wrapped: bool) -> tuple[bytes, str]:
    """A request's body and its type. wrapped: as a field of an object, as LitServe reads it."""
    if kind == "image":
        return gpu_models.images(seed).tobytes(), "application/octet-stream"
    if kind == "image64":
        value: Any = {"image": base64.b64encode(gpu_models.images(seed).tobytes()).decode()}
    else:
        value = {"input": gpu_models.tokens(seed)} if wrapped else gpu_models.tokens(seed)
    return json.dumps(value).encode(), JSON_TYPE


def ask(port: int, path: str, body: bytes, content_type: str) -> tuple[int, bytes]:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", path, body, {"Content-Type": content_type})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def check(port: int, path: str, kind: str, wrapped: bool, expected: dict[str, Any]) -> None:
    """Raise ValueError unless two different requests get the answers that the bare model gives."""
    for seed in (0, 1):
        status, answer = ask(port, path, *body_of(kind, seed, wrapped))
        if status != 200:
            raise ValueError(f"status {status}: {answer[:300]!r}")
        found = json.loads(answer)
        found = found["output"] if wrapped else found
        wanted = expected["bert" if kind == "bert" else "resnet"][seed]
        if kind == "bert":
            # bf16, and other kernels for other batch sizes.
            worst = max(abs(one - other) for one, other in zip(found, wanted, strict=True))
            if worst > 0.1:
                raise ValueError(f"the answer is {worst} away from the bare model's")
        elif found != wanted:
            print(f"  class {found}, the bare model says {wanted}: bf16 may do that, once")


def expectations() -> dict[str, list[Any]]:
    """What the bare models answer to seeds 0 and 1, asked in a process that ends with its CUDA context."""
    program = (
        "import json, gpu_models, numpy as np\n"
        "d = gpu_models.device_here()\n"
        "b, r = gpu_models.load('bert', d), gpu_models.load('resnet', d)\n"
        "t = np.stack([np.asarray(gpu_models.tokens(s)) for s in (0, 1)]); i = np.stack([gpu_models.images(s) for s in (0, 1)])\n"
        "print(json.dumps({'bert': b.on_host(t).tolist(), 'resnet': r.on_host(i).tolist()}))"
    )
    printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=HERE).stdout
    return dict(json.loads(printed.splitlines()[-1]))


# ---------------------------------------------------------------------- services


def cpu_seconds(root: int) -> float:
    """What a process and all below it have used, by /proc: nothing needs to be installed for that."""
    parents: dict[int, int] = {}
    spent: dict[int, float] = {}
    tick = os.sysconf("SC_CLK_TCK")
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry)] = int(fields[1])
            spent[int(entry)] = (int(fields[11]) + int(fields[12])) / tick
    family = {root}
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in family} - family
        family |= more
        grown = bool(more)
    return sum(spent.get(pid, 0.0) for pid in family)


@contextmanager
def started(command: list[str], log: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A service, ended with all that it has started."""
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command,
            cwd=HERE,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        for number in (signal.SIGINT, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                break
            try:
                process.wait(8)
            except subprocess.TimeoutExpired:
                continue
        process.wait()


def await_open(process: subprocess.Popen[bytes], port: int, path: str, body: bytes, content_type: str) -> None:
    """Until it answers; raises RuntimeError if it does not."""
    ends = time.monotonic() + STARTS_WITHIN
    problem: object = "nothing listens"
    while time.monotonic() < ends and process.poll() is None:
        try:
            status, answer = ask(port, path, body, content_type)
        except (OSError, http.client.HTTPException) as error:
            problem = error
        else:
            if status == 200:
                return
            problem = status, answer[:200]
        time.sleep(0.25)
    raise RuntimeError(f"it did not open its door ({problem}); exit status {process.poll()}")


def free_port() -> int:
    """One that nobody has."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def measure(run: Run, root: int, port: int, path: str, kind: str, size: int, who: str, wrapped: bool = False) -> None:
    """Closed loop with four clients per place in a batch of 64, three per place in larger ones."""
    connections = 4 * size if size <= 64 else 3 * size
    count = QUESTIONS if kind == "bert" else 8
    questions = [load.question(kind, path, *body_of(kind, seed, wrapped)) for seed in range(count)]
    plan = load.Plan(port, questions, connections, run.seconds, processes=run.load_processes)
    load.run(plan._replace(seconds=1.0))
    before, begun = cpu_seconds(root), time.monotonic()
    tally = load.run(plan)
    cores = (cpu_seconds(root) - before) / (time.monotonic() - begun)
    bad = tally.count() - tally.count("right")
    line = Line(kind, size, who, tally.rate(), tally.p(0.5), tally.p(0.99), cores, tally.load_cpu / tally.seconds, bad)
    run.lines.append(line)
    told = f"{line.rate:,.0f}/s, p50 {1e3 * line.p50:.0f} ms, service {cores:.1f} cores, load {line.load_cores:.1f}"
    print(f"{kind} {size} {who}: {told}{f', {bad} bad' if bad else ''}; {run.left:.0f} s left", flush=True)


def serve_tidegate(run: Run, arguments: Any, expected: dict[str, Any], log: Path, cores: str = "") -> None:
    """One service, a door for every number of front ends. cores: those that the workers get for themselves."""
    ports = {count: free_port() for count in arguments.fronts}
    doors = [f"{count}:{port}" for count, port in ports.items()]
    command = [sys.executable, str(HERE / "tidegate_app.py"), arguments.transport, *doors]
    own = {int(core) for core in cores.split(",") if core}
    others = sorted(os.sched_getaffinity(0) - own)
    if own:
        command = ["taskset", "-c", ",".join(map(str, others)), *command]
    chosen = {"KINDS": ",".join(arguments.kinds), "SIZES": ",".join(map(str, arguments.sizes)), "WORKER_CORES": cores}
    kind, size = arguments.kinds[0], arguments.sizes[0]
    with started(command, log, **chosen) as process:
        for port in ports.values():  # one opens after the other
            await_open(process, port, f"/{kind}_{size}", *body_of(kind, 0, False))
        run.note(f"tidegate is open, {run.left:.0f} s left")
        for kind in arguments.kinds:
            for size in arguments.sizes:
                for count, port in ports.items():
                    if run.left < arguments.reserve:
                        run.note(f"no time for tidegate, {kind}, {size}, {count} front ends")
                        continue
                    path = f"/{kind}_{size}"
                    check(port, path, kind, False, expected)
                    who = f"tidegate, {count} front ends" if count else "tidegate, one process"
                    who += f", workers alone on cores {cores}" if cores else ""
                    measure(run, process.pid, port, path, kind, size, who)


def serve_mosec(run: Run, kind: str, expected: dict[str, Any], log: Path, workers: int) -> None:
    """Mosec with a batch of 64."""
    port = free_port()
    command = [sys.executable, str(HERE / "mosec_models.py"), "--address", "127.0.0.1", "--port", str(port)]
    command += ["--timeout", "60000", "--log-level", "error"]
    with started(command, log, KIND=kind, WORKERS=str(workers), MAX_BATCH="64") as process:
        await_open(process, port, "/inference", *body_of(kind, 0, False))
        check(port, "/inference", kind, False, expected)
        # The door opens with the first worker.
        time.sleep(3.0)
        measure(run, process.pid, port, "/inference", kind, 64, f"Mosec, {workers} workers")


def serve_litserve(run: Run, kind: str, expected: dict[str, Any], log: Path, servers: int) -> None:
    """LitServe with a batch of 64."""
    port = free_port()
    command = [sys.executable, str(HERE / "litserve_models.py"), str(port)]
    with started(command, log, KIND=kind, API_SERVERS=str(servers), MAX_BATCH="64") as process:
        await_open(process, port, "/predict", *body_of(kind, 0, True))
        check(port, "/predict", kind, True, expected)
        measure(run, process.pid, port, "/predict", kind, 64, f"LitServe, {servers} API servers", wrapped=True)


def ceilings(run: Run, arguments: Any, log: Path) -> None:
    """The bare loop at every size, with nothing else running."""
    with open(log, "ab") as errors:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "bare_loop.py")],
            cwd=HERE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdin is not None and process.stdout is not None
    try:
        if not process.stdout.readline():
            raise RuntimeError(f"the bare loop did not start; see {log}")
        for kind in ("bert", "resnet"):
            for size in arguments.sizes:
                process.stdin.write(f"{kind} {size} {2 * arguments.bare_seconds}\n")
                process.stdin.flush()
                found = json.loads(process.stdout.readline())
                run.ceilings.setdefault((kind, size), []).append(found)
                print(f"bare {kind} {size}: {found}; {run.left:.0f} s left", flush=True)
    finally:
        process.stdin.close()
        process.kill()
        process.wait()


# ---------------------------------------------------------------------- the table


def table(run: Run) -> str:
    """Everything, as Markdown."""
    lines = [
        "| | batch | items/s | of the bare loop | p50, ms | p99, ms | cores | load, cores | bad |",
        "| --- |" + " --- |" * 8,
    ]
    for (kind, size), found in run.ceilings.items():
        rates = [max(one["pageable"], one["pinned"]) for one in found]
        parts = ", ".join(f"pageable {one['pageable']:,.0f} pinned {one['pinned']:,.0f}" for one in found)
        lines.append(f"| bare {kind}: {parts} | {size} | {statistics.mean(rates):,.0f} | 1 | | | | | |")
    for line in run.lines:
        found = run.ceilings.get(("bert" if line.kind == "bert" else "resnet", line.size), [])
        rates = [max(one["pageable"], one["pinned"]) for one in found]
        share = f"{line.rate / statistics.mean(rates):.3f}" if rates else ""
        lines.append(
            f"| {line.kind}, {line.who} | {line.size} | {line.rate:,.0f} | {share} | {1e3 * line.p50:.1f} "
            f"| {1e3 * line.p99:.1f} | {line.cores:.1f} | {line.load_cores:.1f} | {line.bad} |"
        )
    return "\n".join([*lines, "", *(f"* {note}" for note in run.notes)])


def about() -> str:
    """The machine and the versions."""
    import importlib.metadata

    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    found = []
    for name in ("transformers", "torchvision", "numpy", "aiohttp", "uvloop", "mosec", "litserve"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    cores = len(os.sched_getaffinity(0))
    return f"{gpu}, {cores} cores, Python {sys.version.split()[0]}, torch {torch.__version__}, {', '.join(found)}"


def main() -> None:
    """Measure, and print the table whatever happens."""
    arguments = _arguments()
    log = arguments.log
    run = Run(arguments.limit, arguments.seconds, arguments.load_processes)
    run.note(about())
    steps: list[tuple[str, Any]] = []
    expected: dict[str, Any] = {}
    steps.append(("bare models", lambda: expected.update(expectations())))
    steps.append(("bare loop", lambda: ceilings(run, arguments, log)))
    steps.append(("tidegate", lambda: serve_tidegate(run, arguments, expected, log)))
    if arguments.worker_cores:
        alone = arguments.worker_cores
        steps.append(("tidegate, apart", lambda: serve_tidegate(run, arguments, expected, log, alone)))
    for kind in arguments.peer_kinds:
        steps.append(
            (f"Mosec {kind}", lambda kind=kind: serve_mosec(run, kind, expected, log, arguments.mosec_workers))
        )
    for kind in ("bert", "image64"):
        if kind in arguments.peer_kinds:
            steps.append((f"LitServe {kind}", lambda kind=kind: serve_litserve(run, kind, expected, log, 4)))
    steps.append(("bare loop", lambda: ceilings(run, arguments, log)))
    with ExitStack() as stack:
        stack.callback(lambda: print(f"\n{table(run)}\n", flush=True))
        for name, step in steps:
            if run.left < 20:
                run.note(f"no time for {name}")
                continue
            try:
                step()
            except Exception as error:  # noqa: BLE001 - what one of them does must not cost the others' figures
                run.note(f"{name} failed: {type(error).__name__}: {error}; the log ends {_end_of(log)!r}")


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-300:] if log.exists() else ""


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--limit", type=float, default=460.0, help="seconds for everything")
    parser.add_argument(
        "--reserve", type=float, default=200.0, help="seconds that are kept for what comes after tidegate"
    )
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--bare-seconds", type=float, default=1.5)
    parser.add_argument("--load-processes", type=int, default=4)
    parser.add_argument("--mosec-workers", type=int, default=6)
    parser.add_argument("--transport", default="http", help="of the front ends: http, granian or uvicorn")
    parser.add_argument("--fronts", type=lambda text: [int(one) for one in text.split(",")], default=list(FRONTS))
    parser.add_argument("--sizes", type=lambda text: [int(one) for one in text.split(",")], default=[64, 256])
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=list(KINDS))
    parser.add_argument("--peer-kinds", type=lambda text: text.split(","), default=list(KINDS))
    parser.add_argument("--worker-cores", default="", help="once more, with the workers alone on these: 14,15")
    parser.add_argument("--log", type=Path, default=Path("/tmp/serve_models.log"))
    arguments = parser.parse_args()
    if arguments.tiny:
        os.environ["TINY"] = "1"
        gpu_models.TINY = True
    return arguments


if __name__ == "__main__":
    main()
