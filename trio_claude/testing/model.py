"""Decide what the model answers to a directive: the stand-in CLI and the Messages API stub both say just this.

Rule 1: nothing here reads, writes or waits, and nothing knows how an answer travels: it is a value. Rule 2: a field of
the wrong kind is an error that names it, never a guess. Rule 3: the standard library alone, as for the stand-in CLI.

A directive is a JSON object between ``@@`` marks in a user's text:

=======  ============================================  ================================================================
do       other fields (and what they are if left out)  answer
=======  ============================================  ================================================================
text     text ("Hello from stub."), deltas (3)         the text in that many deltas; also when there is no directive
slow     n (100), ms (50)                              n deltas, ms apart
many     n (5000)                                      n deltas as fast as they are read
bigtext  bytes (1000000)                               one delta of that size
think    text ("Thought answer.")                      a thinking block, then the text
bash     cmd, rounds (1), bg (false), timeout (ms)     as many uses of Bash, one an answer, then a final text
tool     name, input ({}), rounds (1)                  the same with any tool
tools    calls: [{"name", "input"}], rounds (1)        the same with several uses in one answer
daemons                                                a use of Bash that leaves daemons behind and tells of each
err      status, retry_after (s), noretry (false),     an HTTP error; after ``times`` of them (-1: no end) a text.
         times (-1)                                    400 401 403 404 413 429 500 503 529
miderr   type ("overloaded_error"), n (5)              n deltas, then an error event
stall    n (5)                                         n deltas, then silence
hang                                                   silence, not even a status line
reset    n (5)                                         n deltas, then a TCP reset
=======  ============================================  ================================================================

Asked without streaming, as the CLI does when a stream has broken, `miderr`, `stall` and `reset` answer by their field
text ("non-stream answer"). The final text of a tool is "All done after N tool results."
"""

from __future__ import annotations

import enum
import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing and collections.abc cost milliseconds, and the CLI is started hundreds of times
    from collections.abc import Callable, Sequence
    from typing import Any, TypeAlias, TypeVar

    T = TypeVar("T")

Json: TypeAlias = "dict[str, Any]"
MARK = "@@"
PIECE_CHARS = 40
"""How much of a tool's input comes in one delta."""
LONGEST_SECONDS = 3_600_000
DAEMONS = r"""tell() {
  if [ -r "/proc/$2/stat" ]; then
    read -r stat < "/proc/$2/stat"
    set -- "$1" "$2" $(echo "${stat##*)}") # zsh splits no bare variable
    echo "$1 $2 $5 $6"
  else echo "$1" "$2" $(ps -o pgid= -p "$2") 0; fi
}
own=$(command -v setsid)
exec 4>&1 </dev/null >/dev/null 2>&1
sleep 600 & background=$!
nohup sleep 600 & nohup=$!
sh -c 'trap "" TERM HUP INT; sleep 600; :' & deaf=$!
$own sleep 600 & setsid=$!
forked=$($own sh -c 'sleep 600 >/dev/null & echo $!')
sleep 0.3
for one in cli=$PPID background=$background nohup=$nohup deaf=$deaf setsid=$setsid forked=$forked; do
  tell "${one%%=*}" "${one##*=}" >&4
done"""
"""Starts processes that mean to stay, and tells name, pid, process group and session of each and of the CLI."""
ERROR_TYPES: dict[int, str] = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    413: "request_too_large", 429: "rate_limit_error", 500: "api_error", 503: "api_error", 529: "overloaded_error",
}  # fmt: skip


class DirectiveError(ValueError):
    """A directive that cannot be followed; the API would answer 400 with this text."""


class Directive:
    """One directive, and how far the conversation has followed it."""

    def __init__(self, fields: Json, source: str = "") -> None:
        self.fields: Json = fields
        self.source: str = source
        self.results: int = 0
        """Tool results sent since."""
        self.streamed: bool = True
        """Whether the answer is asked for as a stream; asked again without, one that breaks off comes whole."""

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        """Return a field that must be of `kind`, and must be there unless it has a default."""
        value = self.fields.get(name, default)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise DirectiveError(f"directive field {name!r} must be of type {kind.__name__}, not {value!r:.80}")
        return value

    def seconds(self, name: str, default: float, unit: float = 1.0) -> float:
        """Return a duration given in multiples of `unit` seconds."""
        value = self.fields.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < LONGEST_SECONDS:
            raise DirectiveError(f"directive field {name!r} must be a duration, not {value!r:.80}")
        return value * unit


