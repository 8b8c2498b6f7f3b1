"""The CLI's lines as values; what is not known comes as `Unknown`, never as an error."""

from __future__ import annotations

import json
from typing import Any, TypeAlias

import attrs

from ..figures import counted


@attrs.frozen
class Init:
    """A turn begins: the CLI's session, the model, the tools."""

    session: str
    model: str
    tools: tuple[str, ...]
    said: dict[str, Any] = attrs.field(repr=False)


@attrs.frozen
class Assistant:
    """A finished piece of the answer: content blocks as the API has them, and their text."""

    text: str
    blocks: tuple[dict[str, Any], ...]
    aborted: bool
    said: dict[str, Any] = attrs.field(repr=False)


@attrs.frozen
class User:
    """What the model hears beside the client: the results of tools."""

    blocks: tuple[dict[str, Any], ...]
    said: dict[str, Any] = attrs.field(repr=False)


@attrs.frozen
class Delta:
    """A piece of text or of thinking as it comes; only with the option `partial`."""

    text: str
    kind: str
    said: dict[str, Any] = attrs.field(repr=False)


@attrs.frozen
class Result:
    """The end of a turn. `usd` is what the session has cost so far, in US dollars; `error` is None after a good end.

    Tokens are those since the result before, of all models, so that an agent's are among them.
    """

    text: str
    error: str | None
    usd: float
    input_tokens: int
    output_tokens: int
    seconds: float
    said: dict[str, Any] = attrs.field(repr=False)


@attrs.frozen
class Question:
    """The CLI asks the client: for an approval (`can_use_tool`), a hook's output, or a tool's."""

    id: str
    subtype: str
    said: dict[str, Any] = attrs.field(repr=False)


@attrs.frozen
class Unknown:
    """Any other line."""

    type: str
    said: dict[str, Any] = attrs.field(repr=False)


Line: TypeAlias = Init | Assistant | User | Delta | Result | Question | Unknown


def parse_line(text: str) -> Line:
    """Return a line as a value."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return Unknown("", {"text": text})
    if not isinstance(said, dict):
        return Unknown("", {"text": text})
    kind = str(said.get("type", ""))
    try:
        return _KINDS[kind](said) if kind in _KINDS else Unknown(kind, said)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return Unknown(kind, said)


def _system(said: dict[str, Any]) -> Line:
    if said.get("subtype") != "init":
        return Unknown("system", said)
    return Init(str(said["session_id"]), str(said["model"]), tuple(map(str, said.get("tools", ()))), said)


def _blocks(said: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    content = said["message"]["content"]
    if isinstance(content, str):
        return ({"type": "text", "text": content},)
    return tuple(block for block in content if isinstance(block, dict))


def _assistant(said: dict[str, Any]) -> Line:
    blocks = _blocks(said)
    text = "".join(block["text"] for block in blocks if block.get("type") == "text")
    return Assistant(text, blocks, bool(said.get("aborted")), said)


def _user(said: dict[str, Any]) -> Line:
    return User(_blocks(said), said)


def _delta(said: dict[str, Any]) -> Line:
    delta = said["event"]["delta"]
    kind = {"text_delta": "text", "thinking_delta": "thinking"}[delta["type"]]
    text = delta[kind]
    return Delta(text, kind, said) if isinstance(text, str) else Unknown("stream_event", said)


def _result(said: dict[str, Any]) -> Line:
    text, errors = str(said.get("result") or ""), said.get("errors")
    first = errors[0] if isinstance(errors, list) and errors else said.get("subtype")
    return Result(
        text=text,
        error=str(text or first) if said.get("is_error") else None,
        usd=counted(said.get("total_cost_usd")),
        input_tokens=_used(said, "inputTokens", "input_tokens"),
        output_tokens=_used(said, "outputTokens", "output_tokens"),
        seconds=counted(said.get("duration_ms")) / 1000,
        said=said,
    )


def _used(said: dict[str, Any], by_model: str, by_turn: str) -> int:
    """Return the tokens of a kind; an older CLI tells only those of the turn, without its agents'."""
    models, usage = said.get("model_usage_since_last_result"), said.get("usage") or {}
    if not isinstance(models, dict):
        return int(counted(usage.get(by_turn)))
    return int(sum(counted(used.get(by_model)) for used in models.values() if isinstance(used, dict)))


def _question(said: dict[str, Any]) -> Line:
    return Question(str(said["request_id"]), str(said["request"]["subtype"]), said["request"])


_KINDS = {
    "system": _system,
    "assistant": _assistant,
    "user": _user,
    "stream_event": _delta,
    "result": _result,
    "control_request": _question,
}
