"""Rule: nothing is written over unasked, and a full disk is an error that names the file."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from trio_claude.batch import files
from trio_claude.batch.files import (
    LinesFolder,
    OutFile,
    ResultsFile,
    Unwritable,
    ahead_of,
    check_free,
    check_whole,
    read_tasks,
    sweep,
    write_whole,
)
from trio_claude.batch.locks import lock_of
from trio_claude.batch.tasks import BadTasks


def test_what_is_written_is_there_at_once(folder: Path) -> None:
    with OutFile(folder / "out", force=False) as out:
        out.write(b"one\n")
        assert (folder / "out").read_bytes() == b"one\n"
        out.write(b"two\n")
    assert (folder / "out").read_bytes() == b"one\ntwo\n"
    write_whole(folder / "out", [b"three\n"])
    assert (folder / "out").read_bytes() == b"three\n"
    with pytest.raises(Unwritable, match="nope"):
        write_whole(folder / "nope" / "out", [])


def test_a_file_that_is_replaced_keeps_its_link_and_its_mode(folder: Path) -> None:
    (folder / "real").write_text("x")
    (folder / "real").chmod(0o640)
    (folder / "link").symlink_to("real")
    (folder / "real.new").write_text("mine")
    write_whole(folder / "link", [b"new"])
    assert (folder / "link").is_symlink()
    assert (folder / "real").read_bytes() == b"new"
    assert (folder / "real").stat().st_mode & 0o777 == 0o640
    assert (folder / "real.new").read_text() == "mine"


def test_what_can_not_be_replaced_stays_and_nothing_is_left_beside_it(folder: Path) -> None:
    (folder / "out").write_text("old")

    def lines() -> Iterator[bytes]:
        yield b"new"
        raise Unwritable("elsewhere")

    with pytest.raises(Unwritable, match="elsewhere"):
        write_whole(folder / "out", lines())
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"out": "old"}


def test_what_a_kill_left_of_a_replacement_is_swept_and_nothing_else(folder: Path) -> None:
    names = {f"out.{'0' * 16}.new", "out", "out.new", "out.mine.new", f"other.{'0' * 16}.new", f"out.{'0' * 16}.new.x"}
    for name in names:
        (folder / name).touch()
    (folder / "link").symlink_to("out")
    sweep(folder / "link")
    assert names - {path.name for path in folder.iterdir()} == {f"out.{'0' * 16}.new"}
    sweep(Path("/dev/stdout"))


def test_whether_a_file_can_be_put_there_is_seen_before(folder: Path) -> None:
    (folder / "old").write_text("old")
    check_whole(folder / "old")
    check_whole(folder / "new")
    check_whole(Path("/dev/null"))
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"old": "old"}
    for path, why in (("no/m", "No such file"), ("n" * 240, "File name too long"), ("old/m", "Not a directory")):
        with pytest.raises(Unwritable, match=why):
            check_whole(folder / path)


def test_beside_a_pipe_or_a_device_nothing_is_made(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    reader = os.open(folder / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with ResultsFile(folder / "pipe", force=True) as out:
        out.keep(b"later\n")
        out.write(b"now\n")
        out.drop()
    assert os.read(reader, 100) == b"now\n"
    os.close(reader)
    assert os.listdir(folder) == ["pipe"]
    with pytest.raises(Unwritable, match="exists"):
        ResultsFile(folder / "pipe", force=False)
    write_whole(Path("/dev/null"), [b"x"])
    assert not Path("/dev/null").is_file()


def test_a_file_that_exists_is_kept_unless_forced(folder: Path) -> None:
    (folder / "out").write_text("mine")
    with pytest.raises(Unwritable, match="out exists; --force writes over it"):
        OutFile(folder / "out", force=False)
    assert (folder / "out").read_text() == "mine"
    OutFile(folder / "out", force=True).close()
    assert (folder / "out").read_text() == ""


@pytest.mark.parametrize("manifest", ["r.jsonl", "sub/../r.jsonl", "here/r.jsonl", "link", "r.jsonl.lock"])
def test_one_file_is_not_for_two_things_whatever_its_path(
    folder: Path, manifest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "sub").mkdir()
    (folder / "here").symlink_to(".")
    (folder / "link").symlink_to("r.jsonl")
    out = Path("r.jsonl")
    for force in (False, True):
        with pytest.raises(Unwritable, match="is named for two things"):
            check_free(out, Path(manifest), locks=[lock_of(out)], keep="-", force=force)
        check_free(out, Path("here/m.json"), locks=[lock_of(out)], keep="-", force=force)


def test_a_terminal_may_be_two_things(folder: Path) -> None:
    ours, theirs = os.openpty()
    terminal = Path(os.ttyname(theirs))
    check_free(terminal, terminal, locks=[lock_of(folder / "r.jsonl")], keep="-", force=True)
    os.close(ours)
    os.close(theirs)


def test_what_leads_nowhere_is_named(folder: Path) -> None:
    loop = folder / "loop"
    loop.symlink_to("loop")
    with pytest.raises(Unwritable, match="loop: "):
        check_free(ahead_of(folder / "r"), loop, locks=[folder / "r.lock"], keep="-", force=True)


def test_no_folder_is_named(folder: Path) -> None:
    with pytest.raises(Unwritable, match="No such file or directory"):
        OutFile(folder / "nope" / "out", force=False)


def test_a_full_disk_is_named() -> None:
    with (
        OutFile(Path("/dev/full"), force=True) as out,
        pytest.raises(Unwritable, match="/dev/full: No space left on device"),
    ):
        out.write(b"x")


def test_of_a_record_that_has_no_room_whole_nothing_stays(folder: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with OutFile(folder / "out", force=False) as out:
        out.write(b"one\n")
        resource.setrlimit(resource.RLIMIT_FSIZE, (6, hard))
        try:
            with pytest.raises(Unwritable, match="out: File too large"):
                out.write(b"two\n")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (folder / "out").read_bytes() == b"one\n"


def test_lines_go_to_an_empty_folder(folder: Path) -> None:
    lines = LinesFolder(folder / "a" / "b", force=False)
    with lines.open("1") as out:
        out.write(b"first attempt\n")
    with lines.open("1") as out:
        out.write(b"{}\n")
    assert (folder / "a" / "b" / "1.jsonl").read_bytes() == b"{}\n"
    with pytest.raises(Unwritable, match="is not empty"):
        LinesFolder(folder / "a" / "b", force=False)
    LinesFolder(folder / "a" / "b", force=True)
    with pytest.raises(Unwritable):
        LinesFolder(folder / "a" / "b" / "1.jsonl", force=True)


@pytest.mark.parametrize("path", ["lines/x.jsonl", "here/lines/x.jsonl", "link"])
def test_lines_are_not_written_over_a_file_of_the_batch(folder: Path, path: str) -> None:
    lines = LinesFolder(folder / "lines", force=False)
    (folder / "here").symlink_to(".")
    (folder / "link").symlink_to("lines/x.jsonl")
    lines.keep_off(["x", "y"], folder / "x.jsonl", folder / "lines" / "z.jsonl")
    with pytest.raises(Unwritable, match="the lines of x would be written over it"):
        lines.keep_off(["w", "x"], folder / "z.jsonl", folder / path)


def test_tasks_that_cant_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadTasks, match="nope: No such file or directory"):
        read_tasks(str(folder / "nope"))
    (folder / "big").write_bytes(b"x" * 11)
    monkeypatch.setattr(files, "FILE_LIMIT", 10)
    with pytest.raises(BadTasks, match="tasks must be at most 10 bytes"):
        read_tasks(str(folder / "big"))
