"""Where the runs of each identity live: a home, the CLI's settings and transcripts, a working directory.

Rule 1: identities share nothing here; what one leaves, another never finds. Rule 2: a folder's name is a hash, so that
no name of an identity is ever a path. Rule 3: a run can put links where it may write, so nothing there is followed,
made or given away by a path: only by descriptors, one step at a time.

Where runs have a mount namespace they see their own quarters in place of everybody's; elsewhere the folders are apart,
and nothing keeps a hostile run from looking.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import pwd
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from .errors import ConfigError

HOME, CONFIG, WORK = "home", "config", "work"
LEAVES = (HOME, CONFIG, WORK)
SESSIONS = "sessions"
"""The folder in which CLIs list themselves by pid, below the CLI's configuration."""
OPERATORS = ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "CLAUDE_CONFIG_DIR", "HOME")
"""Variables that lead to the operator's own files."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def home_of(environ: Mapping[str, str], user: tuple[int, int] | None) -> str:
    """Return the home that a program of `user` finds: as HOME names it, else as the system does."""
    if "HOME" in environ:
        return environ["HOME"]
    try:
        return pwd.getpwuid(user[0] if user else os.getuid()).pw_dir
    except KeyError:
        return "/"


def state_folder(configured: str, environ: Mapping[str, str]) -> Path:
    """Return where a server keeps things: as configured, else by the XDG rules, which pass over a relative path."""
    if configured:
        return Path(configured).absolute()
    home = environ.get("HOME") or home_of({}, None)
    named = Path(environ.get("XDG_STATE_HOME", ""))
    return (named if named.is_absolute() else Path(home, ".local/state")) / "trio-claude"


def journal_file(setting: str, state: str, environ: Mapping[str, str]) -> Path:
    """Return the file of a journal that outlives its server: as the setting names it, else in the state folder."""
    path = setting.partition(":")[2]
    return Path(path).absolute() if path else state_folder(state, environ) / "journal.db"


@contextlib.contextmanager
def open_folder(path: str, *steps: str, owner: tuple[int, int] | None = None, make: bool = False) -> Iterator[int]:
    """Yield a descriptor of the folder at `path` and then `steps` below it, no link followed among these.

    With `make` what is not there is made, and given to `owner`. Raises OSError, ELOOP or ENOTDIR for a link.
    """
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for step in steps:
            made = make and _make(step, folder)
            below = os.open(step, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = below
            if made and owner:
                os.fchown(folder, *owner)
        yield folder
    finally:
        os.close(folder)


def check_folder(field: str, folder: str, *, entered: bool) -> None:
    """Raise `ConfigError` where runs can't work in a setting's folder; `entered`: this process must get in. Blocks."""
    why = "is no folder"
    try:
        if Path(folder).is_dir():
            if not entered or os.access(folder, os.X_OK):
                return
            why = f"can't be entered ({os.strerror(errno.EACCES)})"
    except OSError as error:
        why = f"can't be entered ({error.strerror})"
    raise ConfigError(f"{field} {why}: {folder}; --{field} names another")


def make_theirs(folder: Path, owner: tuple[int, int]) -> None:
    """Make a folder, and those that it is to be in, and give them to `owner`, where the one that is there is theirs.

    Another's may be where a link of theirs leads to, and nothing is made there. Raises OSError.
    """
    above = next(one for one in folder.parents if one.is_dir())
    with open_folder(str(above)) as inner:
        if os.fstat(inner).st_uid == owner[0]:
            with open_folder(f"/proc/self/fd/{inner}", *folder.relative_to(above).parts, owner=owner, make=True):
                pass


def unlist(folder: int, pid: int, owner: tuple[int, int] | None = None) -> None:
    """Remove what a CLI has left in a list of sessions, with `owner` only what is theirs: a link may lead to another's.

    Raises OSError.
    """
    for name in os.listdir(folder):
        if not name.startswith(f"{pid}."):
            continue
        if owner is None or os.stat(name, dir_fd=folder, follow_symlinks=False).st_uid == owner[0]:
            os.unlink(name, dir_fd=folder)


@contextlib.contextmanager
def open_step(folder: int, name: str) -> Iterator[int]:
    """Yield a descriptor of a folder in another, which is no link. Raises OSError."""
    below = os.open(name, _FOLDER, dir_fd=folder)
    try:
        yield below
    finally:
        os.close(below)


def _make(name: str, folder: int) -> bool:
    """Make a folder, unless it is there; return whether it was made. Raises OSError."""
    try:
        os.mkdir(name, 0o700, dir_fd=folder)
    except FileExistsError:
        return False
    return True


@attrs.frozen
class Quarters:
    """One run's: `real` is where they are, `seen` is where the run sees them."""

    real: str
    seen: str

    @property
    def env(self) -> dict[str, str]:
        """Return the variables that lead a CLI here."""
        return {"HOME": f"{self.seen}/{HOME}", "CLAUDE_CONFIG_DIR": f"{self.seen}/{CONFIG}"}

    @property
    def cwd(self) -> str:
        """Return the working directory, as the run sees it."""
        return f"{self.seen}/{WORK}"

    @property
    def sessions(self) -> str:
        """Return where the run's CLI lists itself, as the run sees it."""
        return f"{self.seen}/{CONFIG}/{SESSIONS}"

    def make(self, owner: tuple[int, int] | None, workspace: str | None) -> None:
        """Make the folders, and the workspace. Raises OSError.

        The folder that holds them stays the server's, so that no run of another user can move them.
        """
        root, _, name = self.real.rpartition("/")
        with open_folder(root, name, make=True) as folder:
            if owner:
                os.fchmod(folder, 0o711)
        for steps in ((HOME,), (CONFIG, SESSIONS), (WORK,), *(((WORK, workspace),) if workspace is not None else ())):
            with open_folder(self.real, *steps, owner=owner, make=True) as folder:
                self._check_owner(os.fstat(folder).st_uid, owner)

    def _check_owner(self, theirs: int, owner: tuple[int, int] | None) -> None:
        """Raise PermissionError where a folder is another user's than the one's whom the CLI becomes."""
        if owner and theirs != owner[0]:
            why = f"what is there is user {theirs}'s, and runs are user {owner[0]}'s; chown it, or take another --state"
            raise PermissionError(errno.EPERM, why, self.real)

    def forget(self, pid: int) -> None:
        """Remove what a CLI has left in the list of sessions."""
        with contextlib.suppress(OSError), open_folder(self.real, CONFIG, SESSIONS) as folder:
            unlist(folder, pid)


