"""A real browser at the service's pages and doors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.chromium import Chromium, executable
from tests.conftest import Serving

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(executable() is None, reason="no Chromium: apt-get install chromium"),
]

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


def url_of(printed: list[str]) -> str:
    return next(line for line in printed if line.startswith("curl ")).split()[1].rsplit("/", 1)[0]


@pytest.fixture(scope="module")
def service(serving: Serving) -> Iterator[str]:
    with serving(str(HERE / "handlers.py")) as (_, printed):
        yield url_of(printed)


def form(handler: str) -> str:
    return f"[...document.querySelectorAll('article')].find((one) => one.innerText.includes('/{handler}'))"


def test_the_docs_page_lists_the_handlers_and_sends_a_request(browser: Chromium, service: str) -> None:
    browser.visit(f"{service}/docs")
    browser.until("document.querySelectorAll('article').length === 2")
    shout = form("shout")
    browser.run(f"{shout}.querySelector('textarea').value = '\"ahoy\"'")
    browser.run(f"{shout}.querySelector('button[type=submit]').click()")
    browser.until(f"{shout}.querySelector('form pre').innerText.includes('AHOY')")
    assert "200" in browser.run(f"{shout}.querySelector('span.told').innerText")


@pytest.mark.parametrize(
    ("format", "last"), [("application/x-ndjson", '{"end":true}'), ("text/event-stream", "event: end")]
)
def test_the_docs_page_shows_a_stream_chunk_by_chunk(browser: Chromium, service: str, format: str, last: str) -> None:
    browser.visit(f"{service}/docs")
    browser.until("document.querySelectorAll('article').length === 2")
    countdown = form("countdown")
    browser.run(f"{countdown}.querySelector('textarea').value = '3'")
    browser.run(f"{countdown}.querySelector('select').value = '{format}'")
    browser.run(f"{countdown}.querySelector('button[type=submit]').click()")
    shown = f"{countdown}.querySelector('form pre').innerText"
    browser.until(f"{shown}.includes({json.dumps(last)})")
    lines = browser.run(shown)
    assert [lines.index(str(n)) for n in (3, 2, 1)] == sorted(lines.index(str(n)) for n in (3, 2, 1))


def test_an_error_is_shown_with_its_reason(browser: Chromium, service: str) -> None:
    browser.visit(f"{service}/docs")
    browser.until("document.querySelectorAll('article').length === 2")
    shout = form("shout")
    browser.run(f"{shout}.querySelector('textarea').value = '17'")
    browser.run(f"{shout}.querySelector('button[type=submit]').click()")
    browser.until(f"{shout}.querySelector('form pre').innerText.includes('invalid-input')")


def test_a_service_with_keys_asks_for_one_and_takes_it(browser: Chromium, serving: Serving) -> None:
    with serving(str(HERE / "handlers.py"), env={"TIDEGATE_API_KEY": "open sesame"}) as (_, printed):
        browser.visit(f"{url_of(printed)}/docs")
        browser.until("document.body.innerText.includes('needs an API key')")
        browser.run(
            "(() => { const key = document.querySelector('#ask input'); key.value = 'open sesame'; "
            "key.dispatchEvent(new Event('change')); })()"
        )
        browser.until("document.querySelectorAll('article').length === 2")


def test_the_page_loads_nothing_from_elsewhere(browser: Chromium, service: str) -> None:
    browser.visit(f"{service}/docs")
    browser.until("document.querySelectorAll('article').length === 2")
    hosts = browser.run("performance.getEntriesByType('resource').map((one) => new URL(one.name).host)")
    assert set(hosts) <= {service.removeprefix("http://")}


def test_a_browsers_websocket_streams_and_calls_on_one_connection(browser: Chromium, service: str) -> None:
    browser.visit(f"{service}/docs")
    frames = browser.run(
        """new Promise((resolve, reject) => {
          const socket = new WebSocket(location.origin.replace("http", "ws") + "/countdown", ["tidegate.v1"]);
          const frames = [];
          socket.onerror = () => reject(new Error("no connection"));
          socket.onopen = () => {
            socket.send(JSON.stringify({ id: 1, input: 3 }));
            socket.send(JSON.stringify({ id: 2, handler: "shout", input: "ahoy" }));
          };
          socket.onmessage = (event) => {
            frames.push(JSON.parse(event.data));
            const ended = frames.filter((frame) => frame.end || "output" in frame).length;
            if (ended === 2) { socket.close(); resolve({ frames, protocol: socket.protocol }); }
          };
        })"""
    )
    assert frames["protocol"] == "tidegate.v1"
    assert [frame["chunk"] for frame in frames["frames"] if "chunk" in frame] == [3, 2, 1]
    assert [frame["output"] for frame in frames["frames"] if "output" in frame] == ["AHOY"]
