"""What several front ends cost and bring: `python benchmarks/fronts.py --fronts 1,2,4,8 --seconds 5`.

The payload is a BERT's: 128 integers in, 768 floats out. The model is free, so that everything else shows.

hub: a made-up front end fires frames of requests at the hub as fast as it answers them. Beside the CPU that the hub
spends per request stands where it goes; the clocks that find that out are taken off again. large: the same with a
picture's raw bytes and with a file of that size, in frames and through memory in common. service: the whole of it,
with one process or several, under a closed loop of HTTP clients; hub, front ends and clients each tell their CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).parent / "peers"))

import load
import msgspec
import numpy as np

import tidegate_transports.ipc_hub
from tidegate import App, Array, serve
from tidegate_batching import Batcher, Scheduler
from tidegate_transports.fronts import FrontsTransport
from tidegate_transports.ipc_channel import Channel
from tidegate_transports.ipc_hub import HubLink
from tidegate_transports.ipc_memory import Memory
from tidegate_transports.ipc_messages import Answer, Call, Freed, Message
from tidegate_transports.ipc_values import encode_value

BATCH = 64
OUTPUTS = np.random.default_rng(0).standard_normal((BATCH, 768)).astype(np.float32)
TOKENS = np.arange(1000, 1128)
CLASSES = np.zeros(BATCH, np.int64)

TARGET = 25.0
"""Microseconds of the hub's CPU per request that DESIGN.md allows."""


def model(tokens: Annotated[np.ndarray, Array("int64", (128,))]) -> np.ndarray:
    """Costs nothing."""
    return OUTPUTS[: len(tokens)]


def look(pixels: Annotated[np.ndarray, Array("uint8", (224, 224, 3))]) -> np.ndarray:
    """Costs nothing; its input is the raw bytes of a picture, 150 kB of them."""
    return CLASSES[: len(pixels)]


def read(files: list[bytes]) -> list[int]:
    """Costs nothing; its input is a file, as large as the picture."""
    return [len(file) for file in files]


