"""One client on `/ws/session`: a CLI's lines out, verbatim; a client's lines in, built anew.

Rule 1: nothing that a client says reaches the CLI but through `session.rebuild`. Rule 2: what the reader hears is dealt
with at once and never waits, so that a stop is acted on whatever the client reads; where a turn takes a decision that
several servers share, lines wait in the stage's inbox, and a stop does not. Rule 3: a run is over, its tree dealt with,
before its client is told so.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import suppress

import attrs
import trio

from . import messages, past, session
from .entrance import Guest
from .errors import (
    Ahead,
    Busy,
    ClientError,
    CloseCode,
    Draining,
    JournalFault,
    NoMessage,
    NotAllowed,
    NotOpen,
    NotWanted,
    PeerGone,
    Reason,
)  # fmt: skip
from .events import Outcome, Refused
from .far import Relay
from .inbox import Inbox
from .journal import Journal, RunRow, Unfinished
from .messages import Closing
from .peer import Client
from .room import Room
from .services import open_services
from .session import Attach, ClientLine, Detach, Kind, Start
from .session_run import SessionRun
from .stage import Stage

ID_LIMIT = 128
"""Characters of a request's id that a refusal repeats."""
CREDENTIAL_PERIOD = 2.0
"""Seconds between two looks whether a viewer's credential is still good."""
TAKEN = "another connection has taken over"
"""What an owner is told whose place is taken, also where it was away then and comes back."""
BROKEN = Closing(None, CloseCode.FAILED, "a fault of the server")
"""What those hear who have attached to a run that a bug has ended."""
EARLY_LIMIT = 8
"""Messages that a client may send while its first is not dealt with yet."""


