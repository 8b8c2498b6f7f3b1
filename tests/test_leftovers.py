"""Rule: what a dead server left is ended and removed before a port opens; a living server's is never touched."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import trio
from harness import alive, descriptors

from trio_claude import leftovers
from trio_claude.containment import marks
from trio_claude.errors import ConfigError
from trio_claude.leftovers import LOCK, open_home, remove_tree, sweep


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
    left = leave(folder, "dead_123")
    ours, other = await start("dead_123:1"), await start("deader:1")
    try:
        assert await sweep(folder) == ["dead_123"]
        assert not alive(ours.pid)
        assert alive(other.pid)
        assert not left.exists()
    finally:
        for process in (ours, other):
            process.kill()
            process.wait()


async def test_where_the_system_shows_no_processes_folders_are_removed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marks, "PROC", folder / "proc")
    left = leave(folder, "dead_123")
    assert await sweep(folder) == ["dead_123"]
    assert not left.exists()


async def test_where_no_temporary_file_can_be_made_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: ["/nope"])
    with pytest.raises(ConfigError, match=r"no folder for temporary files: .*/nope.*; TMPDIR names another place"):
        async with open_home():
            pytest.fail("opened")


async def test_a_place_that_is_too_long_is_not_taken_and_one_in_its_stead_is_asked_for_with_its_length(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/" + "t" * leftovers.LONGEST)
    monkeypatch.setattr("tempfile.mkdtemp", lambda prefix, **where: os.mkdir(where["dir"] / "nope" / prefix))
    told = rf"No such file .*'/tmp/nope/.*; TMPDIR names another place, of at most {leftovers.LONGEST} bytes"
    with pytest.raises(ConfigError, match=told):
        async with open_home():
            pytest.fail("opened")


@pytest.mark.parametrize(("real", "is_link"), [("real", False), ("r" * leftovers.LONGEST, True)], ids=["short", "long"])
async def test_a_link_leads_to_temporary_files_only_where_it_makes_their_paths_short(
    monkeypatch: pytest.MonkeyPatch, real: str, is_link: bool
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as top:
        (Path(top) / real).mkdir()
        (Path(top) / "link").symlink_to(Path(top) / real)
        monkeypatch.setattr("tempfile.tempdir", f"{top}/link")
        async with open_home() as home:
            assert home.folder.parent == Path(top, "link" if is_link else real)


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
    leave(folder, "project")
    leave(folder, "Dead_123")
    assert await sweep(folder) == []
    assert len(list(folder.iterdir())) == 5


async def test_a_servers_own_folder_is_locked_and_removed() -> None:
    """Its lock, as other servers look at it, and the folder itself, as systemd-tmpfiles does."""
    async with open_home() as home:
        whole = os.open(home.folder, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(whole, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(whole)
        assert home.server not in await sweep(home.folder.parent)
        assert home.folder.exists()
    assert not home.folder.exists()


async def test_a_folder_that_can_not_be_locked_is_not_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setattr("trio_claude.leftovers.LOCK", "none/lock")
    with pytest.raises(ConfigError, match=r"No such file or directory: .*TMPDIR names another place"):
        async with open_home():
            pytest.fail("opened")
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("age", "name", "left"),
    [
        (90, "unborn_1", 0),
        (0, "unborn_1", 1),
        (90, "UNBORN_1", 1),
        (90, "full_123", 1),
        (90, "free_123", 0),
        (0, "free_123", 1),
        (90, "held_123", 1),
    ],
)
async def test_what_died_before_it_had_a_lock_is_removed(folder: Path, age: float, name: str, left: int) -> None:
    unborn = folder / f".tcl-{name}"
    unborn.mkdir()
    if name.startswith("full"):
        (unborn / "file").touch()
    if name.startswith(("free", "held")):
        (unborn / LOCK).touch()
    then = time.time() - age
    os.utime(unborn, (then, then))
    with contextlib.ExitStack() as held:
        if name.startswith("held"):
            fcntl.flock(held.enter_context((unborn / LOCK).open("rb")), fcntl.LOCK_EX)
        assert await sweep(folder) == []
    assert len(list(folder.iterdir())) == left
    assert (unborn / LOCK).exists() == (name.startswith("held") or (age, name) == (0, "free_123"))


# -- removing ---------------------------------------------------------------------------------------------------------

SWEEP = """
import sys, trio
from pathlib import Path
from trio_claude.leftovers import sweep
print(*trio.run(sweep, Path(sys.argv[1])))
"""


def sweep_without_rights(root: Path) -> list[str]:
    """Sweep as one who has no more rights in his folders than they say, which root has; return the servers' ids."""
    words = [] if os.getuid() else ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    told = subprocess.run(
        [*words, sys.executable, "-c", SWEEP, str(root)], capture_output=True, text=True, check=True, timeout=60
    )
    return told.stdout.split()


