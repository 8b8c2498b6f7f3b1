"""`trio-claude serve`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import click
import trio

from .examples import examples
from .options import config_options, read_config
from .serving import run_server


@click.command(
    "serve",
    epilog=examples(
        "trio-claude serve",
        "trio-claude serve --port 0 --profile chat --timeout 60",
        "trio-claude serve --config server.toml",
    ),
)
@config_options
def command(config_file: Path | None, **values: Any) -> None:
    """Serve the Claude command line at /ws/claude, with a page at /.

    Each option is also a variable TRIO_CLAUDE_… and a key of the TOML file. The CLI uses your own login.
    """
    trio.run(run_server, functools.partial(read_config, values, config_file, metrics=True, own_loop=True))
