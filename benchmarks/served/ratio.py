"""What of a GPU's speed arrives at HTTP clients: items per second served over those of the bare loop.

    python benchmarks/gpu/serve_handlers.py --batches 64,256 --fronts 1,4,8,10 --seconds 5

The bare loop has host arrays in and out, the same batch, one process, and nothing else to do. `--tiny` runs small models on
the CPU, to see that everything is there.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "peers")]

BARE = """
import sys, time, json
import numpy as np, torch
sys.path.insert(0, sys.argv[1])
import handlers as models
kind, batch, seconds = sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
device = "cuda:0" if torch.cuda.is_available() else "cpu"
rng = np.random.default_rng(0)
if kind == "bert":
    model, step = models.load_bert(device), models.embed_batch
    inputs = rng.integers(0, 30000, (batch, models.TOKENS))
else:
    model, step = models.load_resnet(device), models.classify_batch
    inputs = rng.integers(0, 256, (batch, models.SIDE, models.SIDE, 3), dtype=np.uint8)
host = torch.from_numpy(inputs)
host = host.pin_memory() if device != "cpu" else host
for _ in range(5):
    step(model, host).cpu().numpy()
times, ends = [], time.perf_counter() + seconds
while time.perf_counter() < ends:
    began = time.perf_counter()
    step(model, host).cpu().numpy()
    times.append(time.perf_counter() - began)
print(json.dumps({"per_second": batch * len(times) / sum(times), "ms": 1e3 * sorted(times)[len(times) // 2]}))
"""


def bare(kind: str, batch: int, seconds: float, environment: dict[str, str]) -> dict[str, float]:
    ran = subprocess.run(
        [sys.executable, "-c", BARE, str(HERE), kind, str(batch), str(seconds)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def body_of(handler: str) -> tuple[bytes, str]:
    import numpy as np

    rng = np.random.default_rng(1)
    if handler == "bert":
        return json.dumps(rng.integers(0, 30000, 128).tolist()).encode(), "application/json"
    pixels = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8).tobytes()
    if handler == "resnet":
        return pixels, "application/octet-stream"
    return json.dumps({"image": base64.b64encode(pixels).decode()}).encode(), "application/json"


def served(handler: str, batch: int, fronts: int, args: argparse.Namespace) -> dict[str, Any]:
    import load

    command = [
        sys.executable,
        "-c",
        "from tidegate.cli import main; main()",
        "serve",
        f"{HERE / 'handlers.py'}:{handler}",
    ]
    command += ["--http", "127.0.0.1:0", "--http-processes", str(fronts), "--server", args.server]
    process = subprocess.Popen(
        command, env=args.environment | {"BATCH": str(batch)}, stdout=subprocess.PIPE, text=True, cwd=HERE
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("curl "):
                url = line.split()[1]
                break
        else:
            raise SystemExit("the service did not start")
        port = int(url.split(":")[2].split("/")[0])
        body, content_type = body_of(handler)
        plan = load.Plan(
            port,
            [load.question(handler, f"/{handler}", body, content_type)],
            args.connections,
            2.0,
            args.load_processes,
        )
        load.run(plan)  # sizes are met, their times learned
        before = _information(port, handler)
        began = time.monotonic()
        tally = load.run(plan._replace(seconds=args.seconds))
        took = time.monotonic() - began
        after = _information(port, handler)
        batches = after["batches"] - before["batches"]
        answered = tally.count("right") or tally.count("200")
        latencies = tally.latencies.get(handler, [0.0])
        return {
            "per_second": answered / max(tally.seconds, 1e-9),
            "errors": tally.count() - answered,
            "mean_batch": (after["outcomes"].get("ok", 0) - before["outcomes"].get("ok", 0)) / max(1, batches),
            "p50_ms": 1e3 * load.percentile(latencies, 0.5),
            "p99_ms": 1e3 * load.percentile(latencies, 0.99),
            "took": took,
            "load_cores": tally.load_cpu / max(tally.seconds, 1e-9),
        }
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _information(port: int, handler: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/info", timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)["handlers"][handler]["statistics"]
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(one) for one in text.split(",")]
    parser.add_argument("--handlers", default="bert,resnet,resnet64")
    parser.add_argument("--batches", type=numbers, default=[64, 256])
    parser.add_argument("--fronts", type=numbers, default=[1, 4, 8])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=0, help="0: four batches")
    parser.add_argument("--load-processes", type=int, default=max(1, (os.cpu_count() or 1) // 5))
    parser.add_argument("--server", default="aiohttp")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.environment = {**os.environ, **({"TINY": "1"} if args.tiny else {})}
    asked = args.connections
    rows = []
    print(
        f"{'model':9} {'batch':>5} {'fronts':>6} {'items/s':>9} {'of bare':>7} {'mean batch':>10} {'p50 ms':>8} {'p99 ms':>8} {'errors':>6}"
    )
    for handler in args.handlers.split(","):
        for batch in args.batches:
            ceiling = bare("bert" if handler == "bert" else "resnet", batch, min(args.seconds, 4.0), args.environment)
            print(
                f"{handler:9} {batch:5}   bare {ceiling['per_second']:9,.0f}   1.00 {batch:10} {ceiling['ms']:8.2f}",
                flush=True,
            )
            for fronts in args.fronts:
                args.connections = asked or 4 * batch
                row = served(handler, batch, fronts, args)
                rows.append({"handler": handler, "batch": batch, "fronts": fronts, "bare": ceiling, **row})
                print(
                    f"{handler:9} {batch:5} {fronts:6} {row['per_second']:9,.0f} {row['per_second'] / ceiling['per_second']:6.2f} "
                    f"{row['mean_batch']:11.1f} {row['p50_ms']:8.1f} {row['p99_ms']:8.1f} {row['errors']:6}",
                    flush=True,
                )  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
