"""A WebSocket to a server: the only place that knows the library below, and the one map of its exceptions."""

from __future__ import annotations

import contextlib
import json
import math
import re
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Generic, TypeVar, cast
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies

import anyio
import anyio.abc
import anyio.lowlevel
import httpcore
import httpx
from httpx_ws import (
    AsyncWebSocketSession,
    HTTPXWSException,
    WebSocketDisconnect,
    WebSocketUpgradeError,
    aconnect_ws,
)
from wsproto.events import Pong
from wsproto.utilities import LocalProtocolError

from ..errors import TrioClaudeError

READ_SIZE = 256 * 1024
"""Bytes that are read at once at most."""
INBOX_LIMIT = 32 * 1024 * 1024
"""Bytes of frames that are kept for a program which does not iterate; then the server waits."""
EACH = 100
"""Bytes that a frame counts for beside its own, of which it may have none."""
BROKEN = 1006
"""What stands for a close code where the connection broke."""
CONNECT_TIMEOUT = 10.0
"""Seconds for TCP, and then for the answer to the handshake."""
LINGER = 1.0
"""Seconds for which frames are still taken from a connection that takes no more, or is to be closed by the server.

As long is waited for a network that takes no close frame, or no ping, and for the words of a refusal.
"""
PIECE = 64 * 1024
"""Bytes that are written at once; where the next ones go out too, a long message is under way."""


SWITCHING = 101
"""The HTTP status behind which a WebSocket is spoken."""
REFUSAL_LIMIT = 4096
"""Bytes of a refusal's body that are read."""
_NO_DOOR = re.compile(r"^$|/+$|/ws/(claude|session)/*$")
"""What of an address's path leads to whichever door is wanted: nothing, or a slash or a door behind any prefix."""
SILENCE = 20.0
"""Seconds without a word of the server after which it is asked for a sign of life; as long again without one: gone."""
ALIVE = 5.0
"""Seconds between two signs of life of a program that takes nothing; a server waits for 10 s behind 10 s by default."""


class ConnectFailed(TrioClaudeError):
    """The server could not be reached, or refused the handshake, then with the HTTP `status`; the text says which."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


def dumps(said: Any) -> str:
    """Return JSON. Raises TypeError and ValueError for what is none, a number that is not finite too."""
    return json.dumps(said, allow_nan=False)


def door(url: str, path: str = "/ws/claude", query: str = "frames=verbatim") -> str:
    """Return a server's address, with or without scheme and path, as the address of a door.

    Where it is that of another door, `path` is taken in its place, and behind a path with a slash at its end it is put.
    Raises `ConnectFailed`.
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        _ = parts.port  # asyncio's own lookup would raise something else
    except ValueError as error:
        raise ConnectFailed(f"can't reach {url}: {error}") from error
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    own = _NO_DOOR.sub(path, parts.path, count=1)
    return urlunsplit((scheme, parts.netloc, own, query, ""))


