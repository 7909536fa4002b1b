"""How a service begins and ends: what is in flight is answered, and behind a retrying client nobody notices."""

import concurrent.futures
import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import httpx
import pytest
import trustme

Launched = tuple["subprocess.Popen[str]", str]
Launch = Callable[..., AbstractContextManager[Launched]]


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


# ---------------------------------------------------------------------- the end


def test_what_is_in_flight_is_answered_while_no_one_new_is_let_in(server: str, launch: Launch) -> None:
    with ExitStack() as stack:
        process, url = stack.enter_context(launch(server))
        gate = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        threads = stack.enter_context(concurrent.futures.ThreadPoolExecutor())
        at = {"port": gate.getsockname()[1], "number": 7}
        first = threads.submit(httpx.post, f"{url}/held", json=at, timeout=30)
        running, _ = gate.accept()
        process.send_signal(signal.SIGTERM)
        refused = False
        while not refused:
            try:
                socket.create_connection(("127.0.0.1", port_of(url)), timeout=30).close()
                time.sleep(0.01)  # connecting without a pause would fill the backlog
            except ConnectionError:
                refused = True
        assert process.poll() is None
        running.close()
        answer = first.result(30)
        assert (answer.json(), answer.headers["Connection"]) == (7, "close")
        assert process.wait(30) == 0


def test_a_stream_is_finished(server: str, launch: Launch) -> None:
    with launch(server) as (process, url):
        body = json.dumps({"steps": 20, "seconds": 0.02}).encode()
        with httpx.stream("POST", f"{url}/ticks", content=body, timeout=30) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert (len(rest), rest[-1]) == (20, '{"end":true}')
        assert process.wait(30) == 0


def test_what_does_not_end_is_cut_off_at_the_one_deadline(server: str, launch: Launch) -> None:
    with ExitStack() as stack:
        process, url = stack.enter_context(launch(server, "--drain-timeout", "0.5"))
        closed = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        threads = stack.enter_context(concurrent.futures.ThreadPoolExecutor())
        body = json.dumps(closed.getsockname()[1]).encode()
        response = stack.enter_context(httpx.stream("POST", f"{url}/forever", content=body, timeout=30))
        lines = response.iter_lines()
        next(lines)
        reading = threads.submit(lambda: [line for line in lines if "chunk" not in line])
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        # It breaks off, or an error event ends it; it never looks as if all were well.
        try:
            assert all("error" in line for line in reading.result(30))
        except httpx.RemoteProtocolError:
            pass
        assert process.wait(30) == 0
        assert time.monotonic() - began < 5


def test_readiness_goes_first_and_answers_ask_for_a_new_connection(server: str, launch: Launch) -> None:
    with launch(server, "--drain-delay", "60") as (process, url), httpx.Client(base_url=url, timeout=30) as client:
        assert client.get("/readyz").status_code == 200
        process.send_signal(signal.SIGTERM)
        while client.get("/readyz").status_code == 200:
            pass
        answer = client.post("/square", json=[1, 2])
        assert (answer.json(), answer.headers["Connection"]) == ([1, 4], "close")
        assert client.get("/livez").status_code == 200


def test_a_rollout_under_load_refuses_nobody(server: str, launch: Launch) -> None:
    """Two instances behind clients that go where they are welcome, as a load balancer does."""
    stop, errors, answered = threading.Event(), list[str](), [0]
    leaving = set[str]()
    with ExitStack() as stack:
        old, old_url = stack.enter_context(launch(server, "--drain-delay", "0.5"))
        urls = [old_url]

        def caller(number: int) -> None:
            with httpx.Client(timeout=30) as client:
                while not stop.is_set():
                    for url in sorted(urls, key=leaving.__contains__):
                        try:
                            response = client.post(f"{url}/square", json=[number, 2])
                        except httpx.ConnectError:
                            continue  # refused before anything was sent
                        if response.status_code == 503:
                            continue
                        if response.status_code != 200 or response.json() != [number**2, 4]:
                            errors.append(f"{response.status_code} {response.text}")
                        if response.headers.get("Connection") == "close":
                            leaving.add(url)
                        answered[0] += 1
                        break
                    else:
                        errors.append("refused everywhere")

        threads = [threading.Thread(target=caller, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        try:
            _, new_url = stack.enter_context(launch(server))
            urls.append(new_url)
            before = answered[0]
            old.send_signal(signal.SIGTERM)
            assert old.wait(30) == 0
            after = answered[0]
            while answered[0] < after + 50 and not errors:
                time.sleep(0.01)  # the callers go on by themselves
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert errors == []
    assert after > before


# ---------------------------------------------------------------------- the beginning


def test_a_second_service_does_not_share_the_port_silently(server: str, tidegate: str, service: str) -> None:
    handlers = Path(__file__).with_name("handlers.py")
    command = [
        tidegate,
        "serve",
        str(handlers),
        "--server",
        server.partition("-")[0],
        "--http",
        f"127.0.0.1:{port_of(service)}",
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    announcement, error = ran.stderr.splitlines()
    assert (ran.returncode, "setting up" in announcement, "in use" in error) == (1, True, True)
    assert httpx.get(f"{service}/livez").status_code == 200


def test_tls_is_spoken_in_its_newer_versions(server: str, launch: Launch, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    chain, key, ca = (str(tmp_path / name) for name in ("chain.pem", "key.pem", "ca.pem"))
    certificate.cert_chain_pems[0].write_to_path(chain)
    certificate.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(ca)
    with launch(server, "--tls-certificate", chain, "--tls-key", key) as (_, url):
        assert url.startswith("https://")
        command = ["curl", "-s", "--cacert", ca, f"{url}/square", "--json", "[1,2]"]
        assert subprocess.run(command, capture_output=True, timeout=30, check=True).stdout == b"[1.0,4.0]"
        old = subprocess.run([*command, "--tls-max", "1.1"], capture_output=True, timeout=30, check=False)
        assert old.returncode == 35


def test_a_key_is_asked_for_but_not_of_probes(server: str, launch: Launch) -> None:
    with launch(server, TIDEGATE_API_KEY="first,second") as (_, url), httpx.Client(base_url=url, timeout=30) as client:
        assert client.post("/square", json=[1, 2]).status_code == 401
        assert client.post("/square", json=[1, 2], headers={"X-API-Key": "wrong"}).status_code == 401
        for headers in ({"X-API-Key": "first"}, {"Authorization": "Bearer second"}):
            assert client.post("/square", json=[1, 2], headers=headers).json() == [1, 4]
        assert client.get("/metrics").status_code == 401
        for probe in ("/livez", "/readyz", "/healthz", "/health"):
            assert client.get(probe).status_code == 200


@pytest.mark.parametrize("address", ["[::1]:0", "localhost:0"])
def test_addresses_of_other_kinds_are_listened_on(address: str, server: str, launch: Launch) -> None:
    with launch(server, "--http", address) as (_, url):
        assert url.startswith(f"http://{address.rpartition(':')[0]}:")
        assert httpx.post(f"{url}/square", json=[1, 2]).json() == [1, 4]
