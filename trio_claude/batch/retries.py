"""Which failures are tried again, and when.

Rules: no await, no clock, no chance: the roll of the dice is an argument. What a prompt itself caused is never tried
again, nor what the API refused for good (400, 401, 403), nor a run that had its time or its turns.
"""

from __future__ import annotations

from ..errors import Reason
from .results import BUSY, UNREACHABLE, Finish, Fold

STATUSES = (408, 429, *range(500, 600))
"""Statuses of the API that another attempt may be spared."""
BASE = 1.0
"""Seconds before the second attempt; doubled for each one more."""
MOST = 60.0
"""Seconds between two attempts at most, whatever a server asks for."""
AWAY = 600.0
"""Seconds for which who asks for more is not asked again: a day's budget is spent. `--resume` does it another time."""
_REASONS = (BUSY, UNREACHABLE, Reason.DRAINED.value)


def retryable(finish: Finish, fold: Fold) -> bool:
    """Whether an attempt that ended so may go better another time."""
    if finish.reason in _REASONS:
        return (finish.retry_after or 0.0) <= AWAY
    if finish.reason not in (Reason.EXIT, Reason.FAILED) or not fold.is_error:
        return False
    return fold.api_status in STATUSES or (fold.api_status is None and fold.unconnected)


def delay(attempts: int, retry_after: float | None, roll: float) -> float:
    """Return the seconds to wait after `attempts` attempts; `roll`, from 0 to 1, spreads them by a quarter."""
    asked = retry_after if retry_after is not None else BASE * 2.0 ** (min(attempts, 10) - 1)
    return min(MOST, asked) * (0.75 + 0.5 * roll)
