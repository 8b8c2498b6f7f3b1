"""A run's history as Markdown that a person reads. Pure.

Rule: what anybody said stands in a fence that is longer than any in it, or in a code span of the same kind, with its
control characters shown; so nothing that is said can end its block, be markup, or reach a terminal as a sequence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from ..client import Assistant, Init, Question, Result, Unknown, User, parse_line
from .run_facts import facts, missing
from .run_sources import Entry, Run
from .words import visible

NAME_LIMIT = 100
"""Characters of a name in a heading."""
_TICKS = re.compile("`+")
_SAID = {"control_request": "Request of the client", "control_response": "Answer of the client"}
_SHOWN_UNKNOWN = ("", "assistant", "user", "result")
"""Types of lines that are shown as they are where they are not understood; the CLI's other chatter is left out."""


def transcript(run: Run, entries: Iterable[Entry], now: float) -> Iterator[str]:
    """Yield the Markdown of a run, piece by piece."""
    yield f"# Run {span(str(run.get('id')))}\n\n"
    yield "".join(f"- {name}: {span(text)}\n" for name, text in facts(run, now)[1:]) + "\n"
    yield block("Options", _json(run["options"]), "json") if run.get("options") else ""
    yield block("Error", str(run["error"])) if run.get("error") else ""
    options = run.get("options")
    scribe = _Scribe(resumed=isinstance(options, dict) and bool(options.get("resume")))
    if run.get("prompt") is not None:
        yield scribe.prompt(run["prompt"])
    for complaint, group in groupby(entries, lambda entry: "stderr" in entry):
        if complaint:
            yield block("stderr", "\n".join(entry["stderr"] for entry in group))
            continue
        for entry in group:
            yield from scribe.take(entry)
    yield f"**{text}**\n" if (text := missing(run)) else ""


def fence(text: str, info: str = "") -> str:
    """Return text in a fence that nothing in it can end."""
    body = visible(text)
    ticks = "`" * max(3, _longest(body) + 1)
    return f"{ticks}{info}\n{body}{'' if body.endswith(chr(10)) or not body else chr(10)}{ticks}\n\n"


def span(text: str) -> str:
    """Return text as code on one line, which nothing in it can end."""
    body = " ".join(visible(text).split()) or "-"
    ticks = "`" * (_longest(body) + 1)
    space = " " if "`" in (body[0], body[-1]) else ""
    return f"{ticks}{space}{body}{space}{ticks}"


def block(title: str, text: str, info: str = "") -> str:
    """Return a heading with a fence below."""
    return f"### {title}\n\n{fence(text, info)}"


def _longest(text: str) -> int:
    return max(map(len, _TICKS.findall(text)), default=0)


def _json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, indent=2)
    except RecursionError:
        return "(nested too deeply to be shown)"


def _words(content: object) -> str:
    """Return the text of a message's content; of what is no text its kind."""
    if isinstance(content, str):
        return content
    return "\n".join(map(_piece, content)) if isinstance(content, list) else _json(content)


def _piece(part: object) -> str:
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return str(part["text"])
    return f"({part.get('type')})" if isinstance(part, dict) and "source" in part else _json(part)


class _Scribe:
    """Writes one entry after the other."""

    def __init__(self, *, resumed: bool) -> None:
        self._number = 0
        self._prompts = 0
        self._spent: float | None = None if resumed else 0.0
        self._model = ""
        self._answer = ""

    def take(self, entry: Entry) -> Iterator[str]:
        """Yield what an entry comes to."""
        if "in" in entry:
            yield self._heard(entry["in"])
            return
        number = entry.get("n")
        if isinstance(number, int):
            if number > self._number + 1:
                yield f"**Lines {self._number + 1} to {number - 1} are missing.**\n\n"
            self._number = number
        yield from self._line(entry["line"])

    def prompt(self, content: object) -> str:
        """Return a prompt of the client."""
        self._prompts += 1
        return f"## Prompt {self._prompts}\n\n{fence(_words(content))}"

    def _heard(self, text: str) -> str:
        """Return what the client said: a prompt, or something that is no part of the talk."""
        try:
            said = json.loads(text)
        except (ValueError, RecursionError):
            return block("Message of the client", text)
        message = said.get("message") if isinstance(said, dict) and said.get("type") == "user" else None
        if isinstance(message, dict):
            return self.prompt(message.get("content"))
        kind = str(said.get("type")) if isinstance(said, dict) else ""
        return block(_SAID.get(kind, "Message of the client"), _json(said), "json")

    def _line(self, text: str) -> Iterator[str]:
        """Yield what a line of the CLI comes to."""
        match parse_line(text):
            case Init(model=model) if model != self._model:
                self._model = model
                yield f"Model {span(model)}\n\n"
            case Assistant(text=answer, blocks=blocks):
                self._answer = answer or self._answer
                yield from map(_spoken, blocks)
            case User(blocks=blocks):
                yield from map(_returned, blocks)
            case Question(subtype="can_use_tool", said=said):
                yield block(f"Approval asked for {_name(said.get('tool_name'))}", _json(said.get("input")), "json")
            case Result() as result:
                yield self._result(result)
            case Unknown(type=kind) if kind in _SHOWN_UNKNOWN:
                yield block("Line", text)

    def _result(self, result: Result) -> str:
        """Return the end of a turn; its text only where it is not what was said last."""
        whole = " for the session so far" if self._spent is None else ""  # of what was before nobody tells
        cost, self._spent = result.usd - (self._spent or 0.0), result.usd
        used = f"{result.input_tokens} tokens in, {result.output_tokens} out, {result.seconds:.1f} s"
        told = f"${cost:.4f}{whole}, {used}"
        text = result.error or ("" if result.text == self._answer else result.text)
        body = fence(text) if text else ""
        return f"### {'Failed' if result.error else 'Result'}\n\n{body}{told}\n\n"


def _spoken(part: dict[str, Any]) -> str:
    """Return a block of an answer."""
    match part.get("type"):
        case "text":
            return block("Assistant", str(part.get("text", "")), "markdown")
        case "thinking":
            return block("Thinking", str(part.get("thinking", "")))
        case "tool_use":
            return block(f"Tool {_name(part.get('name'))}", _json(part.get("input")), "json")
    return block("Assistant", _json(part), "json")


def _returned(part: dict[str, Any]) -> str:
    """Return a block of what the model hears beside the client."""
    if part.get("type") != "tool_result":
        return block("Told to the model", _words([part]))
    return block("Tool failed" if part.get("is_error") else "Tool result", _words(part.get("content")))


def _name(value: object) -> str:
    return span(str(value)[:NAME_LIMIT])
