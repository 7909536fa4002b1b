import errno
import socket
from collections.abc import Iterator

import pytest

import tidegate_transports.listening
from tidegate_transports.address import Address
from tidegate_transports.listening import bind, reserve


@pytest.fixture
def reserved() -> Iterator[Address]:
    sockets = reserve(Address("localhost", 0))
    yield Address("localhost", sockets[0].getsockname()[1])
    for one in sockets:
        one.close()


def closed(sockets: list[socket.socket]) -> int:
    for one in sockets:
        one.close()
    return len(sockets)


@pytest.mark.parametrize("other", [reserve, bind])
@pytest.mark.parametrize("processes", [0, 2])
def test_a_reserved_port_is_nobody_elses_whether_anybody_listens_there_yet(
    other: object, processes: int, reserved: Address
) -> None:
    fronts = [bind(reserved, shared=True) for _ in range(processes)]
    with pytest.raises(OSError, match="in use") as caught:
        closed(other(reserved))  # type: ignore[operator]
    assert caught.value.errno == errno.EADDRINUSE
    assert [closed(front) > 0 for front in fronts] == [True] * processes


def test_a_port_where_somebody_listens_cannot_be_reserved() -> None:
    sockets = bind(Address("127.0.0.1", 0))
    with pytest.raises(OSError, match="in use"):
        reserve(Address("127.0.0.1", sockets[0].getsockname()[1]))
    assert closed(sockets) == 1


def test_a_port_can_be_reserved_again_at_once() -> None:
    address = Address("127.0.0.1", 0)
    for _ in range(3):
        reserved = reserve(address)
        address = address._replace(port=reserved[0].getsockname()[1])
        (front,) = bind(address, shared=True)
        with socket.create_connection((address.host, address.port)):
            front.setblocking(True)
            front.accept()[0].close()  # it closes first, so that the system remembers the connection
        closed([front, *reserved])


def test_where_a_socket_stays_as_it_was_bound_the_port_is_shared_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tidegate_transports.listening, "_admit_sharers", lambda bound: None)
    reserved = reserve(Address("127.0.0.1", 0))
    address = Address("127.0.0.1", reserved[0].getsockname()[1])
    fronts = [bind(address, shared=True) for _ in range(2)]
    with pytest.raises(OSError, match="in use"):
        bind(address)
    assert [closed(one) for one in (reserved, *fronts)] == [1, 1, 1]
