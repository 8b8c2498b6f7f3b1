"""Stand in for the Anthropic Messages API on loopback; the prompt says which answer it wants.

Rule 1: nothing here listens or connects anywhere but 127.0.0.1, and no model, key or limit is judged: what was sent
is only recorded. Rule 2: what one client does must never end another client's answer, nor the stub.

The last user text that holds a directive chooses the answer; the directives stand in `trio_claude.testing.model`. One
that cannot be followed is answered by HTTP 400 naming it. A request without ``"stream": true`` gets the same answer as
one JSON object.

Run as a program, it prints where it listens and serves until SIGTERM or SIGINT::

    python -m trio_claude.testing.messages_api --port 8765
"""

from __future__ import annotations

from ..model import Ending
from .asked import ApiRequest, find_directive
from .stub import ApiAnswer, MessagesApi, open_messages_api

__all__ = ["ApiAnswer", "ApiRequest", "Ending", "MessagesApi", "find_directive", "open_messages_api"]
