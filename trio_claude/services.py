"""Background tasks of a resource: they run beside the body that uses it and are cancelled with it.

A service that fails is told of and started anew. This module must never change what an exception says: an error of the
body comes out as it was raised, not in a group.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, NoReturn

import trio

from .events import Crashed, Observer

RESTART_PAUSE: Final = 1.0
"""Seconds until a service that failed is started anew."""


async def keep_going(name: str, service: Callable[[], Awaitable[None]], observer: Observer) -> None:
    """Run a service until cancelled; what it raises is told as `Crashed`, and it is started anew."""
    while True:
        try:
            await service()
        except* Exception as group:
            observer(Crashed(name, group))
        await trio.sleep(RESTART_PAUSE)


@asynccontextmanager
async def open_services() -> AsyncIterator[trio.Nursery]:
    """Yield a nursery whose tasks end when the body does; a single error comes out bare."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        _raise_bare(group.exceptions[0])


def _raise_bare(error: BaseException) -> NoReturn:
    """Raise `error` with the context that it had before it was put in a group."""
    context = error.__context__
    try:
        raise error
    finally:
        error.__context__ = context
        del error, context
