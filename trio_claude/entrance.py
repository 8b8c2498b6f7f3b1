"""Who may come in: Host, Origin, credential, connections. The one place that a reload changes.

Rule 1: every request passes `check`, whatever its path. Rule 2: a refusal says what the operator can do, and nothing
about a credential. Rule 3: what is counted when a client comes in is counted off when it leaves, by `leave`.
"""

from __future__ import annotations

import ipaddress
import math
import re
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import trio

from .admission import Crowd, Limits, Member, own_limits, place_of
from .config import IDENTITY_LIMITS, Config
from .errors import Busy, ConfigError, HttpRefusal, NotAllowed, NotKnown
from .events import Observer, Strained, Weak
from .identity import Gatekeeper, Identity, Tickets
from .identity.gatekeeper import unauthorized
from .identity.keys import LOOK_AGAIN
from .upgrade import Request, asks_upgrade

if TYPE_CHECKING:
    from .nodes import Nodes
    from .nodes.shared import Shared

SESSION_DOOR = "/ws/session"
"""The door of sessions, through which a viewer may come too: to watch."""
KEYS = "the file of keys"
"""What `Strained` calls it."""
_WITH_PORT = re.compile(r"(?:\[([^\]]+)\]|([0-9.]+))(?::\d*)?")
"""An address as some proxies write it: 203.0.113.9:50123, [2001:db8::1]:443."""
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
EXPOSED = ("Access-Control-Expose-Headers", "X-Next-Part, Retry-After")
"""The header by which a page of a named origin may read our own: whether there is more, and when to come again."""
RELOADED = (
    *IDENTITY_LIMITS, "allow_origin", "allow_host", "trusted_proxies", "keys", "jwt_keys", "jwt_issuer", "jwt_audience",
    "jwt_leeway", "connections_per_address", "total_prompts_per_minute", "total_tokens_per_day",
    "total_dollars_per_day", "max_runs", "run_memory", "max_waiting", "queue_timeout", "log_level", "log_format",
    "access_log",
)  # fmt: skip
"""The settings that a reload can change."""


class Door(Protocol):
    """What knows how it stands with a client now."""

    @property
    def config(self) -> Config:
        """The configuration that is in force."""

    def knows(self, identity: Identity) -> bool:
        """Return whether an identity's credential is still good."""

    def current(self, identity: Identity) -> Identity:
        """Return an identity with the role and limits that it has now."""


@attrs.frozen
class Guest:
    """Who a client is, for as long as it stays."""

    identity: Identity
    address: str
    forwarded: bool
    """Whether the address is what a proxy says; then it is counted here, else it was when the client connected."""
    _door: Door
    context: Mapping[str, str] = attrs.field(factory=dict)
    """The trace of which it says that it is part."""

    @property
    def name(self) -> str:
        """Its name."""
        return self.identity.name

    @property
    def member(self) -> Member:
        """Its name and its limits as they are now."""
        return Member(self.name, self._limits(), self._limits)

    def _limits(self) -> Limits:
        return own_limits(self._door.config, self._door.current(self.identity).limits)

    def check(self) -> None:
        """Raise `NotKnown` where its credential has ended, or was taken back, since it came."""
        if not self._door.knows(self.identity):
            raise NotKnown("your key or token is not valid any more")

    def check_may_run(self) -> None:
        """Raise `NotKnown`, as `check` does, and `NotAllowed` for who may only watch, or no more than that now."""
        self.check()
        if not self._door.current(self.identity).may_run:
            raise NotAllowed("a viewer starts no runs")

    def may_see(self, name: str) -> bool:
        """Return whether it may see the runs of an identity now: its own, or everybody's."""
        return name == self.name or self._door.current(self.identity).sees_all

    def check_may_see(self, name: str) -> None:
        """Raise `NotKnown`, as `check` does, and `NotAllowed` where it may not see the runs of an identity any more."""
        self.check()
        if not self.may_see(name):
            raise NotAllowed("your role sees the runs of others no more")

    def facts(self) -> dict[str, Any]:
        """Return what another node is told of it: how it stands with it now."""
        now = self._door.current(self.identity)
        return {"name": now.name, "role": now.role, "limits": dict(now.limits), "good": self._door.knows(self.identity)}


