"""A service while it runs: started, asked, its processes counted, stopped."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from contenders import HERE, Contender
from workloads import Body, Workload

__all__ = ["Running", "WrongAnswer", "run"]

STARTS_WITHIN = 60.0


class WrongAnswer(Exception):
    """A service said something else than the right answer."""


class Running:
    """One contender serving one workload."""

    def __init__(self, contender: Contender, workload: Workload, process: subprocess.Popen[bytes], port: int) -> None:
        self.contender = contender
        self.workload = workload
        self.port = port
        self.path = contender.path(workload.name)
        self._process = process

    def body(self, seed: int) -> Body:
        """The request with this seed's value."""
        return self.contender.request_body(self.workload, self.workload.value(seed))

    def ask(self, body: Body) -> tuple[int, bytes]:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", self.path, body.content, {"Content-Type": body.content_type})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def check(self, count: int, first: int = 0) -> None:
        """Ask `count` different things at once; raises WrongAnswer unless each gets its own right answer."""
        with ThreadPoolExecutor(min(count, 16)) as threads:
            list(threads.map(self._check_one, range(first, first + count)))

    def _check_one(self, seed: int) -> None:
        value = self.workload.value(seed)
        who = f"{self.contender.name}, {self.workload.name}"
        try:
            status, body = self.ask(self.contender.request_body(self.workload, value))
        except (OSError, http.client.HTTPException) as error:
            raise WrongAnswer(f"{who}: no answer to seed {seed}: {type(error).__name__}: {error}") from None
        if status != 200:
            raise WrongAnswer(f"{who}: status {status}: {body[:300]!r}")
        answer: Any = self.contender.answer_of(json.loads(body))
        if not self.workload.is_right(value, answer):
            raise WrongAnswer(f"{who}: the answer to seed {seed} is {body[:300]!r}")

    def processes(self) -> list[psutil.Process]:
        """All of them, the tree's root first."""
        try:
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def cpu_seconds(self) -> float:
        """What its processes have used so far, user and system."""
        spent = 0.0
        for process in self.processes():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            spent += times.user + times.system
        return spent

    def memory(self) -> int:
        """Bytes that are its processes' own, shared ones counted once in each."""
        return sum(process.memory_info().rss for process in self.processes())

    def stop(self) -> None:
        """End it and whatever it has started."""
        family = self.processes()
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(1.5)
        except subprocess.TimeoutExpired:
            pass
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self._process.wait()


@contextmanager
def run(contender: Contender, workload: Workload, log: Path | None = None) -> Iterator[Running]:
    """Start it, wait until it answers right, stop it afterwards."""
    port = _free_port()
    variables = {**os.environ, "WORKLOAD": workload.name, "PYTHONPATH": str(HERE), **dict(contender.variables)}
    with open(log or os.devnull, "ab") as output:
        process = subprocess.Popen(
            contender.command(workload.name, port),
            env=variables,
            cwd=HERE,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    running = Running(contender, workload, process, port)
    try:
        _await_answers(running, process)
        running.check(32)
        yield running
    finally:
        running.stop()


def _await_answers(running: Running, process: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + STARTS_WITHIN
    body = running.body(0)
    problem: object = "nothing listens"
    while time.monotonic() < ends:
        if process.poll() is not None:
            raise RuntimeError(f"{running.contender.name} ended with {process.returncode} before it answered")
        try:
            status, answer = running.ask(body)
        except (OSError, http.client.HTTPException) as error:
            problem = error
        else:
            if status == 200:
                return
            problem = status, answer[:300]
        time.sleep(0.1)
    raise RuntimeError(f"{running.contender.name} does not answer: {problem}")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
