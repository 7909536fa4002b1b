"""Probes, /info and the page for people, as a caller reads them."""

import base64
import gzip
import json
import re
from hashlib import sha256
from typing import Any

import numpy as np
import pytest

from tidegate import App, serve
from tidegate.status import HandlerStatus, WorkerState, WorkerStatus
from tidegate_transports.docs_page import docs_page
from tidegate_transports.exchange import Exchange, HTTPOptions, Request, Response

pytestmark = pytest.mark.anyio


def load(device: str) -> str:
    return device


@serve(max_batch_size=8, worker="thread", setup=load, forward_headers=["X-Tenant"], warmup=np.zeros(2))
def double(model: str, x: np.ndarray) -> np.ndarray:
    """Twice as much."""
    return x * 2


@serve(worker="thread")
def shout(text: str) -> str:
    return text.upper()


class Pretending(App):
    """An app whose workers are in these states."""

    def __init__(self, *states: WorkerState, alive: bool = True) -> None:
        super().__init__(double, shout)
        ready = WorkerStatus("cpu", "thread", "ready", 1)
        workers = tuple(WorkerStatus("cuda:0", "process", state, 2, uuids=("GPU-7",)) for state in states)
        self.pretended = {"double": HandlerStatus(workers, alive), "shout": HandlerStatus((ready,))}

    def status(self) -> dict[str, HandlerStatus]:
        return self.pretended

    @property
    def ready(self) -> bool:
        return not self.draining and all(status.ready for status in self.pretended.values())

    @property
    def alive(self) -> bool:
        return all(status.alive for status in self.pretended.values())


async def got(app: App, path: str, options: HTTPOptions | None = None, **headers: str) -> Response:
    names = {name.replace("_", "-").lower(): value for name, value in headers.items()}
    return await Exchange(app, options).respond(Request("GET", path, names))


async def read(app: App, path: str) -> tuple[int, Any]:
    response = await got(app, path)
    assert response.content_type == "application/json"
    assert response.headers["Cache-Control"] == "no-store"
    return response.status, json.loads(response.body)


# ---------------------------------------------------------------------- probes


async def test_a_service_with_a_ready_worker_for_each_handler_is_ready() -> None:
    async with App(double, shout) as app:
        handlers = {name: {"ready": True, "workers": {"ready": 1}} for name in ("double", "shout")}
        assert await read(app, "/readyz") == (200, {"status": "ready", "handlers": handlers})
        for path in ("/health", "/healthz"):
            assert await read(app, path) == (200, {"status": "ok", "handlers": ["double", "shout"]})
        assert await read(app, "/livez") == (200, {"status": "alive"})


async def test_what_is_missing_is_told_handler_by_handler() -> None:
    status, found = await read(Pretending("starting", "restarting", "starting"), "/readyz")
    assert (status, found["status"]) == (503, "not ready")
    assert found["handlers"]["shout"] == {"ready": True, "workers": {"ready": 1}}
    assert found["handlers"]["double"]["ready"] is False
    assert found["handlers"]["double"]["missing"] == "no worker is ready: 2 starting, 1 restarting"
    assert (await read(Pretending("lost"), "/health"))[0] == 503


async def test_an_app_that_was_not_started_is_not_ready_and_lives() -> None:
    status, found = await read(App(double), "/readyz")
    assert (status, found["handlers"]["double"]["missing"]) == (503, "its workers have not been started")
    assert (await read(App(double), "/livez"))[0] == 200


async def test_an_app_that_is_asked_to_stop_is_not_ready_but_alive() -> None:
    app = Pretending("ready")
    assert (await read(app, "/readyz"))[0] == 200
    app.draining = True
    assert await read(app, "/health") == (503, {"status": "draining", "handlers": ["double", "shout"]})
    status, found = await read(app, "/readyz")
    assert (status, found["status"]) == (503, "draining")
    assert (await read(app, "/livez"))[0] == 200


async def test_only_what_a_new_process_alone_can_cure_is_death() -> None:
    assert (await read(Pretending("restarting"), "/livez"))[0] == 200
    status, found = await read(Pretending("ready", alive=False), "/livez")
    assert (status, found["status"], found["handlers"]) == (503, "not alive", ["double"])


# ---------------------------------------------------------------------- info


async def test_info_tells_all_that_is_served_and_how_it_goes() -> None:
    async with App(double, shout) as app:
        await app.call("double", np.zeros(2))
        _, found = await read(app, "/info")
    assert (found["ready"], found["draining"]) == (True, False)
    told = found["handlers"]["double"]
    assert (told["path"], told["batched"], told["streams"], told["ready"]) == ("/double", True, False, True)
    assert told["options"]["max_batch_size"] == 8
    assert told["options"]["setup"] == "load"
    assert told["options"]["forward_headers"] == ["x-tenant"]
    assert "warmup" not in told["options"]
    assert told["input_schema"]["type"] == "array"
    assert told["statistics"]["outcomes"] == {"ok": 1}
    assert told["workers"][0]["state"] == "ready"
    assert found["handlers"]["shout"]["output_schema"] == {"type": "string"}


async def test_info_of_an_app_that_was_not_started_is_told_too() -> None:
    _, found = await read(App(double), "/info")
    assert found["handlers"]["double"]["statistics"] is None
    assert found["handlers"]["double"]["workers"] == []


async def test_options_of_any_kind_have_a_form() -> None:
    @serve(max_batch_size=2, cost=len, max_batch_cost=7, devices=["cpu"], worker="thread")
    def odd(x: list[str]) -> list[str]:
        return x

    _, found = await read(App(odd), "/info")
    options = found["handlers"]["odd"]["options"]
    assert (options["cost"], options["devices"]) == ("len", ["cpu"])


# ---------------------------------------------------------------------- the page for people


async def test_the_page_may_run_its_own_script_and_nothing_else() -> None:
    response = await got(App(shout), "/docs")
    assert (response.status, response.content_type) == (200, "text/html; charset=utf-8")
    policy = dict(part.strip().split(" ", 1) for part in response.headers["Content-Security-Policy"].split(";"))
    for kind in ("script", "style"):
        (inline,) = re.findall(rf"<{kind}>(.*?)</{kind}>", response.body.decode(), re.DOTALL)
        digest = base64.b64encode(sha256(inline.encode()).digest()).decode()
        assert policy[f"{kind}-src"] == f"'sha256-{digest}'"
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["X-Frame-Options"] == "DENY"
    assert response.headers["Referrer-Policy"] == "no-referrer"


def test_the_page_needs_no_network_and_holds_no_markup_that_the_policy_forbids() -> None:
    page = docs_page()[0].decode()
    assert len(page.splitlines()) < 250
    assert not re.search(r"https?://|//[a-z]+\.[a-z]|@import|url\(", page)
    assert not re.search(r"\son[a-z]+=\"|\sstyle=|javascript:|<script [^>]|<link[^>]+stylesheet", page)
    # What a handler says of itself is text, never markup.
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", page)


async def test_the_page_can_be_switched_off() -> None:
    assert (await got(App(shout), "/docs", HTTPOptions(docs=False))).status == 404
    assert (await got(App(shout), "/docs", HTTPOptions(docs=False, api_keys=["k"]), Accept="text/html")).status == 401


async def test_long_pages_are_compressed_for_who_asks() -> None:
    plain = await got(App(shout), "/docs")
    small = await got(App(shout), "/docs", Accept_Encoding="gzip")
    assert gzip.decompress(small.body) == plain.body
    assert small.headers["Vary"] == plain.headers["Vary"] == "Accept-Encoding"
    assert len(small.body) < len(plain.body) / 2
