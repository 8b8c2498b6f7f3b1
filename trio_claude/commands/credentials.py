"""Where the commands that talk to a server find a key: never among the arguments, which everybody can list."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..errors import ConfigError

KEY = "TRIO_CLAUDE_KEY"


def key_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--key-file`."""
    text = f"A file with the key or token that the server wants. [default: the variable {KEY}]"
    return click.option("--key-file", type=click.Path(dir_okay=False, path_type=Path), help=text)(function)


def find_key(file: Path | None) -> str | None:
    """Return the key in a file, else the one in the environment. Raises `ConfigError`."""
    if file is None:
        return os.environ.get(KEY) or None
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--key-file: {file} can't be read: {error}") from None
