"""Rule: when a run is over, nothing that descends from it exists, and the receipt says what was counted."""

from __future__ import annotations

import errno
import os
import resource
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from harness import MODES, Backend, alive, bearing, descriptors, until

from trio_claude import delivery
from trio_claude.config import Config
from trio_claude.containment import (
    BrokenStart,
    Contained,
    Containment,
    Job,
    Means,
    guardian,
    marks,
    open_containment,
    supervisor,
    zygote,
)
from trio_claude.containment.supervised import why
from trio_claude.containment.supervisor import SPARE_LIMIT, SupervisorContainment
from trio_claude.embed import open_run
from trio_claude.errors import ContainmentUnavailable, SpawnFailed
from trio_claude.events import Event, GuardianLost, Receipt

ENV = {"PATH": os.environ["PATH"], "TRIO_CLAUDE_RUN": f"test:{secrets.token_hex(8)}"}
"""With a mark that nobody else has: a group is ended by it, and tests may run beside each other."""
TREE = """
sleep 60 &
setsid sleep 60 &
setsid sh -c "setsid sleep 60 & exit 0"
sh -c "trap '' TERM HUP INT; sleep 60" &
setsid sh -c "trap '' TERM HUP INT; env -i sleep 60 & exit 0"
sleep .2
echo ready
exec sleep 60
"""
TREE_SIZE = 7


def marked(name: str) -> dict[str, str]:
    return {**ENV, "MARK": name}


def shell(script: str, **more: object) -> Job:
    return Job(**{"argv": ("/bin/sh", "-c", script), "env": ENV, "cwd": "/", **more})  # type: ignore[arg-type]


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
async def supervisors(events: list[Event]) -> AsyncIterator[Containment]:
    """The mode in which a run can see its guardians and attack them."""
    async with open_containment("supervisor", events.append) as containment:
        yield containment


@pytest.fixture(params=MODES)
async def guarded(request: pytest.FixtureRequest, events: list[Event]) -> AsyncIterator[Containment]:
    async with open_containment(request.param, events.append) as containment:
        yield containment


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([bytes(chunk) async for chunk in stream])


async def test_a_quiet_run(guarded: Containment) -> None:
    async with guarded.start(shell("cat; echo err >&2; exit 7")) as process:
        await process.stdin.send_all(b"words")
        await process.stdin.aclose()
        assert (await read_all(process.stdout), await read_all(process.stderr)) == (b"words", b"err\n")
        assert await process.wait_exit() == 7
        assert process.alone
        receipt = await process.wait_gone()
    assert (receipt.killed, receipt.survivors, receipt.containment) == (0, 0, guarded.mode)


async def test_a_hostile_tree_is_gone(guarded: Containment) -> None:
    async with guarded.start(shell(TREE)) as process:
        assert await process.stdout.receive_some() == b"ready\n"
        process.end()
        receipt = await process.wait_gone()
        assert await process.wait_exit() == -9
    assert receipt.seen >= TREE_SIZE
    assert (receipt.killed, receipt.survivors) == (TREE_SIZE, 0)


async def test_leaving_the_context_is_the_kill(guarded: Containment) -> None:
    with trio.move_on_after(0.5):
        async with guarded.start(shell("sleep 60 & echo $!; sleep 60", env=marked("leaving"))) as process:
            await process.stdout.receive_some()
            assert len(bearing("MARK=leaving")) >= 2
            await trio.sleep_forever()
    assert not alive(process.pid)
    assert not bearing("MARK=leaving")


async def test_daemons_left_by_a_good_end_are_killed(guarded: Containment) -> None:
    async with guarded.start(shell("setsid sleep 60 >/dev/null 2>&1 & sleep .1", env=marked("daemon"))) as process:
        assert await process.wait_exit() == 0
        assert not process.alone
        assert bearing("MARK=daemon")
        receipt = await _end(process)
    assert not bearing("MARK=daemon")
    assert (receipt.killed, receipt.survivors) == (1, 0)


async def _end(process: Contained) -> Receipt:
    process.end()
    return await process.wait_gone()


async def test_a_signal_reaches_the_cli_alone(guarded: Containment) -> None:
    script = "trap 'echo got; exit 3' INT; echo ready; while :; do sleep .05; done"
    async with guarded.start(shell(script)) as process:
        await process.stdout.receive_some()
        process.send_signal(signal.SIGINT)
        assert await process.wait_exit() == 3


@pytest.mark.parametrize(
    ("job", "told"),
    [
        (Job(argv=("/nope",), env=ENV, cwd="/"), "not found"),
        (Job(argv=("/etc/passwd",), env=ENV, cwd="/"), "not executable"),
        (Job(argv=("/bin/true",), env=ENV, cwd="/nope"), "working directory"),
        (Job(argv=("/bin/true", "x" * 140_000), env=ENV, cwd="/"), "E2BIG"),
        (Job(argv=("/bin/true", *["y" * 100_000] * 3), env=ENV, cwd="/"), "EMSGSIZE"),
        (Job(argv=("/bin/true",), env=ENV, cwd="/", limits={"RLIMIT_NOPE": 1}), "RLIMIT_NOPE"),
    ],
)
async def test_a_failed_start_says_why(guarded: Containment, job: Job, told: str) -> None:
    before = descriptors()
    with pytest.raises(SpawnFailed, match=told):
        async with guarded.start(job):
            pytest.fail("started")
    assert not descriptors() - before, "a spare supervisor may be gone, and nothing has come"


async def test_no_descriptor_is_inherited_or_kept(guarded: Containment) -> None:
    before = descriptors()
    async with guarded.start(shell("ls /proc/self/fd")) as process:
        assert set((await read_all(process.stdout)).split()) == {b"0", b"1", b"2", b"3"}
    assert not descriptors() - before


async def test_a_cli_gets_no_new_privileges_and_a_private_mask(supervisors: Containment) -> None:
    script = (
        "grep NoNewPrivs /proc/self/status; umask; cat /proc/self/oom_score_adj; cut -d' ' -f6 /proc/$$/stat; echo $$"
    )
    async with supervisors.start(shell(script)) as process:
        words = (await read_all(process.stdout)).split()
    assert words[:4] == [b"NoNewPrivs:", b"1", b"0077", b"500"]
    assert words[4] == words[5]


