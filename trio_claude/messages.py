"""The wire contract: parse what a client says, render what it is told.

Rule 1: what comes in is accepted whole or refused with a `BadMessage` that names the field and the limit; nothing is
coerced, trimmed or ignored. Rule 2: this module does no I/O, knows no clock and no socket.
"""

from __future__ import annotations

import collections
import functools
import json
import math
import re
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import attrs
import cattrs
from cattrs.errors import AttributeValidationNote, ClassValidationError, ForbiddenExtraKeysError

from .checks import MCP_KINDS, MCP_SERVER, Check, between, choice, is_mcp_server, shape, text
from .errors import BadMessage, CloseCode, Reason
from .events import Outcome

T = TypeVar("T")

INFO = '{"info":"send {prompt,meta}"}'
ONE_PROMPT = '{"error":"one prompt per connection"}'
PROMPT_LIMIT = 8192
"""A prompt in bytes of UTF-8; the original contract's limit."""
META_LIMIT = 64
BUDGET_LEAST = 0.0001
BUDGET_MOST = 10_000
"""Dollars that a run may be bounded to at the least and at the most."""
THINKING_MOST = 1_000_000
"""Tokens that a model may think for at the most."""
SYSTEM_PROMPT_LIMIT = 32768
"""A system prompt in bytes of UTF-8: half of the message limit, so that it can be escaped."""
SCHEMA_LIMIT = 32768
"""A JSON schema in bytes of compact JSON; it travels in argv, where Linux takes 131,071 bytes an argument."""
STRUCTURE_LIMIT = 256 * 1024
"""Bytes of a line or a message that are not in its texts: 30 ms to parse and build anew. 32 MiB of text take 0.3 s."""
BEGINNING = 1024
"""Characters of a message that can't be read in which its id is looked for."""
REASON_LIMIT = 123
"""A close reason in bytes (RFC 6455, section 5.5: 125 less the code)."""
NAMES_LIMIT = 200
"""Names of tools in one list."""
MODES = ("default", "acceptEdits", "plan", "auto", "dontAsk", "bypassPermissions")
EFFORTS = ("low", "medium", "high", "xhigh", "max")

META_PATTERN = r"[A-Z0-9_\-]+"
MODEL_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._:/@\[\]-]{0,199}"

_META = re.compile(META_PATTERN)
_TOOL = re.compile(r"[A-Za-z_*][^\x00-\x1f\x7f\ud800-\udfff]{0,299}")
_FOLDER = re.compile(r"[A-Za-z0-9_\-]+")
_SESSION = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_MODEL = re.compile(MODEL_PATTERN)
_BEGUN = re.compile(
    r'\s*\{\s*"type"\s*:\s*"control_re(?:quest|sponse)".{0,99}?"request_id"\s*:\s*"([^"\\]*)"', re.DOTALL
)


def _names(_instance: object, field: attrs.Attribute[Any], value: list[str] | None) -> None:
    """Accept names of tools, or rules for them."""
    if value is not None and len(value) > NAMES_LIMIT:
        raise BadMessage(f"{field.name} must hold at most {NAMES_LIMIT} names, not {len(value)}")
    for name in value or ():
        if not _TOOL.fullmatch(name):
            raise BadMessage(f"{field.name} must hold names that match ^{_TOOL.pattern}$")


def _small(_instance: object, field: attrs.Attribute[Any], value: dict[str, Any] | None) -> None:
    if value is None:
        return
    try:
        size = len(compact(value, allow_nan=False).encode())
    except (TypeError, ValueError, RecursionError):
        raise BadMessage(f"{field.name} must be JSON of UTF-8 text, not nested too deep") from None
    if size > SCHEMA_LIMIT:
        raise BadMessage(f"{field.name} must be at most {SCHEMA_LIMIT} bytes of JSON, not {size}")


def _servers(instance: object, field: attrs.Attribute[Any], value: dict[str, Any] | None) -> None:
    """Accept MCP servers by their names."""
    _small(instance, field, value)
    for name, server in (value or {}).items():
        if not is_mcp_server(server):
            kinds = ", ".join(MCP_KINDS)
            raise BadMessage(f"{field.name}: {_shown(name)} must have a command, or a type ({kinds}) and a url")


NAMES = Check(
    _names,
    {"type": "array", "maxItems": NAMES_LIMIT, "items": {"type": "string", "pattern": f"^{_TOOL.pattern}$"}},
)
SMALL_OBJECT = Check(_small, {"type": "object", "description": f"at most {SCHEMA_LIMIT} bytes of compact JSON"})

