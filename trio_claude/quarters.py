"""Where the runs of each identity live: a home, the CLI's settings and transcripts, a working directory.

Rule 1: identities share nothing here; what one leaves, another never finds. Rule 2: a folder's name is a hash, so that
no name of an identity is ever a path. Where runs have a mount namespace they see their own quarters in place of
everybody's; elsewhere the folders are apart, and nothing keeps a hostile run from looking.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import attrs

HOME, WORK = "home", "work"
SETTINGS = ".claude"
OPERATORS = ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "CLAUDE_CONFIG_DIR", "HOME")
"""Variables that lead to the operator's own files."""


def state_folder(configured: str, environ: Mapping[str, str]) -> Path:
    """Return where a server keeps things: as configured, else by the XDG rules."""
    if configured:
        return Path(configured).absolute()
    home = environ.get("HOME") or "/"
    return Path(environ.get("XDG_STATE_HOME") or f"{home}/.local/state") / "trio-claude"


@attrs.frozen
class Quarters:
    """One run's: `real` is where they are, `seen` is where the run sees them."""

    real: str
    seen: str

    @property
    def env(self) -> dict[str, str]:
        """Return the variables that lead a CLI here."""
        home = f"{self.seen}/{HOME}"
        return {"HOME": home, "CLAUDE_CONFIG_DIR": f"{home}/{SETTINGS}"}

    @property
    def settings(self) -> str:
        """Return where the run sees the CLI's settings and transcripts."""
        return f"{self.seen}/{HOME}/{SETTINGS}"

    @property
    def sessions(self) -> str:
        """Return where the CLIs that live here list themselves."""
        return f"{self.real}/{HOME}/{SETTINGS}/sessions"

    @property
    def folders(self) -> tuple[str, ...]:
        """Return the folders that a run finds here."""
        home = f"{self.real}/{HOME}"
        return self.real, home, f"{home}/{SETTINGS}", self.sessions, f"{self.real}/{WORK}"

    def make(self) -> None:
        """Make the folders. Raises OSError."""
        for folder in self.folders:
            Path(folder).mkdir(mode=0o700, exist_ok=True)


@attrs.frozen
class Homes:
    """The quarters of all. `root` is a folder of the server's own; `per_run` gives each run new ones."""

    root: str
    per_run: bool

    @classmethod
    def open(cls, root: Path, *, per_run: bool, shared: bool) -> Homes:
        """Make the root; `shared` lets another user through, whom the CLI becomes. Raises OSError."""
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        root.chmod(0o711 if shared else 0o700)
        return cls(str(root), per_run)

    def quarters(self, who: str, folder: str, tmp: str, *, binds: bool) -> Quarters:
        """Return those of a run of `who`, whose own folder is `folder` and is seen as `tmp`."""
        if self.per_run:
            return Quarters(f"{folder}/own", f"{tmp}/own")
        real = f"{self.root}/{hashlib.sha256(who.encode()).hexdigest()[:32]}"
        return Quarters(real, self.root if binds else real)

    def binds(self, quarters: Quarters) -> tuple[tuple[str, str], ...]:
        """Return what puts a run's quarters in place of everybody's; those in its own folder are there with that."""
        return () if self.per_run else ((quarters.real, quarters.seen),)