def find_directives(text: str) -> list[Directive]:
    """Return the directives of a text, in order; what looks like one and is not JSON is plain text.

    The JSON decoder says where the object ends, so a string in it may hold the end mark.
    """
    decoder, found = json.JSONDecoder(), []
    start = text.find(MARK + "{")
    while start >= 0:
        end = start = start + len(MARK)
        try:
            fields, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            fields = None
        if fields is not None and text.startswith(MARK, end):
            found.append(Directive(fields, text[start:end]))
            end += len(MARK)
        start = text.find(MARK + "{", end)
    return found


class Ending(enum.StrEnum):
    """How an answer is to end, or has ended."""

    COMPLETE = "complete"
    SILENCE = "silence"
    RESET = "reset"
    CLIENT_GONE = "client_gone"


class Block:
    """One content block: its parts as streamed, and the whole."""

    def __init__(self, start: Json, deltas: list[Json], whole: Json) -> None:
        self.start: Json = start
        self.deltas: list[Json] = deltas
        self.whole: Json = whole


class Answer:
    """A message, whole or broken off, or an HTTP error; of a message with no blocks not even the head is sent."""

    def __init__(self, *blocks: Block, stop: str = "end_turn", tokens: int = 7, pause: float = 0.0) -> None:
        self.blocks: Sequence[Block] = blocks
        self.stop: str = stop
        self.tokens: int = tokens
        self.pause: float = pause
        """Seconds after each delta."""
        self.ending: Ending = Ending.COMPLETE
        self.error: Json | None = None
        """With status 200 it comes in the place of the message's end."""
        self.status: int = 200
        self.headers: dict[str, str] = {}

    @property
    def whole(self) -> bool:
        """Whether the message has an end."""
        return self.error is None and self.ending is Ending.COMPLETE


def error_body(kind: str, message: str) -> Json:
    """Return an error as the API words it."""
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_stub"}


def new_id(kind: str) -> str:
    """Return an id; random, not counted, for a conversation may outlive its model and meet another."""
    return f"{kind}_stub{os.urandom(8).hex()}"


def _text_block(*pieces: str) -> Block:
    deltas = [{"type": "text_delta", "text": piece} for piece in pieces]
    return Block({"type": "text", "text": ""}, deltas, {"type": "text", "text": "".join(pieces)})


def _thinking_block(thought: str, signature: str) -> Block:
    deltas = [{"type": "thinking_delta", "thinking": thought}, {"type": "signature_delta", "signature": signature}]
    whole = {"type": "thinking", "thinking": thought, "signature": signature}
    return Block({"type": "thinking", "thinking": "", "signature": ""}, deltas, whole)


def _tool_block(name: str, tool_input: Json) -> Block:
    start = {"type": "tool_use", "id": new_id("toolu"), "name": name}
    pieces = _pieces(json.dumps(tool_input), PIECE_CHARS)
    deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
    return Block({**start, "input": {}}, deltas, {**start, "input": tool_input})


def _pieces(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), max(1, size))]


def _tokens(count: int) -> Block:
    return _text_block(*(f"tok{number} " for number in range(count)))


