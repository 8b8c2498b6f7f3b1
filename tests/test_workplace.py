"""Rule: a CLI finds what it needs and nothing of the server's; a client never names a path."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from trio_claude.config import Config
from trio_claude.errors import ConfigError, SpawnFailed
from trio_claude.messages import Options
from trio_claude.workplace import Workplace, find_cli, inherited


def test_only_named_variables_are_inherited() -> None:
    environ = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "ANTHROPIC_API_KEY": "k",
        "https_proxy": "p",
        "SECRET": "s",
        "TRIO_CLAUDE_X": "x",
    }
    assert inherited(environ, ()) == {"PATH": "/bin", "LC_ALL": "C", "ANTHROPIC_API_KEY": "k", "https_proxy": "p"}
    assert inherited(environ, ("SEC*",))["SECRET"] == "s"


def test_a_named_cli_is_taken_as_it_is() -> None:
    assert find_cli(Config(cli="sh")) == Path(shutil.which("sh") or "")
    assert find_cli(Config(cli="/opt/claude")) == Path("/opt/claude")


def test_no_cli_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'trio-claude\[claude\]'"):
        find_cli(Config())


async def test_a_working_directory_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="cwd is no folder"):
        async with Workplace.open(Config(cli="sh", cwd="/nope"), "s", {}):
            pytest.fail("opened")


async def test_folders_are_gone_whatever_a_run_left_in_them(folder: Path) -> None:
    async with Workplace.open(Config(cli="sh", cwd=str(folder)), "s", {}) as workplace:
        async with workplace.job("a" * 32, Options()) as job:
            inner = Path(job.env["TMPDIR"]) / "deep" / "er"
            inner.mkdir(parents=True)
            (inner / "file").write_text("x")
        assert list(workplace.tmp.iterdir()) == []
    assert not workplace.tmp.exists()


async def test_a_workspace_that_is_a_link_is_refused(folder: Path) -> None:
    (folder / "escape").symlink_to("/etc")
    async with Workplace.open(Config(cli="sh", cwd=str(folder), workspaces=str(folder)), "s", {}) as workplace:
        with pytest.raises(SpawnFailed, match="not a folder of its own"):
            async with workplace.job("a" * 32, Options(workspace="escape")):
                pytest.fail("opened")


async def test_two_runs_never_hold_one_session(folder: Path) -> None:
    from trio_claude.admission import SessionLocks
    from trio_claude.errors import SessionBusy

    locks = SessionLocks()
    with locks.hold("s"), locks.hold("other"), locks.hold(None), locks.hold(None):
        with pytest.raises(SessionBusy, match="session s is in use"):
            with locks.hold("s"):
                pytest.fail("held twice")
    with locks.hold("s"):
        pass
