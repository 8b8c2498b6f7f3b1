"""Where the CLI keeps what is its own: settings, transcripts, login, and the list of those that run.

This module must never read what is kept there, nor write over what is there already.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from .quarters import home_of, make_theirs, open_folder


def cli_state(environ: Mapping[str, str], user: tuple[int, int] | None) -> tuple[str, ...]:
    """Return where the CLI keeps its settings, transcripts and login."""
    if folder := environ.get("CLAUDE_CONFIG_DIR"):
        return (folder,)
    home = home_of(environ, user)
    return (f"{home}/.claude", f"{home}/.claude.json")


def is_folder(path: str) -> bool:
    """Return whether there is a folder, and no link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def end_of(path: str) -> str:
    """Return where a link leads, or what is none, or leads nowhere."""
    try:
        return str(Path(path).resolve(strict=True)) if Path(path).is_symlink() else path
    except (OSError, RuntimeError):  # of links that lead round in a circle
        return path


def make_sessions(state: str, user: tuple[int, int] | None) -> str:
    """Make the folder in which CLIs list themselves, the CLI's user's in a home of theirs; return where it really is.

    Empty where the CLI can't write there either.
    """
    folder = Path(state) / "sessions"
    try:
        if user and not folder.is_dir():
            make_theirs(folder, user)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return ""
    return str(folder.resolve())


def make_settings(file: Path, user: tuple[int, int] | None) -> None:
    """Make the CLI's file of settings, which it can't make by itself where it sees nothing else of its home."""
    with contextlib.suppress(OSError), open_folder(str(file.parent)) as home:
        if user and os.fstat(home).st_uid != user[0]:
            return
        made = os.open(file.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=home)
        try:
            os.write(made, b"{}\n")
            if user:
                os.fchown(made, *user)
        finally:
            os.close(made)
