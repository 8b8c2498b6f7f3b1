"""What Redis is asked to have what a run says written: the words of the journal's scripts.

Whoever asks tells what was answered, and asks the same again. This module must never wait, and never ask itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import attrs

from ..errors import Reason
from ..journal import Begun, End, Part
from ..journal.backlog import Recorder, Write
from ..journal.facts import Text
from ..journal.usage import RUN_TOKENS
from .archive import GONE, to_bytes, to_word
from .redis import Word
from .scripts import load

SCRIPTS: Final = ("begin", "append", "charge", "end", "delete")


class Lease(Protocol):
    """What a server is among the others: its name, and the token under which it may tell of runs, another once lost."""

    name: str
    token: int


@attrs.define(eq=False)
class Told:
    """A run that Redis is told of."""

    recorder: Recorder
    begun: Begun | None = None
    token: int = 0
    """The token under which it began, 0 before."""
    cut: bool = False
    """Whether Redis takes no more of its lines."""
    over: bool = False
    """Whether Redis takes nothing more of it."""


@attrs.frozen
class Ask:
    """What Redis is asked, of which run, and whether it is for that run's end."""

    words: Sequence[Word]
    run: Told | None = None
    ends: str = ""


class Asks:
    """Makes of what is to be written what Redis is asked."""

    def __init__(self, prefix: str, lease: Lease, keep: int) -> None:
        self.runs: dict[str, Told] = {}
        """Those that live, and those whose end may have to be told again."""
        self._prefix = prefix
        self._lease = lease
        self._keep = keep
        self._made: Ask | None = None

    def make(self, write: Write) -> Ask | None:
        """Return what Redis is asked to have something written, None where there is nothing to ask."""
        self._made = None
        write.do(self)
        return self._made

    def begin(self, run: Begun) -> None:
        """Ask for a run to begin."""
        if (told := self.runs.get(run.id)) is None or told.over:
            return
        told.begun = run
        told.token = told.token or self._lease.token
        facts = {
            "meta": run.meta, "door": run.door, "batch": run.batch, "session": run.session, "prompt": run.prompt,
            "options": json.dumps(run.options), "model": run.model,
        }  # fmt: skip
        words = self._keep, to_bytes(run.identity), repr(float(run.started)), *_fields(facts)
        self._made = Ask(self._words("begin", run.id, told, *words), told)

    def add(self, run: str, number: int, part: Part) -> None:
        """Ask for a part to be added to a run's history."""
        if (told := self.runs.get(run)) is None or told.cut:
            return
        words = int(part.kind), part.first, part.count, number, part.data
        self._made = Ask(self._words("append", run, told, *words), told)

    def add_lines(self, run: str, number: int, first: int, count: int, texts: list[Text]) -> None:
        """Ask for lines to be added to a run's history."""
        self.add(run, number, Part.of_lines(first, count, texts))

    def spend(self, run: str, tokens: int, dollars: float) -> None:
        """Ask for what a live run has used to be known, though its server may not see its end."""
        if (told := self.runs.get(run)) is None or told.over:
            return
        words = min(tokens, RUN_TOKENS), repr(float(dollars))
        self._made = Ask(self._words("charge", run, told, *words), told)

    def end(self, end: End) -> None:
        """Ask for a run to end."""
        if (told := self.runs.get(end.id)) is None or not told.begun:
            return
        if told.over:
            del self.runs[end.id]
            return
        used = (
            end.turns, min(end.tokens, RUN_TOKENS), repr(float(end.dollars)),
            repr(max(0.0, end.ended - told.begun.started)), int(Reason(end.reason).is_fault),
        )  # fmt: skip
        facts = {
            "exit_status": end.exit_status, "signal": end.signal, "encoding_errors": end.encoding_errors,
            "error": end.error, "receipt": json.dumps(end.receipt),
        }  # fmt: skip
        words = to_bytes(end.session or ""), end.lines, int(end.whole), *_fields(facts)
        reason, ended = str(Reason(end.reason)), repr(float(end.ended))
        self._made = Ask(self._words("end", end.id, told, reason, ended, *used, *words), told, end.id)

    def delete(self, runs: Sequence[str]) -> None:
        """Ask for runs to be deleted that are deleted already."""
        self._made = Ask(("EVALSHA", load("delete").sha, 0, self._prefix, GONE, b"", *runs))

    def strays(self) -> Sequence[Word]:
        """Return what ends the runs that Redis takes for live of this server, and that have ended."""
        return ("EVAL", load("strays").text, 0, self._prefix, self._lease.name, *self.runs)

    def _words(self, script: str, run: str, told: Told, *words: Word) -> Sequence[Word]:
        return ("EVALSHA", load(script).sha, 0, self._prefix, run, self._lease.name, told.token, *words)


def _fields(facts: Mapping[str, str | int | None]) -> list[Word]:
    """Return fields with their values, those that have one."""
    return [to_word(word) for name, value in facts.items() if value is not None for word in (name, value)]
