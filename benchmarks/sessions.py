"""Stop that stops: over `/ws/session`, and over the official SDK's own transport, in one run.

    python benchmarks/sessions.py [--rounds 20] [--unread 60]

1. `interrupt` (real CLI): milliseconds from the stop to the turn's result, in the middle of a stream.
2. `unread` (both): a CLI floods and the client reads nothing for `--unread` seconds; then it stops the run. Ours:
   milliseconds until the process tree is proven gone. The SDK: what `interrupt()` comes to.
3. `leave` (real CLI): the program's task ends while a Bash tool runs that has left a daemon behind. Milliseconds until
   the program is out of it, and which processes live then.

The CLI is the real one before a stub of the Messages API, or the stand-in, as said. Needs the [claude] extra.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import trio
from common import machine, masked, median, percentile

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient
from claude_agent_sdk._internal.transport.subprocess_cli import SubprocessCLITransport
from harness import Backend, bearing, directive, open_backend

from trio_claude.client import Delta, open_session
from trio_claude.sdk import WebSocketTransport
from trio_claude.server import Server

HEAD = (
    "GET /ws/session HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)
BASH = directive("bash", cmd="(setsid sleep 77 >/dev/null 2>&1 &) ; sleep 76")


def milliseconds(began: float) -> float:
    """Return the milliseconds since a moment."""
    return (time.perf_counter() - began) * 1000


async def interrupt(server: Server, rounds: int) -> list[float]:
    """Return how long each turn takes from its stop to its result."""
    took = []
    async with open_session(meta="BENCH", url=server.url, partial=True) as session:
        for _ in range(rounds):
            began = 0.0
            async for line in session.ask(directive("slow", n=500, ms=10)):
                if isinstance(line, Delta) and not began:
                    began = time.perf_counter()
                    await session.interrupt()
            took.append(milliseconds(began))
    return took


def frame(said: dict[str, Any]) -> bytes:
    """Return a text frame of a client."""
    return masked(1, json.dumps(said).encode())


async def unread(cli: Backend, server: Server, seconds: float, flood: str) -> float:
    """Return how long the end takes of a run whose client has read nothing for so long."""
    before = len(cli.ended)
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        await stream.send_all(HEAD.encode())
        start = {"type": "gateway", "op": "start", "meta": "BENCH", "options": {"partial": True}}
        said = {"type": "user", "message": {"role": "user", "content": flood}}
        await stream.send_all(frame(start) + frame(said))
        await trio.sleep(seconds)
        if len(cli.ended) != before:
            raise RuntimeError("the client was dropped")
        began = time.perf_counter()
        await stream.send_all(frame({"type": "gateway", "op": "stop", "mode": "kill"}))
        while len(cli.ended) == before:
            await trio.sleep(0.001)
        return milliseconds(began)


def own(cli: Backend, options: ClaudeAgentOptions) -> SubprocessCLITransport:
    """Return the SDK's own transport, on the same CLI in the same surroundings."""
    environ = {**cli.environ, "TCT_BACKEND": cli.mark}
    return SubprocessCLITransport(
        prompt="",
        options=ClaudeAgentOptions(
            cli_path=cli.program,
            cwd=str(cli.cwd),
            env=environ,
            setting_sources=[],
            include_partial_messages=True,
            allowed_tools=["Bash"],
        ),
    )


async def unread_sdk(cli: Backend, seconds: float, flood: str) -> str:
    """Return what an interrupt comes to over the SDK's own transport, when nothing was read for so long."""
    options = ClaudeAgentOptions(include_partial_messages=True)
    async with ClaudeSDKClient(options=options, transport=own(cli, options)) as client:
        await client.query(flood)
        await trio.sleep(seconds)
        began = time.perf_counter()
        try:
            await client.interrupt()
        except Exception as error:
            return f"fails after {milliseconds(began) / 1000:.0f} s: {error}"
        return f"{milliseconds(began):.0f} ms"


def running(command: str) -> bool:
    """Return whether a process with these words runs."""
    words = command.replace(" ", "\0").encode() + b"\0"
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes() == words:
                return True
    return False


async def leave(cli: Backend, transport: Any) -> tuple[float, float, int]:
    """End a program in a turn; return the milliseconds to its end and to the last process's, and how many stayed."""
    with trio.CancelScope() as scope:
        options = ClaudeAgentOptions()
        async with ClaudeSDKClient(options=options, transport=transport) as client:
            await client.query(BASH)
            async for message in client.receive_messages():
                if type(message).__name__ == "AssistantMessage":
                    with trio.fail_after(10):
                        while not running("sleep 76"):
                            await trio.sleep(0.02)
                    began = time.perf_counter()
                    scope.cancel()
    out = milliseconds(began)
    while (left := bearing(f"TCT_BACKEND={cli.mark}")) and milliseconds(began) < 12_000:
        await trio.sleep(0.002)
    gone = milliseconds(began)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return out, gone, len(left)


async def main(rounds: int, seconds: float) -> None:
    """Print the figures."""
    print(f"sessions; {machine()}")
    with tempfile.TemporaryDirectory(prefix="tcb-", dir="/tmp") as name:
        for kind in ("real", "fake"):
            folder = Path(name) / kind
            folder.mkdir()
            async with open_backend(kind, folder) as cli, cli.serve(cli_args="--allowed-tools=Bash") as server:
                flood = {"fake": directive("lines", n=10**8, size=300), "real": directive("many", n=300_000)}[kind]
                said = f"after {seconds:g} s unread ({kind})"
                print(f"{said}: gone {await unread(cli, server, seconds, flood):.0f} ms after the stop")
                if kind == "fake":
                    continue
                print(f"{said}, the SDK's own transport: {await unread_sdk(cli, seconds, flood)}")
                took = await interrupt(server, rounds)
                print(f"interrupt to result (real): p50 {median(took):.0f} ms, p99 {percentile(took, 0.99):.0f} ms")
                for who in ("over the server", "the SDK's own transport"):
                    options = ClaudeAgentOptions()
                    there = who == "over the server"
                    transport = WebSocketTransport(server.url, options=options) if there else own(cli, options)
                    out, gone, left = await leave(cli, transport)
                    told = "all gone" if not left else f"{left} left"
                    print(f"leave in a Bash tool (real), {who}: out in {out:.0f} ms, {told} after {gone:.0f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--unread", type=float, default=60)
    options = parser.parse_args()
    trio.run(main, options.rounds, options.unread)
