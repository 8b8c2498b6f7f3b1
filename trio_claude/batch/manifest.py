"""What a batch's figures need beside them: the CLI, the machine, the options.

This module must never put a prompt, a secret or a variable's value into a manifest.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
from typing import Any

import attrs
import trio

from .. import __version__
from ..config import Config
from ..containment import MARK, Job
from ..engine import Engine
from ..errors import ConfigError, SpawnFailed

VERSION_TIMEOUT = 20.0
"""Seconds that `--version` may take."""
VERSION_TAIL = 0.1
"""Seconds in which what it has said is read once it has ended; somebody else may hold its stdout for ever."""
VERSION_BYTES = 200
"""Bytes of a version that are kept."""


def now() -> str:
    """Return the time of day, in UTC, as ISO 8601 says it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def sha256(data: bytes) -> str:
    """Return the checksum of a file of tasks."""
    return hashlib.sha256(data).hexdigest()


def machine() -> dict[str, Any]:
    """Return what this machine is; memory is in bytes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": os.cpu_count(),
        "memory": memory,
        "kernel": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "python": platform.python_version(),
    }


def settings(config: Config) -> dict[str, Any]:
    """Return the settings that are not at their defaults, but for one that may hold a password."""
    fields = (field for field in attrs.fields(Config) if field.repr)
    return {field.name: value for field in fields if (value := getattr(config, field.name)) != field.default}


async def about_engine(engine: Engine, asking: trio.CancelScope | None = None) -> dict[str, Any]:
    """Return what runs here and how it is contained. Raises `ConfigError` where the CLI can't be started.

    `asking` is the scope in which the CLI is asked for its version.
    """
    containment, config = engine.containment, engine.config
    return {
        "cli": {"path": engine.workplace.program, "version": await cli_version(engine, asking)},
        "containment": {"mode": containment.mode, "detail": containment.detail},
        "profile": config.profile,
        "settings": settings(config),
    }


async def cli_version(engine: Engine, asking: trio.CancelScope | None = None) -> str | None:
    """Return what the CLI says to `--version`, None where that is no version; it is run contained.

    Cancelling `asking` ends it, and there is no version. Raises `ConfigError` where it can't be started.
    """
    place = engine.workplace
    env = {**place.environ, MARK: f"{place.home.server}:version", "TMPDIR": str(place.home.folder)}
    argv, folder = (place.program, "--version"), str(place.home.folder)
    job = Job(argv=argv, env=env, cwd=folder, user=place.user, writable=(folder,))
    told = b""
    try:
        with asking or trio.CancelScope(), trio.move_on_after(VERSION_TIMEOUT):
            async with engine.containment.start(job) as process:
                await process.stdin.aclose()
                status = await process.wait_exit()
                with trio.move_on_after(VERSION_TAIL):
                    while len(told) < VERSION_BYTES and (chunk := await process.stdout.receive_some()):
                        told += bytes(chunk)
                return told[:VERSION_BYTES].decode(errors="replace").strip() if status == 0 else None
    except SpawnFailed as error:
        raise ConfigError(f"cli: {error}") from error
    return None


def number_of(manifest: dict[str, Any], name: str) -> float:
    """Return a number in a manifest, 0 where there is none that makes sense."""
    value = manifest.get(name)
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 10**15
    return float(value) if good and value is not None else 0.0


def starts(manifest: dict[str, Any]) -> list[Any]:
    """Return with what each start of a batch was made; a manifest without a list of them tells of one start."""
    told = manifest.get("starts")
    if isinstance(told, list):
        return told
    return [{name: manifest.get(name) for name in ("started", "options", "profile", "settings")}]


def describe(about: dict[str, Any], source: str, checksum: str, batch: str, **options: Any) -> dict[str, Any]:
    """Return a manifest at the start of a batch, whose id is `batch`; `started` is now."""
    return {
        "trio_claude": __version__,
        "batch": batch,
        **about,
        "options": options,
        "machine": machine(),
        "tasks": {"file": source, "sha256": checksum},
        "started": now(),
        "ended": None,
    }
