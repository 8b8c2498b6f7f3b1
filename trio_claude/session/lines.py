"""What a client may say to its CLI: parsed, checked against the allow-list, and built anew.

The CLI's control protocol can run commands: `mcp_set_servers` starts any, `set_permission_mode` and
`apply_flag_settings` stop the asking, and an answer with `updatedPermissions` writes settings that outlive the run.
None of that has a shape here, but for the few requests that the operator can grant by name.
"""

from __future__ import annotations

import binascii
import enum
import json
from collections.abc import Collection, Mapping
from typing import Any

import attrs

from ..errors import BadMessage, NotAllowed, NotOpen
from ..messages import MODEL_PATTERN, MODES, THINKING_MOST, compact
from . import shapes
from .shapes import Shape, any_object, anything, array, by_type, either, flag, match, number, one_of, optional, record
from .states import APPROVAL, Asked

ID = match(r"[A-Za-z0-9_.:\-]+", 128)
UUID = match(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", 36)
NAME = shapes.text(256)
TEXT = shapes.text()
OWN_REQUEST = "gateway-"
"""How the ids of the gateway's own requests begin; a client's may not."""


class Kind(enum.StrEnum):
    """What a client's line is."""

    USER = "user"
    REQUEST = "control_request"
    RESPONSE = "control_response"


@attrs.frozen
class ClientLine:
    """A line for the CLI, built anew; `request` is the id or `uuid` that it carries, `subtype` what it asks for.

    `allows` says that it is an answer, and one that lets a tool be used.
    """

    kind: Kind
    data: bytes = attrs.field(repr=False)
    request: str = ""
    subtype: str = ""
    allows: bool = False


# -- what a user says -------------------------------------------------------------------------------------------------

BASE64_PATTERN = "(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"
CACHE = record({"type": one_of("ephemeral")}, {"ttl": one_of("5m", "1h")})


@shapes.told({"type": "string", "pattern": f"^{BASE64_PATTERN}$"})
def _base64(path: str, value: Any) -> Any:
    """Accept bytes in base64; a pattern over megabytes would hold up everybody."""
    try:
        binascii.a2b_base64(TEXT(path, value), strict_mode=True)
    except (ValueError, binascii.Error):
        raise BadMessage(f"{path} must be base64") from None
    if len(value) % 4 or value.endswith("==="):  # which the library lets pass where nothing is to be padded
        raise BadMessage(f"{path} must be base64")
    return value


IMAGE_SOURCE = by_type({
    "base64": record({
        "type": one_of("base64"),
        "media_type": one_of("image/png", "image/jpeg", "image/gif", "image/webp"),
        "data": _base64,
    }),
    "url": record({"type": one_of("url"), "url": match(r"https?://\S+", 8192)}),
})  # fmt: skip
DOCUMENT_SOURCE = by_type({
    "base64": record({"type": one_of("base64"), "media_type": one_of("application/pdf"), "data": _base64}),
    "text": record({"type": one_of("text"), "media_type": one_of("text/plain"), "data": TEXT}),
    "url": record({"type": one_of("url"), "url": match(r"https?://\S+", 8192)}),
})  # fmt: skip
TEXT_BLOCK = record({"type": one_of("text"), "text": TEXT}, {"cache_control": CACHE})
IMAGE_BLOCK = record({"type": one_of("image"), "source": IMAGE_SOURCE}, {"cache_control": CACHE})
DOCUMENT_BLOCK = record(
    {"type": one_of("document"), "source": DOCUMENT_SOURCE},
    {"title": optional(TEXT), "context": optional(TEXT), "cache_control": CACHE},
)
RESULT_BLOCK = record(
    {"type": one_of("tool_result"), "tool_use_id": ID},
    {
        "content": either(TEXT, array(by_type({"text": TEXT_BLOCK, "image": IMAGE_BLOCK, "document": DOCUMENT_BLOCK}))),
        "is_error": flag,
        "cache_control": CACHE,
    },
)
BLOCK = by_type({"text": TEXT_BLOCK, "image": IMAGE_BLOCK, "document": DOCUMENT_BLOCK, "tool_result": RESULT_BLOCK})
BLOCKS = array(BLOCK)
USER = record(
    {"type": one_of("user"), "message": record({"role": one_of("user"), "content": anything})},
    {"parent_tool_use_id": one_of(None), "session_id": NAME, "uuid": UUID, "client_composed": flag},
)


def _user(said: dict[str, Any]) -> ClientLine:
    line = USER("", said)
    content = line["message"]["content"]
    if isinstance(content, list):
        content = BLOCKS("message.content", content)
    elif not isinstance(content, str):
        raise BadMessage("message.content must be text or an array of content blocks")
    if not content:
        raise BadMessage("message.content must not be empty")
    built = {"type": "user", "message": {"role": "user", "content": content}, "client_composed": True}
    name = {"uuid": line["uuid"]} if "uuid" in line else {}
    return ClientLine(Kind.USER, _encode(built | name), line.get("uuid", ""))


# -- what a client asks of the CLI ------------------------------------------------------------------------------------

HOOK_EVENT = match(r"[A-Za-z]+", 64)
HOOK = record(
    {"hookCallbackIds": array(ID)},
    {"matcher": optional(TEXT), "timeout": optional(number), "onFailure": one_of("block", "continue")},
)


@shapes.told({
    "type": "object",
    "propertyNames": HOOK_EVENT.schema,
    "additionalProperties": array(HOOK).schema,
})  # fmt: skip
def _hooks(path: str, value: Any) -> Any:
    """Accept hooks that call the client back; any other kind of hook runs a command."""
    any_object(path, value)
    return {HOOK_EVENT(path, event): array(HOOK)(f"{path}.{event}", hooks) for event, hooks in value.items()}


CONTROLS: Mapping[str, Shape] = {
    "initialize": record({}, {"hooks": optional(_hooks), "sdkMcpServers": array(match(r"[A-Za-z0-9_.\-]+", 128))}),
    "interrupt": record({}),
    "set_model": record({}, {"model": optional(match(MODEL_PATTERN, 200))}),
    "set_permission_mode": record({"mode": one_of(*MODES)}),
    "set_max_thinking_tokens": record({"max_thinking_tokens": optional(shapes.whole(0, THINKING_MOST))}),
    "get_context_usage": record({}),
    "mcp_status": record({}),
    "mcp_reconnect": record({"serverName": NAME}),
    "mcp_toggle": record({"serverName": NAME, "enabled": flag}),
    "rewind_files": record({"user_message_id": UUID}),
    "stop_task": record({"task_id": ID}),
}
"""The requests that an operator can allow, with what each may carry. `mcp_set_servers` and `apply_flag_settings` run
commands and are not among them."""

REQUEST = record({"type": one_of("control_request"), "request_id": ID, "request": any_object})


def _request(said: dict[str, Any], allowed: Collection[str], *, hooks: bool) -> ClientLine:
    line = REQUEST("", said)
    request, number_ = dict(line["request"]), line["request_id"]
    if "subtype" not in request:
        raise BadMessage("request.subtype is missing")
    subtype = request.pop("subtype")
    if not isinstance(subtype, str) or subtype not in allowed or subtype not in CONTROLS:
        shown = ascii(str(subtype)[:40])
        raise NotAllowed(
            f"request.subtype {shown} is not allowed here; allowed: {', '.join(sorted(allowed)) or 'none'}"
        )
    if number_.startswith(OWN_REQUEST):
        raise BadMessage(f"request_id must not begin with {OWN_REQUEST}")
    built = {"subtype": subtype, **CONTROLS[subtype]("request", request)}
    if built.get("hooks") and not hooks:
        raise NotAllowed("request.hooks: in this server's profile the CLI calls none")
    data = _encode({"type": "control_request", "request_id": number_, "request": built})
    return ClientLine(Kind.REQUEST, data, number_, subtype)


# -- what a client answers --------------------------------------------------------------------------------------------

ALLOW = record({"behavior": one_of("allow")}, {"updatedInput": any_object, "toolUseID": ID})
DENY = record({"behavior": one_of("deny")}, {"message": TEXT, "interrupt": flag, "toolUseID": ID})
DECISION = by_type({"allow": ALLOW, "deny": DENY}, "behavior")
HOOK_MORE = record(
    {"hookEventName": HOOK_EVENT},
    {
        "permissionDecision": one_of("allow", "deny", "ask", "defer"),
        "permissionDecisionReason": TEXT,
        "updatedInput": any_object,
        "updatedMCPToolOutput": anything,
        "updatedToolOutput": anything,
        "additionalContext": TEXT,
        "decision": DECISION,
        "retry": flag,
        "sessionTitle": TEXT,
        "suppressOriginalPrompt": flag,
        "displayContent": TEXT,
        "action": one_of("accept", "decline", "cancel"),
        "content": any_object,
    },
)
"""What a hook may say of its event. `initialUserMessage`, `watchPaths`, `reloadSkills` and `worktreePath` are not among
them: they are prompts that nobody counts, and paths of the server's machine."""
HOOK_OUTPUT = record(
    {},
    {
        "continue": flag,
        "stopReason": TEXT,
        "suppressOutput": flag,
        "decision": one_of("approve", "block"),
        "reason": TEXT,
        "systemMessage": TEXT,
        "hookSpecificOutput": HOOK_MORE,
        "async": flag,
        "asyncTimeout": number,
    },
)
JSON_RPC = record(
    {"jsonrpc": one_of("2.0")},
    {"id": anything, "result": anything, "error": any_object, "method": NAME, "params": anything},
)
ANSWERS: Mapping[str, Shape] = {
    APPROVAL: DECISION,
    "hook_callback": HOOK_OUTPUT,
    "mcp_message": record({"mcp_response": JSON_RPC}),
}
"""What a good answer may hold, by what was asked; every other question takes an error only."""
RESPONSE = record(
    {
        "type": one_of("control_response"),
        "response": record(
            {"subtype": one_of("success", "error"), "request_id": ID}, {"response": anything, "error": TEXT}
        ),
    }
)


def _response(said: dict[str, Any], asked: Mapping[str, Asked]) -> ClientLine:
    response = RESPONSE("", said)["response"]
    number_ = response["request_id"]
    if number_ not in asked:
        raise NotOpen("response.request_id names no request that is open")
    question = asked[number_]
    if response["subtype"] == "error":
        built: dict[str, Any] = {"error": response.get("error", "the client has no answer")}
    elif question.subtype in ANSWERS:
        built = {"response": _answer(question, response.get("response", {}))}
    else:
        raise NotAllowed(f"a request of the kind {question.subtype[:40]!a} can only be answered with an error")
    answer = built.get("response", {})
    own = "updatedInput" in answer and "updatedInput" not in response.get("response", {})
    line = {
        "type": "control_response",
        "response": {"subtype": response["subtype"], "request_id": number_, **built},
    }
    allows = answer.get("behavior") == "allow"
    return ClientLine(Kind.RESPONSE, _encode(line, own=own), number_, question.subtype, allows)


def _answer(question: Asked, answer: Any) -> dict[str, Any]:
    """Return an answer built anew; an approval that changes no input gives the CLI its own back."""
    built: dict[str, Any] = ANSWERS[question.subtype]("response.response", answer)
    if question.subtype != APPROVAL:
        return built
    if built["behavior"] == "allow":
        return {"behavior": "allow", "updatedInput": built.get("updatedInput", question.input)}
    return {"message": "denied by the client", **built}


def denial(request: str, text: str) -> bytes:
    """Return the line that denies an approval for the gateway's own reasons."""
    answer = {"behavior": "deny", "message": text}
    return _encode({
        "type": "control_response",
        "response": {"subtype": "success", "request_id": request, "response": answer},
    })  # fmt: skip


def _encode(line: dict[str, Any], *, own: bool = False) -> bytes:
    """Return a line for the CLI; its `own` input may hold half a pair, escaped. Raises `BadMessage`."""
    try:
        return (json.dumps(line) if own else compact(line)).encode() + b"\n"
    except UnicodeEncodeError:
        raise BadMessage("the line holds a lone surrogate, which is not UTF-8") from None
    except RecursionError:
        raise BadMessage("the line is nested too deep") from None


def rebuild(
    said: dict[str, Any], asked: Mapping[str, Asked], controls: Collection[str], *, hooks: bool = True
) -> ClientLine:
    """Return a client's line as the CLI may have it.

    `asked` holds the CLI's open requests, `controls` the control requests that this client may make; `hooks` says
    whether the CLI calls any. Raises `BadMessage`, and of its kinds `NotAllowed` and `NotOpen`.
    """
    kind = said.get("type")
    if kind == Kind.USER:
        return _user(said)
    if kind == Kind.REQUEST:
        return _request(said, controls, hooks=hooks)
    if kind == Kind.RESPONSE:
        return _response(said, asked)
    raise BadMessage("type must be gateway, user, control_request or control_response")
