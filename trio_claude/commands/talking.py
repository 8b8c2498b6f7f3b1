"""A conversation in a terminal: what is typed goes to the CLI, what it says is shown, what it asks is asked.

Ctrl-C ends the turn, never the program. One thing at a time owns the keyboard: the prompt, or a question.
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import AsyncIterator
from typing import Any

import trio
from rich.console import Console
from rich.text import Text

from ..client import Allow, Approval, Assistant, Delta, Deny, Line, Refused, Result, Session, Unknown, User
from ..figures import counted
from ..services import open_services
from . import asking
from .terminal import LINE_LIMIT, Keyboard, MarkdownStream, may_be_cut
from .words import clean, exact

SHOWN_INPUT = 500
SHOWN_RESULT = 600
"""Characters of a tool's input and of its result that are shown."""
HISTORY = {
    "waiting": "what is said can't be kept just now: it waits, and the session goes on",
    "back": "what is said is kept again",
    "ended": "from here on nothing is kept of this session",
}
"""What is shown of a `history` frame, by its state."""
HELP = "/model NAME changes the model, /quit ends; Ctrl-C interrupts a turn"
CUT = f"not taken: a terminal cuts a line at {LINE_LIMIT:,} bytes"


class Chat:
    """One conversation, from the first prompt to the end."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._markdown = MarkdownStream(self._console)
        self._keyboard = Keyboard()
        self._session: Session | None = None
        self._in_turn = False
        self._spent = 0.0
        self._said = ""
        """What came in pieces of the block that is being said."""
        self._answer = ""
        self._asking = trio.Lock()
        self._left = False
        self._failed = False
        self.ended_well: bool = False
        """Whether the run's end is a good one, whatever its status: the person left behind a turn that had failed."""

    async def run(self, session: Session) -> None:
        """Converse until the person or the session ends."""
        self._session = session
        self._note(f"session {session.id} · {HELP}")
        with trio.open_signal_receiver(signal.SIGINT) as signals:
            async with open_services() as nursery:
                nursery.start_soon(self._watch_signals, signals)
                nursery.start_soon(self._markdown.keep_drawing)
                await self._converse(session)

    async def _converse(self, session: Session) -> None:
        while session.ended is None:
            self._show_prompt()
            typed = await self._keyboard.line()
            if typed is None or typed.strip() == "/quit":
                self._left = session.ended is None
                await session.end()
                return
            if may_be_cut(typed):
                self._note(CUT)
            elif typed.strip() and session.ended is None:
                try:
                    await self._do(session, typed.strip())
                except ConnectionError:  # it has ended meanwhile, as its end tells
                    await session.end()

    async def _do(self, session: Session, typed: str) -> None:
        """Do what was typed: a command, or a turn."""
        name, _, value = typed.partition(" ")
        if name == "/model":
            await self._set_model(session, value.strip())
        elif name.startswith("/"):
            self._note(HELP)
        else:
            await self._turn(session, typed)

    async def _set_model(self, session: Session, model: str) -> None:
        try:
            await session.set_model(model or None)
        except Refused as error:
            self._note(f"refused: {error}")
        else:
            self._note(f"model: {model or 'the default'}")

    async def _turn(self, session: Session, prompt: str) -> None:
        self._in_turn = True
        try:
            async for line in session.ask(prompt):
                self._show(line)
                await trio.lowlevel.checkpoint()  # much may be there already, and Ctrl-C is to be heard
        except Refused as error:
            self._note(f"refused: {error}")
        finally:
            self._in_turn = False
            self._markdown.finish()

    async def _watch_signals(self, signals: AsyncIterator[int]) -> None:
        async for _ in signals:
            if self._in_turn and self._session:
                self._note("interrupting")
                with contextlib.suppress(ConnectionError):  # the session is over, as whoever iterates sees
                    await self._session.interrupt()
            else:
                self._note(f"\n{HELP}")
                self._show_prompt()

    # what is shown

    def _show_prompt(self) -> None:
        self._console.print("> ", end="", style="bold cyan")

    def _show(self, line: Line) -> None:
        match line:
            case Delta(kind="text"):
                if not line.said.get("parent_tool_use_id"):
                    self._said += line.text
                self._markdown.feed(line.text)
            case Unknown(type="stream_event") if "abandoned_blocks" in line.said:
                self._drop()
            case Assistant():
                self._show_answer(line)
            case User():
                for block in line.blocks:
                    self._show_result(block)
            case Result():
                self._show_end(line)

    def _drop(self) -> None:
        """Forget what was said of an answer that broke off: it comes anew."""
        if self._said:
            self._markdown.drop()
            self._note("(the answer broke off here)")
        self._said = ""

    def _show_answer(self, line: Assistant) -> None:
        """Show what came whole; a text that came in pieces before is shown already."""
        self._markdown.finish()
        if not line.said.get("parent_tool_use_id"):
            if line.text != self._said:
                self._markdown.feed(line.text)
                self._markdown.finish()
            self._said, self._answer = "", line.text
        for block in line.blocks:
            self._show_tool(block)

    def _show_tool(self, block: dict[str, Any]) -> None:
        if block.get("type") == "tool_use":
            self._markdown.finish()
            self._console.print(Text(f"● {_tool(str(block.get('name')), block.get('input'))}", style="yellow"))

    def _show_result(self, block: dict[str, Any]) -> None:
        if block.get("type") == "tool_result":
            style = "red" if block.get("is_error") else "dim"
            self._console.print(Text(_short(_content(block.get("content")), SHOWN_RESULT), style=style))

    def _show_end(self, result: Result) -> None:
        self._markdown.finish()
        if str(result.said.get("terminal_reason")).startswith("aborted"):
            self._note("interrupted")
        elif result.error and result.error != self._answer:  # the CLI says an error of the API as an answer, too
            self._console.print(Text(clean(result.error), style="red"))
        self._failed = result.error is not None
        self._said = self._answer = ""
        tokens = f"{result.input_tokens} tokens in, {result.output_tokens} out"
        self._note(f"${self._cost(result):.4f} · {tokens} · {result.seconds:.1f} s")

    def _cost(self, result: Result) -> float:
        """Return what a turn has cost. What the first of a session that goes on has cost so far is not its own."""
        before, self._spent = self._spent, result.usd
        models = result.said.get("model_usage_since_last_result")
        if not isinstance(models, dict):
            return result.usd - before
        return sum(counted(used.get("costUSD")) for used in models.values() if isinstance(used, dict))

    def _note(self, text: str) -> None:
        self._console.print(Text(clean(text), style="dim"))

    def event(self, said: dict[str, Any]) -> None:
        """Show what the server says of its own, where a person can use it."""
        match said.get("event"):
            case "stderr":
                self._note(str(said.get("line")))
            case "stalled":
                self._note(f"silent for {said.get('seconds')} s ({said.get('phase')})")
            case "history":
                state = str(said.get("state"))
                self._note(HISTORY.get(state, state))
            case "queued":
                self._note(f"waiting for a slot, place {said.get('position')}")
            case "ended":
                self.ended_well = self._left and self._failed and said.get("exit_status") == 1
                self._note(f"the session has ended: {'exit' if self.ended_well else said.get('reason')}")
            case "denied":
                self._note(f"denied: {said.get('error')}")

    # what is asked

    async def decide(self, approval: Approval) -> Allow | Deny:
        """Ask the person what a tool may do."""
        questions = asking.questions(approval.input) if approval.tool == asking.TOOL else []
        async with self._asking:
            self._markdown.finish()
            try:
                if questions:
                    return await self._hear_answers(approval, questions)
                self._console.print(Text(_question(approval), style="bold yellow"))
                return await self._hear_decision(approval)
            finally:
                if not self._in_turn:
                    self._show_prompt()

    async def _hear_answers(self, approval: Approval, questions: list[asking.Question]) -> Allow | Deny:
        """Have what the model asks answered; who gives no answer to one of them gives none."""
        answers = {}
        for question in questions:
            self._console.print(Text(clean(question.shown()), style="bold yellow"))
            if not (typed := await self._hear_answer(question)):
                return Deny("the user did not want to answer")
            answers[question.text] = typed
        return Allow({**approval.input, "answers": answers})

    async def _hear_answer(self, question: asking.Question) -> str:
        numbers = "numbers" if question.several else "a number"
        while True:
            self._console.print(f"your answer ({numbers} or your own words; nothing for none): ", end="", style="bold")
            typed = (await self._keyboard.answer() or "").strip()
            if not may_be_cut(typed):
                return question.answer(typed)
            self._note(CUT)

    async def _hear_decision(self, approval: Approval) -> Allow | Deny:
        while True:
            self._console.print("allow? y, n, e to edit: ", end="", style="bold")
            answer = (await self._keyboard.answer() or "n").strip().lower()
            if answer in ("y", "yes"):
                return Allow()
            if answer in ("n", "no"):
                return Deny()
            if answer in ("e", "edit") and (changed := await self._edit(approval)) is not None:
                return Allow(changed)

    async def _edit(self, approval: Approval) -> dict[str, Any] | None:
        """Have a tool's input changed: its command where it has one, else the whole of it as JSON."""
        by_command = isinstance(approval.input.get("command"), str)
        self._console.print("command: " if by_command else "input, as JSON: ", end="", style="bold")
        typed = await self._keyboard.answer()
        if not typed:
            return None
        if may_be_cut(typed):
            self._note(CUT)
            return None
        if by_command:
            return {**approval.input, "command": typed}
        try:
            value = json.loads(typed)
        except ValueError as error:
            self._note(f"not JSON: {error}")
            return None
        return value if isinstance(value, dict) else None


def _question(approval: Approval) -> str:
    """Return all that is asked for: what is not shown can't be allowed."""
    return exact(f"{approval.tool}\n{json.dumps(approval.input, ensure_ascii=False, indent=2)}")


def _tool(name: str, given: Any) -> str:
    """Return a tool and its input on one line."""
    command = given.get("command") if isinstance(given, dict) and isinstance(given.get("command"), str) else None
    return clean(f"{name}  {_short(command or json.dumps(given, ensure_ascii=False), SHOWN_INPUT)}")


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else []
    return "\n".join(str(block.get("text", "")) for block in blocks if isinstance(block, dict))


def _short(text: str, limit: int) -> str:
    text = clean(text)
    return text if len(text) <= limit else f"{text[:limit]} …"
