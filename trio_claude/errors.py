"""Every refusal and failure, with its HTTP status or close code and a text that a client may read.

This module must never log, never hold a secret in a text, and never import another room.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class Reason(enum.StrEnum):
    """Why a run ended. The list stands here, once."""

    EXIT = "exit"
    FAILED = "failed"
    DEADLINE = "deadline"
    STALLED = "stalled"
    STOPPED = "stopped"
    DISCONNECTED = "disconnected"
    DRAINED = "drained"
    SPAWN_FAILED = "spawn-failed"
    UNAUTHORIZED = "unauthorized"
    OVER_BUDGET = "over-budget"
    NODE_LOST = "node-lost"

    @property
    def is_fault(self) -> bool:
        """Whether it is a bad end: neither the CLI's own good one, nor what the client or its operator asked for."""
        return self not in (Reason.EXIT, Reason.STOPPED, Reason.DISCONNECTED)


class CloseCode(enum.IntEnum):
    """The WebSocket close codes that this server sends (RFC 6455, section 7.4.1)."""

    NORMAL = 1000
    POLICY = 1008
    TOO_LONG = 1009
    FAILED = 1011
    RESTARTING = 1012
    BUSY = 1013


class TrioClaudeError(Exception):
    """The root of what this package raises. `str()` of it is safe to show a client."""


class ConfigError(TrioClaudeError):
    """The configuration can't be used; the text names the field and what it takes."""


class HttpRefusal(TrioClaudeError):
    """A request refused before any upgrade, with its HTTP status and a stable code for programs."""

    def __init__(self, status: int, code: str, text: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.headers = headers


class ClientError(TrioClaudeError):
    """The client's fault, told in an error frame before the close with `close_code`; programs read `code`."""

    close_code: ClassVar[CloseCode] = CloseCode.POLICY
    code: ClassVar[str] = "bad-message"


class BadMessage(ClientError):
    """A message that breaks the contract; the text names the field and the limit."""

    code = "bad-message"


class NotAllowed(BadMessage):
    """A well-formed message that this client may not send."""

    code = "not-allowed"


class NotOpen(BadMessage):
    """An answer to a question that is not open, or is not any more."""

    code = "not-open"


class NotOffered(BadMessage):
    """A part of the contract that this server does not offer."""

    code = "not-offered"


class Ending(BadMessage):
    """The run is ending and takes nothing more."""

    code = "ending"


class Backlog(BadMessage):
    """The CLI does not read; more would have to be kept."""

    code = "backlog"


class NotKnown(ClientError):
    """A credential that was good when the client came, and is not any more."""

    code = "credentials"


class NoMessage(ClientError):
    """No first message in time."""

    code = "no-message"


class SessionBusy(ClientError):
    """Another run holds this CLI session; two at once would lose a turn."""

    code = "session-busy"


class Ahead(ClientError):
    """Who attaches has more lines than the run has said."""

    code = "ahead"


class Busy(TrioClaudeError):
    """No slot came free in time; `retry_after` is in seconds."""

    close_code: ClassVar[CloseCode] = CloseCode.BUSY
    code: ClassVar[str] = "busy"

    def __init__(self, text: str, retry_after: float) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class JournalFault(Busy):
    """The journal can't be read or written just now."""

    code = "journal"


class NoAnswer(Busy):
    """The node that has a run does not answer just now."""

    code = "no-answer"


class QueueFull(Busy):
    """Too many wait already."""

    code = "queue-full"

    def __init__(self, text: str) -> None:
        super().__init__(text, retry_after=1.0)


class TooFast(Busy):
    """More prompts in a minute than may be."""

    code = "rate"


class OverBudget(Busy):
    """A day's tokens or dollars are used up; `retry_after` is when the next day begins."""

    code = "over-budget"


class NotWanted(TrioClaudeError):
    """Whoever waited for a slot gave up."""


class Draining(TrioClaudeError):
    """The server is going down and takes no new run."""

    close_code: ClassVar[CloseCode] = CloseCode.RESTARTING
    code: ClassVar[str] = "draining"


class SpawnFailed(TrioClaudeError):
    """The CLI could not be started."""


class ContainmentUnavailable(ConfigError):
    """The containment mode that the configuration names can't be had on this machine."""


class PeerGone(TrioClaudeError):
    """The client left, or its connection broke; nothing can be said to it any more."""
