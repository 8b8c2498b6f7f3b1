"""Why and how a run is ended: the first decision, the polite steps before the kill, and what the CLI's own end means.

Pure. This module must never act on a process.
"""

from __future__ import annotations

import signal

import attrs

from .errors import Reason

LADDERS: dict[Reason, tuple[tuple[int, float], ...]] = {
    Reason.STOPPED: ((signal.SIGINT, 1.0), (signal.SIGTERM, 1.0)),
    Reason.DEADLINE: ((signal.SIGINT, 1.0), (signal.SIGTERM, 1.0)),
    Reason.STALLED: ((signal.SIGINT, 1.0), (signal.SIGTERM, 1.0)),
    Reason.OVER_BUDGET: ((signal.SIGINT, 1.0), (signal.SIGTERM, 1.0)),
    Reason.DRAINED: ((signal.SIGTERM, 1.0),),
}
"""How a run is asked to end before its tree is killed: signals to the CLI, each with its grace in seconds.

SIGINT keeps the partial answer, SIGTERM loses it. Every other reason kills the tree at once: nobody is left to hear an
answer; and so does the deadline of a run that has one prompt.
"""


@attrs.frozen
class Decision:
    """Why a run is ended. `drain` says that what the pipes hold is still wanted, `detail` is what the CLI said last."""

    reason: Reason
    error: str | None = None
    drain: bool = False
    after_result: bool = False
    detail: str = attrs.field(default="", repr=False)

    @property
    def ladder(self) -> tuple[tuple[int, float], ...]:
        """The polite steps before the kill."""
        return LADDERS.get(self.reason, ()) if self.drain else ()

    @property
    def told(self) -> str | None:
        """The error with its detail: a text for the client."""
        return f"{self.error}: {self.detail}" if self.error and self.detail else self.error


def exit_decision(status: int | None, detail: str) -> Decision:
    """Return what the CLI's own end means; `detail` is the last that it said of an error."""
    if status == 0:
        return Decision(Reason.EXIT)
    if status is None:
        return Decision(Reason.FAILED, "the CLI's exit status is not known")
    how = f"exited with status {status}" if status > 0 else f"died of {_signal_name(-status)}"
    return Decision(Reason.FAILED, f"the CLI {how}", detail=detail)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