def _text(directive: Directive) -> Answer:
    text = directive.get("text", str, "Hello from stub.")
    return Answer(_text_block(*_pieces(text, -(-len(text) // max(1, directive.get("deltas", int, 3))))))


def _slow(directive: Directive) -> Answer:
    count = directive.get("n", int, 100)
    return Answer(_tokens(count), tokens=count, pause=directive.seconds("ms", 50, unit=0.001))


def _many(directive: Directive) -> Answer:
    count = directive.get("n", int, 5000)
    return Answer(_tokens(count), tokens=count)


def _bigtext(directive: Directive) -> Answer:
    return Answer(_text_block("x" * directive.get("bytes", int, 1_000_000)))


def _think(directive: Directive) -> Answer:
    text = directive.get("text", str, "Thought answer.")
    return Answer(_thinking_block("Let me think. ", "c2ln"), _text_block(text))


def _bash(directive: Directive) -> Answer:
    tool_input: Json = {"command": directive.get("cmd", str), "description": "stub command"}
    if directive.get("bg", bool, False):
        tool_input["run_in_background"] = True
    if "timeout" in directive.fields:
        tool_input["timeout"] = directive.get("timeout", int)
    return _use(directive, ("Bash", tool_input))


def _daemons(directive: Directive) -> Answer:
    return _use(directive, ("Bash", {"command": DAEMONS, "description": "Leave daemons behind"}))


def _tool(directive: Directive) -> Answer:
    return _use(directive, _call(directive))


def _tools(directive: Directive) -> Answer:
    calls = directive.get("calls", list)
    if not calls or not all(isinstance(call, dict) for call in calls):
        raise DirectiveError("directive field 'calls' must hold objects, at least one")
    return _use(directive, *(_call(Directive(call)) for call in calls))


def _call(directive: Directive) -> tuple[str, Json]:
    return directive.get("name", str), directive.get("input", dict, {})


def _use(directive: Directive, *calls: tuple[str, Json]) -> Answer:
    if directive.results >= len(calls) * directive.get("rounds", int, 1):
        return Answer(_text_block("All ", "done ", f"after {directive.results} tool results."))
    uses = (_tool_block(name, tool_input) for name, tool_input in calls)
    return Answer(_text_block("I will ", "run it."), *uses, stop="tool_use", tokens=20)


def _err(directive: Directive) -> Answer:
    status = directive.get("status", int)
    if status not in ERROR_TYPES:
        raise DirectiveError(f"directive field 'status' cannot be {status}")
    failure = Answer()
    failure.status, failure.error = status, error_body(ERROR_TYPES[status], f"stub error {status}")
    if "retry_after" in directive.fields:
        failure.headers["retry-after"] = f"{directive.seconds('retry_after', 0):.10g}"
    if directive.get("noretry", bool, False):
        failure.headers["x-should-retry"] = "false"
    return failure


def _miderr(directive: Directive) -> Answer:
    error = error_body(directive.get("type", str, "overloaded_error"), "stub mid-stream error")
    return _broken_off(directive, Ending.COMPLETE, error)


def _stall(directive: Directive) -> Answer:
    return _broken_off(directive, Ending.SILENCE)


def _reset(directive: Directive) -> Answer:
    return _broken_off(directive, Ending.RESET)


def _broken_off(directive: Directive, ending: Ending, error: Json | None = None) -> Answer:
    if not directive.streamed:
        return Answer(_text_block(directive.get("text", str, "non-stream answer")), tokens=3)
    answer = Answer(_tokens(directive.get("n", int, 5)))
    answer.ending, answer.error = ending, error
    return answer


def _hang(_directive: Directive) -> Answer:
    answer = Answer()
    answer.ending = Ending.SILENCE
    return answer


_ANSWERS: dict[str, Callable[[Directive], Answer]] = {
    "text": _text, "slow": _slow, "many": _many, "bigtext": _bigtext, "think": _think, "bash": _bash, "tool": _tool,
    "tools": _tools, "daemons": _daemons, "err": _err, "miderr": _miderr, "stall": _stall, "hang": _hang,
    "reset": _reset,
}  # fmt: skip


class Model:
    """What answers. Its only memory is how often each `err` has come, for its `times`."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def answer(self, directive: Directive) -> Answer:
        """Return the answer to one request. Raises `DirectiveError`."""
        do = directive.get("do", str, "text")
        if do not in _ANSWERS:
            raise DirectiveError(f"unknown directive {do!r:.80}")
        answer = _ANSWERS[do](directive)
        if do == "err" and self._is_over(directive):
            return Answer(_text_block(f"ok after {directive.get('times', int, -1)} errors"))
        return answer

    def _is_over(self, directive: Directive) -> bool:
        times, seen = directive.get("times", int, -1), self._seen.get(directive.source, 0)
        self._seen[directive.source] = seen + 1
        return 0 <= times <= seen
