"""Rule: a host is listened on at each address that this machine has; one that it has not is no fault, all are."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest
import trio

from trio_claude.commands import doctor
from trio_claude.config import Config
from trio_claude.listeners import bind_all, is_hosts

ABSENT = "192.0.2.1"
"""An address for documentation, which no machine has."""


class Resolver(trio.abc.HostnameResolver):
    """Knows hosts by a table."""

    def __init__(self) -> None:
        self.hosts: dict[str, list[str]] = {}

    async def getaddrinfo(self, host: Any, port: Any, family: int = 0, *_: int, **__: int) -> list[Any]:
        found = self.hosts[host.decode() if isinstance(host, bytes) else host]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        return sockaddr[0], str(sockaddr[1])


@pytest.fixture
async def hosts() -> dict[str, list[str]]:
    """Return the table of hosts that this test's Trio looks in."""
    resolver = Resolver()
    trio.socket.set_custom_hostname_resolver(resolver)
    return resolver.hosts


@pytest.mark.parametrize("order", [(ABSENT, "127.0.0.1"), ("127.0.0.1", ABSENT), ("127.0.0.1", "127.0.0.2")])
async def test_the_addresses_that_are_there_are_listened_on_at_one_port(
    hosts: dict[str, list[str]], order: tuple[str, str]
) -> None:
    hosts["both.test"] = [*order]
    listeners = await bind_all("both.test", 0)
    places = [listener.getsockname() for listener in listeners]
    for listener in listeners:
        listener.close()
    assert [host for host, _ in places] == [one for one in order if one != ABSENT]
    assert len({port for _, port in places}) == 1
    found = await doctor._port(Config(host="both.test", port=0))
    assert (found.ok, found.found) == (True, "0 of both.test is free")


async def test_an_address_that_is_found_twice_is_listened_on_once(hosts: dict[str, list[str]]) -> None:
    hosts["twice.test"] = ["127.0.0.1", "127.0.0.1"]
    (listener,) = await bind_all("twice.test", 0)
    listener.close()


async def test_where_none_is_there_the_host_is_to_blame(hosts: dict[str, list[str]]) -> None:
    hosts["none.test"] = [ABSENT, ABSENT]
    with pytest.raises(OSError, match="Cannot assign requested address") as caught:
        await bind_all("none.test", 0)
    assert is_hosts(caught.value)
    found = await doctor._port(Config(host="none.test", port=0))
    assert (found.ok, found.found) == (False, "Cannot assign requested address; --host names another")


async def test_an_address_that_is_taken_is_a_fault_though_another_is_free(hosts: dict[str, list[str]]) -> None:
    hosts["half.test"] = ["127.0.0.1", "127.0.0.2"]
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use") as caught:
            await bind_all("half.test", port)
        assert (caught.value.errno, is_hosts(caught.value)) == (errno.EADDRINUSE, False)
        socket.create_server(("127.0.0.1", port)).close()
