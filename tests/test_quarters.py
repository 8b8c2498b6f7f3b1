"""Rule: what one identity leaves, another never finds; where runs have a view of their own, it can't even look."""

from __future__ import annotations

import errno
import json
import os
import pwd
import shlex
import stat
import sys
from pathlib import Path
from secrets import token_hex

import pytest
from harness import MODES, Backend, Said, ask, directive, open_backend, short_folder
from talk import open_talk

from trio_claude.config import Config
from trio_claude.errors import ConfigError
from trio_claude.quarters import Homes, state_folder
from trio_claude.server import open_server
from trio_claude.testing import fake_cli

BOTH = ["fake", pytest.param("real", marks=pytest.mark.real_cli)]
APART = [
    pytest.param("namespace", marks=pytest.mark.namespace),
    pytest.param("sandbox", marks=pytest.mark.sandbox),
]
"""The containments in which a run has a view of its own."""
STAND_IN = (sys.prefix, sys.base_prefix, str(Path(fake_cli.FOLDER).parents[1]))
"""What the stand-in reads where all but the system is hidden."""
ALLOWED = {"cli_args": "--allowed-tools=Bash", "sandbox_read": STAND_IN}


@pytest.mark.parametrize(("shared", "rights"), [(False, 0o700), (True, 0o711)])
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_the_folder_that_homes_are_in_is_the_servers_alone(folder: Path, shared: bool, rights: int, mask: int) -> None:
    """But that another user, whom the CLI becomes, comes through."""
    before = os.umask(mask)
    try:
        Homes.open(folder / "state" / "homes", per_run=False, shared=shared)
    finally:
        os.umask(before)
    assert [stat.S_IMODE((folder / place).stat().st_mode) for place in ("state", "state/homes")] == [rights, rights]


def test_a_home_of_another_user_is_named(folder: Path) -> None:
    """As of the one whom the CLI became before."""
    quarters = Homes.open(folder / "homes", per_run=False, shared=True).quarters("alice", "", "", binds=False)
    quarters.make(None, None)
    quarters.make((os.geteuid(), os.getegid()), "ws")
    with pytest.raises(PermissionError) as told:
        quarters.make((os.geteuid() + 1, os.getegid()), None)
    ours, other = os.geteuid(), os.geteuid() + 1
    assert told.value.filename == quarters.real
    assert told.value.strerror == (
        f"what is there is user {ours}'s, and runs are user {other}'s; chown it, or take another --state"
    )


def bash(script: str) -> str:
    return directive("bash", cmd=script)


def output(said: Said) -> str:
    """Return what the Bash tool printed."""
    assert said.code == 1000, said.frames[-3:]
    texts = [block for frame in said.objects if frame.get("type") == "user" for block in blocks(frame)]
    return "\n".join(text for text in texts if text)


def blocks(frame: dict[str, object]) -> list[str]:
    message = frame.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    return (
        [str(block.get("content")) for block in content if isinstance(block, dict)] if isinstance(content, list) else []
    )


@pytest.mark.parametrize("mode", [*MODES, pytest.param("sandbox", marks=pytest.mark.sandbox)])
@pytest.mark.parametrize("name", BOTH)
async def test_each_identity_lives_apart_and_finds_its_own_again(name: str, mode: str) -> None:
    with short_folder() as folder:
        async with (
            open_backend(name, folder) as cli,
            cli.serve_known("alice", "bob", containment=mode, **ALLOWED) as known,
        ):
            server, keys = known
            leave = "echo mine > $HOME/left; echo mine > $CLAUDE_CONFIG_DIR/left; echo mine > left; pwd; echo $TMPDIR"
            find = "cat $HOME/left $CLAUDE_CONFIG_DIR/left left 2>/dev/null | wc -l"
            first = output(await ask(server, bash(leave), key=keys["alice"]))
            assert str(folder / "work") not in first
            assert output(await ask(server, bash(find), key=keys["alice"])).strip() == "3"
            assert output(await ask(server, bash(find), key=keys["bob"])).strip() == "0"
            assert len(list((folder / "state/homes").iterdir())) == 2


