"""The scripts that Redis runs: each a file of Lua in the folder `scripts`, read once.

A line `--: use NAME` has what NAME.lua holds in its place, once in a script, so that what two scripts do alike stands
once. This module must never ask Redis, and never hold a line of Lua.
"""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path
from typing import Final

import attrs

FOLDER: Final = Path(__file__).with_name("scripts")
_USE: Final = re.compile(r"^--: use ([a-z_]+)\n", re.MULTILINE)


@attrs.frozen
class Script:
    """One script; `sha` is the name under which Redis knows it once it has been told."""

    name: str
    text: str = attrs.field(repr=False)
    sha: str


@functools.cache
def load(name: str) -> Script:
    """Return the script in NAME.lua, with what it uses."""
    text = _read(name, set())
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def _read(name: str, used: set[str]) -> str:
    """Return what a file holds, with what it uses that is not `used` yet."""
    if name in used:
        return ""
    used.add(name)
    text = (FOLDER / f"{name}.lua").read_text(encoding="utf-8")
    return _USE.sub(lambda found: _read(found[1], used), text)
