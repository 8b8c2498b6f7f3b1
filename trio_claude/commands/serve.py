"""`trio-claude serve`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import attrs
import click
import trio

from ..config import Config
from .options import config_options, read_config
from .serving import run_server

EXAMPLES = r"""Examples:
  trio-claude serve
  trio-claude serve --port 0 --profile chat --timeout 60
  trio-claude serve --config server.toml"""


@click.command("serve", epilog=f"\b\n{EXAMPLES}")
@config_options
def command(config_file: Path | None, **values: Any) -> None:
    """Serve the Claude command line at /ws/claude, with a page at /.

    Each option is also a variable TRIO_CLAUDE_… and a key of the TOML file. The CLI uses your own login.
    """
    trio.run(run_server, functools.partial(_read, values, config_file))


def _read(values: dict[str, Any], config_file: Path | None) -> Config:
    """Return the configuration; a server of its own keeps a journal unless it is told otherwise."""
    config = read_config(values, config_file)
    return attrs.evolve(config, journal="sqlite") if config.journal == "auto" else config
