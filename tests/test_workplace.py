"""Rule: a CLI finds what it needs and nothing of the server's; a client never names a path."""

from __future__ import annotations

import os
import pwd
import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from harness import MODES

from trio_claude.commands.doctor import login
from trio_claude.config import Config
from trio_claude.containment import Job
from trio_claude.engine import open_engine
from trio_claude.errors import ConfigError, SpawnFailed
from trio_claude.events import Event, Weak
from trio_claude.messages import Options
from trio_claude.workplace import RUN_NAME, Workplace, find_cli, find_user, inherited


def opened(
    workplace: Workplace, run: str, *, meta: str = "T", binds: bool = False, **options: object
) -> AbstractAsyncContextManager[Job]:
    return workplace.job(run * 32, Options(**options), meta, binds=binds)  # type: ignore[arg-type]


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
        async with Workplace.open(Config(cli="sh", cwd="/nope"), {}):
            pytest.fail("opened")


async def test_without_home_the_cli_is_expected_where_its_users_home_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = pwd.struct_passwd(("me", "x", 0, 0, "", str(folder), "/bin/sh"))
    monkeypatch.setattr("pwd.getpwuid", lambda _: entry)
    async with Workplace.open(Config(cli="sh", cwd="/"), {}) as workplace:
        assert workplace.sessions == str(folder / ".claude" / "sessions")
    assert login({}).startswith("none found")
    (folder / ".claude" / ".credentials.json").touch()
    assert login({}).startswith("a stored login")


@pytest.mark.root
async def test_a_folder_that_only_the_clis_user_can_enter_is_his_to_enter(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, _: path != str(folder))  # as where root has no rights of its own
    async with Workplace.open(Config(cli="sh", cwd=str(folder), user="nobody"), {"HOME": "/"}) as workplace:
        assert workplace.cwd == str(folder)
    with pytest.raises(ConfigError, match="cwd can't be entered"):
        async with Workplace.open(Config(cli="sh", cwd=str(folder)), {"HOME": "/"}):
            pytest.fail("opened")


async def test_a_folder_that_was_removed_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "gone").mkdir()
    monkeypatch.chdir(folder / "gone")
    (folder / "gone").rmdir()
    with pytest.raises(ConfigError, match="cwd: the folder that this was started in is gone"):
        async with Workplace.open(Config(cli="/bin/true"), {}):
            pytest.fail("opened")


async def test_folders_are_gone_whatever_a_run_left_in_them(folder: Path) -> None:
    async with Workplace.open(Config(cli="sh", cwd=str(folder)), {}) as workplace:
        async with opened(workplace, "a", binds=True) as job:
            inner = Path(workplace.folders) / ("a" * RUN_NAME) / "deep" / "er"
            assert job.env["TMPDIR"] == workplace.folders
            inner.mkdir(parents=True)
            (inner / "file").write_text("x")
        assert not list(Path(workplace.folders).iterdir())
    assert not workplace.home.folder.exists()


@pytest.mark.parametrize("binds", [True, False])
async def test_a_folder_is_made_by_whoever_starts_the_run_but_where_something_is_put_there(
    folder: Path, binds: bool
) -> None:
    """A disk that is slow is to hold up no other run."""
    environ = {"CLAUDE_CONFIG_DIR": str(folder)}
    async with Workplace.open(Config(cli="sh", cwd=str(folder)), environ) as workplace:
        own = Path(workplace.folders) / ("a" * RUN_NAME)
        wanted = [own, own / "sessions"] if binds else [own]
        async with opened(workplace, "a", binds=binds) as job:
            assert job.folders == tuple(map(str, wanted))
            assert not own.exists()
        async with opened(workplace, "a", binds=binds, system_prompt="be brief") as job:
            assert job.folders == ()
            assert all(one.is_dir() for one in wanted)
            assert (own / "system_prompt").read_text() == "be brief"
        assert not own.exists()


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({"isolation": "identity"}, {}),
        ({"isolation": "run"}, {}),
        ({}, {"system_prompt": "be brief"}),
        ({"workspaces": "."}, {"workspace": "w"}),
        ({"cwd": "{meta}"}, {}),
    ],
)
async def test_folders_are_made_beside_the_loop(
    folder: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, str], options: dict[str, str]
) -> None:
    """A disk that is slow is to hold up no line of other runs."""
    seen: list[int] = []
    real = os.mkdir

    def mkdir(*given: Any, **more: Any) -> None:
        seen.append(threading.get_ident())
        real(*given, **more)

    monkeypatch.chdir(folder)
    async with Workplace.open(Config(cli="sh", state=str(folder / "state"), **config), {}) as workplace:
        monkeypatch.setattr(os, "mkdir", mkdir)
        async with opened(workplace, "a", **options):
            assert seen
            assert threading.get_ident() not in seen


