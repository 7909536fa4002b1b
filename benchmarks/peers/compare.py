"""tidegate side by side with what one would pick instead: `make bench-peers`.

Every contender serves the same workload at the same time, and they are asked in turn, in another order each round, so
that whatever else the machine does hits all alike. Answers are checked before and after; a run with a single error is
void. Ratios are taken within a round, then their median.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import faults
import psutil
from contenders import CONTENDERS, Contender
from environments import ENVIRONMENTS, ROOT, versions
from report import write
from results import Cell, Results
from running import Running, WrongAnswer, run
from workloads import WORKLOADS, Workload
from wrk import GENERATOR, ceiling, measure

CONNECTIONS = (1, 16, 64, 256)
QUICK_CONNECTIONS = (1, 64)
QUICK_WORKLOADS = ("echo", "embed", "image64", "sleep5")


def main() -> None:
    """Measure what was asked for and write it down."""
    arguments = _arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = Results(_machine(), _versions(), " ".join(["compare.py", *sys.argv[1:]]), GENERATOR)
    results.load_before = psutil.getloadavg()[0]
    begun = time.monotonic()
    for workload in arguments.workloads:
        _compare(workload, arguments, results)
        write(results, arguments.out)
    if arguments.faults:
        for name, measured in faults.all_of(arguments.contenders, arguments.quick):
            results.faults[name] = measured
            write(results, arguments.out)
    results.minutes = (time.monotonic() - begun) / 60
    write(results, arguments.out)
    print(f"{results.minutes:.1f} minutes; see {arguments.out}/peers.md")


def _compare(workload: Workload, arguments: argparse.Namespace, results: Results) -> None:
    log = arguments.out / "services.log"
    with ExitStack() as stack:
        services = _start(stack, [one for one in arguments.contenders if one.takes(workload)], workload, log, results)
        if results.ceiling is None:
            results.ceiling = _ceiling(services)
        for service in services:  # what is slow the first time
            measure(service, 64, 1)
        for turn in range(arguments.rounds):
            for connections in arguments.connections:
                for number in range(len(services)):
                    service = services[(number + turn * 5) % len(services)]
                    measured = measure(service, connections, arguments.seconds)
                    results.add(Cell(workload.name, service.contender.name, connections), turn, measured)
            print(f"{workload.name}: round {turn + 1} of {arguments.rounds}", flush=True)
        for service in services:
            try:
                service.check(8, first=100)
            except WrongAnswer as error:
                results.drop(workload.name, service.contender.name, str(error))


def _start(
    stack: ExitStack, contenders: Sequence[Contender], workload: Workload, log: Path, results: Results
) -> list[Running]:
    """All of them side by side; one that cannot start is left out, and said to be."""

    def start(contender: Contender) -> Running | None:
        try:
            return stack.enter_context(run(contender, workload, log))
        except Exception as error:  # noqa: BLE001 - whatever a peer does, the others are measured
            results.failed[f"{contender.name}, {workload.name}"] = str(error)
            return None

    with ThreadPoolExecutor(2) as threads:
        return [one for one in threads.map(start, contenders) if one is not None]


def _ceiling(services: Sequence[Running]) -> dict[str, float]:
    """What the generator can do: Mosec's GET /, which Rust answers alone; and what it takes of a core for that."""
    for service in services:
        if service.contender.name == "Mosec":
            rate, cores = ceiling(service.port, "/")
            print(f"{GENERATOR} reaches {rate:,.0f} requests/s where the server does nothing, with {cores:.2f} cores")
            return {"rate": rate, "cores": cores}
    return {}


def _machine() -> str:
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return f"{model}, {psutil.cpu_count()} cores, {psutil.virtual_memory().total >> 30} GiB, Linux {platform.release()}"


def _versions() -> dict[str, dict[str, str]]:
    return {name: versions(name) for name in ENVIRONMENTS}


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="five minutes: fewer workloads and connections")
    parser.add_argument("--only", default="", metavar="WORKLOAD,PEER", help="names, or beginnings of names, of either")
    parser.add_argument("--connections", help="such as 1,64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=1)
    parser.add_argument("--no-faults", dest="faults", action="store_false")
    parser.add_argument("--faults-only", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / ".bench" / "results")
    arguments = parser.parse_args()
    picked = [word.strip().lower() for word in arguments.only.split(",") if word.strip()]
    workloads = [one for one in WORKLOADS.values() if one.name in picked]
    contenders = [one for one in CONTENDERS.values() if any(one.name.lower().startswith(word) for word in picked)]
    known = [*WORKLOADS, *(name.lower() for name in CONTENDERS)]
    for word in picked:
        if word not in WORKLOADS and not any(name.startswith(word) for name in known):
            parser.error(f"--only {word}: there is {', '.join(known)}")
    default = [WORKLOADS[name] for name in QUICK_WORKLOADS] if arguments.quick else list(WORKLOADS.values())
    arguments.workloads = [] if arguments.faults_only else workloads or default
    arguments.contenders = contenders or list(CONTENDERS.values())
    if arguments.connections:
        arguments.connections = tuple(int(one) for one in arguments.connections.split(","))
    else:
        arguments.connections = QUICK_CONNECTIONS if arguments.quick else CONNECTIONS
    return arguments


if __name__ == "__main__":
    main()
