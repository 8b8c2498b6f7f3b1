"""A run that has ended, told again from the journal as its client heard it.

Each line once, in order; what the journal has not is said (`gap`), never skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import attrs
import trio

from . import messages
from .errors import Reason
from .events import Outcome, Receipt
from .journal import Journal, Part, PartKind, RunRow
from .messages import Closing
from .peer import Client
from .turns import LINES

PIECE_BYTES: Final = 256 * 1024
"""Bytes that are told at a time: between two pieces others have their turn."""
REASONS: Final = frozenset(Reason)
UNPROVEN: Final = Receipt(0, 0, None, 0, "none")


async def retell(journal: Journal, run: RunRow, peer: Client, after: int) -> Closing:
    """Give a peer all behind line `after`; return how to close. Raises `PeerGone`."""
    beyond = 0
    while parts := await journal.parts(run.id, after, beyond):
        beyond = parts[-1].number
        after = await tell(peer, parts, after, run.stored + 1)
    if after < run.lines:
        peer.post(render_gap(after + 1, run.lines))
    return closing(outcome(run))


async def tell(peer: Client, parts: list[Part], after: int, upto: int) -> int:
    """Give a peer what is behind line `after` in stored parts, and lines up to `upto`; return the last of them.

    Raises `PeerGone`.
    """
    for said, last in _pieces(parts, after, upto):
        await trio.lowlevel.checkpoint()
        await give(peer, said)
        after = last
    return after


async def give(peer: Client, lines: list[bytes]) -> None:
    """Give a peer lines, some at a time: there may be two million short ones. Raises `PeerGone`."""
    for first in range(0, max(1, len(lines)), LINES):
        if first:
            await trio.lowlevel.checkpoint()
        await peer.send(lines[first : first + LINES])


def whole(parts: list[Part], beyond: int, upto: int) -> int:
    """Return the number of the last of stored parts up to which `tell` leaves nothing out, `beyond` where it does."""
    for part in parts:
        if part.last > upto or (part.kind is not PartKind.LINES and part.first == upto):
            break
        beyond = part.number
    return beyond


def _pieces(parts: list[Part], after: int, upto: int) -> Iterator[tuple[list[bytes], int]]:
    """Return frames in pieces of some `PIECE_BYTES`, with each the number of the last line up to there."""
    said, size = list[bytes](), 0
    for part in parts:
        said += frames(part, after, upto)
        after, size = max(after, min(part.last, upto)), size + len(part.data)
        if size >= PIECE_BYTES:
            yield said, after
            said, size = [], 0
    yield said, after


def outcome(run: RunRow) -> Outcome:
    """Return how a run ended; what its server did not live to see, or a newer one tells otherwise, is not proven."""
    reason, error = run.reason or Reason.NODE_LOST, run.error
    if reason not in REASONS:
        reason, error = Reason.FAILED, error or f"it ended as only a newer server knows: {reason}"
    return Outcome(
        Reason(reason), run.exit_status, run.signal, run.lines, run.encoding_errors, _receipt(run.receipt or {}), error
    )


def _receipt(told: Mapping[str, Any]) -> Receipt:
    """Return what a row says was counted; it may say more than is known here."""
    names = [field.name for field in attrs.fields(Receipt)]
    return Receipt(**{name: told[name] for name in names}) if told.keys() >= set(names) else UNPROVEN


def closing(ended: Outcome) -> Closing:
    """Return what the client of a session is told of the end: `ended`, whatever it was."""
    told = messages.closing(ended)
    return Closing(messages.render_ended(ended), told.code, told.reason)


def render_gap(first: int, last: int) -> str:
    """Return the frame that says which lines nobody has any more."""
    return messages.render_event("gap", **{"from": first, "to": last})


def render_history(state: str) -> str:
    """Return the frame that says how it stands with the journal: it is `waiting` for it, `back`, or has `ended`."""
    return messages.render_event("history", state=state)


def render_stderr(line: str, after: int) -> bytes:
    """Return the frame of a stderr line."""
    return messages.render_event("stderr", line=line, after=after).encode("utf-8", "replace")


def frames(part: Part, after: int, upto: int) -> list[bytes]:
    """Return what a client is sent of a stored part: what is behind line `after`, and lines up to `upto`.

    What stderr said behind line `upto` is not of it.
    """
    if part.kind is PartKind.LINES:
        return part.lines[max(0, after + 1 - part.first) : max(0, upto + 1 - part.first)]
    if part.kind is PartKind.STDERR and part.first < upto:
        return [render_stderr(line.decode("utf-8", "replace"), part.first) for line in part.lines]
    return []
