"""The CLI's dialect: chunks of bytes to whole lines, a prompt to bytes, options to arguments.

Rule 1: this module is pure; it opens no file, reads no environment and knows no clock. Rule 2: a line is never changed
here, but for bytes that are not UTF-8. Rule 3: the CLI's keys come in any order, so lines are parsed, never matched by
prefix; a substring only decides whether parsing is worth it.
"""

from __future__ import annotations

import io
import json
import operator
from collections.abc import Mapping
from typing import Any, TypeGuard

import attrs

from .figures import counted
from .messages import Options, compact, is_heavy

BASE_ARGUMENTS = (
    "-p",
    "--input-format",
    "stream-json",
    "--output-format",
    "stream-json",
    "--verbose",
)
NO_SETTINGS = ("--setting-sources=", "--strict-mcp-config")
"""Settings files in the working directory can run hooks, so they are read only where the operator says so."""
PROFILES: dict[str, tuple[str, ...]] = {
    "lean": ("--bare", "--tools=", "--disable-slash-commands", "--no-session-persistence"),
    "chat": ("--tools=", "--disable-slash-commands"),
    "approve": ("--permission-mode=default",),
    "edit": ("--permission-mode=acceptEdits",),
    "unattended": ("--permission-mode=bypassPermissions",),
}
LONG = 4096
"""Bytes of a chunk from which on `readlines`, which finds a newline four times as fast as `split`, is worth it."""
_BARE = operator.itemgetter(slice(-1))
PIECES = 1024
"""Pieces of a line that are joined while more of it comes: one of two bytes takes twenty times as many."""


class LineTooLong(Exception):
    """A line passed the limit; the text names it."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the CLI said a line over {limit} bytes")


def _cut(chunk: bytes) -> tuple[list[bytes], bytes]:
    """Return the lines that end in `chunk`, without their newline, and what is behind the last."""
    if len(chunk) < LONG:
        lines = chunk.split(b"\n")
        return lines, lines.pop()
    lines = io.BytesIO(chunk).readlines()
    tail = b"" if chunk.endswith(b"\n") else lines.pop()
    return [*map(_BARE, lines)], tail


class LineSplitter:
    """Cuts chunks of bytes into lines without their newline; a line over `limit` bytes raises `LineTooLong`.

    A line that comes in some chunks is joined once, when its newline arrives. Lines that are not UTF-8 get U+FFFD for
    each bad sequence and are counted in `encoding_errors`.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest: list[bytes] = []
        self._joined = 0
        """How many of these are joined pieces."""
        self._rest_size = 0
        self._rest_ascii = True
        self._intact = 0
        self.encoding_errors: int = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that `chunk` completes."""
        size = self._rest_size + len(chunk)
        lines, tail = _cut(chunk)
        is_ascii = chunk.isascii()
        all_ascii = is_ascii and self._rest_ascii
        self._rest_ascii = is_ascii if lines else all_ascii
        if lines and self._rest:
            self._rest.append(lines[0])
            lines[0] = b"".join(self._rest)
            self._rest.clear()
            self._joined = self._rest_size = 0
        if tail:
            self._rest.append(tail)
            self._rest_size += len(tail)
            if len(self._rest) - self._joined >= PIECES:
                self._rest[self._joined :] = [b"".join(self._rest[self._joined :])]
                self._joined += 1
        if size > self._limit:
            self._check(lines)
        self._intact = len(lines)
        return lines if all_ascii else self._valid(lines)

    def texts(self, lines: list[bytes], chunk: bytes) -> list[bytes | memoryview]:
        """Return lines, each with its newline, in few pieces.

        Where they are just what `feed` made of `chunk`, most of it is a part of that, and nothing is copied.
        """
        first, end = chunk.find(b"\n"), chunk.rfind(b"\n") + 1
        if len(lines) != self._intact or (end - first) * 2 < len(chunk):
            return [b"\n".join((*lines, b""))]
        return [lines[0], memoryview(chunk)[first:end]]

    def finish(self) -> list[bytes]:
        """Return what came after the last newline, as the last line."""
        tail, self._rest, self._intact = self._rest, [], 0
        return self._valid([b"".join(tail)]) if tail else []

    def _check(self, lines: list[bytes]) -> None:
        if self._rest_size > self._limit or any(len(line) > self._limit for line in lines):
            raise LineTooLong(self._limit)

    def _valid(self, lines: list[bytes]) -> list[bytes]:
        """Return `lines` as UTF-8; one check for all of them where they are."""
        try:
            b"\n".join(lines).decode()
        except UnicodeDecodeError:
            self._intact = 0
            return [self._repair(line) for line in lines]
        return lines

    def _repair(self, line: bytes) -> bytes:
        try:
            line.decode()
        except UnicodeDecodeError:
            self.encoding_errors += 1
            return line.decode(errors="replace").encode()
        return line


@attrs.frozen
class Spent:
    """What a process has used so far, as its last result says: tokens in and out, cached ones too, and dollars."""

    tokens: int = 0
    dollars: float = 0.0


@attrs.frozen
class Sign:
    """What a CLI line says about its run, where it says something that the run must know."""

    result: bool = False
    spent: Spent | None = None
    turn_tokens: int = 0
    """Tokens of the turn alone, in and out."""
    turn_dollars: float | None = None
    """Dollars of the turn alone, None where the line does not tell."""
    session: str = ""
    unauthorized: bool = False
    denied_tool: str | None = None
    error: str | None = None


SESSION_LIMIT = 128
"""Characters of a session's id that is taken for one: it is kept beyond its run."""
_MARKS = (b'"result"', b'"api_retry"', b'"permission_denied"')
DELTA = b'{"type":"stream_event"'
"""How most lines of a run that speaks token by token begin; whatever follows, such a line is nothing else."""
_WORDS = (DELTA + b',"event":{"type":"content_block_delta"', b'{"type":"assistant"')