SERVERS = Check(_servers, {**SMALL_OBJECT.schema, "additionalProperties": MCP_SERVER})


@attrs.frozen(kw_only=True)
class Options:
    """What a client may ask for beside its prompt; None is the CLI's own default.

    `timeout` is in seconds, `max_budget_usd` in US dollars, `max_output_tokens` in tokens.
    """

    model: str | None = attrs.field(default=None, validator=shape(_MODEL, 200))
    system_prompt: str | None = attrs.field(default=None, repr=False, validator=text(SYSTEM_PROMPT_LIMIT, least=0))
    append_system_prompt: str | None = attrs.field(default=None, repr=False, validator=text(SYSTEM_PROMPT_LIMIT))
    max_turns: int | None = attrs.field(default=None, validator=between(1, 1000))
    max_budget_usd: float | None = attrs.field(default=None, validator=between(BUDGET_LEAST, BUDGET_MOST))
    effort: str | None = attrs.field(default=None, validator=choice(EFFORTS))
    partial: bool | None = None
    resume: str | None = attrs.field(default=None, validator=shape(_SESSION, 36))
    temperature: float | None = attrs.field(default=None, validator=between(0, 1))
    max_output_tokens: int | None = attrs.field(default=None, validator=between(1, 1_000_000))
    json_schema: dict[str, Any] | None = attrs.field(default=None, repr=False, validator=SMALL_OBJECT)
    timeout: float | None = attrs.field(default=None, validator=between(0.01, 86400))
    workspace: str | None = attrs.field(default=None, validator=shape(_FOLDER, META_LIMIT))
    fork: bool | None = None
    tools: list[str] | None = attrs.field(default=None, validator=NAMES)
    allowed_tools: list[str] | None = attrs.field(default=None, validator=NAMES)
    disallowed_tools: list[str] | None = attrs.field(default=None, validator=NAMES)
    permission_mode: str | None = attrs.field(default=None, validator=choice(MODES))
    mcp_servers: dict[str, Any] | None = attrs.field(default=None, repr=False, validator=SERVERS)
    fallback_model: str | None = attrs.field(default=None, validator=shape(_MODEL, 200))
    max_thinking_tokens: int | None = attrs.field(default=None, validator=between(0, THINKING_MOST))


@attrs.frozen(kw_only=True)
class Prompt:
    """A client's one message on `/ws/claude`: what to ask, under which name, with which options."""

    prompt: str = attrs.field(repr=False, validator=text(PROMPT_LIMIT))
    meta: str = attrs.field(validator=shape(_META, META_LIMIT))
    options: Options = Options()


def compact(value: object, *, allow_nan: bool = True) -> str:
    """Return `value` as JSON without spaces, non-ASCII characters as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=allow_nan)


def parse_object(raw: str | bytes) -> dict[str, Any]:
    """Return the JSON object in a text message. Raises `BadMessage` for everything else."""
    if isinstance(raw, bytes):
        raise BadMessage("message must be text, not binary")
    if len(raw) > STRUCTURE_LIMIT and is_heavy(raw.encode(errors="surrogatepass")):
        raise BadMessage(f"message must have at most {STRUCTURE_LIMIT} bytes outside of its texts")
    try:
        value = json.loads(raw, object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError):
            raise BadMessage(f"message is not JSON: {error.msg} at character {error.pos}") from None
        raise BadMessage(f"message is not JSON that can be read: {type(error).__name__}") from None
    if not isinstance(value, dict):
        raise BadMessage("message must be a JSON object")
    return value


def begun(raw: str | bytes) -> dict[str, object]:
    """Return the id with which a message begins that can't be read: its program waits for what becomes of it."""
    found = _BEGUN.match(raw[:BEGINNING]) if isinstance(raw, str) else None
    return {"request_id": found[1]} if found else {}


def is_heavy(raw: bytes) -> bool:
    """Return whether JSON would take long to parse: text in it costs little, structure much."""
    if len(raw) <= STRUCTURE_LIMIT:
        return False
    plain = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    return plain.count(b'"') > STRUCTURE_LIMIT or sum(map(len, plain.split(b'"')[::2])) > STRUCTURE_LIMIT


