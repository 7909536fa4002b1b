"""Clients that hang up while they wait: what is still queued never runs, everybody else is right."""

import concurrent.futures
import json
import random
import re
import socket
import time
from collections.abc import Callable

import httpx

CALLERS = 100


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # the service is in another process and has no event to wait for


def waiting(client: httpx.Client, handler: str) -> int:
    """How many requests wait, as `/metrics` says."""
    found = re.search(
        rf'^tidegate_queue_depth{{handler="{handler}"}} ([\d.]+)', client.get("/metrics").text, re.MULTILINE
    )
    assert found
    return int(float(found[1]))


def send(service: str, body: object) -> socket.socket:
    """A request on a connection of its own, of which nothing has been read."""
    host, port = service.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    text = json.dumps(body).encode()
    head = f"POST /held HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    connection.sendall(head.encode() + text)
    return connection


def answer(connection: socket.socket) -> int:
    with connection, connection.makefile("rb") as file:
        assert b" 200 " in file.readline()
        length = 0
        while (line := file.readline().lower()) != b"\r\n":
            length = int(line[15:]) if line.startswith(b"content-length:") else length
        return int(file.read(length))


def test_thirty_of_a_hundred_hang_up_in_the_queue_and_only_they_never_run(service: str, client: httpx.Client) -> None:
    gone = set(random.Random(7).sample(range(1, CALLERS), 30))
    ran: list[int] = []
    with socket.create_server(("127.0.0.1", 0), backlog=CALLERS) as gate:
        gate.settimeout(30)

        def let_go(running: socket.socket) -> None:
            with running, running.makefile("rb") as file:
                ran.append(int(file.readline()))

        port = gate.getsockname()[1]
        callers = {0: send(service, {"port": port, "number": 0})}
        # The worker is busy with the first: the rest can only wait.
        first, _ = gate.accept()
        callers |= {number: send(service, {"port": port, "number": number}) for number in range(1, CALLERS)}
        until(lambda: waiting(client, "held") == CALLERS - 1)
        for number in gone:
            callers.pop(number).close()
        until(lambda: waiting(client, "held") == CALLERS - 1 - len(gone))
        let_go(first)
        with concurrent.futures.ThreadPoolExecutor(CALLERS) as threads:
            answers = {number: threads.submit(answer, connection) for number, connection in callers.items()}
            for _ in range(len(callers) - 1):
                let_go(gate.accept()[0])
            assert {number: found.result(30) for number, found in answers.items()} == {n: n for n in callers}
    assert sorted(ran) == sorted(set(range(CALLERS)) - gone)


def test_one_that_hangs_up_while_it_runs_disturbs_nobody(service: str, client: httpx.Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gate:
        gate.settimeout(30)
        at = {"port": gate.getsockname()[1], "number": 1}
        impatient = send(service, at)
        running, _ = gate.accept()
        impatient.close()
        patient = send(service, {**at, "number": 2})
        until(lambda: waiting(client, "held") == 1)
        running.close()
        gate.accept()[0].close()
        assert answer(patient) == 2


def test_one_that_hangs_up_in_the_middle_of_its_body_runs_nothing(service: str, client: httpx.Client) -> None:
    host, port = service.removeprefix("http://").split(":")
    with socket.create_server(("127.0.0.1", 0)) as gate:
        body = json.dumps({"port": gate.getsockname()[1], "number": 1}).encode()
        head = b"POST /held HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        with socket.create_connection((host, int(port)), timeout=30) as impatient:
            impatient.sendall(head % len(body) + body[:-1])
        last = send(service, {"port": gate.getsockname()[1], "number": 2})
        running, _ = gate.accept()
        with running, running.makefile("rb") as file:
            assert int(file.readline()) == 2
        assert answer(last) == 2
