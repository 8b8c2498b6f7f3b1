"""`trio-claude doctor`."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import click
import trio

from ..config import Config
from ..containment import open_containment
from ..embed import open_run
from ..engine import means, open_engine
from ..entrance import Entrance
from ..errors import ConfigError, TrioClaudeError
from ..events import Event, JournalReady
from ..journal.visits import is_earlier
from ..listeners import bind_all, is_hosts
from ..quarters import home_of, journal_file
from ..workplace import find_cli
from .complaints import painted
from .examples import examples
from .options import config_options, read_config
from .process import take_process
from .statuses import Status
from .words import clean

VERSION_TIMEOUT = 20.0
"""Seconds for `claude --version`."""
LIVE_TIMEOUT = 60.0
LIVE_BUDGET = 0.05
"""US dollars that `--live` may cost."""
FAULTS = (TrioClaudeError, OSError, RuntimeError, trio.TooSlowError)
"""What a machine that lacks something raises; a RuntimeError where no thread is to be had."""
STORED, LONG_LIVED = "a stored login", "a long-lived login (CLAUDE_CODE_OAUTH_TOKEN)"
"""The logins of a subscription."""
_LOGINS = (
    ("CLAUDE_CODE_USE_BEDROCK", "Amazon Bedrock"),
    ("CLAUDE_CODE_USE_VERTEX", "Google Vertex"),
    ("ANTHROPIC_API_KEY", "an API key (ANTHROPIC_API_KEY)"),
    ("ANTHROPIC_AUTH_TOKEN", "a bearer token (ANTHROPIC_AUTH_TOKEN)"),
    ("CLAUDE_CODE_OAUTH_TOKEN", LONG_LIVED),
)


@attrs.frozen
class Check:
    """One finding."""

    name: str
    ok: bool
    found: str


@click.command(
    "doctor", epilog=examples("trio-claude doctor", "trio-claude doctor --json --cli /opt/claude/bin/claude")
)
@config_options
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.option("--live", is_flag=True, help=f"Make one real run, of at most ${LIVE_BUDGET}, with your account.")
def command(config_file: Path | None, as_json: bool, live: bool, **values: Any) -> None:
    """Say what this machine has and what is missing.

    No secret is read: of a login only its kind is named. Exit status: 0 where a server would work, 1 where not.
    """
    take_process()
    config = read_config(values, config_file)
    checks = trio.run(examine, config, live)
    if as_json:
        click.echo(json.dumps([attrs.asdict(check) for check in checks]))
    else:
        for check in checks:
            mark = painted("ok     ", "green", sys.stdout) if check.ok else painted("MISSING", "red", sys.stdout)
            click.echo(f"{mark} {check.name}: {check.found}")
    sys.exit(Status.OK if all(check.ok for check in checks) else Status.FAILED)


async def examine(config: Config, live: bool) -> list[Check]:
    """Return every finding."""
    checks = [
        await _cli(config),
        _login(config),
        _profile(config),
        await _containment(config),
        await _engine(config),
        await _port(config),
        _limits(config),
        _access(config),
    ]
    return [*checks, await _live(config)] if live else checks


async def _cli(config: Config) -> Check:
    try:
        program = find_cli(config)
        with trio.fail_after(VERSION_TIMEOUT):
            told = await trio.run_process([program, "--version"], capture_stdout=True, stderr=subprocess.DEVNULL)
    except ConfigError as error:
        return Check("cli", ok=False, found=str(error))
    except (OSError, RuntimeError, subprocess.CalledProcessError, trio.TooSlowError) as error:
        return Check("cli", ok=False, found=f"{program} --version: {_said(error)}; --cli names another")
    version = " ".join(clean(told.stdout.decode(errors="replace")).split())
    return Check("cli", ok=True, found=f"{program}, version {version[:80]}")


def login(environ: Mapping[str, str]) -> str:
    """Return which kind of login the CLI would use, from names alone."""
    for name, kind in _LOGINS:
        if environ.get(name):
            return kind
    folder = Path(environ.get("CLAUDE_CONFIG_DIR") or Path(home_of(environ, None)) / ".claude")
    if (folder / ".credentials.json").exists():
        return f"{STORED} ({folder / '.credentials.json'}, not read)"
    return "none found; `claude` logs you in, or set ANTHROPIC_API_KEY; --live makes sure"


def _login(config: Config) -> Check:
    """Say which login the CLI would use; in profile lean it uses none of a subscription."""
    found = login(os.environ)
    if config.profile == "lean" and found.startswith((LONG_LIVED, STORED)):
        return Check("login", ok=False, found=f"{found}, which profile lean does not use; set ANTHROPIC_API_KEY")
    return Check("login", ok=True, found=found)


def _profile(config: Config) -> Check:
    """Say what the CLI may do, and where it refuses that to its user."""
    is_root = not os.getuid() and config.user in ("", "root", "0")
    if config.profile == "unattended" and is_root and os.environ.get("IS_SANDBOX") != "1":
        told = "unattended, which the CLI refuses to root; --user names another, or set IS_SANDBOX=1"
        return Check("profile", ok=False, found=told)
    return Check("profile", ok=True, found=config.profile)


def _said(error: BaseException) -> str:
    """Return what an error says, its name where it says nothing."""
    return str(error) or type(error).__name__


async def _containment(config: Config) -> Check:
    found = Check("containment", ok=False, found="not tried")
    try:
        async with open_containment(config.containment, lambda _: None, means(config)) as containment:
            found = Check("containment", ok=True, found=f"{containment.mode}: {containment.detail}")
    except* FAULTS as group:
        found = Check("containment", ok=False, found=_said(group.exceptions[0]))
    return found


async def _engine(config: Config) -> Check:
    """Open all that a server opens before it listens: folders, containment, journal, what servers share."""
    kept = JournalReady("", "there is none")
    if config.journal not in ("none", "memory") and not config.redis:
        path = journal_file(config.journal, config.state, os.environ)
        if is_earlier(path):  # the servers that still hold it could write no more
            config = attrs.evolve(config, journal="none")
            kept = JournalReady("", f"{path} is of an earlier version, and a server's start brings it to this one")
        elif config.journal == "auto" and _is_absent(path):  # made here it might be another user's than the server's
            config = attrs.evolve(config, journal="none")
            kept = JournalReady("", f"`serve` makes {path}")

    def hear(event: Event) -> None:
        nonlocal kept
        kept = event if isinstance(event, JournalReady) else kept

    found = Check("engine", ok=False, found="not tried")
    try:
        async with open_engine(attrs.evolve(config, pool_size=0), [hear]):
            found = Check("engine", ok=True, found=f"it opens; journal: {kept.path or kept.detail}")
    except* FAULTS as group:
        found = Check("engine", ok=False, found=_said(group.exceptions[0]))
    return found


def _is_absent(path: Path) -> bool:
    """Return whether there is no such file; where it can't be looked for, opening it says so."""
    try:
        return not path.exists()
    except OSError:
        return False


