"""Decide whether a tool may run, as the real CLI does, and ask who started it where that is its way.

Rule: nothing here runs a tool. A refusal is a `Refused`, told to the model; an interrupt goes on as it is.
"""

from __future__ import annotations

import re

from ..model import Json
from .lines import permission_question, tools_of
from .wire import LIFE_SECONDS, Interrupted, new_uuid, write_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .session import Session
    from .turn import Turn

WRITERS = frozenset("touch mkdir cp mv rm rmdir chmod ln".split())
HARMLESS = re.compile(
    r"\s*(?:(?:(?:ls|cat)(?!.*(?:\s[/~]|\.\.))|git\s+status|echo|id|sleep|true|pwd|whoami|date|uname|seq|printf)(?!\S)|$)"
)
UNREADABLE = re.compile(r"[`>]|\$\(|(?<!&)&(?!&)|\b(?:for|while|until|if)\b")
BAD_VERDICT = (
    "The canUseTool callback returned an invalid permission result. Expected {behavior: 'allow', updatedInput?: "
    "object} or {behavior: 'deny', message: string}."
)


class Refused(Exception):
    """A tool is not to run; `meta` says why, for programs."""

    def __init__(self, message: str, kind: str = "", **decision: str) -> None:
        super().__init__(message)
        decision = {"decision": "reject", **decision}
        self.meta: Json = {"non_execution_kind": kind, "permission_decision": decision} if kind else {}


def judge(turn: Turn, use: Json) -> tuple[Json, Json]:
    """Return the input to run with, and the decision to report; or raise `Refused`."""
    session, name, command = turn.session, use["name"], str(use["input"].get("command", ""))
    if name not in ("Bash", "StructuredOutput") or name not in tools_of(session.options):
        known = " Bash is disabled for this session, in subagents as well as here." if name == "Bash" else ""
        raise Refused(f"No such tool available: {name}.{known}")
    accepted = {"decision": "accept", "source": "config"}
    if name == "StructuredOutput":
        return use["input"], accepted
    if reason := _reason(session, command):
        return use["input"], {**accepted, "reason_type": reason}
    turn.denials.append({"tool_name": name, "tool_use_id": use["id"], "tool_input": use["input"]})
    if not session.options.asks or session.mode == "dontAsk":
        raise _deny(session, use, command)
    tool_input = _heed(use, _ask(session, use))
    turn.denials.pop()
    return tool_input, {"decision": "accept", "source": "user_temporary"}


def _reason(session: Session, command: str) -> str:
    """Return why it may run unasked; nothing if it may not."""
    if any(_covers(rule, command) for rule in session.options.allowed):
        return "rule"
    if session.mode == "bypassPermissions":
        return "mode"
    edits = session.mode == "acceptEdits" and first_word(command) in WRITERS
    return "subcommandResults" if edits or is_harmless(command) else ""


def _covers(rule: str, command: str) -> bool:
    """Tell whether a rule such as ``Bash`` or ``Bash(git:*)`` covers the command."""
    start, text = rule.startswith("Bash("), rule[5:-1]
    return rule == "Bash" or (start and (command == text or (text[-2:] == ":*" and command.startswith(text[:-2]))))


def is_harmless(command: str) -> bool:
    """Tell whether the real CLI, in its default mode, would run it unasked: a few known cases, and no for the rest."""
    command = re.sub(r"[12]?>&[12]", "", command)
    return not UNREADABLE.search(command) and all(map(HARMLESS.match, re.split(r"&&|\|\||[;|\n]", command)))


def first_word(command: str) -> str:
    """Return what the command calls first."""
    return command.split()[0] if command.split() else ""


def _deny(session: Session, use: Json, command: str) -> Refused:
    """Say and return that nobody is there to be asked."""
    message = f"{first_word(command)} needs approval. Claude Code asks before a shell command changes files."
    refused, reason = Refused(message, "user-rejected", source="config"), {}
    if session.mode == "dontAsk":
        message = "Permission to use Bash has been denied because Claude Code is running in don't ask mode."
        refused = Refused(message, "permission-rule", source="config", reason_type="mode")
        reason = {"decision_reason_type": "mode"}
    fields = {"tool_name": use["name"], "tool_use_id": use["id"], **reason, "message": message}
    session.emit("system", "permission_denied", **fields)
    return refused


def _ask(session: Session, use: Json) -> Json | None:
    """Ask the program that started this CLI; return its answer, None if there is none to come."""
    request = session.asking = new_uuid()
    write_line({"type": "control_request", "request_id": request, "request": permission_question(use)})
    try:
        session.wire.wait(LIFE_SECONDS, until=lambda: request in session.replies or session.wire.eof)
    finally:
        session.asking = None
    return session.replies.pop(request, None)


def _heed(use: Json, reply: Json | None) -> Json:
    """Return the input that was allowed; or raise `Refused`."""
    failed = "Tool permission request failed: "
    match reply:
        case None:
            failed += "AbortError: Tool permission stream closed before response received"
        case {"subtype": "success", "response": {"behavior": "allow"} as verdict}:
            changed = verdict.get("updatedInput")
            return changed if isinstance(changed, dict) else dict(use["input"])
        case {"subtype": "success", "response": {"behavior": "deny", "message": str(message)} as verdict}:
            if verdict.get("interrupt"):
                raise Interrupted
            raise Refused(message, "permission-rule", source="user_reject")
        case {"subtype": "success"}:
            failed = BAD_VERDICT
        case _:
            failed += f"Error: {reply.get('error')}"
    raise Refused(failed, "permission-rule", source="config", reason_type="other")
