"""Where the commands that talk to a server find a key: never among the arguments, which everybody can list."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..errors import ConfigError

KEY = "TRIO_CLAUDE_KEY"
_WANTED = "it takes what `trio-claude keys add` printed, or a token, on one line"


def key_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--key-file`."""
    text = f"A file with the key or token that the server wants. [default: the variable {KEY}]"
    return click.option("--key-file", type=click.Path(dir_okay=False, path_type=Path), help=text)(function)


def find_key(file: Path | None) -> str | None:
    """Return the key in a file, else the one in the environment. Raises `ConfigError`."""
    if file is None:
        key = os.environ.get(KEY, "")
        return _checked(key, KEY) if key else None
    try:
        return _checked(file.read_text().strip(), f"--key-file: {file}")
    except OSError as error:
        raise ConfigError(f"--key-file: {file} can't be read: {error.strerror}; name another, or set {KEY}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--key-file: {file} is no text; {_WANTED}") from None


def _checked(key: str, where: str) -> str:
    """Return a key that can stand in a header. Raises `ConfigError`, in whose text there is no key."""
    if not key:
        raise ConfigError(f"{where} is empty; {_WANTED}")
    if not re.fullmatch(r"[!-~]+", key):
        raise ConfigError(f"{where} has characters that no key has; {_WANTED}")
    return key
