"""What every containment gives: start one CLI contained, signal it, prove it gone.

This module holds the words only. It must never start or end a process.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final

import attrs
import trio

from ..errors import SpawnFailed
from ..events import Receipt

MARK = "TRIO_CLAUDE_RUN"
"""The variable, `<server>:<run>`, by which a run's processes are known again."""
START_TIMEOUT = 5.0
"""Seconds in which a guardian answers that the CLI runs; a fork and an exec take some milliseconds."""
PROOF_TIMEOUT = 5.0
"""Seconds in which a guardian proves that nothing is left; then its own parent takes over."""
FOLDERS: Final = "the run's folders can't be used"
"""How it is told that one of a job's folders can't be made."""
CWD: Final = "the working directory can't be entered"
"""How it is told that a job has no place to work in."""


@attrs.frozen(kw_only=True)
class Job:
    """One CLI to start: an absolute program path first in `argv`, its whole environment, its working directory.

    `limits` holds resource limits by their names in `resource`. Whoever starts it makes the `folders` first, and may
    take away again what the run leaves empty. `binds` holds pairs of folders; where the containment has a mount
    namespace, the run sees the first of a pair in place of the second.
    """

    argv: tuple[str, ...] = attrs.field(repr=False)
    env: Mapping[str, str] = attrs.field(repr=False)
    cwd: str
    limits: Mapping[str, int] = attrs.Factory(dict)
    folders: tuple[str, ...] = ()
    binds: tuple[tuple[str, str], ...] = ()
    user: tuple[int, int] | None = None
    """The user and group that the CLI becomes; only root can say so."""
    writable: tuple[str, ...] = ()
    """Where a run may write; only a sandbox keeps it to that."""
    cgroup: str | None = None
    """The folder of the control group that the CLI joins before it is the CLI."""
    nice: int = 0
    """By how much the run yields the processors to the server and its guardians, as in nice(1)."""
    depth: int = 0
    """How many processes of a wrapper stand between the one that is started and the CLI."""


Told = Callable[[Receipt], None]


def forget(_receipt: Receipt) -> None:
    """Leave a receipt unread."""


class BrokenStart(SpawnFailed):
    """A CLI whose start was begun and came to nothing; `receipt` says what was counted when that was ended."""

    def __init__(self, told: str, receipt: Receipt) -> None:
        super().__init__(told)
        self.receipt = receipt


class Contained(abc.ABC):
    """A CLI that runs, and whatever it has started since.

    Resource handling: owns the three pipes, which are closed when the context that gave it is left; the processes are
    ended then at the latest. Error handling: reading and writing raise what Trio's streams raise.
    """

    pid: int
    stdin: trio.abc.SendStream
    stdout: trio.abc.ReceiveStream
    stderr: trio.abc.ReceiveStream

    status: int | None
    """The CLI's exit status once it is known, negative for a signal."""

    @abc.abstractmethod
    async def wait_exit(self) -> int:
        """Wait for the CLI's own end; return its exit status, negative for a signal."""

    def feed(self, data: bytes) -> bytes:
        """Write to stdin what it takes at once, and close it if that was all; return the rest."""
        return data

    @property
    @abc.abstractmethod
    def alone(self) -> bool:
        """Whether the CLI left no descendant when it ended, so that its pipes end by themselves."""

    @abc.abstractmethod
    async def wait_empty(self) -> None:
        """Wait until nothing of the tree is left, or can be found, though nobody has ended it."""

    @property
    @abc.abstractmethod
    def quiet(self) -> bool:
        """Whether the CLI lives and has said nothing on stdout that was not read."""

    @abc.abstractmethod
    async def wait_stir(self) -> None:
        """Wait until the CLI says something on stdout or ends."""

    @abc.abstractmethod
    def send_signal(self, number: int) -> None:
        """Send a signal to the CLI alone; nothing happens if it has ended."""

    @abc.abstractmethod
    def end(self) -> None:
        """Begin to end the whole tree, now. Returns at once and may be called again."""

    @abc.abstractmethod
    async def wait_gone(self) -> Receipt:
        """Wait until the tree is proven gone, or until no proof can be had; never longer than its bounds.

        A cancellation ends this wait no sooner.
        """


class Containment(abc.ABC):
    """One strength of holding process trees together."""

    mode: str
    detail: str
    binds: bool
    """Whether a job's `binds` are carried out."""

    @abc.abstractmethod
    def start(self, job: Job, told: Told = forget) -> AbstractAsyncContextManager[Contained]:
        """Start `job`; leaving the context ends the tree and waits for the proof, also when cancelled.

        `told` hears what was counted where the start is cancelled when it has begun. Raises `SpawnFailed`.
        """
