"""`trio-claude keys`."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import click

from ..config import IDENTITY_LIMITS
from ..errors import ConfigError
from ..figures import brief
from ..identity import ROLES
from ..identity.keys import NAME, Key, digest, new_secret, read_keys, write_keys, wrong_limit
from ..quarters import state_folder
from .completing import key_names
from .examples import examples

NAMES = ", ".join(IDENTITY_LIMITS)
LONGEST_OVERLAP = 366 * 24 * 3600
"""Seconds for which an old key may be good beside its new one, at most."""
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_file = click.option(
    "--file", type=click.Path(dir_okay=False, path_type=Path), envvar="TRIO_CLAUDE_KEYS",
    help="The file of keys. [default: the variable TRIO_CLAUDE_KEYS, else keys.json in the state folder]",
)  # fmt: skip


@click.group(
    "keys",
    epilog=examples(
        "trio-claude keys add alice",
        "trio-claude keys add ci --limit dollars_per_day=20 --limit runs_per_identity=4",
        "trio-claude keys rotate ci --overlap 3600",
        "trio-claude keys revoke alice",
        "trio-claude serve --keys ~/.local/state/trio-claude/keys.json",
    ),
)
def command() -> None:
    """Make, list, rotate and revoke API keys.

    A key is shown once, when it is made; the file holds its hash only. A server that runs with the file sees a change
    within a second.
    """


@command.command(
    "add", epilog=examples("trio-claude keys add alice", "trio-claude keys add ci --limit dollars_per_day=20 --json")
)
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), default="user", show_default=True, help="What its holder may do.")
@click.option("--limit", "limits", multiple=True, help=f"NAME=NUMBER, in place of the server's: {NAMES}.")
@_json
@_file
def add(name: str, role: str, limits: tuple[str, ...], as_json: bool, file: Path | None) -> None:
    """Make a key for NAME and print it."""
    if not NAME.fullmatch(name):
        raise ConfigError("NAME: at most 64 letters, digits and _ . @ -, a letter or digit first")
    secret, made = new_secret(), datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with _changing(file) as (path, keys):
        if name in keys:
            raise ConfigError(f"{name} has a key already; `trio-claude keys rotate {name}` makes a new one")
        keys[name] = Key(digest(secret), role, made, _limits(limits))
        if not as_json:
            click.echo(f"kept as a hash in {path}; this is shown once:", err=True)
        _print_secret(name, secret, path, as_json)


@command.command("rotate", epilog=examples("trio-claude keys rotate ci --overlap 3600"))
@click.argument("name", shell_complete=key_names)
@click.option(
    "--overlap",
    type=click.FloatRange(0, LONGEST_OVERLAP),
    default=0.0,
    help="Seconds for which the old key is good too.",
)
@_json
@_file
def rotate(name: str, overlap: float, as_json: bool, file: Path | None) -> None:
    """Make a new key for NAME and print it."""
    if math.isnan(overlap):
        raise ConfigError(f"--overlap must be from 0 to {LONGEST_OVERLAP} s, not nan")
    secret = new_secret()
    with _changing(file) as (path, keys):
        key = _known(keys, name)
        keys[name] = attrs.evolve(key, hash=digest(secret), old=key.hash, old_until=time.time() + overlap)
        _print_secret(name, secret, path, as_json)


def _print_secret(name: str, secret: str, path: Path, as_json: bool) -> None:
    """Print a key, before it is good for anything: one that nobody has read opens no door. Raises OSError."""
    click.echo(json.dumps({"name": name, "key": secret, "file": str(path)}) if as_json else secret)


@command.command("revoke", epilog=examples("trio-claude keys revoke alice"))
@click.argument("name", shell_complete=key_names)
@_file
def revoke(name: str, file: Path | None) -> None:
    """Take the key of NAME back: what it runs may end, and nothing new begins."""
    with _changing(file) as (_, keys):
        _known(keys, name)
        del keys[name]


@command.command("list", epilog=examples("trio-claude keys list", "trio-claude keys list --json --file keys.json"))
@_json
@_file
def list_(as_json: bool, file: Path | None) -> None:
    """List names, roles and limits."""
    keys = read_keys(key_file(file))
    if as_json:
        told = {name: {"role": key.role, "created": key.created, "limits": key.limits} for name, key in keys.items()}
        click.echo(json.dumps(told, indent=2))
        return
    for name, key in keys.items():
        limits = " ".join(f"{limit}={brief(value)}" for limit, value in key.limits.items())
        click.echo(f"{name}  {key.role}  {key.created}  {limits}".rstrip())


def key_file(file: Path | None) -> Path:
    """Return the file of keys that is meant."""
    return file or state_folder(os.environ.get("TRIO_CLAUDE_STATE", ""), os.environ) / "keys.json"


@contextmanager
def _changing(file: Path | None) -> Iterator[tuple[Path, dict[str, Key]]]:
    """Yield the keys for a change, which is written then; of two at once, one waits. Raises `ConfigError`.

    An exception of the body comes out as it was raised, and the file is as it was.
    """
    path = key_file(file)
    with _writing(path):
        path = path.resolve()  # a link stays one, and all who change it hold the same lock
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.lock")
    with _writing(beside):
        lock = _Lock(beside)
    with contextlib.closing(lock):
        keys = read_keys(path)
        yield path, keys
        with _writing(path):
            write_keys(path, keys)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raise `ConfigError` where a file can't be written."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # of links that lead round in a circle
        why = error.strerror if isinstance(error, OSError) else "a loop of links"
        raise ConfigError(
            f"--file: {path} can't be written: {why}; --file names another, TRIO_CLAUDE_STATE another folder"
        ) from None


class _Lock:
    """A lock that the process's end gives back too. Raises OSError."""

    def __init__(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            self._descriptor = os.open(path, flags)
        else:
            self._give(path.parent)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def _give(self, folder: Path) -> None:
        """Let the folder's owner take it too, where root has made it."""
        if os.geteuid() == 0:
            owner = folder.stat()
            os.fchown(self._descriptor, owner.st_uid, owner.st_gid)

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._descriptor)


def _known(keys: dict[str, Key], name: str) -> Key:
    if name not in keys:
        raise ConfigError(f"NAME: there is no key of the name {name}; `trio-claude keys list` shows them")
    return keys[name]


def _limits(given: tuple[str, ...]) -> dict[str, float]:
    """Return limits out of NAME=NUMBER. Raises `ConfigError`."""
    limits: dict[str, float] = {}
    for one in given:
        name, _, value = one.partition("=")
        if name not in IDENTITY_LIMITS:
            raise ConfigError(f"--limit: {name!r} is none; there are: {NAMES}")
        try:
            limits[name] = float(value)
        except ValueError:
            raise ConfigError(f"--limit: {name} takes a number, not {value!r}") from None
        if wrong := wrong_limit(name, limits[name]):
            raise ConfigError(f"--limit: {name} {wrong}")
    return limits
