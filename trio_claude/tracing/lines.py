"""What a CLI's lines tell of tools and of the end of turns; most lines are looked at as bytes only.

Pure. This module must never keep or return what a tool is given, what it gives, or what anybody says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import attrs

from ..stream_json import DELTA, parse_line

NAME_LIMIT = 64
"""Characters of a tool's name that are told."""
ID_LIMIT = 128
"""Characters of the id of a tool's use; one that is longer is no id."""
_MARKS = (b'"tool_use"', b'"tool_result"', b'"result"')


@attrs.frozen
class ToolUsed:
    """The model uses a tool; `parent` is the use of which this one is a part: a sub-agent's."""

    id: str
    name: str
    parent: str = ""


@attrs.frozen
class ToolAnswered:
    """A tool has given its result."""

    id: str
    is_error: bool


@attrs.frozen
class TurnOver:
    """The turn has given its result."""


Sight: TypeAlias = ToolUsed | ToolAnswered | TurnOver


def sights(lines: list[bytes]) -> Iterator[Sight]:
    """Yield what `lines` tell, in order."""
    for line in lines:
        if not line.startswith(DELTA) and any(mark in line for mark in _MARKS):
            yield from _sights(parse_line(line))


def _sights(said: dict[str, Any]) -> Iterator[Sight]:
    if said.get("type") == "result":
        yield TurnOver()
        return
    message = said.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    for block in content if isinstance(content, list) else ():
        if isinstance(block, dict) and (sight := _sight(str(said.get("type")), block, said.get("parent_tool_use_id"))):
            yield sight


def _sight(kind: str, block: dict[str, Any], parent: object) -> Sight | None:
    match kind, block:
        case "assistant", {"type": "tool_use", "id": str(name), "name": str(tool)} if _is_id(name):
            told = tool[:NAME_LIMIT].encode(errors="replace").decode()  # one lone surrogate would cost a whole batch
            return ToolUsed(name, told, parent if isinstance(parent, str) else "")
        case "user", {"type": "tool_result", "tool_use_id": str(name)}:
            return ToolAnswered(name, block.get("is_error") is True)
    return None


def _is_id(name: str) -> bool:
    return len(name) <= ID_LIMIT and name.isascii()
