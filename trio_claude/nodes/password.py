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
        """Return what the file holds by now; where that will not do, what it held before. A pipe is read once."""
        with suppress(ConfigError, OSError):
            if self._file and self._file.is_file():
                self._known = read_password(self._file)
        return self._known


def read_password(path: Path) -> str:
    """Return the password in a file, which nobody may read who need not. Raises `ConfigError`."""
    try:
        with path.open("rb") as file:
            if _excess(file.fileno()):
                raise ConfigError(f"redis_password_file: others may use {path}; chmod 600 it, or 640 if it is not ours")
            said = file.read(LIMIT + 1)
        if len(said) > LIMIT:
            raise ConfigError(f"redis_password_file: {path} has more than {LIMIT} bytes")
        return said.decode().strip("\r\n")
    except OSError as error:
        raise ConfigError(f"redis_password_file: {path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"redis_password_file: {path} is not UTF-8") from None


def _excess(file: int) -> int:
    """Return the bits of an open file's mode that give others more than they need, 0 where there is none."""
    status = os.fstat(file)
    if os.fstatvfs(file).f_flag & os.ST_RDONLY:  # as secrets are mounted: who mounts it says who reads it
        needed = stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH
    else:  # one that is another's is read by the group
        needed = stat.S_IRGRP if status.st_uid != os.geteuid() else 0
    return status.st_mode & (stat.S_IRWXG | stat.S_IRWXO) & ~needed
