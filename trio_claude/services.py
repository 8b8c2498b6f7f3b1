"""Background tasks of a resource: they run beside the body that uses it and are cancelled with it.

This module must never change what an exception says: an error of the body comes out as it was raised, not in a group.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn

import trio


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