async def test_resource_limits_are_set(guarded: Containment) -> None:
    async with guarded.start(shell("ulimit -n", limits={"RLIMIT_NOFILE": 64})) as process:
        assert await read_all(process.stdout) == b"64\n"


async def test_guardians_do_not_look_like_python(supervisors: Containment) -> None:
    async with supervisors.start(shell("sleep 60")) as process:
        guardian = _parent(process.pid)
        for pid in (guardian, _parent(guardian)):
            assert b"python" not in Path(f"/proc/{pid}/cmdline").read_bytes()
            assert Path(f"/proc/{pid}/comm").read_text().startswith("trio-claude-")


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def test_a_stopped_supervisor_is_woken(supervisors: Containment) -> None:
    async with supervisors.start(shell("kill -STOP $PPID; echo done; sleep 60")) as process:
        await process.stdout.receive_some()
        process.end()
        with trio.fail_after(9):
            receipt = await process.wait_gone()
    assert receipt.survivors == 0
    assert not alive(process.pid)


async def test_a_killed_supervisor_is_replaced_by_the_zygote(supervisors: Containment) -> None:
    script = "setsid env -i sleep 60 & echo $!; sleep 0.2; kill -KILL $PPID; sleep 60"
    async with supervisors.start(shell(script)) as process:
        await check_replaced(process)
    assert not alive(process.pid)


async def check_replaced(process: Contained) -> None:
    """Check that the zygote ends the child that a run names, whose supervisor it has killed."""
    child = int(await process.stdout.receive_some())
    with pytest.raises(trio.BrokenResourceError):
        await process.wait_exit()
    assert (await process.wait_gone()).survivors == 0
    assert not alive(child)


async def test_a_zygote_that_was_stopped_before_replaces_a_killed_supervisor(supervisors: Containment) -> None:
    script = "read zygote; setsid env -i sleep 60 & echo $!; kill -STOP $zygote; kill -KILL $PPID; sleep 60"
    async with supervisors.start(shell(script)) as process:
        await process.stdin.send_all(b"%d\n" % _parent(_parent(process.pid)))
        await check_replaced(process)


UNSEEN = """
def look(path, look=os.listdir):
    if not os.path.exists({free!r}):
        open({looked!r}, "w").close()
        raise OSError(errno.EMFILE, path)
    return look(path)
os.listdir = look
"""


