"""Listeners, drain and shut-down order; the only place where observers are plugged in.

Order of opening: listeners, engine; of closing: listeners, runs, connections, engine.
This module must never handle a signal or touch the process's logging or environment: an embedder owns those.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import resource
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs
import trio

from . import __version__
from .admission import Doorstep
from .api import OPEN_PATHS, Api
from .config import Config
from .connection import Household, serve_connection
from .engine import Engine, open_engine
from .entrance import Entrance, changed, is_loopback
from .errors import ConfigError
from .events import Listening, Observer, Refused, Reloaded, Strained, Weak
from .far import Far
from .guests import Guests
from .listeners import bind_all, is_hosts
from .peer import NOTSENT_LOWAT, Heart
from .places import Places
from .room import greeting
from .runs import Runs
from .services import keep_going, open_services
from .stage import Stage
from .telling import TracerProvider

if TYPE_CHECKING:
    from .metrics import Metrics

ACCEPT_BATCH = 64
"""Connections accepted for each wake-up."""
ACCEPT_PAUSE = 0.1
"""Seconds without accepting where the process or the machine has no descriptor left."""
DOORSTEP_GRACE = 1.0
"""Seconds that connections which were accepted already get, when a server drains, to send their request."""
FINISH_TIMEOUT = 10.0
"""Seconds that connections get, once all runs are over, to hear their close."""
DESCRIPTORS_A_CONNECTION = 8
"""Descriptors that a connection with a run holds: socket, pipes, lifeline and guardian, both ends while it starts."""
DESCRIPTORS_KEPT = 96
"""Descriptors kept back for everything else."""
MAPPED = "::ffff:"
"""What stands before a client's IPv4 address where one socket listens for both."""
NOT_APART = (
    "a run can read and change what the server's user may, keys and other identities' files among it; take containment "
    "sandbox where those who have keys do not trust each other"
)
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@attrs.define
class Server:
    """A server that accepts connections at `url`.

    Resource handling: lives in the context that `open_server` gives, or in the task of `serve`. Error handling: clients
    that misbehave and connections that break are never an exception here; observers hear of them.
    """

    host: str
    port: int
    addresses: tuple[str, ...]
    """Every address that is listened on, as `url`; a host name may have more than one."""
    runs: Runs
    _entrance: Entrance
    _observer: Observer
    stages: dict[str, Stage]
    """The sessions that go on, by their runs' ids."""
    _listening: trio.CancelScope
    _place: Mapping[str, Any]
    """The settings that say where it listens, where that was not its own choice."""
    _let_in: trio.Event = attrs.Factory(trio.Event)
    """Set when a drain has let in whoever was on the doorstep."""
    closed: trio.Event = attrs.Factory(trio.Event)
    """Set when the last connection has ended after a drain."""
    drained: trio.Event = attrs.Factory(trio.Event)
    """Set when a drain has ended the last run; clients may still be hearing so."""

    @property
    def url(self) -> str:
        """The server's address, with http:// before it."""
        return _url(self.host, self.port)

    @property
    def config(self) -> Config:
        """The configuration that is in force."""
        return self._entrance.config

    def reload(self, read: Callable[[], Config]) -> None:
        """Take keys, limits, origins and hosts of the configuration that `read` returns; runs go on.

        A bad one is told of as `Reloaded` with its error, and the old one stays.
        """
        try:
            config = changed(self._entrance.config, attrs.evolve(read(), **self._place))
            self._entrance.reload(config)
        except Exception as error:  # whatever is in a file, runs go on
            self._observer(Reloaded(str(error) or repr(error)))
            return
        self.runs.reload(config)
        self._observer(Reloaded())

    async def drain(self, patience: float | None = None) -> None:
        """Accept nothing more, let runs end for `patience` seconds, end the rest, and tell every client.

        Who was accepted just before gets an answer too. Without `patience` it is the configuration's `drain_timeout`.
        Cancelled, it leaves the runs to whoever cancels. Raises ValueError for a `patience` below 0, and goes on.
        """
        if patience is not None and not patience >= 0:  # nor is NaN
            raise ValueError(f"patience must be 0 s or more, not {patience}")
        self._listening.cancel()
        await self._let_in.wait()
        await self.runs.drain(self._entrance.config.drain_timeout if patience is None else patience)
        self.drained.set()

    async def _finish(self) -> None:
        """Drain, and give clients some time to hear so."""
        await self.drain()
        with trio.move_on_after(FINISH_TIMEOUT):
            await self.closed.wait()