def has_words(lines: list[bytes]) -> bool:
    """Return whether the model has said something in `lines`: a token, or a message."""
    return any(line.startswith(_WORDS) for line in lines)


def are_deltas(lines: list[bytes]) -> bool:
    """Return whether all of `lines` are tokens: what sorts between two that begin alike begins so, too."""
    if len(lines) == 1:
        return lines[0].startswith(DELTA)
    return min(lines, default=b"").startswith(DELTA) and max(lines).startswith(DELTA)


def signs(lines: list[bytes]) -> list[Sign]:
    """Return the signs in `lines`."""
    if are_deltas(lines):
        return []
    suspects = [line for line in lines if not line.startswith(DELTA)]
    whole = b"\n".join(suspects)
    if not any(mark in whole for mark in _MARKS):
        return []
    found = (_sign(line) for line in suspects if any(mark in line for mark in _MARKS))
    return [sign for sign in found if sign is not None]


def parse_line(line: bytes) -> dict[str, Any]:
    """Return what a line says, nothing where it is no object or would take long to parse."""
    if is_heavy(line):
        return {}
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _sign(line: bytes) -> Sign | None:
    said = parse_line(line)
    if said.get("type") == "result":
        session = said.get("session_id")
        return Sign(
            result=True,
            spent=_spent(said),
            turn_tokens=sum(turn_tokens(said)),
            turn_dollars=_turn_dollars(said),
            session=session if is_session(session) else "",
            error=_result_error(said),
        )
    if said.get("type") != "system":
        return None
    if said.get("subtype") == "api_retry" and said.get("error_status") in (401, 403):
        return Sign(unauthorized=True)
    if said.get("subtype") == "permission_denied":
        return Sign(denied_tool=str(said.get("tool_name"))[:64])
    return None


def is_session(value: object) -> TypeGuard[str]:
    """Return whether a line gives this as a session's id, and not something as long as it likes."""
    return isinstance(value, str) and len(value) <= SESSION_LIMIT


TOKENS = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
"""What tokens there are, as the API calls them."""
_BY_MODEL = ("inputTokens", "outputTokens", "cacheCreationInputTokens", "cacheReadInputTokens")
"""The same as the CLI calls them where it tells them model by model."""


def _spent(said: dict[str, Any]) -> Spent:
    """Return what a result says was used, by all models together."""
    return Spent(sum(_of_models(_each(said.get("modelUsage")))), counted(said.get("total_cost_usd")))


def turn_tokens(said: dict[str, Any]) -> list[int]:
    """Return what a result says was used since the one before, in the order of `TOKENS`.

    By model, for `usage` leaves out what agents have used. An older CLI tells that alone.
    """
    models = said.get("model_usage_since_last_result")
    return _of_models(_each(models)) if isinstance(models, dict) else _of_usage(said.get("usage"))


def _turn_dollars(said: dict[str, Any]) -> float | None:
    """Return the dollars of a result's turn, None where it does not tell them of each model."""
    models = said.get("model_usage_since_last_result")
    each = _each(models)
    told = isinstance(models, dict) and all("costUSD" in usage for usage in each)
    return sum(counted(usage["costUSD"]) for usage in each) if told else None


