"""Text that is written letter by letter, for many readers at once: a batched generator behind a WebSocket.

Run it, and open the page that it names:

    python examples/token_stream.py

or ask it from another terminal, with several prompts on one connection:

    python examples/token_stream.py ask "The class " "A function "

The model has read Python's own documentation when it is set up, which takes it half a second. Of the places where it has
seen the last letters before it takes one, and writes what came next there; so it sounds right, and makes no sense.
"""

import argparse
import asyncio
import shutil
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pydoc_data.topics import topics  # a dict of texts, for help()
from typing import Annotated, NamedTuple

import numpy as np
from aiohttp import web
from msgspec import Meta, Struct

from tidegate import END, App, Client, run, serve
from tidegate_transports.address import parse_address
from tidegate_transports.client_script import client_script
from tidegate_transports.websocket_aiohttp import is_upgrade, upgrade
from tidegate_transports.websocket_handshake import WebSockets

# ---------------------------------------------------------------------- the model

ALPHABET = "\n " + "".join(map(chr, range(33, 127)))
CODES = {letter: code for code, letter in enumerate(ALPHABET)}
SIZE = len(ALPHABET)

MEMORY = 9
"""Letters that are remembered: as many as a number of 64 bits has digits in a system of 96."""

PLACES = 3
"""A context counts that was seen so often; of fewer places the text would be known by heart."""

PAUSE = 0.01
"""Seconds that a letter takes. A larger model needs no such line."""

# The last letter is the first digit: contexts that end alike stand side by side.
DIGITS = SIZE ** np.arange(MEMORY, dtype=np.int64)


class Model(NamedTuple):
    """Every context of the text as a number, in order, and the letter that came next."""

    contexts: np.ndarray
    following: np.ndarray


def encoded(text: str) -> np.ndarray:
    return np.array([CODES.get(letter, CODES[" "]) for letter in text], np.int64)


def read_documentation(device: str) -> Model:
    text = encoded("\n".join(topics.values()))
    contexts = np.lib.stride_tricks.sliding_window_view(text[:-1], MEMORY) @ DIGITS
    order = np.argsort(contexts, kind="stable")
    return Model(contexts[order], text[MEMORY:][order])


def next_letters(model: Model, memory: np.ndarray) -> np.ndarray:
    """Last letters (N, 9) to the next of each (N,): by the longest context that was seen in several places."""
    contexts = memory @ DIGITS
    low, high = np.zeros_like(contexts), np.full_like(contexts, len(model.contexts))
    for known in range(1, MEMORY + 1):
        unit = SIZE ** (MEMORY - known)
        begin = contexts // unit * unit
        first, last = np.searchsorted(model.contexts, begin), np.searchsorted(model.contexts, begin + unit)
        seen = last - first >= PLACES
        low, high = np.where(seen, first, low), np.where(seen, last, high)
    chosen: np.ndarray = model.following[np.random.default_rng().integers(low, high)]
    return chosen


# ---------------------------------------------------------------------- the handler


class Prompt(Struct):
    """How the text begins, and how many letters follow."""

    text: str
    length: Annotated[int, Meta(ge=1, le=5000)] = 300


@serve(max_batch_size=32, setup=read_documentation)
def generate(model: Model, prompts: list[Prompt]) -> Iterator[list[object]]:
    """A letter for each prompt at every step, and END for one that has all of its own."""
    memory = np.stack([encoded(prompt.text.rjust(MEMORY)[-MEMORY:]) for prompt in prompts])
    for step in range(max(prompt.length for prompt in prompts) + 1):
        letters = next_letters(model, memory)
        memory = np.column_stack([memory[:, 1:], letters])
        yield [
            ALPHABET[letter] if step < prompt.length else END for letter, prompt in zip(letters, prompts, strict=True)
        ]
        time.sleep(PAUSE)


