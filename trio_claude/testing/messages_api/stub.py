"""Listen, answer each client, and keep what was seen; `open_messages_api` is the only way to have a stub.

Rule: it listens on loopback alone, and leaving its context leaves nothing open.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable

import attrs
import trio

from ..model import Ending, Model
from .asked import ApiRequest
from .connection import Connection
from .replies import plan

HOST = "127.0.0.1"


@attrs.frozen
class ApiAnswer:
    """One answer that has ended, SILENCE excepted: that ends as CLIENT_GONE."""

    request: ApiRequest
    ending: Ending


@attrs.define(eq=False)
class MessagesApi:
    """A stub that listens, and what it has seen; `open_messages_api` makes it.

    Each record keeps the most recent entries only; the `wait_…` methods count all there ever were.
    """

    port: int
    requests: deque[ApiRequest] = attrs.field(repr=False)
    answers: deque[ApiAnswer] = attrs.field(repr=False)
    failures: deque[Exception]
    """What went wrong in here, a client's faults not included: empty unless the stub has a bug."""
    _n_requests: int = attrs.field(default=0, init=False, repr=False)
    _n_answers: int = attrs.field(default=0, init=False, repr=False)
    _answering: set[Connection] = attrs.field(factory=set[Connection], init=False, repr=False)
    _model: Model = attrs.field(factory=Model, init=False, repr=False)
    _changed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False, repr=False)

    @property
    def url(self) -> str:
        """What to set ANTHROPIC_BASE_URL to."""
        return f"http://{HOST}:{self.port}"

    @property
    def open_streams(self) -> int:
        """How many clients are being answered now, the stalled and the hanging included."""
        return len(self._answering)

    async def wait_requests(self, count: int) -> None:
        """Wait until `count` requests have arrived since the start."""
        await self._wait_until(lambda: self._n_requests >= count)

    async def wait_answers(self, count: int) -> None:
        """Wait until `count` answers have ended since the start, in any way."""
        await self._wait_until(lambda: self._n_answers >= count)

    async def wait_open_streams(self, count: int) -> None:
        """Wait until just `count` clients are being answered; a moment of it may be missed."""
        await self._wait_until(lambda: self.open_streams == count)

    async def _wait_until(self, holds: Callable[[], bool]) -> None:
        await trio.lowlevel.checkpoint()
        while not holds():
            await self._changed.park()

    async def _serve(self, stream: trio.SocketStream) -> None:
        """Serve one client to its end; `trio.serve_listeners` closes the stream."""
        connection = Connection(stream)
        try:
            while (request := await connection.read()) and await self._answer(connection, request):
                pass
        except trio.BrokenResourceError:
            pass  # the client is gone
        except Exception as error:
            self.failures.append(error)

    async def _answer(self, connection: Connection, request: ApiRequest) -> bool:
        self._note_request(request, connection)
        try:
            ending = await connection.perform(plan(self._model, request))
            self._note_answer(ApiAnswer(request, ending))
        finally:
            self._answering.discard(connection)
            self._changed.unpark_all()
        return ending is Ending.COMPLETE and connection.reuse()

    def _note_request(self, request: ApiRequest, connection: Connection) -> None:
        self.requests.append(request)
        self._n_requests += 1
        self._answering.add(connection)
        self._changed.unpark_all()

    def _note_answer(self, answer: ApiAnswer) -> None:
        self.answers.append(answer)
        self._n_answers += 1


@contextlib.asynccontextmanager
async def open_messages_api(port: int = 0, max_requests: int = 1000) -> AsyncIterator[MessagesApi]:
    """Listen on loopback while the context lasts; port 0 takes a free one.

    Resource handling: leaving the context closes the listener and every connection at once, whatever is being sent.
    Error handling: what the body raises comes out as it is, not in a group; clients' errors stay inside.
    """
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(port, host=HOST)
            api = MessagesApi(
                port=listeners[0].socket.getsockname()[1],
                requests=deque(maxlen=max_requests),
                answers=deque(maxlen=max_requests),
                failures=deque(maxlen=max_requests),
            )
            await nursery.start(trio.serve_listeners, api._serve, listeners)
            yield api
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        failure = group.exceptions[0] if len(group.exceptions) == 1 else group
    if failure is not None:
        raise failure  # out here, its own cause and context stay as they were