@asynccontextmanager
async def open_server(
    config: Config,
    observers: Iterable[Observer] = (),
    *,
    environ: Mapping[str, str] | None = None,
    notice: str = "",
    demo: bool = False,
    listeners: Iterable[socket.socket] | None = None,
    tracer_provider: TracerProvider | None = None,
) -> AsyncIterator[Server]:
    """Open a server; it serves beside the body, and in no other process.

    With `listeners`, TCP sockets that listen, it accepts on these and binds no address. They are the server's from then
    on, which closes them and never shuts them down: copies that others hold go on to listen.

    Resource handling: leaving the context drains: nothing more is accepted, runs have `drain_timeout` seconds to end,
    the rest is ended, and clients have some seconds more to hear so. Cancelling it, or an exception of the body, ends
    all runs at once. Either way no process, task, descriptor or folder is left. CLIs inherit from `environ`, this
    process's own by default; `notice` is shown on the page, which in a `demo` offers what only the stub of the Messages
    API can answer. `tracer_provider` makes the spans of runs, in place of what the setting `traces` says; it stays the
    caller's to shut down. No signal is handled: that is for the program around it.

    Error handling: raises `ConfigError` where the configuration can't be used on this machine. An exception of the body
    comes out as it was raised, and one of an observer is a `RuntimeWarning`.
    """
    async with contextlib.AsyncExitStack() as stack:
        given = [_held(listener, stack) for listener in listeners or ()]
        place = _place(given) if given else {}
        config = attrs.evolve(config, **place)
        entrance = Entrance(config, OPEN_PATHS)
        listening = given or [stack.enter_context(listener) for listener in await _listen(config)]
        metrics = _metrics(config)
        told: list[Observer] = [*observers, metrics] if metrics else [*observers]
        opened = open_engine(config, told, environ=environ, tracer_provider=tracer_provider)
        engine = await stack.enter_async_context(opened)
        if metrics:
            stack.enter_context(metrics.watching(engine.runs))
        household = _furnish(config, engine, entrance, notice, metrics, demo=demo)
        bound = [listener.getsockname()[:2] for listener in listening]
        server = Server(
            config.host, config.port or bound[0][1], tuple(_url(*address) for address in bound), engine.runs, entrance,
            engine.observer, household.stages, trio.CancelScope(), place,
        )  # fmt: skip
        async with open_services() as services:
            _start_services(engine, household, services)
            await services.start(_accept_all, server, listening, household)
            engine.observer(Listening(server.url))
            yield server
            await server._finish()


def _furnish(
    config: Config, engine: Engine, entrance: Entrance, notice: str, metrics: Metrics | None, *, demo: bool
) -> Household:
    """Return what the server's connections share."""
    scrape = metrics.render if metrics else None
    nodes = engine.nodes
    entrance.join(nodes)
    far = Far(nodes, nodes.journal, config.max_session_message) if nodes and nodes.journal else None
    api = Api(
        engine.workplace, engine.containment, engine.runs, entrance, notice, demo=demo, metrics=scrape,
        stop_elsewhere=far.stop if far else None,
    )  # fmt: skip
    greet = functools.partial(greeting, config, __version__, engine.containment.mode)
    if entrance.asks and engine.containment.mode != "sandbox":
        engine.observer(Weak(f"containment {engine.containment.mode}: {NOT_APART}"))
    if entrance.lacks_keys:
        engine.observer(Weak(f"keys: {config.keys} is not there yet: nobody has a key; trio-claude keys add makes one"))
    return Household(config, engine.runs, entrance, api.answer, Heart(config), engine.observer, greet, far=far)


