"""Rule: in a sandbox a run sees an allow-list of files and its own processes, writes its own folders, and ends as anywhere."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from harness import Backend, ask, directive, real_cli

from trio_claude.batch.manifest import cli_version
from trio_claude.config import Config
from trio_claude.containment import Job, Means, open_containment
from trio_claude.engine import open_engine
from trio_claude.errors import ConfigError, ContainmentUnavailable, SpawnFailed
from trio_claude.messages import Options
from trio_claude.testing import fake_cli
from trio_claude.workplace import Workplace

pytestmark = pytest.mark.sandbox
ENV = {"PATH": "/usr/bin:/bin", "TRIO_CLAUDE_RUN": "sandbox:1"}


async def run(
    script: str, folder: Path, *, network: bool = True, read: tuple[str, ...] = (), **more: Any
) -> tuple[str, int]:
    words = ("/bin/sh", "-c", script)
    job = Job(**{"argv": words, "env": ENV, "cwd": str(folder), "writable": (str(folder),), **more})
    async with open_containment("sandbox", lambda _: None, Means(network=network, read=read)) as containment:
        async with containment.start(job) as process:
            said = b"".join([bytes(chunk) async for chunk in process.stdout])
            status = await process.wait_exit()
            process.end()
            receipt = await process.wait_gone()
    assert (receipt.survivors, receipt.containment) == (0, "sandbox")
    return said.decode(), status


async def test_files_and_processes_of_others_are_not_there(folder: Path) -> None:
    (folder / "mine").write_text("x")
    script = (
        "ls /root /home /var /etc/shadow 2>/dev/null; ls /; ls /proc | grep -c '^[0-9]'; ls /tmp; cat mine; touch made"
    )
    said, status = await run(script, folder)
    assert status == 0
    assert not {"root", "home", "var", "srv", "work"} & set(said.split())
    assert (folder / "made").exists()


async def test_only_the_runs_own_folders_are_writable(folder: Path) -> None:
    said, _ = await run(
        "touch /usr/x /etc/x /bin/x 2>&1; touch inside && echo ok; touch /tmp/private && echo ok", folder
    )
    assert said.count("Read-only file system") == 2
    assert said.count("ok") == 2
    assert not Path("/tmp/private").exists()


async def test_further_paths_can_be_read(folder: Path) -> None:
    assert (await run(f"cat {__file__} | head -1; touch {__file__} || echo refused", folder, read=(__file__,)))[
        0
    ].endswith("refused\n")


@pytest.mark.parametrize("place", ["home", "work"])
async def test_settings_that_are_elsewhere_behind_a_link_are_found(folder: Path, place: str) -> None:
    """Whether the working directory has that link or not; and the list of sessions is each run's own."""
    home, elsewhere = folder / "home", folder / "elsewhere"
    for one in (home, folder / "work", elsewhere):
        one.mkdir()
    (elsewhere / "login").write_text("there")
    (home / ".claude").symlink_to(elsewhere)
    config = Config(cli="sh", cwd=str(folder / place), containment="sandbox")
    script = f"cd {home}/.claude && cat login && echo x > made && echo x > sessions/1.json"
    async with Workplace.open(config, {"HOME": str(home)}) as workplace:
        async with workplace.job("1" * 32, Options(), "T", binds=True) as job:
            given = {"folders": job.folders, "binds": job.binds, "writable": job.writable}
            assert await run(script, Path(job.cwd), **given) == ("there", 0)
    assert {path.name for path in elsewhere.rglob("*")} == {"login", "made", "sessions"}


async def test_without_the_network(folder: Path) -> None:
    assert (await run("cat /proc/net/dev | tail -n +3 | cut -d: -f1", folder, network=False))[0].split() == ["lo"]


async def test_no_capability_and_no_way_to_remount(folder: Path) -> None:
    said, _ = await run("grep CapEff /proc/self/status; mount -o remount,rw /usr 2>&1 || echo refused", folder)
    assert "0000000000000000" in said
    assert "refused" in said


async def test_a_signal_reaches_the_cli_inside(folder: Path) -> None:
    script = "trap 'echo got; exit 7' INT; echo ready; while :; do sleep .05; done"
    job = Job(argv=("/bin/sh", "-c", script), env=ENV, cwd=str(folder), writable=(str(folder),))
    async with open_containment("sandbox", lambda _: None) as containment, containment.start(job) as process:
        assert await process.stdout.receive_some() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert await process.wait_exit() == 7


async def test_a_death_by_a_signal_is_told_as_one(folder: Path) -> None:
    assert [(await run(script, folder))[1] for script in ("kill -SEGV $$", "exit 200", "exit 128")] == [-11, 200, 128]


