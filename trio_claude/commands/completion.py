"""`trio-claude completion`, and how bash asks: by the line as it was typed.

Click's own way for bash asks by bash's words, which end at `:`, `=` and `@`, so an address would be four of them. Its
way for zsh puts what it offers for `--option=` in place of the option, too.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar, Final

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    ZshComplete,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

from . import COMPLETE, cli
from .examples import examples

BASH: Final = r"""# Completion of trio-claude for bash 4.4 or later.
%(complete_func)s() {
    local kind value
    COMPREPLY=()
    while IFS=, read -r kind value; do
        case $kind in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORD="$2" %(complete_var)s=bash_complete "$1" 2>/dev/null)
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class Bash(BashComplete):
    """What bash asks and hears. Rule: a value without the part that bash takes for words before it."""

    source_template = BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the one that is completed, and that one."""
        line = os.environ.get("COMP_LINE", "")
        words = split_arg_string(line)[1:]
        incomplete = words.pop() if words and not line[-1:].isspace() else ""
        return words, incomplete

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[Any]]:
        """Return what is offered, as far as bash replaces it."""
        before = incomplete.removesuffix(os.environ.get("COMP_WORD", ""))
        items = super().get_completions(args, incomplete)
        return [CompletionItem(str(item.value).removeprefix(before), item.type, item.help) for item in items]


class Zsh(ZshComplete):
    """What zsh asks and hears. Rule: what is offered behind `--option=` leaves that where it is."""

    source_template: ClassVar[str] = ZshComplete.source_template.replace("-U", '-U -i "$IPREFIX"').replace(
        "    for type key", "    [[ $words[CURRENT] == --*=* ]] && compset -P 1 '*='\n\n    for type key"
    )


add_completion_class(Bash, "bash")
add_completion_class(Zsh, "zsh")


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
    click.echo(found(cli, {}, "trio-claude", COMPLETE).source())