def _each(models: object) -> list[dict[str, Any]]:
    """Return what each model has used."""
    return [usage for usage in models.values() if isinstance(usage, dict)] if isinstance(models, dict) else []


def _of_models(each: list[dict[str, Any]]) -> list[int]:
    return [int(sum(counted(usage.get(name)) for usage in each)) for name in _BY_MODEL]


def _of_usage(usage: object) -> list[int]:
    return [int(counted(usage.get(name))) if isinstance(usage, dict) else 0 for name in TOKENS]


def tokens_of(usage: object) -> int:
    """Return the tokens of one message or turn, in and out, as the API counts them."""
    return sum(_of_usage(usage))


def _result_error(said: dict[str, Any]) -> str | None:
    """Return what a result gives as its error; `is_error` tells, never `subtype`."""
    if not said.get("is_error"):
        return None
    texts = said.get("errors")
    text = said.get("result") or (texts[0] if isinstance(texts, list) and texts else said.get("subtype"))
    return str(text)[:500]


def user_line(prompt: str) -> bytes:
    """Return a prompt as the line that the CLI reads on stdin.

    `client_composed` keeps the CLI from reading files that the prompt mentions and from running slash commands.
    """
    said = {"type": "user", "message": {"role": "user", "content": prompt}, "client_composed": True}
    return compact(said).encode() + b"\n"


def control_line(request: str, subtype: str, **fields: object) -> bytes:
    """Return a control request as the line that the CLI reads on stdin; `request` names its answer."""
    said = {"type": "control_request", "request_id": request, "request": {"subtype": subtype, **fields}}
    return compact(said).encode() + b"\n"


def is_reply(line: bytes, request: str) -> bool:
    """Return whether `line` is the answer to the control request `request`, and says that it was carried out."""
    if b"control_response" not in line:
        return False
    try:
        said = json.loads(line)
        answer = said["response"]
        return bool(said["type"] == "control_response" and answer["request_id"] == request) and (
            answer["subtype"] == "success"
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def without_reply(lines: list[bytes], request: str) -> tuple[list[bytes], str]:
    """Return lines without the reply to a request of our own, and the request where that is still to come."""
    for place, line in enumerate(lines):
        if is_reply(line, request):
            return [*lines[:place], *lines[place + 1 :]], ""
    return lines, request


def arguments(
    options: Options, profile: str, *, cli_settings: bool, files: dict[str, str], session: str | None = None
) -> list[str]:
    """Return the CLI's arguments, each option as `--flag=value` so that no value can become a flag.

    `files` holds the paths of what travels in files, by option name. `session` is the id that a
    session of many turns has or gets; its client can be asked for approvals.
    """
    words = [*BASE_ARGUMENTS, *(() if cli_settings else NO_SETTINGS), *PROFILES[profile]]
    flags = {
        "model": options.model,
        "system-prompt-file": files.get("system_prompt"),
        "append-system-prompt-file": files.get("append_system_prompt"),
        "max-turns": options.max_turns,
        "max-budget-usd": options.max_budget_usd,
        "effort": options.effort,
        "resume": options.resume,
        "tools": _joined(options.tools),
        "allowed-tools": _joined(options.allowed_tools),
        "disallowed-tools": _joined(options.disallowed_tools),
        "permission-mode": options.permission_mode,
        "mcp-config": files.get("mcp_servers"),
        "fallback-model": options.fallback_model,
        "max-thinking-tokens": options.max_thinking_tokens,
        "json-schema": None if options.json_schema is None else compact(options.json_schema),
    }
    if session is not None:
        flags["permission-prompt-tool"] = "stdio"
        flags["session-id"] = session if session != options.resume else None
    words += [f"--{name}={value}" for name, value in flags.items() if value is not None]
    words += ["--fork-session"] if options.fork else []
    return [*words, "--include-partial-messages"] if options.partial else words


def _joined(names: list[str] | None) -> str | None:
    return None if names is None else ",".join(names)


EXTRA_BODY = "CLAUDE_CODE_EXTRA_BODY"
"""The variable that holds what the CLI's requests have beside its own, as JSON."""


def environment(options: Options, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that carry what the CLI has no flag for, beside what the operator has in the same ones."""
    variables = {}
    if options.temperature is not None:
        others = parse_line(inherited.get(EXTRA_BODY, "").encode(errors="surrogateescape"))
        variables[EXTRA_BODY] = compact({**others, "temperature": options.temperature})
    if options.max_output_tokens is not None:
        variables["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] = str(options.max_output_tokens)
    return variables