def _hand_on(folder: Path) -> None:
    """Give a folder that root has made, as by `doctor`, to the owner of the one that it is in: his server needs it."""
    if os.geteuid() == 0:
        owner = folder.parent.stat()
        os.chown(folder, owner.st_uid, owner.st_gid, follow_symlinks=False)


def is_link(error: OSError) -> bool:
    """Return whether something that should be a folder was a link."""
    return error.errno in (errno.ELOOP, errno.ENOTDIR)


@attrs.frozen
class Homes:
    """The quarters of all. `root` is a folder of the server's own; `per_run` gives each run new ones."""

    root: str
    per_run: bool

    @classmethod
    def open(cls, root: Path, *, per_run: bool, shared: bool) -> Homes:
        """Make the root, and the folder that it is in; `shared` lets another user through, whom the CLI becomes.

        Raises OSError.
        """
        rights = 0o711 if shared else 0o700
        if not root.parent.is_dir():
            root.parent.mkdir(parents=True, exist_ok=True)  # another server may start just now
            root.parent.chmod(rights)
        if not root.is_dir():
            root.mkdir(mode=0o700, exist_ok=True)
            _hand_on(root)
        try:
            root.chmod(rights)
        except PermissionError as error:
            why = f"what is there is user {root.stat().st_uid}'s, and this server is user {os.geteuid()}; chown -R it"
            raise PermissionError(errno.EPERM, why, str(root)) from error
        return cls(str(root), per_run)

    @staticmethod
    def name(who: str) -> str:
        """Return the name of the folder of an identity."""
        return hashlib.sha256(who.encode()).hexdigest()[:32]

    def quarters(self, who: str, folder: str, tmp: str, *, binds: bool) -> Quarters:
        """Return those of a run of `who`, whose own folder is `folder` and is seen as `tmp`."""
        if self.per_run:
            return Quarters(f"{folder}/own", f"{tmp}/own")
        real = f"{self.root}/{self.name(who)}"
        return Quarters(real, self.root if binds else real)

    def binds(self, quarters: Quarters) -> tuple[tuple[str, str], ...]:
        """Return what puts a run's quarters in place of everybody's; those in its own folder are there with that.

        Each folder is a mount of its own: the run can write in it and not move it, so no link ever stands in its place.
        """
        if self.per_run:
            return ()
        leaves = ((f"{quarters.real}/{leaf}", f"{quarters.seen}/{leaf}") for leaf in LEAVES)
        return ((quarters.real, quarters.seen), *leaves)
