"""Read the flags and the environment, and refuse what the real CLI refuses.

Rule: nothing here is performed; a wrong flag is a `FatalError` with the real one's words, before anything is said.
"""

from __future__ import annotations

import os
import re

from .wire import FatalError, new_uuid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

UNKNOWN_SESSION = "00000000-0000-0000-0000-000000000000"
NO_VALUE = frozenset("""
--print --verbose --strict-mcp-config --include-partial-messages --fork-session --continue --bare --brief --version
--replay-user-messages --dangerously-skip-permissions --allow-dangerously-skip-permissions --no-session-persistence
--disable-slash-commands --restricted --safe-mode --include-hook-events --forward-subagent-text --session-mirror
--exclude-dynamic-system-prompt-sections --ide --chrome --no-chrome --help""".split())  # fmt: skip
ONE_VALUE = frozenset("""
--input-format --output-format --setting-sources --model --fallback-model --permission-prompt-tool --name --settings
--permission-prompts --permission-mode --session-id --max-turns --max-budget-usd --system-prompt --system-prompt-file
--append-system-prompt --append-system-prompt-file --effort --json-schema --agent --agents --thinking --plugin-dir
--max-thinking-tokens --task-budget --resume-session-at --debug-file""".split())  # fmt: skip
OPTIONAL_VALUE = frozenset({"--resume", "--debug", "--prompt-suggestions"})
MANY_VALUES = frozenset("--tools --allowed-tools --disallowed-tools --mcp-config --add-dir --betas --file".split())
SHORT = {
    "-p": "--print", "-c": "--continue", "-r": "--resume", "-d": "--debug", "-n": "--name", "-v": "--version",
    "--allowedTools": "--allowed-tools", "--disallowedTools": "--disallowed-tools",
}  # fmt: skip
MODES = ("acceptEdits", "auto", "bypassPermissions", "manual", "dontAsk", "plan")
MODELS = {
    "default": "claude-opus-5-5", "opus": "claude-opus-5-5", "sonnet": "claude-sonnet-5-5",
    "haiku": "claude-haiku-5-5", "fable": "claude-fable-5-2",
}  # fmt: skip
UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)


def parse_flags(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Return the values of each flag given; what stands behind ``--`` is a prompt, and not ours."""
    flags: dict[str, list[str]] = {}
    rest = list(arguments)
    while rest and (argument := rest.pop(0)) != "--":
        if argument.startswith("-") and argument != "-":
            name, joined, value = argument.partition("=")
            name = SHORT.get(name, name)
            known = ONE_VALUE | OPTIONAL_VALUE | MANY_VALUES | (set() if joined else NO_VALUE)
            if name not in known:
                raise FatalError(f"error: unknown option '{argument}'")
            flags.setdefault(name, []).extend([value] if joined else _take_values(name, rest))
    return flags


def _take_values(name: str, rest: list[str]) -> list[str]:
    if name in ONE_VALUE and not rest:
        raise FatalError(f"error: option '{name} <value>' argument missing")
    most = 0 if name in NO_VALUE else len(rest) if name in MANY_VALUES else 1
    values: list[str] = []
    while rest and len(values) < most and (name in ONE_VALUE or not rest[0].startswith("-")):
        values.append(rest.pop(0))
    return values


class Options:
    """What the flags and the environment ask for."""

    def __init__(self, flags: dict[str, list[str]]) -> None:
        self._flags = flags
        self._check_streams()
        self.partial: bool = "--include-partial-messages" in flags
        self.replay: bool = "--replay-user-messages" in flags
        self.asks: bool = self._one("--permission-prompt-tool") == "stdio"
        self.mode: str = self._permission_mode()
        self.model: str = resolve_model(self._one("--model"))
        self.max_turns: int = int(self._number("--max-turns", "<turns>") or 0)
        self.max_budget: float | None = self._number("--max-budget-usd", "<amount>")
        self.tools: list[str] | None = _names(flags["--tools"]) if "--tools" in flags else None
        self.allowed: list[str] = _names(flags.get("--allowed-tools", []))
        self.structured: bool = "--json-schema" in flags
        self.retries: int = int(os.environ.get("CLAUDE_CODE_MAX_RETRIES") or 10)
        self.session: str = self._session()
        self.resume_error: str | None = _resume_error(self._one("--resume"))

    def _one(self, name: str) -> str | None:
        values = self._flags.get(name)
        return values[-1] if values else None

    def _check_streams(self) -> None:
        formats = self._one("--input-format"), self._one("--output-format")
        if "--print" not in self._flags or formats != ("stream-json", "stream-json"):
            raise FatalError("Error: fake-claude speaks stream-json only, both ways, with --print")
        if "--verbose" not in self._flags:
            raise FatalError("Error: When using --print, --output-format=stream-json requires --verbose")

    def _permission_mode(self) -> str:
        mode = self._one("--permission-mode") or "default"
        if mode not in (*MODES, "default"):
            wrong = f"error: option '--permission-mode <mode>' argument '{mode}' is invalid."
            raise FatalError(f"{wrong} Allowed choices are {', '.join(MODES)}.")
        mode = "bypassPermissions" if "--dangerously-skip-permissions" in self._flags else mode
        if mode == "bypassPermissions" and os.geteuid() == 0 and os.environ.get("IS_SANDBOX") != "1":
            reason = "cannot be used with root/sudo privileges for security reasons"
            raise FatalError(f"--dangerously-skip-permissions {reason}")
        return mode

    def _number(self, name: str, metavar: str) -> float | None:
        value = self._one(name)
        try:
            return None if value is None else float(value)
        except ValueError:
            error = f"error: option '{name} {metavar}' argument '{value}' is invalid. must be a number"
            raise FatalError(error) from None

    def _session(self) -> str:
        given, resumed = self._one("--session-id"), self._one("--resume")
        if given is not None and not UUID.fullmatch(given):
            raise FatalError("Error: Invalid session ID. Must be a valid UUID.")
        return given or (resumed if "--fork-session" not in self._flags else None) or new_uuid()


def _resume_error(resumed: str | None) -> str | None:
    if resumed == UNKNOWN_SESSION:
        return f"No conversation found with session ID: {resumed}"
    if resumed is not None and not UUID.fullmatch(resumed):
        return "Error: --resume requires a valid session ID or session title when used with --print."
    return None


def _names(values: list[str]) -> list[str]:
    return [name for value in values for name in re.findall(r"\w+(?:\([^)]*\))?", value)]


def resolve_model(name: object) -> str:
    """Return the model that a name stands for; any name will do."""
    return MODELS.get(str(name or "default"), str(name))
