"""The AsyncAPI document of the two sockets, built out of what `sayings` says and the code's own tables and limits.

Pure. It must never say a field, a limit or a word a second time that stands in the code already.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from . import __version__, sayings
from .config import Config
from .connection import DOOR, SHAPES
from .entrance import SESSION_DOOR
from .errors import CloseCode, Reason
from .events import Outcome, Receipt
from .messages import INFO, REASON_LIMIT, STRUCTURE_LIMIT, closing
from .openapi import JSON, Json
from .session import ops

CLOSES: Final[Mapping[CloseCode, str]] = {
    CloseCode.NORMAL: "the run has ended well or was stopped; or this connection has left it",
    CloseCode.POLICY: "what was said breaks the contract, or may not be said here",
    CloseCode.TOO_LONG: "a message over the limit",
    CloseCode.FAILED: "the run has ended in any other way: `x-reasons` has which",
    CloseCode.RESTARTING: "the server is going down",
    CloseCode.BUSY: "no slot is free, a limit is reached, or the journal is not at hand",
}
"""What each close code says."""
CLAUDE: Final = ("Prompt", "Line", "Info", "Stderr", "Error")
SAID_FIRST: Final = ("Start", "Attach")
SAID_LATER: Final = ("User", "ControlRequest", "ControlResponse", "Stop", "Detach")
SUBPROTOCOL: Final = "in a browser: trio-claude.v1, and ticket. or bearer. with the ticket or key in base64url"
BEYOND: Final = (
    "JSON Schema has no words for some of what is refused: bytes of UTF-8 (a limit of characters here is what follows "
    "from it at the least), lone surrogates, a key said twice, a number that no float holds, a whole number written "
    f"with a point, over {STRUCTURE_LIMIT} bytes outside of texts, JSON that is nested too deep, and what a server "
    "does not offer: which of the options and control requests it takes, and its own limits, it says in `hello`."
)


def describe(*, asks: bool) -> Json:
    """Return the document; `asks` says whether clients need a credential."""
    messages = _messages()
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "trio-claude", "version": __version__, "description": BEYOND},
        "defaultContentType": JSON,
        "channels": {"claude": _claude(), "session": _session(messages)},
        "operations": _operations(messages, _security() if asks else []),
        "components": {"messages": messages, "schemas": _schemas(), "securitySchemes": _schemes()},
    }


def event_message(event: str) -> str:
    """Return the name of the message that an event is."""
    return f"Event{event.capitalize()}"


def _messages() -> dict[str, Json]:
    """Return all messages by name, each with the schema of that name."""
    told: dict[str, Json] = {
        name: {"name": name, "summary": text, "payload": _schema(name)} for name, text in _summaries().items()
    }
    told["Line"]["description"] = "Text frames, one a line. What is no JSON comes as it is."
    told["Info"]["examples"] = [{"name": "first", "summary": "The first frame.", "payload": json.loads(INFO)}]
    return told


def _summaries() -> dict[str, str]:
    return {
        "Prompt": "The one message on /ws/claude.",
        "Line": "A line of the CLI's stdout.",
        "Info": "What is expected, the place in the queue, or why a tool was denied.",
        "Stderr": "A line of the CLI's stderr.",
        "Error": "Why the run, or the message, came to nothing.",
        "Start": "The first message of a new session.",
        "Attach": "The first message of a client that comes back to a run, or watches it.",
        "User": "Something for the model.",
        "ControlRequest": "Something asked of the CLI.",
        "ControlResponse": "The answer to a question of the CLI that is open.",
        "Stop": "End the turn, the run, or the process tree.",
        "Detach": "Leave, where the run goes on without its client.",
        **{event_message(event): f"The server's own: {event}." for event in sayings.event_schemas()},
    }


def _schemas() -> dict[str, Json]:
    """Return the schemas by the names of their messages."""
    frames = sayings.frame_schemas()
    return {
        "Prompt": sayings.prompt_schema(),
        "Line": {},
        **{name.capitalize(): schema for name, schema in frames.items()},
        "Start": sayings.start_schema(),
        "Attach": sayings.attach_schema(),
        "User": sayings.user_schema(),
        "ControlRequest": {"anyOf": list(sayings.request_schemas().values())},
        "ControlResponse": {"anyOf": list(sayings.answer_schemas().values())},
        "Stop": ops.STOP.schema,
        "Detach": ops.DETACH.schema,
        **{event_message(event): schema for event, schema in sayings.event_schemas().items()},
    }


# -- channels ---------------------------------------------------------------------------------------------------------


def _claude() -> Json:
    limit = Config().max_message
    query = {"type": "object", "properties": {"frames": {"enum": list(SHAPES), "default": SHAPES[0]}}}
    text = f"One prompt, streamed, closed. A message has at most {limit} bytes, unless the server says otherwise."
    return _channel(DOOR, CLAUDE, text, query)


def _session(messages: Mapping[str, Any]) -> Json:
    config = Config()
    text = (
        f"Many turns, both ways. A message has at most {config.max_session_message} bytes, before `started` "
        f"{config.max_message}, unless the server says otherwise. Lines of the CLI are numbered from 1: count the "
        "frames whose `type` is not `gateway`."
    )
    return _channel(SESSION_DOOR, [name for name in messages if name not in CLAUDE or name == "Line"], text)


def _channel(address: str, messages: Sequence[str], text: str, query: Json | None = None) -> Json:
    binding = {"method": "GET", **({"query": query} if query else {}), "bindingVersion": "0.1.0"}
    return {
        "address": address,
        "description": text,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
        "bindings": {"ws": binding},
        "x-close-codes": {str(int(code)): text for code, text in CLOSES.items()},
        "x-close-reason": f"CAUSE; N processes, M left, T ms: at most {REASON_LIMIT} bytes",
        "x-reasons": {reason.value: int(_code(reason)) for reason in Reason},
    }


def _code(reason: Reason) -> CloseCode:
    """Return the close code of a run that ended so, with nothing left of it."""
    return closing(Outcome(reason, None, None, 0, 0, Receipt(0, 0, 0, 0.0, ""))).code


# -- operations -------------------------------------------------------------------------------------------------------


def _operations(messages: Mapping[str, Any], security: list[Json]) -> Json:
    told = [name for name in messages if name not in (*CLAUDE, *SAID_FIRST, *SAID_LATER)]
    return {
        "hearPrompt": _operation("receive", "claude", CLAUDE[:1], "One message, and no other.", security),
        "tellRun": _operation("send", "claude", CLAUDE[1:], "What a run says, then a close.", security),
        "hearFirst": _operation("receive", "session", SAID_FIRST, "The first message.", security),
        "hearLater": _operation("receive", "session", SAID_LATER, "All messages behind the first.", security),
        "tellSession": _operation("send", "session", ["Line", *told], "What a session says, then a close.", security),
    }


def _operation(action: str, channel: str, messages: Sequence[str], summary: str, security: list[Json]) -> Json:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": summary,
        "messages": [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in messages],
        **({"security": security} if security else {}),
    }


def _security() -> list[Json]:
    return [{"$ref": f"#/components/securitySchemes/{name}"} for name in _schemes()]


def _schemes() -> dict[str, Json]:
    named = {"type": "httpApiKey", "in": "header", "name": "Sec-WebSocket-Protocol", "description": SUBPROTOCOL}
    return {
        "bearer": {"type": "http", "scheme": "bearer", "description": "an API key or a JWT"},
        "subprotocol": named,
    }


def _schema(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}