async def test_a_folder_is_made_though_there_is_no_thread_for_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def none(*_: object, **_more: object) -> None:
        raise RuntimeError("can't start new thread")

    async with Workplace.open(Config(cli="sh", isolation="identity", state=str(folder)), {}) as workplace:
        with monkeypatch.context() as patched:
            patched.setattr(trio.to_thread, "run_sync", none)
            async with opened(workplace, "a") as job:
                assert Path(job.cwd).is_dir()


async def test_a_workspace_that_is_a_link_is_refused(folder: Path) -> None:
    (folder / "escape").symlink_to("/etc")
    async with Workplace.open(Config(cli="sh", cwd=str(folder), workspaces=str(folder)), {}) as workplace:
        with pytest.raises(SpawnFailed, match="not a folder of its own"):
            async with opened(workplace, "a", workspace="escape"):
                pytest.fail("opened")


async def test_two_runs_never_hold_one_session(folder: Path) -> None:
    from trio_claude.admission import SessionLocks
    from trio_claude.errors import SessionBusy

    locks = SessionLocks()
    with locks.hold("s", "a"), locks.hold("other", "a"):
        with pytest.raises(SessionBusy, match="session s is in use"):
            with locks.hold("s", "a"):
                pytest.fail("held twice")
    with locks.hold("s", "a"):
        pass


async def test_a_run_in_a_namespace_has_a_list_of_sessions_of_its_own(folder: Path) -> None:
    config = Config(cli="sh", cwd=str(folder))
    async with Workplace.open(config, {"CLAUDE_CONFIG_DIR": str(folder / "config")}) as workplace:
        async with opened(workplace, "a", binds=True) as job:
            own = f"{workplace.folders}/{'a' * RUN_NAME}"
            assert job.binds == ((f"{own}/sessions", workplace.sessions), (own, workplace.folders))
            assert workplace.sessions == str(folder / "config" / "sessions")
        async with opened(workplace, "b") as job:
            assert job.binds == ()
            assert job.env["TMPDIR"] == f"{workplace.folders}/{'b' * RUN_NAME}"


