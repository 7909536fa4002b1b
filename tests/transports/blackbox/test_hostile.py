"""Input that means harm. After each the service still answers, and its memory is back."""

import contextlib
import json
import socket
import struct
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import httpx
import psutil
import pytest

Launched = tuple["subprocess.Popen[str]", str]
Launch = Callable[..., AbstractContextManager[Launched]]

LIMITS = ["--max-body", "10000000", "--header-timeout", "0.5", "--body-timeout", "0.5", "--write-timeout", "0.5"]
LIMITS += ["--keepalive-timeout", "2", "--max-connections", "40"]
MARGIN = 48 * 1024 * 1024
"""Bytes that an allocator may keep for the next time."""


@pytest.fixture(scope="module")
def target(server: str, launch: Launch) -> Iterator[tuple[psutil.Process, str]]:
    """A service with tight limits, warm."""
    with launch(server, *LIMITS) as (process, url):
        with httpx.Client(base_url=url, timeout=30) as client:
            for _ in range(20):
                client.post("/size", content=b"x" * 9_000_000)
            client.post("/square", json=[1, 2])
        yield psutil.Process(process.pid), url


@pytest.fixture(autouse=True)
def url(target: tuple[psutil.Process, str]) -> Iterator[str]:
    """Where to aim. Checks afterwards that nothing is left of it."""
    process, url = target
    before = process.memory_info().rss
    yield url
    deadline = time.monotonic() + 10
    while not _answers(url) or process.memory_info().rss > before + MARGIN:
        assert time.monotonic() < deadline, (before, process.memory_info().rss)
        time.sleep(0.02)  # the service is in another process and has no event to wait for


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        answer = httpx.post(f"{url}/square", json=[1, 2], timeout=10)
        return answer.status_code == 200 and answer.json() == [1, 4]
    return False


@pytest.fixture
def our_guard(server: str) -> None:
    """For guards that bind the aiohttp shell; under ASGI they are the server's."""
    if server != "aiohttp":
        pytest.skip(f"this guard is {server}'s own")


