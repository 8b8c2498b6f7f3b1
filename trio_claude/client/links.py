"""The way to one run: a connection, and after it another, where the first breaks and the program wants that.

Rule 1: a message is said once. Who comes back is told how many were heard, and says only what was not. Rule 2: lines
come once, in order. Rule 3: a server that says no is not asked again. Two are: one that can't take this client to the
run just now (another may, or the same one in a moment), and one that knows less of the run than was heard: the last
lines died with the server before it.
"""

from __future__ import annotations

import contextlib
import math
import random
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from itertools import islice
from typing import Any, Final, TypeAlias

import anyio
import attrs

from .cli_lines import Line, parse_line
from .sockets import BROKEN, LINGER, ConnectFailed, Socket, dumps, open_socket

Json: TypeAlias = dict[str, Any]
Take: TypeAlias = Callable[[Line, int], Awaitable[None]]
Fail: TypeAlias = Callable[[Exception], None]
OUTBOX_LIMIT: Final = 1024 * 1024
"""Bytes of what was said that are kept beside the last message, to be said again where it was not heard."""
LOST: Final = (1001, 1005, BROKEN)
"""Close codes behind which the run may still be there: nobody said that it is over."""
NOT_NOW: Final = (1012, 1013)
"""Those of a server that goes down, or has no way to the run just now; without `ended` the run may still be there."""
CLOSING: Final = ("draining", "journal", "no-answer")
"""Codes of refusals that a close comes behind; behind `attached` all others are of one message, and the run goes on."""
STEADY: Final = 0.1
"""Seconds for which a connection to the run holds that is one, though no line comes; a failing server is quicker."""
FIRST_WAIT: Final = 0.05
LONGEST_WAIT: Final = 5.0
"""Seconds between two tries to come back; they double from the first to the longest, and vary by half."""


def _ignore(_said: str) -> None:
    """Hear nothing."""


def no_matter() -> None:
    """Take that something was not said."""


@attrs.frozen(kw_only=True)
class Reconnect:
    """Come back to the run where the connection breaks; the server lets it wait for `grace` seconds.

    A server that goes down, or can't reach the run for a moment, is left or asked again too, for as long.
    `on_lost` hears why the connection broke, `on_back` the id of the run, each time; they must not wait. What they
    raise is raised where the program iterates, and the session goes on.
    """

    grace: float = 60.0
    on_lost: Callable[[str], None] = _ignore
    on_back: Callable[[str], None] = _ignore


