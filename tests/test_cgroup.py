"""Rule: where a control group is asked for, each run has one with its limits, it is killed at once, and it is removed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import MODES, alive, cgroup2

from trio_claude.containment import Job, Means, open_containment, supervised
from trio_claude.containment.cgroup import Cgroups
from trio_claude.errors import ContainmentUnavailable

pytestmark = [pytest.mark.root, pytest.mark.cgroup]
ENV = {"PATH": os.environ["PATH"], "TRIO_CLAUDE_RUN": "server:run"}


@pytest.fixture
def delegated() -> Iterator[Path]:
    """A group for the test, as an operator would delegate it."""
    group = cgroup2()[0] / f"tct-{os.getpid()}"
    group.mkdir()
    yield group
    group.rmdir()


@pytest.mark.parametrize("mode", MODES)
async def test_a_run_is_in_its_group_and_the_group_is_gone_with_it(delegated: Path, mode: str) -> None:
    own = f"mkdir -p {delegated}/trio-claude-server-run/own/deeper"
    job = Job(argv=("/bin/sh", "-c", f"{own}; cat /proc/self/cgroup; setsid sleep 60 & sleep 60"), env=ENV, cwd="/")
    async with open_containment(mode, lambda _: None, Means(cgroup=str(delegated))) as containment:
        async with containment.start(job) as process:
            assert b"trio-claude-server-run" in await process.stdout.receive_some()
            members = (delegated / "trio-claude-server-run" / "cgroup.procs").read_text().split()
            assert str(process.pid) in members
            process.end()
            receipt = await process.wait_gone()
        assert list(delegated.glob("trio-claude-*")) == []
    assert receipt.survivors == 0
    assert not alive(process.pid)


@pytest.mark.parametrize("mode", MODES)
async def test_what_is_ended_is_counted_as_without_a_group(
    delegated: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "COUNT_GRACE", 5, raising=False)
    script = "for i in 1 2 3 4 5 6; do setsid sleep 60 & done; echo; exec sleep 60"
    async with open_containment(mode, lambda _: None, Means(cgroup=str(delegated))) as containment:
        for _ in range(5):
            async with containment.start(Job(argv=("/bin/sh", "-c", script), env=ENV, cwd="/")) as process:
                await process.stdout.receive_some()
                process.end()
                receipt = await process.wait_gone()
            assert (receipt.killed, receipt.survivors) == (7, 0)


async def test_what_re_forks_faster_than_a_sweep_is_ended_at_once(delegated: Path) -> None:
    comet = "while :; do setsid sh -c ':' & done"
    job = Job(argv=("/bin/sh", "-c", f"echo; ({comet}) & ({comet}) & ({comet}) & sleep 60"), env=ENV, cwd="/")
    async with open_containment("supervisor", lambda _: None, Means(cgroup=str(delegated))) as containment:
        async with containment.start(job) as process:
            await process.stdout.receive_some()
            process.end()
            receipt = await process.wait_gone()
            assert await process.wait_exit() == -signal.SIGKILL
    assert receipt.survivors == 0
    assert receipt.ms < 5000


async def test_a_place_without_groups_is_refused(folder: Path) -> None:
    with pytest.raises(ContainmentUnavailable, match="can't be had here"):
        async with open_containment("auto", lambda _: None, Means(cgroup=str(folder))):
            pytest.fail("opened")


async def test_a_group_that_can_not_be_joined_is_no_lack_of_namespaces(
    delegated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cgroups, "make", lambda self, name: self.root / name)
    with pytest.raises(ContainmentUnavailable, match=r"no run can be started here: .*cgroup"):
        async with open_containment("auto", lambda _: None, Means(cgroup=str(delegated))):
            pytest.fail("opened")


async def test_limits_need_a_group() -> None:
    with pytest.raises(ContainmentUnavailable, match="need a cgroup"):
        async with open_containment("auto", lambda _: None, Means(pids_max=10)):
            pytest.fail("opened")


def test_a_limit_that_can_not_be_set_is_refused(delegated: Path) -> None:
    if "pids" in (delegated / "cgroup.controllers").read_text():
        groups = Cgroups.find(str(delegated), pids_max=10)
        group = groups.make("x")
        assert (group / "pids.max").read_text().strip() == "10"
        groups.remove(group)
    else:
        with pytest.raises(ContainmentUnavailable, match=r"pids\.max"):
            Cgroups.find(str(delegated), pids_max=10)


def test_a_dead_servers_groups_are_swept(delegated: Path) -> None:
    groups = Cgroups(delegated)
    groups.make("dead-1")
    living = groups.make("living-1")
    inner = groups.make("dead-2") / "inner"
    inner.mkdir()
    with subprocess.Popen(["sleep", "60"]) as left:
        (inner / "cgroup.procs").write_text(str(left.pid))
        groups.sweep("dead")
        assert left.wait() == -signal.SIGKILL
    assert list(delegated.glob("trio-claude-*")) == [living]
    groups.remove(living)