class Entrance:
    """The entrance of one server. Raises `ConfigError` where a file of keys is bad."""

    def __init__(self, config: Config, open_paths: Collection[str] = ()) -> None:
        self.config: Config = config
        self._open_paths = open_paths
        self._gatekeeper = _gatekeeper(config)
        self._proxies = [ipaddress.ip_network(network) for network in config.trusted_proxies]
        self._tickets = Tickets()
        self._shared: Shared | None = None
        self._addresses = Crowd()
        self._identities = Crowd()

    def reload(self, config: Config) -> None:
        """Take another configuration; where it is bad, `ConfigError` is raised and the old one stays."""
        gatekeeper = _gatekeeper(config)
        if gatekeeper.lacks_keys and not self.lacks_keys:
            raise ConfigError(f"keys: {config.keys} is not there")
        self.config, self._gatekeeper = config, gatekeeper
        self._proxies = [ipaddress.ip_network(network) for network in config.trusted_proxies]

    def join(self, nodes: Nodes | None) -> None:
        """Have one stock of tickets with the other servers, if there are any."""
        self._shared = nodes.shared if nodes else None

    @property
    def asks(self) -> bool:
        """Whether clients must say who they are."""
        return self._gatekeeper.asks

    @property
    def lacks_keys(self) -> bool:
        """Whether the file of keys is not there."""
        return self._gatekeeper.lacks_keys

    @property
    def inside(self) -> int:
        """How many identities have a WebSocket open."""
        return len(self._identities)

    @property
    def fault(self) -> str:
        """What is wrong with the file of keys, empty where nothing is."""
        return self._gatekeeper.fault

    async def watch_keys(self, observer: Observer) -> None:
        """Tell at once, whoever comes, where the file of keys can't be read any more; until cancelled."""
        told = ""
        while True:
            self._gatekeeper.refresh(trio.current_time())
            if (fault := self.fault) != told:
                if fault:
                    observer(Weak(f"{fault}; the keys that were known stay good"))
                if bool(fault) != bool(told):
                    observer(Strained(KEYS, over=not fault))
                told = fault
            await trio.sleep(LOOK_AGAIN)

    def arrive(self, address: str) -> None:
        """Count a connection, of which nothing is known but where it comes from."""
        self._addresses.enter(place_of(address), 0)

    def depart(self, address: str) -> None:
        """Count a connection off."""
        self._addresses.leave(place_of(address))

    async def check(self, request: Request, address: str) -> Request:
        """Return the request with who sent it, nobody on an open path. Raises `HttpRefusal`."""
        self._check_crowd(address)
        check_host(request, self.config)
        check_origin(request, self.config)
        if is_preflight(request):
            return request
        holder = await self._spend_ticket(request)
        identity = self._gatekeeper.identify(request.headers, holder, trio.current_time(), time.time())
        if identity is None and request.path not in self._open_paths:
            raise unauthorized()
        seen = self._forwarded(request, address)
        return attrs.evolve(request, identity=identity, address=seen, forwarded=seen != address)

    async def _spend_ticket(self, request: Request) -> Identity | None:
        """Return whose ticket a request carries; waits only where it is other servers' too. Raises `HttpRefusal`."""
        secret, origin = self._gatekeeper.ticket(request.headers), request.headers.get("origin")
        if secret is None or not asks_upgrade(request):  # it opens a socket, and nothing else
            return None
        if self._shared is None:
            return self._tickets.spend(secret, origin, trio.current_time())
        try:
            return await self._shared.take_ticket(secret, origin)
        except Busy as error:
            raise _not_now(error) from error

    def _check_crowd(self, address: str) -> None:
        """Refuse an address with too many connections, before anything else is looked at. Raises `HttpRefusal`."""
        limit = self.config.connections_per_address
        if limit and self._addresses[place_of(address)] > limit and not self._is_proxy(address):
            raise _too_many("from your address")

    def share(self, request: Request) -> tuple[tuple[str, str], ...]:
        """Return the headers by which a browser lets a page of a named origin read the answer (CORS)."""
        origin = request.headers.get("origin")
        if origin not in _lower(self.config.allow_origin):
            return ()
        return (("Access-Control-Allow-Origin", str(origin)), EXPOSED, ("Vary", "Origin"))

    def guest(self, request: Request) -> Guest:
        """Return who sent a request that was let in."""
        assert request.identity
        return Guest(request.identity, request.address, request.forwarded, self, request.context)

    def enter(self, request: Request) -> None:
        """Count a client in, which is about to open a WebSocket. Raises `HttpRefusal`."""
        guest = self.guest(request)
        if not guest.identity.may_run and request.path != SESSION_DOOR:
            raise HttpRefusal(403, "role", "a viewer starts no runs")
        limit = self.config.connections_per_address
        if guest.forwarded and not self._addresses.enter(place_of(guest.address), limit):
            raise _too_many("from your address")
        if not self._identities.enter(guest.name, guest.member.limits.connections):
            self._leave_address(guest)
            raise _too_many("of yours")

    def leave(self, guest: Guest) -> None:
        """Count a client out."""
        self._leave_address(guest)
        self._identities.leave(guest.name)

    def _leave_address(self, guest: Guest) -> None:
        if guest.forwarded:
            self._addresses.leave(place_of(guest.address))

    async def ticket(self, request: Request) -> str:
        """Return a ticket for whoever sent a request. Raises `HttpRefusal`."""
        assert request.identity
        origin = request.headers.get("origin")
        if self._shared is None:
            return self._tickets.issue(request.identity, origin, trio.current_time())
        try:
            return await self._shared.put_ticket(request.identity, origin)
        except Busy as error:
            raise _not_now(error) from error

    def knows(self, identity: Identity) -> bool:
        """Return whether an identity's credential is still good."""
        return self._gatekeeper.knows(identity, trio.current_time(), time.time())

    def current(self, identity: Identity) -> Identity:
        """Return an identity with the role and limits that it has now."""
        return self._gatekeeper.current(identity)

    def _forwarded(self, request: Request, address: str) -> str:
        """Return a client's address, as the nearest proxy that is trusted saw it."""
        hops = [part.strip() for part in request.headers.get("x-forwarded-for", "").split(",")]
        while hops and self._is_proxy(address):
            if not (hop := _address(hops.pop())):
                break
            address = hop
        return address

    def _is_proxy(self, address: str) -> bool:
        return bool(self._proxies) and any(ipaddress.ip_address(address) in network for network in self._proxies)


