"""What a run finds when it starts: program, arguments, environment, folders.

Duty: turn a configuration and a client's prompt into a `Job`, and own the run's temporary folder. This module must
never start a process, and never let a client name a path.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import importlib.util
import os
import pwd
import shutil
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from . import stream_json, transcripts
from .cli_state import cli_state, end_of, is_folder, make_sessions, make_settings
from .config import Config
from .containment import FOLDERS, MARK, Job
from .errors import ConfigError, SpawnFailed
from .holds import Holds
from .leftovers import Home, open_home, remove, remove_empty
from .messages import Options, compact
from .quarters import OPERATORS, SESSIONS, Homes, check_folder, is_link, open_folder, state_folder, unlist
from .threads import do_apart

INHERITED = (
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_*",
    "TZ",
    "TERM",
    "XDG_*",
    "SSL_CERT_*",
    "NODE_EXTRA_CA_CERTS",
    "*_PROXY",
    "*_proxy",
    "ANTHROPIC_*",
    "CLAUDE_*",
    "AWS_*",
    "GOOGLE_*",
    "VERTEX_*",
    "CLOUD_ML_REGION",
    "DISABLE_*",
    "IS_SANDBOX",
)
"""Variables that a CLI inherits. All others stay with the server."""
KEPT_BACK = ("XDG_RUNTIME_DIR", "CLAUDE_CODE_TMPDIR")
"""Variables that would move the CLI's sockets out of the run's own folder, where two runs could meet."""
NO_WORKSPACES = "workspace: there are no workspaces here"
RUN_NAME = 12
"""Characters of a run's id in its folder's name."""


def find_cli(config: Config) -> Path:
    """Return the CLI's path: the configured one, else the [claude] extra's, else the one on PATH.

    Raises `ConfigError` where there is none.
    """
    if config.cli:
        found = shutil.which(config.cli) or config.cli
        return Path(found).absolute()
    spec = importlib.util.find_spec("claude_agent_sdk")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (bundled := Path(folder) / "_bundled" / "claude").is_file():
            return bundled
    if on_path := shutil.which("claude"):
        return Path(on_path).absolute()
    raise ConfigError("claude not found: pip install 'trio-claude[claude]' or --cli PATH")


def inherited(environ: Mapping[str, str], more: Iterable[str]) -> dict[str, str]:
    """Return what of `environ` a CLI inherits."""
    patterns = [*INHERITED, *more]
    named = {name: value for name, value in environ.items() if any(fnmatch.fnmatchcase(name, one) for one in patterns)}
    return {name: value for name, value in named.items() if name not in KEPT_BACK or name in more}


def find_user(name: str) -> tuple[int, int] | None:
    """Return the ids of the user whom the CLI becomes, None for the server's own. Raises `ConfigError`."""
    if not name:
        return None
    if os.getuid():
        raise ConfigError("user: only root can start the CLI as another user")
    try:
        entry = pwd.getpwuid(int(name)) if name.isascii() and name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, ValueError):  # a number may have more digits than Python reads
        raise ConfigError(f"user: there is no user {name}") from None
    return entry.pw_uid, entry.pw_gid


