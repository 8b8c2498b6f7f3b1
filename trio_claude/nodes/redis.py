"""The connection to Redis: one that all share, kept and made anew, and how it is found to be gone.

Duty: to own what speaks with Redis, to say whether it answers, and since when. Answers come in the order of the
questions, so that one connection carries what all ask at once, and no cancelled question costs more than its answer.
This module must never decide what is asked, keep a question for later, or show a password.
"""

from __future__ import annotations

import logging
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import unquote, urlsplit

import anyio
import attrs
import coredis.exceptions
import trio
from anyio.abc import ByteStream, SocketAttribute
from coredis.connection import BaseConnection, TCPLocation

from ..config import Config
from ..errors import ConfigError, TrioClaudeError
from ..services import open_lasting, open_services
from ..threads import do_apart
from .password import Password
from .pieces import PIECE, Pieces
from .scripts import Script

PORT: Final = 6379
OLDEST: Final = (7, 0)
"""The first version of Redis that will do; Valkey says of itself that it is a later one."""
PATIENCE: Final = 2.0
"""Seconds at most without a byte to or from Redis while something is asked; then it is gone."""
PATIENCE_SHARE: Final = 4
"""Of a lease the patience is no more than one part in so many, so that a Redis that hangs loses no node its lease."""
LOOKS: Final = 8
"""Looks in such a time whether a byte has gone or come."""
GONE: Final = "Redis does not answer"
LOADING: Final = "Redis is reading its file"
UNGREETED: Final = "it ended before a greeting, as where Redis wants certificates of its clients (tls-auth-clients)"
REPLICA: Final = "Redis is a replica, which takes no writes"
FULL: Final = "max number of clients reached"
"""How Redis says first of all that it takes no more connections."""
FORBIDDEN: Final = "The user executing the script "
"""How Redis begins to say that a script does what its user may not do, by its access list."""
BACKOFF: Final = (0.05, 1.0)
"""Seconds between two tries to connect: at first, and at most."""
CONNECT_TIMEOUT: Final = 1.0
"""Seconds until a connection is made, its greeting included."""

Word: TypeAlias = str | bytes | int | float


class RedisFault(TrioClaudeError):
    """Redis did not do what it was asked. The text, which clients may see, names no address; `detail` is for logs."""

    def __init__(self, text: str, detail: str = "") -> None:
        super().__init__(text)
        self.detail: str = detail or text


class RedisBroken(RedisFault):
    """A script can't do with what it was given, or has found: asking again would not help."""


class RedisGone(RedisFault):
    """Redis does not answer, or has lost its connection: what was asked may be done or not."""


@attrs.frozen
class Address:
    """Where Redis is, and as whom to speak with it."""

    host: str
    """Empty for a unix socket."""
    port: int
    path: str
    db: int
    tls: bool
    user: str | None = attrs.field(repr=False)
    password: Password

    @classmethod
    def of(cls, config: Config) -> Address:
        """Return what a configuration says. Raises `ConfigError`."""
        url = urlsplit(config.redis)
        said = unquote(url.password) if url.password else None
        file = Path(config.redis_password_file) if config.redis_password_file else None
        return cls(
            url.hostname or "",
            url.port or PORT,
            unquote(url.path) if url.scheme == "unix" else "",
            int(url.path.strip("/") or 0) if url.scheme != "unix" else 0,
            url.scheme == "rediss",
            unquote(url.username) if url.username else None,
            Password(said, file),
        )

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.path or f"{host}:{self.port}"

    async def connect(self) -> _Connection:
        """Open a connection, on which nothing is said yet.

        Raises OSError, which TLS' own errors are too, and RuntimeError where there is no thread to look up a name.
        """
        stream: ByteStream
        if self.path:
            stream = await anyio.connect_unix(self.path)
        elif self.tls:
            context = await do_apart(ssl.create_default_context)  # it reads all authorities
            stream = await anyio.connect_tcp(self.host, self.port, ssl_context=context, tls_standard_compatible=False)
        else:
            stream = await anyio.connect_tcp(self.host, self.port)
        if not self.path:
            sock = stream.extra_attributes[SocketAttribute.raw_socket]()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, PIECE)
        return _Connection(Pieces(stream), self)


