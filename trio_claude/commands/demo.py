"""`trio-claude demo`."""

from __future__ import annotations

import errno
import os
import shlex
import socket
import sys
from pathlib import Path

import attrs
import click
import trio

from ..config import Config
from ..errors import ConfigError
from ..leftovers import open_held_folder
from ..testing import fake_cli
from ..testing.messages_api import open_messages_api
from ..workplace import find_cli
from .examples import examples
from .serving import run_server

QUIET = {
    "DISABLE_TELEMETRY": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
}
"""Variables with which the CLI calls nothing but the Messages API."""
PORTS_TRIED = 50
LAST_PORT = 65535
ANSWERS = "the built-in stub of the Messages API answers, no account is used, and nothing leaves this machine"


@click.command("demo", epilog=examples("trio-claude demo", "trio-claude demo --port 0"))
@click.option(
    "--port",
    default=3000,
    type=click.IntRange(0, LAST_PORT),
    help="The port; the next free one if it is busy. [default: 3000]",
)
def command(port: int) -> None:
    """Serve a demonstration that needs no account.

    The real Claude CLI runs if it is installed, else a stand-in; either way a stub of the Messages API on this machine
    answers it.
    """
    trio.run(_demo, port)


async def _demo(port: int) -> None:
    async with open_held_folder() as folder:
        home = folder / "home"
        home.mkdir()
        await _serve(port, home)


async def _serve(port: int, home: Path) -> None:
    config = Config(port=_free_port(port), cwd=str(home), pool_size=1, journal="memory", metrics=True, own_loop=True)
    try:
        config = attrs.evolve(config, cli=str(find_cli(config)))
        what = "the real Claude CLI"
    except ConfigError:
        config = attrs.evolve(config, cli=str(write_fake(home)))
        what = "a stand-in for the Claude CLI (pip install 'trio-claude[claude]' brings the real one)"
    notice = f"Demonstration: {what} runs here; {ANSWERS}."
    click.echo(notice)
    async with open_messages_api() as api:
        await run_server(lambda: config, environ=environment(home, api.url), notice=notice, demo=True)


def environment(home: Path, api: str) -> dict[str, str]:
    """Return an environment in which the CLI finds the stub, and nothing of its user's."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "CLAUDE_CONFIG_DIR": str(home / "config"),
        "ANTHROPIC_BASE_URL": api,
        "ANTHROPIC_API_KEY": "demo-key-that-is-none",
        **QUIET,
    }


def write_fake(folder: Path) -> Path:
    """Write a program that is the stand-in; return its path. Raises `ConfigError` where no program may be."""
    program = folder / "fake-claude"
    words = shlex.join([sys.executable, "-I", "-S", fake_cli.FOLDER])
    program.write_bytes(os.fsencode(f'#!/bin/sh\nexec {words} "$@"\n'))
    program.chmod(0o700)
    if not os.access(program, os.X_OK):
        raise ConfigError(
            f"`trio-claude demo` can't start its stand-in: {folder} is mounted noexec; TMPDIR names another place, or "
            "pip install 'trio-claude[claude]' brings the real one"
        )
    return program


def _free_port(first: int) -> int:
    """Return `first`, or the next port that is free. Raises `ConfigError`."""
    last = min(first + PORTS_TRIED - 1, LAST_PORT)
    for port in range(first, last + 1) if first else (0,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise ConfigError(
                        f"--port: {port} can't be had: {error.strerror}; name another, 0 for any"
                    ) from error
                continue
            return port
    raise ConfigError(f"--port: {first} to {last} are all busy; name another, 0 for any")
