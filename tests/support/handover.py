"""A service manager in small: it holds a listening socket, hands it to servers as systemd does, and hears what they say."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import attrs
import trio
from harness import head
from program import PROGRAM

LAUNCH = """
import os, sys
given = int(sys.argv[1])
os.dup2(given, 3)
if given != 3:
    os.close(given)
os.environ["LISTEN_PID"] = os.environ["WATCHDOG_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Becomes a server whose descriptor 3 is the socket, as between systemd's fork and its exec."""
NAMES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
PATIENCE = 30.0
"""Seconds for a handshake; one that takes longer has failed."""


@contextmanager
def held() -> Iterator[socket.socket]:
    """Hold a socket that listens on the loopback address."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        yield listener


@attrs.frozen
class Started:
    """A server that was handed a socket."""

    process: trio.Process
    port: int

    async def end(self) -> int:
        """Tell it to end, and return its exit status."""
        self.process.terminate()
        return await self.status()

    async def status(self) -> int:
        """Wait for its end, and return its exit status."""
        with trio.fail_after(60):
            return await self.process.wait()


async def start(listener: socket.socket, *words: str, env: Mapping[str, str], log: Path, wait: bool = True) -> Started:
    """Start a server on a socket; with `wait`, until it accepts."""
    given = {**env, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "trio-claude.socket"}
    with log.open("wb") as file:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", LAUNCH, str(listener.fileno()), *PROGRAM, "serve", *words],
            env=given, stdout=subprocess.PIPE, stderr=file, pass_fds=(listener.fileno(),), cwd="/",
        )  # fmt: skip
    started = Started(process, listener.getsockname()[1])
    if wait:
        await wait_listening(started)
    return started


async def wait_listening(started: Started) -> None:
    """Wait until a server says that it listens."""
    told = b""
    with trio.fail_after(60):
        while b"listening on " not in told:
            chunk = await started.process.stdout.receive_some()
            assert chunk, f"the server ended with {await started.process.wait()}"
            told += chunk


@asynccontextmanager
async def ended(*servers: Started) -> AsyncIterator[None]:
    """End servers that still run, whatever comes out of the body."""
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            for server in servers:
                if server.process.returncode is None:
                    server.process.kill()
                await server.process.wait()
                await server.process.stdout.aclose()


@attrs.frozen
class Attempt:
    """One attempt to come in: seconds to the handshake's answer, and what came of it."""

    seconds: float
    told: str


async def attempt(port: int) -> Attempt:
    """Open a WebSocket and leave at once."""
    began, told = time.perf_counter(), "no answer"
    with trio.move_on_after(PATIENCE):
        try:
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(head())
                answer = await stream.receive_some()
                told = answer.split(b"\r\n")[0].decode() if answer else "closed without an answer"
        except (OSError, trio.BrokenResourceError) as error:
            cause = error.__cause__ or error
            told = "refused" if "refused" in f"{error} {cause}" else f"broken: {error}"
    return Attempt(time.perf_counter() - began, told)


async def attempts(port: int, pause: float, made: list[Attempt]) -> None:
    """Attempt to come in at a steady rate, whatever becomes of those before, until cancelled."""

    async def one() -> None:
        made.append(await attempt(port))

    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(one)
            await trio.sleep(pause)


def holders(inode: int) -> set[int]:
    """Return the processes that hold a socket."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(entry) == f"socket:[{inode}]":
                found.add(int(entry.parts[2]))
        except OSError:
            continue
    return found