class Conversation:
    """One client on `/ws/session`. Each step of `serve` returns how to close, None where nobody is left to hear it.

    `on_out` hears that the client is gone while its run goes on.
    """

    def __init__(self, peer: Client, guest: Guest, house: Room, on_out: Callable[[], None] = lambda: None) -> None:
        self._on_out = on_out
        self._peer = peer
        self._guest = guest
        self._house = house
        self._first: str | bytes | None = None
        self._arrived = trio.Event()
        self._early: list[str | bytes] = []
        self._left = False
        self._parting = ""
        self._run: SessionRun | None = None
        self._stage: Stage | None = None
        self._inbox: Inbox | None = None
        self._owns = True
        self._waiting = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._begun = False
        self._client = ""
        self._is_deaf = False
        self._relay: Relay | None = None

    async def serve(self) -> Closing | None:
        """Serve the client; return how to close."""
        self._peer.listen(self._hear, self._leave)
        try:
            first = await self._read_first()
            if isinstance(first, Attach):
                self._guest.check()
                return await self._serve_attached(first)
            return await self._serve_run(first)
        except ClientError as error:
            return self._refuse(error, messages.render_refused(error.code, str(error)))
        except NotWanted:
            return None if self._left else Closing(None, CloseCode.NORMAL, "stopped before it began")
        except Busy as error:
            return self._refuse(error, messages.render_refused(error.code, str(error), retry_after=error.retry_after))
        except Draining as error:
            return self._refuse(error, messages.render_refused(error.code, str(error)))

    def _refuse(self, error: ClientError | Busy | Draining, frame: str) -> Closing:
        self._house.observer(Refused(int(error.close_code), str(error), error.code))
        return Closing(frame, error.close_code, str(error))

    async def _read_first(self) -> Start | Attach:
        """Wait for the first message and parse it. Raises `ClientError`, or `PeerGone` where the client left."""
        config = self._house.config
        if not self._arrived.is_set():  # else it may come back to a run though the server goes down
            with self._house.runs.until_drain(config.first_message_timeout):
                await self._arrived.wait()
        if self._left:
            raise PeerGone("left before its start")
        if self._first is None:
            raise NoMessage(f"no message within {config.first_message_timeout:g} s")
        return session.parse_start(self._first, config.session_offered, config.timeout, config.grace_max)

    # a run of its own

    async def _serve_run(self, start: Start) -> Closing | None:
        """Wait for a slot, run the CLI, and return what its client is told."""
        self._guest.check_may_run()
        runs, member = self._house.runs, self._guest.member
        await runs.accounts.ask(member)
        recalled = await self._recall(start)
        self._run = run = runs.session(start, member)
        run.recalled, self._client, run.teller.context = recalled, start.client, self._guest.context
        kept = self._house.config.replay_bytes
        inbox = None if runs.accounts.alone else Inbox(self._house.config.max_session_message)
        stage = Stage(run, self._peer, self._make_way, start.grace, kept, runs.journal, inbox)
        stage.lead(start.client)
        self._inbox = inbox
        for message in self._early:
            self._take(message, run)
        self._early.clear()
        async with runs.admit(run, self._waiting, self._queue, member):
            if self._waiting.cancel_called:
                raise NotWanted("gave up before its run began")
            self._guest.check_may_run()
            self._begun, self._stage = True, stage
            self._peer.allow(self._house.config.max_session_message)
            with self._house.on_stage(stage):
                outcome = await self._perform(run, stage)
        return None if self._left else past.closing(outcome)

    async def _recall(self, start: Start) -> Unfinished | None:
        """Tell the client at which turn the session was cut off that it resumes."""
        journal = self._house.runs.journal
        if start.options.resume is None or journal is None:
            return None
        try:
            found = await journal.unfinished(self._guest.name, start.options.resume)
        except JournalFault:
            return None
        if self._left:
            raise PeerGone("left before its run began")
        if found:
            self._peer.post(messages.render_event("unfinished", **attrs.asdict(found)))
            return found if start.recall else None
        return None

    async def _perform(self, run: SessionRun, stage: Stage) -> Outcome:
        """Run the CLI to its end, with or without its client, and tell whoever else listens."""
        async with open_services() as services:
            self._nursery = services
            if stage.grace:
                services.start_soon(stage.watch_grace)
            if stage.inbox:
                services.start_soon(stage.inbox.serve)
            closing = BROKEN
            try:
                outcome = await run.execute(stage)
                closing = past.closing(outcome)
            finally:
                self._nursery = None
                stage.finish(closing)
            return outcome

    # a run that was there before

    async def _serve_attached(self, attach: Attach) -> Closing | None:
        """Come back to a run, or watch it, to its end or the client's; return how to close."""
        stage = self._house.stages.get(attach.run)
        if stage is None:
            return await self._serve_elsewhere(attach)
        if not self._guest.may_see(stage.run.account.name):
            raise _unknown(attach)
        if self._peer.far and not stage.run.recorded:
            raise unkept()
        if attach.role == "owner" and stage.is_former(attach.client):
            return Closing(None, CloseCode.NORMAL, TAKEN)
        if attach.after > stage.number:
            return self._refuse_ahead(stage.number)
        self._stage, self._run, self._inbox, self._begun = stage, stage.run, stage.inbox, True
        self._owns, self._client = self._may_own(stage, attach), attach.client
        if self._owns:
            stage.lead(attach.client)
        self._peer.allow(self._house.config.max_session_message)
        self._peer.post(self._attached(stage, attach.after))
        stage.run.teller.joined(self._guest.context, "owner" if self._owns else "viewer")
        for message in self._early:
            self._take(message, stage.run)
        if not self._left:
            await self._listen(stage, attach)
        if self._parting:
            return Closing(None, CloseCode.NORMAL, self._parting)
        return None if self._left else stage.closing

    async def _listen(self, stage: Stage, attach: Attach) -> None:
        """Have all that the run says until it is over or this client leaves.

        Raises `NotKnown` and `NotAllowed` to a viewer that may watch no more.
        """
        with self._waiting:
            if self._owns:
                await stage.own(self._peer, self._make_way, attach.after)
                await stage.over.wait()
                return
            async with open_services() as services:
                services.start_soon(self._watch_credential, stage.run.account.name)
                await stage.view(self._peer, attach.after)
                await stage.over.wait()

    async def _watch_credential(self, owner: str) -> None:
        """Look now and again whether a viewer may still watch: no turn of its own is where that would show."""
        while True:
            await trio.sleep(CREDENTIAL_PERIOD)
            self._guest.check_may_see(owner)

    async def _serve_elsewhere(self, attach: Attach) -> Closing | None:
        """Come back to a run of another node, or watch it; to one that has ended there too."""
        far = self._house.far
        node = await far.look_for(attach.run) if far else None
        if self._left:
            return None
        if far and node:
            self._relay = relay = far.relay(node, self._peer, self._guest, attach)
            try:
                with self._house.runs.until_drain(), self._waiting:
                    if await relay.serve([one for one in (self._first, *self._early) if one is not None]):
                        return None if self._left else relay.closing
            finally:
                relay.leave()
            if self._left:
                return None
            await far.settle(attach.run)
        return await self._serve_ended(attach)

    async def _serve_ended(self, attach: Attach) -> Closing | None:
        """Tell again what a run said that has ended; return how to close."""
        journal = self._house.runs.journal
        self._is_deaf = True
        if journal is None:
            raise _unknown(attach)
        run = await _find_ended(journal, attach.run)
        if run is None or not self._guest.may_see(run.identity):
            raise _unknown(attach)
        if attach.after > run.lines:
            return self._refuse_ahead(run.lines)
        more = {"from": attach.after + 1, "ended": True, "pending": []}
        self._peer.post(messages.render_event("attached", run=run.id, role="viewer", **more))
        closing = await past.retell(journal, run, self._peer, attach.after)
        return None if self._left else closing

    def _refuse_ahead(self, last: int) -> Closing:
        error = Ahead(f"after: the run is at line {last}")
        return self._refuse(error, messages.render_refused(error.code, str(error), last=last))

    def _may_own(self, stage: Stage, attach: Attach) -> bool:
        """Return whether a client is the owner: nobody is, or it takes over, and it is of the run's identity."""
        if self._guest.name != stage.run.account.name or not self._guest.identity.may_run:
            return False
        return attach.role == "owner" or (attach.role is None and not stage.owned)

    def _attached(self, stage: Stage, after: int) -> str:
        asked = [one for one in stage.run.session.asked.values() if one.number <= after]
        pending = [{"n": one.number, "line": one.line.decode("utf-8", "replace")} for one in asked]
        role = "owner" if self._owns else "viewer"
        more = {"from": after + 1, "ended": False, "pending": pending, "heard": stage.run.heard.get(self._client, 0)}
        return messages.render_event("attached", run=stage.run.id, role=role, **more)

    # what the client does, told by the reader; nothing here waits

    def _hear(self, message: str | bytes) -> None:
        if self._left or self._is_deaf:
            return
        if self._run:
            self._take(message, self._run)
        elif self._relay:
            self._relay.say(message)
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
        if self._owns:
            run.count(self._client)
        try:
            said = messages.parse_object(message)
            op = session.parse_op(said) if said.get("type") == "gateway" else None
            if isinstance(op, Detach):
                self._detach()
            elif not self._owns:
                raise NotAllowed("a viewer only watches")
            elif op is not None:
                self._stop(op.mode, run)
            elif self._inbox:
                self._inbox.put(len(message), functools.partial(self._say_behind, said, run))
            else:
                line = self._rebuild(said, run)
                if self._takes_prompt(line, run):
                    self._house.runs.accounts.ask_now(self._guest.member)
                self._say(line, said, run)
        except (ClientError, Busy) as error:
            self._post_refused(error, said or messages.begun(message))

    async def _say_behind(self, said: dict[str, object], run: SessionRun) -> None:
        """Do what a client said, once all is done that was said before."""
        try:
            line = self._rebuild(said, run)
            if self._takes_prompt(line, run):
                await self._house.runs.accounts.ask(self._guest.member)
            self._say(line, said, run)
        except (ClientError, Busy) as error:
            self._post_refused(error, said)

    def _post_refused(self, error: ClientError | Busy, said: dict[str, object]) -> None:
        retry = {"retry_after": error.retry_after} if isinstance(error, Busy) else {}
        self._peer.post(messages.render_refused(error.code, str(error), **retry, **_named(said)))

    def _rebuild(self, said: dict[str, object], run: SessionRun) -> ClientLine:
        """Build a line anew, which the run would take now: what it refuses then is not counted as a prompt."""
        hooks = self._house.config.profile != "lean"
        return run.check(session.rebuild(said, run.session.asked, self._house.config.controls, hooks=hooks))

    def _takes_prompt(self, line: ClientLine, run: SessionRun) -> bool:
        """Return whether a line takes something of the limits: a turn, but not the first, which is the start's.

        Raises `NotKnown` and `NotAllowed` where the credential is not good for a turn any more, and `OverBudget`.
        """
        if line.kind is not Kind.USER:
            return False
        self._guest.check_may_run()
        self._house.runs.accounts.check_budget(self._guest.member)
        return run.prompted

    def _say(self, line: ClientLine, said: dict[str, object], run: SessionRun) -> None:
        """Hand a line to the run."""
        lost, told = run.recalled, None
        if lost and line.kind is Kind.USER:
            more = session.recalling(said, lost.prompt, lost.text)
            told = self._rebuild(more, run)
        run.say(line, told)
        run.recalled = None if told else lost

    def _stop(self, mode: str, run: SessionRun) -> None:
        self._peer.post(messages.render_event("stopping", mode=mode))
        if not self._begun:
            self._waiting.cancel()
        elif mode == "kill":
            run.stop(Reason.STOPPED, now=True)
        else:
            self._end_turn_or_run(mode, run)

    def _end_turn_or_run(self, mode: str, run: SessionRun) -> None:
        """Interrupt at once, and again behind what waits in the inbox, which was said before; end behind that only."""
        act = run.interrupt if mode == "interrupt" else run.finish
        waits = self._inbox is not None and self._inbox.busy
        if mode == "interrupt" or not waits:
            act()
        if self._inbox and waits:
            self._inbox.put_last(act)

    def _detach(self) -> None:
        """Leave, and let the run go on. Raises `NotAllowed` where the client did not say at the start that it may."""
        if self._stage is None or (self._owns and not self._stage.grace):
            raise NotAllowed('detach: the run was not started with "on_disconnect":{"grace":SECONDS}')
        self._part("detached")

    def _make_way(self) -> None:
        """Leave, because another connection is the run's owner now."""
        self._part(TAKEN)

    def _part(self, why: str) -> None:
        """Leave, and say why."""
        self._parting = why
        self._leave()

    def _leave(self) -> None:
        if self._left:
            return
        self._left = True
        self._arrived.set()
        self._waiting.cancel()
        if self._run is None:
            return
        if self._stage is None:
            self._run.stop(Reason.DISCONNECTED)
        elif self._stage.leave(self._peer) and self._nursery:
            self._nursery.start_soon(self._show_out)

    async def _show_out(self) -> None:
        """Close a connection whose run goes on in this task's nursery."""
        await self._peer.close(CloseCode.NORMAL, self._parting)
        self._peer.drop()
        self._on_out()

    def _queue(self, place: int) -> None:
        self._peer.post(messages.render_event("queued", position=place, wait_s=self._house.runs.patience))


def _named(said: dict[str, object]) -> dict[str, object]:
    """Return by which names a program knows what it said."""
    source = response if isinstance(response := said.get("response"), dict) else said
    names = {"request_id": source.get("request_id"), "uuid": said.get("uuid")}
    return {key: one for key, one in names.items() if isinstance(one, str) and len(one) <= ID_LIMIT}


def _unknown(attach: Attach) -> NotOpen:
    return NotOpen(f"there is no run {attach.run} to come back to")


async def _find_ended(journal: Journal, run: str) -> RunRow | None:
    """Return a run that has ended, None where there is none; what waits to be written is waited for only where it must.

    Raises `JournalFault`.
    """
    with suppress(JournalFault):
        if (found := await journal.get(None, run)) and found.ended is not None:
            return found
    if not await journal.settle():
        raise JournalFault("the journal is not at hand just now", 1.0)
    found = await journal.get(None, run)
    return found if found and found.ended is not None else None


def unkept() -> JournalFault:
    """Return the error for a client of another node on a run of which the journal does not take what it says."""
    return JournalFault("the journal does not take what the run says; only the server that runs it can tell it", 1.0)
