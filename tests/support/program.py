"""The command line as a program: run to its end, or as a server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
from harness import Backend

PROGRAM = [sys.executable, "-m", "trio_claude"]


def environ(fake: Backend) -> dict[str, str]:
    return {
        **fake.environ,
        "TRIO_CLAUDE_CLI": fake.program,
        "LC_TEST": fake.mark,
        "TRIO_CLAUDE_CWD": str(fake.cwd),
        "TRIO_CLAUDE_STATE": str(fake.cwd.parent / "state"),
    }


async def trio_claude(
    *words: str, env: dict[str, str] | None = None, program: Sequence[str] = PROGRAM
) -> subprocess.CompletedProcess[bytes]:
    with trio.fail_after(60):
        return await trio.run_process(
            [*program, *words], env=env, capture_stdout=True, capture_stderr=True, check=False, cwd="/"
        )


@asynccontextmanager
async def serving(
    *words: str, env: dict[str, str], stderr: int = subprocess.DEVNULL, program: Sequence[str] = PROGRAM
) -> AsyncIterator[tuple[trio.Process, str]]:
    """Start `trio-claude serve` and yield it with its address; its log goes to the descriptor `stderr`."""
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            lambda task_status: trio.run_process(
                [*program, *words], env=env, stdout=subprocess.PIPE, stderr=stderr, check=False, cwd="/",
                task_status=task_status,
            )
        )  # fmt: skip
        told = b""
        with trio.fail_after(30):
            while b"listening on " not in told or not told.endswith(b"\n"):
                more = await process.stdout.receive_some()
                assert more, f"it ended before it listened: {told.decode()}"
                told += more
        yield process, told.decode().rpartition("listening on ")[2].strip()
        if process.returncode is None:
            process.terminate()
            with trio.fail_after(30):
                await process.wait()


@asynccontextmanager
async def answering(body: bytes) -> AsyncIterator[str]:
    """Be an HTTP server that answers everything with `body`; yield its address."""

    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, answer, [listener])
        yield f"127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()