class _Stream(httpcore.AsyncNetworkStream):
    """A network stream, written piece by piece; `moved` is when bytes last came, or more of a long message went."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self.moved: float = -math.inf

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = await self._stream.read(max_bytes, timeout)
        self.moved = anyio.current_time()
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for at in range(0, len(buffer), PIECE):
            await self._stream.write(buffer[at : at + PIECE], timeout)
            if at:
                self.moved = anyio.current_time()

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Session(AsyncWebSocketSession):
    """The library's session; its close frame waits behind a message that the network does not take, but not for ever.

    Whoever stands in such a message then gets its error, because the stream is closed under it.
    """

    stream: _Stream

    def __init__(self, stream: httpcore.AsyncNetworkStream, **options: Any) -> None:
        super().__init__(_Stream(stream), **options)

    async def close(self, code: int = 1000, reason: str | None = None) -> None:
        with anyio.move_on_after(LINGER):
            await super().close(code, reason)
            return
        await self.stream.aclose()


class Socket:
    """A connected WebSocket. `code` and `reason` say how it ended, once it has.

    A server that says nothing for `SILENCE` seconds, and for as many does not answer a ping, is gone, unless more and
    more of a long message comes or goes meanwhile.
    """

    def __init__(self, session: _Session) -> None:
        self._session = session
        self._silence = SILENCE
        self._pong: anyio.Event | None = None
        self._broken = math.inf
        self._receiving = anyio.CancelScope()
        self.code: int | None = None
        self.reason: str = ""

    async def send(self, text: str) -> None:
        """Send a text frame. Raises `ConnectionError` where nobody is left to take it.

        Cancelled in the middle of it the connection is over, because nothing can come behind half a frame.
        """
        try:
            await self._session.send_text(text)
        except _GONE as error:
            self._break()
            raise ConnectionError("the connection to the server is over") from error
        except anyio.get_cancelled_exc_class():
            self._break()
            raise

    async def show_life(self) -> None:
        """Say unasked that this program lives: while a frame is not taken, the library reads no ping behind it."""
        with anyio.move_on_after(LINGER), contextlib.suppress(*_GONE):
            await self._session.send(Pong())

    def _break(self) -> None:
        """Let whoever receives take what is there and then wait no longer; the library does not always say the end."""
        self._broken = self._receiving.deadline = anyio.current_time() + LINGER

    async def abandon(self) -> None:
        """Close the network under a connection that broke: a close frame would reach nobody."""
        if self.code == BROKEN or self._broken < math.inf:
            with anyio.CancelScope(shield=True):
                await self._session.stream.aclose()

    async def receive(self) -> str | None:
        """Return the next text frame, None at the end."""
        while self.code is None:
            deadline = min(self._broken, anyio.current_time() + self._silence)
            try:
                with anyio.CancelScope(deadline=deadline) as self._receiving:
                    text = await self._session.receive_text()
                    self._pong = None
                    return text
                await self._probe()
            except WebSocketDisconnect as end:
                self.code, self.reason = int(end.code), end.reason or ""
            except _GONE as error:
                self.code, self.reason = BROKEN, str(error) or "the connection broke"
        return None

    async def _probe(self) -> None:
        """Take that nothing has come: it is broken, a message is under way, a ping was not answered, or one is sent."""
        now = anyio.current_time()
        if now >= self._broken:
            self.code, self.reason = BROKEN, "the connection broke"
        elif now < self._session.stream.moved + self._silence:
            self._pong = None
        elif self._pong and not self._pong.is_set():
            self.code, self.reason = BROKEN, f"the server has been silent for {2 * self._silence:g} s"
        else:
            self._pong = anyio.Event()  # one that can't be sent is not answered either
            with anyio.move_on_after(LINGER):
                self._pong = await self._session.ping()


_GONE = (HTTPXWSException, LocalProtocolError, anyio.ClosedResourceError, anyio.BrokenResourceError)

T = TypeVar("T")


class Inbox(Generic[T]):
    """Things that wait for one reader, at most `limit` bytes of them; whoever puts more in waits, and says `alive`."""

    def __init__(self, limit: int = INBOX_LIMIT, alive: Callable[[], Awaitable[None]] | None = None) -> None:
        self._limit = limit
        self._alive = alive or anyio.lowlevel.checkpoint
        self._things: deque[tuple[T, int]] = deque()
        self._size = 0
        self._closed = False
        self._refuses = False
        self._due = -math.inf
        self._stir = anyio.Event()

    async def put(self, thing: T, size: int = 0) -> None:
        """Put a thing of so many bytes in, and some more; wait where too much is there already."""
        size += EACH
        while self._size and self._size + size > self._limit and not (self._closed or self._refuses):
            with anyio.CancelScope(deadline=self._due):
                await self._stir.wait()
            if anyio.current_time() >= self._due:
                self._due = anyio.current_time() + ALIVE
                await self._alive()
        if not self._refuses:
            self.add(thing, size)

    def add(self, thing: T, size: int = 0) -> None:
        """Put a thing in, whatever is there."""
        self._things.append((thing, size))
        self._size += size
        self.wake()

    async def take(self, enough: Callable[[], bool] = lambda: False) -> T | None:
        """Return the next thing, None once there comes no more, or it is `enough`: who makes it so calls `wake`."""
        while not self._things and not self._closed and not enough():
            await self._stir.wait()
        if not self._things or enough():
            return None
        thing, size = self._things.popleft()
        self._size -= size
        self.wake()
        return thing

    def refuse(self) -> None:
        """Drop what is put in from now on: nobody is going to read it."""
        self._refuses = True
        self.wake()

    def close(self) -> None:
        """Say that no more comes."""
        self._closed = True
        self.wake()

    def wake(self) -> None:
        """Have whoever waits look again."""
        self._stir.set()
        self._stir = anyio.Event()


class Awaited(Generic[T]):
    """An answer that is waited for."""

    def __init__(self) -> None:
        self._come = anyio.Event()
        self._value: T | Exception | None = None

    def set(self, value: T) -> None:
        """Take the answer."""
        self._value = value
        self._come.set()

    def fail(self, error: Exception) -> None:
        """Take that there will be none."""
        self._value = error
        self._come.set()

    async def get(self) -> T:
        """Wait for the answer and return it, or raise why there is none."""
        await self._come.wait()
        if isinstance(self._value, Exception):
            raise self._value
        return cast("T", self._value)


@asynccontextmanager
async def open_bare(inner: AbstractAsyncContextManager[T]) -> AsyncIterator[T]:
    """Yield what `inner` does; what the body raises comes out as it is, also where leaving `inner` is cancelled."""
    failure: BaseException | None = None
    try:
        async with inner as entered:
            try:
                yield entered
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:  # raised below
                failure = error
    except anyio.get_cancelled_exc_class():
        if failure is None:
            raise
    if failure:
        raise failure


def open_tasks() -> AbstractAsyncContextManager[anyio.abc.TaskGroup]:
    """Open a task group; what its context raises comes out bare: a group would make every handler a group's."""
    return open_bare(anyio.create_task_group())