async def test_who_can_not_be_seen_is_not_told_gone(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    behaving(monkeypatch, folder, UNSEEN.format(free=str(folder / "free"), looked=str(folder / "looked")))
    async with open_containment("supervisor", lambda _: None) as containment:
        async with containment.start(shell("setsid env -i sleep 60 & echo $!; sleep 60")) as process:
            child = int(await process.stdout.receive_some())
            os.kill(_parent(process.pid), signal.SIGKILL)
            await until((folder / "looked").exists)
            assert alive(child)
            (folder / "free").touch()
            assert (await process.wait_gone()).survivors == 0
            assert not alive(child)


async def test_of_two_supervisors_that_are_lost_at_once_neither_gets_the_others_count(supervisors: Containment) -> None:
    receipts = []

    async def lose(process: Contained) -> None:
        receipts.append(await process.wait_gone())

    many = "sleep 60 & " * 9
    async with supervisors.start(shell("sleep 60")) as small, supervisors.start(shell(f"{many} sleep 60")) as large:
        guardians = [_parent(process.pid) for process in (small, large)]
        await until(lambda: len(_children(large.pid)) == 10)
        zygote = _parent(guardians[0])
        os.kill(zygote, signal.SIGSTOP)
        for guardian in guardians:
            os.kill(guardian, signal.SIGKILL)
        await until(lambda: not any(alive(guardian) for guardian in guardians))
        async with trio.open_nursery() as nursery:
            for process in (small, large):
                nursery.start_soon(lose, process)
    assert [(receipt.seen, receipt.killed, receipt.survivors) for receipt in receipts] == [(1, 0, 0)] * 2


ZOMBIES = """
import os, subprocess, time
ended = [subprocess.Popen(["true"]) for _ in range(5)]
for process in ended:
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
print(flush=True)
time.sleep(60)
"""


async def test_who_has_ended_before_was_not_killed(guarded: Containment) -> None:
    job = Job(argv=(sys.executable, "-c", ZOMBIES), env=ENV, cwd="/")
    async with guarded.start(job) as process:
        await process.stdout.receive_some()
        receipt = await _end(process)
    assert (receipt.killed, receipt.survivors) == (1, 0)


def test_who_ends_without_end_is_not_counted_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor lives for as long as its run, whose orphans it reaps."""
    monkeypatch.setattr(guardian, "SEEN", 3)
    left = [*range(101, 111)]
    monkeypatch.setattr(guardian.os, "waitpid", lambda *_: (left.pop(0) if left else 0, 0))
    count = guardian.Count()
    ended, is_left = count.reap()
    assert ([*ended], is_left) == ([*range(101, 111)], True)
    assert count.seen == {101, 102, 103}


async def test_a_job_that_can_not_be_sent_has_begun_nothing(guarded: Containment) -> None:
    big = Job(argv=("/bin/true", *["y" * 100_000] * 3), env=ENV, cwd="/")
    with trio.fail_after(3), pytest.raises(BrokenStart, match="EMSGSIZE") as refused:
        async with guarded.start(big):
            pytest.fail("started")
    assert isinstance(guarded, SupervisorContainment)
    guarded._spare_none()
    with trio.fail_after(3), pytest.raises(BrokenStart, match="EMSGSIZE") as alone:
        async with guarded.start(big):
            pytest.fail("started")
    for receipt in (refused.value.receipt, alone.value.receipt):
        assert (receipt.seen, receipt.killed, receipt.survivors) == (0, 0, 0)


async def test_a_spare_supervisor_outlives_a_job_that_can_not_be_sent(guarded: Containment) -> None:
    first = await _guardian(guarded)
    with pytest.raises(BrokenStart, match="EMSGSIZE"):
        async with guarded.start(Job(argv=("/bin/true", *["y" * 100_000] * 3), env=ENV, cwd="/")):
            pytest.fail("started")
    assert await _guardian(guarded) == first


async def test_a_killed_zygote_is_replaced_and_its_runs_live_on(supervisors: Containment, events: list[Event]) -> None:
    async with supervisors.start(shell("read line; echo $line")) as process:
        os.kill(_parent(_parent(process.pid)), signal.SIGKILL)
        await until(lambda: GuardianLost("zygote") in events)
        async with supervisors.start(shell("echo second")) as second:
            assert await read_all(second.stdout) == b"second\n"
        await process.stdin.send_all(b"first\n")
        assert await process.stdout.receive_some() == b"first\n"
        assert await process.wait_exit() == 0
        assert (await process.wait_gone()).survivors == 0


async def test_a_run_that_comes_when_the_zygote_has_just_gone_waits_for_the_next(supervisors: Containment) -> None:
    assert isinstance(supervisors, SupervisorContainment)
    zygote = supervisors._zygote
    assert zygote
    os.kill(zygote.process.pid, signal.SIGKILL)
    zygote.alive = False  # seen already by who hears it, but by nobody else
    async with supervisors.start(shell("echo second")) as second:
        assert await read_all(second.stdout) == b"second\n"


async def test_a_start_that_is_cancelled_before_anything_is_begun_is_proven(
    monkeypatch: pytest.MonkeyPatch, supervisors: Containment
) -> None:
    told: list[Receipt] = []
    monkeypatch.setattr(supervisors, "_ready", trio.Event())
    with trio.move_on_after(0.05):
        async with supervisors.start(shell("echo no"), told.append):
            pytest.fail("started")
    assert [(receipt.seen, receipt.survivors) for receipt in told] == [(0, 0)]


async def test_a_jobs_folders_are_made_before_it_and_those_that_it_left_empty_are_taken_away(
    guarded: Containment, folder: Path
) -> None:
    """Run after run in the same guardian, of which each hides where the others' are."""
    (folder / "seen").mkdir()
    (folder / "runs").mkdir()
    for run, leaves in (("one", ""), ("two", "touch {0}/left; "), ("three", "")):
        own = (str(folder / "runs" / run), str(folder / "runs" / run / "sessions"))
        script = leaves.format(folder / "runs" if guarded.binds else own[0]) + f"ls {folder / 'seen'}; stat -c %a ."
        binds = ((own[1], str(folder / "seen")), (own[0], str(folder / "runs")))
        cwd = str(folder / "runs") if guarded.binds else own[0]
        async with guarded.start(shell(script, folders=own, binds=binds, cwd=cwd)) as process:
            assert await read_all(process.stdout) == b"700\n"
            await process.wait_gone()
            assert os.listdir(folder / "runs") == (["two"] if run != "one" else [])
    assert os.listdir(folder / "runs" / "two") == ["left"]


async def test_a_folder_that_cannot_be_made_is_told_and_one_that_is_there_will_do(
    guarded: Containment, folder: Path
) -> None:
    with pytest.raises(SpawnFailed, match=r"^the run's folders can't be used: No such file or directory$"):
        async with guarded.start(shell("true", folders=(str(folder / "no" / "such"),))):
            pytest.fail("started")
    (folder / "there").mkdir()
    async with guarded.start(shell("echo there", folders=(str(folder / "there"),))) as process:
        assert await read_all(process.stdout) == b"there\n"


async def test_a_stopped_zygote_is_woken(supervisors: Containment) -> None:
    async with supervisors.start(shell("cut -d' ' -f4 /proc/$PPID/stat; sleep 60")) as process:
        zygote = int(await process.stdout.receive_some())
        os.kill(zygote, signal.SIGSTOP)
        with trio.fail_after(4):
            async with supervisors.start(shell("echo second")) as second:
                assert await read_all(second.stdout) == b"second\n"


def behaving(monkeypatch: pytest.MonkeyPatch, folder: Path, first: str) -> None:
    """Let guardians begin with `first`."""
    source = Path(zygote.GUARDIAN).read_text()
    (folder / "guardian.py").write_text(source.replace("\n_libc = ", f"\n{first}\n_libc = ", 1))
    monkeypatch.setattr(zygote, "GUARDIAN", folder / "guardian.py")


@pytest.mark.parametrize("woken", [True, False])
async def test_a_zygote_that_was_stopped_before_it_was_ready_is_woken_or_replaced(
    monkeypatch: pytest.MonkeyPatch, folder: Path, woken: bool
) -> None:
    """Also where it is stopped again and again."""
    async with open_containment("supervisor", lambda _: None) as containment:
        assert isinstance(containment, SupervisorContainment)
        monkeypatch.setattr(supervisor, "START_TIMEOUT", 2)
        free = f"os.path.exists({str(folder / 'free')!r})"
        stop = "os.kill(os.getpid(), signal.SIGSTOP)"
        behaving(monkeypatch, folder, stop if woken else f"while not {free}: {stop}")
        containment._spare_none()
        before = containment._zygote
        assert before
        before.kill()
        await until(lambda: containment._zygote is not before)
        if not woken:
            stopped = containment._zygote
            await until(lambda: containment._zygote is not stopped)
            (folder / "free").touch()
        monkeypatch.setattr(supervisor, "START_TIMEOUT", 10)
        async with containment.start(shell("echo there")) as process:
            assert await read_all(process.stdout) == b"there\n"


async def test_a_zygote_that_is_never_ready_is_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, folder: Path, events: list[Event]
) -> None:
    monkeypatch.setattr(supervisor, "START_TIMEOUT", 0.5)
    behaving(monkeypatch, folder, "os._exit(1)")
    with pytest.raises(ContainmentUnavailable, match=r"the zygote did not answer within 0\.5 s: it needs /proc"):
        async with open_containment("auto", events.append):
            pytest.fail("opened")
    monkeypatch.setattr(zygote, "GUARDIAN", folder / "none")
    with pytest.raises(ContainmentUnavailable, match=r"the zygote can't be started: .*No such file"):
        async with open_containment("auto", events.append):
            pytest.fail("opened")
    assert not events


