"""A headless Chromium, driven through its own debugging protocol: no more of it than the tests need."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.request import urlopen

from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome")


def executable() -> str | None:
    """Where Chromium is, None if it is nowhere."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Chromium:
    """`with Chromium(folder) as browser:`; one page, and what JavaScript says in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._asked = 0

    def __enter__(self) -> Self:
        program = executable()
        assert program is not None
        self._process = subprocess.Popen(
            [
                program,
                "--headless=new",
                "--no-sandbox",  # containers have no user namespaces to build one from
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--remote-debugging-port=0",
                f"--user-data-dir={self._folder}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(self._folder)},
        )
        with ExitStack() as stack:
            stack.callback(self._end)
            self._page = stack.enter_context(connect(self._address(), max_size=None))
            self._ask("Page.enable")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def visit(self, url: str) -> None:
        """Open a page and wait until it is loaded."""
        self._ask("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """What an expression is worth, awaited if it is a promise; AssertionError with what it throws."""
        answer = self._ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"]["exception"].get("description", answer))
        return answer["result"].get("value")

    def until(self, condition: str, seconds: float = 20.0) -> None:
        """Wait until an expression is true."""
        ends_at = time.monotonic() + seconds
        while not self.run(condition):
            if time.monotonic() > ends_at:
                shown = self.run("document.body.innerText")
                raise AssertionError(f"{condition} is not true after {seconds:g} s; the page shows:\n{shown}")
            self.run("new Promise((resume) => setTimeout(resume, 20))")

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _address(self) -> str:
        told = self._folder / "DevToolsActivePort"
        ends_at = time.monotonic() + 30
        while not (told.exists() and len(told.read_text().splitlines()) == 2):
            assert self._process.poll() is None, "chromium has ended"
            assert time.monotonic() < ends_at, "chromium does not listen"
            time.sleep(0.01)  # a file that another program writes
        port = told.read_text().splitlines()[0]
        with urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
            pages = [page for page in json.load(answer) if page["type"] == "page"]
        address: str = pages[0]["webSocketDebuggerUrl"]
        return address

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._asked += 1
        self._page.send(json.dumps({"id": self._asked, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._page.recv(timeout=30))
            if message.get("id") == self._asked:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
