"""What a run finds when it starts: program, arguments, environment, folders.

Duty: turn a configuration and a client's options into a `Job`, and own the run's temporary folder. This module must
never start a process, and never let a client name a path.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import attrs
import trio

from . import stream_json
from .config import Config
from .containment import MARK, Job
from .errors import ConfigError, SpawnFailed
from .messages import Options

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
TMP_LIMIT = 60
"""Bytes of a run's TMPDIR: the CLI makes sockets below it, whose paths Linux takes to 107 bytes."""


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
    return {name: value for name, value in environ.items() if any(fnmatch.fnmatchcase(name, one) for one in patterns)}


@attrs.frozen
class Workplace:
    """What all runs of one server share; made once, so that no run pays for a look at the disk.

    Resource handling: `open` owns the folder `tmp`, in which each run has its own.
    """

    config: Config
    program: str
    environ: Mapping[str, str]
    cwd: str
    tmp: Path
    server: str

    @classmethod
    @asynccontextmanager
    async def open(cls, config: Config, server: str, environ: Mapping[str, str]) -> AsyncIterator[Workplace]:
        """Look for the CLI and make the temporary folder; `environ` is what runs inherit from. Raises `ConfigError`."""
        program = find_cli(config)
        cwd = Path(config.cwd or ".").absolute()
        if not await trio.Path(cwd).is_dir():
            raise ConfigError(f"cwd is no folder: {cwd}")
        tmp = Path(tempfile.mkdtemp(prefix="tcl-", dir=_short_tmp()))
        try:
            yield cls(config, str(program), inherited(environ, config.env), str(cwd), tmp, server)
        finally:
            with trio.CancelScope(shield=True):
                await _remove(tmp)

    @asynccontextmanager
    async def job(self, run: str, options: Options) -> AsyncIterator[Job]:
        """Yield the job of one run; its temporary folder is gone when the context is left.

        Raises `SpawnFailed` where the folder can't be made.
        """
        folder = self.tmp / run[:12]
        try:
            folder.mkdir(mode=0o700)
            yield self._job(run, options, folder)
        except OSError as error:
            raise SpawnFailed(f"the run's temporary folder can't be used: {error.strerror}") from error
        finally:
            with trio.CancelScope(shield=True):
                await _remove(folder)

    def _job(self, run: str, options: Options, folder: Path) -> Job:
        config = self.config
        files = {}
        for name in ("system_prompt", "append_system_prompt"):
            if text := getattr(options, name):
                files[name] = str(folder / name)
                _write_private(folder / name, text)
        words = stream_json.arguments(options, config.profile, cli_settings=config.cli_settings, system_files=files)
        env = {
            **self.environ,
            **stream_json.environment(options),
            "TMPDIR": str(folder),
            MARK: f"{self.server}:{run}",
        }
        argv = (self.program, *words, *config.cli_arguments)
        return Job(argv=argv, env=env, cwd=self._folder(options.workspace))

    def _folder(self, workspace: str | None) -> str:
        """Return the working directory of a run. Raises `SpawnFailed`."""
        if workspace is None:
            return self.cwd
        if not self.config.workspaces:
            raise SpawnFailed("workspace: this server has no workspaces")
        folder = Path(self.config.workspaces).absolute() / workspace
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink():
            raise SpawnFailed("workspace: not a folder of its own")
        return str(folder)


def _short_tmp() -> str:
    """Return the folder for temporary folders; /tmp where the system's own makes paths too long for sockets."""
    usual = tempfile.gettempdir()
    return usual if len(os.fsencode(usual)) + len("/tcl-xxxxxxxx/") + 12 <= TMP_LIMIT else "/tmp"  # noqa: S108


def _write_private(path: Path, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as file:  # noqa: PTH123
        file.write(text)


async def _remove(folder: Path) -> None:
    """Remove a folder; at once where it is empty, else in a thread."""
    try:
        folder.rmdir()
    except OSError:
        with suppress(OSError):
            await trio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True), abandon_on_cancel=False)
