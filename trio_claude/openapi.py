"""The OpenAPI document of the plain HTTP routes, built out of the code's own classes, tables and limits.

Pure. It must never say a field, a limit or a word a second time that stands in the code already.
"""

from __future__ import annotations

import enum
import http
import types
from collections.abc import Collection, Mapping
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

import attrs

from . import __version__
from .errors import Reason
from .events import Receipt
from .history import DELETION, DELETIONS, LINES, LIST, RUN_ID, USAGE
from .identity.tickets import LIFETIME
from .journal import GROUPS, UNLISTED, USAGE_ROWS, RunRow, UsageRow
from .queries import Names, Parameter, Parameters, Text
from .upgrade import ALWAYS, BODY_LIMIT

Json = dict[str, Any]
"""A part of the document."""

JSON: Final = "application/json"
KINDS: Final[dict[Any, Json]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    Any: {},
}
REFUSALS: Final = {
    400: "a request that is no good HTTP, a bad query, or two credentials",
    401: "no valid key or token",
    403: "this Host or Origin may not come in, or this role may not do it",
    404: "no such thing: a path, a run, a WebSocket; or the server keeps no journal or no metrics",
    408: "no request head in time",
    409: "a run that is not in the state that was named",
    413: f"a body over {BODY_LIMIT} bytes",
    426: "a WebSocket handshake of another version",
    429: "too many connections",
    431: "a head that is too large",
    503: "a journal or what servers share is not at hand just now, or the server that has the run does not answer",
    501: "a transfer encoding that is not spoken here",
}
"""Every status by which a request is refused that is at the right path with the right method."""
REFUSAL_HEADERS: Final = {401: "WWW-Authenticate", 426: "Sec-WebSocket-Version", 429: "Retry-After", 503: "Retry-After"}
MORE: Final = "lines of JSON, each as `Line` has it"
RUN: Final[Json] = {"name": "id", "in": "path", "required": True, "schema": Text(RUN_ID).schema}


def schema_of(kind: Any, **more: Any) -> Json:
    """Return the JSON Schema of a class or a type; `more` are types of fields in place of their own."""
    if kind in KINDS:
        return KINDS[kind]
    if get_origin(kind) in (Union, types.UnionType):
        return {"anyOf": [schema_of(arm) for arm in get_args(kind)]}
    if get_origin(kind) is list:
        return {"type": "array", "items": schema_of(*get_args(kind))}
    if get_origin(kind) is dict:
        return {"type": "object", "additionalProperties": schema_of(get_args(kind)[1])}
    if issubclass(kind, enum.Enum):
        return {"type": "string", "enum": [member.value for member in kind]}
    return record({**{name: hint for name, hint in get_type_hints(kind).items() if name in _names(kind)}, **more})


def record(fields: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> Json:
    """Return the schema of an object with these fields and no others: each is a type, or a schema already."""
    known = {**fields, **(optional or {})}
    told = {name: kind if isinstance(kind, dict) else schema_of(kind) for name, kind in known.items()}
    return {"type": "object", "properties": told, "required": list(fields), "additionalProperties": False}


def _names(kind: Any) -> set[str]:
    return {field.name for field in attrs.fields(kind)}


def _schemas() -> dict[str, Json]:
    """Return the schemas of bodies by name."""
    run = schema_of(RunRow, state=LIST["state"].schema, reason=Reason | None, receipt=Receipt | None)
    listed = {name: schema for name, schema in run["properties"].items() if name not in UNLISTED}
    flags = {"cli": bool, "folder": bool, "draining": bool, "containment": str, "keys": str, "journal": str}
    return {
        "Error": record({"error": str, "code": str}),
        "Run": run,
        "Runs": record({"runs": {"type": "array", "items": record(listed)}, "next": str | None}),
        "Usage": record(
            {
                "usage": {"type": "array", "items": _usage_row()},
                "truncated": {"anyOf": [{"const": USAGE_ROWS}, {"type": "null"}]},
            }
        ),
        "Line": {
            "oneOf": [
                record({"n": int, "line": str}),
                record({"after": int, "stderr": str}),
                record({"after": int, "in": str}),
            ]
        },
        "Deleted": record({"deleted": int}),
        "Stopping": record({"stopping": {"const": True}}),
        "Health": record({"ok": {"const": True}}),
        "Readiness": record({"ready": bool}, flags),
        "Notice": record({"notice": str, "profile": str, "credentials": bool, "demo": bool, "grace": float}),
        "Ticket": record({"ticket": str, "seconds": {"const": LIFETIME}}),
    }


def _usage_row() -> Json:
    """Return the schema of a sum: what was not grouped by is missing in it."""
    figures = {name: kind for name, kind in get_type_hints(UsageRow).items() if name != "group"}
    return record(figures, dict.fromkeys(GROUPS, str))


def describe(pages: Mapping[str, str], open_paths: Collection[str], *, asks: bool) -> Json:
    """Return the document; `pages` are types of content by path, `asks` says whether clients need a credential."""
    paths = {**{path: {"get": _page(path, kind)} for path, kind in pages.items()}, **_routes()}
    for path, methods in paths.items():
        for operation in methods.values():
            _finish(operation, _security(path in open_paths) if asks else [])
        if "get" in methods:
            methods["head"] = {**methods["get"], "operationId": methods["get"]["operationId"].replace("get", "head", 1)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "trio-claude",
            "version": __version__,
            "description": "The plain routes. The WebSockets, /ws/claude and /ws/session, stand in /asyncapi.json.",
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "responses": {str(status): _refusal(status) for status in REFUSALS},
            "headers": {name: {"required": True, "schema": {"const": value}} for name, value in ALWAYS},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "description": "an API key or a JWT"}},
        },
    }


