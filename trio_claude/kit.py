"""What a run is given: what all runs of a server share, whom it is charged to, and what takes the lines that it says.

These are words alone; this module must never do anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import attrs

from .containment import Containment, Pump
from .events import Observer
from .journal import Journal
from .stream_json import Spent
from .telling import Tally, Tracer
from .turns import Turns
from .workplace import Workplace

Giver = Callable[[list[bytes]], None]
"""Takes whole stdout lines, in order. Must not wait. Raises `PeerGone`."""


class Sink(Protocol):
    """What takes a run's output. What waits holds the pipe back."""

    def giver(self) -> Giver | None:
        """Return what takes whole stdout lines now, without a wait, or None; then `lines` takes them."""

    async def lines(self, lines: list[bytes]) -> None:
        """Take whole stdout lines, in order. Raises `PeerGone`."""

    async def wait_taken(self) -> None:
        """Wait until the client has taken what a `Giver` was given. Raises `PeerGone`."""

    async def stderr_lines(self, lines: list[str]) -> None:
        """Take stderr lines. Raises `PeerGone`."""

    def denied(self, tool: str) -> None:
        """Hear that the CLI denied a tool because nobody could be asked. Must not wait."""


@attrs.frozen
class Account:
    """Who a run is charged to: a name, and what takes tokens and dollars and says what limit they pass, if any.

    `baseline` is what the session that a run goes on with came to, None where that is not known; `remember` takes what
    a session has come to. `left` is what the run finds of the day's dollars, None where they are not limited; `metered`
    says that something is.
    """

    name: str = "local"
    spend: Callable[[int, float], str] = lambda _tokens, _dollars: ""
    baseline: Spent | None = Spent()  # noqa: RUF009 - frozen
    remember: Callable[[str, Spent], None] = lambda _session, _spent: None
    left: float | None = None
    metered: bool = False


LOCAL: Final = Account()
"""Who is charged where nobody else is: a name, and no limit."""


@attrs.frozen
class Kit:
    """What all runs of one server share."""

    workplace: Workplace
    containment: Containment
    observer: Observer
    turns: Turns
    pump: Pump
    journal: Journal | None = None
    batch: str = ""
    tally: Tally = attrs.Factory(Tally)
    tracer: Tracer | None = None