async def test_a_job_that_a_stopped_zygote_does_not_take_has_begun_nothing(
    monkeypatch: pytest.MonkeyPatch, supervisors: Containment
) -> None:
    monkeypatch.setattr(supervisor, "START_TIMEOUT", 0.3)
    assert isinstance(supervisors, SupervisorContainment)
    assert supervisors._zygote
    supervisors._spare_none()
    os.kill(supervisors._zygote.process.pid, signal.SIGSTOP)
    with pytest.raises(BlockingIOError):
        while True:
            supervisors._zygote.control.send({"x": "y" * 4000})
    with pytest.raises(BrokenStart, match="took no job") as refused:
        async with supervisors.start(shell("sleep 60")):
            pytest.fail("started")
    assert (refused.value.receipt.seen, refused.value.receipt.survivors) == (0, 0)


SERVER = """
import os, sys, trio
from trio_claude.containment import Job, open_containment
async def main():
    async with open_containment("supervisor", lambda _: None) as containment:
        job = Job(argv=("/bin/sh", "-c", sys.argv[1]), env={**os.environ, "TRIO_CLAUDE_RUN": "x:1"}, cwd="/")
        async with containment.start(job) as process:
            await process.stdout.receive_some()
            if sys.argv[2] == "fork" and not os.fork():
                import time; time.sleep(8); os._exit(0)
            print(process.pid, flush=True)
            await trio.sleep_forever()
trio.run(main)
"""


@pytest.mark.parametrize("how", ["plain", "fork", "stopped supervisor", "stopped zygote"])
async def test_a_killed_server_leaves_nothing(how: str) -> None:
    """Also where a forked copy of the server still holds the lifeline, and where a run has stopped a guardian."""
    before = _sleepers()
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda task_status: trio.run_process(
                [sys.executable, "-c", SERVER, TREE.replace("sleep 60", "sleep 59"), how],
                stdout=-1, check=False, task_status=task_status,
            )
        )  # fmt: skip
        cli = int(await server.stdout.receive_some())
        assert alive(cli)
        await until(lambda: len(_sleepers() - before) >= 6)
        supervisor = _parent(cli)
        zygote = _parent(supervisor)
        if how.startswith("stopped"):
            os.kill(supervisor if how == "stopped supervisor" else zygote, signal.SIGSTOP)
        server.kill()
        await until(lambda: not _sleepers() - before, 3)
        assert not alive(cli)
        await until(lambda: not alive(zygote), 3)


def _sleepers() -> set[int]:
    return {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _sleeps(entry)}


def _sleeps(entry: Path) -> bool:
    try:
        return (entry / "cmdline").read_bytes() == b"sleep\x0059\x00"
    except OSError:
        return False


@pytest.mark.namespace
async def test_a_run_in_a_namespace_sees_no_guardian_and_has_no_capability() -> None:
    async with open_containment("namespace", lambda _: None) as containment:
        outside = os.readlink("/proc/self/ns/pid")
        guard = f'[ "$(readlink /proc/self/ns/pid)" != "{outside}" ] && [ "$(cat /proc/1/comm)" = trio-claude-ini ] || exit 9'
        look = "ls -d /proc/[0-9]*; cat /proc/1/comm; grep CapEff /proc/self/status"
        async with containment.start(shell(f"{guard}; {look}; kill -9 -1; kill -9 1; echo alive")) as process:
            words = (await read_all(process.stdout)).split()
            assert await process.wait_exit() == 0, "the guard refused: this is no namespace of its own"
    assert b"/proc/1" in words
    assert len([word for word in words if word.startswith(b"/proc/")]) <= 4
    assert b"trio-claude-ini" in words
    assert words[words.index(b"CapEff:") + 1] == b"0" * 16
    assert words[-1] == b"alive"


@pytest.mark.namespace
async def test_a_bind_is_seen_by_the_run_alone(folder: Path) -> None:
    (folder / "shared").mkdir()
    (folder / "own").mkdir()
    job = shell("echo private >shared/file", cwd=str(folder), binds=((str(folder / "own"), str(folder / "shared")),))
    async with open_containment("namespace", lambda _: None) as containment, containment.start(job) as process:
        assert await process.wait_exit() == 0
    assert ((folder / "own" / "file").read_text(), list((folder / "shared").iterdir())) == ("private\n", [])


@pytest.mark.namespace
async def test_a_killed_supervisor_takes_its_namespace_along() -> None:
    async with open_containment("namespace", lambda _: None) as containment:
        script = "setsid env -i /bin/sleep 60 & sleep 60 & echo; sleep 60"
        async with containment.start(shell(script, env=marked("orphan"))) as process:
            await process.stdout.receive_some()
            os.kill(_parent(process.pid), signal.SIGKILL)
            await until(lambda: not alive(process.pid), 2)
            receipt = await process.wait_gone()
    assert receipt.survivors == 0
    assert not bearing("MARK=orphan")


async def test_what_can_not_be_had_is_done_without_and_said(
    monkeypatch: pytest.MonkeyPatch, events: list[Event]
) -> None:
    """Where namespaces are refused, `auto` falls back and says so, and `namespace` refuses to start."""
    monkeypatch.setattr(SupervisorContainment, "probe", refuse("namespaces are refused here"))
    async with open_containment("auto", events.append) as containment:
        assert containment.mode == "supervisor"
        assert "no namespaces: namespaces are refused here" in containment.detail
    with pytest.raises(ContainmentUnavailable, match="refused here"):
        async with open_containment("namespace", events.append):
            pytest.fail("opened")


def refuse(why: str) -> Callable[..., Awaitable[str | None]]:
    """Return a probe that fails in namespaces."""

    async def probe(self: SupervisorContainment, *_: object) -> str | None:
        return why if self.binds else None

    return probe


@pytest.mark.parametrize("limits", [{"RLIMIT_NOFILE": 2**40}, {"RLIMIT_NOPE": 1}])
async def test_what_no_mode_can_do_is_no_lack_of_namespaces(limits: dict[str, int]) -> None:
    with pytest.raises(ContainmentUnavailable, match=f"no run can be started here: .*limits: {next(iter(limits))}"):
        async with open_containment("auto", lambda _: None, Means(rlimits=limits)):
            pytest.fail("opened")


