"""What a field of a client's message may hold: each check refuses with a `BadMessage`, and says its own JSON Schema.

Pure. Rule: a value is taken as it is or refused; nothing is coerced, trimmed or ignored. What JSON Schema has no word
for (bytes of UTF-8) stands in the schema's description.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import attrs

from .errors import BadMessage
from .figures import brief

NO_NUL = r"[^\u0000]*"
MCP_KINDS = ("http", "streamable-http", "sse", "ws")
"""The kinds of MCP servers that have an address."""


@attrs.frozen
class Check:
    """A check of a field by attrs, and the same as JSON Schema."""

    check: Callable[[Any, attrs.Attribute[Any], Any], None]
    schema: dict[str, Any]

    def __call__(self, instance: object, field: attrs.Attribute[Any], value: Any) -> None:
        """Check a field's value. Raises `BadMessage`."""
        self.check(instance, field, value)


def text(limit: int, least: int = 1) -> Check:
    """Accept `least` to `limit` bytes of UTF-8 without NUL or lone surrogates."""

    def check(_instance: object, field: attrs.Attribute[Any], value: str | None) -> None:
        if value is None:
            return
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise BadMessage(f"{field.name} holds a lone surrogate, which is not UTF-8") from None
        if not least <= size <= limit:
            raise BadMessage(f"{field.name} must be {least} to {limit} bytes of UTF-8, not {size}")
        if "\0" in value:
            raise BadMessage(f"{field.name} must not hold a NUL character")

    told = f"{least} to {limit} bytes of UTF-8, no lone surrogate"
    return Check(
        check,
        {"type": "string", "minLength": least, "maxLength": limit, "pattern": f"^{NO_NUL}$", "description": told},
    )


def shape(pattern: re.Pattern[str], limit: int) -> Check:
    """Accept a full match of `pattern` of at most `limit` characters."""

    def check(_instance: object, field: attrs.Attribute[Any], value: str | None) -> None:
        if value is not None and (len(value) > limit or not pattern.fullmatch(value)):
            raise BadMessage(f"{field.name} must match ^{pattern.pattern}$ and be at most {limit} characters")

    return Check(check, {"type": "string", "maxLength": limit, "pattern": f"^{pattern.pattern}$"})


def between(low: float, high: float) -> Check:
    """Accept a number within bounds."""

    def check(_instance: object, field: attrs.Attribute[Any], value: float | None) -> None:
        if value is not None and not low <= value <= high:
            raise BadMessage(f"{field.name} must be from {brief(low)} to {brief(high)}, not {brief(value)}")

    return Check(check, {"minimum": low, "maximum": high})


def choice(choices: tuple[str, ...]) -> Check:
    """Accept one of some words."""

    def check(_instance: object, field: attrs.Attribute[Any], value: str | None) -> None:
        if value is not None and value not in choices:
            raise BadMessage(f"{field.name} must be one of {', '.join(choices)}")

    return Check(check, {"type": "string", "enum": list(choices)})


def is_mcp_server(value: object) -> bool:
    """Return whether the CLI takes a value for an MCP server; it passes over what is none without a word."""
    match value:
        case {"type": "sdk"}:
            return True
        case {"type": kind, "url": str()} if kind in MCP_KINDS:
            return True
        case {"command": str(), **more}:
            return more.get("type", "stdio") == "stdio"
    return False


def _server(kinds: tuple[str, ...], *required: str) -> dict[str, Any]:
    texts = {name: {"type": "string"} for name in required}
    return {"type": "object", "properties": {**texts, "type": {"enum": list(kinds)}}, "required": list(required)}


MCP_SERVER: dict[str, Any] = {
    "anyOf": [_server(("sdk",), "type"), _server(MCP_KINDS, "type", "url"), _server(("stdio",), "command")]
}
"""The same as JSON Schema."""
