"""Rule: an ordinary user gets the same promise as root: every run ends with nothing left, also when helpers are lost.

The user is a number that nobody else has, so every process of its is ours and none can be overlooked, whatever it does
to its name, its environment or its parents. The kernel's limit of processes holds for ordinary users only, and is here.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
from harness import MODES, ask, directive, fake_program, until

import trio_claude

pytestmark = pytest.mark.root
BOTH = pytest.mark.parametrize("mode", MODES)
KINDS = ["plain", "setsid", "double_fork", "ignore_term", "env_clear", "stopped", "hold_stdout", "comet"]
USUAL = "1000"
"""A limit of processes that is none here."""
RECOVERY = 5.0
"""Seconds after a fault within which a new run works."""


# -- another user -----------------------------------------------------------------------------------------------------


def status(pid: int | str) -> dict[str, str]:
    """Return /proc/PID/status, empty where the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@attrs.frozen
class User:
    """An ordinary user with a folder of its own."""

    uid: int
    folder: Path

    def processes(self) -> set[int]:
        """Return all its processes but those that have ended."""
        found = {int(entry.name): status(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
        return {pid for pid, said in found.items() if self._owns(said) and said["State"][0] not in "ZX"}

    def threads(self) -> int:
        """Return what its limit of processes counts."""
        return sum(int(status(pid).get("Threads", "0")) for pid in self.processes())

    def limit(self, pid: int, processes: str) -> None:
        """Set for one process how many processes this user may have, as anybody may for its own."""
        words = self.words("prlimit", "--pid", str(pid), f"--nproc={processes}:")
        subprocess.run(words, check=True, env=environ(self), cwd="/")

    def _owns(self, said: dict[str, str]) -> bool:
        return str(self.uid) in said.get("Uid", "").split()

    def words(self, *command: str) -> list[str]:
        """Return `command` as this user runs it, the process that is started becoming the command's."""
        ids = [f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]
        script = "; ".join([*self._mounts(), 'exec "$@"'])
        return ["unshare", "--mount", "sh", "-ec", script, "sh", "setpriv", *ids, *command]

    def _mounts(self) -> Iterator[str]:
        """Give the commands that lay open, to this process tree alone, what Python and we are installed in."""
        needed = {str(Path(path).absolute()) for path in (sys.base_prefix, sys.prefix, *trio_claude.__path__)}
        closed = {path: top for path in needed if (top := _closed(Path(path)))}
        kept = {path: f"{self.folder}/mount{number}" for number, path in enumerate(sorted(closed))}
        for path, copy in kept.items():
            yield shlex.join(["mkdir", "-p", copy])
            yield shlex.join(["mount", "--bind", path, copy])
        for top in set(closed.values()):
            yield shlex.join(["mount", "-t", "tmpfs", "-o", "mode=755", "none", str(top)])
        for path, copy in kept.items():
            yield shlex.join(["mkdir", "-p", path])
            yield shlex.join(["mount", "--bind", copy, path])


def _closed(path: Path) -> Path | None:
    """Return the first folder on the way to `path` that others can't pass."""
    return next((folder for folder in [*path.parents][::-1] if not folder.stat().st_mode & 0o001), None)


@pytest.fixture
def user(folder: Path) -> Iterator[User]:
    made = User(random.randrange(200_000, 2_000_000), folder)
    assert not made.processes()
    (folder / "home").mkdir()
    for path in (folder, folder / "home"):
        os.chown(path, made.uid, made.uid)
    yield made
    left = made.processes()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


@attrs.frozen
class Served:
    """A server of that user, from outside."""

    user: User
    process: trio.Process
    port: int
    log: Path

    @property
    def zygote(self) -> int:
        return next(pid for pid in self.user.processes() if status(pid).get("PPid") == str(self.process.pid))

    def events(self, name: str) -> list[dict[str, object]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    async def recover(self) -> None:
        with trio.fail_after(RECOVERY):
            assert (await ask(self, "hello")).code == 1000  # type: ignore[arg-type]


def environ(user: User) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(user.folder / "home"), "TMPDIR": str(user.folder)}


@asynccontextmanager
async def serving(user: User, mode: str, cli: Path | None = None) -> AsyncIterator[Served]:
    """Run `trio-claude serve` as that user, by default on the fake CLI; in the end nothing of the user is left."""
    program = cli or fake_program(user.folder)
    words = ["serve", "--port", "0", "--containment", mode, "--cli", str(program), "--cwd", str(user.folder / "home")]
    log = user.folder / "log"
    with log.open("wb") as file:
        process = await trio.lowlevel.open_process(
            user.words(sys.executable, "-m", "trio_claude", *words),
            stdout=subprocess.PIPE, stderr=file, env=environ(user), cwd="/",
        )  # fmt: skip
    try:
        told = b""
        with trio.fail_after(30):
            while not told.endswith(b"\n"):
                told += await process.stdout.receive_some()
                assert told, log.read_text()
        yield Served(user, process, int(told.rpartition(b":")[2]), log)
    finally:
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                process.send_signal(signal.SIGINT)
            await process.wait()
            await process.stdout.aclose()
    await until(lambda: not user.processes())


@pytest.mark.parametrize("field", ["cwd", "workspaces"])
async def test_a_folder_that_it_may_not_enter_is_named(user: User, field: str) -> None:
    """At the start, by the setting, and not by each run."""
    closed = user.folder / "closed"
    closed.mkdir(mode=0o700)
    for folder in (closed, closed / "below"):
        told = await trio.run_process(
            user.words(sys.executable, "-m", "trio_claude", "serve", "--port", "0", "--cli", "sh", f"--{field}={folder}"),
            env=environ(user), cwd="/", capture_stderr=True, check=False,
        )  # fmt: skip
        error = f"trio-claude: {field} can't be entered (Permission denied): {folder}; --{field} names another"
        assert (told.returncode, told.stderr.decode().splitlines()[-1]) == (2, error)


# -- the promise ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [*MODES, pytest.param("auto", marks=pytest.mark.namespace)])
async def test_serve_and_ask_leave_nothing(user: User, mode: str) -> None:
    async with serving(user, mode) as served:
        resting = user.processes()
        assert len(resting) == 3, "the server, its zygote, and a supervisor that waits for its next run"
        prompt = directive("tree", kinds=KINDS, seconds=60, then="exit")
        told = await trio.run_process(
            user.words(sys.executable, "-m", "trio_claude", "ask", prompt, "--url", f"http://127.0.0.1:{served.port}"),
            env=environ(user), cwd="/", capture_stderr=True, check=False,
        )  # fmt: skip
        assert user.processes() == resting
        assert (told.returncode, told.stderr[:12]) == (0, b"[1000 exit 0"), told.stderr
        assert b" 0 left, " in told.stderr
        assert [line["mode"] for line in served.events("ContainmentReady")] == [mode if mode != "auto" else "namespace"]
        assert not served.events("Crashed")


@BOTH
async def test_a_killed_server_leaves_nothing(user: User, mode: str) -> None:
    async with serving(user, mode) as served, trio.open_nursery() as nursery:
        resting = user.processes()

        async def client() -> None:
            await ask(served, directive("tree", kinds=KINDS, seconds=60, then="stay"))  # type: ignore[arg-type]

        nursery.start_soon(client)
        await until(lambda: len(user.processes() - resting) > len(KINDS))
        await trio.sleep(0.3)
        served.process.kill()
        await until(lambda: not user.processes(), 3)


@BOTH
async def test_lost_helpers_are_made_up_for(user: User, mode: str) -> None:
    """The zygote ends what a killed supervisor leaves, and the next zygote takes over from a killed one."""
    async with serving(user, mode) as served, trio.open_nursery() as nursery:
        resting = user.processes()
        said = []

        async def client() -> None:
            said.append(await ask(served, directive("tree", kinds=KINDS, seconds=60, then="stay")))  # type: ignore[arg-type]

        nursery.start_soon(client)
        await until(lambda: len(user.processes() - resting) > len(KINDS))
        zygote = served.zygote
        guardian = next(pid for pid in user.processes() if status(pid).get("PPid") == str(zygote))
        os.kill(guardian, signal.SIGKILL)
        await until(lambda: said)
        assert (said[0].errors[-1]["error"], said[0].code) == ("the guardian of this run was lost", 1011)
        assert " 0 left, " in said[0].reason
        assert user.processes() == resting - {guardian}
        os.kill(zygote, signal.SIGKILL)
        await until(lambda: served.events("GuardianLost"))
        await served.recover()


LOOK = """#!/bin/sh
cat >/dev/null
grep -E '^(NoNewPrivs|CapEff|CapBnd):' /proc/self/status | tr '\\t\\n' '  '
cat /proc/self/oom_score_adj
for file in environ maps fd/0 mem; do
  cat /proc/$PPID/$file >/dev/null 2>&1 && echo "can read $file"
done
ls /proc/$PPID/fd >/dev/null 2>&1 && echo "can list fd"
echo looked
"""


@BOTH
async def test_a_run_has_no_privilege_and_its_guardian_no_window(user: User, mode: str) -> None:
    program = user.folder / "look"
    program.write_text(LOOK)
    program.chmod(0o755)
    async with serving(user, mode, program) as served:
        said = await ask(served, "hello")  # type: ignore[arg-type]
    assert said.code == 1000, said
    first, *more = said.frames[1:]
    assert first.split() == ["CapEff:", "0" * 16, "CapBnd:", "0" * 16, "NoNewPrivs:", "1", "500"]
    assert more == ["looked"]


# -- the limit of processes -------------------------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@BOTH
async def test_no_process_left_at_any_moment_of_a_start(user: User, mode: str) -> None:
    """From the zygote's fork to the CLI's: the run says which limit it met; when there is room again it works."""
    codes = []
    async with serving(user, mode) as served:
        await served.recover()
        zygote = served.zygote
        resting = user.processes() - set(children(zygote))
        for room in range(6):
            for pid in children(zygote):  # a supervisor that waits would need no fork of the zygote's
                os.kill(pid, signal.SIGKILL)
            await until(lambda: not children(zygote))
            user.limit(zygote, str(user.threads() + room))
            said = await ask(served, "hello")  # type: ignore[arg-type]
            user.limit(zygote, USUAL)
            codes.append(said.code)
            if said.code != 1000:
                assert (said.code, said.reason.split(";")[0]) == (1011, "not started"), (room, said)
                assert "Resource temporarily unavailable (EAGAIN)" in str(said.errors[-1]["error"]), (room, said)
                assert user.processes() == resting
        await served.recover()
        assert served.zygote == zygote
    assert codes == sorted(codes, reverse=True)
    assert set(codes) == {1000, 1011}


async def test_no_thread_left_for_a_clean_up(user: User) -> None:
    """A run that worked is told so, whatever the clean-up of its folder meets."""
    async with serving(user, "supervisor") as served:
        server = served.process.pid
        await until(lambda: int(status(server)["Threads"]) <= 3, 15)
        user.limit(server, "1")
        said = await ask(served, "hello", system_prompt="x")  # type: ignore[arg-type]
        user.limit(server, USUAL)
        assert said.code == 1000, said
        await served.recover()
        assert not served.events("Crashed")


CLOSED = (
    """
import sys, trio
from trio_claude.containment import Job, open_containment
SCRIPT = """
    + repr(
        """
import ctypes, os, time
ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
if os.fork():
    time.sleep(60)  # what is to be ended lives until it is
os.setsid()
os.write(1, b"ready")
time.sleep(60)  # so does this
"""
    )
    + """
async def main():
    async with open_containment("supervisor", lambda _: None) as containment:
        async with containment.start(Job(argv=(sys.executable, "-c", SCRIPT), env={}, cwd="/")) as process:
            await process.stdout.receive_some()
            process.end()
            print(await process.wait_gone())
trio.run(main)
"""
)


@pytest.mark.parametrize("hidden", ["0", "1", "2"])
def test_what_proc_shows_to_nobody_is_ended_too(user: User, hidden: str) -> None:
    """As ssh-agent and other servers of this kind are, which nobody may look into."""
    mount = ["unshare", "--mount", "sh", "-ec", f'mount -t proc -o hidepid={hidden} proc /proc; exec "$@"', "sh"]
    words = [*mount, *user.words(sys.executable, "-c", CLOSED)]
    told = subprocess.run(words, env=environ(user), cwd="/", capture_output=True, text=True)
    assert told.stdout.startswith("2 processes, 0 left, "), told
