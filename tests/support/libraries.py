"""Run a program under Trio, or under asyncio in a thread of its own, from a test that runs under Trio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest
import trio

Library: TypeAlias = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]


async def under_trio(program: Callable[[], Awaitable[Any]]) -> Any:
    return await program()


async def under_asyncio(program: Callable[[], Awaitable[Any]]) -> Any:
    return await trio.to_thread.run_sync(lambda: asyncio.run(program()))  # type: ignore[arg-type]


BOTH_LIBRARIES = pytest.mark.parametrize("library", [under_trio, under_asyncio])