@attrs.frozen
class Workplace:
    """What all runs of one server share; made once, so that no run pays for a look at the disk.

    Resource handling: `open` owns the folder of `home`, below which each run has its own.
    """

    config: Config
    program: str
    environ: Mapping[str, str] = attrs.field(repr=False)
    cwd: str
    user: tuple[int, int] | None
    home: Home
    folders: str
    """Where the runs' folders are."""
    state: tuple[str, ...]
    """Where the CLI keeps its settings, transcripts and login."""
    ends: tuple[str, ...]
    """Where these led at the start, where a sandbox is to have them and they are links: a run may change them later."""
    real: tuple[str, ...]
    """The same with no link on the way, by which it is seen that it leads elsewhere now."""
    sessions: str
    """The folder in which CLIs list themselves by pid, empty where there is none."""
    words: tuple[str, ...]
    """The operator's own arguments for the CLI."""
    holds: Holds
    """The sessions in use, by all servers on the state folder."""
    homes: Homes | None = None
    """The quarters of each identity, None where all share the operator's."""
    _making: trio.CapacityLimiter = attrs.field(init=False, repr=False, factory=lambda: trio.CapacityLimiter(1))
    """Folders are made beside the loop, for one run at a time: a disk that is slow holds up no line of the others."""

    @classmethod
    @asynccontextmanager
    async def open(cls, config: Config, environ: Mapping[str, str]) -> AsyncIterator[Workplace]:
        """Look for the CLI and make the temporary folder; `environ` is what runs inherit from. Raises `ConfigError`."""
        program, user = find_cli(config), find_user(config.user)
        cwd = _absolute(config.cwd)
        root = cwd.partition("{meta}")[0].rpartition("/")[0] if "{meta}" in cwd else cwd
        if config.isolated == "off":
            ours = bool(config.cwd) and (user is None or root != cwd)  # else it is the CLI's user who must get in
            looks = (("cwd", root or "/", ours), ("workspaces", config.workspaces or "/", True))
            for field, place, entered in looks:  # where this was started no run may ever work
                await trio.to_thread.run_sync(functools.partial(check_folder, field, place, entered=entered))
        own = _with_whole_paths(inherited(environ, config.env))
        homes = _open_homes(config, environ)
        state = cli_state(own, user)
        if config.containment == "sandbox" and not homes:
            _check_sandbox(cwd, state)
            for file in state[1:]:
                make_settings(Path(file), user)
        ends = tuple(map(end_of, state)) if config.containment == "sandbox" else state
        real = tuple(map(os.path.realpath, ends))
        async with open_home() as home:
            folders = home.folder / "runs"
            folders.mkdir(mode=0o700)
            if user:
                for folder in (home.folder, folders):
                    folder.chmod(0o711)
            words = tuple(config.cli_arguments)
            if homes:
                own = {name: value for name, value in own.items() if name not in OPERATORS}
            sessions = "" if homes else make_sessions(state[0], user)
            with contextlib.closing(Holds(state_folder(config.state, environ))) as holds:
                yield cls(
                    config, str(program), own, cwd, user, home, str(folders), state, ends, real, sessions, words, holds,
                    homes,
                )  # fmt: skip

    @asynccontextmanager
    async def job(
        self,
        run: str,
        options: Options,
        meta: str,
        *,
        binds: bool,
        who: str = "local",
        session: str | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Job]:
        """Yield the job of one run of `who`; its temporary folder is gone when the context is left.

        `session` is the CLI's id for a session of many turns, `variables` are this run's own beside those of all. With
        `binds` the run sees its own folder in place of everybody's. Raises `SpawnFailed` where a folder can't be made.
        """
        folder = f"{self.folders}/{run[:RUN_NAME]}"
        make = functools.partial(self._open_job, run, options, meta, folder, who, session, variables or {}, binds=binds)
        makes = self.user or self.homes or _texts(options) or options.workspace is not None or "{meta}" in self.cwd
        try:
            yield await do_apart(make, limiter=self._making) if makes else make()
        finally:
            if not remove_empty(folder):
                with trio.CancelScope(shield=True):
                    await remove(Path(folder))

    def forget(self, pid: int, who: str) -> None:
        """Remove what a killed CLI of `who` has left in the folder that all its sessions share."""
        if self.homes and not self.homes.per_run:
            self.homes.quarters(who, "", "", binds=False).forget(pid)
        if self.homes or not self.sessions:
            return
        with contextlib.suppress(OSError), open_folder(self.sessions) as folder:
            unlist(folder, pid, self.user)

    def forget_transcripts(self, sessions: Iterable[tuple[str, str | None]], held: Iterable[tuple[str, str]]) -> None:
        """Remove the CLI's transcripts of sessions, each of an identity; None is all of its. Blocks."""
        if self.homes is None or self.homes.per_run:
            return
        gone, used, young = set(sessions), set(held), time.time() - self.config.session_timeout
        for who in {who for who, _ in gone}:
            for found in transcripts.find(self.homes.root, self.homes.name(who)):
                one = (who, found.session)
                goes = one in gone or ((who, None) in gone and found.changed <= young)
                if goes and one not in used and not self.holds.has(found.session, who):
                    transcripts.remove(self.homes.root, found)

    def tidy_transcripts(self, held: Iterable[tuple[str, str]]) -> None:
        """Remove the CLIs' transcripts that are not to be kept any more, but of the sessions that are held. Blocks."""
        if self.homes is None or self.homes.per_run:
            return
        config = self.config
        keep = transcripts.Keep(config.transcript_days, config.transcript_bytes, config.session_timeout)
        used = {(self.homes.name(who), session) for who, session in held}
        transcripts.tidy(self.homes.root, keep, time.time(), used)

    def _open_job(
        self,
        run: str,
        options: Options,
        meta: str,
        folder: str,
        who: str,
        session: str | None,
        variables: Mapping[str, str],
        *,
        binds: bool,
    ) -> Job:
        """Return what is to be started in a run's folder, made here where something is put there. Raises `SpawnFailed`.

        Else whoever starts it makes it. Blocks, but where it neither makes nor asks for a folder.
        """
        is_filled = bool(self.user or (self.homes and self.homes.per_run) or _texts(options))
        try:
            if is_filled:
                os.mkdir(folder, 0o700)
            place = self._place(who, options, meta, folder, binds=binds)
            own = [source for source, _ in place.binds if source == f"{folder}/{SESSIONS}"]
            if is_filled:
                for one in own:
                    os.mkdir(one, 0o700)
            folders = () if is_filled else (folder, *own)
            return self._job(run, options, folder, folders, session, place, variables, binds=binds)
        except OSError as error:
            raise SpawnFailed(f"{FOLDERS}: {error.strerror} ({error.filename})") from error

    def _job(
        self,
        run: str,
        options: Options,
        folder: str,
        folders: tuple[str, ...],
        session: str | None,
        place: _Place,
        variables: Mapping[str, str],
        *,
        binds: bool,
    ) -> Job:
        config, tmp = self.config, self.folders if binds else folder
        files = self._files(options, folder, tmp)
        words = stream_json.arguments(
            options, config.profile, cli_settings=config.cli_settings, files=files, session=session
        )
        env = {
            **self.environ,
            **place.env,
            **stream_json.environment(options, self.environ),
            "TMPDIR": tmp,
            MARK: f"{self.home.server}:{run}",
            **variables,
        }
        if self.user:
            _give(Path(folder), self.user)
        return Job(
            argv=(self.program, *words, *self.words),
            env=env,
            cwd=place.cwd,
            limits=config.limits,
            folders=folders,
            nice=config.nice,
            binds=(*place.binds, (folder, self.folders)) if binds else (),
            user=self.user,
            writable=place.writable if binds else (folder, *place.writable),
        )

    def _place(self, who: str, options: Options, meta: str, folder: str, *, binds: bool) -> _Place:
        """Return where a run lives. Raises `SpawnFailed` and OSError."""
        if not self.homes:
            self._check_ends()
            cwd = self._folder(options, meta)
            seen = self._seen(cwd)
            listed = self._listed(seen[0]) if binds else ""
            places = list(zip(seen, self.ends, strict=True))
            links = ((end, name) for name, end in places if name != end)
            writable = (name for name, end in places if name == end)
            return _Place(cwd, {}, (*links, *self._own_sessions(folder, listed)), (cwd, *writable))
        if options.workspace is not None and not self.config.workspaces:
            raise SpawnFailed(NO_WORKSPACES)
        quarters = self.homes.quarters(who, folder, self.folders if binds else folder, binds=binds)
        try:
            quarters.make(self.user, options.workspace)
        except OSError as error:
            if is_link(error):
                raise SpawnFailed("something stands in the place of a folder of this identity") from None
            raise
        if options.resume is not None and not self.homes.per_run:
            transcripts.touch(self.homes.root, self.homes.name(who), options.resume)
        cwd = quarters.cwd if options.workspace is None else f"{quarters.cwd}/{options.workspace}"
        if not binds:
            return _Place(cwd, quarters.env, (), (quarters.real,))
        sessions = () if self.homes.per_run else self._own_sessions(folder, quarters.sessions)
        return _Place(cwd, quarters.env, (*self.homes.binds(quarters), *sessions), ())

    def _check_ends(self) -> None:
        """Raise `SpawnFailed` where a sandbox would be given something else than the CLI's state, by a run's doing."""
        if self.config.containment != "sandbox":
            return
        for end, real in zip(self.ends, self.real, strict=True):
            if os.path.realpath(end) != real:
                raise SpawnFailed(f"{end} leads elsewhere than when this server started")

    def _seen(self, cwd: str) -> tuple[str, ...]:
        """Return by which names a run in `cwd` has the CLI's state; nothing can be bound over a link that it has."""
        bound = (cwd, *self.config.sandbox_read)
        pairs = zip(self.state, self.ends, strict=True)
        return tuple(end if any(map(Path(path).is_relative_to, bound)) else path for path, end in pairs)

    def _listed(self, state: str) -> str:
        """Return the folder in which CLIs list themselves, where a run sees it; empty where there is none."""
        listed = self.sessions
        if listed and not is_folder(listed):  # a run may have removed it
            listed = make_sessions(self.ends[0], self.user)
        if listed and self.config.containment == "sandbox" and is_folder(f"{self.ends[0]}/{SESSIONS}"):
            return f"{state}/{SESSIONS}"
        return listed

    def _files(self, options: Options, folder: str, tmp: str) -> dict[str, str]:
        """Write what only the CLI may read; return the paths, as it sees them, by option name."""
        written = _texts(options)
        for name, text in written.items():
            _write_private(f"{folder}/{name}", text)
        return {name: f"{tmp}/{name}" for name in written}

    @staticmethod
    def _own_sessions(folder: str, sessions: str) -> tuple[tuple[str, str], ...]:
        """Return what gives a run that has a mount namespace a list of sessions of its own.

        Every CLI has the same pid in a namespace of its own; and in the others' folders are the sockets on which their
        CLIs take messages.
        """
        return ((f"{folder}/{SESSIONS}", sessions),) if sessions else ()

    def _folder(self, options: Options, meta: str) -> str:
        """Return the working directory of a run. Raises `SpawnFailed`."""
        workspace = options.workspace
        if workspace is not None and not self.config.workspaces:
            raise SpawnFailed(NO_WORKSPACES)
        if workspace is not None:
            return self._make(Path(self.config.workspaces).absolute() / workspace)
        return self._make(Path(self.cwd.replace("{meta}", meta))) if "{meta}" in self.cwd else self.cwd

    def _make(self, folder: Path) -> str:
        """Make a working directory; a link could lead anywhere. Raises `SpawnFailed` and OSError."""
        try:
            with open_folder(str(folder.parent), folder.name, owner=self.user, make=True):
                return str(folder)
        except OSError as error:
            if is_link(error):
                raise SpawnFailed("workspace: not a folder of its own") from None
            raise