@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_a_folder_without_rights_is_removed(folder: Path, mode: int) -> None:
    left = leave(folder, "dead_123")
    inner = left / "run" / "mod"
    for name in ("pkg", "other"):
        (inner / name / "deeper").mkdir(parents=True)
        (inner / name / "deeper" / "file").write_text("x")
    for path in (*inner.rglob("*"), inner, left / "run"):
        if path.is_dir() and (path == inner or inner not in path.parents or mode == 0o555):
            path.chmod(mode)
    assert sweep_without_rights(folder) == ["dead_123"]
    assert not left.exists()


def test_no_link_is_followed_to_what_has_other_rights(folder: Path) -> None:
    outside = folder / "outside"
    (outside / "inner").mkdir(parents=True)
    (outside / "inner" / "file").write_text("x")
    for path in (outside / "inner", outside):
        path.chmod(0o555)
    left = leave(folder, "dead_123")
    (left / "run" / "link").symlink_to(outside)
    (left / "link").symlink_to(outside)
    (left / "nowhere").symlink_to("/nope")
    (left / "run").chmod(0o555)
    assert sweep_without_rights(folder) == ["dead_123"]
    assert not left.exists()
    assert (outside / "inner" / "file").read_text() == "x"
    assert [path.stat().st_mode & 0o777 for path in (outside, outside / "inner")] == [0o555] * 2
    for path in (outside, outside / "inner"):
        path.chmod(0o700)


@pytest.mark.root
def test_what_can_not_be_removed_is_found_again(folder: Path) -> None:
    """A folder of another user in one that only he may change, until somebody has seen to it."""
    left = leave(folder, "dead_123")
    (left / "run" / "his").mkdir()
    (left / "run" / "his" / "file").touch()
    os.chown(left / "run" / "his", 65534, 65534)
    assert sweep_without_rights(folder) == ["dead_123"]
    assert (left / "lock").exists()
    assert sweep_without_rights(folder) == ["dead_123"]
    (left / "lock").unlink()
    remove_tree(left)
    assert not left.exists()


def test_no_folder_is_too_deep_and_no_descriptor_stays(folder: Path) -> None:
    deep = folder / "deep"
    deep.mkdir()
    here = os.open(deep, os.O_RDONLY)
    for number in range(5000):
        for name in ("a", "b")[: 1 + (number % 100 == 0)]:
            os.mkdir(name, dir_fd=here)
        below = os.open("a", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    before = descriptors()
    remove_tree(deep)
    assert not deep.exists()
    assert descriptors() == before


@pytest.mark.parametrize("kind", ["link", "dangling", "file", "none"])
def test_what_is_no_folder_is_removed_alone(folder: Path, kind: str) -> None:
    (folder / "other").mkdir()
    (folder / "other" / "file").touch()
    one = folder / "one"
    if kind in ("link", "dangling"):
        one.symlink_to(folder / ("other" if kind == "link" else "nope"))
    elif kind == "file":
        one.touch()
    remove_tree(one)
    assert [path.name for path in folder.iterdir()] == ["other"]
    assert (folder / "other" / "file").exists()
