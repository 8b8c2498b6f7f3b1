"""What a shell completes beside names of commands and options: runs, keys, choices, files and folders.

This module must never ask a server, never write, and never fail: where nothing can be read, nothing is offered.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import attrs
import click
from click.shell_completion import CompletionItem

from ..errors import TrioClaudeError

LOOKED_AT: Final = 200
"""Runs among which an id is looked for, the newest first."""
OFFERED: Final = 30
"""Runs that are offered."""
FILES: Final = ("cli", "keys", "jwt_keys", "redis_password_file")
FOLDERS: Final = ("cwd", "workspaces", "state", "cgroup", "sandbox_read")
"""Settings that are paths."""
Completer: TypeAlias = "Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]"


def files(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Have the shell offer files."""
    return [CompletionItem(incomplete, type="file")]


def folders(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Have the shell offer folders."""
    return [CompletionItem(incomplete, type="dir")]


def for_field(field: attrs.Attribute[Any]) -> Completer | None:
    """Return what completes a setting, None where nothing does."""
    if field.name in FILES:
        return files
    if field.name in FOLDERS:
        return folders
    names = _names(field)
    return _one_of(names) if names else None


def _names(field: attrs.Attribute[Any]) -> tuple[str, ...]:
    """Return the words that a setting takes, as its check knows them."""
    check = field.metadata.get("check")
    if not inspect.isfunction(check):
        return ()
    known = inspect.getclosurevars(check).nonlocals
    found: tuple[str, ...] = known.get("choices", known.get("names", ()))
    return found


def _one_of(names: tuple[str, ...]) -> Completer:
    return lambda _ctx, _param, incomplete: [CompletionItem(name) for name in names if name.startswith(incomplete)]


def run_ids(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Offer runs of this machine's journal, the newest first; at another machine's server none."""
    if not _is_here(ctx.params.get("url")):
        return []
    try:
        runs = _local_runs(ctx.params.get("journal"), "live" if ctx.info_name == "stop" else None)
    except (TrioClaudeError, OSError):
        return []
    found = [run for run in runs if str(run["id"]).startswith(incomplete.lower())]
    return [CompletionItem(str(run["id"]), help=_told(run)) for run in found[:OFFERED]]


def _local_runs(journal: str | None, state: str | None) -> list[dict[str, Any]]:
    from .local_runs import LocalRuns  # only this needs SQLite
    from .run_sources import Wanted, journal_path

    return LocalRuns(journal_path(journal)).find(Wanted(limit=LOOKED_AT, state=state)).runs


def _told(run: dict[str, Any]) -> str:
    from .moments import shown

    return f"{run.get('meta')}, {run.get('state')}, {shown(run.get('started'))}"


def _is_here(url: str | None) -> bool:
    """Return whether a server's journal may be this machine's."""
    try:
        return url is None or urlsplit(url if "://" in url else f"http://{url}").hostname in ("127.0.0.1", "localhost")
    except ValueError:
        return False


def groups(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Offer by what usage is summed up, behind what is there already."""
    from .run_sources import GROUPS

    before, comma, last = incomplete.rpartition(",")
    left = [name for name in GROUPS if name not in before.split(",")]
    return [CompletionItem(f"{before}{comma}{name}") for name in left if name.startswith(last)]


def key_names(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Offer the names in the file of keys."""
    from ..identity.keys import read_keys
    from .keys import key_file

    given = ctx.params.get("file") or os.environ.get("TRIO_CLAUDE_KEYS")
    try:
        keys = read_keys(key_file(Path(given) if given else None))
    except (TrioClaudeError, OSError):
        return []
    return [CompletionItem(name, help=key.role) for name, key in keys.items() if name.startswith(incomplete)]