def connected(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def head(path: str, length: int | str, *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {length}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


def told(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            got += part
    return got


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


# ---------------------------------------------------------------------- lengths


def test_a_body_that_is_cut_short_runs_nothing(url: str) -> None:
    with connected(url) as connection:
        connection.sendall(head("/square", 100) + b"[1,2")
        connection.shutdown(socket.SHUT_WR)
        assert b" 200 " not in told(connection)


def test_a_body_that_is_longer_than_it_says_is_cut_there(url: str) -> None:
    with connected(url) as connection:
        connection.sendall(head("/square", 5) + b"[1,2]" + b"garbage garbage\r\n\r\n")
        answer = told(connection)
    # Either the first is answered and the rest is no request, or all of it is refused.
    assert b"[1.0,4.0]" in answer or status(answer) == 400
    assert answer.count(b"HTTP/1.1 ") <= 2
    assert b"garbage" not in answer


@pytest.mark.parametrize("length", ["-1", "1e3", "0x5", "5, 6", "99999999999999999999999", "", "+5"])
def test_a_length_that_is_none_is_refused(length: str, url: str) -> None:
    with connected(url) as connection:
        connection.sendall(head("/square", length) + b"[1,2]")
        connection.shutdown(socket.SHUT_WR)
        answer = told(connection)
    # Some servers drop such a connection without a word.
    assert answer == b"" or 400 <= status(answer) < 500


def test_two_lengths_that_differ_are_refused(url: str) -> None:
    with connected(url) as connection:
        connection.sendall(head("/square", 5, "Content-Length: 6") + b"[1,2]")
        connection.shutdown(socket.SHUT_WR)
        answer = told(connection)
    assert b" 200 " not in answer


def test_chunks_that_are_none_are_refused(url: str) -> None:
    with connected(url) as connection:
        connection.sendall(
            b"POST /square HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n[1,2]\r\n0\r\n\r\n"
        )
        connection.shutdown(socket.SHUT_WR)
        assert b" 200 " not in told(connection)


def test_a_body_of_100_mb_is_refused_by_its_length_and_hardly_read(url: str) -> None:
    sent = 0
    with connected(url) as connection:
        connection.sendall(head("/size", 100_000_000, "Connection: close"))
        assert status(connection.recv(65536)) == 413
        # Whoever goes on is not read for long.
        with contextlib.suppress(OSError):
            while sent < 100_000_000:
                sent += connection.send(b"x" * 65536)


def test_a_body_of_100_mb_in_chunks_is_refused_at_the_limit(url: str) -> None:
    chunk = b"%x\r\n%b\r\n" % (65536, b"x" * 65536)
    with connected(url) as connection:
        connection.sendall(
            b"POST /size HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
            b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        )
        with contextlib.suppress(OSError):
            for _ in range(100_000_000 // 65536):
                connection.sendall(chunk)
            connection.sendall(b"0\r\n\r\n")
        answer = told(connection)
    assert answer == b"" or status(answer) == 413


@pytest.mark.parametrize("wrapping", [31, 15, -15])
def test_a_small_body_that_inflates_to_100_mb_is_refused(wrapping: int, url: str) -> None:
    packer = zlib.compressobj(9, wbits=wrapping)
    bomb = packer.compress(b"0" * 100_000_000) + packer.flush()
    coding = "gzip" if wrapping == 31 else "deflate"
    answer = httpx.post(f"{url}/size", content=bomb, headers={"Content-Encoding": coding}, timeout=30)
    assert (len(bomb) < 200_000, answer.status_code) == (True, 413)


# ---------------------------------------------------------------------- slowness


@pytest.mark.usefixtures("our_guard")
def test_a_head_that_comes_byte_by_byte_is_cut_off_by_its_total_time(url: str) -> None:
    with connected(url) as connection:
        connection.settimeout(0.05)
        began = time.monotonic()
        answer = b""
        for byte in head("/square", 5, "X-Padding: " + "x" * 1000):
            with contextlib.suppress(ConnectionError):
                connection.sendall(bytes([byte]))
            try:
                answer += connection.recv(65536)
                break
            except TimeoutError:
                assert time.monotonic() - began < 5
        assert status(answer) == 408
        assert b"application/problem+json" in answer


@pytest.mark.usefixtures("our_guard")
def test_the_next_head_on_a_connection_is_held_to_its_time_as_well(url: str) -> None:
    with connected(url) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status(connection.recv(65536)) == 200
        connection.sendall(b"GET /livez HTTP/1.1\r\n")
        assert status(told(connection)) == 408


@pytest.mark.usefixtures("our_guard")
def test_a_body_that_comes_byte_by_byte_is_cut_off_by_its_total_time(url: str) -> None:
    with connected(url) as connection:
        connection.sendall(head("/square", 1000))
        connection.settimeout(0.05)
        began = time.monotonic()
        answer = b""
        for _ in range(1000):
            connection.sendall(b" ")
            try:
                answer += connection.recv(65536)
                break
            except TimeoutError:
                assert time.monotonic() - began < 5
        assert status(answer) == 408
        assert b"Connection: close" in answer


@pytest.mark.usefixtures("our_guard")
def test_a_connection_that_asks_nothing_is_closed(url: str) -> None:
    with connected(url) as connection:
        assert status(told(connection)) == 408


@pytest.mark.usefixtures("our_guard")
def test_a_client_that_does_not_read_is_cut_off(url: str, target: tuple[psutil.Process, str]) -> None:
    process, _ = target
    text = json.dumps("x" * 9_000_000).encode()
    with connected(url) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(head("/echo", len(text)) + text)
        here, there = connection.getsockname(), connection.getpeername()
        deadline = time.monotonic() + 10
        while any(other.laddr == there and other.raddr == here for other in process.net_connections("tcp")):
            assert time.monotonic() < deadline
            time.sleep(0.02)  # the service gives it up by itself


# ---------------------------------------------------------------------- numbers


@pytest.mark.usefixtures("our_guard")
def test_idle_connections_up_to_the_limit_leave_room_for_probes_and_time_out(url: str) -> None:
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connected(url)) for _ in range(40)]
        # Each has asked once and keeps its connection, as clients do.
        for one in idle:
            one.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert status(one.recv(65536)) == 200
        assert httpx.get(f"{url}/readyz", timeout=10).status_code == 200
        refused = httpx.post(f"{url}/square", json=[1, 2], timeout=10)
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        assert (refused.headers["Connection"], refused.headers["Retry-After"]) == ("close", "1")
        for one in idle:
            assert told(one) == b""


@pytest.mark.usefixtures("our_guard")
@pytest.mark.parametrize(
    "lines",
    [[f"X-{number}: x" for number in range(2000)], ["X-Long: " + "x" * 100_000], ["X-Request-Id: " + "x" * 50_000]],
    ids=["many", "long", "long id"],
)
def test_a_flood_of_headers_is_refused_as_a_problem(lines: list[str], url: str) -> None:
    with connected(url) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(head("/square", 5, *lines) + b"[1,2]")
        answer = told(connection)
    assert status(answer) == 431
    assert b"application/problem+json" in answer
    assert b"Server:" not in answer


def test_a_flood_of_headers_is_not_answered_with_success_by_any_server_for_ever(url: str) -> None:
    with connected(url) as connection:
        connection.settimeout(20)
        connection.sendall(b"POST /square HTTP/1.1\r\nHost: x\r\n")
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 50_000_000:
                sent += connection.send(b"X-Padding: " + b"x" * 1000 + b"\r\n")
    assert sent < 50_000_000


@pytest.mark.usefixtures("our_guard")
@pytest.mark.parametrize("nonsense", [b"\x16\x03\x01\x02\x00\x01\x00", b"HELLO\r\n\r\n", b"GET /\x00 HTTP/1.1\r\n\r\n"])
def test_what_is_no_http_is_refused_as_a_problem_that_names_no_server(nonsense: bytes, url: str) -> None:
    with connected(url) as connection:
        connection.sendall(nonsense)
        answer = told(connection)
    assert status(answer) == 400
    document = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert (document["code"], document["status"]) == ("malformed-request", 400)
    assert not {b"aiohttp", b"python"} & set(answer.lower().replace(b"/", b" ").split())


# ---------------------------------------------------------------------- contents


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 1_000_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"[NaN,1]",
        b"[Infinity,-Infinity]",
        b"[1e999,1]",
        b"[" + b"9" * 4000 + b",1]",
        b'"\\ud800"',
        b"\xff\xfe[1,2]",
    ],
    ids=["open", "deep", "deep objects", "nan", "infinity", "overflow", "huge integer", "half a pair", "utf-16"],
)
@pytest.mark.parametrize("path", ["/square", "/echo", "/shout"])
def test_json_of_bad_will_is_the_callers_fault(path: str, body: bytes, url: str) -> None:
    answer = httpx.post(f"{url}{path}", content=body, headers={"Content-Type": "application/json"}, timeout=30)
    wrong = {400, 413, 422}
    # A huge integer is a number all the same, and an overflow may be read as infinity, which cannot be told in JSON.
    assert answer.status_code in wrong | {200} if body[1:2] in b"91" else answer.status_code in wrong


