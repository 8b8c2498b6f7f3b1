"""Rule: what a dead server left is ended and removed before a port opens; a living server's is never touched."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import trio
from harness import alive

from trio_claude.leftovers import open_home, sweep


def leave(root: Path, server: str) -> Path:
    folder = root / f"tcl-{server}"
    folder.mkdir()
    (folder / "lock").write_text("")
    (folder / "run").mkdir()
    (folder / "run" / "file").write_text("x")
    return folder


async def start(mark: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(["sleep", "30"], env={"PATH": os.environ["PATH"], "TRIO_CLAUDE_RUN": mark})
    await trio.sleep(0.1)
    return process


async def test_a_dead_servers_processes_and_folders_are_gone(folder: Path) -> None:
    left = leave(folder, "dead")
    ours, other = await start("dead:1"), await start("deader:1")
    try:
        assert await sweep(folder) == ["dead"]
        assert not alive(ours.pid)
        assert alive(other.pid)
        assert not left.exists()
    finally:
        for process in (ours, other):
            process.kill()
            process.wait()


async def test_a_living_servers_are_not_touched(folder: Path) -> None:
    living = leave(folder, "living")
    process = await start("living:1")
    lock = os.open(living / "lock", os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert await sweep(folder) == []
        assert alive(process.pid)
        assert (living / "run" / "file").exists()
    finally:
        os.close(lock)
        process.kill()
        process.wait()


async def test_what_is_no_servers_folder_is_not_touched(folder: Path) -> None:
    (folder / "tcl-without-lock").mkdir()
    (folder / "other").mkdir()
    (folder / "tcl-link").symlink_to("/etc")
    assert await sweep(folder) == []
    assert len(list(folder.iterdir())) == 3


async def test_a_servers_own_folder_is_locked_and_removed() -> None:
    async with open_home() as home:
        assert home.server not in await sweep(home.folder.parent)
        assert home.folder.exists()
    assert not home.folder.exists()
