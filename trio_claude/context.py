"""What a task is at work on: names that go with whatever is told from inside it.

A task that a nursery starts has the names of the task that starts it. This module must never hold a prompt or a secret,
and nothing may be decided by what it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Final

_NOTHING: Final[Mapping[str, str]] = {}
_names: ContextVar[Mapping[str, str]] = ContextVar("trio_claude.context", default=_NOTHING)


def current() -> Mapping[str, str]:
    """Return the names that this task has: `identity` and `peer` in a connection, `run` and `meta` in a run."""
    return _names.get()


class Bound:
    """Gives this task, and those that it starts meanwhile, more names. Each run has some, so they are small."""

    __slots__ = ("_names", "_token")

    def __init__(self, **names: str) -> None:
        self._names: Mapping[str, str] = {**_names.get(), **names}

    def __enter__(self) -> None:
        self._token = _names.set(self._names)

    def __exit__(self, *_: object) -> None:
        _names.reset(self._token)