@pytest.mark.parametrize("name", ["EAGAIN", "EMFILE", "ENFILE", "ENOMEM"])
async def test_what_passes_is_no_lack_of_namespaces(
    monkeypatch: pytest.MonkeyPatch, events: list[Event], name: str
) -> None:
    said = why(getattr(errno, name), "namespace")
    monkeypatch.setattr(SupervisorContainment, "probe", refuse(said))
    with pytest.raises(ContainmentUnavailable, match=f"no run can be started here: .*{name}"):
        async with open_containment("auto", events.append):
            pytest.fail("opened")


async def test_groups_that_live_take_no_thread_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty such runs would hold up every read of the journal, and the sight of each other's end."""
    monkeypatch.setattr(trio.to_thread.current_default_thread_limiter(), "total_tokens", 1)
    async with open_containment("group", lambda _: None) as containment, containment.start(shell("sleep 60")) as lives:
        async with trio.open_nursery() as nursery, containment.start(shell("exit 7")) as ends:
            nursery.start_soon(lives.wait_exit)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(10):
                assert await ends.wait_exit() == 7
            nursery.cancel_scope.cancel()


async def test_a_group_says_that_it_can_prove_nothing() -> None:
    async with open_containment("group", lambda _: None) as containment:
        async with containment.start(shell("setsid sleep 60 & echo $!; sleep 60")) as process:
            child = int(await process.stdout.receive_some())
            process.end()
            receipt = await process.wait_gone()
    assert (receipt.survivors, receipt.containment) == (None, "group")
    assert not alive(child)


@pytest.mark.parametrize(("script", "killed"), [("exit 7", 0), ("kill -9 $$", 0), ("exec sleep 60", 1)])
async def test_a_group_counts_as_killed_what_it_killed(script: str, killed: int) -> None:
    async with open_containment("group", lambda _: None) as containment, containment.start(shell(script)) as process:
        if not killed:
            await process.wait_exit()
        receipt = await _end(process)
    assert (receipt.seen, receipt.killed) == (1, killed)


async def test_what_stays_in_a_group_is_ended_with_the_cli() -> None:
    """Also where it has cleared its environment, and the CLI has ended by itself."""
    async with open_containment("group", lambda _: None) as containment:
        async with containment.start(shell("env -i sleep 60 & echo $!; read _; exit 3")) as process:
            child = int(await process.stdout.receive_some())
            await process.stdin.send_all(b"\n")
            assert await process.wait_exit() == 3
            await until(lambda: not alive(child))


