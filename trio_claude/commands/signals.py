"""The signals of a server, from its first moment on: what comes before it listens for them waits until it does."""

from __future__ import annotations

import signal
from typing import Final

SERVERS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What a server hears."""


def hold_signals() -> None:
    """Have signals wait. Else one that comes first would end this process, or as a container's first one be lost."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SERVERS)


def let_signals() -> None:
    """Hear what has waited and what comes, whatever this process was started with; runs are started with that, too."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SERVERS)
