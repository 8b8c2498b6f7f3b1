"""The real CLI's Bash tool leaves the worst that it can behind; each ending, in each mode, leaves nothing of it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from harness import MODES, Backend, ask, connect, directive, listen, until
from trio_websocket import open_websocket_url

pytestmark = pytest.mark.real_cli
BOTH = pytest.mark.parametrize("mode", MODES)


def nap() -> str:
    """Return a duration that no other process sleeps for."""
    return f"61.{random.randrange(10**9):09d}"


def children(seconds: str) -> str:
    """Return a command that leaves: nohup, setsid, deaf to signals, forked twice, without environment."""
    return (
        f"{{ nohup sleep {seconds} & setsid sleep {seconds} & setsid sh -c 'setsid sleep {seconds} & exit 0'; "
        f"sh -c \"trap '' TERM HUP INT; sleep {seconds}; :\" & setsid env -i /bin/sleep {seconds} & }} >/dev/null 2>&1; sleep 0.3"
    )


def sleepers(seconds: str) -> list[int]:
    """Return the processes that sleep for `seconds`, whatever their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if seconds.encode() in words:
                found.append(int(entry.name))
    return found


def folder_of(server: int) -> Path:
    """Return the folder of a living server, whose lock it holds open."""
    links = (entry.readlink() for entry in Path(f"/proc/{server}/fd").iterdir())
    (lock,) = (link for link in links if link.name == "lock" and link.parent.name.startswith("tcl-"))
    assert lock.is_file()
    return lock.parent


def nothing_else_is_left(cli: Backend, folder: Path) -> None:
    """No key file, socket or temporary folder."""
    sessions = folder / "config" / "sessions"
    assert not sessions.exists() or list(sessions.iterdir()) == []
    assert [path for path in folder.rglob("*") if path.is_socket()] == []
    assert cli.left() == []


@BOTH
async def test_a_good_end(real: Backend, folder: Path, mode: str) -> None:
    seconds = nap()
    async with real.serve(cli_args="--allowed-tools=Bash", containment=mode) as server:
        said = await ask(server, directive("bash", cmd=f"{children(seconds)}; echo done"))
        assert sleepers(seconds) == []
    assert said.code == 1000
    assert real.ended[0].outcome.receipt.killed >= 5
    assert (real.ended[0].outcome.receipt.survivors, real.ended[0].outcome.receipt.containment) == (0, mode)
    nothing_else_is_left(real, folder)


@BOTH
@pytest.mark.parametrize("ending", ["client gone", "deadline"])
async def test_an_end_while_the_tool_runs(real: Backend, folder: Path, mode: str, ending: str) -> None:
    seconds = nap()
    command = f"{children(seconds)}; echo >started; (sleep {seconds})"
    message = json.dumps({"prompt": directive("bash", cmd=command), "meta": "T"})
    async with real.serve(cli_args="--allowed-tools=Bash", containment=mode) as server:
        async with connect(server) as socket:
            await socket.send_message(message)
            await until(lambda: (real.cwd / "started").exists() and len(sleepers(seconds)) >= 6, 20)
            if ending == "deadline":
                (run,) = server.runs._live.values()
                run._scope.deadline = trio.current_time()  # its time is up
                assert (await listen(socket)).reason.startswith("timed out; ")
        await until(lambda: real.ended, 20)
        assert sleepers(seconds) == []
    receipt = real.ended[0].outcome.receipt
    assert (receipt.survivors, receipt.killed >= 6) == (0, True)
    nothing_else_is_left(real, folder)


@BOTH
async def test_a_killed_server(real: Backend, folder: Path, mode: str) -> None:
    seconds = nap()
    words = [sys.executable, "-m", "trio_claude", "serve", "--port", "0", "--containment", mode, "--cwd", str(real.cwd)]
    server = await trio.lowlevel.open_process(
        [*words, "--cli", real.program, "--cli-args=--allowed-tools=Bash", "--env", "TCT_BACKEND"],
        env={**real.environ, "TCT_BACKEND": real.mark}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/",
    )  # fmt: skip
    assert server.stdout
    try:
        url = (await server.stdout.receive_some()).decode().rpartition("listening on ")[2].strip()
        async with open_websocket_url(f"{url.replace('http', 'ws')}/ws/claude") as socket:
            command = f"{children(seconds)}; echo >started; (sleep {seconds})"
            await socket.send_message(json.dumps({"prompt": directive("bash", cmd=command), "meta": "T"}))
            await until(lambda: (real.cwd / "started").exists() and len(sleepers(seconds)) >= 6, 20)
            home = folder_of(server.pid)
            server.kill()
            await until(lambda: not sleepers(seconds), 3)
            await listen(socket)
            await socket._stream.aclose()
    finally:
        server.kill()
        await server.wait()
        await server.stdout.aclose()
    await until(lambda: not real.left(), 3)
    async with real.serve(containment=mode) as after:  # the next server removes what only a server can
        assert (await ask(after, "hello")).code == 1000
    assert not home.exists()