def npy(header: bytes, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x93NUMPY",
        npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n", b"\x80\x04cos\nsystem\n."),
        npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }\n", b"x" * 16),
        npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }\n", b"x" * 16),
        npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }\n", b"x" * 16),
        npy(b"__import__('os').abort()\n", b"x" * 16),
        npy(b"{" * 60000),
        b"\x93NUMPY\x03\x00\xff\xff\xff\xff",
    ],
    ids=["empty", "cut", "pickle", "huge", "negative", "short", "code", "braces", "long header"],
)
def test_arrays_of_bad_will_are_the_callers_fault_and_nothing_in_them_runs(body: bytes, url: str) -> None:
    answer = httpx.post(f"{url}/square", content=body, headers={"Content-Type": "application/x-npy"}, timeout=30)
    assert answer.status_code in (400, 413, 422)


@pytest.mark.parametrize(
    "body",
    [
        b"--b\r\n" * 500_000,
        b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n' * 100_000 + b"--b--\r\n",
        b"--b\r\n" + b"X-Header: x\r\n" * 200_000 + b"\r\n\r\n--b--\r\n",
        b"--b\r\nContent-Disposition: form-data; name=" + b"x" * 5_000_000,
    ],
    ids=["boundaries", "fields", "headers", "name"],
)
def test_a_multipart_bomb_is_the_callers_fault(body: bytes, url: str) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    began = time.monotonic()
    answer = httpx.post(f"{url}/echo", content=body, headers=headers, timeout=30)
    assert 400 <= answer.status_code < 500
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("hostile", ["x" * 129, "a b", "<script>", "a;b", "a\xffb", "${jndi:ldap://x}"])
def test_an_id_of_bad_will_does_not_come_back(hostile: str, url: str) -> None:
    with connected(url) as connection:
        connection.sendall(
            head("/square", 1, "Connection: close", "X-Request-Id: ").rstrip()
            + hostile.encode("latin-1")
            + b"\r\n\r\n["
        )
        answer = told(connection)
    assert status(answer) == 400
    assert hostile.encode("latin-1") not in answer
    assert answer.lower().count(b"\r\nx-request-id: ") == 1


def test_everybody_first_is_nobody_first(url: str) -> None:
    for urgency in ("u=0", "u=0, i", "u=-1", "u=99999999999", "u=0" * 1000, "u="):
        answer = httpx.post(f"{url}/square", json=[1, 2], headers={"Priority": urgency}, timeout=30)
        assert (answer.status_code, answer.json()) == (200, [1, 4])


@pytest.mark.parametrize("prefer", ["wait=-1", "wait=nan", "wait=1e400", "wait=" + "9" * 1000, "wait=0x1", "wait"])
def test_a_wait_that_is_none_is_ignored(prefer: str, url: str) -> None:
    answer = httpx.post(f"{url}/square", json=[1, 2], headers={"Prefer": prefer}, timeout=30)
    assert (answer.status_code, answer.json()) == (200, [1, 4])