thread = serve(name="embed", max_batch_size=BATCH, worker="thread")(model)
process = serve(name="embed", max_batch_size=BATCH, worker="process")(model)
picture = serve(name="look", max_batch_size=BATCH, worker="process")(look)
file = serve(name="read", max_batch_size=BATCH, worker="process")(read)
HANDLERS = {"thread": thread, "process": process, "picture": picture, "file": file}
INPUTS: dict[str, Any] = {
    "embed": TOKENS,
    "look": np.arange(224 * 224 * 3, dtype=np.uint8).reshape(224, 224, 3),
    "read": bytes(range(256)) * (224 * 224 * 3 // 256),
}


# ---------------------------------------------------------------------- the hub alone


def fire(name: str, fd: int, total: int, per_frame: int, in_flight: int, *descriptors: int) -> None:
    """A front end that has its requests ready: `in_flight` at a time, in frames of `per_frame`.

    descriptors: of the memory that it has in common with the hub; without them every value travels in its frame.
    """
    memory = Memory.open(descriptors)
    outbox = None if memory is None else memory.outbox
    length = struct.Struct("<I")
    encoder, decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(list[Message])
    value = INPUTS[name]
    sent = done = owed = 0
    kept = bytearray()
    with socket.socket(fileno=fd) as line:

        def send() -> None:
            nonlocal sent
            calls = [
                Call(n, name, encode_value(value, outbox), 3, None, f"{n:016x}", b"", 30.0, 520)
                for n in range(sent, sent + per_frame)
            ]
            body = encoder.encode(calls)
            line.sendall(length.pack(len(body)) + body)
            sent += per_frame

        while sent < min(in_flight, total):
            send()
        while done < total:
            data = line.recv(1 << 20)
            if not data:
                raise SystemExit("the hub hung up")
            kept += data
            start = 0
            while start + 4 <= len(kept):
                (size,) = length.unpack_from(kept, start)
                if start + 4 + size > len(kept):
                    break
                messages = decoder.decode(memoryview(kept)[start + 4 : start + 4 + size])
                start += 4 + size
                for one in messages:
                    if type(one) is Freed and outbox is not None:
                        outbox.take_back(one.blocks)
                    elif type(one) is Answer:
                        done, owed = done + 1, owed + 1
                    else:
                        raise SystemExit(f"no answer: {one}")
            kept = kept[start:]
            while owed >= per_frame and sent < total:
                send()
                owed -= per_frame


async def hub(worker: str, total: int, per_frame: int, fronts: int, *, shares: bool = True) -> dict[str, Any]:
    """Microseconds of CPU per request with so many made-up front ends: of the loop, and of the whole process."""
    handler = HANDLERS[worker]
    name = handler.name
    async with App(handler, drain_timeout=1) as app, asyncio.TaskGroup() as tasks:
        await asyncio.gather(*(app.call(name, INPUTS[name]) for _ in range(2 * BATCH)))
        links, guns = [], []
        for _ in range(fronts):
            ours, theirs = socket.socketpair()
            link = HubLink(app, tasks, print)
            memory = Memory.create() if shares else None
            await link.channel.open(ours, memory)
            descriptors = [] if memory is None else memory.descriptors
            numbers = (theirs.fileno(), total // fronts, per_frame, 8 * BATCH // fronts, *descriptors)
            arguments = [str(one) for one in numbers]
            command = [sys.executable, __file__, "--fire", name, *arguments]
            guns.append(await asyncio.create_subprocess_exec(*command, pass_fds=[theirs.fileno(), *descriptors]))
            theirs.close()
            links.append(link)
        before = app.statistics()[name]
        loop, everything, clock = time.thread_time(), time.process_time(), time.perf_counter()
        for link in links:
            await link.gone.wait()
        loop, everything, clock = (
            time.thread_time() - loop,
            time.process_time() - everything,
            time.perf_counter() - clock,
        )
        if any([await gun.wait() for gun in guns]):
            raise SystemExit("a made-up front end failed")
        after = app.statistics()[name]
    return {
        "worker": worker,
        "fronts": fronts,
        "per_frame": per_frame,
        "loop_us": loop / total * 1e6,
        "process_us": everything / total * 1e6,
        "wall_us": clock / total * 1e6,
        "mean_batch": (after.submitted - before.submitted) / (after.batches - before.batches),
    }


def fine_clock() -> Callable[[], float]:
    """This thread's CPU, so that other programs do not count; where that is told slowly or roughly, the time of day."""
    began = time.perf_counter()
    told = [time.thread_time() for _ in range(1000)]
    slow = time.perf_counter() - began > 1e-3
    rough = len(set(told)) < 500
    return time.perf_counter if slow or rough else time.thread_time


class Stages:
    """Who uses the time, each without what it calls that is counted itself."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self._within: list[float] = []
        self._undo: list[Callable[[], None]] = []
        self._own = self._around = self.cost = 0.0

    def watch(self, owner: Any, name: str, label: str) -> None:
        """Count what this function or method takes."""
        function, clock, within = getattr(owner, name), self._clock, self._within
        self.seconds[label], self.calls[label] = self.seconds.get(label, 0.0), self.calls.get(label, 0)

        def watched(*args: Any, **kwargs: Any) -> Any:
            within.append(0.0)
            began = clock()
            try:
                return function(*args, **kwargs)
            finally:
                took = clock() - began
                self.seconds[label] += took - within.pop()
                self.calls[label] += 1
                if within:
                    within[-1] += took + self._around

        setattr(owner, name, watched)
        self._undo.append(lambda: setattr(owner, name, function))

    def calibrate(self) -> None:
        """What being watched costs, in the watched function's own time and in all."""

        class Idle:
            @staticmethod
            def nothing() -> None: ...

        idle, count = Idle, 100_000
        probe = Stages(self._clock)
        probe.watch(idle, "nothing", "nothing")
        began = self._clock()
        for _ in range(count):
            idle.nothing()
        self.cost = (self._clock() - began) / count
        self._own = probe.seconds["nothing"] / count
        self._around = self.cost - self._own

    def table(self, total: int) -> dict[str, float]:
        """Microseconds per request, the watching taken off."""
        return {
            label: max(0.0, seconds - self.calls[label] * self._own) / total * 1e6
            for label, seconds in self.seconds.items()
        }

    def stop(self) -> None:
        for undo in reversed(self._undo):
            undo()


async def where(total: int, per_frame: int) -> dict[str, float]:
    """Where the hub's time goes, in microseconds per request."""
    stages = Stages(fine_clock())
    stages.calibrate()
    ipc = tidegate_transports.ipc_hub
    for owner, name, label in (
        (Channel, "_cut", "frames in: found and decoded"),
        (ipc, "decode_value", "inputs made arrays"),
        (HubLink, "_call", "a call taken on"),
        (App, "post", "into the queue"),
        (Scheduler, "tick", "batches formed"),
        (Batcher, "_start", "batches handed to the worker"),
        (Batcher, "_completed", "batches taken back, items settled"),
        (HubLink, "settled", "an answer made"),
        (ipc, "encode_value", "outputs made bytes"),
        (Channel, "_flush", "frames out: encoded"),
    ):
        stages.watch(owner, name, label)
    try:
        whole = await hub("thread", total, per_frame, 1)
    finally:
        stages.stop()
    found = stages.table(total)
    watching = sum(stages.calls.values()) * stages.cost / total * 1e6
    found["the loop itself: reading, writing, hearing from the worker"] = max(
        0.0, whole["loop_us"] - watching - sum(found.values())
    )
    return found


def show_hub(args: argparse.Namespace) -> dict[str, Any]:
    print(f"\nHub: CPU per request, {TOKENS.nbytes} bytes in, {OUTPUTS[0].nbytes} out (allowed: {TARGET:g} us)\n")
    print(f"{'worker':8} {'fronts':>6} {'per frame':>9} {'loop':>9} {'process':>9} {'batch':>6}")
    rows = []
    for worker in ("thread", "process"):
        for fronts, per_frame in ((1, 64), (1, 16), (4, 16), (4, 4)):
            row = median([run(hub(worker, args.requests, per_frame, fronts)) for _ in range(3)], "process_us")
            rows.append(row)
            missed = "" if row["process_us"] <= TARGET else "  over"
            print(
                f"{worker:8} {fronts:6} {per_frame:9} {row['loop_us']:6.1f} us {row['process_us']:6.1f} us "
                f"{row['mean_batch']:6.1f}{missed}",
                flush=True,
            )
    stages = run(where(args.requests, 64))
    print("\nWhere the loop's time goes (thread worker, 64 per frame)\n")
    for label, microseconds in stages.items():
        print(f"{label:58} {microseconds:5.2f} us")
    return {"rows": rows, "where": stages}


def show_large(args: argparse.Namespace) -> list[dict[str, Any]]:
    """What large inputs cost the hub, in frames and in memory that it shares with the front ends."""
    print(f"\nHub: CPU per request, {INPUTS['look'].nbytes:,} bytes in, a number out (process worker)\n")
    print(f"{'input':8} {'travels in':>10} {'fronts':>6} {'per frame':>9} {'process':>9} {'batch':>6}")
    rows = []
    for worker in ("picture", "file"):
        for shares in (False, True):
            for fronts, per_frame in ((1, 16), (4, 4)):
                total = max(1000, args.requests // 10)
                found = [run(hub(worker, total, per_frame, fronts, shares=shares)) for _ in range(3)]
                row = {**median(found, "process_us"), "shares": shares}
                rows.append(row)
                print(
                    f"{worker:8} {'memory' if shares else 'frames':>10} {fronts:6} {per_frame:9} "
                    f"{row['process_us']:6.1f} us {row['mean_batch']:6.1f}",
                    flush=True,
                )
    return rows


def run(coroutine: Any) -> Any:
    """On the loop that a service has."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(coroutine)


def median(rows: list[dict[str, Any]], key: str) -> dict[str, Any]:
    return sorted(rows, key=lambda row: row[key])[len(rows) // 2]


# ---------------------------------------------------------------------- the whole service


async def serve_until_told(fronts: int, worker: str, server: str) -> None:
    """A service in this process; the number of its port and those of its processes go to standard output."""
    door = FrontsTransport("127.0.0.1:0", fronts, server)
    async with App(HANDLERS[worker], http=door) as app:
        workers = [one.pid for one in app.status()["embed"].workers]
        told = {"port": int(door.url.rpartition(":")[2]), "fronts": [place.pid for place in door.places]}
        print(json.dumps({**told, "workers": [pid for pid in workers if pid != os.getpid()]}), flush=True)
        await asyncio.to_thread(sys.stdin.read)


def cpu(pids: list[int]) -> float:
    """Seconds of CPU that these processes have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(fronts: int, args: argparse.Namespace) -> dict[str, Any]:
    """One service under load."""
    command = [sys.executable, __file__, "--serve", str(fronts), args.worker, args.server]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        told = json.loads(service.stdout.readline())
        body = json.dumps(TOKENS.tolist()).encode()
        asked = load.question("embed", "/embed", body, "application/json")
        plan = load.Plan(told["port"], [asked], args.connections, 1.0, args.load_processes)
        load.run(plan)
        parts = {"hub": [service.pid], "fronts": told["fronts"], "workers": told["workers"]}
        before = {part: cpu(pids) for part, pids in parts.items()}
        # Read where the clients' own start lies within, which asks nothing of the service.
        tally = load.run(plan._replace(seconds=args.seconds))
        after = {part: cpu(pids) for part, pids in parts.items()}
        service.communicate("")
    count = tally.count()
    row = {
        "fronts": fronts,
        "rate": count / tally.seconds,
        "errors": count - tally.count("right"),
        "p50_ms": tally.p(0.5) * 1e3,
        "p99_ms": tally.p(0.99) * 1e3,
        "load_us": tally.load_cpu / count * 1e6,
        "load_cores": tally.load_cpu / tally.seconds,
    }
    for part in parts:
        row[f"{part}_us"] = (after[part] - before[part]) / count * 1e6
        row[f"{part}_cores"] = (after[part] - before[part]) / tally.seconds
    return row


def show_service(args: argparse.Namespace) -> list[dict[str, Any]]:
    print(
        f"\nService: {args.server}, {args.worker} worker, {args.connections} connections, {args.load_processes} "
        f"processes of clients, {args.seconds:g} s each; CPU in us per request (and in cores)\n"
    )
    print(
        f"{'fronts':>6} {'requests/s':>11} {'p50':>9} {'p99':>9} {'hub':>14} {'all fronts':>14} {'workers':>14} "
        f"{'clients':>14} {'errors':>7}"
    )
    rows = []
    for fronts in args.fronts:
        row = measure(fronts, args)
        rows.append(row)
        parts = " ".join(
            f"{row[f'{part}_us']:6.1f} ({row[f'{part}_cores']:5.2f})" for part in ("hub", "fronts", "workers", "load")
        )
        print(
            f"{fronts:6} {row['rate']:11,.0f} {row['p50_ms']:6.2f} ms {row['p99_ms']:6.2f} ms {parts} {row['errors']:7}",
            flush=True,
        )
    return rows


# ---------------------------------------------------------------------- the command


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--fronts", type=lambda text: [int(one) for one in text.split(",")], default=[1, 2])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--load-processes", type=int, default=max(1, (os.cpu_count() or 1) // 3))
    parser.add_argument("--requests", type=int, default=64_000, help="of each of the hub's measurements")
    parser.add_argument("--worker", choices=sorted(HANDLERS), default="thread")
    parser.add_argument("--server", choices=["http", "granian", "uvicorn"], default="http")
    parser.add_argument("--only", choices=["hub", "large", "service"])
    parser.add_argument("--json", type=Path, help="where to write everything as well")
    return parser.parse_args()


def main() -> None:
    args = parsed()
    found: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }
    print(f"{found['cores']} cores, Python {found['python']}")
    if args.only in (None, "hub"):
        found["hub"] = show_hub(args)
    if args.only in (None, "large"):
        found["large"] = show_large(args)
    if args.only in (None, "service"):
        found["service"] = show_service(args)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--fire", name, *numbers]:
            fire(name, *map(int, numbers))
        case ["--serve", count, worker, server]:
            run(serve_until_told(int(count), worker, server))
        case _:
            main()
