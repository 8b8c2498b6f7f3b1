"""`trio-claude chat`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import trio

from ..client import ConnectFailed, Refused, open_session
from .ask import EXIT_STATUSES, UNREACHABLE
from .credentials import find_key, key_option
from .talking import Chat

EXAMPLES = r"""Examples:
  trio-claude chat
  trio-claude chat --resume 01234567-89ab-cdef-0123-456789abcdef"""


@click.command("chat", epilog=f"\b\n{EXAMPLES}")
@click.option("--meta", default="CHAT", show_default=True, help="A name for the run: capitals, digits, _ and -.")
@click.option("--url", default="http://127.0.0.1:3000", show_default=True, help="The server.")
@key_option
@click.option("--model", help="A model's name or alias.")
@click.option("--resume", help="The id of a session to go on with.")
def command(meta: str, url: str, key_file: Path | None, **options: Any) -> None:
    """Talk to the CLI on a server.

    Ctrl-C interrupts the turn, /model NAME changes the model, /quit or Ctrl-D ends. What a tool may do is asked for.
    Exit statuses are those of `ask`.
    """
    given = {name: value for name, value in options.items() if value is not None} | {"key": find_key(key_file)}
    sys.exit(trio.run(_chat, meta, url, given))


async def _chat(meta: str, url: str, options: dict[str, Any]) -> int:
    chat = Chat()
    try:
        async with open_session(
            meta=meta, url=url, on_approval=chat.decide, on_event=chat.event, partial=True, **options
        ) as session:
            await chat.run(session)
    except ConnectFailed as error:
        click.echo(f"trio-claude: {error}; is `trio-claude serve` running?", err=True)
        return UNREACHABLE
    except (Refused, ConnectionError) as error:
        click.echo(f"trio-claude: {error}", err=True)
        return 75 if isinstance(error, Refused) and error.retry_after is not None else 2
    ended = session.ended
    if ended is None or ended.reason == "stopped":
        return 0
    if ended.error:
        click.echo(f"error: {ended.error}", err=True)
    return EXIT_STATUSES.get(ended.code, 1)