def parse_prompt(raw: str | bytes, allowed: tuple[str, ...], max_timeout: float) -> Prompt:
    """Return a client's prompt with the options that `allowed` names. Raises `BadMessage`."""
    message = parse_object(raw)
    core: dict[str, Any] = {}
    for key in ("prompt", "meta"):
        if key not in message:
            raise BadMessage(f"{key} is missing")
        core[key] = message.pop(key)
    return make_prompt(core["prompt"], core["meta"], message, allowed, max_timeout)


def make_prompt(
    prompt: str, meta: str, options: dict[str, Any], allowed: tuple[str, ...], max_timeout: float
) -> Prompt:
    """Return a prompt out of values that may be of any type. Raises `BadMessage`."""
    core = _structure({"prompt": prompt, "meta": meta}, Prompt)
    return attrs.evolve(core, options=parse_options(options, allowed, max_timeout)) if options else core


def parse_options(message: dict[str, Any], allowed: tuple[str, ...], max_timeout: float) -> Options:
    """Return options out of `message`, which holds nothing else. Raises `BadMessage`."""
    known = {field.name for field in attrs.fields(Options)}
    for key, value in message.items():
        if key not in known:
            raise BadMessage(f"unknown key {_shown(key)}")
        if key not in allowed:
            raise BadMessage(f"{key} is not allowed here")
        if value is None:
            raise BadMessage(f"{key} must not be null; leave it out")
    options = _structure(message, Options)
    if options.timeout is not None and options.timeout > max_timeout:
        raise BadMessage(f"timeout must be at most {max_timeout:g}, the limit here")
    return options


def _structure(value: dict[str, Any], kind: type[T]) -> T:
    try:
        return _converter().structure(value, kind)
    except ClassValidationError as group:
        raise _first(group) from None


@functools.cache
def _converter() -> cattrs.Converter:
    """Return a converter that refuses unknown keys and never turns one type into another."""
    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_structure_hook(str, _strict(str, "text"))
    converter.register_structure_hook(int, _strict(int, "a whole number"))
    converter.register_structure_hook(float, _strict((int, float), "a number"))
    converter.register_structure_hook(bool, _strict(bool, "true or false"))
    converter.register_structure_hook_func(lambda kind: kind == dict[str, Any], _strict(dict, "an object"))
    converter.register_structure_hook_func(lambda kind: kind == list[str], _texts)
    return converter


def _strict(kinds: type | tuple[type, ...], name: str) -> Callable[[Any, Any], Any]:
    def check(value: Any, _kind: Any) -> Any:
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise TypeError(f"must be {name}, not {_json_type(value)}")
        return value

    return check


