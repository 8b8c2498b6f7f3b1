"""One connection's life, read from top to bottom, and the only crash barrier.

Rule 1: whatever a client does ends its own connection at most; `Cancelled` passes, everything else stops here. Rule 2:
a run is over, its tree dealt with, before its client is told so. Rule 3: nothing is awaited between taking a resource
and owning it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import attrs
import trio

from . import context, messages
from .config import Config
from .conversation import Conversation
from .entrance import SESSION_DOOR, Entrance, Guest
from .errors import Busy, ClientError, CloseCode, Draining, HttpRefusal, NoMessage, NotWanted, PeerGone, Reason
from .events import PATH_LIMIT, Answered, ConnectionClosed, ConnectionOpened, Crashed, Observer, Refused
from .far import Far
from .faults import run_of
from .kit import Giver
from .messages import Closing, Prompt
from .peer import Heart, Peer, accept
from .places import Places
from .room import Room
from .run import Run
from .runs import Runs
from .stage import Stage
from .upgrade import Handshake, Request, Routes, Site, serve_http

DOOR = "/ws/claude"
DOORS = frozenset({DOOR, SESSION_DOOR})
SHAPES = MESSAGE, VERBATIM = "message", "verbatim"
"""In which shape a client may have the CLI's lines (`frames`): the first is what it gets where it names none."""
STRIKES = 8
"""Messages after the prompt that a client may send before it is shown out."""
DENIED = 100
"""Tools of whose denial a client is told: a CLI may name as many as it likes."""


@attrs.frozen
class Household:
    """What every connection of one server shares."""

    config: Config
    runs: Runs
    entrance: Entrance
    routes: Routes
    heart: Heart
    observer: Observer
    greet: Callable[[str], str]
    """Returns what a session of an identity is greeted with."""
    stages: dict[str, Stage] = attrs.Factory(dict)
    """The sessions that go on, by their runs' ids."""
    far: Far | None = None
    """The way to the runs of other nodes, if there are any."""

    def room(self) -> Room:
        """Return what its sessions share."""
        return Room(self.runs, self.config, self.observer, self.stages, self.far)

    def tell_history(self, connected: bool) -> None:
        """Tell the clients of all sessions whether the journal that nodes share can be reached."""
        state = "back" if connected else "waiting"
        for stage in self.stages.values():
            stage.tell_history(state)
        if self.far:
            self.far.tell_history(state)

    def _enter(self, request: Request) -> None:
        """Let a client in, if it asks for nothing that its door does not know. Raises `HttpRefusal`."""
        frames = request.query.get("frames", SHAPES[0])
        if request.path == DOOR and frames not in SHAPES:
            raise HttpRefusal(400, "bad-query", f"frames must be {' or '.join(SHAPES)}")
        self.entrance.enter(request)

    def site(self, address: str) -> Site:
        """Return what is served to a client at an address."""
        entrance = self.entrance
        return Site(
            routes=self.routes,
            doors=DOORS,
            check=lambda request: entrance.check(request, address),
            enter=self._enter,
            share=entrance.share,
            on_refusal=lambda refusal: self.observer(
                Refused(refusal.status, f"{refusal.code}: {refusal}", refusal.code)
            ),
            on_answer=lambda request, status, seconds: self.observer(_answered(address, request, status, seconds)),
        )


def _answered(address: str, request: Request, status: int, seconds: float) -> Answered:
    who = request.identity.name if request.identity else ""
    return Answered(request.address or address, request.method, request.path[:PATH_LIMIT], status, seconds, who)