class _Connection(BaseConnection):
    """The library's connection, on a stream that is open: its own leaves buffers open where it finds nobody."""

    def __init__(self, stream: Pieces, address: Address) -> None:
        location = TCPLocation(address.host, address.port)
        super().__init__(location, username=address.user, password=address.password.now(), db=address.db)
        self._opened = stream

    async def _connect(self) -> ByteStream:
        return self._opened

    @property
    def moved(self) -> int:
        """Bytes that have gone and come."""
        return self._opened.sent + self.statistics.bytes_read

    @property
    def begun(self) -> bytes:
        """What Redis said first of all."""
        return self._opened.begun

    def describe(self) -> str:
        return f"Connection<{self.location}>"


@attrs.define(eq=False)
class Wire:
    """One connection; `lost` is set when it is over, and `fault` says why then, for logs."""

    _connection: _Connection
    lost: trio.Event = attrs.Factory(trio.Event)
    fault: str = GONE

    async def ask(self, *words: Word) -> Any:
        """Ask one command. Raises `RedisGone`, `RedisFault`, and coredis' `NoScriptError` for an unknown script."""
        try:
            return await self._connection.create_request(str(words[0]).encode(), *words[1:])
        except coredis.exceptions.NoScriptError:
            raise
        except coredis.exceptions.BusyLoadingError:
            self.cut()  # it answers when it has read its file; a later connection finds that out
            raise RedisGone(LOADING) from None
        except coredis.exceptions.ConnectionError:
            self.cut()
            raise RedisGone(GONE) from None
        except coredis.exceptions.RedisError as error:
            if not _is_replicas(error):
                raise _fault(error) from None
            self.fault = REPLICA  # since a failover: a later connection may be led to the one that takes writes now
            self.cut()
            raise RedisGone(GONE, REPLICA) from None
        except Exception as error:  # the library can't read what has come, and ends the connection
            self.cut()
            raise RedisGone(GONE, f"what it says can't be read: {type(error).__name__}") from None

    async def run(self, script: Script, keys: Sequence[str], *arguments: Word) -> Any:
        """Run a script; a Redis that does not know it is told it. Raises `RedisGone` and `RedisFault`."""
        try:
            return await self.ask("EVALSHA", script.sha, len(keys), *keys, *arguments)
        except coredis.exceptions.NoScriptError:
            return await self.ask("EVAL", script.text, len(keys), *keys, *arguments)

    async def ask_all(self, asked: Iterable[Sequence[Word]]) -> list[Any]:
        """Ask several commands at once; return the answers, a `RedisFault` in the place of each that is refused.

        Raises `RedisGone`: what was asked may be done or not.
        """
        try:
            make = self._connection.create_request
            requests = [make(str(words[0]).encode(), *words[1:], raise_exceptions=False) for words in asked]
        except coredis.exceptions.ConnectionError:
            raise RedisGone(GONE) from None
        answers = [await request for request in requests]
        for none in filter(_is_none, answers):
            raise RedisGone(LOADING if isinstance(none, coredis.exceptions.BusyLoadingError) else GONE)
        return [_fault(one) if isinstance(one, coredis.exceptions.RedisError) else one for one in answers]

    def cut(self) -> None:
        """End it; what is asked on it is not answered any more."""
        self.lost.set()
        self._connection.invalidate()

    async def carry(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Connect, and carry what is asked until the connection is over. Raises coredis' errors before it is made."""
        _ours.set(True)
        try:
            await self._connection.run(task_status=task_status)
        finally:
            self.lost.set()

    async def watch(self, patience: float) -> None:
        """End it where something is asked and no byte goes or comes for `patience` seconds.

        Looks are counted, not seconds: while this process stood still it read nothing, and that is not Redis' fault.
        """
        silent, counted = 0, -1
        while not self.lost.is_set():
            await trio.sleep(patience / LOOKS)
            moved, pending = self._connection.moved, self._connection.statistics.requests_pending
            silent = silent + 1 if pending and moved == counted else 0
            counted = moved
            if silent >= LOOKS:
                self.cut()


@attrs.define(eq=False)
class Redis:
    """What asks Redis, over one connection that is made anew whenever it is lost.

    Resource handling: lives in the context that `open_redis` gives. Error handling: `ask` and `run` raise `RedisGone`
    at once while there is no connection; nothing is asked twice.
    """

    address: Address
    prefix: str
    patience: float
    incarnation: str = ""
    """Which Redis answers, or answered last: another after each of its starts, and where it was a replica meanwhile."""
    since: float = 0.0
    """Trio's time since when the connection is whole."""
    fault: str = ""
    """Why there is no connection, for logs: it may name an address."""
    why: str = GONE
    """The same, as clients may be told it."""
    _wire: Wire | None = None
    _changed: trio.Event = attrs.Factory(trio.Event)
    _listeners: list[Callable[[bool], None]] = attrs.Factory(list)

    @property
    def connected(self) -> bool:
        """Whether Redis answers, as far as is known."""
        return self._wire is not None and not self._wire.lost.is_set()

    def key(self, *words: str) -> str:
        """Return the name of a key: the prefix and `words`, with colons between."""
        return ":".join((self.prefix, *words))

    def on_change(self, listener: Callable[[bool], None]) -> None:
        """Have `listener` told at once whenever Redis comes (True) or goes (False); it must not wait.

        It is told that Redis is gone again where that has a cause now which does not pass by itself.
        """
        self._listeners.append(listener)

    async def wait(self, *, connected: bool = True) -> None:
        """Wait until Redis answers, or until it does not."""
        while self.connected != connected:
            await self._changed.wait()

    async def ask(self, *words: Word) -> Any:
        """Ask one command that does not block; return the answer as RESP3 has it, texts as bytes.

        Raises `RedisGone` where it does not answer, `RedisFault` where it refuses.
        """
        return await self._usable().ask(*words)

    async def run(self, script: Script, keys: Sequence[str], *arguments: Word) -> Any:
        """Run a script; a Redis that does not know it is told it. Raises as `ask` does."""
        return await self._usable().run(script, keys, *arguments)

    @asynccontextmanager
    async def open_wire(self, patience: float) -> AsyncIterator[Wire]:
        """Open another connection, on which a command may block. Raises `RedisGone` and `RedisFault`.

        It is lost where for `patience` seconds no byte goes or comes.
        """
        async with open_services() as services:
            wire = await _begin(services, self.address)
            services.start_soon(wire.watch, patience)
            yield wire

    async def keep(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a connection until cancelled. Raises `ConfigError` where the first can't be had, or will not do."""
        pause, begun = BACKOFF[0], False
        while True:
            refused = False
            try:
                async with self.open_wire(self.patience) as wire:
                    self._came(wire, check(await wire.ask("INFO")))
                    if not begun:
                        task_status.started()
                    pause, begun = BACKOFF[0], True
                    await wire.lost.wait()
                    fault = why = wire.fault
            except (RedisFault, ConfigError) as error:
                refused = not isinstance(error, RedisGone)
                why = str(error)
                fault = error.detail if isinstance(error, RedisFault) else why
                if not begun:
                    raise ConfigError(f"redis: {self.address}: {fault}") from None
            self._went(fault, why, refused=refused)
            await trio.sleep(pause)
            pause = min(pause * 2, BACKOFF[1])

    def _usable(self) -> Wire:
        if self._wire is None:
            raise RedisGone(self.why)
        return self._wire

    def _came(self, wire: Wire, incarnation: str) -> None:
        self._wire, self.incarnation, self.since, self.fault = wire, incarnation, trio.current_time(), ""
        self._tell()

    def _went(self, fault: str, why: str, *, refused: bool) -> None:
        is_news = self._wire is not None or (refused and fault != self.fault)
        self._wire, self.fault, self.why = None, fault, why
        if is_news:
            self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
        for listener in self._listeners:
            listener(self.connected)


@asynccontextmanager
async def open_redis(config: Config) -> AsyncIterator[Redis]:
    """Connect with the Redis of a configuration. Raises `ConfigError` where it can't be reached, or will not do."""
    redis = Redis(Address.of(config), config.redis_prefix, min(PATIENCE, config.node_lease / PATIENCE_SHARE))
    logging.getLogger("coredis").addFilter(_is_anothers)
    async with open_lasting(redis.keep):
        yield redis


def check(info: Any) -> str:
    """Return the incarnation of a Redis that will do, out of what its INFO says, which it answers before all else.

    Raises `ConfigError`, and `RedisGone` where it answers nothing else yet.
    """
    text = info.decode(errors="replace") if isinstance(info, bytes) else ""
    facts = dict(line.partition(":")[::2] for line in text.splitlines() if ":" in line)
    version = re.match(r"(\d{1,4})\.(\d{1,4})", facts.get("redis_version", ""))
    if not version or (int(version[1]), int(version[2])) < OLDEST:
        told = facts.get("redis_version", "of no version")
        raise ConfigError(f"Redis {told} is too old; {OLDEST[0]}.{OLDEST[1]} or later will do")
    if facts.get("cluster_enabled") == "1":
        raise ConfigError("Redis Cluster will not do: what is decided together must be in one Redis")
    if facts.get("loading") == "1":
        raise RedisGone(LOADING)
    if facts.get("role") == "slave":
        raise ConfigError(REPLICA)
    if (policy := facts.get("maxmemory_policy", "noeviction")) != "noeviction":
        raise ConfigError(f"maxmemory-policy must be noeviction, not {policy}: what Redis drops would be lost")
    return facts.get("run_id", "") + facts.get("master_replid", "")


def _fault(error: coredis.exceptions.RedisError) -> RedisFault:
    """Return what an error is here; those with a code at the front that the library does not know may pass.

    So may that its user may not do what a script does, which has no code.
    """
    of_script = isinstance(error, coredis.exceptions.ResponseError) and "user_script" in str(error)
    known = isinstance(error, coredis.exceptions.ReadOnlyError) or re.match(f"[A-Z]+ |{FORBIDDEN}", str(error))
    kind = RedisBroken if of_script and not known else RedisFault
    return kind(f"Redis refuses: {_ADDRESS.sub('…', _SCRIPT.sub('', str(error)))}", str(error))


def _is_replicas(error: coredis.exceptions.RedisError) -> bool:
    """Return whether only a replica says so: it takes no writes, or has not come to the one that does yet."""
    return isinstance(error, coredis.exceptions.ReadOnlyError) or str(error).startswith("MASTERDOWN Link ")


def _is_none(answer: object) -> bool:
    """Return whether the connection was over before an answer came, or could be read."""
    refused = isinstance(answer, coredis.exceptions.RedisError)
    return isinstance(answer, coredis.exceptions.ConnectionError if refused else Exception)


_SCRIPT: Final = re.compile(r",? script: .*", re.DOTALL)
"""Where in a script it was, which Redis says behind what it was."""
_ADDRESS: Final = re.compile(r"(?<!\S)(?!user_script:)\S*[\w\]]:\d+\S*|\b\d+(?:\.\d+){3}\b")
"""What may be a host with its port, or one by its number."""


async def _begin(nursery: trio.Nursery, address: Address) -> Wire:
    """Connect. Raises `RedisGone` and `RedisFault`."""
    try:
        with trio.fail_after(CONNECT_TIMEOUT):
            connection = await address.connect()
            wire = Wire(connection)
            await nursery.start(wire.carry)
            return wire
    except (ssl.SSLError, socket.gaierror) as error:
        raise RedisFault(GONE, error.strerror or str(error)) from None
    except OSError as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error  # that of one address says more
        raise RedisGone(GONE, cause.strerror or str(cause)) from None
    except (anyio.BrokenResourceError, anyio.EndOfStream):
        raise RedisGone(GONE, "the connection ended before TLS was agreed on") from None
    except RuntimeError as error:  # as Python says that there is no thread, in which a name is looked up
        raise RedisGone(GONE, str(error)) from None
    except trio.TooSlowError:
        raise RedisGone(GONE, f"no answer within {CONNECT_TIMEOUT:g} s") from None
    except coredis.exceptions.ConnectionError:
        if FULL.encode() in connection.begun:
            raise RedisFault(f"Redis refuses: {FULL}", FULL) from None
        raise RedisGone(GONE, UNGREETED if address.tls else "") from None
    except coredis.exceptions.RedisError as error:
        raise _fault(error) from None


_ours: ContextVar[bool] = ContextVar("ours", default=False)
"""Whether a task carries a connection of ours."""


def _is_anothers(_record: logging.LogRecord) -> bool:
    """Return whether a record of the library is not of a connection of ours, of which each try would be an error."""
    return not _ours.get()
