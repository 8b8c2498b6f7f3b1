"""What is said on the two sockets, as JSON Schema: each message of a client, each frame of the server's own.

Pure. What has a table, a class or a check in the code is taken from there; what only code says is written here and held
to it by tests, both ways. A schema here never decides what a client may say: the parsers do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, get_args, get_type_hints

import attrs

from . import errors
from .config import CONTROLS, GRANTS, OPTIONS
from .conversation import ID_LIMIT
from .errors import Busy, ClientError, Draining, Reason
from .events import Receipt
from .history import RUN_ID
from .journal import Unfinished
from .messages import Options, Prompt
from .openapi import Json, record, schema_of
from .queries import Text
from .room import PROTOCOL
from .session import lines, ops

ONCE: Final = "fork"
"""The one option that only a session has."""
COUNT: Final[Json] = {"type": "integer", "minimum": 0}
NUMBER: Final[Json] = {"type": "integer", "minimum": 1}
SECONDS: Final[Json] = {"type": "number", "minimum": 0}
NAMED: Final[Json] = {"type": "string", "maxLength": ID_LIMIT}
RUN: Final = Text(RUN_ID).schema
LIMITS: Final = (
    "message", "line", "timeout", "idle_timeout", "session_timeout", "approval_timeout", "grace",
)  # fmt: skip
HISTORY: Final = ("waiting", "back", "ended")
PHASES: Final = ("first-output", "between-lines", "after-result")


def refusal_codes() -> list[str]:
    """Return every code by which what a client of a session says is refused."""
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, ClientError | Busy | Draining)
    ]
    return sorted({kind.code for kind in kinds})


def field_schemas(kind: type[attrs.AttrsInstance], names: Iterable[str]) -> dict[str, Json]:
    """Return the schemas of a class's fields, each of its type and its check."""
    hints, fields = get_type_hints(kind), attrs.fields_dict(kind)
    return {name: {**_present(hints[name]), **getattr(fields[name].validator, "schema", {})} for name in names}


def _present(hint: Any) -> Json:
    """Return the schema of a type, but for None: what is not said is left out."""
    return schema_of(next(arm for arm in (*get_args(hint), hint) if arm is not type(None)) if _may_miss(hint) else hint)


def _may_miss(hint: Any) -> bool:
    return type(None) in get_args(hint)


# -- what a client says -----------------------------------------------------------------------------------------------


def prompt_schema() -> Json:
    """Return the schema of the one message on `/ws/claude`."""
    return record(field_schemas(Prompt, ("prompt", "meta")), field_schemas(Options, (*OPTIONS, *GRANTS)))


def start_schema() -> Json:
    """Return the schema of the first message of a new session."""
    grace = record({"grace": {"type": "number", "exclusiveMinimum": 0}})
    more = {"on_disconnect": {"anyOf": [{"const": "kill"}, grace]}, "recall": {"type": "boolean"}}
    options = record({}, {**field_schemas(Options, (*OPTIONS, *GRANTS, ONCE)), **more})
    return _with(ops.START.schema, options={**options, "allOf": [_takes_resume(name) for name in (ONCE, "recall")]})


def _takes_resume(name: str) -> Json:
    """Say that an option, where it is true, takes a session to go on from."""
    return {"if": {"properties": {name: {"const": True}}, "required": [name]}, "then": {"required": ["resume"]}}


def attach_schema() -> Json:
    """Return the schema of the first message of a client that comes back, or watches."""
    return _with(ops.ATTACH.schema, after={**COUNT, "maximum": ops.LINES_LIMIT})


def user_schema() -> Json:
    """Return the schema of something for the model."""
    blocks = {**lines.BLOCKS.schema, "minItems": 1}
    content = {"anyOf": [{"type": "string", "minLength": 1}, blocks]}
    return _with(lines.USER.schema, message=_with(lines.USER.schema["properties"]["message"], content=content))


def request_schemas() -> dict[str, Json]:
    """Return the schemas of what a client may ask of the CLI, by subtype."""
    return {subtype: _request(subtype, shape.schema) for subtype, shape in lines.CONTROLS.items()}


