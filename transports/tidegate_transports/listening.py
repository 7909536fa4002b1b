"""Sockets that listen, the same for every server: one owner per port, and a clear word when it is taken."""

from __future__ import annotations

import os
import socket
import ssl
from contextlib import ExitStack

from tidegate_transports.address import Address
from tidegate_transports.http_options import HTTPOptions

__all__ = ["bind", "probe", "reserve", "tls_context", "url_of"]

BACKLOG = 1024
"""Connections that the kernel keeps until they are accepted."""


def bind(address: Address, *, shared: bool = False) -> list[socket.socket]:
    """Sockets for every address that the host's name stands for, on one port; raises OSError when it cannot be taken.

    SO_REUSEPORT stays off: with it a second service would take a share of the first one's requests in silence.
    shared: it is on, for processes of one service; `reserve` has made sure that the port is theirs.
    """
    return _bind(address, shared=shared, backlog=BACKLOG)


def probe(address: Address) -> None:
    """Raise the OSError that `bind` would raise now: a setup of minutes is not to end with a port that is taken."""
    for one in _bind(address, shared=False, backlog=None):
        one.close()


def reserve(address: Address) -> list[socket.socket]:
    """Take the port for several processes to share: nobody listens on these sockets, and no other service gets it.

    Raises OSError when somebody else has it.
    """
    reserved = _bind(address, shared=False, backlog=None)
    address = address._replace(port=reserved[0].getsockname()[1])
    for one in reserved:
        _admit_sharers(one)
    try:
        sharing = _bind(address, shared=True, backlog=None)
    except OSError:
        # Some systems go by how a socket was when it was bound; then there is a moment in which another may come.
        for one in reserved:
            one.close()
        return _bind(address, shared=True, backlog=None)
    for one in sharing:
        one.close()
    return reserved


def _admit_sharers(bound: socket.socket) -> None:
    """Let those in who share the port, and nobody who asks for it alone."""
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    # With it, two of whom none listens yet may have the same port.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)


def _bind(address: Address, *, shared: bool, backlog: int | None) -> list[socket.socket]:
    infos = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
    )
    port = address.port
    with ExitStack() as stack:
        sockets: list[socket.socket] = []
        for family, _, _, _, where in dict.fromkeys(infos):
            listener = stack.enter_context(_bound(family, (where[0], port, *where[2:]), address, shared, backlog))
            port = listener.getsockname()[1]  # of port 0 the first one chooses for all
            sockets.append(listener)
        stack.pop_all()
    return sockets


def _bound(
    family: int, where: tuple[object, ...], address: Address, shared: bool, backlog: int | None
) -> socket.socket:
    # Named, or asyncio does not see that it is TCP and leaves small writes to wait for each other.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # Whoever asks for all of IPv6's addresses means every address; a name's two families get a socket each.
            both = address.host == "::" and socket.has_dualstack_ipv6()
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if both else 1)
        listener.bind(where)
        if backlog is not None:
            listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, os.strerror(error.errno or 0), str(address)) from None
    listener.setblocking(False)
    return listener


def url_of(sockets: list[socket.socket], address: Address, scheme: str = "http") -> str:
    """Where clients find them: the host as it was written, the port as it was taken."""
    return f"{scheme}://{address._replace(port=sockets[0].getsockname()[1])}"


def tls_context(options: HTTPOptions) -> ssl.SSLContext | None:
    """TLS 1.2 or newer with the options' files, None without; raises ValueError when they cannot be used."""
    if options.tls_certificate is None or options.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    files = f"tls_certificate={options.tls_certificate!r}, tls_key={options.tls_key!r}"
    try:
        context.load_cert_chain(options.tls_certificate, options.tls_key)
    except OSError as error:  # ssl's own errors are among them
        raise ValueError(
            f"{files}: {error.strerror or error}; give the paths of PEM files that fit together"
        ) from error
    return context
