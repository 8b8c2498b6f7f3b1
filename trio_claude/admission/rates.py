"""Token buckets: how many prompts a minute. Pure."""

from __future__ import annotations

from collections import OrderedDict

import attrs

MINUTE = 60.0
KEPT = 100_000
"""Buckets kept; the one that was used least lately goes first."""


@attrs.define
class _Bucket:
    level: float
    at: float


class Rates:
    """A bucket for each name, full at first; a bucket's size is what it gets back in a minute."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def wait(self, name: str, per_minute: float, now: float) -> float:
        """Return the seconds until `name` may ask again, 0 where it may now; nothing is taken."""
        if not per_minute:
            return 0.0
        missing = 1 - self._filled(name, per_minute, now).level
        return max(0.0, missing * MINUTE / per_minute)

    def take(self, name: str, per_minute: float, now: float) -> None:
        """Take one, which `wait` said may be taken."""
        if per_minute:
            self._filled(name, per_minute, now).level -= 1

    def give_back(self, name: str, per_minute: float, now: float) -> None:
        """Give one back that was taken; there are never more than a minute's."""
        if per_minute:
            bucket = self._filled(name, per_minute, now)
            bucket.level = min(max(1.0, per_minute), bucket.level + 1)

    def _filled(self, name: str, per_minute: float, now: float) -> _Bucket:
        """Return the bucket as it is by now. `now` is in seconds, of a clock that never goes back."""
        size = max(1.0, per_minute)
        bucket = self._buckets.setdefault(name, _Bucket(size, now))
        self._buckets.move_to_end(name)
        bucket.level = min(size, bucket.level + (now - bucket.at) * per_minute / MINUTE)
        bucket.at = now
        if len(self._buckets) > KEPT:
            self._buckets.popitem(last=False)
        return bucket

    def __len__(self) -> int:
        return len(self._buckets)
