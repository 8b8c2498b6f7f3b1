"""Rule: one batch at a time writes to a file of results, and its lock goes with it."""

from __future__ import annotations

import fcntl
import signal
import subprocess
from pathlib import Path

import pytest
import trio
from batches import PROGRAM, batch, environ, left, results, write_tasks
from harness import Backend, directive, until

from trio_claude.batch.files import Unwritable
from trio_claude.batch.locks import alone, lock_of


def test_a_second_one_is_refused_by_name(folder: Path) -> None:
    out = folder / "r.jsonl"
    (folder / "link").symlink_to(out)
    with alone(out):
        for path in (out, folder / "link"):
            with pytest.raises(Unwritable, match=r"another batch writes to it and has .*r\.jsonl\.lock"), alone(path):
                pass
    assert not lock_of(out).exists()
    with alone(out):
        pass


def test_a_lock_of_somebody_else_is_left(folder: Path) -> None:
    out = folder / "r.jsonl"
    lock_of(out).write_text("text of mine")
    with alone(out):
        pass
    assert lock_of(out).read_text() == "text of mine"
    lock_of(out).unlink()
    with alone(out):
        lock_of(out).rename(folder / "moved")
        lock_of(out).touch()
    assert lock_of(out).exists()


def test_a_lock_that_is_removed_while_it_is_taken_is_taken_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, real, times = folder / "r.jsonl", fcntl.flock, []

    def flock(descriptor: int, how: int) -> None:
        if not times:
            lock_of(out).unlink()
        times.append(descriptor)
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with alone(out):
        assert len(times) == 2
        assert lock_of(out).exists()


def test_a_device_has_none() -> None:
    with alone(Path("/dev/full")):
        assert not Path("/dev/full.lock").exists()


async def test_two_batches_on_one_file(fake: Backend, folder: Path) -> None:
    tasks = write_tasks(folder, "hello", directive("silent"))
    process = await trio.lowlevel.open_process(
        [*PROGRAM, tasks, "--concurrency", "1"], env=environ(fake), cwd=folder, stderr=subprocess.DEVNULL
    )
    await until(lambda: bool(results(folder)), 30)
    before = (folder / "results.jsonl").read_bytes()
    for words in (["--resume"], ["--force"], ["--force", "--out", "results"]):
        told = await batch(fake, folder, tasks, *words)
        assert (told.status, told.stderr.count("\n")) == (2, 1)
        name = "results.manifest.json" if "--out" in words else "results.jsonl"
        assert f"{name}: another batch writes to it" in told.stderr
    assert (folder / "results.jsonl").read_bytes() == before
    process.send_signal(signal.SIGINT)
    with trio.fail_after(20):
        assert await process.wait() == 130
    assert sorted(path.name for path in folder.glob("results*")) == ["results.jsonl", "results.manifest.json"]
    assert left(fake) == []
