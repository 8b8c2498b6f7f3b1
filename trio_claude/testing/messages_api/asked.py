"""Read what a request asks: its parts for the record, and the directive that counts.

Rule: nothing here judges a request; what is not as expected counts as absent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import attrs

from ..model import Directive, find_directives


@attrs.frozen
class ApiRequest:
    """One request as it arrived; `body` is empty if it was not a JSON object."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    size: int

    @property
    def model(self) -> str | None:
        """The model asked for."""
        return self.body.get("model")

    @property
    def n_messages(self) -> int:
        """How many messages the conversation has."""
        return len(_list(self.body.get("messages")))

    @property
    def n_tools(self) -> int:
        """How many tools the model may use."""
        return len(_list(self.body.get("tools")))


def parse_body(raw: bytes) -> dict[str, Any]:
    """Return the JSON object, or an empty one."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def find_directive(body: dict[str, Any]) -> Directive:
    """Return the last directive of the last user text that holds one, or an empty one."""
    messages = [message for message in _list(body.get("messages")) if isinstance(message, dict)]
    found, results = Directive({}), 0
    for message in reversed([message for message in messages if message.get("role") == "user"]):
        texts = reversed(list(_texts(message)))
        if directives := next(filter(None, map(find_directives, texts)), None):
            found = directives[-1]
            found.results = results
            break
        results += sum(block.get("type") == "tool_result" for block in _blocks(message))
    found.streamed = body.get("stream") is True
    return found


def _texts(message: dict[str, Any]) -> Iterator[str]:
    if isinstance(message.get("content"), str):
        yield message["content"]
    for block in _blocks(message):
        if block.get("type") == "text" and isinstance(block.get("text"), str):
            yield block["text"]


def _blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    return [block for block in _list(message.get("content")) if isinstance(block, dict)]


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
