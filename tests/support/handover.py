"""A service manager in small: it holds a listening socket, hands it to servers as systemd does, and hears what they say."""

from __future__ import annotations

import contextlib
import json
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
from harness import Said, connect, directive, head, listen
from program import PROGRAM
from talk import open_talk

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
    launch = [sys.executable, "-c", LAUNCH, str(listener.fileno())]
    process = await _open([*launch, *PROGRAM, "serve", *words], given, log, (listener.fileno(),))
    started = Started(process, listener.getsockname()[1])
    if wait:
        await wait_listening(started)
    return started


async def begin(*words: str, env: Mapping[str, str], log: Path) -> Started:
    """Start a server that binds its port itself; do not wait for it."""
    return Started(await _open([*PROGRAM, "serve", *words], env, log), int(words[words.index("--port") + 1]))


async def _open(words: list[str], env: Mapping[str, str], log: Path, sockets: tuple[int, ...] = ()) -> trio.Process:
    with log.open("wb") as file:
        return await trio.lowlevel.open_process(
            words, env=env, stdout=subprocess.PIPE, stderr=file, pass_fds=sockets, cwd="/"
        )


def free_port() -> int:
    """Return a port that is free."""
    with held() as probe:
        port: int = probe.getsockname()[1]
        return port


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

    @property
    def answered(self) -> bool:
        return self.told.startswith("HTTP/1.1 101 ")


async def attempt(port: int) -> Attempt:
    """Open a WebSocket and leave at once."""
    began, told = time.perf_counter(), "no answer"
    with trio.move_on_after(PATIENCE):
        told = await _attempt(port)
    return Attempt(time.perf_counter() - began, told)


async def _attempt(port: int) -> str:
    try:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
    except OSError:
        return "refused"
    async with stream:
        try:
            await stream.send_all(head())
            answer = await stream.receive_some()
        except trio.BrokenResourceError:
            return "reset"
    return answer.split(b"\r\n")[0].decode() if answer else "closed without an answer"


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
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended, or what it held is closed
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{descriptor}") == f"socket:[{inode}]":
                        found.add(int(pid))
    return found


# -- clients of a server that goes down ------------------------------------------------------------------------------

KINDS = {
    "ends": (directive("slow", n=45, ms=50), "init"),
    "stays": (directive("tree", kinds=["setsid", "double_fork", "ignore_term"], seconds=60, then="stay"), "pids"),
    "says nothing": None,
    "talks": None,
}
"""What clients of the first server do: the prompts of two of them, and what is in a frame once their run has begun."""


@attrs.frozen
class Client:
    kind: str
    said: Said


async def be_client(server: Started, kind: str, begun: list[str], told: list[Client]) -> None:
    """Connect, do what one does, and keep what was told up to the close."""
    if kind == "talks":
        return await be_talker(server, begun, told)
    async with connect(server) as socket:
        frames = [await socket.get_message()]
        if asked := KINDS[kind]:
            await socket.send_message(json.dumps({"prompt": asked[0], "meta": "T"}))
            while asked[1] not in frames[-1]:
                frames.append(await socket.get_message())
        begun.append(kind)
        told.append(Client(kind, await listen(socket, frames)))
    return None


async def be_talker(server: Started, begun: list[str], told: list[Client]) -> None:
    """Hold a session that has had a turn."""
    async with open_talk(server) as talk:
        await talk.start()
        await talk.user("hello")
        await talk.result()
        begun.append("talks")
        await talk.end(60)
        assert talk.code
        told.append(Client("talks", Said([json.dumps(frame) for frame in talk.frames], talk.code, talk.reason)))
