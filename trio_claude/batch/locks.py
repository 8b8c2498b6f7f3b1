"""One batch at a time on a file of results and its manifest: two would double results, or lose them.

Rule 1: the lock is the system's, so it ends with the process that has it, however that ends. Rule 2: the file that it
is on is removed by who has the lock, and nobody else; a file that is not empty is somebody else's, and stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .files import Unwritable, beside, is_plain

_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def lock_of(out: Path) -> Path:
    """Return the file that the lock of a file of results is on."""
    return beside(out, ".lock")


@contextmanager
def alone(*files: Path) -> Iterator[None]:
    """Keep every other batch from files of results; pipes and devices have no lock. Raises `Unwritable`."""
    places = {lock_of(file): file for file in files if is_plain(file)}
    with contextlib.ExitStack() as held:
        for place, file in places.items():
            held.callback(_leave, place, _take(file, place))
        yield


def _take(out: Path, place: Path) -> int:
    """Return a descriptor that has the lock, on the file that is at `place`. Raises `Unwritable`."""
    while True:
        try:
            descriptor = os.open(place, _FLAGS, 0o666)
        except OSError as error:
            raise Unwritable(f"{out}: {error.strerror} ({place.name})") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            why = (
                f"another batch writes to it and has {place}" if isinstance(error, BlockingIOError) else error.strerror
            )
            raise Unwritable(f"{out}: {why}") from error
        if _is_at(place, descriptor):
            return descriptor
        os.close(descriptor)  # who had it has removed it meanwhile


def _leave(place: Path, descriptor: int) -> None:
    with contextlib.suppress(OSError):
        if _is_at(place, descriptor) and not os.fstat(descriptor).st_size:
            place.unlink()
    os.close(descriptor)


def _is_at(place: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(place.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
