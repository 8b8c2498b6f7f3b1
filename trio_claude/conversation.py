"""One client on `/ws/session`: a CLI's lines out, verbatim; a client's lines in, built anew.

Rule 1: nothing that a client says reaches the CLI but through `session.rebuild`. Rule 2: what the reader hears is dealt
with at once and never waits, so that a stop is acted on whatever the client reads. Rule 3: a run is over, its tree
dealt with, before its client is told so.
"""

from __future__ import annotations

import trio

from . import messages, session
from .config import Config
from .entrance import Guest
from .errors import Busy, ClientError, CloseCode, Draining, NoMessage, NotWanted, PeerGone, Reason
from .events import Observer, Outcome, Refused
from .messages import Closing
from .peer import Peer
from .runs import Runs
from .session import ClientLine, Kind, Start
from .session_run import SessionRun

PROTOCOL = 1
"""The version of the contract of `/ws/session`."""
ID_LIMIT = 128
"""Characters of a request's id that a refusal repeats."""
EARLY_LIMIT = 8
"""Messages that a client may send while its first is not dealt with yet."""


class Conversation:
    """One client on `/ws/session`. Each step of `serve` returns how to close, or None where nobody is left to hear."""

    def __init__(self, peer: Peer, guest: Guest, runs: Runs, config: Config, observer: Observer, greeting: str) -> None:
        self._peer = peer
        self._guest = guest
        self._runs = runs
        self._config = config
        self._observer = observer
        self._greeting = greeting
        self._first: str | bytes | None = None
        self._arrived = trio.Event()
        self._early: list[str | bytes] = []
        self._left = False
        self._run: SessionRun | None = None
        self._waiting = trio.CancelScope()
        self._begun = False
        self._has_turned = False

    async def serve(self) -> Closing | None:
        """Serve the client; return how to close."""
        self._peer.post(self._greeting)
        self._peer.listen(self._hear, self._leave)
        try:
            return await self._serve_run(await self._read_start())
        except ClientError as error:
            return self._refuse(error.close_code, messages.render_refused(error.code, str(error)), str(error))
        except NotWanted:
            return None if self._left else Closing(None, CloseCode.NORMAL, "stopped before it began")
        except Busy as error:
            frame = messages.render_refused(error.code, str(error), retry_after=error.retry_after)
            return self._refuse(error.close_code, frame, str(error))
        except Draining as error:
            return self._refuse(error.close_code, messages.render_refused("draining", str(error)), str(error))

    def _refuse(self, code: CloseCode, frame: str, text: str) -> Closing:
        self._observer(Refused(int(code), text))
        return Closing(frame, code, text)

    async def _read_start(self) -> Start:
        """Wait for the first message and parse it. Raises `ClientError`, or `PeerGone` where the client left."""
        config = self._config
        with self._runs.until_drain(config.first_message_timeout):
            await self._arrived.wait()
        if self._left:
            raise PeerGone("left before its start")
        if self._first is None:
            raise NoMessage(f"no message within {config.first_message_timeout:g} s")
        return session.parse_start(self._first, config.session_offered, config.timeout)

    async def _serve_run(self, start: Start) -> Closing | None:
        """Wait for a slot, run the CLI, and return what its client is told."""
        self._guest.check()
        member = self._guest.member
        self._runs.ask(member)
        self._run = run = self._runs.session(start, member)
        for message in self._early:
            self._take(message, run)
        self._early.clear()
        async with self._runs.admit(run, self._waiting, self._queue, member):
            if self._waiting.cancel_called:
                raise NotWanted("gave up before its run began")
            self._guest.check()
            self._begun = True
            outcome = await run.execute(self)
        return None if self._left else _closing(outcome)

    # what the client does, told by the reader; nothing here waits

    def _hear(self, message: str | bytes) -> None:
        if self._run:
            self._take(message, self._run)
        elif not self._arrived.is_set():
            self._first = message
            self._arrived.set()
        elif len(self._early) < EARLY_LIMIT:
            self._early.append(message)
        else:
            self._peer.drop()

    def _take(self, message: str | bytes, run: SessionRun) -> None:
        """Do what a client says, or refuse it; the run goes on either way."""
        said: dict[str, object] = {}
        try:
            said = messages.parse_object(message)
            if said.get("type") == "gateway":
                self._stop(session.parse_op(said).mode, run)
            else:
                self._say(session.rebuild(said, run.session.asked, self._config.controls), run)
        except ClientError as error:
            self._peer.post(messages.render_refused(error.code, str(error), **_named(said)))
        except Busy as error:
            more = {"retry_after": error.retry_after, **_named(said)}
            self._peer.post(messages.render_refused(error.code, str(error), **more))

    def _say(self, line: ClientLine, run: SessionRun) -> None:
        """Hand a line to the run; a turn takes a credential that is still good, and something left of the limits."""
        if line.kind is Kind.USER:
            self._guest.check()
            if self._has_turned:  # the first turn is the start's
                self._runs.ask(self._guest.member)
            self._has_turned = True
        run.say(line)

    def _stop(self, mode: str, run: SessionRun) -> None:
        self._peer.post(messages.render_event("stopping", mode=mode))
        if not self._begun:
            self._waiting.cancel()
        elif mode == "interrupt":
            run.interrupt()
        elif mode == "end":
            run.finish()
        else:
            run.stop(Reason.STOPPED, now=True)

    def _leave(self) -> None:
        self._left = True
        self._arrived.set()
        self._waiting.cancel()
        if self._run:
            self._run.stop(Reason.DISCONNECTED)

    def _queue(self, place: int) -> None:
        self._peer.post(messages.render_event("queued", position=place, wait_s=self._config.queue_timeout))

    # what the run says: the SessionSink

    def started(self) -> None:
        """Say that the CLI runs, and under which ids."""
        assert self._run
        self._peer.allow(self._config.max_session_message)
        ids = {"run": self._run.id, "session": self._run.start.session}
        self._peer.post(messages.render_event("started", **ids, warm=False, history=self._run.recorded))

    async def lines(self, lines: list[bytes]) -> None:
        """Send lines as they are."""
        await self._peer.send(lines)

    async def stderr_lines(self, lines: list[str]) -> None:
        """Send stderr lines, each with the number of the stdout line before it."""
        assert self._run
        after = self._run.session.lines
        frames = [messages.render_event("stderr", line=line, after=after) for line in lines]
        await self._peer.send([frame.encode("utf-8", "replace") for frame in frames])

    def denied(self, tool: str) -> None:
        """Nothing: who holds a session is asked, and sees each denial among the lines."""

    def stalled(self, phase: str, seconds: float) -> None:
        """Say that the CLI is silent."""
        self._peer.post(messages.render_event("stalled", phase=phase, seconds=round(seconds, 1)))

    def expired(self, request: str, seconds: float) -> None:
        """Say that an approval was denied because nobody answered."""
        text = f"nobody answered within {seconds:g} s"
        self._peer.post(messages.render_event("denied", request=request, code="approval-timeout", error=text))


def _named(said: dict[str, object]) -> dict[str, object]:
    """Return by which id a program knows what it said."""
    response = said.get("response")
    name = response.get("request_id") if isinstance(response, dict) else said.get("request_id")
    return {"request_id": name} if isinstance(name, str) and len(name) <= ID_LIMIT else {}


def _closing(outcome: Outcome) -> Closing:
    """Return what a client is told of the end: `ended`, whatever it was."""
    told = messages.closing(outcome)
    return Closing(messages.render_ended(outcome), told.code, told.reason)


def greeting(config: Config, version: str, containment: str, identity: str) -> str:
    """Return the first frame of a session."""
    limits = {
        "message": config.max_session_message,
        "line": config.max_line,
        "timeout": config.timeout,
        "idle_timeout": config.session_idle_timeout,
        "session_timeout": config.session_timeout,
        "approval_timeout": config.approval_timeout,
    }
    return messages.render_event(
        "hello",
        protocol=PROTOCOL,
        version=version,
        containment=containment,
        limits=limits,
        options=list(config.session_offered),
        control=list(config.controls),
        identity=identity,
    )