def changed(old: Config, new: Config) -> Config:
    """Return the configuration after a reload. Raises `ConfigError` where it changes what takes a restart."""
    if old.isolated != new.isolated:
        raise ConfigError(f"isolation: from {old.isolated} to {new.isolated} takes a restart")
    now = attrs.evolve(old, **{name: getattr(new, name) for name in RELOADED})
    fixed = [field.name for field in attrs.fields(Config) if getattr(now, field.name) != getattr(new, field.name)]
    if fixed:
        raise ConfigError(f"{', '.join(fixed)}: takes a restart")
    return now


def _gatekeeper(config: Config) -> Gatekeeper:
    """Return who knows the identities of a configuration. Raises `ConfigError`."""
    gatekeeper = Gatekeeper(config)
    if not is_loopback(config.host) and not gatekeeper.asks:
        raise ConfigError(
            f"host: {config.host} is not a loopback address; everybody could come in: make keys "
            "(trio-claude keys add) and name their file with --keys"
        )
    return gatekeeper


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a host."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:  # a name may lead anywhere
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def is_preflight(request: Request) -> bool:
    """Return whether a browser asks if a page may send a request; it asks without a credential."""
    return request.method == "OPTIONS" and "access-control-request-method" in request.headers


def _too_many(whose: str) -> HttpRefusal:
    return HttpRefusal(429, "connections", f"too many connections {whose}", (("Retry-After", "1"),))


def _not_now(error: Busy) -> HttpRefusal:
    return HttpRefusal(503, error.code, str(error), (("Retry-After", str(math.ceil(error.retry_after))),))


def _address(hop: str) -> str:
    """Return the address that a proxy wrote, as it is without a port or brackets; empty where it is none."""
    found = _WITH_PORT.fullmatch(hop)
    try:
        address = ipaddress.ip_address((found[1] or found[2]) if found else hop)
    except ValueError:
        return ""
    return str(getattr(address, "ipv4_mapped", None) or address)


def _lower(names: tuple[str, ...]) -> set[str]:
    """Return names as browsers and `Host` are compared: in small letters."""
    return {name.lower() for name in names}


def check_host(request: Request, config: Config) -> None:
    """Refuse a Host under which this server is not reached (DNS rebinding). Raises `HttpRefusal`."""
    host = request.headers.get("host", "").lower()
    name = re.sub(r":\d*$", "", host)
    if name in LOOPBACK or {host, name} & _lower((config.host, f"[{config.host}]", *config.allow_host)):
        return
    raise HttpRefusal(403, "host", "this Host is not served here; the operator can name it with allow_host")


def check_origin(request: Request, config: Config) -> None:
    """Refuse a browser page of another origin. Raises `HttpRefusal`."""
    origin = request.headers.get("origin")
    if origin is None or origin in _lower(config.allow_origin):
        return
    if origin == f"http://{request.headers.get('host', '')}":
        return
    raise HttpRefusal(403, "origin", "this Origin may not come in; the operator can allow it with --allow-origin")