def _routes() -> dict[str, dict[str, Json]]:
    """Return the operations by path and method, but for the pages."""
    return {
        "/healthz": {"get": _read("getHealth", "Whether the server is alive.", "Health")},
        "/readyz": {"get": _readiness()},
        "/metrics": {"get": _metrics()},
        "/notice": {"get": _read("getNotice", "What the page shows.", "Notice")},
        "/openapi.json": {"get": _operation("getDescription", "This document.", {200: _answer({"type": "object"})})},
        "/asyncapi.json": {"get": _operation("getSockets", "The WebSockets.", {200: _answer({"type": "object"})})},
        "/api/ticket": {
            "post": _read("postTicket", "A ticket, which opens one socket, once, from the same origin.", "Ticket")
        },
        "/api/runs": {
            "get": _list(),
            "delete": _read("deleteRuns", "Deletes your runs that have ended.", "Deleted", _in_query(DELETIONS)),
        },
        "/api/runs/{id}": {"get": _read("getRun", "One run.", "Run", [RUN]), "delete": _deletion()},
        "/api/runs/{id}/lines": {"get": _lines()},
        "/api/usage": {
            "get": _read("getUsage", "What the runs have used that have ended, in sums.", "Usage", _in_query(USAGE))
        },
    }


def _page(path: str, content_type: str) -> Json:
    name = path.strip("/").replace(".", "-") or "index"
    return _operation(f"get-{name}", "A file of the page.", {200: _answer({"type": "string"}, content_type)})


def _readiness() -> Json:
    answers = {status: _answer(_named("Readiness")) for status in (200, 503)}
    return _operation("getReadiness", "Whether a run would start now; more with a credential.", answers)


def _metrics() -> Json:
    answer = _answer({"type": "string"}, "text/plain")
    answer["content"]["application/openmetrics-text"] = answer["content"]["text/plain"]
    return _operation("getMetrics", "What Prometheus scrapes; not for the role user.", {200: answer})


def _list() -> Json:
    named = {"id": "$response.body#/runs/0/id"}
    links = {name: {"operationId": name, "parameters": named} for name in ("getRun", "getLines", "deleteRun")}
    answer = {**_answer(_named("Runs")), "links": links}
    return _operation("getRuns", "Runs, newest first; the next page with `before`.", {200: answer}, _in_query(LIST))


def _deletion() -> Json:
    answers = {200: _answer(_named("Deleted")), 202: _answer(_named("Stopping"))}
    return _operation(
        "deleteRun", "Ends a live run now, deletes one that has ended.", answers, [RUN, *_in_query(DELETION)]
    )


def _lines() -> Json:
    answer = _answer({"type": "string", "description": MORE}, "application/x-ndjson")
    answer["headers"]["X-Next-Part"] = {
        "description": "what `part` asks for the next page",
        "schema": LINES["part"].schema,
    }
    return _operation("getLines", "What a run said, and heard.", {200: answer}, [RUN, *_in_query(LINES)])


def _read(name: str, summary: str, schema: str, parameters: Collection[Json] = ()) -> Json:
    """Return an operation that has one good answer, a schema of this document."""
    return _operation(name, summary, {200: _answer(_named(schema))}, parameters)


def _operation(name: str, summary: str, answers: Mapping[int, Json], parameters: Collection[Json] = ()) -> Json:
    refusals = {str(status): {"$ref": f"#/components/responses/{status}"} for status in REFUSALS}
    good = {
        str(status): {**answer, "description": http.HTTPStatus(status).phrase} for status, answer in answers.items()
    }
    return {"operationId": name, "summary": summary, "parameters": [*parameters], "responses": {**refusals, **good}}


def _finish(operation: Json, security: list[Json]) -> None:
    """Say what follows from who is asked: where nobody is, nobody is refused for it."""
    operation["security"] = security
    if not security:
        del operation["responses"]["401"]


def _security(open_path: bool) -> list[Json]:
    return [*([{}] if open_path else []), {"bearer": []}]


def _answer(schema: Json, content_type: str = JSON) -> Json:
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name, _ in ALWAYS}
    return {"headers": headers, "content": {content_type: {"schema": schema}}}


def _refusal(status: int) -> Json:
    answer = {**_answer(_named("Error")), "description": REFUSALS[status]}
    if name := REFUSAL_HEADERS.get(status):
        answer["headers"][name] = {"schema": {"type": "string"}}
    return answer


def _named(schema: str) -> Json:
    return {"$ref": f"#/components/schemas/{schema}"}


def _in_query(parameters: Parameters) -> list[Json]:
    return [{"name": name, "in": "query", "schema": one.schema, **_spelt(one)} for name, one in parameters.items()]


def _spelt(parameter: Parameter) -> Json:
    """Return how a list is spelt in a query."""
    return {"style": "form", "explode": False} if isinstance(parameter, Names) else {}
