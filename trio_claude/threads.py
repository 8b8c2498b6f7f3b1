"""Work that blocks, done beside the loop, in a thread.

Duty: have it done also where no thread is to be had, as where a run has used up the processes that a control group may
have: then in the loop, which is slow, and better than not at all. This module must never know what is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")


async def do_apart(
    work: Callable[[], T], *, abandon_on_cancel: bool = False, limiter: trio.CapacityLimiter | None = None
) -> T:
    """Return what `work` returns, which a thread does, or this one. Raises what it raises.

    With `abandon_on_cancel` nobody waits for the end of what a thread does once this is cancelled. The thread is one of
    those that `limiter` counts, of Trio's own where none is given.
    """
    begun = False

    def begin() -> T:
        nonlocal begun
        begun = True
        return work()

    try:
        return await trio.to_thread.run_sync(begin, abandon_on_cancel=abandon_on_cancel, limiter=limiter)
    except RuntimeError:  # as Python says that there is no thread
        if begun:
            raise
    return work()
