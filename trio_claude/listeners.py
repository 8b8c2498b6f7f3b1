"""Sockets that listen, one for each address of a host: those that this machine has are enough.

This module must never accept, nor say what is to be set in place of a host that has none.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import Any, Final

import trio

BACKLOG: Final = 4096
"""Connections that the kernel holds before they are accepted."""
_ABSENT: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""What an address is answered with that this machine has not; `localhost` is often IPv6, too, where there is none."""


async def bind_all(host: str, port: int) -> list[socket.socket]:
    """Listen on every address of a host that this machine has, on one port; 0 is any that is free.

    Raises OSError where there is none, or one can't be had, and UnicodeError for a host that is no name.
    """
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners, absent = list[socket.socket](), list[OSError]()
    with contextlib.ExitStack() as opened:
        for family, kind, number, _, address in dict.fromkeys(found):  # a file of hosts may name one twice
            chosen = listeners[0].getsockname()[1] if listeners else address[1]
            try:
                listeners.append(_bound(family, kind, number, (address[0], chosen, *address[2:])))
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
                absent.append(error)
            else:
                opened.callback(listeners[-1].close)
        if not listeners:
            raise absent[0]
        opened.pop_all()
    return listeners


def is_hosts(error: OSError | UnicodeError) -> bool:
    """Return whether it is the host that is to blame for an error of `bind_all`, and not the port."""
    return isinstance(error, socket.gaierror | UnicodeError) or error.errno in _ABSENT


def _bound(family: int, kind: int, number: int, address: Any) -> socket.socket:
    """Return a socket that listens. Raises OSError."""
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(socket.socket(family, kind, number))
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if listener.family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        opened.pop_all()
    return listener
