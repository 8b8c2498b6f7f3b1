"""How a command says what went wrong: one line on stderr, with what can be done about it; colours on terminals only.

This module must never print a key, nor colour what goes to a file or a pipe.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Final, TextIO

import click

from .credentials import KEY
from .statuses import Status

NOBODY: Final = "is `trio-claude serve` running? --url names another server"
_NEXT: Final = {
    403: "its operator says who may come in, by allow_host, allow_origin and the role of a key",
    404: "--url takes the address that `trio-claude serve` prints",
    429: "try again later",
    503: "try again later",
}
"""What to do by the HTTP status of a refusal."""
_LATER: Final = (429, 503)


def complain(error: object) -> None:
    """Say what went wrong."""
    tell(f"{painted('trio-claude:', 'red', sys.stderr)} {error}")


def tell(text: str, *, err: bool = True) -> None:
    """Say something on stderr, else on stdout; where nobody hears it, as where a terminal went, that ends nothing."""
    try:
        click.echo(text, err=err)
    except OSError:
        with contextlib.suppress(OSError):  # what it could not take would be tried again at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), (sys.stderr if err else sys.stdout).fileno())


def next_step(status: int | None, *, with_key: bool) -> str:
    """Return what to do where a server was not reached (no status) or refused with an HTTP status; maybe nothing."""
    if status is None:
        return NOBODY
    if status == 401 and with_key:
        return "the one that was sent is not known there, or not any more; `trio-claude keys add` makes one"
    if status == 401:
        return f"name its file with --key-file, or set {KEY}"
    return _NEXT.get(status, "")


def unreached(error: object, status: int | None, *, with_key: bool) -> Status:
    """Say that a server was not reached or refused, and what to do; return the exit status."""
    hint = next_step(status, with_key=with_key)
    complain(f"{error}; {hint}" if hint else error)
    return Status.LATER if status in _LATER else Status.UNREACHABLE


def painted(text: str, colour: str, stream: TextIO) -> str:
    """Return text in a colour where a stream takes colours."""
    return click.style(text, fg=colour) if takes_colours(stream) else text


def takes_colours(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that takes colours."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