@attrs.frozen
class _Place:
    """Where a run lives: its working directory, the variables that say so, what is put where, what it may write."""

    cwd: str
    env: Mapping[str, str] = attrs.field(repr=False)
    binds: tuple[tuple[str, str], ...]
    writable: tuple[str, ...]


def _open_homes(config: Config, environ: Mapping[str, str]) -> Homes | None:
    """Return the quarters of each identity, None where there is one for all. Raises `ConfigError`."""
    if config.isolated == "off":
        return None
    if config.cwd:
        raise ConfigError(f"cwd: with isolation {config.isolated} runs work in folders of their own")
    root = state_folder(config.state, environ) / "homes"
    try:
        return Homes.open(root, per_run=config.isolated == "run", shared=bool(config.user))
    except OSError as error:
        raise ConfigError(
            f"state: {error.filename} can't be made: {error.strerror}; --state names another folder"
        ) from None


def _with_whole_paths(environ: dict[str, str]) -> dict[str, str]:
    """Return what a CLI inherits, with no path that means another place where it works than where the server does."""
    folder = environ.get("CLAUDE_CONFIG_DIR")
    return {**environ, "CLAUDE_CONFIG_DIR": str(Path(folder).absolute())} if folder else environ


def _absolute(cwd: str) -> str:
    """Return where the CLI works, seen from where this process was started. Raises `ConfigError`."""
    try:
        return str(Path(cwd or ".").absolute())
    except FileNotFoundError:
        raise ConfigError("cwd: the folder that this was started in is gone; start it in another") from None


def _check_sandbox(cwd: str, state: tuple[str, ...]) -> None:
    """Raise `ConfigError` where what runs may write would leave nothing of a sandbox."""
    from .containment.sandbox import too_wide

    if too_wide((cwd,)):
        raise ConfigError(f"cwd: a sandbox with all of {cwd} in it would be none; --cwd names a folder")
    if wide := too_wide(state):
        raise ConfigError(f"CLAUDE_CONFIG_DIR: a sandbox with all of {wide} in it would be none")


def _texts(options: Options) -> dict[str, str]:
    """Return what of some options the CLI gets as files, by option name."""
    texts = {"system_prompt": options.system_prompt, "append_system_prompt": options.append_system_prompt}
    if options.mcp_servers is not None:
        texts["mcp_servers"] = compact({"mcpServers": options.mcp_servers})
    return {name: text for name, text in texts.items() if text is not None}


def _give(folder: Path, user: tuple[int, int]) -> None:
    """Make a folder, and what is in it, another user's."""
    for path in (*folder.iterdir(), folder):
        os.chown(path, *user, follow_symlinks=False)


def _write_private(path: str, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:  # noqa: PTH123
        file.write(text.encode())