@pytest.mark.parametrize("how", ["removed", "link", "relative"])
async def test_the_list_of_sessions_is_where_it_can_be_bound(
    folder: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Though a run has removed it, the operator has put it elsewhere, or says where it is from where he stands."""
    state = folder / "state"
    (folder / "elsewhere").mkdir()
    state.mkdir()
    if how == "link":
        (state / "sessions").symlink_to(folder / "elsewhere")
    monkeypatch.chdir(folder)
    config = Config(cli="sh", cwd=str(folder / "elsewhere"))
    async with Workplace.open(config, {"CLAUDE_CONFIG_DIR": "state" if how == "relative" else str(state)}) as workplace:
        if how == "removed":
            shutil.rmtree(state)
        async with opened(workplace, "a", binds=True) as job:
            (_, place), _ = job.binds
            assert place == str(folder / "elsewhere" if how == "link" else state / "sessions")
            assert Path(place).is_dir()
            assert job.env["CLAUDE_CONFIG_DIR"] == str(state)


async def test_nothing_is_made_behind_a_link_that_leads_nowhere(folder: Path) -> None:
    (folder / "sessions").symlink_to(folder / "nowhere")
    async with Workplace.open(Config(cli="sh", cwd=str(folder)), {"CLAUDE_CONFIG_DIR": str(folder)}) as workplace:
        async with opened(workplace, "a", binds=True) as job:
            assert len(job.binds) == 1
    assert not (folder / "nowhere").exists()


@pytest.mark.root
@pytest.mark.parametrize("whose", ["nobody's", "root's"])
async def test_what_is_made_in_a_users_home_is_the_users(folder: Path, whose: str) -> None:
    """Else the CLI could keep no transcript there; and what a link of theirs leads to is never given to them."""
    home, root = folder / "home", folder / "root"
    for place in (home, root):
        place.mkdir()
    nobody = find_user("nobody")
    assert nobody
    os.chown(home, *nobody)
    if whose == "root's":
        (home / ".claude").symlink_to(root)
    async with Workplace.open(Config(cli="sh", cwd="/", user="nobody"), {"HOME": str(home)}) as workplace:
        assert workplace.sessions == str((home / ".claude" / "sessions").resolve())
        owners = {(place.stat().st_uid, place.stat().st_gid) for place in (home / ".claude", Path(workplace.sessions))}
        assert owners == {nobody if whose == "nobody's" else (0, 0)}


@pytest.mark.parametrize("told", ["", "mine"])
async def test_a_cli_in_a_sandbox_finds_a_file_for_its_settings(folder: Path, told: str) -> None:
    settings = folder / ".claude.json"
    if told:
        settings.write_text(told)
    config = Config(cli="sh", cwd="/usr/share", containment="sandbox")
    async with Workplace.open(config, {"HOME": str(folder)}):
        assert settings.read_text() == (told or "{}\n")


@asynccontextmanager
async def open_behind_link(folder: Path) -> AsyncIterator[tuple[Workplace, Path, Path]]:
    """Yield the workplace of a sandbox, the home, and where `.claude` in it led at the start; now it leads to `/`."""
    home, work, elsewhere = folder / "home", folder / "work", folder / "elsewhere"
    for one in (home, work / "w", elsewhere):
        one.mkdir(parents=True)
    (home / ".claude").symlink_to(elsewhere)
    config = Config(cli="sh", cwd=str(home), workspaces=str(work), containment="sandbox")
    async with Workplace.open(config, {"HOME": str(home)}) as workplace:
        (home / ".claude").unlink()
        (home / ".claude").symlink_to("/")
        yield workplace, home, elsewhere


async def test_a_link_to_the_clis_folder_leads_where_it_led_at_the_start(folder: Path) -> None:
    """A sandbox binds what it names: a run that can write where the link is may have it lead anywhere later."""
    async with open_behind_link(folder) as (workplace, home, elsewhere), opened(workplace, "a", binds=True) as job:
        assert job.writable == (str(home), str(elsewhere), str(home / ".claude.json"))
        assert job.binds[0][1] == str(elsewhere / "sessions")


async def test_a_link_to_the_clis_folder_is_none_where_a_sandbox_has_nothing_else_of_the_home(folder: Path) -> None:
    async with open_behind_link(folder) as (workplace, home, elsewhere):
        async with opened(workplace, "a", binds=True, workspace="w") as job:
            assert job.writable == (str(folder / "work" / "w"), str(home / ".claude.json"))
            assert job.binds[0] == (str(elsewhere), str(home / ".claude"))
            assert job.binds[1][1] == str(home / ".claude" / "sessions")


@pytest.mark.parametrize("linked", [False, True])
async def test_no_sandbox_is_given_what_a_run_has_put_in_the_place_of_the_clis_folder(
    folder: Path, linked: bool
) -> None:
    """That folder can't be moved where it is bound, but what it is in can."""
    home, work, other = folder / "home", folder / "work", folder / "other"
    for one in (home / "settings" / "claude", work, other):
        one.mkdir(parents=True)
    (home / ".claude").symlink_to(home / "settings" / "claude")
    environ = {"HOME": str(home)} if linked else {"CLAUDE_CONFIG_DIR": str(home / "settings" / "claude")}
    config = Config(cli="sh", cwd=str(home), workspaces=str(work), containment="sandbox")
    async with Workplace.open(config, environ) as workplace:
        (home / "settings").rename(home / "before")
        (home / "settings").mkdir()
        (home / "settings" / "claude").symlink_to(other)
        with pytest.raises(SpawnFailed, match="settings/claude leads elsewhere than when this server started"):
            async with opened(workplace, "a", binds=True, workspace="w"):
                pytest.fail("opened")
    assert not any(other.iterdir())


@pytest.mark.parametrize("leads", ["elsewhere", "other"])
async def test_a_list_of_sessions_that_a_run_has_removed_is_made_where_the_link_led_at_the_start(
    folder: Path, leads: str
) -> None:
    """And it is this run's own by the name by which that has it."""
    home, work, elsewhere, other = (folder / name for name in ("home", "work", "elsewhere", "other"))
    for one in (home, work, elsewhere, other):
        one.mkdir()
    (home / ".claude").symlink_to(elsewhere)
    config = Config(cli="sh", cwd=str(work), containment="sandbox")
    async with Workplace.open(config, {"HOME": str(home)}) as workplace:
        (elsewhere / "sessions").rmdir()
        (home / ".claude").unlink()
        (home / ".claude").symlink_to(folder / leads)
        async with opened(workplace, "a", binds=True) as job:
            assert job.binds[0] == (str(elsewhere), str(home / ".claude"))
            assert job.binds[1][1] == str(home / ".claude" / "sessions")
    assert (elsewhere / "sessions").is_dir()
    assert not any(other.iterdir())


async def test_what_a_killed_cli_left_in_the_list_of_sessions_is_removed(folder: Path) -> None:
    sessions = folder / "sessions"
    sessions.mkdir()
    for name in ("77.json", "77.f00d.key", "78.json"):
        (sessions / name).write_text("")
    async with Workplace.open(Config(cli="sh", cwd=str(folder)), {"CLAUDE_CONFIG_DIR": str(folder)}) as workplace:
        workplace.forget(77, "local")
        workplace.forget(79, "local")
    assert [entry.name for entry in sessions.iterdir()] == ["78.json"]


@pytest.mark.root
async def test_what_is_another_users_is_not_removed_behind_a_link(folder: Path) -> None:
    """A run can put one where its list of sessions was; what the CLI left is its user's."""
    nobody = find_user("nobody")
    assert nobody
    os.chown(folder, *nobody)
    roots = folder / "roots"
    roots.mkdir()
    for name in ("77.json", "77.db"):
        (roots / name).touch()
    os.chown(roots / "77.json", *nobody)
    async with Workplace.open(Config(cli="sh", cwd="/", user="nobody"), {"HOME": str(folder)}) as workplace:
        Path(workplace.sessions).rmdir()
        Path(workplace.sessions).symlink_to(roots)
        workplace.forget(77, "local")
    assert [entry.name for entry in roots.iterdir()] == ["77.db"]


async def test_without_a_list_of_sessions_nothing_is_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user of the system's that has no home; the server's own folder is no such list."""
    (folder / "file").touch()
    (folder / "77.csv").touch()
    monkeypatch.chdir(folder)
    async with Workplace.open(Config(cli="sh"), {"HOME": str(folder / "file")}) as workplace:
        assert workplace.sessions == ""
        workplace.forget(77, "local")
    assert (folder / "77.csv").exists()


@pytest.mark.parametrize("field", ["cwd", "workspaces"])
async def test_a_folder_that_can_not_be_looked_at_is_named_by_its_setting(field: str) -> None:
    named = f"/{'x' * 300}"
    told = rf"^{field} can't be entered \(File name too long\): {named}; --{field} names another$"
    with pytest.raises(ConfigError, match=told):
        async with Workplace.open(Config(cli="sh", **{field: named}), {}):
            pytest.fail("opened")


async def test_a_working_directory_for_each_meta(folder: Path) -> None:
    async with Workplace.open(Config(cli="sh", cwd=f"{folder}/{{meta}}"), {}) as workplace:
        async with opened(workplace, "a", meta="TASK-1") as job:
            assert job.cwd == f"{folder}/TASK-1"
            assert Path(job.cwd).stat().st_mode & 0o777 == 0o700
    with pytest.raises(ConfigError, match="cwd is no folder: /nope"):
        async with Workplace.open(Config(cli="sh", cwd="/nope/{meta}"), {}):
            pytest.fail("opened")


@pytest.mark.parametrize("name", ["{meta}-{date}", "{meta}-{", "{meta.x}{meta}", "{meta!q}{meta}", "{{meta}}"])
async def test_other_braces_in_a_working_directory_stay_as_they_are(folder: Path, name: str) -> None:
    async with Workplace.open(Config(cli="sh", cwd=f"{folder}/{name}"), {}) as workplace:
        async with opened(workplace, "a", meta="T") as job:
            assert job.cwd == f"{folder}/{name.replace('{meta}', 'T')}"


def test_a_user_is_found_or_named() -> None:
    if os.getuid():
        with pytest.raises(ConfigError, match="only root"):
            find_user("nobody")
        return
    assert find_user("") is None
    assert find_user("nobody") == find_user("65534")
    for name in ("nonsense", "²", "９", "9" * 30, "9" * 5000):
        with pytest.raises(ConfigError, match=f"there is no user {name}"):
            find_user(name)


@pytest.mark.root
@pytest.mark.parametrize("mode", MODES)
async def test_a_user_who_can_not_enter_where_runs_live_is_refused(folder: Path, mode: str) -> None:
    program = folder / "cli"
    program.write_text("#!/bin/sh\nexec true\n")
    program.chmod(0o755)
    closed, opened = folder / "closed", folder / "open"
    for place, rights in ((folder, 0o755), (closed, 0o700), (opened, 0o755)):
        place.mkdir(exist_ok=True)
        place.chmod(rights)
    config = Config(cli=str(program), user="nobody", containment=mode, journal="none")
    for field, more in (("cwd", {"cwd": str(closed)}), ("state", {"isolation": "identity", "state": str(closed)})):
        with pytest.raises(ConfigError, match=f"{field}: user nobody can't run in {closed}.*can't be entered"):
            async with open_engine(attrs.evolve(config, **more)):
                pytest.fail("opened")
    for more in ({"cwd": str(opened)}, {"isolation": "identity", "state": str(opened)}):
        async with open_engine(attrs.evolve(config, **more)):
            pass


@pytest.mark.root
@pytest.mark.parametrize("mode", [*MODES, pytest.param("sandbox", marks=pytest.mark.sandbox)])
async def test_a_user_for_whom_the_cli_can_keep_nothing_is_told_of(folder: Path, mode: str) -> None:
    """As where a server of root's has its home in the environment; a sandbox can't show what its user can't enter."""
    folder.chmod(0o755)
    (folder / "closed").mkdir(mode=0o700)
    told: list[Event] = []
    config = Config(cli="sh", cwd="/usr/share", user="nobody", containment=mode)
    environ = {"CLAUDE_CONFIG_DIR": str(folder / "closed" / "config")}
    if mode == "sandbox":
        with pytest.raises(ConfigError, match=r"CLAUDE_CONFIG_DIR: user nobody can't run in .*config"):
            async with open_engine(config, environ=environ):
                pytest.fail("opened")
        (folder / "closed").chmod(0o755)
    async with open_engine(config, [told.append], environ=environ):
        pass
    homes = attrs.evolve(config, cwd="", isolation="identity", state=str(folder / "state"))
    async with open_engine(homes, [told.append], environ=environ):
        pass
    weak = [event.what for event in told if isinstance(event, Weak)]
    assert weak == [f"CLAUDE_CONFIG_DIR: user nobody can't write in {folder}/closed/config: no session can be resumed"]
