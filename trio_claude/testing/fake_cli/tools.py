"""Use a tool: run what may run, and tell the model what came of it.

Rule: a shell that was started is finished, left to the session as a background task, or killed with its tree; never
forgotten.
"""

from __future__ import annotations

import signal

from ..model import DirectiveError, Json
from .permission import WRITERS, Refused, first_word, judge
from .shell import TERM_GRACE_SECONDS, Shell
from .wire import FLUSH_SECONDS, Ended, Interrupted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .turn import Turn

REJECTED = (
    "The user doesn't want to proceed with this tool use. The tool use was rejected (eg. if it was a file edit, the "
    "new_string was NOT written to the file). STOP what you are doing and wait for the user to tell you how to proceed."
)
STOPPED = " Correction to the text above: this call was stopped while running, not refused before it ran."
STRUCTURED = "Structured output provided successfully"
TIMEOUT_MS = 120_000


class ToolsAborted(Exception):
    """The turn was interrupted in a tool."""


def use_tool(turn: Turn, use: Json) -> None:
    """Use it, if it may run. Raises `ToolsAborted`."""
    result = _Result(turn, use)
    try:
        tool_input, result.meta["permission_decision"] = judge(turn, use)
        if use["name"] == "StructuredOutput":
            turn.structured = use["input"]
            result.tell(STRUCTURED, STRUCTURED)
        else:
            _bash(turn, result, tool_input)
    except Refused as refused:
        result.meta = refused.meta
        told = str(refused) if refused.meta else f"<tool_use_error>Error: {refused}</tool_use_error>"
        result.tell(told, f"Error: {refused}", is_error=True)
    except Interrupted:
        _reject(turn, result)
        raise ToolsAborted from None


class _Result:
    """What the model and programs are told of one use."""

    def __init__(self, turn: Turn, use: Json) -> None:
        self.turn = turn
        self.use = use
        self.meta: Json = {}

    def tell(self, content: str, result: object, **is_error: bool) -> None:
        """Say it, and end the use."""
        block = {"type": "tool_result", "content": content, **is_error, "tool_use_id": self.use["id"]}
        meta = {"tool_result_meta": [{"id": self.use["id"], **self.meta}]} if self.meta else {}
        self.turn.speech.user(block, tool_use_result=result, **meta)

    def tell_end(self, shell: Shell) -> None:
        """Say how a command ended."""
        status, output = shell.finish()
        text = f"Exit code {status}\n{output}".rstrip("\n")
        if status:
            self.tell(text, f"Error: {text}", is_error=True)
        else:
            self.tell_output(shell, output or "(Bash completed with no output)", output)

    def tell_output(self, shell: Shell, shown: str, output: str, **extra: object) -> None:
        """Say what a command has written."""
        silent = first_word(shell.command) in WRITERS and not output
        result = {"stdout": output, "stderr": "", "interrupted": False, "isImage": False, "noOutputExpected": silent}
        self.tell(shown, {**result, **extra}, is_error=False)


def _reject(turn: Turn, result: _Result) -> None:
    """End what was interrupted; the process tree of the tool goes with it."""
    session, told = turn.session, REJECTED
    if session.tool:
        told += "" if session.wire.signal else STOPPED
        session.tool.kill(TERM_GRACE_SECONDS if session.wire.signal else 0.0)
        session.tool.finish()
        session.tool = None
    result.meta = {"non_execution_kind": "user-rejected"}
    result.tell(told, "User rejected tool use", is_error=True)
    turn.speech.user({"type": "text", "text": "[Request interrupted by user for tool use]"})


def _bash(turn: Turn, result: _Result, tool_input: Json) -> None:
    session, timeout = turn.session, tool_input.get("timeout", TIMEOUT_MS)
    if not isinstance(timeout, int) or timeout < 0:
        raise DirectiveError(f"a tool's timeout must be a duration, not {timeout!r:.80}")
    at_once = bool(tool_input.get("run_in_background"))
    try:
        shell = session.tool = Shell(result.use, tool_input, session.id)
    except (OSError, ValueError) as error:  # as of a command that is too long, or holds a NUL
        raise Refused(str(error)) from None
    try:
        session.wire.wait(0 if at_once else timeout / 1000, until=lambda: shell.ended)
    except Ended:  # a signal: the tool's tree goes along, and is reported, as the real one does
        signal.setitimer(signal.ITIMER_REAL, FLUSH_SECONDS + TERM_GRACE_SECONDS)
        session.tool = None
        shell.kill(TERM_GRACE_SECONDS)
        result.tell_end(shell)
        raise
    session.tool = None
    if shell.ended and not at_once:
        result.tell_end(shell)
        return
    session.add_task(shell)  # it goes on in the background
    extra = {} if at_once else {"timedOutAfterMs": timeout}
    shown = f"Command running in background with ID: {shell.task}. Output is being written to: {shell.path}."
    result.tell_output(shell, shown, "" if at_once else shell.output(), backgroundTaskId=shell.task, **extra)
