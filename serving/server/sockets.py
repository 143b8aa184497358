"""The addresses that a server listens on."""

from __future__ import annotations

import socket
from typing import Any

from sparsec.arguments import argument
from sparsec.errors import SparsecError


class AddressError(SparsecError):
    """An address cannot be used."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections; port 0: any that is free.

    Raises:
        AddressError: there is no such host, or the port is taken.
    """
    listener, address = _socket(host, port)
    _bind(listener, address, host, port, "port")
    listener.listen(1024)
    return listener


def reserve(host: str, port: int) -> socket.socket:
    """A socket that holds a port, and takes no connections: the processes that know of it listen
    there side by side.

    Raises:
        AddressError: there is no such host, or the port is taken.
    """
    probe, address = _socket(host, port)
    _bind(probe, address, host, port, "grpc_port")
    address = probe.getsockname()
    probe.close()  # it was free: nobody else shares it
    holder, _ = _socket(host, port)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    _bind(holder, address, host, port, "grpc_port")
    return holder


def text(sock: socket.socket) -> str:
    """Host and port of a socket, as in a URL."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _socket(host: str, port: int) -> tuple[socket.socket, Any]:
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind)
    except OSError as error:
        raise AddressError(f"cannot use the host {host!r}: {error}") from error
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made, address


def _bind(sock: socket.socket, address: Any, host: str, port: int, option: str) -> None:
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise AddressError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another {argument(option)}"
        ) from error
