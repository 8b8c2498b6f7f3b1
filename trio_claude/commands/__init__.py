"""The command line: one small file for each command, loaded when it is used.

A command's words and exit statuses are part of the wire contract. No other room imports this one.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys

import click
from click.shell_completion import CompletionItem

from .. import __version__
from ..errors import TrioClaudeError
from .complaints import complain
from .examples import examples
from .signals import hold_signals, let_signals
from .statuses import Status

COMPLETE = "_TRIO_CLAUDE_COMPLETE"
"""By what a shell asks what to offer; click makes the name out of the program's."""
NO_THREAD = "can't start new thread"
"""What Python raises as a bare RuntimeError where the system gives no thread."""
NO_MEMORY = "`ulimit -v` says how much memory a process may have"
COMMANDS = {
    "ask": "Send one prompt to a server and print the answer.",
    "batch": "Run many prompts and write one result each.",
    "chat": "Talk to the CLI on a server.",
    "completion": "Print the script with which bash or zsh completes.",
    "demo": "Serve a demonstration that needs no account.",
    "doctor": "Say what this machine has and what is missing.",
    "keys": "Make, list, rotate and revoke API keys.",
    "runs": "List, show, follow, export and delete what was run.",
    "serve": "Serve the Claude command line at /ws/claude and /ws/session.",
    "usage": "Sum up what was used by day, identity, model or name.",
}


class Lazy(click.Group):
    """A group that imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands' names."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return one command."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f".{cmd_name}", __name__).command
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """Offer the commands without importing them, and the group's own options."""
        own = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return own + click.Command.shell_complete(self, ctx, incomplete)

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; Ctrl-C ends it with a status that says so."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.exit(Status.INTERRUPTED)
        except BaseExceptionGroup as group:  # Ctrl-C as a nursery raises it; anything beside it is raised again
            if group.split(KeyboardInterrupt)[1]:
                raise
            sys.exit(Status.INTERRUPTED)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(
    cls=Lazy,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples("trio-claude demo", "trio-claude doctor", "trio-claude serve", "trio-claude ask --help"),
)
@click.version_option(__version__, prog_name="trio-claude")
def cli() -> None:
    """Put the Claude command line behind a WebSocket, with proof that nothing of a run is left."""


def main() -> None:
    """Run the command line; what went wrong is one line on stderr."""
    _hold_standard_streams()
    if sys.argv[1:2] == ["serve"]:  # to import it takes a while
        hold_signals()
    else:
        let_signals()
    if COMPLETE in os.environ:
        importlib.import_module(".completion", __name__)
    try:
        cli(prog_name="trio-claude")
    except TrioClaudeError as error:
        complain(error)
        sys.exit(Status.REFUSED)
    except OSError as error:  # as of a full disk below stdout; a pipe that nobody reads is click's to end
        _let_go_of_stdout()
        complain(error)
        sys.exit(Status.FAILED)
    except RuntimeError as error:
        if str(error) != NO_THREAD:
            raise
        complain(f"{error}: `ulimit -u` says how many processes and threads this user may have; {NO_MEMORY}")
        sys.exit(Status.FAILED)
    except MemoryError:
        complain(f"there is no memory left: {NO_MEMORY}")
        sys.exit(Status.FAILED)


def _hold_standard_streams() -> None:
    """Have all three: else what is opened next stands in the place of one; what they can't say is shown in ASCII."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "w" if descriptor else "r", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _let_go_of_stdout() -> None:
    """Drop what stdout can't take, or the interpreter would try again at its end, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