# ---------------------------------------------------------------------- a page, at the port of its WebSocket

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>token stream</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem }
  textarea { width: 100%; font: inherit }
  pre { white-space: pre-wrap; background: #8881; padding: .5rem; min-height: 3rem }
  b { color: #06c }
</style>
<h1>Letter by letter</h1>
<p>One prompt a line; they are written at the same time, on one connection.</p>
<textarea id="prompts" rows="4">The class
A function
When an exception is raised
If the argument</textarea>
<p><button id="go">Write</button> <button id="stop">Stop</button></p>
<div id="texts"></div>
<script type="module">
  import { Client } from "/client.js";
  const client = new Client("/generate");
  const [prompts, texts] = ["prompts", "texts"].map((id) => document.getElementById(id));
  let writing = new AbortController();

  async function write(text, signal) {
    const box = texts.appendChild(document.createElement("pre"));
    box.appendChild(document.createElement("b")).textContent = text;
    try {
      for await (const letter of client.stream({ text, length: 400 }, { signal })) box.append(letter);
    } catch (error) {
      if (error.name !== "AbortError") box.append(` [${error.message}]`);
    }
  }

  document.getElementById("stop").onclick = () => writing.abort();
  document.getElementById("go").onclick = () => {
    writing.abort();
    writing = new AbortController();
    texts.replaceChildren();
    for (const line of prompts.value.split("\\n")) if (line.trim()) write(line.trimEnd() + " ", writing.signal);
  };
</script>
</html>
"""


class Page:
    """A door of one's own: the page, its script, and the WebSocket that they talk to."""

    def __init__(self, address: str) -> None:
        self._address = parse_address(address)
        self.url = f"http://{self._address}"

    @asynccontextmanager
    async def serve(self, app: App) -> AsyncIterator[None]:
        sockets = WebSockets(app)

        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            if is_upgrade(request):
                return await upgrade(request, sockets)
            if request.path == "/client.js":
                return web.Response(body=client_script(), content_type="text/javascript")
            return web.Response(text=PAGE, content_type="text/html")

        runner = web.ServerRunner(web.Server(answer, handler_cancellation=True))
        await runner.setup()
        try:
            await web.TCPSite(runner, *self._address).start()
            self.url = f"http://{self._address._replace(port=runner.addresses[0][1])}"
            print(f"open {self.url}, or run: python {sys.argv[0]} ask --url {self.url} 'The class '", flush=True)
            yield
            await sockets.drain()
        finally:
            await runner.cleanup()


# ---------------------------------------------------------------------- a client for the terminal


class Screen:
    """One line per text, of which a terminal shows the end; elsewhere each is printed when it is complete."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts
        self._live = sys.stdout.isatty()
        if self._live:
            print("\n" * len(texts), end="")

    def add(self, number: int, letter: str) -> None:
        self._texts[number] += letter
        if self._live:
            up = len(self._texts) - number
            shown = self._texts[number].replace("\n", " ")[1 - shutil.get_terminal_size().columns :]
            print(f"\x1b[{up}A\r\x1b[K{shown}\x1b[{up}B\r", end="", flush=True)

    def end(self, number: int) -> None:
        if not self._live:
            print(self._texts[number].replace("\n", " "), flush=True)


async def ask(url: str, prompts: list[str], length: int) -> None:
    screen = Screen(list(prompts))

    async def read(number: int, prompt: str) -> None:
        async for letter in client.stream({"text": prompt, "length": length}):
            screen.add(number, letter)
        screen.end(number)

    async with Client(f"{url.replace('http', 'ws', 1)}/generate") as client, asyncio.TaskGroup() as tasks:
        for number, prompt in enumerate(prompts):
            tasks.create_task(read(number, prompt))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command")
    serving = commands.add_parser("serve", help="the service and its page; the default")
    asking = commands.add_parser("ask", help="write what follows several prompts")
    asking.add_argument("prompts", nargs="+")
    asking.add_argument("--length", type=int, default=300)
    asking.add_argument("--url", default="http://127.0.0.1:8000")
    serving.add_argument("--address", default="127.0.0.1:8000")
    arguments = parser.parse_args(sys.argv[1:] or ["serve"])
    if arguments.command == "ask":
        asyncio.run(ask(arguments.url, arguments.prompts, arguments.length))
    else:
        run(generate, page=Page(arguments.address))


if __name__ == "__main__":
    main()
