"""One CLI run: a contained process, its readers and its deadline become lines and, at the end, an `Outcome`.

Rule 1: the first decision to end a run wins, and it is kept with its reason. Rule 2: a run ends with its process, never
with the end of its pipes; what the pipes hold then is read. Rule 3: this room knows no socket; what takes the lines is
a `Sink`, and a sink that fails ends the run.
"""

from __future__ import annotations

import functools
import secrets
import time
from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager
from typing import ClassVar

import attrs
import trio

from . import context, stream_json
from .containment import BrokenStart, Contained, Job, PipeReader
from .delivery import Delivery
from .endings import LADDERS, Decision, exit_decision
from .errors import PeerGone, Reason, SpawnFailed
from .events import Outcome, Receipt
from .faults import is_fault, note_run
from .journal import Begun, End, Journal, Recorder
from .kit import LOCAL, Account, Kit, Sink
from .messages import Options, Prompt
from .metering import Meter
from .pool import Warm
from .session import Start
from .stderr import Stderr
from .stream_json import LineSplitter, LineTooLong, Sign, Spent
from .telling import Teller
from .turns import BULK, LINES, READS


class Run:
    """One run, from its start to its receipt.

    Resource handling: `execute` owns the process and its folder; when it returns or raises, nothing of them is left.
    Error handling: everything that can happen to a CLI is told in the `Outcome`; only a cancellation from outside and
    bugs leave as exceptions, after the tree was ended.
    """

    door: ClassVar[str] = "claude"

    def __init__(
        self,
        task: Prompt | Start,
        kit: Kit,
        timeout: float,
        account: Account = LOCAL,
        warm: Warm | None = None,
    ) -> None:
        self.id: str = warm.id if warm else secrets.token_hex(16)
        self._warm = warm
        self._swallowed = ""
        self.meta: str = task.meta
        self.options: Options = task.options
        self._prompt = task.prompt if isinstance(task, Prompt) else None
        self._words = b"" if self._prompt is None else stream_json.user_line(self._prompt)
        self._session = task.session if isinstance(task, Start) else task.options.resume
        self._workplace = kit.workplace
        self._containment = kit.containment
        self._journal = kit.journal
        self._batch = kit.batch
        self._recorder: Recorder | None = None
        self._timeout = timeout
        self._turns = kit.turns
        self._pump = kit.pump
        self.account: Account = account
        self.teller: Teller = Teller(self.id, self.meta, account.name, self.door, kit.observer, kit.tally, kit.tracer)
        self._meter = Meter(account.baseline, account.left)
        self._decision: Decision | None = None
        self._proof: Receipt | None = self._receipt(survivors=0)
        self._scope = trio.CancelScope()
        self._splitter = LineSplitter(kit.workplace.config.max_line)
        self._cut: list[bytes] = []
        """The lines of what was read, where they were cut already and are too many to be handed on at once."""
        self._delivery = Delivery()
        self._grace = trio.CancelScope()
        self._too_late = Decision(Reason.DEADLINE, f"timed out after {timeout:g} s")
        self._result_error: str | None = None
        self._stderr = Stderr(kit.pump, self._delivery)
        self._has_exited = False

    def stop(self, reason: Reason, error: str | None = None, *, now: bool = False) -> None:
        """End the run by its reason's ladder, or `now` by the kill alone, unless it has ended. Returns at once.

        A run whose end is decided already is not asked politely again where nobody waits for it any more.
        """
        if self._decision is not None and (now or reason in (Reason.DRAINED, Reason.DISCONNECTED)):
            self._scope.cancel()
        self._decide(Decision(reason, error, drain=not now and reason in LADDERS))

    async def execute(self, sink: Sink) -> Outcome:
        """Run the CLI to its end, whatever that is; its tree is dealt with when this returns."""
        with context.Bound(run=self.id, meta=self.meta, identity=self.account.name):
            return await self._execute(sink)

    async def _execute(self, sink: Sink) -> Outcome:
        if self._journal:
            self._record(self._journal)
        outcome: Outcome | None = None
        unfinished = Decision(Reason.STOPPED, "cancelled")
        self.teller.begin()
        try:
            if self._warm:
                self._proof = None
                async with self._warm.owned() as process:
                    outcome = await self._live(process, sink)
            else:
                await self._turns.wait_apart(self)
                async with self._job() as job:
                    self._proof = None
                    async with self._containment.start(job, self._keep) as process:
                        del job  # its environment is of no use any more
                        outcome = await self._live(process, sink)
        except SpawnFailed as error:
            receipt = error.receipt if isinstance(error, BrokenStart) else self._receipt(survivors=0)
            outcome = self._outcome(Decision(Reason.SPAWN_FAILED, str(error)), receipt)
        except (Exception, BaseExceptionGroup) as error:
            if is_fault(error):
                note_run(error, self.id)
                unfinished = Decision(Reason.FAILED, "a fault of the server")
            raise
        finally:
            self._close_books(outcome or self._outcome(unfinished, self._proof or self._receipt(survivors=None)))
        return outcome

    def _record(self, journal: Journal) -> None:
        """Begin the run's history."""
        self._recorder = journal.begin(self._begun())

    def _receipt(self, *, survivors: int | None) -> Receipt:
        """Return a receipt where nothing was counted."""
        return Receipt(seen=0, killed=0, survivors=survivors, ms=0.0, containment=self._containment.mode)

    def _close_books(self, outcome: Outcome) -> None:
        """Charge what no result has told of, and tell the journal and the observers how the run ended."""
        self._spend(self._meter.rest())
        if self._recorder:
            self._recorder.end(self._end(outcome))
        self.teller.ended(outcome, self._meter.charged)

    def _spend(self, used: Spent) -> str:
        """Charge what was used; return the limit that it passes, if any."""
        self.teller.charged(used)
        return self.account.spend(used.tokens, used.dollars)

    @property
    def recorded(self) -> bool:
        """Whether all that the run has said so far is in the journal, or on its way there."""
        return self._recorder is not None and self._recorder.stored and self._workplace.config.journal_content

    def _begun(self) -> Begun:
        """Return what the journal is told at the start."""
        options = attrs.asdict(self.options, recurse=False, filter=lambda _field, value: value is not None)
        return Begun(
            id=self.id, identity=self.account.name, meta=self.meta, door=self.door, session=self._session,
            started=time.time(), prompt=self._prompt, options=options, model=self.options.model or "", batch=self._batch
        )  # fmt: skip

    def _end(self, outcome: Outcome) -> End:
        """Return what the journal is told at the end."""
        return End(
            id=self.id, ended=time.time(), reason=outcome.reason.value, exit_status=outcome.exit_status,
            signal=outcome.signal, lines=outcome.lines, encoding_errors=outcome.encoding_errors,
            tokens=self._meter.charged.tokens, dollars=self._meter.charged.dollars, turns=self.teller.turns,
            error=outcome.error, cause=outcome.cause, receipt=attrs.asdict(outcome.receipt), session=self._session,
        )  # fmt: skip

    def _keep(self, proof: Receipt) -> None:
        """Take what was counted of a CLI whose start was cut short."""
        self._proof = proof

    def _job(self) -> AbstractAsyncContextManager[Job]:
        """Return what there is to start."""
        return self._workplace.job(
            self.id, self.options, self.meta, binds=self._containment.binds, who=self.account.name,
            variables=self.teller.environ,
        )  # fmt: skip

    async def _live(self, process: Contained, sink: Sink) -> Outcome:
        """Converse until the run is decided, then end what is left and count it."""
        self.teller.started(process.pid, warm=bool(self._warm))
        self._scope.deadline = trio.current_time() + self._timeout
        try:
            with self._scope:
                await self._converse(process, sink)
            if self._scope.cancelled_caught:  # by a decision, else by the deadline
                self._decide(self._too_late)
        finally:
            self._proof = await self._prove(process)
        decision = self._decision or exit_decision(process.status, self._result_error or self._stderr.last)
        return self._outcome(decision, self._proof, process.status)

    async def _prove(self, process: Contained) -> Receipt:
        """End what is left of a CLI, and count it."""
        process.end()
        receipt = await process.wait_gone()
        if (process.status is None or process.status < 0) and not self._containment.binds:
            self._workplace.forget(process.pid, self.account.name)
        return receipt

    async def _converse(self, process: Contained, sink: Sink) -> None:
        """Feed the CLI, read it, and watch for its end. Returns when it has ended and its pipes are read."""
        try:
            async with trio.open_nursery() as nursery:
                self._begin_talk(process, sink, nursery)
                nursery.start_soon(self._read_stdout, process, sink)
                self._stderr.begin(process.stderr, functools.partial(self._say_stderr, sink), nursery)
                try:
                    await self._watch_exit(process)
                    self._end_talk()
                    await self._hang_up(process)
                finally:
                    self._stderr.leave(process.stderr)
        except* PeerGone:
            self._decide(Decision(Reason.DISCONNECTED))
        except* LineTooLong as group:
            self._decide(Decision(Reason.FAILED, str(group.exceptions[0])))
        except* trio.BrokenResourceError:
            self._decide(Decision(Reason.FAILED, "the guardian of this run was lost"))

    def _begin_talk(self, process: Contained, _sink: Sink, nursery: trio.Nursery) -> None:
        """Tell the CLI its prompt, and that there is no more."""
        self.teller.begin_turn()
        if rest := process.feed(self._first_words() + self._words):
            nursery.start_soon(self._feed, process, rest)
        self._words = b""

    def _end_talk(self) -> None:
        """Say nothing more to a CLI that has ended."""

    async def _watch_exit(self, process: Contained) -> None:
        """Wait for the CLI's end; then see to it that the pipes end too, whoever holds them."""
        with self._grace:
            await process.wait_exit()
        if asked := process.status is None:
            self._decide(Decision(Reason.EXIT, drain=True, after_result=True))
            await self._descend(process)
        deadline = self._scope.deadline
        self._has_ended()
        if not asked and not process.alone:
            with trio.move_on_at(deadline):
                await self._delivery.wait_until(process.wait_empty)
        process.end()

    def _has_ended(self) -> None:
        """Take that the CLI has ended; what it has said may still be on its way, and has a time of its own."""
        later = trio.current_time() + self._workplace.config.send_timeout
        if later > self._scope.deadline:
            self._scope.deadline = later
            self._too_late = Decision(Reason.DEADLINE, "the last lines were not taken in time")
        self._has_exited = True

    def give_time(self) -> None:
        """Once the CLI has ended, let its last lines have their whole time again, because one was taken."""
        if self._has_exited:
            self._has_ended()

    async def _descend(self, process: Contained) -> None:
        """Ask the CLI to end, step by step, until it has."""
        assert self._decision
        for number, grace in self._decision.ladder:
            process.send_signal(number)
            with trio.move_on_after(grace):
                await process.wait_exit()
                return

    async def _hang_up(self, process: Contained) -> None:
        """When the tree is gone, read what its pipes still hold, and no more: who holds them outside is none of it."""
        await process.wait_gone()
        await self._delivery.wait_over()
        if not self._delivery.is_over:
            await process.stdout.aclose()
            await process.stderr.aclose()

    async def _feed(self, process: Contained, words: bytes) -> None:
        """Give the CLI what its stdin did not take at once, and close it."""
        try:
            await process.stdin.send_all(words)
        except trio.BrokenResourceError:
            return  # it ended without reading; its exit status tells
        finally:
            await process.stdin.aclose()

    def _first_words(self) -> bytes:
        """Return what a CLI that waited must be told before the prompt: the model, if the client named one."""
        if not (self._warm and self.options.model):
            return b""
        self._swallowed = secrets.token_hex(8)
        return stream_json.control_line(self._swallowed, "set_model", model=self.options.model)

    async def _read_stdout(self, process: Contained, sink: Sink) -> None:
        try:
            while chunk := await self._receive(process.stdout, sink):
                self._count(chunk)
                if len(chunk) >= BULK:
                    with self._delivery:
                        await self._turns.wait(self, READS)
                lines, self._cut = self._cut or self._splitter.feed(chunk), []
                await self._take(lines, chunk, sink)
            await self._take(self._splitter.finish(), b"", sink)
            await self._deliver(sink.wait_taken())
            self._delivery.end_pipe()
        finally:
            self._turns.leave(self)

    async def _receive(self, stdout: trio.abc.ReceiveStream, sink: Sink) -> bytes:
        """Return what stdout holds and is not relayed on the spot, as some take nothing so.

        It is empty at the pipe's end, and where our end of it was closed.
        """
        try:
            if sink.giver() and isinstance(stdout, PipeReader):
                return await stdout.receive_rest(self._pump, functools.partial(self._relay, sink))
            return bytes(await stdout.receive_some())
        except trio.ClosedResourceError:
            return b""

    def _count(self, chunk: bytes) -> None:
        self._delivery.stirs += 1
        self.teller.read(len(chunk))

    def _relay(self, sink: Sink, chunk: bytes) -> bool:
        """Hand on what stdout held, if that needs no wait; return whether it was."""
        if not chunk or (give := sink.giver()) is None:
            return False
        lines = self._splitter.feed(chunk)
        if len(lines) > LINES:
            self._cut = lines
            return False
        self._count(chunk)
        if lines := self._sift(lines):
            signs = self._learn(lines, chunk, sink)
            give(lines)
            if signs:
                self._heed(signs)
        return True

    async def _take(self, lines: list[bytes], chunk: bytes, sink: Sink) -> None:
        """Hand lines on, which `chunk` has completed, and act on what they say about the run; some at a time."""
        for first in range(0, len(lines), LINES):
            if first:
                with self._delivery:
                    await trio.lowlevel.checkpoint()
            await self._take_some(lines[first : first + LINES], chunk, sink)

    async def _take_some(self, lines: list[bytes], chunk: bytes, sink: Sink) -> None:
        if not (lines := self._sift(lines)):
            return
        signs = self._learn(lines, chunk, sink)
        await self._deliver(sink.lines(lines))
        self._heed(signs)

    async def _deliver(self, taken: Awaitable[None]) -> None:
        """Wait until lines are taken."""
        began = trio.current_time()
        try:
            with self._delivery:
                await taken
        finally:
            self.teller.delivered(began)

    def _sift(self, lines: list[bytes]) -> list[bytes]:
        """Return those of the CLI's lines that are not for the server alone."""
        if self._swallowed:
            lines, self._swallowed = stream_json.without_reply(lines, self._swallowed)
        return lines

    def _learn(self, lines: list[bytes], chunk: bytes, sink: Sink) -> list[Sign]:
        """Record lines before they are handed on, and learn what they say about the run; return its signs."""
        if self._recorder:
            self._recorder.lines(lines, self._splitter.texts(lines, chunk))
        self._hear(lines)
        self.teller.hear(lines)
        if self.account.metered:
            self._meter.hear(lines)
        signs = stream_json.signs(lines)
        for sign in signs:
            self._note(sign, sink)
            self._charge(sign)
        return signs

    def _heed(self, signs: list[Sign]) -> None:
        """End the run once lines are handed on, if they say that it is of no use."""
        if any(sign.unauthorized for sign in signs):
            self._decide(Decision(Reason.UNAUTHORIZED, "the API refused the key (401); check ANTHROPIC_API_KEY"))

    def _hear(self, lines: list[bytes]) -> None:
        """Take what the CLI has said before anybody else does."""

    def _note(self, sign: Sign, sink: Sink) -> None:
        if sign.result:
            self._result_error = sign.error
            self._grace.deadline = min(self._grace.deadline, trio.current_time() + self._workplace.config.result_grace)
        if sign.denied_tool:
            sink.denied(sign.denied_tool)

    def _charge(self, sign: Sign) -> None:
        """Charge what a result says was used, which it says of the whole process; end a run that passes a limit."""
        if sign.spent is None:
            return
        used = self._meter.result(sign)
        self.teller.end_turn(used, sign.error or "")
        self._session = self._session or sign.session or None
        if sign.session and self._meter.whole:
            self.account.remember(sign.session, self._meter.whole)
        if self._recorder:
            self._recorder.spent(self._meter.charged.tokens, self._meter.charged.dollars)
        if over := self._spend(used):
            self._decide(Decision(Reason.OVER_BUDGET, over, drain=True, after_result=True))

    async def _say_stderr(self, sink: Sink, lines: list[str]) -> None:
        if self._recorder:
            self._recorder.stderr(lines)
        await sink.stderr_lines(lines)

    def _decide(self, decision: Decision) -> None:
        """Keep the first decision; one that wants no more output stops the readers."""
        if self._decision is None:
            self._decision = decision
            (self._grace if decision.drain else self._scope).cancel()

    def _outcome(self, decision: Decision, receipt: Receipt, status: int | None = None) -> Outcome:
        return Outcome(
            reason=decision.reason,
            exit_status=status if status is not None and status >= 0 else None,
            signal=-status if status is not None and status < 0 else None,
            lines=self.teller.lines,
            encoding_errors=self._splitter.encoding_errors,
            receipt=receipt,
            error=decision.told,
            after_result=decision.after_result,
            cause=decision.error,
        )