@pytest.mark.parametrize("mode", [*MODES, pytest.param("sandbox", marks=pytest.mark.sandbox)])
async def test_each_run_lives_apart_and_leaves_nothing(fake: Backend, mode: str) -> None:
    async with fake.serve_known("alice", isolation="run", containment=mode, **ALLOWED) as (server, keys):
        leave, find = (
            "echo mine > $HOME/left; echo mine > left",
            "ls $HOME . | wc -l; ls $HOME/left left 2>&1 | grep -c mine",
        )
        await ask(server, bash(leave), key=keys["alice"])
        assert "0" in output(
            await ask(server, bash(f"cat $HOME/left left 2>/dev/null | wc -l; {find}"), key=keys["alice"])
        )
        assert not list((fake.cwd.parent / "state/homes").iterdir())


@pytest.mark.parametrize("mode", APART)
@pytest.mark.parametrize("name", BOTH)
async def test_a_run_can_reach_nothing_of_another(name: str, mode: str) -> None:
    """Alice's run stands still with a file, a process and a socket; Bob's looks for each, by every name there is."""
    with short_folder() as folder:
        async with (
            open_backend(name, folder) as cli,
            cli.serve_known("alice", "bob", containment=mode, **ALLOWED) as known,
        ):
            server, keys = known
            mark = token_hex(8)
            canary, unlike = f"canary-{mark}", f"'canary[-]{mark}'"  # a pattern does not find itself
            output(await ask(server, bash(f"echo {canary} > $HOME/secret; echo {canary} > secret"), key=keys["alice"]))
            homes = folder / "state/homes"
            (alice,) = homes.iterdir()
            assert (alice / "work/secret").read_text().strip() == canary
            async with open_talk(server, keys["alice"]) as talk:
                await talk.start()
                await talk.user(bash(f"exec -a {canary} sleep 60"))
                await talk.next(lambda frame: frame["type"] == "assistant")
                attempts = [
                    f"cat {shlex.quote(str(alice / 'work/secret'))}",
                    f"cat {shlex.quote(str(alice / 'home/secret'))}",
                    f"ls {shlex.quote(str(alice))}",
                    f"grep -rs {unlike} {shlex.quote(str(homes))} {shlex.quote(server.runs._workplace.folders)} /home",
                    f"grep -s {unlike} /proc/[0-9]*/cmdline",
                    "grep -sazhoE '^TRIO_CLAUDE_RUN=.*' /proc/[0-9]*/environ | tr '\\0' '\\n' | sort -u | wc -l",
                    f"ls {shlex.quote(server.runs._workplace.folders)} | grep -c {next(iter(server.runs._live))[:12]}",
                    f"cat {shlex.quote(str(folder / 'keys.json'))} | grep -c hash" if mode == "sandbox" else "echo 0",
                ]
                found = output(
                    await ask(
                        server,
                        bash("; ".join([*(f"({one}) 2>/dev/null" for one in attempts), "true"])),
                        key=keys["bob"],
                    )
                )
                assert canary not in found
                assert [line for line in found.split() if line not in ("0", "1")] == []
                assert found.split()[-1] == "0"
                await talk.stop("kill")


@pytest.mark.real_cli
async def test_a_session_is_resumed_by_its_own_identity_only(real: Backend) -> None:
    async with real.serve_known("alice", "bob") as (server, keys):
        async with open_talk(server, keys["alice"]) as talk:
            started = await talk.start()
            await talk.user("hello")
            await talk.result()
            await talk.stop("end")
        session = str(started["session"])
        theirs = await ask(server, "hello", key=keys["bob"], resume=session)
        assert theirs.code == 1011
        assert "No conversation found" in json.dumps(theirs.objects)
        own = await ask(server, "hello", key=keys["alice"], resume=session)
        assert own.code == 1000


async def test_a_working_directory_for_all_has_no_place_with_isolation(fake: Backend) -> None:
    with pytest.raises(ConfigError, match="folders of their own"):
        async with open_server(Config(cli=fake.program, cwd=str(fake.cwd), isolation="identity", port=0)):
            pytest.fail("opened")


async def test_a_state_folder_that_can_not_be_made_is_named(fake: Backend) -> None:
    with pytest.raises(ConfigError, match="can't be made"):
        async with open_server(Config(cli=fake.program, isolation="identity", port=0, state="/proc/nope")):
            pytest.fail("opened")


def test_the_state_folder_is_found_by_the_rules() -> None:
    assert state_folder("/x/y", {}) == Path("/x/y")
    assert state_folder("", {"XDG_STATE_HOME": "/s", "HOME": "/h"}) == Path("/s/trio-claude")
    assert state_folder("", {"XDG_STATE_HOME": "s", "HOME": "/h"}) == Path("/h/.local/state/trio-claude")
    assert state_folder("", {"HOME": "/h"}) == Path("/h/.local/state/trio-claude")


