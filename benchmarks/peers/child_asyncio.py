"""The child under asyncio, as the asyncio peers share it: its lines one by one, and its end when the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Awaitable, Callable

from contract import CLI, FLAGS, LONGEST_LINE


async def relay(line: bytes, send: Callable[[str], Awaitable[None]]) -> int:
    """Start the child with a line and send each of its lines; return the close code. Cancelled, it ends the child."""
    child = await asyncio.create_subprocess_exec(
        CLI, *FLAGS, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, limit=LONGEST_LINE
    )
    try:
        child.stdin.write(line)
        child.stdin.close()
        async for said in child.stdout:
            await send(said.removesuffix(b"\n").decode())
        return 1011 if await child.wait() else 1000
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()


async def first_of(*parts: Awaitable[object]) -> object:
    """Run parts at once until the first ends, end the others, and return or raise what that one did."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
