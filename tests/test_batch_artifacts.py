"""Rule: what a run makes or changes in its workspace is copied, and nothing that a link of the model's leads to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from batches import batch, write_tasks
from harness import Backend, directive

from trio_claude.batch import artifacts
from trio_claude.batch.artifacts import Artifacts
from trio_claude.batch.files import Unwritable


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def later(path: Path) -> int:
    """Return a moment behind the last change of a file."""
    return path.stat().st_ctime_ns + 1


def test_what_has_changed_is_copied(folder: Path) -> None:
    work, out = folder / "work" / "w", folder / "out"
    (work / "a" / "b").mkdir(parents=True)
    (work / "old").write_text("old")
    since = later(work / "old")
    while (work / "new").write_text("new") and (work / "new").stat().st_ctime_ns < since:
        pass
    (work / "a" / "b" / "deep").write_text("deep")
    assert Artifacts(folder / "work", out).collect("1", "w", since) is None
    assert tree(out) == {"1/a/b/deep": "deep", "1/new": "new"}
    (out / "1" / "of an attempt before").write_text("x")
    assert Artifacts(folder / "work", out).collect("1", "w", since) is None
    assert tree(out) == {"1/a/b/deep": "deep", "1/new": "new"}


def test_links_and_pipes_are_not_followed(folder: Path) -> None:
    work, secret = folder / "work" / "w", folder / "secret"
    work.mkdir(parents=True)
    secret.mkdir()
    (secret / "s").write_text("secret")
    (work / "file").symlink_to(secret / "s")
    (work / "folder").symlink_to(secret)
    os.mkfifo(work / "pipe")
    assert Artifacts(folder / "work", folder / "out").collect("1", "w", 0) is None
    assert not (folder / "out").exists()


def test_what_is_too_much_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "work" / "w").mkdir(parents=True)
    for number in range(5):
        (folder / "work" / "w" / str(number)).write_text("x" * 10)
    for name, value in (("FILES", 3), ("BYTES", 35)):
        with monkeypatch.context() as patch:
            patch.setattr(artifacts, name, value)
            assert "more than" in (Artifacts(folder / "work", folder / "out").collect("1", "w", 0) or "")
            assert len(tree(folder / "out")) == 3


def test_a_folder_that_can_not_be_written_is_named(folder: Path) -> None:
    (folder / "work" / "w").mkdir(parents=True)
    (folder / "work" / "w" / "f").write_text("x")
    (folder / "out").write_text("a file")
    with pytest.raises(Unwritable, match="out/1: Not a directory"):
        Artifacts(folder / "work", folder / "out").collect("1", "w", 0)


async def test_a_batch_collects_what_its_runs_leave(fake: Backend, folder: Path) -> None:
    for name in ("one", "two"):
        (folder / "work" / name).mkdir(parents=True)
        (folder / "work" / name / "before").write_text("x")
        os.utime(folder / "work" / name / "before")
    tasks = write_tasks(
        folder,
        {"prompt": directive("bash", cmd="echo made > made"), "workspace": "one", "id": "a"},
        {"prompt": directive("bash", cmd="mkdir -p d && echo deep > d/deep"), "workspace": "two", "id": "b"},
        {"prompt": "hello", "id": "c"},
    )
    words = [
        "--workspaces",
        str(folder / "work"),
        "--artifacts",
        str(folder / "out"),
        "--profile",
        "unattended",
        "--allow-unattended",
    ]
    told = await batch(fake, folder, tasks, *words, "--concurrency", "1", IS_SANDBOX="1", TRIO_CLAUDE_ENV="IS_SANDBOX")
    assert told.status == 0, told.stderr
    assert tree(folder / "out")["a/made"] == "made\n"
    assert tree(folder / "out")["b/d/deep"] == "deep\n"
    assert "c" not in os.listdir(folder / "out")


async def test_it_takes_workspaces_of_its_own(fake: Backend, folder: Path) -> None:
    tasks = write_tasks(folder, "hello")
    for words, match in (([], "takes --workspaces"), (["--url", "http://127.0.0.1:1"], "no meaning with --url")):
        told = await batch(fake, folder, tasks, "--artifacts", "out", *words)
        assert told.status == 2
        assert match in told.stderr
