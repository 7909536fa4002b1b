import errno
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tidegate import App, serve
from tidegate_transports.address import Address
from tidegate_transports.fronts import FrontsTransport
from tidegate_transports.http import HTTPTransport
from tidegate_transports.http_options import HTTPOptions
from tidegate_transports.listening import bind, probe, tls_context, url_of
from tidegate_transports.servers import GranianTransport, UvicornTransport
from tidegate_transports.websocket import WebSocketTransport

AT_ONCE = 200
"""Clients: more than asyncio would let wait by itself."""


def closing(sockets: list[socket.socket]) -> list[socket.socket]:
    for one in sockets:
        one.close()
    return sockets


def test_a_free_port_is_taken_and_named() -> None:
    address = Address("127.0.0.1", 0)
    sockets = bind(address)
    url = url_of(sockets, address)
    port = sockets[0].getsockname()[1]
    assert url == f"http://127.0.0.1:{port}"
    socket.create_connection(("127.0.0.1", port), timeout=10).close()
    closing(sockets)


def test_a_name_of_several_addresses_gets_one_port_on_all_of_them() -> None:
    sockets = closing(bind(Address("localhost", 0)))
    assert sockets


def test_every_address_of_ipv6_means_ipv4_as_well() -> None:
    sockets = bind(Address("::", 0))
    port = sockets[0].getsockname()[1]
    for host in ("127.0.0.1", "::1"):
        socket.create_connection((host, port), timeout=10).close()
    closing(sockets)


@pytest.mark.anyio
@pytest.mark.anyio
@pytest.mark.parametrize("door", [HTTPTransport, WebSocketTransport, UvicornTransport, GranianTransport])
async def test_clients_that_come_all_at_once_wait_for_the_service_and_not_for_tcp_to_try_again(
    door: type[HTTPTransport | WebSocketTransport | UvicornTransport | GranianTransport],
) -> None:
    @serve
    def same(x: int) -> int:
        return x

    opened = door("127.0.0.1:0")
    async with App(same, http=opened, worker="thread"):
        host, port = opened.url.rpartition("/")[2].split(":")
        with ExitStack() as clients:
            # The event loop accepts none of them meanwhile; TCP tries again after a second.
            for _ in range(AT_ONCE):
                clients.enter_context(socket.create_connection((host, int(port)), timeout=0.9))


def test_a_taken_port_is_told_before_anything_listens_and_a_free_one_stays_free() -> None:
    sockets = bind(Address("127.0.0.1", 0))
    taken = Address("127.0.0.1", sockets[0].getsockname()[1])
    with pytest.raises(OSError, match="in use") as caught:
        probe(taken)
    assert (caught.value.errno, caught.value.filename) == (errno.EADDRINUSE, str(taken))
    closing(sockets)
    probe(taken)
    probe(taken)
    closing(bind(taken))


@pytest.mark.anyio
@pytest.mark.parametrize(
    "door", [HTTPTransport, WebSocketTransport, UvicornTransport, GranianTransport, FrontsTransport]
)
async def test_no_worker_is_set_up_behind_a_port_that_is_taken(door: Any) -> None:
    def setup(device: str) -> None:
        pytest.fail("minutes may have gone by")

    handler = serve(name="f", setup=setup, worker="thread")(lambda state, x: x)
    sockets = bind(Address("127.0.0.1", 0))
    with pytest.raises(OSError, match="in use"):
        async with App(handler, door=door(f"127.0.0.1:{sockets[0].getsockname()[1]}")):
            pass
    closing(sockets)


def test_a_port_has_one_owner_and_the_error_names_it() -> None:
    sockets = bind(Address("127.0.0.1", 0))
    taken = Address("127.0.0.1", sockets[0].getsockname()[1])
    with pytest.raises(OSError, match="in use") as caught:
        bind(taken)
    closing(sockets)
    assert (caught.value.errno, caught.value.filename) == (errno.EADDRINUSE, str(taken))
    closing(bind(taken))


def test_without_files_there_is_no_tls() -> None:
    assert tls_context(HTTPOptions()) is None


@pytest.mark.parametrize("content", [None, b"no certificate"])
def test_files_that_cannot_be_used_are_named_with_the_fix(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "file.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"tls_certificate='.*file\.pem'.*PEM"):
        tls_context(HTTPOptions(tls_certificate=str(path), tls_key=str(path)))
