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


async def keep_going(
    name: str,
    service: Callable[[], Awaitable[None]],
    observer: Observer,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a service until cancelled; what it raises is told as `Crashed`, and it is started anew."""
    task_status.started()
    while True:
        try:
            await service()
        except* Exception as group:
            observer(Crashed(name, group))
        await trio.sleep(RESTART_PAUSE)


@asynccontextmanager
async def open_services() -> AsyncIterator[trio.Nursery]:
    """Yield a nursery whose tasks end when the body does; a single error comes out bare, also where it is cancelled."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        errors = [error for error in group.exceptions if not _is_cancelled(error)] or group.exceptions
        if len(errors) > 1:
            raise
        _raise_bare(errors[0])


@asynccontextmanager
async def open_lasting(service: Callable[..., Awaitable[None]], *arguments: object) -> AsyncIterator[None]:
    """Run a service until the body ends, which may have last words for it: cancelling both does not end it before."""
    scope = trio.CancelScope()

    async def serve(*, task_status: trio.TaskStatus[None]) -> None:
        with scope:
            await service(*arguments, task_status=task_status)

    async with open_services() as services:
        await services.start(serve)
        scope.shield = True  # not before: nobody would end it yet
        try:
            yield
        finally:
            scope.cancel()


def _is_cancelled(error: BaseException) -> bool:
    """Return whether an error says no more than that a task was cancelled."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled)


def _raise_bare(error: BaseException) -> NoReturn:
    """Raise `error` with the context that it had before it was put in a group."""
    context = error.__context__
    try:
        raise error
    finally:
        error.__context__ = context
        del error, context
