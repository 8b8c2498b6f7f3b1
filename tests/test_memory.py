"""Rule: what a control group leaves of the machine's memory is all that there is, whatever kind of group, and where."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trio_claude import memory
from trio_claude.config import MIB, Config

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
TWO, ONE = "memory.max", "memory.limit_in_bytes"


@pytest.mark.parametrize(
    ("kind", "groups", "limits", "left"),
    [
        ("cgroup2 rw", "0::/", {f"/{TWO}": 64}, 64),  # a container with a view of its own
        ("cgroup2 rw", "0::/a/b", {f"/a/b/{TWO}": 64, f"/a/{TWO}": 96}, 64),
        ("cgroup2 rw", "0::/a/b", {f"/a/b/{TWO}": "max", f"/a/{TWO}": 96}, 96),  # the one above holds, too
        ("cgroup2 rw", "0::/../other", {f"/{TWO}": "max"}, None),
        ("cgroup rw,memory", "4:cpu,memory:/docker/x", {f"/{ONE}": 64}, 64),  # and one without
        ("cgroup rw,memory", "4:memory:/", {f"/{ONE}": 2**63 // MIB - 1}, None),
        ("cgroup rw,cpu", "3:cpu:/", {f"/{ONE}": 64}, None),
        ("cgroup2 rw", "not what a kernel says", {}, None),
        ("tmpfs rw", "0::/", {f"/{TWO}": 64}, None),
    ],
)
def test_a_limit_of_memory_is_all_that_there_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, groups: str, limits: dict[str, object], left: int | None
) -> None:
    for name, limit in limits.items():
        file = folder / "mount" / name.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{limit * MIB if isinstance(limit, int) else limit}\n")
    odd = b"any /may/have\x0cany\xffname fuse rw 0 0\n"
    (folder / "mounts").write_bytes(odd + os.fsencode(f"groups {folder / 'mount'} {kind} 0 0\n"))
    (folder / "groups").write_text(f"{groups}\n")
    monkeypatch.setattr(memory, "MOUNTS", folder / "mounts")
    monkeypatch.setattr(memory, "GROUPS", folder / "groups")
    assert memory.available() == (left * MIB if left else MACHINE)
    assert Config(run_memory=32 * MIB).run_slots == (left // 32 if left else MACHINE // (32 * MIB))


def test_where_no_group_is_told_it_is_the_machines(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "GROUPS", folder / "nothing")
    assert memory.available() == MACHINE


@pytest.mark.parametrize(("limit", "left"), [("64", 64), ("max", 96), ("none", 96)])
def test_runs_that_have_groups_elsewhere_have_what_is_left_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, limit: str, left: int
) -> None:
    monkeypatch.setattr(memory, "GROUPS", folder / "nothing")
    runs = folder / "above" / "runs"
    runs.mkdir(parents=True)
    (runs.parent / TWO).write_text(f"{96 * MIB}\n")
    if limit != "none":
        (runs / TWO).write_text(f"{int(limit) * MIB if limit.isdigit() else limit}\n")
    assert Config(run_memory=32 * MIB, cgroup=str(runs)).run_slots == left // 32


def test_what_our_own_group_leaves_is_not_for_runs_that_have_groups_elsewhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "GROUPS", folder / "groups")
    monkeypatch.setattr(memory, "MOUNTS", folder / "mounts")
    (folder / "groups").write_text("0::/\n")
    (folder / "mounts").write_text(f"groups {folder} cgroup2 rw 0 0\n")
    (folder / TWO).write_text(f"{64 * MIB}\n")
    ours = {cgroup: Config(run_memory=32 * MIB, cgroup=cgroup).run_slots for cgroup in ("", "auto")}
    assert ours == {"": 2, "auto": 2}
    assert memory.available("/elsewhere") == MACHINE
