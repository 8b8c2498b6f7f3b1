"""What all sessions of one server share, and with what they are greeted.

This module must never serve a client.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from . import messages
from .config import Config
from .events import Observer
from .far import Far
from .runs import Runs
from .stage import Stage

PROTOCOL = 1
"""The version of the contract of `/ws/session`."""


@attrs.frozen
class Room:
    """What all sessions of one server share."""

    runs: Runs
    config: Config
    observer: Observer
    stages: dict[str, Stage]
    far: Far | None = None
    """The way to the runs of other nodes, if there are any."""

    @contextmanager
    def on_stage(self, stage: Stage) -> Iterator[None]:
        """Let others find a run while it lives."""
        self.stages[stage.run.id] = stage
        try:
            yield
        finally:
            del self.stages[stage.run.id]


def greeting(config: Config, version: str, containment: str, identity: str) -> str:
    """Return the first frame of a session."""
    limits = {
        "message": config.max_session_message,
        "line": config.max_line,
        "timeout": config.timeout,
        "idle_timeout": config.session_idle_timeout,
        "session_timeout": config.session_timeout,
        "approval_timeout": config.approval_timeout,
        "grace": config.grace_max,
    }
    return messages.render_event(
        "hello",
        protocol=PROTOCOL,
        version=version,
        containment=containment,
        limits=limits,
        options=list(config.session_offered),
        control=list(config.controls),
        identity=identity,
    )
