"""Places of connections, before and after they have said who they are. Pure."""

from __future__ import annotations

import ipaddress
from collections import Counter

NETWORK = 64
"""Bits of an IPv6 address that are a network's; the rest is for each host of it to choose."""


def place_of(address: str) -> str:
    """Return what counts as one address: an IPv4 address, and the network of an IPv6 one."""
    if ":" not in address:
        return address
    return str(ipaddress.IPv6Network((address.partition("%")[0], NETWORK), strict=False))


class Doorstep:
    """Connections that have not said yet what they want, counted in all and by address.

    A place is given up when the first request is read, or when the connection ends; what finds no place is turned away.
    """

    def __init__(self, limit: int, limit_per_address: int) -> None:
        self._limit = limit
        self._limit_per_address = limit_per_address
        self._by_address: Counter[str] = Counter()
        self._all = 0

    def enter(self, address: str) -> bool:
        """Take a place; return whether there was one."""
        place = place_of(address)
        if self._all >= self._limit or self._by_address[place] >= self._limit_per_address:
            return False
        self._all += 1
        self._by_address[place] += 1
        return True

    def leave(self, address: str) -> None:
        """Give a place up."""
        place = place_of(address)
        self._all -= 1
        self._by_address[place] -= 1
        if not self._by_address[place]:
            del self._by_address[place]

    def __len__(self) -> int:
        return self._all


class Crowd:
    """Connections counted by what they have in common: an address, or an identity."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def enter(self, name: str, limit: int) -> bool:
        """Count one more of `name`, unless there are `limit` already; 0 is no limit. Return whether it was counted."""
        if limit and self._counts[name] >= limit:
            return False
        self._counts[name] += 1
        return True

    def __getitem__(self, name: str) -> int:
        return self._counts[name]

    def leave(self, name: str) -> None:
        """Count one less."""
        self._counts[name] -= 1
        if not self._counts[name]:
            del self._counts[name]

    def __len__(self) -> int:
        return len(self._counts)
