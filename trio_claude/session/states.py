"""What a session is at: one table of states, the CLI's open questions, its own word of what it owes, and the clocks.

The clocks of a turn and of the whole session stand still while an approval is open; an approval has a clock of its own.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from typing import Any

import attrs

from ..stream_json import DELTA, parse_line

APPROVAL = "can_use_tool"
AGENTS = ("local_agent", "local_workflow")
"""The kinds of tasks that are an agent, or several: the CLI begins a turn with what they have found."""
OPEN_LIMIT = 1000
OPEN_BYTES = 32 * 1024 * 1024
"""Questions of the CLI that are kept open, and their bytes; of a CLI that asks more, the oldest is forgotten."""


class State(enum.StrEnum):
    """What a session is at."""

    IDLE = "idle"
    RUNNING = "running"
    AWAITING = "awaiting-approval"
    ENDING = "ending"


class Happening(enum.StrEnum):
    """What changes the state."""

    PROMPTED = "prompted"
    """The client has said something to the model."""
    BEGAN = "began"
    """The CLI has begun a turn, whoever wanted it."""
    ASKED = "asked"
    """The CLI has asked for an approval."""
    SETTLED = "settled"
    """The last open approval was answered, or is not wanted any more, and the turn goes on."""
    SATISFIED = "satisfied"
    """The same, outside of a turn."""
    RESULT = "result"
    """The CLI has said a turn's result, or that it has had what was said before, and does nothing with it."""
    DECIDED = "decided"
    """The end of the run is decided."""


TABLE: Mapping[State, Mapping[Happening, State]] = {
    State.IDLE: {
        Happening.PROMPTED: State.RUNNING,
        Happening.BEGAN: State.RUNNING,
        Happening.ASKED: State.AWAITING,
        Happening.SETTLED: State.IDLE,
        Happening.SATISFIED: State.IDLE,
        Happening.RESULT: State.IDLE,
        Happening.DECIDED: State.ENDING,
    },
    State.RUNNING: {
        Happening.PROMPTED: State.RUNNING,
        Happening.BEGAN: State.RUNNING,
        Happening.ASKED: State.AWAITING,
        Happening.SETTLED: State.RUNNING,
        Happening.SATISFIED: State.RUNNING,
        Happening.RESULT: State.IDLE,
        Happening.DECIDED: State.ENDING,
    },
    State.AWAITING: {
        Happening.PROMPTED: State.AWAITING,
        Happening.BEGAN: State.AWAITING,
        Happening.ASKED: State.AWAITING,
        Happening.SETTLED: State.RUNNING,
        Happening.SATISFIED: State.IDLE,
        Happening.RESULT: State.AWAITING,
        Happening.DECIDED: State.ENDING,
    },
    State.ENDING: dict.fromkeys(Happening, State.ENDING),
}


@attrs.frozen
class Asked:
    """A question of the CLI: what it asks, its line, and since when it is open."""

    subtype: str
    line: bytes = attrs.field(repr=False)
    since: float
    number: int = 0
    """The line's number."""

    @property
    def input(self) -> dict[str, Any]:
        """The input of the tool that is asked for."""
        given = parse_line(self.line)["request"].get("input")
        return given if isinstance(given, dict) else {}


@attrs.frozen
class Settled:
    """An approval that is not open any more, `seconds` after it was asked for, and how that came."""

    seconds: float
    outcome: str


@attrs.frozen(kw_only=True)
class Patience:
    """How long things may take, in seconds. `notice` is how long a silence lasts before it is told."""

    turn: float
    idle: float
    whole: float
    approval: float
    interrupt: float
    notice: float
    silence: float = math.inf


class Clock(enum.StrEnum):
    """Which time is over."""

    TURN = "turn"
    IDLE = "idle"
    WHOLE = "whole"
    APPROVAL = "approval"
    INTERRUPT = "interrupt"
    NOTICE = "notice"
    SILENCE = "silence"


@attrs.frozen
class Due:
    """What is next to happen if nothing else does; `request` names the approval whose time is over."""

    at: float
    clock: Clock
    request: str = ""


READS_STATE = "CLAUDE_CODE_SDK_READS_SESSION_STATE"
"""The variable that asks a CLI to tell its host whether it is done, or owes a turn yet."""
_HOST_ONLY = b'"sdk_host_only"'
_MARKS = (
    b'"result"',
    b'"init"',
    b'"control_request"',
    b'"control_cancel_request"',
    b'"control_response"',
    b'"background_tasks_changed"',
    b'"command_lifecycle"',
)
_STOPPED: Mapping[State, frozenset[Clock]] = {
    State.IDLE: frozenset({Clock.TURN}),
    State.RUNNING: frozenset({Clock.IDLE}),
    State.AWAITING: frozenset({Clock.TURN, Clock.IDLE, Clock.WHOLE}),
    State.ENDING: frozenset({Clock.TURN, Clock.IDLE, Clock.WHOLE}),
}
"""The budgets that are not used up in each state."""


