"""Front ends in processes of their own: one port, one batcher, the same answers."""

import asyncio
import gzip
import io
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from tidegate import serve
from tidegate_transports.fronts import FrontsTransport, spare_processes
from tidegate_transports.ipc_memory import Memory

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("transport", ["http", "granian", "uvicorn"])
async def test_requests_are_answered_by_either_as_by_one_process(transport: str, handlers: Any, served: Any) -> None:
    every = (handlers.square, handlers.refuse, handlers.countdown, handlers.who)
    async with served(*every, transport=transport) as service:
        for _ in range(8):  # a connection each, so that both are asked
            async with service.http() as client:
                right = await client.post("/square", json=[3, 4])
                assert (right.status_code, right.json()) == (200, [9, 16])
                assert 'batch;desc="1"' in right.headers["Server-Timing"]
                wrong = await client.post("/refuse", json=1)
                assert (wrong.status_code, wrong.json()["code"]) == (409, "handler-refused")
                stream = await client.post("/countdown", json=2)
                assert stream.text.split() == ['{"chunk":2}', '{"chunk":1}', '{"end":true}']
                type_of_lines = {"Content-Type": "application/x-ndjson"}
                lines = await client.post("/square", content="[1]\n[2]\n", headers=type_of_lines)
                assert lines.text.split() == ["[1]", "[4]"]
                told = await client.post("/who", json=1, headers={"X-Request-Id": "mine", "X-Tenant": "blue"})
                assert told.json() == {"id": "mine", "headers": {"x-tenant": "blue"}, "pid": os.getpid()}
                for page in ("/readyz", "/livez", "/info", "/openapi.json", "/docs"):
                    assert (await client.get(page)).status_code == 200


async def test_callers_at_both_share_a_batch(handlers: Any, served: Any) -> None:
    async with served(handlers.gathered) as service:
        clients = [client for some in (await service.connected(4)).values() for client in some]
        for client in clients:
            client.ask("/gathered", "1")
        assert [await client.answer() for client in clients] == ["8"] * 8
        assert service.app.statistics()["gathered"].batches == 1


