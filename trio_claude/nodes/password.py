"""The password for Redis, out of the settings or out of a file, which is read anew for each connection.

This module must never show a password, and never take one out of a file that others may read who need not.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

import attrs

from ..errors import ConfigError

LIMIT: Final = 4096
"""Bytes of the file."""


@attrs.define(eq=False)
class Password:
    """What Redis is told, None for nothing. Raises `ConfigError` where there is a file that will not do."""

    _known: str | None = attrs.field(repr=False)
    _file: Path | None = None

    def __attrs_post_init__(self) -> None:
        if self._file:
            self._known = read_password(self._file)

    def now(self) -> str | None:
        """Return what the file holds by now; where that will not do, what it held before."""
        if self._file:
            with suppress(ConfigError):
                self._known = read_password(self._file)
        return self._known


def read_password(path: Path) -> str:
    """Return the password in a file, which only its owner may read. Raises `ConfigError`."""
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise ConfigError(f"redis_password_file: others than its owner may use {path}; chmod 600 it")
            said = file.read(LIMIT + 1)
        if len(said) > LIMIT:
            raise ConfigError(f"redis_password_file: {path} has more than {LIMIT} bytes")
        return said.decode().strip("\r\n")
    except OSError as error:
        raise ConfigError(f"redis_password_file: {path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"redis_password_file: {path} is not UTF-8") from None
