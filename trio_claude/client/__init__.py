"""The client library, for Trio and asyncio programs alike: one implementation over anyio.

Duty: speak to a server's two doors. This package must never run a CLI itself and never repeat a prompt: a prompt that
was sent may have had effects.
"""

from .answers import Answer, Ended, ask
from .cli_lines import Assistant, Delta, Init, Line, Question, Result, Unknown, User, parse_line
from .decisions import Allow, Approval, Deny
from .links import Reconnect
from .openings import attach_session, open_session
from .sessions import Refused, Session, SessionEnded, Turn
from .sockets import ConnectFailed, door

__all__ = [
    "Allow",
    "Answer",
    "Approval",
    "Assistant",
    "ConnectFailed",
    "Delta",
    "Deny",
    "Ended",
    "Init",
    "Line",
    "Question",
    "Reconnect",
    "Refused",
    "Result",
    "Session",
    "SessionEnded",
    "Turn",
    "Unknown",
    "User",
    "ask",
    "attach_session",
    "door",
    "open_session",
    "parse_line",
]