async def test_what_the_environment_and_the_options_say_holds_at_every_front_end(
    handlers: Any, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEGATE_API_KEY", "secret")
    async with served(handlers.square, handlers.who, max_body=1000) as service:
        for _ in range(6):
            async with service.http() as client:
                assert (await client.post("/square", json=[1])).status_code == 401
                assert (await client.get("/readyz")).status_code == 200
                client.headers["X-API-Key"] = "secret"
                assert (await client.post("/square", json=[2])).json() == [4]
                assert (await client.post("/square", json=[2] * 1000)).status_code == 413
                odd = await client.post("/who", json=1, headers={b"X-Tenant": b"\xff"})
                assert odd.status_code in (200, 500)


async def test_large_bodies_and_answers_pass(handlers: Any, served: Any) -> None:
    async with served(handlers.square) as service, service.http() as client:
        body = gzip.compress(b"[" + b",".join([b"2.0"] * 300_000) + b"]")
        coded = {"Content-Encoding": "gzip"}
        answers = await asyncio.gather(*(client.post("/square", content=body, headers=coded) for _ in range(3)))
        assert [sum(answer.json()) for answer in answers] == [1_200_000.0] * 3


PICTURE = np.random.default_rng(0).integers(0, 255, (224, 224, 3), np.uint8)


def as_map(array: np.ndarray) -> dict[str, Any]:
    return {"dtype": str(array.dtype), "shape": array.shape, "data": array.tobytes()}


RAW = {"Content-Type": "application/octet-stream"}


async def test_a_picture_crosses_to_the_hub_and_back_through_memory_that_has_no_name(
    handlers: Any, served: Any, until: Any
) -> None:
    async with served(handlers.invert, handlers.brightest, handlers.darken, handlers.halve) as service:
        links = [place._front.link.channel for place in service.door.places]
        memories = [link._memory for link in links]
        for number in range(8):
            async with service.http() as client:
                accept = {**RAW, "Accept": "application/x-npy"}
                body = (PICTURE // 8 + number).tobytes()
                answer = await client.post("/invert", content=body, headers=accept)
                found = np.load(io.BytesIO(answer.content))
                assert (found == 255 - PICTURE // 8 - number).all()
                brightest = await client.post("/brightest", content=body, headers=RAW)
                assert brightest.json() == 254 // 8 + number
                # A front end looks at it within the request; the function may write to it all the same.
                darker = await client.post("/darken", content=body, headers=RAW)
                assert darker.json() == (254 // 8 + number) // 2
                both = msgspec.msgpack.encode({"a": as_map(PICTURE), "b": as_map(PICTURE[0, 0])})
                halved = await client.post("/halve", content=both, headers={"Content-Type": "application/msgpack"})
                assert halved.json() == [254 // 2, int(PICTURE[0, 0].max()) // 2]
        for memory in memories:
            for file in memory.descriptors:
                assert os.readlink(f"/proc/self/fd/{file}") == "/memfd:tidegate (deleted)"
        # Either of them may have got no connection, but not both.
        for each in zip(*(memory.descriptors for memory in memories), strict=True):
            assert sum(os.fstat(file).st_blocks * 512 for file in each) >= PICTURE.nbytes
        await until(lambda: not any(memory.outbox.used for memory in memories))


async def test_without_memory_in_common_a_picture_travels_in_frames(
    handlers: Any, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Memory, "create", lambda: None)
    async with served(handlers.invert) as service, service.http() as client:
        assert [place._front.link.channel.outbox for place in service.door.places] == [None, None]
        answer = await client.post("/invert", content=PICTURE.tobytes(), headers=RAW)
        assert (np.array(answer.json(), np.uint8) == 255 - PICTURE).all()


async def test_a_module_runs_once_in_each_and_nothing_is_set_up_there(
    handlers: Any, served: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TEST_NOTES_IMPORTS", str(tmp_path / "notes"))
    async with served(handlers.square, handlers.who, handlers.refuse) as service:
        notes = (tmp_path / "notes").read_text().splitlines()
        assert sorted(notes) == sorted(f"{pid} import" for pid in service.pids)


async def test_handlers_that_nobody_can_import_travel_along(served: Any) -> None:
    factor = 3

    @serve(worker="thread")
    def triple(x: int) -> int:
        return factor * x

    async with served(triple) as service, service.http() as client:
        assert (await client.post("/triple", json=2)).json() == 6


async def test_with_one_process_it_is_the_door_itself(handlers: Any, served: Any) -> None:
    async with served(handlers.who, processes=1) as service, service.http() as client:
        assert (await client.post("/who", json=1)).status_code == 200
        assert service.door.places == []


@pytest.mark.parametrize(("workers", "cores", "processes"), [(1, 2, 1), (1, 4, 2), (8, 16, 7), (1, 64, 8), (100, 4, 1)])
def test_auto_takes_the_cores_that_hub_and_workers_leave(workers: int, cores: int, processes: int) -> None:
    assert spare_processes(workers, cores) == processes


@pytest.mark.parametrize("processes", [0, -1, True, "many", 1.5])
def test_a_number_of_processes_that_makes_no_sense_is_told(processes: Any) -> None:
    with pytest.raises(ValueError, match="http_processes="):
        FrontsTransport("127.0.0.1:0", processes)


# ---------------------------------------------------------------------- metrics


async def counted(client: httpx.AsyncClient, handler: str) -> int:
    """Answers with 200 that the doors have counted."""
    text = (await client.get("/metrics")).text
    lines = [one for one in text.splitlines() if one.startswith("tidegate_http_requests_total{")]
    return sum(int(float(one.split()[-1])) for one in lines if f'"{handler}"' in one and '"200"' in one)


async def test_metrics_are_the_sum_whoever_is_asked_and_never_fall(handlers: Any, served: Any) -> None:
    async with served(handlers.square) as service:
        for some in (await service.connected(2)).values():
            for client in some:
                client.ask("/square", "[1]")
                assert await client.answer() == "[1]"
        for _ in range(6):
            async with service.http() as other:
                assert await counted(other, "square") == 4
        victim = service.pids[0]
        os.kill(victim, signal.SIGKILL)
        seen = [4]
        while victim in service.pids or 0 in service.pids:
            try:
                async with service.http() as other:
                    seen.append(await counted(other, "square"))
            except httpx.HTTPError:
                pass  # it was the one that died
        async with service.http() as other:
            seen.append(await counted(other, "square"))
        assert set(seen) == {4}


async def test_a_front_end_that_says_nothing_keeps_nobody_waiting_for_long(handlers: Any, served: Any) -> None:
    async with served(handlers.square) as service:
        stopped = service.pids[0]
        os.kill(stopped, signal.SIGSTOP)
        try:
            began = time.monotonic()
            for _ in range(20):
                assert (await service.app.overview()).ready
            assert time.monotonic() - began < 3
        finally:
            os.kill(stopped, signal.SIGCONT)