async def test_the_cli_says_its_version(folder: Path) -> None:
    program = folder / "cli"
    program.write_text("#!/bin/sh\necho 1.2.3\n")
    program.chmod(0o755)
    async with open_engine(Config(cli=str(program), containment="sandbox")) as engine:
        assert await cli_version(engine) == "1.2.3"


TREE = """
setsid env -i /bin/sh -c "echo a; exec sleep 60" &
sh -c "trap '' TERM; sleep 60 & echo b; wait" &
setsid sh -c 'sleep 60 & echo c; exit 0'
sleep 60 & echo d; wait
"""
"""Out of its session and environment, deaf to TERM, an orphan, an ordinary child; each says a letter once it is there."""


async def test_a_hostile_tree_is_gone_and_counted(folder: Path) -> None:
    job = Job(argv=("/bin/sh", "-c", TREE), env=ENV, cwd=str(folder), writable=(str(folder),))
    async with open_containment("sandbox", lambda _: None) as containment:
        for _ in range(20):
            said = b""
            async with containment.start(job) as process:
                while len(said) < len("a\nb\nc\nd\n"):
                    said += await process.stdout.receive_some()
                process.end()
                receipt = await process.wait_gone()
            assert (receipt.survivors, receipt.killed >= 6) == (0, True)
            assert receipt.killed == receipt.seen


async def test_the_stand_in_answers_in_a_sandbox(fake: Backend) -> None:
    import sys

    read = (sys.prefix, sys.base_prefix, str(Path(fake_cli.FOLDER).parents[1]))
    async with fake.serve(containment="sandbox", sandbox_read=read) as server:
        said = await ask(
            server, directive("tree", kinds=["setsid", "double_fork", "env_clear"], seconds=60, then="exit")
        )
    assert said.code == 1000
    assert fake.ended[0].outcome.receipt.containment == "sandbox"


@pytest.mark.real_cli
async def test_the_real_cli_answers_and_its_tool_sees_nothing_of_others(real: Backend, folder: Path) -> None:
    secret = folder / "secret-of-another"
    secret.write_text("do not read")
    command = f"cat {secret} /etc/shadow; ls /proc | grep -c '^[0-9]'; echo tool-done"
    async with real.serve(containment="sandbox", cli_args="--allowed-tools=Bash") as server:
        said = await ask(server, directive("bash", cmd=command))
    told = json.dumps(said.of_type("user"))
    assert said.code == 1000
    assert "tool-done" in told
    assert "do not read" not in told
    assert str(real_cli())


@pytest.mark.real_cli
async def test_the_real_cli_keeps_its_settings_in_a_new_home(real: Backend, folder: Path) -> None:
    """Else each run but the first would tell its client at length that they are gone."""
    del real.environ["CLAUDE_CONFIG_DIR"]
    async with real.serve(containment="sandbox") as server:
        told = [await ask(server, "hello") for _ in range(2)]
    assert [(said.code, [frame for frame in said.objects if "stderr" in frame]) for said in told] == [(1000, [])] * 2
    assert json.loads((folder / ".claude.json").read_text())["userID"]


async def test_unattended_needs_a_sandbox_or_a_word(fake: Backend) -> None:
    async with fake.serve(containment="sandbox", profile="unattended") as server:
        assert server.port


@pytest.mark.parametrize("place", ["/", "/proc", "/dev", "/etc", "/usr/..", "link"])
async def test_nothing_that_it_is_made_of_is_laid_open(folder: Path, place: str) -> None:
    """A server that was started in `/` has no other folder for its runs."""
    (folder / "link").symlink_to("/")
    wide = str(folder / place)
    with pytest.raises(ConfigError, match="cwd: a sandbox with all of"):
        async with open_engine(Config(cli="sh", cwd=wide, containment="sandbox")):
            pytest.fail("opened")
    with pytest.raises(ConfigError, match="CLAUDE_CONFIG_DIR: a sandbox with all of"):
        async with open_engine(
            Config(cli="sh", cwd=str(folder), containment="sandbox"), environ={"CLAUDE_CONFIG_DIR": wide}
        ):
            pytest.fail("opened")
    with pytest.raises(ContainmentUnavailable, match="sandbox_read: a sandbox with all of"):
        await run("true", folder, read=(wide,))
    with pytest.raises(SpawnFailed, match="a sandbox with all of"):
        await run("true", Path(wide))


async def test_bubblewrap_that_can_not_start_is_no_sandbox(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "bwrap"
    program.write_text("#!/bin/sh\necho bwrap: hello; echo bwrap: no namespaces here >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    with pytest.raises(ContainmentUnavailable, match="bwrap: no namespaces here"):
        await run("true", folder)


async def test_without_bubblewrap_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(ContainmentUnavailable, match="apt install bubblewrap"):
        async with open_containment("sandbox", lambda _: None):
            pytest.fail("opened")