@pytest.mark.parametrize("then", ["exec sleep 60", "exit 3"])
async def test_a_group_is_ended_though_no_thread_is_to_be_had(monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    """As where its own processes have used up those that there may be."""

    async def none(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    job = shell(f"setsid sleep 60 & read _; {then}", env=marked("threadless"))
    async with open_containment("group", lambda _: None) as containment:
        async with containment.start(job) as process:
            monkeypatch.setattr(trio.to_thread, "run_sync", none)
            await process.stdin.send_all(b"\n")
            if then == "exit 3":
                assert await process.wait_exit() == 3
            receipt = await process.wait_gone()
        assert (process.status, receipt.survivors) == (3 if then == "exit 3" else -signal.SIGKILL, None)
    assert not bearing("MARK=threadless")


async def test_a_group_is_empty_once_none_that_bears_the_mark_is_left() -> None:
    async with open_containment("group", lambda _: None) as containment:
        async with containment.start(shell("setsid sh -c 'echo $$; exec sleep 60' & read _")) as process:
            child = int(await process.stdout.receive_some())
            await process.stdin.aclose()
            await process.wait_exit()
            with trio.move_on_after(0.2) as patience:
                await process.wait_empty()
            assert patience.cancelled_caught
            os.kill(child, signal.SIGKILL)
            with trio.fail_after(10):
                await process.wait_empty()


async def test_the_loop_is_not_held_by_a_look_for_what_a_group_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    lookers: list[threading.Thread] = []

    def look(_mark: str) -> set[int]:
        lookers.append(threading.current_thread())
        return set()

    monkeypatch.setattr(marks, "find", look)
    async with open_containment("group", lambda _: None) as containment, containment.start(shell("exit 0")) as process:
        await process.wait_exit()
        await process.wait_empty()
        assert len(lookers) == 1
    assert len(lookers) > 1, "at the end too"
    assert threading.current_thread() not in lookers


async def test_no_group_is_killed_by_the_pid_of_a_cli_that_was_reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be another's by then."""
    killed: list[int] = []
    async with open_containment("group", lambda _: None) as containment:
        async with containment.start(shell("exit 3")) as process:
            assert await process.wait_exit() == 3
            monkeypatch.setattr(os, "killpg", lambda pid, _: killed.append(pid))
            assert await process.wait_exit() == 3
            await _end(process)
    assert not killed


@pytest.mark.root
async def test_a_cli_in_a_group_is_the_user_that_it_is_to_be() -> None:
    async with open_containment("group", lambda _: None) as containment:
        async with containment.start(attrs.evolve(shell("id -u; id -G"), user=(65534, 65534))) as process:
            await process.wait_exit()
            assert await process.stdout.receive_some() == b"65534\n65534\n"


@pytest.mark.parametrize(
    ("job", "told"),
    [
        (Job(argv=("/bin/true",), env=ENV, cwd="/nope"), "^the working directory can't be entered: No such file"),
        (Job(argv=("/bin/true",), env=ENV, cwd="/etc/passwd"), "^the working directory can't be entered: Not a dir"),
        (Job(argv=("/nope",), env=ENV, cwd="/"), "^the CLI could not be started: No such file"),
    ],
)
async def test_a_group_that_cannot_be_started_says_what_of_it_cannot(job: Job, told: str) -> None:
    async with open_containment("group", lambda _: None) as containment:
        with pytest.raises(SpawnFailed, match=told):
            async with containment.start(job):
                pytest.fail("started")


@pytest.mark.parametrize("wanted", [{"cgroup": "auto"}, {"limits": ("limit_cpu",)}])
async def test_a_group_refuses_what_needs_a_guardian(wanted: dict[str, Any]) -> None:
    with pytest.raises(ContainmentUnavailable, match="has no guardian"):
        async with open_containment("group", lambda _: None, Means(**wanted)):
            pytest.fail("opened")


BADNESS = """
import sys, trio
from trio_claude.containment import Job, open_containment
async def main():
    async with open_containment("supervisor", lambda _: None) as containment:
        for _ in range(2):
            job = Job(argv=("/bin/sh", "-c", "read line; cat /proc/self/oom_score_adj /proc/$PPID/oom_score_adj"), env={}, cwd="/")
            async with containment.start(job) as process:
                await process.stdin.send_all(b"go")  # it has begun, and its supervisor is again what it was
                await process.stdin.aclose()
                await process.wait_exit()
                sys.stdout.write((await process.stdout.receive_some()).decode())
trio.run(main)
"""


@pytest.mark.root
@pytest.mark.parametrize("own", [100, 900])
def test_a_machine_that_has_raised_our_badness_lets_runs_start(own: int) -> None:
    """As a user's manager does, and a cluster; without a capability nobody goes below what was set for him."""
    words = ["setpriv", "--bounding-set", "-sys_resource", sys.executable, "-c", BADNESS]
    script = f'echo {own} > /proc/self/oom_score_adj; exec "$@"'
    told = subprocess.run(["/bin/sh", "-c", script, "sh", *words], capture_output=True, text=True, check=True)
    assert told.stdout.split() == [str(min(own + 500, 1000)), str(own)] * 2


async def test_a_named_mode_that_can_not_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ContainmentUnavailable, match="needs Linux"):
        async with open_containment("supervisor", lambda _: None):
            pytest.fail("opened")


# -- a supervisor holds one run after the other -----------------------------------------------------------------------


async def _guardian(containment: Containment, script: str = "true", **more: object) -> int:
    """Run a script to its end; return its supervisor."""
    async with containment.start(shell(f"read line; {script}", **more)) as process:
        guardian = _parent(process.pid)
        await process.stdin.send_all(b"go\n")
        assert await process.wait_exit() == 0
        receipt = await _end(process)
    assert receipt.survivors == 0
    return guardian


async def test_a_supervisor_that_proved_its_run_gone_holds_the_next(guarded: Containment) -> None:
    first = await _guardian(guarded)
    assert await _guardian(guarded, "setsid sleep 60 >/dev/null 2>&1 & :") == first, "what it ended is counted anew"
    async with guarded.start(shell("read line")) as process:
        assert _parent(process.pid) == first
        process.end()
        receipt = await process.wait_gone()
        assert (receipt.seen, receipt.killed, receipt.survivors) == (1, 1, 0)
    assert await _guardian(guarded) == first


@pytest.mark.namespace
async def test_no_run_sees_the_folders_of_the_one_before(folder: Path) -> None:
    for name in ("shared", "one", "two"):
        (folder / name).mkdir()
    (folder / "shared" / "public").touch()
    async with open_containment("namespace", lambda _: None) as containment:
        for name in ("one", "two"):
            binds = ((str(folder / name), str(folder / "shared")),)
            await _guardian(
                containment, f"touch {folder}/shared/{name}; ls {folder}/shared >{folder}/{name}.seen", binds=binds
            )
        await _guardian(containment, f"ls {folder}/shared >{folder}/none.seen")
    assert [(folder / f"{name}.seen").read_text() for name in ("one", "two", "none")] == ["one\n", "two\n", "public\n"]


@pytest.mark.namespace
async def test_a_folder_that_was_removed_outside_fails_no_later_run(folder: Path) -> None:
    (folder / "own").mkdir()
    shared = folder / "shared"
    shared.mkdir()
    binds = ((str(folder / "own"), str(shared)),)
    async with open_containment("namespace", lambda _: None) as containment, AsyncExitStack() as held:
        for _ in range(4):
            process = await held.enter_async_context(containment.start(shell("read line", binds=binds)))
            await process.stdin.aclose()
        await held.aclose()
        shared.rmdir()
        shared.mkdir()
        first = await _guardian(containment, f"touch {shared}/file", binds=binds)
        assert await _guardian(containment, binds=binds) == first
    assert (os.listdir(folder / "own"), os.listdir(shared)) == (["file"], [])


MOUNTED_LATER = """
import os, subprocess, sys, trio
from pathlib import Path
from trio_claude.containment import Job, open_containment
place = Path(sys.argv[1])
async def look(containment):
    job = Job(argv=("/bin/ls", str(place)), env={}, cwd="/")
    async with containment.start(job) as process:
        said = b"".join([bytes(chunk) async for chunk in process.stdout])
        await process.wait_gone()
        print(process.guardian.pid, said.decode().strip())
async def main():
    async with open_containment("namespace", lambda _: None) as containment:
        await look(containment)
        subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
        (place / "mounted").touch()
        await look(containment)
        subprocess.run(["umount", place], check=True)
        await look(containment)
trio.run(main)
"""


@pytest.mark.root
@pytest.mark.namespace
def test_what_the_machine_mounts_is_there_for_every_run_and_what_it_unmounts_for_none(folder: Path) -> None:
    """Also below a supervisor that has held one before: a disk that it kept could not be taken away."""
    (folder / "under").touch()
    script = 'mount --make-rprivate /; mount --make-rshared /; exec "$@"'  # as systemd has it, and nobody else's
    words = ["unshare", "--mount", "sh", "-ec", script, "sh", sys.executable, "-c", MOUNTED_LATER, str(folder)]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.partition(" ")[2] for line in told] == ["under", "mounted", "under"]
    assert len({line.partition(" ")[0] for line in told}) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_supervisor_that_waits_may_be_attacked(supervisors: Containment, number: int) -> None:
    guardian = await _guardian(supervisors)
    os.kill(guardian, number)
    await until(lambda: number == signal.SIGSTOP or not alive(guardian))
    with trio.fail_after(3):
        assert (await _guardian(supervisors) == guardian) == (number == signal.SIGSTOP)