def _request(subtype: str, shape: Json) -> Json:
    number = {**lines.ID.schema, "pattern": f"^(?!{lines.OWN_REQUEST}){lines.ID.schema['pattern'][1:]}"}
    return _with(lines.REQUEST.schema, request_id=number, request=_named(shape, "subtype", subtype))


def answer_schemas() -> dict[str, Json]:
    """Return the schemas of good answers by the subtype of what was asked, and of the one that says an error."""
    good = {subtype: _answer("success", shape.schema) for subtype, shape in lines.ANSWERS.items()}
    return {**good, "error": _answer("error", {})}


def _answer(subtype: str, shape: Json) -> Json:
    response = _with(lines.RESPONSE.schema["properties"]["response"], subtype={"const": subtype}, response=shape)
    if subtype == "success" and not ("required" in shape and not shape["required"]):
        response["required"] = [*response["required"], "response"]
    return _with(lines.RESPONSE.schema, response=response)


def _with(schema: Json, **changed: Json) -> Json:
    """Return the schema of an object with some of its keys told more closely."""
    assert changed.keys() <= schema["properties"].keys()
    return {**schema, "properties": {**schema["properties"], **changed}}


def _named(schema: Json, key: str, value: str) -> Json:
    """Return the schema of an object that has a key more, of one value."""
    properties = {key: {"const": value}, **schema["properties"]}
    return {**schema, "properties": properties, "required": [key, *schema["required"]]}


# -- what the server says ---------------------------------------------------------------------------------------------


def frame_schemas() -> dict[str, Json]:
    """Return the schemas of the server's own frames on `/ws/claude`, by name."""
    return {
        "info": record({"info": str}, {"position": NUMBER, "wait_s": SECONDS}),
        "stderr": record({"stderr": str}),
        "error": record({"error": str}, {"exit_status": COUNT, "signal": NUMBER, "retry_after": SECONDS}),
    }


def event_schemas() -> dict[str, Json]:
    """Return the schemas of the server's own frames on `/ws/session`, by event."""
    return {event: _event(event, *fields) for event, fields in _events().items()}


def _event(event: str, fields: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> Json:
    return record({"type": {"const": "gateway"}, "event": {"const": event}, **fields}, optional)


def _events() -> dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Return what each event says, and what it says now and then."""
    options, controls = _words((*OPTIONS, *GRANTS, ONCE)), _words(CONTROLS)
    pending = {"type": "array", "items": record({"n": NUMBER, "line": str})}
    return {
        "hello": ({
            "protocol": {"const": PROTOCOL}, "version": str, "containment": str,
            "limits": record(dict.fromkeys(LIMITS, SECONDS)), "options": {"type": "array", "items": options},
            "control": {"type": "array", "items": controls}, "identity": str,
        }, {}),
        "queued": ({"position": NUMBER, "wait_s": SECONDS}, {}),
        "started": ({"run": RUN, "session": lines.UUID.schema, "warm": {"const": False}, "history": bool}, {}),
        "attached": ({
            "run": RUN, "role": _words(ops.ROLES), "from": NUMBER, "ended": bool, "pending": pending,
        }, {"heard": COUNT}),
        "unfinished": (schema_of(Unfinished)["properties"], {}),
        "gap": ({"from": NUMBER, "to": NUMBER}, {}),
        "history": ({"state": _words(HISTORY)}, {}),
        "stopping": ({"mode": _words(ops.MODES)}, {}),
        "refused": (
            {"code": _words(refusal_codes()), "error": str},
            {"request_id": NAMED, "uuid": NAMED, "retry_after": SECONDS, "last": COUNT},
        ),
        "stderr": ({"line": str, "after": COUNT}, {}),
        "stalled": ({"phase": _words(PHASES), "seconds": SECONDS}, {}),
        "denied": ({"request": str, "code": {"const": "approval-timeout"}, "error": str}, {}),
        "ended": ({
            "lines": COUNT, "reason": Reason, "retryable": bool, "exit_status": int | None, "signal": int | None,
            "encoding_errors": COUNT, "receipt": Receipt,
        }, {"error": str}),
    }  # fmt: skip


def _words(words: Iterable[str]) -> Json:
    return {"type": "string", "enum": list(words)}