async def _port(config: Config) -> Check:
    """Take the port for a moment."""
    try:
        for listener in await bind_all(config.host, config.port):
            listener.close()
    except (OSError, UnicodeError) as error:
        field = "host" if is_hosts(error) else "port"
        return Check("port", ok=False, found=f"{getattr(error, 'strerror', None) or error}; --{field} names another")
    return Check("port", ok=True, found=f"{config.port} of {config.host} is free")


def _limits(config: Config) -> Check:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return Check(
        "limits", ok=True, found=f"{config.run_slots} runs at once, {files} open files, {config.timeout:g} s a run"
    )


def _access(config: Config) -> Check:
    """Say who may come in, and how far runs of two of them are apart."""
    try:
        asks = Entrance(config).asks
    except ConfigError as error:
        return Check("access", ok=False, found=str(error))
    if not asks:
        return Check("access", ok=True, found="no keys: every local process, a run's tools included, is a full client")
    apart = f"isolation {config.isolated}"
    if config.containment != "sandbox":
        apart += "; take containment sandbox where identities do not trust each other"
    stored = "runs see the stored login" if config.isolated == "off" else "runs see no stored login"
    return Check("access", ok=True, found=f"keys or tokens are wanted; {apart}; {stored}")


async def _live(config: Config) -> Check:
    """Make one real, cent-sized run."""
    words = f"{config.cli_args} --max-budget-usd={LIVE_BUDGET}"
    journal = "none" if config.journal == "auto" else config.journal
    timeout = min(config.timeout, LIVE_TIMEOUT)  # a setting: as an option it may not be allowed
    config = attrs.evolve(config, profile="chat", cli_args=words, journal=journal, timeout=timeout)
    found = Check("live", ok=False, found="not tried")
    try:
        async with open_run("Say ok.", meta="DOCTOR", config=config) as run:
            outcome = await run.wait()
            told = f"{outcome.error or outcome.reason.value}; {outcome.receipt}"
            found = Check("live", ok=outcome.error is None, found=told)
    except* FAULTS as group:
        found = Check("live", ok=False, found=_said(group.exceptions[0]))
    return found
