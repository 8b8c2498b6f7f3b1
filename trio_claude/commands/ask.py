"""`trio-claude ask`."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import attrs
import click
import trio

from ..client import Answer, Assistant, ConnectFailed, Ended, Result, Unknown, ask, parse_line
from ..errors import ConfigError
from .complaints import painted, unreached
from .credentials import find_key, key_option
from .examples import examples
from .statuses import by_close
from .words import clean

RECEIPT = " process"
"""What the reason of a close has in it that tells of a run's end, which ours always does."""
NO_RUN = "it was closed without a word of a run; is there a trio-claude server at this address?"


@click.command(
    "ask", epilog=examples("trio-claude ask 'say hello'", "trio-claude ask 'list the files here' --meta TASK-1 --json")
)
@click.argument("prompt")
@click.option("--meta", default="ASK", show_default=True, help="A name for the run: capitals, digits, _ and -.")
@click.option("--url", default="http://127.0.0.1:3000", show_default=True, help="The server.")
@key_option
@click.option("--model", help="A model's name or alias.")
@click.option("--timeout", type=float, help="Seconds that the run may last.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the CLI's lines as they are, and all else as JSON on stderr."
)
def command(prompt: str, meta: str, url: str, key_file: Path | None, as_json: bool, **options: Any) -> None:
    """Send PROMPT to a server and print the answer as it comes.

    Exit status: 0 for a good end, 1 where the run failed or timed out, 2 where the server refused the message, 69 where
    it can't be reached or wants a good key, 75 where it is full or going down, 130 after Ctrl-C.
    """
    given = {name: value for name, value in options.items() if value is not None} | {"key": find_key(key_file)}
    if not math.isfinite(given.get("timeout", 0)):
        raise ConfigError(f"--timeout takes seconds, not {given['timeout']:g}")
    sys.exit(trio.run(_ask, prompt, meta, url, given, as_json))


async def _ask(prompt: str, meta: str, url: str, options: dict[str, Any], as_json: bool) -> int:
    try:
        async with ask(prompt, meta=meta, url=url, **options) as answer:
            has_result = await _print(answer, as_json)
    except ConnectFailed as error:
        return unreached(error, error.status, with_key=bool(options.get("key")))
    ended = answer.ended or Ended(1006, "the connection broke")
    if ended.ok and not has_result and RECEIPT not in ended.reason:
        ended = attrs.evolve(ended, error=NO_RUN)
    _print_end(ended, as_json)
    return by_close(ended.code, ended.error)


def _print_end(ended: Ended, as_json: bool) -> None:
    """Say how it ended, on stderr."""
    if as_json:
        click.echo(json.dumps({"code": ended.code, "reason": ended.reason, "error": ended.error}), err=True)
        return
    if ended.error:
        click.echo(f"{painted('error:', 'red', sys.stderr)} {clean(ended.error)}", err=True)
    click.echo(f"[{ended.code} {clean(ended.reason)}]", err=True)


async def _print(answer: Answer, as_json: bool) -> bool:
    """Print what comes; return whether a result was among it."""
    shown, has_result = 0, False
    async for line in answer:
        has_result = has_result or isinstance(parse_line(line), Result)
        click.echo(line if as_json else clean(readable(line)), nl=as_json)
        shown = _print_notes(answer.notes, shown, as_json)
    _print_notes(answer.notes, shown, as_json)  # what came behind the last line
    return has_result


def _print_notes(notes: list[dict[str, Any]], shown: int, as_json: bool) -> int:
    """Print those that were not shown yet; return how many have been."""
    for note in notes[shown:]:
        _print_note(note, as_json)
    return len(notes)


def _print_note(note: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(note), err=True)
        return
    text = note.get("stderr") or note.get("info", "")
    if text and not text.startswith("send {"):
        click.echo(clean(text), err=True)


def readable(line: str) -> str:
    """Return what a person wants to read of a line: the text, and each tool with its input.

    An answer that is not understood, and what is no line of the CLI's kind, is there as it is.
    """
    match parse_line(line):
        case Assistant(blocks=blocks):
            return "".join(map(_block, blocks))
        case Unknown(type="" | "assistant"):
            return f"{line}\n"
    return ""


def _block(block: dict[str, Any]) -> str:
    if block.get("type") == "text":
        return f"{block.get('text', '')}\n"
    if block.get("type") == "tool_use":
        return f"[{block.get('name')}] {json.dumps(block.get('input'), ensure_ascii=False)}\n"
    return ""
