"""What `tidegate run` costs per line, beside the bare loop, and how much memory it takes over a million lines.

    python benchmarks/jsonlines.py                        # all of it, through a process worker
    python benchmarks/jsonlines.py echo --worker thread --lines 300000 --rounds 3
    python benchmarks/jsonlines.py memory --lines 10000000 --plot rss.csv

Of several rounds the best counts: whatever else runs on the machine only ever takes away.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

APP = """
import json, time
from tidegate import serve

@serve(max_batch_size=1)
def echo(x: list[list[int]]) -> list[list[int]]:
    return x

def bare(device):
    # The loop that somebody would write who has everything in memory.
    began = time.perf_counter()
    for _ in range(200):
        time.sleep(0.005)
    return {"bare": (time.perf_counter() - began) / 200, "calls": 0}

def note(state):
    with open("model.json", "w") as file:
        json.dump(state, file)

@serve(max_batch_size=1, setup=bare, teardown=note)
def model(state, x: list[list[int]]) -> list[list[int]]:
    state.setdefault("began", time.perf_counter())
    time.sleep(0.005)
    state["calls"] += 1
    state["ended"] = time.perf_counter()
    return x
"""

COMMAND = [sys.executable, "-c", "from tidegate.cli import main; main()", "run", "-q"]


@dataclass
class Round:
    """seconds: of the command, its start included. cpu: of the command and its workers. memory: seconds and bytes."""

    seconds: float
    cpu: float
    memory: list[tuple[float, int]]


def ran(folder: Path, handler: str, arguments: argparse.Namespace, lines: int) -> Round:
    """One run over so many lines; every answer is checked to be there, in order."""
    make(folder, lines)
    flags = ["--worker", arguments.worker, "--max-batch-size", str(arguments.batch)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    process = psutil.Popen(
        [*COMMAND, f"app.py:{handler}", *flags],
        cwd=folder,
        stdin=(folder / f"{lines}.jsonl").open("rb"),
        stdout=(folder / "out.jsonl").open("wb"),
    )
    memory = list(sampled(process, began))
    seconds = time.perf_counter() - began
    assert process.returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    check(folder, lines)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Round(seconds, cpu, memory)


def sampled(process: psutil.Popen, began: float) -> Iterator[tuple[float, int]]:
    """Seconds and resident bytes of the command, without its workers, until it ends."""
    while process.poll() is None:
        try:
            yield time.perf_counter() - began, process.memory_info().rss
            process.wait(0.1)
        except psutil.TimeoutExpired:
            continue
        except psutil.NoSuchProcess:
            return


def make(folder: Path, lines: int) -> None:
    path = folder / f"{lines}.jsonl"
    if not path.exists():
        with path.open("w") as file:
            file.writelines(f"[{n},{n + 1},{n + 2},{n + 3}]\n" for n in range(lines))


def check(folder: Path, lines: int) -> None:
    source, target = folder / f"{lines}.jsonl", folder / "out.jsonl"
    with source.open("rb") as expected, target.open("rb") as found:
        for one, other in zip(expected, found, strict=True):
            assert one == other


def echo(folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """All lines, less what an empty input takes."""
    empty = [ran(folder, "echo", arguments, 0) for _ in range(arguments.rounds)]
    full = [ran(folder, "echo", arguments, arguments.lines) for _ in range(arguments.rounds)]
    seconds = min(one.seconds for one in full) - min(one.seconds for one in empty)
    cpu = min(one.cpu for one in full) - min(one.cpu for one in empty)
    return {
        "lines_per_second": round(arguments.lines / seconds),
        "us_per_line": round(1e6 * seconds / arguments.lines, 2),
        "cpu_us_per_line": round(1e6 * cpu / arguments.lines, 2),
    }


def model(folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Seconds per batch beside those of the loop that runs in the same worker just before."""
    found = []
    for _ in range(arguments.rounds):
        ran(folder, "model", arguments, arguments.lines)
        state = json.loads((folder / "model.json").read_text())
        found.append((state["bare"], (state["ended"] - state["began"]) / state["calls"]))
    bare, served = min(loop for loop, _ in found), min(batch for _, batch in found)
    return {
        "bare_ms_per_batch": round(1e3 * bare, 2),
        "ms_per_batch": round(1e3 * served, 2),
        "share_of_bare": round(bare / served, 3),
    }


def memory(folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Resident bytes after a fifth of the time, at the end, and at most."""
    one = ran(folder, "echo", arguments, arguments.lines)
    if arguments.plot:
        with arguments.plot.open("w", newline="") as file:
            csv.writer(file).writerows([("seconds", "rss_bytes"), *one.memory])
    # Started up, and not yet winding down.
    middle = [rss for _, rss in one.memory[len(one.memory) // 5 : -1]] or [rss for _, rss in one.memory]
    return {
        "lines": arguments.lines,
        "seconds": round(one.seconds, 1),
        "rss_mib_early": round(middle[0] / 2**20, 1),
        "rss_mib_late": round(middle[-1] / 2**20, 1),
        "rss_mib_most": round(max(middle) / 2**20, 1),
    }


CASES = {"echo": echo, "model": model, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=[*CASES], metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--worker", choices=("process", "thread"), default="process")
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="write seconds and resident bytes as CSV")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "app.py").write_text(APP)
        for case in arguments.cases:
            about = {"case": case, "worker": arguments.worker, "batch": arguments.batch}
            print(json.dumps({**about, **CASES[case](folder, arguments)}), flush=True)


if __name__ == "__main__":
    main()
