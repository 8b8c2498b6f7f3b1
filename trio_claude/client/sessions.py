"""`/ws/session`: many turns with one CLI, approvals answered by a callback, turns that can be interrupted.

One task reads: it answers approvals through tasks of their own, hands the CLI's answers to whoever asked, and keeps
the rest, at most `INBOX_LIMIT` bytes, for whoever iterates. Who does not iterate stops the server in the end, not this
program's memory.
"""

from __future__ import annotations

import contextlib
import json
import math
import secrets
import uuid
from collections.abc import Callable
from typing import Any, Final, TypeAlias
from weakref import WeakValueDictionary

import anyio
import anyio.abc
import attrs

from ..errors import TrioClaudeError
from .cli_lines import Init, Line, Question, Result, User, parse_line
from .decisions import Approval, Decide, decision
from .links import LOST, NOT_NOW, Link, no_matter
from .sockets import Awaited, ConnectFailed, Inbox, dumps

Json: TypeAlias = dict[str, Any]


class Refused(TrioClaudeError):
    """The server refused what this program said; `code` is for programs."""

    def __init__(self, code: str, text: str, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.retry_after = retry_after


@attrs.frozen
class SessionEnded:
    """How a session ended: the reason, the server's error if it said one, the receipt, and the close code.

    Where the connection broke before the server could tell, and was not made anew, `reason` and `receipt` are empty and
    `error` says what stood in the way last.
    """

    reason: str
    error: str | None
    receipt: Json
    code: int

    @property
    def ok(self) -> bool:
        """Whether the CLI came to a good end."""
        return self.reason == "exit" and self.error is None


ENDING: Final = "ending"
"""The code of what is refused because the run ends: its end is on its way, and says why."""
NOT_OPEN: Final = "not-open"
"""The code of what is refused because the CLI does not ask any more."""
UNTOLD: Final = (1009, 1011)
"""Close codes of which nothing but the close reason tells why, unless `ended` did."""
TOLD: Final = 64
"""Answers to approvals that are remembered, in case that the server refuses them."""
PARTING: Final = 1.0
"""Seconds for telling the server that this program leaves."""
HUMAN: Final = "human"
"""The `origin` of a turn that a message began, where the CLI tells one."""
Hear: TypeAlias = Callable[[Json], None]


class Session:
    """A conversation with one CLI. `started` is what the server said when it began: `started`, or `attached`.

    Resource handling: lives in the context that `open_session` or `attach_session` gives; leaving it ends the run,
    whatever it is at, unless `detach` was called, or it is only watched.
    Error handling: methods raise `Refused` for what the server refuses, and `ConnectionError` once the session is over.
    What is said to a run that is just ending is not done, and raises nothing: `ended` tells why.
    """

    def __init__(self, link: Link, decide: Decide, hear: Hear, tasks: anyio.abc.TaskGroup) -> None:
        self.hello: Json = {}
        self.started: Json = {}
        self.ended: SessionEnded | None = None
        self._link = link
        self._decide = decide
        self._hear = hear
        self._tasks = tasks
        self.after: int = 0
        """The number of the last line that was iterated over; `attach_session` gives those behind it."""
        self._lines: Inbox[tuple[int, Line] | Exception] = Inbox(alive=link.show_life)
        self._answers: dict[str, Awaited[Json]] = {}
        self._approvals: dict[str, _Asked] = {}
        self._told: dict[str, None] = {}
        self._last: Json = {}
        self._turns: WeakValueDictionary[str, Turn] = WeakValueDictionary()
        self._session = ""
        self._begun = anyio.Event()
        self._leaving: Awaited[Json] | None = None
        self._reading = anyio.CancelScope(shield=True)

    @property
    def id(self) -> str:
        """The CLI's id of this session, by which it can be resumed; behind `attach_session` it comes with an `Init`."""
        return str(self.started.get("session", self._session))

    @property
    def run(self) -> str:
        """The run's id, by which `attach_session` comes to it."""
        return str(self.started.get("run", ""))

    @property
    def role(self) -> str:
        """`owner`, or `viewer` of a run that is only watched."""
        return str(self.started.get("role", "owner"))

    # what this program says

    def ask(self, content: str | list[Json]) -> Turn:
        """Say something, text or content blocks, and iterate over the CLI's lines up to the turn's `Result`."""
        name = str(uuid.uuid4())
        prompt = {"type": "user", "message": {"role": "user", "content": content}, "uuid": name}
        self._turns[name] = turn = Turn(self, prompt)
        return turn

    async def interrupt(self) -> None:
        """End the turn; what was said of the answer is kept. Returns at once; the turn's `Result` comes as a line."""
        await self._stop("interrupt")

    async def end(self) -> SessionEnded:
        """Let the turn end, then the run; drop what is still said and return how it ended, maybe before this."""
        return await self._conclude("end")

    async def kill(self) -> SessionEnded:
        """End the whole process tree now; return how the run ended, maybe before this."""
        return await self._conclude("kill")

    async def detach(self) -> SessionEnded:
        """Leave, and let the run go on for its grace; lines that were not iterated over are dropped.

        Raises `Refused` where the run would end with this client, and stays.
        """
        if not self._link.stays:
            raise Refused("not-allowed", "detach: the session was opened without reconnect")
        self._leaving = waiting = Awaited[Json]()
        with anyio.move_on_after(PARTING):
            await self.say({"type": "gateway", "op": "detach"})
            await waiting.get()
        self._link.drop()
        return await self._wait_end()

    async def set_model(self, model: str | None) -> None:
        """Choose a model from the next turn on, None for the CLI's own."""
        await self.control("set_model", model=model)

    async def control(self, subtype: str, **fields: Any) -> Json:
        """Make a control request of the CLI; return its answer. Raises `Refused`, also where the CLI refuses."""
        name = f"client-{secrets.token_hex(8)}"
        self._answers[name] = waiting = Awaited[Json]()
        try:
            await self.say({"type": "control_request", "request_id": name, "request": {"subtype": subtype, **fields}})
            return await waiting.get()
        finally:
            self._answers.pop(name, None)

    def part(self) -> None:
        """Leave; end a run that would wait for its client, unless that is wanted, or this is a viewer.

        In a task of its own: asyncio's own cancellations go through a shield, and there may be several.
        """
        self._lines.refuse()
        stays = self._leaving or self.role == "viewer"
        self._tasks.start_soon(self._part, "" if stays else dumps(_stop("kill")))

    async def _part(self, last: str) -> None:
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(PARTING):
                await self._link.leave(last)
            self._link.drop()
            self._reading.deadline = anyio.current_time() + PARTING

    async def _conclude(self, mode: str) -> SessionEnded:
        try:
            await self._stop(mode)
        except ConnectionError:
            if self._link.lasts:
                raise
        return await self._wait_end()

    async def _stop(self, mode: str) -> None:
        await self.say(_stop(mode))

    async def say(self, line: Json, on_unsaid: Callable[[], None] = no_matter) -> None:
        """Say a line of the wire contract as it is; where this is cancelled before that, `on_unsaid` hears it.

        Raises `ConnectionError` once the session is over, `Refused` for more bytes than the server takes in one
        message, TypeError and ValueError for what is no JSON.
        """
        if self.ended:
            raise ConnectionError("the session is over")
        await self._link.send(self._checked(dumps(line)), on_unsaid)

    def _checked(self, text: str) -> str:
        """Return a message that the server takes: one that is too long would end the connection. Raises `Refused`."""
        limit = self.hello.get("limits", {}).get("message", math.inf)
        if len(text) > limit:
            raise Refused("bad-message", f"message must be at most {limit} bytes, not {len(text)}")
        return text

    # what the server says

    def __aiter__(self) -> Session:
        return self

    async def __anext__(self) -> Line:
        """Return the next line, whichever turn it belongs to; stop at the session's end."""
        return await self.line_of()

    async def line_of(self, turn: Turn | None = None) -> Line:
        """Return the next line as `anext` does; stop also where a task that reads beside this one has ended `turn`."""
        if (said := await self._next(lambda: turn is not None and turn.result is not None)) is None:
            raise StopAsyncIteration
        self.after, line = said
        if isinstance(line, Result):
            for name in _named(line) or ():
                if named := self._turns.get(str(name)):
                    named.result = line
            self._lines.wake()
        return line

    async def _next(self, enough: Callable[[], bool] = lambda: False) -> tuple[int, Line] | None:
        """Return the next line with its number, None at the end. Raises what a program is to hear where it iterates."""
        said = await self._lines.take(enough)
        if isinstance(said, Exception):
            raise said
        return said

    async def _wait_end(self) -> SessionEnded:
        while await self._next():
            pass
        assert self.ended
        return self.ended

    async def read(self, start: Json) -> None:
        """Start the session and read to its end, in a task of its own."""
        try:
            with self._reading:  # shielded: a program that is cancelled still says that it leaves
                await self._link.run(start, self._take, self._lines.add)
        except (ConnectFailed, ConnectionError) as error:  # raised where the program waits or iterates
            self._lines.add(error)
        last = self._last
        if not last and self._link.code in UNTOLD:
            last = {"error": self._link.reason}
            self._lines.add(ConnectionError(f"the server closed the connection: {self._link.reason}"))
        elif not last and self._link.code in (*LOST, *NOT_NOW):
            last = {"error": self._link.reason or None}
        self.ended = SessionEnded(last.get("reason", ""), last.get("error"), last.get("receipt", {}), self._link.code)
        for waiting in self._answers.values():
            waiting.fail(ConnectionError("the session is over"))
        for asked in self._approvals.values():
            asked.scope.cancel()
        if self._leaving:
            self._leaving.set({})
        self._begun.set()
        self._lines.close()

    async def _take(self, line: Line, size: int) -> None:
        kind = line.said.get("type")
        if kind == "gateway":
            self._event(line.said)
        elif kind == "control_response":
            self._answered(line.said.get("response"))
        elif kind == "control_cancel_request":
            self._settle(str(line.said.get("request_id")))
        elif isinstance(line, Question) and line.subtype == "can_use_tool" and self.role == "owner":
            self._ask(line)
        else:
            if isinstance(line, Init):
                self._session = line.session
            elif isinstance(line, User):
                self._take_results(line)
            await self._lines.put((self._link.lines, line), size)

    def _take_results(self, line: User) -> None:
        """Ask no more for tools that have come to their end: what is told again tells of both."""
        used = [block["tool_use_id"] for block in line.blocks if "tool_use_id" in block]
        for name, asked in [*self._approvals.items()] if used else ():
            if asked.question.said.get("tool_use_id") in used:
                self._settle(name)

    def _settle(self, name: str) -> None:
        """Take that a question is not open any more."""
        if asked := self._approvals.pop(name, None):
            asked.scope.cancel()

    def _ask(self, question: Question) -> None:
        """Have an approval decided in a task of its own; what is asked twice is one question."""
        if question.id not in self._approvals:
            self._approvals[question.id] = asked = _Asked(question)
            self._tasks.start_soon(self._approve, asked)

    def _event(self, said: Json) -> None:
        """Take what the server says of its own."""
        match said.get("event"):
            case "hello":
                self.hello = said
            case "started":
                self.started = said
                self._begun.set()
            case "attached" if not self.started:
                self._come_to(said)
            case "ended":
                self._last = said
            case "refused":
                self._refused(said)
        try:
            self._hear(said)
        except Exception as error:  # the program's own; raised where it iterates
            self._lines.add(error)

    def _come_to(self, said: Json) -> None:
        """Be at a run that was there, and take up the questions that are open."""
        self.started, self.after = said, self._link.lines
        self._begun.set()
        for pending in said.get("pending", ()) if self.role == "owner" else ():
            line = pending["line"]
            question = parse_line(line if isinstance(line, str) else json.dumps(line))
            if isinstance(question, Question):
                self._ask(question)

    def _refused(self, said: Json) -> None:
        refused = Refused(str(said.get("code")), str(said.get("error")), said.get("retry_after"))
        if self._leaving and refused.code == "not-allowed" and "request_id" not in said:
            self._leaving.fail(refused)
            self._leaving = None
        elif (name := said.get("request_id")) in self._answers:
            self._answers.pop(str(name)).fail(refused)
        elif name is None and refused.code != ENDING:
            self._lines.add(refused)
        elif name in self._told and refused.code not in (ENDING, NOT_OPEN):
            del self._told[str(name)]
            self._lines.add(refused)
            self._tasks.start_soon(self._say_answer, _answer(str(name), error="the client's answer was refused"))

    def _answered(self, response: Any) -> None:
        if not isinstance(response, dict):
            return
        if waiting := self._answers.pop(str(response.get("request_id")), None):
            if response.get("subtype") == "success":
                waiting.set(response.get("response") or {})
            else:
                waiting.fail(Refused("cli", str(response.get("error"))))

    async def _approve(self, asked: _Asked) -> None:
        """Have an approval decided, and tell the CLI, unless it does not want to know any more."""
        name, said = asked.question.id, asked.question.said
        approval = Approval(name, str(said.get("tool_name")), said.get("input") or {}, said)
        with asked.scope:
            try:
                text = self._checked(_answer(name, response=decision(await self._decide(approval))))
            except Exception as error:  # the program's own; raised where it iterates
                self._lines.add(error)
                text = _answer(name, error="the client's callback failed")
            self._told[name] = None
            while len(self._told) > TOLD:
                del self._told[next(iter(self._told))]
            await self._say_answer(text)
        if self._approvals.get(name) is asked:
            del self._approvals[name]

    async def _say_answer(self, text: str) -> None:
        with contextlib.suppress(ConnectionError):  # the session is over; whoever iterates sees it
            await self._link.send(text)

    async def wait_started(self) -> None:
        """Wait until the CLI runs. Raises `ConnectFailed`, `Refused` and `ConnectionError`."""
        await self._begun.wait()
        if not self.started:
            while await self._next():
                pass
            why = self._last.get("error")
            raise ConnectionError("the server closed before the session began" + (f": {why}" if why else ""))


class Turn:
    """One turn: iterate over its lines, of which a `Result` is the last. What is not read goes to the next turn.

    A turn that is another's, or that the CLI begins by itself because a background task has ended, comes with its
    `Result` on the way, and ends nothing. Where the CLI answers several turns at once the same `Result` ends each of
    them, whichever reads it.
    """

    def __init__(self, session: Session, prompt: Json) -> None:
        self._session = session
        self._prompt: Json | None = prompt
        self.result: Result | None = None

    def __aiter__(self) -> Turn:
        return self

    async def __anext__(self) -> Line:
        if self._prompt:
            prompt, self._prompt = self._prompt, None
            await self._session.say(prompt, lambda: self._restore(prompt))
        if self.result:
            raise StopAsyncIteration
        line = await self._session.line_of(self)
        if isinstance(line, Result) and _named(line) is None and _is_begun_by_message(line):
            self.result = line
        return line

    def _restore(self, prompt: Json) -> None:
        """Take that the prompt was not said: who iterates again says it."""
        self._prompt = prompt


def _named(result: Result) -> list[Any] | None:
    """Return the messages that a result is for, None where the CLI does not name them."""
    names = result.said.get("user_message_uuids")
    return names if isinstance(names, list) else None


def _is_begun_by_message(result: Result) -> bool:
    origin = result.said.get("origin")
    return not isinstance(origin, dict) or origin.get("kind", HUMAN) == HUMAN


@attrs.frozen(eq=False)
class _Asked:
    """A question that is being decided, in a task that can be cancelled."""

    question: Question
    scope: anyio.CancelScope = attrs.Factory(anyio.CancelScope)


def _answer(question: str, **more: Any) -> str:
    """Return an answer to a question of the CLI's, as text. Raises TypeError and ValueError for what is no JSON."""
    kind = "error" if "error" in more else "success"
    return dumps({"type": "control_response", "response": {"subtype": kind, "request_id": question, **more}})


def _stop(mode: str) -> Json:
    return {"type": "gateway", "op": "stop", "mode": mode}