class Session:
    """One session: its state, the questions that are open, and what is due when."""

    def __init__(self, patience: Patience, now: float) -> None:
        self.patience = patience
        self.state: State = State.IDLE
        self.asked: dict[str, Asked] = {}
        self.settled: list[Settled] = []
        """Approvals of which nobody was told yet that they are not open any more."""
        self.lines: int = 0
        self.closing: bool = False
        self.deaf: bool = False
        self.begun: bool = False
        self.agents: bool = False
        """Whether agents work in the background: the CLI begins a turn with what they have found."""
        self.owes: bool = False
        """Whether the CLI says that it is not done: behind a result it begins a turn yet, though nobody prompts it."""
        self.in_turn: bool = False
        self.unanswered: bool = False
        """Whether no result has come since the client said something, but of turns that the CLI began by itself."""
        self._prompt = ""
        """The `uuid` of what the client has said last."""
        self._waits = False
        """Whether something was said in the turn, for which the CLI may begin another behind it."""
        self._ends_next = False
        """Whether that one is to end."""
        self._left = {Clock.TURN: patience.turn, Clock.IDLE: patience.idle, Clock.WHOLE: patience.whole}
        self._counted = now
        self._heard = now
        self._told = False
        self._said_since_prompt = False
        self._interrupted: float | None = None
        self._interrupt = ""

    @property
    def phase(self) -> str:
        """What a silence is: before the first output of a turn, between two lines, or after the last result."""
        if self.state is State.IDLE:
            return "after-result"
        return "between-lines" if self._said_since_prompt else "first-output"

    # what happens

    def begin(self, now: float) -> None:
        """Take that the CLI runs: what was said before it did costs the session no time."""
        self._counted = self._heard = now

    def hear(self, lines: list[bytes], now: float) -> list[Happening]:
        """Take lines of the CLI, in order; return what they have changed."""
        self._heard, self._told = now, False
        happened: list[Happening] = []
        suspects = [(number, line) for number, line in enumerate(lines, self.lines + 1) if _is_suspect(line)]
        if len(suspects) < len(lines):
            self._said_since_prompt = True
        for number, line in suspects:
            happened += self._note(line, number, now)
        self.lines += len(lines)
        return happened

    def sift(self, lines: list[bytes]) -> list[bytes]:
        """Take what the CLI says of its own state, which is for its host alone; return the other lines."""
        if not any(_HOST_ONLY in line for line in lines):
            return lines
        return [line for line in lines if not (_HOST_ONLY in line and self._is_for_host(line))]

    def prompt(self, now: float, uuid: str = "") -> None:
        """Take that the client has said something to the model, by the name that it may have."""
        self._prompt, self.unanswered = uuid, True
        self._waits, self._ends_next = self.in_turn, False
        if not self.in_turn:
            self._enter_turn()
            self._heard, self._told, self._said_since_prompt = now, False, False
        self._happen(Happening.PROMPTED, now)

    def answer(self, request: str, now: float, outcome: str = "allowed") -> None:
        """Take that an open question is answered, or not wanted any more."""
        question = self.asked.pop(request, None)
        if question is None or question.subtype != APPROVAL:
            return
        self.settled.append(Settled(now - question.since, outcome))
        if not self._approvals():
            self._heard, self._told = now, False
            self._happen(Happening.SETTLED if self.in_turn else Happening.SATISFIED, now)

    def interrupt(self, now: float, request: str) -> bool:
        """Take that the turn is to end by `request`; return whether there is one that was not to end before.

        Between two turns it is the one that is about to begin, which the client has asked for or the CLI owes, if there
        is one: its time runs once it has. So it is where the CLI has said yes to the request and not begun the turn: it
        waits for a slow MCP server, say.
        """
        comes = self.in_turn or self._waits or (self.owes and not self.agents)
        if self.state is State.ENDING or self.interrupted or self._ends_next or not comes:
            return False
        self._interrupted = now if self.in_turn else None
        self._ends_next = not self.in_turn
        self._interrupt = request
        return True

    @property
    def interrupted(self) -> bool:
        """Whether the turn is to end."""
        return self._interrupted is not None

    def close(self) -> None:
        """Take that the CLI can be told nothing more: what it asks from now on nobody can answer."""
        self.deaf = True

    def decide(self, now: float) -> None:
        """Take that the end of the run is decided."""
        self.settled += [
            Settled(now - question.since, "abandoned")
            for question in self.asked.values()
            if question.subtype == APPROVAL
        ]
        self.asked.clear()
        self._interrupted = None
        self._happen(Happening.DECIDED, now)

    def notice(self) -> None:
        """Take that the silence was told."""
        self._told = True

    # what is due

    def silent(self, now: float) -> float:
        """Return for how long the CLI has said nothing, in seconds."""
        return now - self._heard

    def due(self, now: float) -> Due:
        """Return what is next to happen if nothing else does."""
        self._count(now)
        running = {clock: left for clock, left in self._left.items() if clock not in self._stopped()}
        found = [Due(now + left, clock) for clock, left in running.items()]
        found += [
            Due(question.since + self.patience.approval, Clock.APPROVAL, request)
            for request, question in self.asked.items()
            if question.subtype == APPROVAL
        ]
        if self._interrupted is not None:
            found.append(Due(self._interrupted + self.patience.interrupt, Clock.INTERRUPT))
        if self.state is State.RUNNING or (self.state is State.IDLE and self.closing):
            found.append(Due(self._heard + self.patience.silence, Clock.SILENCE))
            if not self._told:
                found.append(Due(self._heard + self.patience.notice, Clock.NOTICE))
        return min(found, key=lambda due: due.at, default=Due(math.inf, Clock.WHOLE))

    # inside

    def _note(self, line: bytes, number: int, now: float) -> list[Happening]:
        said = parse_line(line)
        kind = said.get("type")
        if kind == "control_request":
            return self._ask(said, line, number, now)
        if kind == "control_cancel_request":
            was = self.state
            self.answer(str(said.get("request_id")), now, "withdrawn")
            return [Happening.SETTLED] if self.state is not was else []
        if kind == "control_response":
            self._wait_for_begin(said.get("response"))
            return []
        if kind == "result" or (kind == "command_lifecycle" and self._passes_over(said)):
            self._interrupted = None
            self.in_turn = self.begun = False
            self.unanswered = self.unanswered and _is_of_the_clis_own(said.get("origin"))
            self._waits = self._waits or self.unanswered
            self._happen(Happening.RESULT, now)
            return [Happening.RESULT]
        if kind == "system" and said.get("subtype") == "init":
            if not self.in_turn:
                self._enter_turn()
                self._waits = False
            if self._ends_next or self._interrupted == math.inf:
                self._interrupted = now
            self.begun, self._ends_next = True, False
            self._happen(Happening.BEGAN, now)
            return [Happening.BEGAN]
        if kind == "system" and said.get("subtype") == "background_tasks_changed":
            self._work(said.get("tasks"), now)
        self._said_since_prompt = True
        return []

    def _is_for_host(self, line: bytes) -> bool:
        said = parse_line(line)
        if not (said.get("subtype") == "session_state_changed" and said.get("sdk_host_only") is True):
            return False
        self.owes = said.get("state") != "idle"
        self._ends_next = self._ends_next and (self.owes or self._waits)
        return True

    def _passes_over(self, said: dict[str, Any]) -> bool:
        """Return whether a CLI is done with a prompt that begins no turn: it knows its `uuid` from an earlier run."""
        known = self._prompt and said.get("command_uuid") == self._prompt
        return bool(known and said.get("state") == "completed" and self.in_turn and not self.begun)

    def _wait_for_begin(self, answer: object) -> None:
        """Let the time of an interrupt stand still that the CLI has taken before it began the turn."""
        if self.begun or self._interrupted is None or not isinstance(answer, dict):
            return
        if answer.get("request_id") == self._interrupt and answer.get("subtype") == "success":
            self._interrupted = math.inf

    def _enter_turn(self) -> None:
        self.in_turn = True
        self._left[Clock.TURN] = self.patience.turn

    def _ask(self, said: dict[str, Any], line: bytes, number: int, now: float) -> list[Happening]:
        request, question = said.get("request_id"), said.get("request")
        if self.deaf or not isinstance(request, str) or not request.isprintable() or not isinstance(question, dict):
            return []
        subtype = str(question.get("subtype"))
        self.asked[request] = Asked(subtype, line, now, number)
        while len(self.asked) > OPEN_LIMIT or sum(len(one.line) for one in self.asked.values()) > OPEN_BYTES:
            self.answer(next(iter(self.asked)), now, "abandoned")
        if subtype != APPROVAL:
            return []
        self._happen(Happening.ASKED, now)
        return [Happening.ASKED]

    def _approvals(self) -> bool:
        return any(question.subtype == APPROVAL for question in self.asked.values())

    def _happen(self, happening: Happening, now: float) -> None:
        self._count(now)
        was, self.state = self.state, TABLE[self.state][happening]
        if self.state is State.IDLE and was is not State.IDLE:
            self._left[Clock.IDLE] = self.patience.idle

    def _count(self, now: float) -> None:
        """Use up the budgets that run in this state."""
        spent, self._counted = now - self._counted, now
        for clock in self._left.keys() - self._stopped():
            self._left[clock] -= spent

    def _stopped(self) -> frozenset[Clock]:
        return _STOPPED[self.state] | {Clock.IDLE} if self.agents else _STOPPED[self.state]

    def _work(self, tasks: object, now: float) -> None:
        """Take the tasks in the background, all that there are."""
        self._count(now)
        listed = tasks if isinstance(tasks, list) else []
        self.agents = any(isinstance(task, dict) and task.get("task_type") in AGENTS for task in listed)
        self._left[Clock.IDLE] = self.patience.idle


def _is_of_the_clis_own(origin: object) -> bool:
    """Return whether a result is of a turn that the CLI has begun by itself; by a message it names none, or a human."""
    return isinstance(origin, dict) and origin.get("kind", "human") != "human"


def _is_suspect(line: bytes) -> bool:
    return not line.startswith(DELTA) and any(mark in line for mark in _MARKS)