WEAR = {
    "limits": "prlimit --pid $PPID --fsize=0:0",
    "rank": "renice -n 5 -p $PPID >/dev/null",
    "processors": "taskset -p -c 0 $PPID >/dev/null",
}
SHOW = "ulimit -f; cut -d' ' -f19 /proc/self/stat; grep Cpus_allowed_list /proc/self/status"


@pytest.mark.parametrize(
    ("mode", "way"),
    [*(("supervisor", way) for way in WEAR), pytest.param("namespace", "limits", marks=pytest.mark.namespace)],
)
async def test_what_a_run_does_to_its_supervisor_no_other_run_inherits(mode: str, way: str) -> None:
    async with open_containment(mode, lambda _: None) as containment:
        async with containment.start(shell(SHOW)) as process:
            fresh = await read_all(process.stdout)
            await _end(process)
        worn = await _guardian(containment, WEAR[way])
        async with containment.start(shell(f"read line; {SHOW}")) as process:
            assert _parent(process.pid) != worn
            await process.stdin.send_all(b"go\n")
            assert await read_all(process.stdout) == fresh
            await until(lambda: not alive(worn))


@pytest.mark.parametrize("way", [*WEAR.values(), "prlimit --pid $PPID --nofile=3:3"])
async def test_what_is_done_to_a_supervisor_that_waits_no_run_inherits(supervisors: Containment, way: str) -> None:
    """As by a run below another one."""
    async with supervisors.start(shell(f"read line; {SHOW}; ulimit -n")) as process:
        waits = _parent(process.pid)
        await process.stdin.send_all(b"go\n")
        fresh = await read_all(process.stdout)
        await _end(process)
    await trio.run_process(["/bin/sh", "-ec", way.replace("$PPID", f"{waits}")])
    async with supervisors.start(shell(f"read line; {SHOW}; ulimit -n")) as process:
        assert _parent(process.pid) != waits
        await process.stdin.send_all(b"go\n")
        assert await read_all(process.stdout) == fresh
        await until(lambda: not alive(waits))


@pytest.mark.parametrize("way", WEAR)
async def test_what_a_run_does_to_the_zygote_no_other_run_inherits(supervisors: Containment, way: str) -> None:
    async with supervisors.start(
        shell(f'echo "$({SHOW})"; read line; {WEAR[way].replace("PPID", "line")}; sleep 60')
    ) as process:
        fresh = await process.stdout.receive_some()
        zygote = _parent(_parent(process.pid))
        before = _bounds(zygote)
        await process.stdin.send_all(b"%d\n" % zygote)
        await until(lambda: _bounds(zygote) != before)
        other = shell(f'echo "$({SHOW})"; read line', env={**ENV, "TRIO_CLAUDE_RUN": "test:2"})
        async with supervisors.start(other) as second:
            assert await second.stdout.receive_some() == fresh
            assert _parent(_parent(second.pid)) != zygote
        assert alive(process.pid)


@pytest.mark.parametrize("way", WEAR)
async def test_no_supervisor_is_forked_by_a_zygote_that_was_changed_in_place_of_one_that_was_killed(
    supervisors: Containment, way: str
) -> None:
    async with supervisors.start(shell(f"read line; {SHOW}")) as process:
        waits = _parent(process.pid)
        zygote = _parent(waits)
        await process.stdin.send_all(b"go\n")
        fresh = await read_all(process.stdout)
        await _end(process)
    await trio.run_process(["/bin/sh", "-ec", WEAR[way].replace("$PPID", f"{zygote}")])
    os.kill(zygote, signal.SIGSTOP)  # so that it does not take note, and what is told of the dead one stays as it was
    os.kill(waits, signal.SIGKILL)
    await until(lambda: not alive(waits))
    async with supervisors.start(shell(f"read line; {SHOW}")) as process:
        assert _parent(_parent(process.pid)) != zygote
        await process.stdin.send_all(b"go\n")
        assert await read_all(process.stdout) == fresh
        await _end(process)


def _bounds(pid: int) -> list[object]:
    return [
        resource.prlimit(pid, resource.RLIMIT_FSIZE),
        os.getpriority(os.PRIO_PROCESS, pid),
        os.sched_getaffinity(pid),
    ]


async def test_a_c_library_that_tells_no_policy_is_no_reason_not_to_hold_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As musl, which refuses each such question."""

    def refuse(_pid: int) -> int:
        raise OSError(errno.ENOSYS, "")

    monkeypatch.setattr(os, "sched_getscheduler", refuse)
    behaving(monkeypatch, tmp_path, "def refuse(_): raise OSError(errno.ENOSYS, '')\nos.sched_getscheduler = refuse")
    async with open_containment("supervisor", lambda _: None) as containment:
        async with containment.start(shell("echo there")) as process:
            assert await read_all(process.stdout) == b"there\n"
            await _end(process)


@pytest.mark.parametrize("mode", ["supervisor", pytest.param("namespace", marks=pytest.mark.namespace)])
async def test_signals_that_the_server_blocks_its_runs_hear(mode: str) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    try:
        async with open_containment(mode, lambda _: None) as containment:
            script = "trap 'exit 3' TERM; echo ready; while :; do sleep .05; done"
            async with containment.start(shell(script, limits={"RLIMIT_NOFILE": 100})) as process:
                await process.stdout.receive_some()
                process.send_signal(signal.SIGTERM)
                with trio.fail_after(5):
                    assert await process.wait_exit() == 3
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.namespace
async def test_a_namespace_whose_guardians_were_killed_is_proven_empty() -> None:
    async with open_containment("namespace", lambda _: None) as containment:
        script = "setsid env -i sleep 60 & sleep 60 & echo ready; sleep 60"
        async with containment.start(shell(script)) as process:
            await process.stdout.receive_some()
            guardian = _parent(process.pid)
            inside = _children(guardian) + _children(process.pid)
            for pid in (_parent(guardian), guardian):
                os.kill(pid, signal.SIGKILL)
            receipt = await process.wait_gone()
            assert not [pid for pid in inside if alive(pid)]
    assert len(inside) >= 3
    assert receipt.survivors == 0


async def test_a_stopped_supervisor_whose_zygote_was_killed_goes_with_the_server() -> None:
    async with open_containment("supervisor", lambda _: None) as containment:
        guardian = await _guardian(containment)
        zygote = _parent(guardian)
        os.kill(guardian, signal.SIGSTOP)
        os.kill(zygote, signal.SIGKILL)
    await until(lambda: not alive(guardian), 3)


async def test_no_more_supervisors_wait_than_the_limit(supervisors: Containment) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(SPARE_LIMIT + 5):
            nursery.start_soon(_guardian, supervisors, "sleep .3")
    zygote = _parent(await _guardian(supervisors))
    await until(lambda: len(_children(zygote)) <= SPARE_LIMIT)
    assert len(_children(zygote)) == SPARE_LIMIT
    os.kill(zygote, signal.SIGKILL)
    await until(lambda: not [pid for pid in _children(1) + _children(os.getpid()) if _name(pid) == "trio-claude-run"])


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def until_nice(rank: int) -> str:
    """Return a script that waits until it has a rank, for some seconds, and says which it has: it gets it late."""
    return f'for i in $(seq 100); do [ "$(nice)" = {rank} ] && break; sleep 0.05; done; nice'


async def test_a_run_yields_the_processors(guarded: Containment) -> None:
    async with guarded.start(shell(until_nice(7), nice=7)) as process:
        assert await read_all(process.stdout) == b"7\n"


PRINTS = """
import sys, trio
from trio_claude.containment import Job, open_containment
async def main():
    async with open_containment(sys.argv[1], lambda _: None) as containment:
        async with containment.start(Job(argv=("/bin/sh", "-c", sys.argv[2]), env={}, cwd="/", nice=5)) as process:
            sys.stdout.write(b"".join([bytes(chunk) async for chunk in process.stdout]).decode())
