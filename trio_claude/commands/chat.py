"""`trio-claude chat`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import trio

from ..client import ConnectFailed, Refused, open_session
from ..errors import Draining, NotAllowed
from .complaints import complain, painted, unreached
from .credentials import find_key, key_option
from .examples import examples
from .statuses import Status, by_close
from .talking import Chat
from .words import clean


@click.command(
    "chat", epilog=examples("trio-claude chat", "trio-claude chat --resume 01234567-89ab-cdef-0123-456789abcdef")
)
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
        return unreached(error, error.status, with_key=bool(options.get("key")))
    except (Refused, ConnectionError) as error:
        if isinstance(error, Refused) and error.code == NotAllowed.code:  # a viewer, whom `ask` finds the door shut to
            return unreached(clean(str(error)), 403, with_key=bool(options.get("key")))
        complain(clean(str(error)))
        later = isinstance(error, Refused) and (error.retry_after is not None or error.code == Draining.code)
        return Status.LATER if later else Status.REFUSED
    ended = session.ended
    if ended is None or chat.ended_well or (ended.reason == "stopped" and ended.error is None):
        return Status.OK
    if told := ended.error or ("" if ended.reason else "the connection to the server broke"):
        click.echo(f"{painted('error:', 'red', sys.stderr)} {clean(told)}", err=True)
    return by_close(ended.code, ended.error)
