"""Frozen facts that an observer may hear, and the `Observer` type.

This module must never act on a fact, hold a prompt or a secret, or import a room but `errors` and `faults`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import attrs

from .errors import Reason
from .faults import fingerprint

PATH_LIMIT = 200
"""Characters of a request's path that an event keeps."""
WARNED_LIMIT = 256
"""Texts of warnings that are known to be shown already, and are not shown again."""
STALL = 1.0
"""Seconds from which on a write that stands still is told."""
NODE_STATES = CONNECTED, DISCONNECTED, LOST, REJOINED = ("connected", "disconnected", "lost", "rejoined")
"""What is told of servers that share a Redis."""


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
    stdout, `encoding_errors` the lines that were not UTF-8. `error` is a text for the client, None after a good end; it
    may end with what the CLI said last, `cause` is that text without: for a log. `after_result` says that the CLI had
    given its result and was ended because it lived on.
    """

    reason: Reason
    exit_status: int | None
    signal: int | None
    lines: int
    encoding_errors: int
    receipt: Receipt
    error: str | None = attrs.field(default=None, repr=False)
    after_result: bool = False
    cause: str | None = None


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
    """Runs are kept in the file, or the Redis, `path`; where it is empty they are not, and `detail` says why."""

    path: str
    detail: str = ""


@attrs.frozen
class Listening:
    """The server accepts connections at `url`."""

    url: str


@attrs.frozen
class Answered:
    """A plain HTTP request was answered, or refused, with `status`, `seconds` after it was read.

    `path` is what the client asked for, cut to `PATH_LIMIT` characters.
    """

    peer: str
    method: str
    path: str
    status: int
    seconds: float
    identity: str = ""


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
    path: str
    seconds: float
    identity: str = "local"


@attrs.frozen
class Refused:
    """A client was refused and shown out, before the upgrade (an HTTP status) or after it (a close code).

    A message that is `refused` inside a session, which goes on, is no such event.
    `code` is the word for programs of an answer's `code`; there are some thirty. `status` is 0 where a connection was
    closed before its request was read.
    """

    status: int
    text: str
    code: str = ""


@attrs.frozen
class RunStarted:
    """A CLI is running; `warm` says that it was started ahead of need, `waited` for how many seconds for a slot."""

    run: str
    meta: str
    pid: int
    warm: bool = False
    identity: str = "local"
    door: str = "claude"
    waited: float = 0.0


@attrs.frozen
class FirstLine:
    """A run has said its first line, `seconds` after it began to start its CLI."""

    run: str
    meta: str
    seconds: float
    identity: str = "local"
    door: str = "claude"


@attrs.frozen
class FirstToken:
    """A turn has said its first words, `seconds` after its prompt; with `partial` that is a token, else a message."""

    run: str
    meta: str
    seconds: float
    identity: str = "local"
    door: str = "claude"


@attrs.frozen
class TurnEnded:
    """A turn has given its result, `seconds` after its prompt; `turn` counts from 1.

    `error` is what the CLI says of it, empty if it is good; no log has it.
    """

    run: str
    meta: str
    turn: int
    seconds: float
    tokens: int
    dollars: float
    error: str = attrs.field(default="", repr=False)
    identity: str = "local"
    door: str = "claude"


@attrs.frozen
class Charged:
    """An identity is charged for what a run has used: by each result, and at the end for what no result has told."""

    run: str
    meta: str
    tokens: int
    dollars: float
    identity: str = "local"


@attrs.frozen
class Interrupted:
    """A turn of a session is to end by an interrupt."""

    run: str
    meta: str
    identity: str = "local"


@attrs.frozen
class ApprovalSettled:
    """An approval is not open any more, `seconds` after the CLI asked for it.

    `outcome` is allowed, denied (by the client, or a grant that does not allow it), expired (nobody answered in time),
    withdrawn (by the CLI) or abandoned (the run ends).
    """

    run: str
    meta: str
    seconds: float
    outcome: str
    identity: str = "local"


@attrs.frozen
class SendStalled:
    """A client took `seconds` for what its run said at once, or left it: more than `STALL`; the CLI waited with it."""

    run: str
    meta: str
    seconds: float
    identity: str = "local"


@attrs.frozen
class RunEnded:
    """A run is over and its process tree was dealt with as the receipt says: once for each run, whatever ended it.

    `tokens`, `dollars` and `turns` are those of the whole run, `bytes` what it said on stdout.
    """

    run: str
    meta: str
    seconds: float
    outcome: Outcome
    identity: str = "local"
    door: str = "claude"
    turns: int = 0
    tokens: int = 0
    dollars: float = 0.0
    bytes: int = 0


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
class NodeState:
    """Something happened to a server among those that share a Redis; `node` is its name, `detail` says why.

    `state` is connected or disconnected (this server with Redis; the latter again where it turns out why), lost
    (another one, which this one has found to be without a sign of life: its runs are over), or rejoined (this one was
    found so by another: the history of the runs that it had then is over, though they go on).
    """

    node: str
    state: str
    detail: str = ""


@attrs.frozen
class Crashed:
    """An unexpected exception, caught at the crash barrier or in a background service.

    `run` is the run that it left, empty where it left none. `fingerprint` is the same for the same fault.
    """

    where: str
    error: BaseException
    run: str = ""

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits of a hash of the exception's type and of the functions that it came through."""
        return fingerprint(self.error)


Event: TypeAlias = (
    ContainmentReady
    | PoolReady
    | JournalReady
    | Listening
    | Answered
    | ConnectionOpened
    | ConnectionClosed
    | Refused
    | RunStarted
    | FirstLine
    | FirstToken
    | TurnEnded
    | Charged
    | Interrupted
    | ApprovalSettled
    | SendStalled
    | RunEnded
    | Strained
    | Weak
    | Reloaded
    | GuardianLost
    | NodeState
    | Crashed
)
Observer: TypeAlias = Callable[[Event], None]


def fan_out(observers: Iterable[Observer]) -> Observer:
    """Return one observer that tells each of `observers`; a fault of one never reaches another or the caller."""
    listeners = tuple(observers)

    def tell(event: Event) -> None:
        faults = []
        for listener in listeners:
            try:
                listener(event)
            except Exception as error:  # an observer's own fault, which is nobody else's
                faults.append(f"observer {listener!r} failed: {error!r}")
        for fault in faults:  # once all have heard: a program may have warnings raised
            warn(fault)

    return tell


def warn(text: str) -> None:
    """Warn of a fault in the code of others, as `warnings.warn` does, which would keep every text that it has shown."""
    if len(_warned) > WARNED_LIMIT:
        _warned.clear()
    warnings.warn_explicit(text, RuntimeWarning, __file__, warn.__code__.co_firstlineno, __name__, _warned)


_warned: dict[Any, Any] = {}