async def serve_connection(
    sock: socket.socket,
    host: str,
    port: int,
    household: Household,
    places: Places,
    on_request: Callable[[], None] = lambda: None,
) -> None:
    """Serve one client to its end; `on_request` hears of its first request. Never raises but for a cancellation.

    `places` holds what the client is counted in; it is closed where a client is gone and its run goes on.
    """
    with context.Bound(peer=f"{host}:{port}"):
        try:
            handshake = await serve_http(
                sock, household.site(host), household.config, on_request, household.runs.until_drain
            )
            if handshake is not None:
                await _serve_websocket(sock, port, handshake, household, places)
        except* (OSError, Draining, PeerGone, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client left; there is nobody to tell
        except* Exception as group:
            household.observer(Crashed("connection", group, run_of(group)))
        finally:
            if sock.fileno() >= 0:
                trio.lowlevel.notify_closing(sock)
                sock.close()


async def _serve_websocket(
    sock: socket.socket, port: int, handshake: Handshake, household: Household, places: Places
) -> None:
    """Open the WebSocket of a client that was counted in, serve it, and close it with what is to be said at the end."""
    path, config, guest = handshake.request.path, household.config, household.entrance.guest(handshake.request)
    places.add(lambda: household.entrance.leave(guest))
    address, began = f"{guest.address}:{port}", trio.current_time()
    limit, greeting = config.max_message, messages.INFO
    if path == SESSION_DOOR:
        limit, greeting = config.max_session_message, household.greet(guest.name)
    with context.Bound(identity=guest.name, peer=address):
        async with accept(sock, handshake, greeting, config, household.heart, household.runs.turns, limit) as peer:
            household.observer(ConnectionOpened(address, path, guest.name))
            try:
                closing = await _door(path, peer, handshake, guest, household, places).serve()
                if closing is not None:
                    if closing.frame is not None:
                        peer.post(closing.frame)
                    await peer.close(closing.code, closing.reason)
            finally:
                seconds = trio.current_time() - began
                household.observer(
                    ConnectionClosed(address, peer.closed.code, peer.closed.reason, path, seconds, guest.name)
                )


def _door(
    path: str, peer: Peer, handshake: Handshake, guest: Guest, household: Household, places: Places
) -> OneShot | Conversation:
    """Return what serves a client behind the door that it took."""
    if path == SESSION_DOOR:
        return Conversation(peer, guest, household.room(), places.close)
    return OneShot(peer, handshake, guest, household)


class OneShot:
    """One client on `/ws/claude`: a prompt in, the lines of one run out.

    Each step of `serve` either returns what to say at the end, or None where nobody is left to hear it.
    """

    def __init__(self, peer: Peer, handshake: Handshake, guest: Guest, household: Household) -> None:
        self._peer = peer
        self._guest = guest
        self._household = household
        self._verbatim = handshake.request.query.get("frames") == VERBATIM
        self._first: str | bytes | None = None
        self._arrived = trio.Event()
        self._strikes = 0
        self._left = False
        self._run: Run | None = None
        self._waiting = trio.CancelScope()
        self._denied: set[str] = set()

    async def serve(self) -> Closing | None:
        """Serve the client; return how to close."""
        self._peer.listen(self._hear, self._leave)
        try:
            prompt = await self._read_prompt()
            return await self._serve_run(prompt)
        except ClientError as error:
            return self._refuse(error, messages.render_error(str(error)))
        except NotWanted:
            return None if self._left else Closing(None, CloseCode.POLICY, "one prompt per connection")
        except Busy as error:
            return self._refuse(error, messages.render_error(str(error), retry_after=error.retry_after))
        except Draining as error:
            return self._refuse(error, messages.render_error(str(error)))

    def _refuse(self, error: ClientError | Busy | Draining, frame: str) -> Closing:
        self._household.observer(Refused(int(error.close_code), str(error), error.code))
        return Closing(frame, error.close_code, str(error))

    async def _read_prompt(self) -> Prompt:
        """Wait for the first message and parse it. Raises `ClientError`, or `PeerGone` where the client left."""
        config = self._household.config
        with self._household.runs.until_drain(config.first_message_timeout):
            await self._arrived.wait()
        if self._left:
            raise PeerGone("left before its prompt")
        first, self._first = self._first, None
        if first is None:
            raise NoMessage(f"no message within {config.first_message_timeout:g} s")
        return messages.parse_prompt(first, config.offered, config.timeout)

    async def _serve_run(self, prompt: Prompt) -> Closing | None:
        """Wait for a slot, run the CLI, and return what its client is told."""
        self._guest.check_may_run()
        member = self._guest.member
        async with self._household.runs.open(prompt, self._waiting, member=member, on_wait=self._queue) as run:
            self._run = run
            run.teller.context = self._guest.context
            if self._waiting.cancel_called:
                raise NotWanted("gave up before its run began")
            self._guest.check_may_run()
            outcome = await run.execute(self)
        if self._left:
            return None
        if self._strikes >= STRIKES:
            return Closing(None, CloseCode.POLICY, f"one prompt per connection; {outcome.receipt}")
        return messages.closing(outcome)

    # what the client does, told by the reader; nothing here waits

    def _hear(self, message: str | bytes) -> None:
        if not self._arrived.is_set():
            self._first = message
            self._arrived.set()
            return
        self._strikes += 1
        self._peer.post(messages.ONE_PROMPT)
        if self._strikes >= STRIKES:
            self._stop(Reason.STOPPED)

    def _leave(self) -> None:
        self._left = True
        self._arrived.set()
        self._stop(Reason.DISCONNECTED)

    def _stop(self, reason: Reason) -> None:
        if self._run:
            self._run.stop(reason)
        else:
            self._waiting.cancel()

    def _queue(self, place: int) -> None:
        self._peer.post(messages.render_queued(place, self._household.runs.patience))

    # what the run says: the Sink

    def giver(self) -> Giver | None:
        """Return what sends lines to the client, in the shape that it asked for, if it takes them at once."""
        give = self._peer.giver()
        return give if self._verbatim or give is None else self._give

    def _give(self, lines: list[bytes]) -> None:
        self._peer.give([messages.as_message(line) for line in lines])

    async def lines(self, lines: list[bytes]) -> None:
        """Send lines to the client, in the shape that it asked for."""
        await self._peer.send(lines if self._verbatim else [messages.as_message(line) for line in lines])

    async def wait_taken(self) -> None:
        """Wait until the client has taken what it was given."""
        if not self._peer.giver():
            await self._peer.send([])

    async def stderr_lines(self, lines: list[str]) -> None:
        """Send stderr lines, each in a frame of its own."""
        await self._peer.send([messages.render_stderr(line).encode("utf-8", "replace") for line in lines])

    def denied(self, tool: str) -> None:
        """Say once for each tool why it was denied and what would allow it."""
        if tool not in self._denied and len(self._denied) < DENIED:
            self._denied.add(tool)
            self._peer.post(messages.render_denied(tool, self._household.config.profile))
