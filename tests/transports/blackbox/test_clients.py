"""Real clients, each with habits of its own."""

import asyncio
import json
import subprocess

import aiohttp
import httpx
import pytest
import requests


def curl(*arguments: str, body: bytes = b"") -> tuple[int, str, str]:
    """Run curl: the status, the body, and what it told with -v."""
    command = ["curl", "-sv", "-w", "\n%{http_code}", *arguments]
    ran = subprocess.run(command, input=body, capture_output=True, timeout=60, check=True)
    answer, _, status = ran.stdout.decode().rpartition("\n")
    return int(status), answer, ran.stderr.decode()


def test_curl(service: str) -> None:
    assert curl(f"{service}/square", "--json", "[1.5,2]")[:2] == (200, "[2.25,4.0]")


def test_curl_asks_before_it_sends_a_large_body(service: str) -> None:
    text = json.dumps("x" * 2_000_000)
    arguments = ("--json", "@-", "-H", "Expect: 100-continue")
    status, answer, told = curl(f"{service}/echo", *arguments, body=text.encode())
    assert (status, len(answer)) == (200, 2_000_002)
    assert "100 Continue" in told


def test_curl_does_not_send_a_body_that_is_refused(service: str) -> None:
    body = b"x" * 11_000_000
    arguments = ("--json", "@-", "-H", "Expect: 100-continue", "--expect100-timeout", "20")
    status, _, told = curl(f"{service}/echo", *arguments, body=body)
    assert (status, "100 Continue" in told) == (413, False)


def test_requests(service: str) -> None:
    with requests.Session() as session:
        assert session.post(f"{service}/square", json=[1, 2], timeout=30).json() == [1, 4]
        with session.post(f"{service}/countdown", json=2, stream=True, timeout=30) as response:
            lines = [json.loads(line) for line in response.iter_lines()]
    assert lines == [{"chunk": 2}, {"chunk": 1}, {"end": True}]


def test_aiohttp(service: str) -> None:
    async def calls() -> list[list[float]]:
        async with aiohttp.ClientSession(service) as session:

            async def call(number: int) -> list[float]:
                async with session.post("/square", json=[number, 1]) as response:
                    found: list[float] = await response.json()
                    return found

            return await asyncio.gather(*(call(number) for number in range(50)))

    assert asyncio.run(calls()) == [[number**2, 1] for number in range(50)]


def test_httpx_sends_requests_over_http_2_s_predecessor(client: httpx.Client) -> None:
    response = client.post("/square", json=[1, 2])
    assert response.http_version == "HTTP/1.1"


@pytest.mark.parametrize("flag", ["--http1.0", "--http1.1"])
def test_an_old_protocol_is_understood(flag: str, service: str) -> None:
    assert curl(f"{service}/square", flag, "--json", "[1,2]")[:2] == (200, "[1.0,4.0]")
    status, body, _ = curl(f"{service}/countdown", flag, "--json", "1")
    assert (status, body.splitlines()[-1]) == (200, '{"end":true}')