async def test_a_state_folder_of_another_user_is_named(fake: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where root has tried a server by hand before it is the unit's."""

    def refuse(_path: Path, _mode: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "chmod", refuse)
    state = fake.cwd.parent / "state"
    (state / "homes").mkdir(parents=True)
    with pytest.raises(
        ConfigError, match=rf"^state: {state}/homes can't be made: what is there is user \d+'s, and this"
    ):
        async with open_server(Config(cli=fake.program, isolation="identity", port=0, state=str(state))):
            pytest.fail("opened")


@pytest.mark.parametrize("environ", [{}, {"HOME": ""}])
def test_without_home_the_state_folder_is_in_the_home_that_the_system_knows(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    entry = pwd.struct_passwd(("me", "x", 0, 0, "", "/h", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", {os.getuid(): entry}.__getitem__)
    assert state_folder("", environ) == Path("/h/.local/state/trio-claude")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    assert state_folder("", environ) == Path("/.local/state/trio-claude")


@pytest.mark.parametrize("mode", [*MODES, pytest.param("sandbox", marks=pytest.mark.sandbox)])
async def test_links_that_a_run_leaves_lead_nowhere(fake: Backend, mode: str) -> None:
    """Whatever a run puts in place of its folders, the server makes, gives and removes nothing elsewhere."""
    victim = fake.cwd.parent / "victim"
    (victim / "sessions").mkdir(parents=True)
    settings = {**ALLOWED, "workspaces": "x", "containment": mode}
    async with fake.serve_known("alice", "bob", **settings) as (server, keys):
        moves = [
            f"mv $HOME/../{name} $HOME/../{name}2; ln -s {shlex.quote(str(victim))} $HOME/../{name}"
            for name in ("work", "config")
        ]
        links = f"rm -rf $CLAUDE_CONFIG_DIR/sessions; ln -s {shlex.quote(str(victim))} $CLAUDE_CONFIG_DIR/sessions"
        await ask(server, bash("; ".join([f"ln -s {shlex.quote(str(victim))} evil", links, *moves])), key=keys["alice"])
        for workspace in ("evil", "other", None):
            more = {} if workspace is None else {"workspace": workspace}
            said = await ask(server, "hello", key=keys["alice"], **more)
            if workspace == "evil":
                assert said.code == 1011
        assert output(await ask(server, bash("echo $((40+2))"), key=keys["bob"])).strip() == "42"
        assert sorted(path.name for path in victim.rglob("*")) == ["sessions"]


SHELL = """#!/bin/sh
read -r line
eval "$(printf %s "$line" | sed 's/.*"content":"\\([^"]*\\)".*/\\1/')"
"""
"""A CLI that does what its prompt says; it runs as anybody."""


@pytest.mark.root
async def test_a_user_of_its_own_gets_its_folders_and_nothing_else(fake: Backend) -> None:
    """The CLI becomes another user; a link that it leaves makes nothing of root's its own."""
    fake.cwd.parent.chmod(0o755)
    program = fake.cwd.parent / "shell"
    program.write_text(SHELL)
    program.chmod(0o755)
    victim = fake.cwd.parent / "victim"
    victim.mkdir(mode=0o700)
    (victim / "shadow").write_text("secret")
    settings = {"cli": str(program), "user": "nobody", "workspaces": "x", "containment": "supervisor"}
    async with fake.serve_known("alice", **settings) as (server, keys):
        found = await ask(server, f"id -u; echo x > mine && echo made; ln -s {victim} evil; pwd", key=keys["alice"])
        assert found.frames[1:3] == ["65534", "made"]
        assert (await ask(server, "true", key=keys["alice"], workspace="good")).code == 1000
        await ask(
            server, "rm -rf $CLAUDE_CONFIG_DIR/sessions; ln -s /etc $CLAUDE_CONFIG_DIR/sessions", key=keys["alice"]
        )
        for more in ({"workspace": "evil"}, {}):
            said = await ask(server, "true", key=keys["alice"], **more)
            assert "stands in the place of a folder" in str(said.errors)
    (alice,) = (fake.cwd.parent / "state/homes").iterdir()
    assert [(alice / name).stat().st_uid for name in ("home", "config", "work", ".", "work/good")] == [65534] * 3 + [
        0,
        65534,
    ]
    assert victim.stat().st_uid == (victim / "shadow").stat().st_uid == 0
