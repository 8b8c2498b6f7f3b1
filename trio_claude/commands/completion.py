"""`trio-claude completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from . import cli
from .examples import examples

VARIABLE = "_TRIO_CLAUDE_COMPLETE"
"""By what the shell asks; click makes the name out of the program's."""


@click.command(
    "completion",
    epilog=examples(
        "trio-claude completion bash >> ~/.bash_completion", "trio-claude completion zsh > ~/.zfunc/_trio-claude"
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh"]))
def command(shell: str) -> None:
    """Print a script with which SHELL completes commands, options, run ids, names of keys, and paths.

    For one shell only: eval "$(trio-claude completion bash)". Nothing is asked of a server, and nothing written.
    """
    found = get_completion_class(shell)
    assert found
    click.echo(found(cli, {}, "trio-claude", VARIABLE).source())