def _texts(value: Any, _kind: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError("must be an array of texts")
    return value


def _first(group: ClassValidationError) -> BadMessage:
    """Return the first error of a validation as one that names its field."""
    error = group.exceptions[0]
    if isinstance(error, BadMessage):
        return error
    if not isinstance(error, TypeError | ForbiddenExtraKeysError):
        raise error
    names = [note.name for note in getattr(error, "__notes__", ()) if isinstance(note, AttributeValidationNote)]
    return BadMessage(f"{names[0] if names else 'message'} {error}")


def _json_type(value: object) -> str:
    """Return the JSON name of a value's type, the Python one where JSON has none."""
    names = {
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "an array",
        dict: "an object",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)


def _shown(key: str) -> str:
    """Return a client's key as it may stand in an error: short and printable."""
    return ascii(key[:40])


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = collections.Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise BadMessage(f"duplicate key {_shown(twice)}")
    return value


def _finite(text: str) -> float:
    """Return a number; one that is too large for a float would be written as no JSON at all."""
    value = float(text)
    if math.isinf(value):
        raise BadMessage(f"{text[:40]} is too large a number")
    return value


def _no_constant(name: str) -> NoReturn:
    raise BadMessage(f"{name} is not a JSON number")


def render_error(text: str, **more: object) -> str:
    """Return an error frame."""
    return compact({"error": text, **more})


def render_stderr(line: str) -> str:
    """Return the frame of one stderr line."""
    return compact({"stderr": line})


def render_event(event: str, **fields: object) -> str:
    """Return a frame of the gateway's own on `/ws/session`."""
    return compact({"type": "gateway", "event": event, **fields})


def render_queued(place: int, patience: float) -> str:
    """Return what a client hears that waits for a slot: its place, and how many seconds it waits at most."""
    return compact({"info": f"waiting for a free slot, place {place}", "position": place, "wait_s": patience})


def render_refused(code: str, text: str, **more: object) -> str:
    """Return the frame that refuses what a client of a session said."""
    return render_event("refused", code=code, error=text, **more)


RETRYABLE = (Reason.DRAINED, Reason.SPAWN_FAILED, Reason.NODE_LOST)
"""Ends that say nothing about the client's wish: the same may go well another time."""


def render_ended(outcome: Outcome) -> str:
    """Return the last frame of a session."""
    told = {"error": outcome.error} if outcome.error is not None else {}
    return render_event(
        "ended",
        lines=outcome.lines,
        reason=outcome.reason.value,
        retryable=outcome.reason in RETRYABLE,
        exit_status=outcome.exit_status,
        signal=outcome.signal,
        encoding_errors=outcome.encoding_errors,
        receipt=attrs.asdict(outcome.receipt),
        **told,
    )


_ALLOWING = {"Edit": "edit", "MultiEdit": "edit", "NotebookEdit": "edit", "Write": "edit"}
"""The weakest profile that allows a tool; every other tool needs `unattended`."""


def render_denied(tool: str, profile: str) -> str:
    """Return the frame that says why a tool was denied and what would allow it."""
    allowing = _ALLOWING.get(tool, "unattended")
    if profile == allowing:
        allowing = "unattended"
    told = f"{tool} was denied: profile {profile} asks first, and nobody can answer here; profile {allowing} allows it"
    return compact({"info": told})


def as_message(line: bytes) -> bytes:
    """Return an assistant line as the original's clients read it: the inner message, the outer fields beside it.

    `type` becomes `message`; an outer field whose name the inner message has too is kept as `outer_NAME`. A line that
    is no assistant line comes back as it is, as does one with a number that could not be written again. Where a text
    has half a character (a lone surrogate), all that is not ASCII is escaped.
    """
    if b'"assistant"' not in line or is_heavy(line):
        return line
    try:
        outer = json.loads(line)
        inner = outer["message"]
        if outer["type"] != "assistant" or not isinstance(inner, dict):
            return line
    except (ValueError, TypeError, KeyError, RecursionError):
        return line
    rest = {f"outer_{key}" if key in inner else key: outer[key] for key in outer if key not in ("type", "message")}
    message = {**inner, "type": "message", **rest}
    try:
        return compact(message, allow_nan=False).encode()
    except UnicodeEncodeError:
        return json.dumps(message, separators=(",", ":")).encode()
    except (ValueError, RecursionError):  # a number too large for a float; one level deeper than it could be read
        return line


@attrs.frozen
class Closing:
    """What a client is told at the end: an optional last frame, the close code and the close reason."""

    frame: str | None
    code: CloseCode
    reason: str


_CLOSE_CODES = {
    Reason.EXIT: CloseCode.NORMAL,
    Reason.DRAINED: CloseCode.RESTARTING,
    Reason.STOPPED: CloseCode.NORMAL,
}
"""Every other reason closes with 1011."""


def closing(outcome: Outcome) -> Closing:
    """Return what a client is told of how its run ended."""
    code = _CLOSE_CODES.get(outcome.reason, CloseCode.FAILED)
    frame, cause = None, _cause(outcome)
    if outcome.receipt.survivors:
        return Closing(
            render_error("the process tree could not be proven gone"), CloseCode.FAILED, _reason(cause, outcome)
        )
    if outcome.error is not None:
        told = {"exit_status": outcome.exit_status, "signal": outcome.signal} if outcome.reason is Reason.FAILED else {}
        frame = render_error(outcome.error, **{key: value for key, value in told.items() if value is not None})
    return Closing(frame, code, _reason(cause, outcome))


def _cause(outcome: Outcome) -> str:
    """Return the first part of a close reason."""
    if outcome.reason in (Reason.EXIT, Reason.FAILED):
        if outcome.after_result:
            return "ended after result"
        if outcome.signal is not None:
            return f"signal {outcome.signal}"
        return outcome.reason.value if outcome.exit_status is None else f"exit {outcome.exit_status}"
    return {Reason.DEADLINE: "timed out", Reason.SPAWN_FAILED: "not started"}.get(outcome.reason, outcome.reason.value)


def _reason(cause: str, outcome: Outcome) -> str:
    return clip(f"{cause}; {outcome.receipt}")


def clip(text: str) -> str:
    """Return `text` cut to what a close frame takes, never inside a character."""
    return text.encode()[:REASON_LIMIT].decode(errors="ignore")
