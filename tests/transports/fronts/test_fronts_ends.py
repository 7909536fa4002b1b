"""How a service of several processes begins and ends."""

import asyncio
import concurrent.futures
import errno
import os
import socket
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import tidegate_transports.front_place
from tidegate import App, SetupFailed
from tidegate_transports.fronts import FrontsTransport
from tidegate_transports.ipc_messages import VERSION

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------------- the beginning


async def test_a_module_that_fails_in_a_front_end_fails_the_start_with_its_traceback(
    handlers: Any, served: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "ruin").write_text(str(os.getpid()))
    monkeypatch.setenv("TEST_FAILS_WHERE", str(tmp_path / "ruin"))
    others = psutil.Process().children()
    with pytest.raises(SetupFailed, match="RuntimeError: this module cannot be imported in a front end") as caught:
        async with served(handlers.square):
            pass
    assert "front_handlers.py" in caught.value.traceback
    assert psutil.Process().children() == others


async def test_another_version_fails_the_start_and_says_what_to_do(
    handlers: Any, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tidegate_transports.front_place, "VERSION", 99)
    with pytest.raises(SetupFailed, match=rf"version {VERSION} .* version 99.*start the service again"):
        async with served(handlers.square):
            pass


async def test_one_that_ends_before_it_listens_fails_the_start(
    handlers: Any, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(SetupFailed, match="exited with status 1 before it listened"):
        async with served(handlers.square):
            pass


async def test_a_door_that_cannot_be_opened_there_fails_the_start_as_it_would_here(
    handlers: Any, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_HIDES", "granian")
    with pytest.raises(ValueError, match=r"granian is not installed"):
        async with served(handlers.square, transport="granian"):
            pass


async def test_files_of_tls_that_cannot_be_used_fail_the_start(handlers: Any, served: Any, tmp_path: Path) -> None:
    file = str(tmp_path / "none.pem")
    with pytest.raises(ValueError, match=r"none\.pem"):
        async with served(handlers.square, tls_certificate=file, tls_key=file):
            pass


@pytest.mark.parametrize("processes", [1, 2])
async def test_a_second_service_does_not_share_the_port(processes: int, handlers: Any, served: Any) -> None:
    async with served(handlers.square) as service:
        taken = service.door.url.removeprefix("http://")
        with pytest.raises(OSError, match="in use") as caught:
            async with App(handlers.square, http=FrontsTransport(taken, processes)):
                pass
        assert (caught.value.errno, caught.value.filename) == (errno.EADDRINUSE, taken)
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="in use"):
                other.bind(service.address)


async def test_what_the_body_of_an_app_raises_is_raised_as_it_is(handlers: Any, served: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        async with served(handlers.square):
            raise ZeroDivisionError


# ---------------------------------------------------------------------- the end


async def test_what_is_in_flight_at_the_end_is_answered_and_nobody_is_let_in(
    handlers: Any, served: Any, gate: Any
) -> None:
    with concurrent.futures.ThreadPoolExecutor() as threads:
        async with served(handlers.held, drain_timeout=20) as service:
            clients = [some[0] for some in (await service.connected(1)).values()]
            for number, client in enumerate(clients):
                client.ask("/held", gate.body(number))
            _, let_go = await gate.arrival()
            processes = [psutil.Process(pid) for pid in service.pids]

            def let_go_when_closed() -> None:
                refused = False
                while not refused:
                    try:
                        socket.create_connection(service.address, timeout=30).close()
                        time.sleep(0.01)  # connecting without a pause would fill the backlog
                    except ConnectionError:
                        refused = True
                let_go()
                gate.server.accept()[0].close()

            letting = threads.submit(let_go_when_closed)
        letting.result(30)
        assert sorted([await client.answer() for client in clients]) == ["0", "1"]
        assert not any(process.is_running() for process in processes)


async def test_the_end_is_known_at_every_front_end_at_once(handlers: Any, served: Any) -> None:
    async with served(handlers.square) as service:
        clients = [some[0] for some in (await service.connected(1)).values()]
        service.app.draining = True
        # Whoever is answered after this had been told before: on one line, in order.
        async with service.http() as client:
            assert (await client.get("/readyz")).status_code == 503
        for one in clients:
            one.ask("/square", "[1]")
            data = b""
            while part := await asyncio.to_thread(one.socket.recv, 1 << 16):
                data += part
            assert b"connection: close" in data.lower()


async def test_what_does_not_end_is_cut_off_at_the_one_deadline(handlers: Any, served: Any, gate: Any) -> None:
    async with served(handlers.held, drain_timeout=0.3) as service:
        ((client,), _) = (await service.connected(1)).values()
        client.ask("/held", gate.body(1))
        _, let_go = await gate.arrival()
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert '"code":"closed"' in await client.answer()
    let_go()


async def test_the_end_does_not_wait_for_one_that_is_just_being_started(
    handlers: Any, served: Any, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    monkeypatch.setattr(tidegate_transports.front_place, "restart_delay", lambda failures: 60.0)
    async with served(handlers.square, drain_timeout=20) as service:
        psutil.Process(service.pids[0]).kill()
        await until(lambda: 0 in service.pids)
        began = time.monotonic()
    assert time.monotonic() - began < 10
