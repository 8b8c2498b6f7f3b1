"""Frozen facts that an observer may hear, and the `Observer` type.

This module must never act on a fact, hold a prompt or a secret, or import a room other than `errors`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import TypeAlias

import attrs

from .errors import Reason


@attrs.frozen
class Receipt:
    """What was counted when a run's process tree was ended.

    `seen` is a lower bound: distinct pids that were reaped or swept. `survivors` is None where it can't be proven.
    `ms` runs from the decision to end until the last process was gone. `containment` is the mode that was in force.
    """

    seen: int
    killed: int
    survivors: int | None
    ms: float
    containment: str

    def __str__(self) -> str:
        left = "unproven" if self.survivors is None else f"{self.survivors} left"
        processes = "1 process" if self.seen == 1 else f"{self.seen} processes"
        return f"{processes}, {left}, {self.ms:.0f} ms"


@attrs.frozen
class Outcome:
    """How a run ended: the reason, the CLI's own status and the receipt.

    `exit_status` is 0 or more, or None where the CLI died of `signal` or never ran. `lines` counts what it said on
    stdout, `encoding_errors` the lines that were not UTF-8. `error` is a text for the client, None after a good end.
    `after_result` says that the CLI had given its result and was ended because it lived on.
    """

    reason: Reason
    exit_status: int | None
    signal: int | None
    lines: int
    encoding_errors: int
    receipt: Receipt
    error: str | None = None
    after_result: bool = False


@attrs.frozen
class ContainmentReady:
    """The containment that is in force, and why it is not a stronger one."""

    mode: str
    detail: str


@attrs.frozen
class PoolReady:
    """So many CLIs are kept ready ahead of need; where fewer than the configuration says, `detail` says why."""

    size: int
    detail: str = ""


@attrs.frozen
class JournalReady:
    """Runs are kept in the file `path`; where it is empty they are not, and `detail` says why."""

    path: str
    detail: str = ""


@attrs.frozen
class Listening:
    """The server accepts connections at `url`."""

    url: str


@attrs.frozen
class ConnectionOpened:
    """A client's WebSocket is open."""

    peer: str
    path: str
    identity: str = "local"


@attrs.frozen
class ConnectionClosed:
    """A client's WebSocket has ended; `code` is the close code that was sent, None where none could be."""

    peer: str
    code: int | None
    reason: str


@attrs.frozen
class Refused:
    """A client was refused, before the upgrade (an HTTP status) or after it (a close code)."""

    status: int
    text: str


@attrs.frozen
class RunStarted:
    """A CLI is running; `warm` says that it was started ahead of need."""

    run: str
    meta: str
    pid: int
    warm: bool = False
    identity: str = "local"


@attrs.frozen
class RunEnded:
    """A run is over and its process tree was dealt with as the receipt says."""

    run: str
    meta: str
    seconds: float
    outcome: Outcome
    identity: str = "local"


@attrs.frozen
class Strained:
    """Something ran out: `what` names it; `over` says that there is enough again. Told at each change only."""

    what: str
    over: bool


@attrs.frozen
class Weak:
    """Something is in force that is weaker than it could be, and that the operator should know of."""

    what: str


@attrs.frozen
class Reloaded:
    """The settings were read anew; `error` says why the old ones stay, empty where the new ones hold."""

    error: str = ""


@attrs.frozen
class GuardianLost:
    """A helper process of the containment died or stopped answering and was replaced."""

    what: str


@attrs.frozen
class Crashed:
    """An unexpected exception, caught at the crash barrier or in a background service."""

    where: str
    error: BaseException


Event: TypeAlias = (
    ContainmentReady
    | PoolReady
    | JournalReady
    | Listening
    | ConnectionOpened
    | ConnectionClosed
    | Refused
    | RunStarted
    | RunEnded
    | Strained
    | Weak
    | Reloaded
    | GuardianLost
    | Crashed
)
Observer: TypeAlias = Callable[[Event], None]


def fan_out(observers: Iterable[Observer]) -> Observer:
    """Return one observer that tells each of `observers`; a fault of one never reaches another or the caller."""
    listeners = tuple(observers)

    def tell(event: Event) -> None:
        for listener in listeners:
            try:
                listener(event)
            except Exception as error:
                warnings.warn(f"observer {listener!r} failed: {error!r}", RuntimeWarning, stacklevel=2)

    return tell