@asynccontextmanager
async def open_socket(
    url: str,
    name: str,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[Socket]:
    """Connect to a door and yield the socket; `name` is the address as its user knows it, `key` a key or token.

    `headers` go with the handshake.

    Raises `ConnectFailed`.
    """
    async with AsyncExitStack() as stack:
        try:
            connection = _connection(url, await stack.enter_async_context(_client(url, key, headers)))
            session = await connection.__aenter__()
        except WebSocketUpgradeError as error:
            raise ConnectFailed(f"{name} refused: {_why(error.response)}", error.response.status_code) from error
        except (httpx.InvalidURL, httpx.HTTPError, HTTPXWSException, OSError, ImportError, ValueError) as error:
            raise ConnectFailed(f"can't reach {name}: {_said(error)}") from error
        socket = Socket(session)
        try:
            yield socket
        finally:
            try:
                await socket.abandon()
            finally:  # asyncio's own cancellations go through a shield
                await connection.__aexit__(None, None, None)


def _said(error: Exception) -> str:
    """Return what an error says; one of TLS may say nothing, and then what it came of does."""
    cause: BaseException | None = error
    while isinstance(cause, Exception):
        if said := str(cause):
            return said
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__


_WHY = {401: "it wants a valid key or token", 429: "too many connections"}
"""What HTTP statuses mean at a door, whatever the server says."""
_ELSE = {403: "not from here, or not you"}
"""What they mean where it says nothing that can be shown, as a proxy before it."""


def _why(response: httpx.Response) -> str:
    """Return why a handshake was refused: the server's own words, but for a key that is wanted and for a crowd."""
    status = response.status_code
    why = _WHY.get(status) or _words(response) or _ELSE.get(status)
    return f"HTTP {status}: {why}" if why else f"HTTP {status}"


def _words(response: httpx.Response) -> str:
    """Return what a refusal says, nothing where it has no words that can be shown."""
    try:
        words = response.json()["error"]
    except (httpx.StreamError, ValueError, TypeError, KeyError, RecursionError):
        return ""
    return words if isinstance(words, str) and words.isprintable() else ""


async def _read_refusal(response: httpx.Response) -> None:
    """Read a refusal that is short, and comes: nobody can do so once the handshake has failed."""
    size = response.headers.get("Content-Length", "")
    if response.status_code == SWITCHING or not size.isdecimal() or int(size) > REFUSAL_LIMIT:
        return
    with anyio.move_on_after(LINGER), contextlib.suppress(httpx.HTTPError):
        await response.aread()


def _client(url: str, key: str | None, more: Mapping[str, str] | None) -> httpx.AsyncClient:
    """Return what speaks HTTP; a proxy of the environment is not for this machine's own servers.

    `key` stands in place of an Authorization among `more`. Raises `ConnectFailed` for what can't stand in a header, and
    for a variable that names no authorities.
    """
    if key is not None and not re.fullmatch(r"[!-~]+", key):
        raise ConnectFailed("the key has characters that no key has")
    try:
        headers = httpx.Headers(dict(more or {}))
    except UnicodeEncodeError as error:
        raise ConnectFailed("headers take ASCII only") from error
    if key:
        headers["Authorization"] = f"Bearer {key}"
    loopback, secure = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1"), url.startswith("wss")
    try:
        return httpx.AsyncClient(
            verify=True if secure else _no_authorities(),
            trust_env=not loopback,
            mounts={} if secure or _through_socks() else {"http://": None},
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT, read=CONNECT_TIMEOUT),
            headers=headers,
            event_hooks={"response": [_read_refusal]},
        )
    except OSError as error:
        raise ConnectFailed(f"SSL_CERT_FILE or SSL_CERT_DIR can't be used: {error}") from error


def _no_authorities() -> ssl.SSLContext:
    """Return what trusts nobody, for a way without TLS: to read all authorities holds the loop for 15 ms and more."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _through_socks() -> bool:
    """Return whether the environment's proxy for what has no TLS takes a WebSocket.

    One that speaks HTTP does not: httpx would have it hand the request on, and then it keeps the Upgrade for itself.
    """
    proxies = getproxies()
    return (proxies.get("http") or proxies.get("all", "")).startswith("socks")


def _connection(url: str, client: httpx.AsyncClient) -> AbstractAsyncContextManager[_Session]:
    return aconnect_ws(
        re.sub("^ws", "http", url),  # by these names httpx knows which proxy is meant, and where TLS is
        client,
        max_message_size_bytes=READ_SIZE,
        keepalive_ping_interval_seconds=None,
        session_class=_Session,
    )
