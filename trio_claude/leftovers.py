"""A server's folder for its runs, and what an earlier server left: found by its lock, ended by its mark, removed.

A server holds a lock on its folder for as long as it lives; a folder whose lock can be had is a dead server's. This
module must never touch a folder of another user or of a living server, nor a process without a dead server's mark.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from .containment import kill_marked
from .errors import ConfigError
from .threads import do_apart

PREFIX = "tcl-"
LOCK = "lock"
LIFTED = ".lifted-"
"""What the name begins with of a folder that is being removed, and was further below."""
TMP_LIMIT = 60
"""Bytes of a run's TMPDIR: the CLI makes sockets below it, whose paths Linux takes to 107 bytes."""
LONGEST = TMP_LIMIT - len("/tcl-xxxxxxxx/") - 12
"""Bytes of the folder for temporary folders, below which a server has its own and there each run has one."""
ELSEWHERE = f"TMPDIR names another place, of at most {LONGEST} bytes"
UNBORN = 60.0
"""Seconds in which a server locks a folder that it has made."""
SWEEPS = 100
"""Looks for a dead server's processes, some milliseconds apart, until one finds none."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WAY = _FOLDER | getattr(os, "O_PATH", 0)


@attrs.frozen
class Home:
    """A server's folder, the id by which its runs are marked, and the ids of the dead servers that were found."""

    folder: Path
    server: str
    dead: tuple[str, ...]


@asynccontextmanager
async def open_home() -> AsyncIterator[Home]:
    """End and remove what dead servers left, then make a server's folder, and remove it in the end."""
    dead = tuple(await sweep(Path(_short_tmp())))
    async with open_held_folder() as folder:
        yield Home(folder, folder.name.removeprefix(PREFIX), dead)


@asynccontextmanager
async def open_held_folder() -> AsyncIterator[Path]:
    """Make a folder and lock it, and remove it in the end; where this process dies, a later sweep does.

    Raises `ConfigError` where it can't be made.
    """
    with contextlib.ExitStack() as held:
        try:
            folder = _make_held(Path(_short_tmp()), held)
        except OSError as error:
            raise ConfigError(f"no folder for temporary files: {error}; {ELSEWHERE}") from error
        try:
            yield folder
        finally:
            with trio.CancelScope(shield=True):
                await remove(folder)


def _make_held(root: Path, held: contextlib.ExitStack) -> Path:
    """Make a folder that is locked, and so is left alone by other servers' sweeps and by systemd-tmpfiles.

    The locks are let go of with `held`. Raises OSError, and then leaves nothing behind.
    """
    hidden = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=root))
    try:
        lock = os.open(hidden / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        held.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # before another server's sweep can see the folder
        whole = os.open(hidden, _FOLDER)
        held.callback(os.close, whole)
        with contextlib.suppress(OSError):  # not every file system locks folders
            fcntl.flock(whole, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return hidden.rename(root / hidden.name[1:])
    except OSError:
        remove_tree(hidden)
        raise


async def sweep(root: Path) -> list[str]:
    """End the processes and remove the folders of servers that are dead; return these servers' ids."""
    _remove_unborn(root)
    swept = []
    for folder in filter(_is_named_so, root.glob(f"{PREFIX}*")):
        with contextlib.suppress(OSError):
            if folder.lstat().st_uid == os.getuid() and not _locked(folder):
                swept.append(folder.name.removeprefix(PREFIX))
    for server in swept:
        for _ in range(SWEEPS):
            if not kill_marked(f"{server}:"):
                break
            await trio.sleep(0.005)
        await remove(root / f"{PREFIX}{server}")
    return swept


def _remove_unborn(root: Path) -> None:
    """Remove the folders of servers that died before theirs had its name; at most a lock is in one."""
    for folder in root.glob(f".{PREFIX}*"):
        with contextlib.suppress(OSError):
            facts = folder.lstat()
            if _is_named_so(folder) and facts.st_uid == os.getuid() and facts.st_mtime < time.time() - UNBORN:
                if os.path.lexists(folder / LOCK) and not _locked(folder):
                    (folder / LOCK).unlink()
                folder.rmdir()


def _is_named_so(folder: Path) -> bool:
    """Return whether a folder has a name as `open_home` makes it, hidden or not."""
    return re.fullmatch(rf"\.?{PREFIX}[a-z0-9_]{{8}}", folder.name) is not None


def _locked(folder: Path) -> bool:
    """Return whether a living server holds a folder. Raises OSError where it is none of ours."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _short_tmp() -> str:
    """Return the folder for temporary folders; /tmp where the system's own makes paths too long for sockets.

    No link is on the way there unless that is what makes it short: a sandbox may have the link, and not where it leads.
    Raises `ConfigError` where nothing can be written in any.
    """
    try:
        usual = tempfile.gettempdir()
    except OSError as error:
        raise ConfigError(f"no folder for temporary files: {error}; {ELSEWHERE}") from error
    places = (os.path.realpath(usual), usual)
    return next((place for place in places if len(os.fsencode(place)) <= LONGEST), "/tmp")  # noqa: S108 - ours alone


def remove_empty(folder: str) -> bool:
    """Remove a folder, if it is there, that holds at most an empty list of sessions; return whether it is gone."""
    with contextlib.suppress(OSError):
        os.rmdir(f"{folder}/sessions")
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


async def remove(folder: Path) -> None:
    """Remove a folder and all that is in it, in a thread."""
    await do_apart(functools.partial(remove_tree, folder))


def remove_tree(folder: Path) -> None:
    """Remove a folder and all that is in it, its lock last, so that a sweep finds what could not be removed. Blocks.

    It may be nested deeper than Python goes, and its owner may have no rights in it. No link is followed.
    """
    try:
        with _opened(str(folder)) as inner:
            _empty(inner)
        folder.rmdir()
    except OSError:
        _unlink(str(folder))


def _empty(top: int) -> None:
    """Remove what is in a folder. A folder in a folder is first moved up to this one, so that no path gets long."""
    waiting = [name for name in os.listdir(top) if name != LOCK]
    while waiting:
        name = waiting.pop()
        if _unlink(name, top):
            continue
        with contextlib.suppress(OSError):
            with _opened(name, top) as folder:
                waiting += _lift(folder, top)
            os.rmdir(name, dir_fd=top)
    if os.listdir(top) == [LOCK]:
        _unlink(LOCK, top)


def _lift(folder: int, top: int) -> list[str]:
    """Remove the files in a folder, and move the folders in it to another; return their names there."""
    lifted = []
    for name in os.listdir(folder):
        if _unlink(name, folder):
            continue
        above = f"{LIFTED}{secrets.token_hex(8)}"
        with contextlib.suppress(OSError):
            with _opened(name, folder):  # only one that can be written in is moved
                os.rename(name, above, src_dir_fd=folder, dst_dir_fd=top)
            lifted.append(above)
    return lifted


def _unlink(name: str, folder: int | None = None) -> bool:
    """Remove what is no folder; return whether it is gone."""
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _opened(name: str, folder: int | None = None) -> Iterator[int]:
    """Yield a descriptor of a folder, and let its owner in. Raises OSError, also where it is a link."""
    way = os.open(name, _WAY, dir_fd=folder)
    try:
        with contextlib.suppress(OSError):
            Path(f"/proc/self/fd/{way}").chmod(0o700)
        inner = os.open(".", _FOLDER, dir_fd=way)
    finally:
        os.close(way)
    try:
        yield inner
    finally:
        os.close(inner)
