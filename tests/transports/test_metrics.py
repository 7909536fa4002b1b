import asyncio
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tidegate import App, serve
from tidegate.nvml import Usage
from tidegate.status import HandlerStatus, WorkerStatus
from tidegate_batching import HTTPError
from tidegate_transports.exchange import Exchange, HTTPOptions, Request, Response
from tidegate_transports.metrics import DOCUMENTED, Metrics, Tally

pytestmark = pytest.mark.anyio


@serve(max_batch_size=4, worker="thread")
def square(x: list[int]) -> list[int | Exception]:
    return [n * n if n >= 0 else HTTPError(409, "below zero") for n in x]


def samples(written: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every value by its name and labels, as Prometheus reads it."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(written.decode())
        for sample in family.samples
    }


def of(found: dict[Any, float], name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


async def test_what_happened_is_counted_by_how_it_ended() -> None:
    async with App(square) as app:
        exchange = Exchange(app)
        bodies = [b"1", b"2", b"-3", b"", b"4"]
        await asyncio.gather(*(exchange.respond(Request("POST", "/square", {}, body)) for body in bodies))
        await exchange.respond(Request("GET", "/nowhere", {}))
        found = samples((await exchange.respond(Request("GET", "/metrics", {}))).body)
    assert of(found, "tidegate_requests_total", handler="square", outcome="ok") == 3
    assert of(found, "tidegate_requests_total", handler="square", outcome="handler-refused") == 1
    for status, count in (("200", 3), ("409", 1), ("400", 1)):
        assert of(found, "tidegate_http_requests_total", handler="square", status=status) == count
    assert of(found, "tidegate_http_requests_total", handler="", status="404") == 1
    for name in ("queue", "run"):
        assert of(found, f"tidegate_{name}_seconds_count", handler="square") == 3
        assert of(found, f"tidegate_{name}_seconds_bucket", handler="square", le="+Inf") == 3
    assert of(found, "tidegate_request_seconds_count", handler="square") == 5
    batches = sum(value for (name, _), value in found.items() if name == "tidegate_batches_total")
    assert of(found, "tidegate_batch_size_count", handler="square") == batches
    assert of(found, "tidegate_batch_size_sum", handler="square") == 4
    assert of(found, "tidegate_queue_depth", handler="square") == 0
    assert of(found, "tidegate_batches_running", handler="square") == 0
    assert of(found, "tidegate_workers", handler="square", state="ready") == 1
    assert of(found, "tidegate_workers", handler="square", state="lost") == 0
    assert of(found, "tidegate_ready") == 1


async def test_buckets_only_ever_grow() -> None:
    async with App(square) as app:
        tally = Tally()
        for seconds in (0.0001, 0.0005, 0.7, 100.0):
            tally.took("square", seconds)
        for n in range(3):
            await app.call("square", n)
        await asyncio.gather(*(app.call("square", n) for n in range(20)))
        assert max(app.statistics()["square"].batch_sizes.values()) > 1
        written, _ = Metrics().write(replace(await app.overview(), doors=tally.counts()), None)
    buckets: dict[str, list[tuple[float, float]]] = {}
    for (name, labels), value in samples(written).items():
        if name.endswith("_bucket"):
            buckets.setdefault(name, []).append((float(dict(labels)["le"]), value))
    assert len(buckets) == 4
    assert dict(buckets["tidegate_batch_size_bucket"])[float("inf")] == app.statistics()["square"].batches
    for name, found in buckets.items():
        values = [value for _, value in sorted(found)]
        assert values == sorted(values), name
    seconds_buckets = dict(buckets["tidegate_request_seconds_bucket"])
    assert (seconds_buckets[0.0005], seconds_buckets[0.5], seconds_buckets[30], seconds_buckets[float("inf")]) == (
        2,
        2,
        3,
        4,
    )


async def test_every_metric_is_documented_with_its_kind_and_labels_and_every_documented_one_is_there() -> None:
    devices = {"cuda:0": Usage(10, 6, 0.25, 51.0), "cuda:1": Usage(None, None, None, None)}
    async with App(square) as app:
        await app.call("square", 1)
        tally = Tally()
        tally.answered("square", 200)
        overview = replace(await app.overview(), doors=tally.counts(), devices=devices)
        written, content_type = Metrics().write(overview, None)
    assert content_type.startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(written.decode())}
    ours = {name for name in families if name.startswith("tidegate_")}
    assert ours == {name.removesuffix("_total") for name in DOCUMENTED}
    for name, (kind, labels, meaning) in DOCUMENTED.items():
        family = families[name.removesuffix("_total")]
        assert (family.type, family.documentation) == (kind, meaning)
        assert {label for sample in family.samples for label in sample.labels} - {"le"} == set(labels)
    found = samples(written)
    assert of(found, "tidegate_device_memory_bytes", device="cuda:0", kind="used") == 10
    assert of(found, "tidegate_device_utilisation_ratio", device="cuda:0") == 0.25
    assert "cuda:1" not in written.decode()
    assert "process_resident_memory_bytes" in families


async def test_workers_are_counted_by_state() -> None:
    worker = WorkerStatus("cpu", "process", "restarting", 1, restarts=3)
    overview = replace(await App(square).overview(), status={"square": HandlerStatus((worker, worker))})
    found = samples(Metrics().write(overview, None)[0])
    assert of(found, "tidegate_workers", handler="square", state="restarting") == 2
    assert of(found, "tidegate_worker_restarts_total", handler="square") == 6
    assert of(found, "tidegate_ready") == 0


async def asked(app: App, options: HTTPOptions | None = None, **headers: str) -> Response:
    names = {name.replace("_", "-").lower(): value for name, value in headers.items()}
    return await Exchange(app, options).respond(Request("GET", "/metrics", names))


async def test_openmetrics_is_written_for_who_asks_for_it() -> None:
    app = App(square)
    response = await asked(app, Accept="application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert response.content_type.startswith("application/openmetrics-text")
    assert response.body.endswith(b"# EOF\n")
    assert response.headers["Vary"].startswith("Accept")
    assert (await asked(app, Accept="*/*")).content_type.startswith("text/plain")


async def test_metrics_can_be_switched_off() -> None:
    assert (await asked(App(square), HTTPOptions(metrics=False))).status == 404


def test_the_client_library_is_loaded_when_somebody_asks() -> None:
    code = (
        "import asyncio, sys\n"
        "from tidegate import App, serve\n"
        "from tidegate_transports.exchange import Exchange, Request\n"
        "exchange = Exchange(App(serve(name='f')(lambda x: x)))\n"
        "asyncio.run(exchange.respond(Request('GET', '/docs', {})))\n"
        "assert 'prometheus_client' not in sys.modules\n"
        "asyncio.run(exchange.respond(Request('GET', '/metrics', {})))\n"
        "assert 'prometheus_client' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
