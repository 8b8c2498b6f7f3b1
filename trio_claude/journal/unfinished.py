"""The turn that a run was at when it was cut off, which the CLI itself forgets. Pure.

Only a `result` ends a turn: what was said behind the last one is of a turn that has none.
"""

from __future__ import annotations

import json
from typing import Any, Final

import attrs

from .facts import Part, PartKind

TEXT_LIMIT: Final = 32 * 1024
"""Characters of a question and of an answer that are given back, the first of the one and the last of the other."""
_MARKS: Final = (b'"result"', b'"text_delta"', b'"assistant"')


@attrs.frozen
class Unfinished:
    """What was asked last, and what had been said of the answer; `cut` says that there was more of either."""

    run: str
    prompt: str = attrs.field(repr=False)
    text: str = attrs.field(repr=False)
    cut: bool


class _Turn:
    """Adds up what is said of a turn: deltas of a block until the block comes whole."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.later: list[str] = []
        self.blocks: list[str] = []
        self.delta = ""

    def hear(self, said: Any) -> bool:
        """Take a line of the CLI; return whether a turn ends with it."""
        if not isinstance(said, dict) or said.get("parent_tool_use_id"):
            return False  # the latter is of a helper that the answer is made with
        kind = said.get("type")
        if kind == "result":
            self.prompts, self.later, self.blocks, self.delta = self.later, [], [], ""
            return True
        if kind == "assistant":
            text = "".join(_texts(said.get("message")))
            if text:
                self.blocks.append(text)
                self.delta = ""
        elif kind == "stream_event" and isinstance(event := said.get("event"), dict):
            delta = event.get("delta")
            if isinstance(delta, dict) and delta.get("type") == "text_delta":
                self.delta += str(delta.get("text"))
        return False

    def ask(self, said: Any) -> None:
        """Take what the client said; what comes during an answer is of the next turn."""
        if isinstance(said, dict) and said.get("type") == "user":
            waiting = self.later if self.blocks or self.delta else self.prompts
            waiting.append("\n".join(_texts(said.get("message"))))


def find_unfinished(run: str, prompt: str | None, parts: list[Part]) -> Unfinished | None:
    """Return the turn that a run's history ends in, None where it ends behind a result.

    `prompt` is what the run began with, of which nothing is in the parts; these may be the last of many.
    """
    turn, begun = _Turn(), not parts or parts[0].number <= 1
    turn.prompts = [prompt] if prompt else []
    for part in parts:
        for line in part.lines:
            if part.kind is PartKind.SAID:
                turn.ask(_parsed(line))
            elif part.kind is PartKind.LINES and any(mark in line for mark in _MARKS):
                begun = turn.hear(_parsed(line)) or begun
    asked = "\n".join([*turn.prompts, *turn.later])
    said = "\n".join(filter(None, [*turn.blocks, turn.delta]))
    if not asked and not said:
        return None
    cut = not begun or len(asked) > TEXT_LIMIT or len(said) > TEXT_LIMIT
    return Unfinished(run, asked[:TEXT_LIMIT], said[-TEXT_LIMIT:], cut)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _texts(message: Any) -> list[str]:
    """Return the texts of a message."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return [content]
    blocks = content if isinstance(content, list) else []
    return [str(block.get("text")) for block in blocks if isinstance(block, dict) and block.get("type") == "text"]
