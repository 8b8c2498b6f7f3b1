"""What a service manager tells this process, and is told by it: sd_listen_fds(3) and sd_notify(3), without a library.

Rule 1: what the manager says is for this process alone, so it is taken out of the environment: no CLI ever gets it.
Rule 2: telling it something never waits and never fails. Rule 3: a socket that was handed over is others' too: it is
closed here, and never shut down.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping
from typing import Final

import attrs

from ..errors import ConfigError
from ..server import is_listener

FIRST: Final = 3
"""The first descriptor that is handed over; the others follow it."""
SOCKETS_LIMIT: Final = 64
"""Sockets that may be handed over: many more than a server has addresses."""
MICROSECONDS: Final = 1_000_000


@attrs.frozen
class Manager:
    """The service manager above this process; where there is none, nobody is told and nothing was handed over.

    Resource handling: whoever takes the sockets closes them.
    """

    sockets: list[socket.socket]
    """Sockets that listen already; where there are any, no address is bound."""
    watchdog: float
    """Seconds within which the manager wants a sign of life, 0 where it wants none."""
    _address: str
    """Where the manager listens; @ stands for an abstract address."""

    def tell(self, *states: str) -> None:
        """Tell the manager states as sd_notify(3) names them, as READY=1; nothing is said where it does not listen."""
        if not self._address:
            return
        place = self._address.replace("@", "\0", 1) if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(states).encode(), place)

    def tell_reloading(self) -> None:
        """Tell the manager that settings are read anew; READY=1 ends this."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def take_manager(environ: MutableMapping[str, str]) -> Manager:
    """Return the manager that `environ` tells of, and remove from there what it says.

    Raises `ConfigError` where what it hands over can't be listened on.
    """
    watchdog = watchdog_interval(environ)
    address = environ.pop("NOTIFY_SOCKET", "")
    return Manager(inherited_sockets(environ), watchdog, address)


def watchdog_interval(environ: MutableMapping[str, str]) -> float:
    """Return the seconds within which the manager wants a sign of life, 0 for none. Raises `ConfigError`."""
    asked, whose = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
    if not asked or whose not in ("", str(os.getpid())):
        return 0.0
    return _number("WATCHDOG_USEC", asked) / MICROSECONDS


def inherited_sockets(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """Return the sockets that were handed to this process, closed on exec.

    Raises `ConfigError` where one is no TCP socket that listens.
    """
    whose, told, names = (environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    environ.pop("LISTEN_PIDFDID", None)
    if not told or whose != str(os.getpid()):
        return []
    count = _number("LISTEN_FDS", told)
    if count > SOCKETS_LIMIT:
        raise ConfigError(f"LISTEN_FDS: {count} sockets; at most {SOCKETS_LIMIT} can be handed to `trio-claude serve`")
    named = [*names.split(":"), *[""] * count]
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(_take(FIRST + place, named[place])) for place in range(count)]
        stack.pop_all()
    return taken


def _take(descriptor: int, name: str) -> socket.socket:
    """Return a descriptor as the socket that it must be. Raises `ConfigError`."""
    what = f"LISTEN_FDS: descriptor {descriptor}{f' ({name!r})' if name else ''}"
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ConfigError(f"{what} is no socket: {error.strerror}; without LISTEN_FDS --port is bound") from None
    if not is_listener(sock):
        sock.close()
        raise ConfigError(
            f"{what} is no TCP socket that listens; a socket unit needs ListenStream= with a port, and Accept=no; "
            "without LISTEN_FDS --port is bound"
        )
    sock.set_inheritable(False)
    return sock


def _number(name: str, told: str) -> int:
    """Return a number of the manager's. Raises `ConfigError`."""
    if not (told.isascii() and told.isdigit() and len(told) <= 18):
        raise ConfigError(f"{name}: {told[:64]!r} is no number; without the variable `trio-claude serve` needs none")
    return int(told)
