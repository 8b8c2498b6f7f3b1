"""What tells one unexpected exception from another: a fingerprint, the run that it left, how often it was there.

Pure: `now` is an argument. This module must never look at an exception's text or at a frame's variables: both may hold
what a client said.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Iterator
from types import TracebackType
from typing import Final

import attrs

FAULTS_LIMIT: Final = 256
"""Fingerprints that are counted; beyond that the one that was not seen for longest is forgotten."""
AGAIN: Final = 3600.0
"""Seconds after which a fault that comes again is told in full again."""
FRAMES_LIMIT: Final = 1000
"""Frames of a traceback that are looked at."""
DEPTH_LIMIT: Final = 20
"""Groups within groups that are looked into."""
DIGITS: Final = 12
"""Hex digits of a fingerprint."""
_NOTE: Final = re.compile(r"run ([0-9a-f]{1,64})")


def fingerprint(error: BaseException) -> str:
    """Return what is the same for the same fault: a hash of its type, and of the functions that it came through.

    Of a group its members count, whatever their order and number. Lines, texts and values do not.
    """
    return hashlib.sha256("\n".join(_shape(error, DEPTH_LIMIT)).encode()).hexdigest()[:DIGITS]


def _shape(error: BaseException, depth: int) -> Iterator[str]:
    kind = type(error)
    yield f"{kind.__module__}.{kind.__qualname__}"
    yield from dict.fromkeys(_functions(error.__traceback__))  # once each: how deep a recursion went is chance
    if isinstance(error, BaseExceptionGroup) and depth:
        yield from sorted({"\n".join(_shape(one, depth - 1)) for one in error.exceptions})


def _functions(traceback: TracebackType | None) -> Iterator[str]:
    for _ in range(FRAMES_LIMIT):
        if traceback is None:
            return
        frame = traceback.tb_frame
        yield f"{frame.f_globals.get('__name__')}:{frame.f_code.co_qualname}"
        traceback = traceback.tb_next


def is_fault(error: BaseException) -> bool:
    """Return whether an exception is one, or a group in which there is one: not a cancellation alone."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(Exception) is not None
    return isinstance(error, Exception)


def note_run(error: BaseException, run: str) -> None:
    """Note on an exception which run it left; tracebacks show it."""
    error.add_note(f"run {run}")


def run_of(error: BaseException) -> str:
    """Return the run that an exception, or the first of a group's that did, left; empty where it left none."""
    return next(_runs(error, DEPTH_LIMIT), "")


def _runs(error: BaseException, depth: int) -> Iterator[str]:
    for note in getattr(error, "__notes__", ()):
        if found := _NOTE.fullmatch(note):
            yield found[1]
    if isinstance(error, BaseExceptionGroup) and depth:
        for one in error.exceptions:
            yield from _runs(one, depth - 1)


@attrs.frozen
class Seen:
    """How often a fault was there, this time too, and whether it is to be told in full."""

    count: int
    in_full: bool


class Faults:
    """Counts faults by their fingerprints, at most `FAULTS_LIMIT` of them. `now` is in seconds and never goes back."""

    def __init__(self) -> None:
        self._counts: OrderedDict[str, int] = OrderedDict()
        self._told: dict[str, float] = {}

    def count(self, name: str, now: float) -> Seen:
        """Count a fault; the 1st, 10th, 100th … is to be told in full, and one that was not for an hour."""
        count = self._counts[name] = self._counts.get(name, 0) + 1
        self._counts.move_to_end(name)
        in_full = _is_power_of_ten(count) or now >= self._told[name] + AGAIN
        if in_full:
            self._told[name] = now
        if len(self._counts) > FAULTS_LIMIT:
            forgotten, _ = self._counts.popitem(last=False)
            del self._told[forgotten]
        return Seen(count, in_full)

    def __len__(self) -> int:
        return len(self._counts)


def _is_power_of_ten(count: int) -> bool:
    return str(count).strip("0") == "1"