class Link:
    """A run's connection.

    Resource handling: `run` owns the sockets, one at a time. Error handling: `send` raises `ConnectionError` once it is
    over, or where too much waits to be said; `code` and `reason` say how it ended.
    """

    def __init__(
        self,
        address: str,
        name: str,
        key: str | None,
        reconnect: Reconnect | None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.code: int = BROKEN
        self.reason: str = ""
        self._address = address
        self._name = name
        self._key = key
        self._headers = headers
        self._reconnect = reconnect
        self._token = secrets.token_hex(16)
        self._socket: Socket | None = None
        self._current: Socket | None = None
        self._run = ""
        self._role = "owner"
        self._lines = 0
        self._stays = reconnect is not None
        self._is_in = False
        self._said = Said(OUTBOX_LIMIT if reconnect else 0)
        self._speaking = anyio.Lock()
        self._waiting = anyio.CancelScope()
        self._is_over = False
        self._over = anyio.Event()
        self._is_ahead = False
        self._until = math.inf
        self._wait = FIRST_WAIT
        self._asked = 0.0
        self._back = math.inf
        self._refusal: tuple[Line, int] | None = None
        self._fail: Fail

    @property
    def lasts(self) -> bool:
        """Whether it is not over where a connection breaks."""
        return self._reconnect is not None and not self._is_over

    @property
    def lines(self) -> int:
        """The number of the last line that was heard."""
        return self._lines

    @property
    def stays(self) -> bool:
        """Whether the run goes on for a while without this client: it was begun so, or come to."""
        return self._stays

    @property
    def _may_run(self) -> bool:
        """Whether there is a run, or one was asked for that may begin before a last word is heard."""
        return bool((self._run and self._is_in) or self._socket) and not (self._is_over or self._over.is_set())

    async def run(self, start: Json, take: Take, fail: Fail) -> None:
        """Connect, say `start` or `attach`, and have each frame taken, to the end; `fail` hears what callbacks raise.

        Raises `ConnectFailed` where it never began.
        """
        self._fail = fail
        if start["op"] == "attach":
            self._run, self._lines, self._role, self._stays = start["run"], start["after"], start["as"], True
        try:
            await self._connect(start, take)
            while self._reconnect and self._run and not self._is_over:
                await self._come_back(self._reconnect, take)
            if self._refusal:
                await take(*self._refusal)
        finally:
            self._is_over = True
            self._over.set()

    async def leave(self, last: str = "") -> None:
        """Say a last word where the run would wait for this client, and close the connection; `run` returns.

        It is waited for that the run is over: a connection that takes the word may be broken already.
        """
        if self._stays and self._may_run and last:
            with contextlib.suppress(ConnectionError):
                self._said.add(last)
                await self._speak(last)
                await self._over.wait()
        self.drop()

    def drop(self) -> None:
        """Close the connection, at once and without a word; `run` returns."""
        self._is_over = True
        self._waiting.cancel()

    async def send(self, text: str, on_unsaid: Callable[[], None] = no_matter) -> None:
        """Say something; cancelled before its turn has come it is not said, which `on_unsaid` hears.

        Raises `ConnectionError`.
        """
        try:
            await anyio.lowlevel.checkpoint()
        except anyio.get_cancelled_exc_class():
            on_unsaid()
            raise
        if self._is_over or (self._socket is None and self._reconnect is None):
            raise ConnectionError("the session is over")
        self._said.add(text)
        try:
            await self._speak(text)
        except anyio.get_cancelled_exc_class():
            if self._said.take_back(text):
                on_unsaid()
            raise
        except BaseException:  # who hears that it failed must not have it said later; raised again
            self._said.take_back(text)
            raise

    async def show_life(self) -> None:
        """Say on the connection that is read that this program lives, though it takes nothing."""
        if self._current:
            await self._current.show_life()

    async def _speak(self, upto: str = "") -> None:
        """Say what was not said yet, in order, and nothing behind `upto`: that waits for whoever has added it."""
        async with self._speaking:
            while (socket := self._socket) and (text := self._said.next) and (not upto or self._said.has(upto)):
                self._said.advance()
                try:
                    await socket.send(text)
                except ConnectionError:
                    if self._socket is socket:
                        self._socket = None
                    if self._reconnect is None:
                        raise
                    return
                self._said.forget()

    async def _connect(self, first: Json, take: Take) -> None:
        """Hold one connection from its first message to its end. Raises `ConnectFailed`."""
        self._back = math.inf
        async with open_socket(self._address, self._name, self._key, self._headers) as socket:
            self._current = socket
            if self._is_over:  # left meanwhile: nothing is to begin
                return
            if first["op"] == "start":
                self._socket = socket
            with anyio.CancelScope() as self._waiting, contextlib.suppress(ConnectionError):  # its end is heard below
                async with self._speaking:  # whatever else is said, a last word too, comes behind it
                    await socket.send(dumps({**first, "client": self._token}))
            with anyio.CancelScope(deadline=self._until) as self._waiting:
                await self._hear(socket, take)
            self._socket = None
        code = socket.code or BROKEN
        if not (self._refusal and code in LOST):  # the last refusal says more than that a try came to nothing
            self.code, self.reason = code, socket.reason
        self._is_over = self._is_over or not (self._is_ahead or code in (*LOST, *NOT_NOW))
        self._is_ahead = False

    async def _hear(self, socket: Socket, take: Take) -> None:
        while not self._is_over and (text := await socket.receive()) is not None:
            line = parse_line(text)
            if line.said.get("type") == "gateway":
                await self._note(line.said, socket)
                if self._is_ahead or self._keeps(line, len(text)):
                    continue
            else:
                self._lines += 1
                self._until, self._wait = math.inf, FIRST_WAIT
            await take(line, len(text))

    def _keeps(self, line: Line, size: int) -> bool:
        """Keep what may be a refusal for a moment: it is told only where it was the last word."""
        said = line.said
        if said.get("event") != "refused" or not (self._reconnect and self._run):
            return False
        if self._back < math.inf and said.get("code") not in CLOSING:
            return False
        self._refusal, asked = (line, size), said.get("retry_after")
        self._waiting.deadline = anyio.current_time() + LINGER  # for the close, also where the time is over meanwhile
        self._asked = asked if isinstance(asked, int | float) and asked > 0 else 0.0
        return True

    async def _note(self, said: Json, socket: Socket) -> None:
        """Take from what the server says what it takes to come back, and what was heard."""
        match said.get("event"):
            case "started":
                self._run, self._is_in, self._back = str(said.get("run")), True, anyio.current_time()
            case "attached":
                await self._attached(said, socket)
            case "gap":
                self._lines = max(self._lines, int(said.get("to", 0)))
            case "refused" if self._is_in and said.get("code") == "ahead":
                last = int(said.get("last", self._lines))
                self._is_ahead, self._lines = last < self._lines, min(last, self._lines)
            case "ended":
                self._run = ""
                self._over.set()

    async def _attached(self, said: Json, socket: Socket) -> None:
        """Be there, or back; say what was not heard, unless the run is over, and only told again."""
        self._waiting.deadline, self._back, self._refusal = math.inf, anyio.current_time(), None
        if not said.get("ended"):
            async with self._speaking:  # nobody is in the middle of a message on the connection before
                self._said.rewind(int(said.get("heard") or 0))
                self._socket = socket
            await self._speak()
        if self._until < math.inf and self._reconnect:
            self._tell(self._reconnect.on_back, self._run)
        self._is_in = True

    async def _come_back(self, reconnect: Reconnect, take: Take) -> None:
        """Come back once, and hold that connection; give up where that lasts too long, or the server says no for good.

        A connection that breaks again at once, before a line, is none: time and pauses go on from the one before.
        """
        if self._until == math.inf or anyio.current_time() > self._back + STEADY:
            self._until, self._wait = anyio.current_time() + reconnect.grace, FIRST_WAIT
            self._tell(reconnect.on_lost, self.reason)
        while not self._is_over and anyio.current_time() < self._until:
            with anyio.CancelScope() as self._waiting:
                await anyio.sleep(min(self._pause(), self._until - anyio.current_time()))
            if self._is_over or anyio.current_time() >= self._until:
                break
            attach = {"type": "gateway", "op": "attach", "run": self._run, "after": self._lines, "as": self._role}
            try:
                await self._connect(attach, take)
            except ConnectFailed as error:
                self.reason = str(error)
                if error.status in (401, 403):
                    self._is_over, self._refusal = True, None
            else:
                return
        self._is_over = True

    def _tell(self, hear: Callable[[str], None], said: str) -> None:
        """Tell the program how it stands with the connection."""
        try:
            hear(said)
        except Exception as error:  # the program's own
            self._fail(error)

    def _pause(self) -> float:
        """Return the seconds until the next try: a little more than a server has asked for, else longer each time."""
        asked, self._asked = self._asked, 0.0
        if asked:
            return asked * random.uniform(1, 1.5)  # noqa: S311 - no secret
        wait, self._wait = self._wait, min(2 * self._wait, LONGEST_WAIT)
        return wait * random.uniform(0.5, 1)  # noqa: S311 - no secret


class Said:
    """What was said on a link: what comes next, and what of it may have to be said again."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._texts: deque[str] = deque()
        self._size = 0
        self._first = 0
        self._next = 0

    def add(self, text: str) -> None:
        """Take a message. Raises `ConnectionError` where too much was not said yet."""
        waiting = sum(map(len, islice(self._texts, self._next - self._first, None)))
        if self._limit and waiting and waiting + len(text) > self._limit:
            raise ConnectionError("the connection is broken, and too much waits for the next one")
        self._texts.append(text)
        self._size += len(text)

    def has(self, text: str) -> bool:
        """Return whether a message waits to be said."""
        return any(one is text for one in islice(self._texts, self._next - self._first, None))

    def take_back(self, text: str) -> bool:
        """Forget a message, if nothing of it was said yet; return whether that is so."""
        for index in range(self._next - self._first, len(self._texts)):
            if self._texts[index] is text:
                del self._texts[index]
                self._size -= len(text)
                return True
        return False

    @property
    def next(self) -> str:
        """What is to be said next, nothing where all was said."""
        index = self._next - self._first
        return self._texts[index] if index < len(self._texts) else ""

    def advance(self) -> None:
        """Take that the next one is being said."""
        self._next += 1

    def forget(self) -> None:
        """Keep of what was said the last, and of those before as much as the limit allows."""
        while self._first < self._next and (not self._limit or (self._size > self._limit and len(self._texts) > 1)):
            self._drop()

    def rewind(self, heard: int) -> None:
        """Go back to what was not heard. Raises `ConnectionError` where that is not kept any more."""
        if heard > self._next:
            raise ConnectionError("the server has heard more than was said")
        while self._first < heard and self._texts:
            self._drop()
        if heard < self._first:
            raise ConnectionError("what was said last was not heard, and is not kept any more")
        self._first = self._next = heard

    def _drop(self) -> None:
        self._size -= len(self._texts.popleft())
        self._first += 1