trio.run(main)
"""


def told_below(*words: str, mode: str, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script below a server that is started by `words`."""
    return subprocess.run([*words, sys.executable, "-c", PRINTS, mode, script], capture_output=True, text=True)


@pytest.mark.parametrize("mode", MODES)
def test_a_run_yields_to_a_server_that_yields_to_others(mode: str) -> None:
    assert told_below("nice", "-n", "4", mode=mode, script=until_nice(9)).stdout == "9\n"
    assert told_below("nice", "-n", "19", mode=mode, script=until_nice(19)).stdout == "19\n"


@pytest.mark.root
@pytest.mark.namespace
def test_a_capability_that_the_server_would_hand_on_is_none_of_a_runs() -> None:
    told = told_below(
        "setpriv",
        "--inh-caps",
        "+sys_admin",
        mode="namespace",
        script="grep ^Cap /proc/self/status | cut -f2 | sort -u",
    )
    assert told.stdout == "0000000000000000\n"


@pytest.mark.root
@pytest.mark.namespace
def test_a_server_that_can_not_take_capabilities_has_no_namespace() -> None:
    told = told_below("setpriv", "--bounding-set", "-setpcap", mode="namespace", script="true")
    assert "containment 'namespace' can't be had here: the CLI could not be started: capabilities" in told.stderr


@pytest.mark.root
async def test_a_zygote_finds_the_libraries_of_the_servers_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/python/lib")
    async with open_containment("supervisor", lambda _: None) as containment:
        assert isinstance(containment, SupervisorContainment)
        assert containment._zygote
        zygotes = Path(f"/proc/{containment._zygote.process.pid}/environ").read_bytes().split(b"\0")
        async with containment.start(shell("env")) as process:
            assert b"LD_LIBRARY_PATH" not in await read_all(process.stdout)
    assert b"LD_LIBRARY_PATH=/opt/python/lib" in zygotes


async def test_a_python_that_does_not_know_its_own_path_starts_a_zygote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_base_executable", "")
    async with open_containment("supervisor", lambda _: None) as containment:
        async with containment.start(shell("echo there")) as process:
            assert await read_all(process.stdout) == b"there\n"


@pytest.mark.root
@pytest.mark.parametrize("mode", MODES)
def test_of_dev_no_more_is_needed_than_null(folder: Path, mode: str) -> None:
    """As in a chroot that somebody made by hand."""
    dev = 'touch "$0/null"; mount --bind /dev/null "$0/null"; mount --rbind "$0" /dev; exec "$@"'
    told = told_below("unshare", "--mount", "sh", "-ec", dev, str(folder), mode=mode, script="echo there")
    assert (told.stdout, told.stderr) == ("there\n", "")


@pytest.mark.root
@pytest.mark.namespace
@pytest.mark.parametrize("mode", ["auto", "supervisor"])
def test_a_proc_that_shows_other_processes_is_refused(mode: str) -> None:
    told = told_below("unshare", "--pid", "--fork", "--kill-child", mode=mode, script="true")
    assert "mount one in this PID namespace" in told.stderr


@pytest.mark.parametrize("left", range(12))
async def test_a_group_for_which_descriptors_run_out_is_not_begun(
    folder: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """However many there are yet, whatever they are taken for."""
    begun = folder / "begun"
    job = Job(argv=("/bin/sh", "-c", f"touch {begun}; exec sleep 60"), env={}, cwd="/")
    before = sorted(os.listdir("/proc/self/fd"))
    async with open_containment("group", lambda _event: None) as containment:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        fill = [os.dup(0) for _ in range(64)]  # so that none below is free
        for end in fill[len(fill) - left :]:
            os.close(end)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(fill) + 1, hard))
        try:
            async with containment.start(job) as process:
                assert process.pid
        except SpawnFailed as error:
            assert "Too many open files" in str(error)
            assert not begun.exists()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for end in fill[: len(fill) - left]:
                os.close(end)
    assert sorted(os.listdir("/proc/self/fd")) == before


async def test_a_run_in_a_group_that_leaves_nobody_waits_for_no_silence(
    fake: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "DRAIN_IDLE", 60.0)
    config = Config(cli=fake.program, cwd=str(fake.cwd), containment="group", journal="none")
    with trio.fail_after(30):
        async with open_run("hello", config=config) as run:
            outcome = await run.wait()
    assert (outcome.reason, outcome.exit_status, outcome.receipt.survivors) == ("exit", 0, None)
