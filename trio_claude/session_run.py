"""The run of a session: one CLI and many turns, on the engine of `run`.

Rule 1: what a client says waits in a bounded outbox, answers and interrupts first; nothing here blocks its reader.
Rule 2: whatever a session waits for has a clock, and one task watches them all.
"""

from __future__ import annotations

import math
import secrets
from collections import OrderedDict, deque
from contextlib import AbstractAsyncContextManager
from typing import Protocol, cast

import trio

from . import stream_json
from .config import Config
from .containment import Contained, Job
from .endings import Decision
from .errors import Backlog, BadMessage, Ending, Reason
from .events import Outcome
from .journal import Journal, Unfinished
from .kit import LOCAL, Account, Kit, Sink
from .messages import Options
from .metering import Meter
from .run import Run
from .session import (
    OWN_REQUEST,
    READS_STATE,
    ClientLine,
    Clock,
    Due,
    Happening,
    Kind,
    Patience,
    Session,
    Start,
    State,
    denial,
)
from .stream_json import Sign

OWNERS = 64
"""Owners of one run whose messages are counted apart."""
URGENT = 100
"""Urgent lines that may wait for a CLI before it is told of no interrupt more between two turns: it hears none."""
UUIDS = 10_000
"""Messages of which a session knows the `uuid`; the CLI knows as many, and does nothing with one that comes again."""


class SessionSink(Sink, Protocol):
    """What takes a session's output. The calls that a `Sink` has not must not wait."""

    def started(self) -> None:
        """Hear that the CLI runs."""

    def stalled(self, phase: str, seconds: float) -> None:
        """Hear that the CLI has said nothing for so long."""

    def expired(self, request: str, seconds: float) -> None:
        """Hear that an approval was denied because nobody answered for so long."""


class Outbox:
    """Lines that wait for the CLI's stdin, urgent ones first, those that are held not before `release`.

    At most `limit` bytes of a client's, which may be raised; the gateway's own are few, and always taken.
    """

    def __init__(self, limit: int) -> None:
        self.limit: int = limit
        self._urgent: deque[bytes] = deque()
        self._plain: deque[bytes] = deque()
        self._held: deque[bytes] = deque()
        self._waiting = 0
        self.closed: bool = False
        self._stir = trio.Event()

    def put(self, line: bytes, *, urgent: bool = False, own: bool = False, held: bool = False) -> None:
        """Take a line. Raises `Backlog` where too much waits already."""
        if not own:
            self.check(len(line))
        (self._urgent if urgent else self._held if held else self._plain).append(line)
        self._waiting += len(line)
        self._stir.set()

    def check(self, size: int) -> None:
        """Raise `Backlog` where too much waits already for a line of so many bytes."""
        if self._waiting and self._waiting + size > self.limit:
            raise Backlog(f"{self._waiting} bytes wait for the CLI already; it takes {self.limit}")

    @property
    def crowded(self) -> bool:
        """Whether so many urgent lines wait that the CLI surely does not listen."""
        return len(self._urgent) >= URGENT

    def release(self) -> None:
        """Let go what is held."""
        self._plain += self._held
        self._held.clear()
        self._stir.set()

    def close(self) -> None:
        """Take no more; what waits still goes out."""
        self.closed = True
        self._stir.set()

    async def take(self) -> bytes:
        """Wait for the next line and return it; empty once no more come."""
        while True:
            for lane in (self._urgent, self._plain):
                if lane:
                    line = lane.popleft()
                    self._waiting -= len(line)
                    return line
            if self.closed and not self._held:
                return b""
            self._stir = trio.Event()
            await self._stir.wait()