def _start_services(engine: Engine, household: Household, services: trio.Nursery) -> None:
    """Start what goes on beside the connections."""
    watch_keys = functools.partial(household.entrance.watch_keys, engine.observer)
    services.start_soon(keep_going, "heart", household.heart.serve, engine.observer)
    services.start_soon(keep_going, "keys", watch_keys, engine.observer)
    _join_others(engine, household, services)


def _join_others(engine: Engine, household: Household, services: trio.Nursery) -> None:
    """Have clients of other nodes served, and tell this one's how it stands with what all share."""
    if household.far is None or engine.nodes is None:
        return
    guests = Guests(engine.nodes.control, household.room(), household.entrance, services)
    services.start_soon(keep_going, "far clients", guests.serve, engine.observer)
    services.start_soon(keep_going, "links", household.far.serve, engine.observer)
    engine.nodes.membership.on_change(household.tell_history)
    engine.nodes.membership.on_return(guests.leave)


async def serve(
    config: Config,
    observers: Iterable[Observer] = (),
    *,
    environ: Mapping[str, str] | None = None,
    notice: str = "",
    tracer_provider: TracerProvider | None = None,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled or drained: for `server = await nursery.start(serve, config)`.

    Resource handling: cancelling the nursery ends all runs at once; `await server.drain()` lets them end, and then this
    returns. Error handling: as `open_server`.
    """
    opened = open_server(config, observers, environ=environ, notice=notice, tracer_provider=tracer_provider)
    async with opened as server:
        task_status.started(server)
        await server.drained.wait()


def _metrics(config: Config) -> Metrics | None:
    """Return what counts, where that is wanted; else it is not even imported."""
    if not config.metrics:
        return None
    from .metrics import Metrics

    return Metrics()


def _url(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _held(listener: socket.socket, stack: contextlib.AsyncExitStack) -> socket.socket:
    """Return a socket that is closed with `stack`; what is none is named later."""
    if isinstance(listener, contextlib.AbstractContextManager):
        stack.enter_context(listener)
    return listener


def is_listener(sock: object) -> bool:
    """Return whether this is a socket of TCP that listens."""
    if not isinstance(sock, socket.socket):
        return False
    if sock.fileno() < 0 or sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        return False
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _place(listeners: list[socket.socket]) -> dict[str, Any]:
    """Return host and port of sockets as settings: of one that others than this machine reach, if there is one.

    None of them blocks from then on. Raises `ConfigError` for one by which no client can come in.
    """
    for listener in listeners:
        if not is_listener(listener):
            raise ConfigError(f"listeners: {listener!r} is no TCP socket that listens")
        listener.setblocking(False)
    if len({listener.fileno() for listener in listeners}) < len(listeners):
        raise ConfigError("listeners: a socket is there twice")
    places = [listener.getsockname()[:2] for listener in listeners]
    host, port = next((place for place in places if not is_loopback(place[0])), places[0])
    return {"host": host, "port": port}


async def _listen(config: Config) -> list[socket.socket]:
    """Bind the addresses of the host. Raises `ConfigError`."""
    try:
        return await bind_all(config.host, config.port)
    except OSError as error:
        raise ConfigError(_why_not(config, error)) from error
    except UnicodeError:  # a part of it is empty, or of more than 63 characters
        raise ConfigError(f"host: {config.host[:300]} is no name of a host; take another host") from None


def _why_not(config: Config, error: OSError) -> str:
    """Return why an address can't be listened on, by the setting that is to be changed."""
    field = "host" if is_hosts(error) else "port"
    hint = {
        errno.EADDRINUSE: "end what listens there, or take another port, 0 for any that is free",
        errno.EACCES: "ports below 1024 are root's; take another",
    }.get(error.errno or 0, f"take another {field}")
    return f"{field}: can't listen on {config.host}:{config.port}: {error.strerror or error}; {hint}"


async def _accept_all(
    server: Server, listeners: list[socket.socket], household: Household, task_status: trio.TaskStatus[None]
) -> None:
    """Accept on every listener until the server drains, then close them; the connections live on."""
    if server._place:  # who gave the listeners may have them still, and accept on them
        household.runs.pump.share()
    async with trio.open_nursery() as connections:
        gate = Gate(household, connections)
        task_status.started()
        with server._listening:
            async with trio.open_nursery() as accepting:
                for listener in listeners:
                    accepting.start_soon(gate.accept, listener)
        for listener in listeners:
            listener.close()
        with trio.move_on_after(DOORSTEP_GRACE):
            await gate.let_in()
        server._let_in.set()
    server.closed.set()


class Gate:
    """Lets connections in, never more than the process has descriptors for, with some kept back for starting runs."""

    def __init__(self, household: Household, connections: trio.Nursery) -> None:
        config = household.config
        self._household = household
        self._connections = connections
        self._slots = trio.Semaphore(min(config.max_connections, _descriptor_slots()))
        self._doorstep = Doorstep(config.max_handshakes, config.max_handshakes_per_address)
        self._left = trio.Event()
        self._strained = False

    async def let_in(self) -> None:
        """Wait until nobody is left on the doorstep."""
        while self._doorstep:
            self._left = trio.Event()
            await self._left.wait()

    async def accept(self, listener: socket.socket) -> None:
        """Accept connections, each with a slot of its own."""
        while True:
            await trio.lowlevel.wait_readable(listener)
            for _ in range(ACCEPT_BATCH):
                await self._slots.acquire()
                try:
                    sock, address = listener.accept()
                except OSError as error:
                    self._slots.release()
                    await self._pause(error)
                    break
                self._strain(on=False)
                self._let_in(sock, address[0].removeprefix(MAPPED), address[1])

    def _let_in(self, sock: socket.socket, host: str, port: int) -> None:
        """Serve a connection, or turn it away where too many stand on the doorstep already."""
        if not self._doorstep.enter(host):
            sock.close()
            self._slots.release()
            self._household.observer(Refused(0, "too many connections without a request", "doorstep"))
            return
        self._connections.start_soon(self._serve, sock, host, port)

    async def _serve(self, sock: socket.socket, host: str, port: int) -> None:
        """Serve one connection and give its places back."""
        stands = True

        def step_in() -> None:
            nonlocal stands
            if stands:
                stands = False
                self._leave_doorstep(host)

        with Places(self._slots.release, step_in) as places:
            self._household.entrance.arrive(host)
            places.add(lambda: self._household.entrance.depart(host))
            sock.setblocking(False)
            with contextlib.suppress(OSError):  # some systems refuse it once the client has left
                self._set_options(sock)
            await serve_connection(sock, host, port, self._household, places, step_in)

    def _set_options(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if sys.platform == "linux":
            patience = int(self._household.config.send_timeout * 1000)
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, NOTSENT_LOWAT)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience)

    def _leave_doorstep(self, host: str) -> None:
        self._doorstep.leave(host)
        self._left.set()

    async def _pause(self, error: OSError) -> None:
        """Wait where descriptors or memory have run out; a client that left before it was accepted is no matter."""
        if error.errno in _EXHAUSTED:
            self._strain(on=True)
            await trio.sleep(ACCEPT_PAUSE)
        if error.errno == errno.EINVAL:  # another process, which holds it too, has shut it down for good
            self._household.observer(Weak("a listener was shut down: nobody comes in by it any more"))
            await trio.sleep_forever()

    def _strain(self, *, on: bool) -> None:
        if on != self._strained:
            self._strained = on
            self._household.observer(Strained("descriptors", over=not on))


def _descriptor_slots() -> int:
    """Return how many connections the process has descriptors for."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(1, (limit - DESCRIPTORS_KEPT) // DESCRIPTORS_A_CONNECTION)


_TCP_NOTSENT_LOWAT = 25
