"""A load generator for one machine: processes with raw sockets and prebuilt requests, each answer compared byte by byte.

It needs the standard library alone, so that it runs where nothing is installed. Closed loop: every connection asks again
as soon as it is answered. Open loop (`rate`): requests come when they come, latency counts from then on. Some clients may
leave before they are answered (`leaves`). What it costs itself is part of the result, to see that it was not the limit.
"""

from __future__ import annotations

import gc
import heapq
import os
import pickle
import random
import select
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Plan", "Question", "Tally", "percentile", "question", "run"]

PATIENCE = 60.0
"""Seconds that the answers still under way at the end are waited for."""


class Question(NamedTuple):
    """A whole HTTP request. right: the body of the right answer, None if only the status counts."""

    kind: str
    request: bytes
    right: bytes | None = None


def question(kind: str, path: str, body: bytes, content_type: str, right: bytes | None = None) -> Question:
    """The request as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return Question(kind, head.encode() + body, right)


class Plan(NamedTuple):
    """What one run does. shares: how often each question is asked, evenly if empty."""

    port: int
    questions: Sequence[Question]
    connections: int
    seconds: float
    processes: int = 1
    rate: float | None = None
    shares: Sequence[float] = ()
    leaves: float = 0.0
    leaves_after: float = 0.0
    drains: float = PATIENCE
    bursts: Sequence[tuple[float, int]] = ()
    """Besides or instead of a rate: (seconds from the start, requests at once)."""


@dataclass
class Tally:
    """What came of a run. outcomes: (kind, outcome) -> count; an outcome is right, wrong, left, lost, missed or a status."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    latencies: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    load_cpu: float = 0.0

    def count(self, outcome: str | None = None, kind: str | None = None) -> int:
        """How many had that outcome, of that kind."""
        return sum(
            number
            for (its_kind, its_outcome), number in self.outcomes.items()
            if outcome in (None, its_outcome) and kind in (None, its_kind)
        )

    def rate(self) -> float:
        """Right answers per second."""
        return self.count("right") / self.seconds

    def p(self, share: float, kind: str | None = None) -> float:
        """That percentile of the right answers' latency, in seconds; not a number if there are none."""
        found = [one for its_kind, times in self.latencies.items() if kind in (None, its_kind) for one in times]
        return percentile(found, share)

    def add(self, other: Tally) -> None:
        """Take in what another process has counted."""
        self.outcomes += other.outcomes
        for kind, times in other.latencies.items():
            self.latencies.setdefault(kind, []).extend(times)
        self.seconds = max(self.seconds, other.seconds)
        self.load_cpu += other.load_cpu


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which that share lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def run(plan: Plan) -> Tally:
    """Carry it out, spread over `plan.processes`."""
    processes = min(plan.processes, plan.connections)
    workers = []
    for number in range(processes):
        share = plan.connections // processes + (number < plan.connections % processes)
        part = plan._replace(connections=share, rate=plan.rate and plan.rate / processes)
        # Not by multiprocessing: that would import whatever the caller's script imports.
        worker = subprocess.Popen([sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert worker.stdin is not None
        worker.stdin.write(pickle.dumps((part, number)))
        worker.stdin.flush()
        workers.append(worker)
    total = Tally()
    # All have connected before the first one asks.
    for worker in workers:
        assert worker.stdout is not None
        worker.stdout.read(1)
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(b"!")
        worker.stdin.close()
    for worker in workers:
        assert worker.stdout is not None
        total.add(pickle.load(worker.stdout))
        worker.stdout.close()
        if worker.wait():
            raise RuntimeError(f"a process of the load generator ended with {worker.returncode}")
    return total


_CHILD = f"import sys; sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r}); import load; load.work()"


def work() -> None:
    """One process's part: what to do comes on standard input, what came of it goes to standard output."""
    plan, number = pickle.load(sys.stdin.buffer)
    gc.disable()
    loop = _Loop(plan, number)
    output = sys.stdout.buffer
    output.write(b"r")
    output.flush()
    sys.stdin.buffer.read(1)
    pickle.dump(loop.run(), output)
    output.flush()


class _Client:
    """One connection and what is under way on it."""

    __slots__ = ("asked", "asked_at", "chunks", "left_to_send", "missing", "serial", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.asked: Question | None = None
        self.asked_at = 0.0
        self.left_to_send = memoryview(b"")
        self.chunks = b""
        self.missing = 0
        self.serial = 0


class _Loop:
    """One process's connections."""

    def __init__(self, plan: Plan, number: int) -> None:
        self._plan = plan
        self._random = random.Random(number)
        self._poll = select.epoll()
        self._clients: dict[int, _Client] = {}
        self._idle: list[_Client] = []
        self._leaving: list[tuple[float, int, int, _Client]] = []
        self._serial = 0
        self._in_flight = 0
        self._arrivals = sorted((when, count) for when, count in plan.bursts)
        self.tally = Tally()
        # In open loop connections are opened as they are needed.
        if plan.rate is None and not plan.bursts:
            for _ in range(plan.connections):
                self._idle.append(self._connect())

    def run(self) -> Tally:
        plan, clock = self._plan, time.perf_counter
        cpu = time.process_time()
        start = clock()
        ends = start + plan.seconds
        opened = plan.rate is not None or bool(plan.bursts)
        due = start + (self._random.expovariate(plan.rate) if plan.rate else plan.seconds + 1)
        if not opened:
            idle, self._idle = self._idle, []
            for client in idle:
                self._ask(client, start)
        while True:
            now = clock()
            if now >= ends:
                break
            while due <= now:
                self._arrive(due)
                due += self._random.expovariate(plan.rate or 1.0)
            while self._arrivals and start + self._arrivals[0][0] <= now:
                when, count = self._arrivals.pop(0)
                for _ in range(count):
                    self._arrive(start + when)
            next_at = min(ends, due, start + self._arrivals[0][0] if self._arrivals else ends)
            self._turn(next_at - now, again=not opened)
        self.tally.seconds = clock() - start
        self.tally.load_cpu = time.process_time() - cpu
        self._drain(clock() + plan.drains if opened else 0.0)
        for client in self._clients.values():
            client.sock.close()
        return self.tally

    def _drain(self, until: float) -> None:
        """What was asked in time counts, also when its answer comes later; in closed loop there is no later."""
        while self._in_flight and time.perf_counter() < until:
            self._turn(0.05, again=False)
        for client in self._clients.values():
            if client.asked is not None and until:
                self.tally.outcomes[client.asked.kind, "lost"] += 1

    def _turn(self, wait: float, again: bool) -> None:
        if self._leaving:
            wait = min(wait, self._leaving[0][0] - time.perf_counter())
        for number, events in self._poll.poll(max(0.0, wait), 256):
            client = self._clients.get(number)
            if client is None:
                continue
            if events & select.EPOLLOUT:
                self._send_more(client)
            if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                self._read(client, again)
        if self._leaving:
            self._let_go(again)

    # ------------------------------------------------------------------ asking

    def _connect(self) -> _Client:
        sock = socket.create_connection(("127.0.0.1", self._plan.port), timeout=10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        client = self._clients[sock.fileno()] = _Client(sock)
        self._poll.register(sock.fileno(), select.EPOLLIN)
        return client

    def _arrive(self, when: float) -> None:
        if self._idle:
            self._ask(self._idle.pop(), when)
        elif len(self._clients) < self._plan.connections:
            try:
                client = self._connect()
            except OSError:
                self.tally.outcomes["", "refused"] += 1
                return
            self._ask(client, when)
        else:
            self.tally.outcomes["", "missed"] += 1

    def _ask(self, client: _Client, when: float) -> None:
        plan = self._plan
        if plan.shares:
            asked = self._random.choices(plan.questions, plan.shares)[0]
        elif len(plan.questions) == 1:
            asked = plan.questions[0]
        else:
            asked = plan.questions[self._serial % len(plan.questions)]
        self._serial += 1
        client.asked, client.asked_at, client.serial = asked, when, self._serial
        client.chunks, client.missing = b"", 0
        self._in_flight += 1
        if plan.leaves and self._random.random() < plan.leaves:
            heapq.heappush(self._leaving, (when + plan.leaves_after, self._serial, self._serial, client))
        client.left_to_send = memoryview(asked.request)
        self._send_more(client)

    def _send_more(self, client: _Client) -> None:
        try:
            sent = client.sock.send(client.left_to_send)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # reading tells
        before = client.left_to_send
        client.left_to_send = before[sent:]
        if client.left_to_send:
            self._poll.modify(client.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)
        elif client.asked is not None and len(before) < len(client.asked.request):
            self._poll.modify(client.sock.fileno(), select.EPOLLIN)

    # ------------------------------------------------------------------ being answered

    def _read(self, client: _Client, again: bool) -> None:
        try:
            data = client.sock.recv(262_144)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._ended(client, "lost", again)
            return
        if client.chunks:
            data = client.chunks = client.chunks + data
        if len(data) < client.missing:
            return
        end = data.find(b"\r\n\r\n")
        if end < 0:
            client.chunks = data
            return
        head = data[:end].lower()
        at = head.find(b"content-length:")
        if at < 0:
            raise ValueError(f"an answer without Content-Length: {head!r}")
        line_end = head.find(b"\r", at)
        length = int(head[at + 15 : line_end if line_end > 0 else end])
        if len(data) < end + 4 + length:
            client.chunks, client.missing = data, end + 4 + length
            return
        self._answered(client, data[9:12], data[end + 4 : end + 4 + length], again, b"connection: close" in head)

    def _answered(self, client: _Client, status: bytes, body: bytes, again: bool, closes: bool) -> None:
        asked = client.asked
        assert asked is not None
        if status != b"200":
            outcome = status.decode()
        elif asked.right is None or asked.right == body:
            outcome = "right"
            self.tally.latencies.setdefault(asked.kind, []).append(time.perf_counter() - client.asked_at)
        else:
            outcome = "wrong"
        if closes:
            self._ended(client, outcome, again)
            return
        self.tally.outcomes[asked.kind, outcome] += 1
        self._in_flight -= 1
        client.asked = None
        if again:
            self._ask(client, time.perf_counter())
        else:
            self._idle.append(client)

    def _ended(self, client: _Client, outcome: str, again: bool) -> None:
        """The connection is over, and with it what was asked on it."""
        number = client.sock.fileno()
        self._poll.unregister(number)
        del self._clients[number]
        client.sock.close()
        if client.asked is not None:
            self.tally.outcomes[client.asked.kind, outcome] += 1
            self._in_flight -= 1
            client.asked = None
        elif client in self._idle:
            self._idle.remove(client)
        if again:
            try:
                self._ask(self._connect(), time.perf_counter())
            except OSError:
                self.tally.outcomes["", "refused"] += 1

    def _let_go(self, again: bool) -> None:
        now = time.perf_counter()
        while self._leaving and self._leaving[0][0] <= now:
            _, _, serial, client = heapq.heappop(self._leaving)
            if client.asked is not None and client.serial == serial:
                self._ended(client, "left", again)