class SessionRun(Run):
    """A session, from its first message to its receipt.

    Resource handling and error handling are those of `Run`. `say`, `interrupt` and `finish` return at once.
    """

    door = "session"

    def __init__(
        self,
        start: Start,
        kit: Kit,
        account: Account = LOCAL,
    ) -> None:
        super().__init__(start, kit, math.inf, account)
        config = kit.workplace.config
        self.start = start
        self.heard: OrderedDict[str, int] = OrderedDict()
        """Messages of each owner behind its first, those too that were refused; of the latest `OWNERS`."""
        self.prompted: bool = False
        """Whether it has taken a prompt; the first goes with the start."""
        self.recalled: Unfinished | None = None
        """A turn that was cut off, of which the model is to be told before the next message."""
        self.session: Session = Session(_patience(config, start.options), trio.current_time())
        self._outbox = Outbox(config.max_message)
        self._said_early: list[bytes] = []
        self._prompt_held: str | None = None
        self._uuids: dict[str, None] = {}
        self._talking = trio.CancelScope()
        self._stir = trio.Event()

    def bound(self, options: Options, left: float | None) -> None:
        """Take how much the run may spend, and what of the day's dollars is left for it, before it begins."""
        self.options = options
        self._meter = Meter(self.account.baseline, left)

    def count(self, client: str) -> None:
        """Count a message of an owner."""
        self.heard[client] = self.heard.pop(client, 0) + 1
        while len(self.heard) > OWNERS:
            self.heard.popitem(last=False)

    def check(self, line: ClientLine) -> ClientLine:
        """Return a client's line, if it would be taken now.

        Raises `Ending`, `Backlog`, and `BadMessage` for a message of a `uuid` that another had before.
        """
        closing = self.session.closing and line.kind is not Kind.RESPONSE
        if closing or self._outbox.closed or self.session.state is State.ENDING:
            raise Ending("the run is ending")
        if line.kind is Kind.USER and line.request in self._uuids:
            raise BadMessage("uuid: it was said before, and the CLI does nothing with what comes again")
        self._outbox.check(len(line.data))
        return line

    def say(self, line: ClientLine, told: ClientLine | None = None) -> None:
        """Take a client's line for the CLI, which is `told` another in its place.

        Raises what `check` raises.
        """
        self.check(line)
        now, interrupt = trio.current_time(), line.subtype == "interrupt"
        urgent = line.kind is Kind.RESPONSE or (interrupt and self.session.begun)
        held = self.session.interrupted and not interrupt
        self._outbox.put((told or line).data, urgent=urgent, held=held)
        if self._recorder:
            self._recorder.said(line.data)
        elif self._journal:  # the run waits for a slot, and the outbox bounds what is said meanwhile
            self._said_early.append(line.data)
        if line.kind is Kind.USER:
            self.prompted = True
            self.teller.begin_turn()
            self.session.prompt(now, line.request)
            self._know(line.request)
            self._prompt_held = line.request if held else None
        elif line.kind is Kind.RESPONSE:
            self._settle(line.request, "allowed" if line.allows else "denied")
        elif interrupt and self.session.interrupt(now, line.request):
            self.teller.interrupted()
        self._stir.set()

    def _know(self, uuid: str) -> None:
        if uuid:
            self._uuids[uuid] = None
        if len(self._uuids) > UUIDS:
            del self._uuids[next(iter(self._uuids))]

    def interrupt(self) -> None:
        """End the turn: an interrupt past all that waits, and if there is no result in its grace, the run's end.

        Where the CLI has not begun the turn yet, the interrupt goes behind the prompt, and once more when it has. So
        what is said behind an interrupt is held until the result: it is for the next turn. A CLI that is to be told
        nothing more is stopped.
        """
        request = OWN_REQUEST + secrets.token_hex(8)
        if self.session.interrupt(trio.current_time(), request):
            self.teller.interrupted()
            if self.session.closing or self._outbox.closed:
                self.stop(Reason.STOPPED)
            else:
                self._put_interrupt(request, urgent=self.session.begun)
        elif self.session.agents and not (self.session.in_turn or self._outbox.closed or self._outbox.crowded):
            self._put_interrupt(request, urgent=True)
        self._stir.set()

    def _put_interrupt(self, request: str, *, urgent: bool) -> None:
        self._outbox.put(stream_json.control_line(request, "interrupt"), urgent=urgent, own=True)

    def finish(self) -> None:
        """End the run politely: the CLI does what it was told, and then ends, because it is told no more."""
        self.session.closing = True
        self._near_end()
        self._stir.set()

    def _near_end(self) -> None:
        """Bring a run that is to end as near to it as what its CLI is at allows.

        Between turns the CLI has a time to end; an agent, and a turn that the CLI owes, have that of a turn. Its stdin
        is closed where none of them may have to ask yet, nor a turn for what the client has said.
        """
        session = self.session
        if not session.closing:
            return
        works = session.agents or session.owes
        if session.state is not State.IDLE:
            self._grace.deadline = math.inf
        elif self._grace.deadline == math.inf:
            patience = session.patience.turn if works else self._workplace.config.result_grace
            self._grace.deadline = trio.current_time() + patience
        if not (session.state is State.RUNNING or session.asked or works or session.unanswered):
            self._outbox.close()
            session.close()

    def _settle(self, request: str, outcome: str) -> None:
        self.session.answer(request, trio.current_time(), outcome)
        self._tell_settled()
        self._near_end()

    def _tell_settled(self) -> None:
        """Tell of approvals that are not open any more."""
        self.teller.settled(self.session.settled)
        self.session.settled.clear()

    # what differs from a run of one prompt

    def _record(self, journal: Journal) -> None:
        super()._record(journal)
        while self._recorder and self._said_early:
            self._recorder.said(self._said_early.pop(0))

    def _job(self) -> AbstractAsyncContextManager[Job]:
        binds, session = self._containment.binds, self.start.session
        variables = {**self.teller.environ, READS_STATE: "1"}
        return self._workplace.job(
            self.id, self.options, self.meta, binds=binds, who=self.account.name, session=session, variables=variables
        )

    def _begin_talk(self, process: Contained, sink: Sink, nursery: trio.Nursery) -> None:
        hearer = cast("SessionSink", sink)
        self.session.begin(trio.current_time())
        self._outbox.limit = self._workplace.config.max_session_message
        hearer.started()
        self._grace.deadline = math.inf
        self._near_end()
        nursery.start_soon(self._talk, process, hearer)

    def _end_talk(self) -> None:
        self._talking.cancel()
        self.session.decide(trio.current_time())
        self._tell_settled()

    def _close_books(self, outcome: Outcome) -> None:
        self.session.decide(trio.current_time())  # where the run was cancelled nobody has
        self._tell_settled()
        super()._close_books(outcome)

    def _has_ended(self) -> None:
        """Give a client, or who may come back, so long for what the CLI has said: a session has no deadline."""
        self._scope.deadline = trio.current_time() + max(self._workplace.config.send_timeout, self.start.grace)
        self._too_late = Decision(Reason.DISCONNECTED, "the client did not take the last lines in time")

    async def _talk(self, process: Contained, sink: SessionSink) -> None:
        """Speak and watch the clocks until the CLI has ended."""
        with self._talking:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._speak, process)
                await self._tend(sink)

    async def _speak(self, process: Contained) -> None:
        """Tell the CLI what waits for it, until no more comes."""
        try:
            while line := await self._outbox.take():
                await process.stdin.send_all(line)
        except trio.BrokenResourceError:
            self._outbox.close()  # it ended, or closed its stdin; its exit status tells
            self.session.close()
        finally:
            await process.stdin.aclose()

    async def _tend(self, sink: SessionSink) -> None:
        """Wait for whatever is due next, and see to it."""
        while True:
            self._stir = trio.Event()
            now = trio.current_time()
            if (due := self.session.due(now)).at <= now:
                self._meet(due, sink)
                continue
            with trio.move_on_at(due.at):
                await self._stir.wait()

    def _meet(self, due: Due, sink: SessionSink) -> None:
        """Do what is due."""
        patience, now = self.session.patience, trio.current_time()
        match due.clock:
            case Clock.NOTICE:
                self.session.notice()
                sink.stalled(self.session.phase, self.session.silent(now))
            case Clock.APPROVAL:
                text = f"nobody answered within {patience.approval:g} s"
                self._outbox.put(denial(due.request, text), urgent=True, own=True)
                self._settle(due.request, "expired")
                sink.expired(due.request, patience.approval)
            case Clock.INTERRUPT:
                self.stop(Reason.STOPPED, f"the CLI did not obey an interrupt within {patience.interrupt:g} s")
            case Clock.SILENCE:
                self.stop(Reason.STALLED, f"no output for {patience.silence:g} s ({self.session.phase})")
            case Clock.TURN:
                self.stop(Reason.DEADLINE, f"timed out after {patience.turn:g} s")
            case Clock.IDLE:
                self.stop(Reason.DEADLINE, f"idle for {patience.idle:g} s")
            case Clock.WHOLE:
                self.stop(Reason.DEADLINE, f"the session lasted {patience.whole:g} s")

    def _sift(self, lines: list[bytes]) -> list[bytes]:
        owed, others = self.session.owes, self.session.sift(lines)
        if owed is not self.session.owes:
            self._grace.deadline = math.inf
            self._near_end()
        return others

    def _hear(self, lines: list[bytes]) -> None:
        worked = self.session.agents
        happened = self.session.hear(lines, trio.current_time())
        behind = begun = False
        for happening in happened:
            if happening is Happening.RESULT:
                behind, begun = True, False
            elif happening is Happening.BEGAN and not begun:  # a CLI may say anew that the same turn begins
                self.teller.begin_turn(behind=behind)
                begun = True
        self._tell_settled()
        if Happening.RESULT in happened:
            self._release()
        for happening in happened:
            if happening is Happening.BEGAN and self.session.interrupted:
                self._put_interrupt(OWN_REQUEST + secrets.token_hex(8), urgent=True)
        if happened or worked is not self.session.agents:
            self._grace.deadline = math.inf
            self._near_end()
            self._stir.set()

    def _release(self) -> None:
        """Say what was held, now that the turn that it was not for has ended."""
        self._outbox.release()
        if self._prompt_held is not None:
            self.teller.begin_turn(behind=True)
            self.session.prompt(trio.current_time(), self._prompt_held)
            self._prompt_held = None

    def _note(self, sign: Sign, sink: Sink) -> None:
        if sign.result:
            self._result_error = sign.error

    def _decide(self, decision: Decision) -> None:
        super()._decide(decision)
        self.session.decide(trio.current_time())
        self._tell_settled()
        self._stir.set()


def _patience(config: Config, options: Options) -> Patience:
    return Patience(
        turn=options.timeout or config.timeout,
        idle=config.session_idle_timeout,
        whole=config.session_timeout,
        approval=config.approval_timeout,
        interrupt=config.interrupt_grace,
        notice=config.stall_notice,
        silence=config.stall_timeout or math.inf,
    )
