"""Rule: what a run makes or changes in its workspace is copied, and nothing that a link of the model's leads to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import trio
from batches import batch, write_tasks
from harness import Backend, directive

from trio_claude.batch import artifacts
from trio_claude.batch.artifacts import Artifacts
from trio_claude.batch.doors import Hear
from trio_claude.batch.files import ResultsFile, Unwritable
from trio_claude.batch.results import Finish
from trio_claude.batch.runner import Runner, Settings
from trio_claude.batch.tasks import Rules, make_plan
from trio_claude.config import OPTIONS
from trio_claude.messages import Prompt


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def collected(folder: Path, workspace: str = "w") -> str:
    return Artifacts(folder / "work", folder / "out", force=True).collect("1", workspace, 0)


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
    copies = Artifacts(folder / "work", out)
    assert copies.collect("1", "w", since) == "2 files"
    assert tree(out) == {"1/a/b/deep": "deep", "1/new": "new"}
    (out / "1" / "of an attempt before").write_text("x")
    assert copies.collect("1", "w", since) == "2 files"
    assert tree(out) == {"1/a/b/deep": "deep", "1/new": "new"}
    assert copies.collect("2", "no workspace", since) == "0 files"


def test_links_and_pipes_are_not_followed(folder: Path) -> None:
    work, secret = folder / "work" / "w", folder / "secret"
    work.mkdir(parents=True)
    secret.mkdir()
    (secret / "s").write_text("secret")
    (work / "file").symlink_to(secret / "s")
    (work / "folder").symlink_to(secret)
    os.mkfifo(work / "pipe")
    assert collected(folder) == "0 files"
    (folder / "work" / "x").symlink_to(secret)
    assert collected(folder, "x") == "0 files; 1 could not be read"
    assert tree(folder / "out") == {}


def test_a_file_that_becomes_a_link_is_not_followed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, real = folder / "work" / "w", os.open
    work.mkdir(parents=True)
    (folder / "secret").write_text("secret")
    (work / "file").write_text("x")

    def swapped(path: str, flags: int, *more: int, dir_fd: int | None = None) -> int:
        if path == "file":
            (work / "file").unlink()
            (work / "file").symlink_to(folder / "secret")
        return real(path, flags, *more, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", swapped)
    assert collected(folder) == "0 files; 1 could not be read"
    assert tree(folder / "out") == {}


def test_what_is_too_much_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "work" / "w").mkdir(parents=True)
    for number in range(5):
        (folder / "work" / "w" / str(number)).write_text("x" * 10)
    for name, value in (("FILES", 3), ("BYTES", 35)):
        with monkeypatch.context() as patch:
            patch.setattr(artifacts, name, value)
            assert "3 files; there is more than" in collected(folder)
            assert len(tree(folder / "out")) == 3


def test_a_file_that_grows_while_it_is_read_takes_no_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "work" / "w").mkdir(parents=True)
    file, real = folder / "work" / "w" / "f", os.read
    file.write_text("12345")

    def growing(descriptor: int, size: int) -> bytes:
        with file.open("a") as more:
            more.write("x" * 100)
        return real(descriptor, min(size, 2))

    monkeypatch.setattr(os, "read", growing)
    assert collected(folder) == "1 file"
    assert tree(folder / "out") == {"1/f": "12345"}


def test_what_can_not_be_read_is_counted_and_stops_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, real = folder / "work" / "w", os.open
    work.mkdir(parents=True)
    for name in ("gone", "shut", "good"):
        (work / name).write_text(name)

    def failing(path: str, flags: int, *more: int, dir_fd: int | None = None) -> int:
        if path in ("gone", "shut"):
            raise FileNotFoundError if path == "gone" else PermissionError
        return real(path, flags, *more, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", failing)
    assert collected(folder) == "1 file; 2 could not be read"
    assert tree(folder / "out") == {"1/good": "good"}


def test_what_breaks_while_it_is_read_is_not_left_in_half(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "work" / "w").mkdir(parents=True)
    (folder / "work" / "w" / "f").write_text("x")

    def broken(descriptor: int, size: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "read", broken)
    assert collected(folder) == "0 files; 1 could not be read"
    assert tree(folder / "out") == {}


@pytest.mark.parametrize("name", ["d", "d" * 200])
def test_folders_without_an_end(folder: Path, name: str) -> None:
    """Too deep, or with paths that are too long."""
    (folder / "work" / "w").mkdir(parents=True)
    (folder / "work" / "w" / "top").write_text("x")
    here = os.open(folder / "work" / "w", os.O_RDONLY)
    for _ in range(1500):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=below))
        os.close(here)
        here = below
    os.close(here)
    told = collected(folder)
    files, missed = (int(part.split()[0]) for part in told.split("; "))
    assert files == artifacts.DEPTH + 1 if name == "d" else 10 <= files < artifacts.DEPTH
    assert files + missed == artifacts.DEPTH + 2, "each file that was seen, and the folder that was not looked into"
    shutil.rmtree(folder / "out")
    subprocess.run(["rm", "-rf", str(folder / "work")], check=True)


def test_a_folder_that_can_not_be_written_is_named(folder: Path) -> None:
    (folder / "work" / "w").mkdir(parents=True)
    (folder / "work" / "w" / "f").write_text("x")
    (folder / "file").write_text("a file")
    with pytest.raises(Unwritable, match="file: File exists"):
        Artifacts(folder / "work", folder / "file")
    copies = Artifacts(folder / "work", folder / "out")
    (folder / "out").rmdir()
    (folder / "out").write_text("a file")
    with pytest.raises(Unwritable, match="out/1: Not a directory"):
        copies.collect("1", "w", 0)


def test_a_folder_with_something_in_it_is_not_taken(folder: Path) -> None:
    (folder / "out" / "1").mkdir(parents=True)
    with pytest.raises(Unwritable, match="out is not empty; --force"):
        Artifacts(folder / "work", folder / "out")
    Artifacts(folder / "work", folder / "out", force=True)


@pytest.mark.parametrize("name", ["work", "work/w/out", ".", "link/out"])
def test_a_folder_is_apart_from_the_workspaces(folder: Path, name: str) -> None:
    (folder / "work").mkdir()
    (folder / "link").symlink_to(folder / "work")
    with pytest.raises(Unwritable, match="must be apart from the workspaces"):
        Artifacts(folder / "work", folder / name, force=True)


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
    assert [int(str(note).split()[0]) > 0 for note in told.of("artifacts")[:2]] == [True, True]
    assert told.results[2]["artifacts"] is None


async def test_it_takes_workspaces_of_its_own(fake: Backend, folder: Path) -> None:
    tasks = write_tasks(folder, "hello")
    for words, match in (([], "takes --workspaces"), (["--url", "http://127.0.0.1:1"], "no meaning with --url")):
        told = await batch(fake, folder, tasks, "--artifacts", "out", *words)
        assert told.status == 2
        assert match in told.stderr


@pytest.mark.parametrize("isolation", ["identity", "run"])
async def test_it_takes_workspaces_that_are_shared(fake: Backend, folder: Path, isolation: str) -> None:
    words = ["--workspaces", str(folder), "--artifacts", "out"]
    told = await batch(fake, folder, write_tasks(folder, "hello"), *words, TRIO_CLAUDE_ISOLATION=isolation)
    assert told.status == 2
    assert f"--artifacts can't be had with isolation {isolation}" in told.stderr


async def test_folders_of_the_operator_stay(fake: Backend, folder: Path) -> None:
    (folder / "work" / "w").mkdir(parents=True)
    (folder / "out" / "1").mkdir(parents=True)
    (folder / "out" / "1" / "mine").write_text("mine")
    tasks = write_tasks(folder, {"prompt": "hello", "workspace": "w"})
    words = ["--workspaces", str(folder / "work"), "--artifacts"]
    for more, match in (
        (["out"], "out is not empty"),
        (["out", "--resume"], "out is not empty"),
        (["work"], "must be apart"),
    ):
        told = await batch(fake, folder, tasks, *words, *more)
        assert (told.status, told.stderr.count("\n")) == (2, 1)
        assert match in told.stderr
    assert tree(folder / "out") == {"1/mine": "mine"}


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_no_batch_has_made_is_kept(folder: Path, kind: str) -> None:
    for name in ("work/w", "out", "other"):
        (folder / name).mkdir(parents=True)
    (folder / "work" / "w" / "f").write_text("new")
    mine = folder / "out" / "1"
    {"folder": mine.mkdir, "file": mine.touch, "link": lambda: mine.symlink_to(folder / "other")}[kind]()
    copies = Artifacts(folder / "work", folder / "out", force=True)
    for run in (lambda: copies.keep_off(["2", "1"]), lambda: copies.collect("1", "w", 0)):
        with pytest.raises(Unwritable, match="out/1: no batch has made this, so it is kept; --artifacts takes another"):
            run()
    assert os.path.lexists(mine)
    assert not list((folder / "other").iterdir())
    copies.keep_off(["2"])
    assert copies.collect("2", "w", 0) == "1 file"
    copies.keep_off(["2"])


@pytest.mark.parametrize("way", ["out", "link"])
def test_no_path_of_the_batch_is_below_a_runs_folder(folder: Path, way: str) -> None:
    (folder / "out" / "1").mkdir(parents=True)
    (folder / "out" / artifacts.MADE / "1").mkdir(parents=True)
    (folder / "link").symlink_to(folder / "out")
    copies = Artifacts(folder / "work", folder / "out", force=True)
    with pytest.raises(Unwritable, match="it is where the files of 1 go; --artifacts"):
        copies.keep_off(["2", "1"], folder / "other", folder / way / "1" / "deep" / "r.jsonl")
    copies.keep_off(["2", "1"], folder / "out" / "r.jsonl", folder / "r.jsonl", folder / "out" / "3" / "r.jsonl")


async def test_a_batch_keeps_what_is_not_its_own(fake: Backend, folder: Path) -> None:
    (folder / "work").mkdir(exist_ok=True)
    for name in ("src", "all"):
        (folder / "out" / name).mkdir(parents=True)
        (folder / "out" / name / "mine").write_text("mine")
    (folder / "out" / artifacts.MADE / "all").mkdir(parents=True)
    words = ["--workspaces", str(folder / "work"), "--artifacts", "out", "--force"]
    for name, more, match in (
        ("src", [], "no batch has made this"),
        ("all", ["--out", "out/all/results.jsonl"], "where the files of all go"),
        ("all", ["--lines", "out/all/lines"], "where the files of all go"),
    ):
        told = await batch(
            fake, folder, write_tasks(folder, {"prompt": "hello", "id": name, "workspace": "w"}), *words, *more
        )
        assert (told.status, told.stderr.count("\n")) == (2, 1)
        assert match in told.stderr
    assert tree(folder / "out") == {"all/mine": "mine", "src/mine": "mine"}


async def test_a_run_is_recorded_before_a_full_disk_stops_all(autojump_clock: object, folder: Path) -> None:
    class Full(Artifacts):
        def collect(self, run: str, workspace: str, since: int) -> str:
            if run == "2":
                raise Unwritable("out/2: No space left on device")
            time.sleep(0.05)  # not of the run's seconds
            return "7 files; 1 could not be read"

    class Door:
        async def run(self, prompt: Prompt, hear: Hear) -> Finish:
            await trio.sleep(1)
            return Finish(reason="exit", exit_status=0)

        async def stop(self) -> None:
            pass

    told = make_plan(b'{"prompt":"hi","workspace":"w"}\n' * 5, Rules(OPTIONS, 300))
    settings = Settings(concurrency=1, artifacts=Full(folder / "work", folder / "out"))
    with ResultsFile(folder / "r.jsonl", force=False) as out, pytest.raises(Unwritable, match="No space left"):
        await Runner(told, Door(), out, settings).run()
    lines = [json.loads(line) for line in (folder / "r.jsonl").read_text().splitlines()]
    assert [(line["ok"], line["reason"], line["seconds"]) for line in lines[:2]] == [(True, "exit", 1.0)] * 2
    assert [line["reason"] for line in lines[2:]] == ["cancelled"] * 3
    assert [line["artifacts"] for line in lines[:2]] == [
        "7 files; 1 could not be read",
        "could not be written: out/2: No space left on device",
    ]
