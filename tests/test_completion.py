"""Rule: a shell completes what there is, quickly and out of what can be read here; it never fails and never writes."""

from __future__ import annotations

import importlib.util
import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import Backend
from program import environ, serving, trio_claude

from trio_claude.commands.completing import run_ids

DRIVER = """
source "$1"
compopt() { echo "compopt $*"; }  # the shell's own works only below a key press
[[ $(complete -p trio-claude) == *"-F "* ]] || exit 3
function=$(complete -p trio-claude | sed 's/.*-F \\([^ ]*\\).*/\\1/')
complete_line() {
    COMP_LINE=$1 COMP_POINT=${#1}
    "$function" trio-claude "$2" before
    printf '%s\\n' "${COMPREPLY[@]}" --
}
"""


@pytest.fixture
def script(folder: Path) -> Path:
    """The script that `completion bash` prints, beside a program that it calls."""
    program = folder / "bin" / "trio-claude"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m trio_claude "$@"\n')
    program.chmod(0o755)
    path = folder / "completion.bash"
    told = subprocess.run([program, "completion", "bash"], capture_output=True, check=True)
    path.write_bytes(told.stdout)
    return path


def complete(script: Path, *lines: list[str], **env: str) -> list[list[str]]:
    """Return what a real bash offers for the last word of each of `lines`; it breaks words as bash does."""
    calls = "\n".join(
        f"complete_line {shlex.quote(shlex.join(['trio-claude', *line[:-1]]) + ' ' + line[-1])} "
        f"{shlex.quote(re.split('[:=@]', line[-1])[-1])}"
        for line in lines
    )
    told = subprocess.run(
        [shutil.which("bash") or "bash", "-c", DRIVER + calls, "bash", str(script)], capture_output=True, text=True,
        check=True, env={"PATH": f"{script.parent / 'bin'}:{os.environ['PATH']}", "HOME": str(script.parent), **env},
    )  # fmt: skip
    assert told.stderr == ""
    return [part.split() for part in told.stdout.split("--\n")[:-1]]


def test_bash_completes_commands_options_words_and_paths(script: Path) -> None:
    commands, kin, failed, options, words, word, more, folder, file, tasks, sums, next_sums, form = complete(
        script, [""], ["runs", "s"], ["runs", "failed", "--l"], ["ask", "--mo"], ["serve", "--profile", ""], ["serve", "--profile=le"], ["serve", "--grants", "all"],
        ["serve", "--cwd", ""], ["serve", "--keys", ""], ["batch", ""], ["usage", "--by", ""], ["usage", "--by", "model,m"], ["usage", "--format", "c"],
    )  # fmt: skip
    assert commands == ["ask", "batch", "chat", "completion", "demo", "doctor", "keys", "runs", "serve", "usage"]
    assert kin == ["show", "stop"]
    assert failed == ["--limit"]
    assert options == ["--model"]
    assert words == ["lean", "chat", "approve", "edit", "unattended"]
    assert word == ["lean"]
    assert more == ["allowed_tools"]
    assert folder == ["compopt", "-o", "dirnames"]
    assert file == tasks == ["compopt", "-o", "default"]
    assert (sums, next_sums, form) == (["day", "identity", "model", "meta"], ["model,meta"], ["csv"])


async def test_bash_completes_runs_of_the_journal(fake: Backend, script: Path) -> None:
    state = fake.cwd.parent / "state"
    async with serving("serve", "--port", "0", env=environ(fake)) as (_, url):
        for meta in ("FIRST", "SECOND"):
            assert (await trio_claude("ask", "hello", "--url", url, "--meta", meta)).returncode == 0
    shown, here, one, elsewhere, live, named = complete(
        script, ["runs", "show", ""], ["runs", "show", "--url", "http://127.0.0.1:3000", ""], ["runs", "export", "--format", "markdown", ""],
        ["runs", "show", "--url", "http://192.0.2.1:3000", ""], ["runs", "stop", ""],
        ["runs", "tail", "--journal", "/nope", ""], TRIO_CLAUDE_STATE=str(state),
    )  # fmt: skip
    assert shown == one == here
    assert [len(name) for name in shown] == [32, 32]
    assert elsewhere == live == named == []
    (cut,) = complete(script, ["runs", "delete", shown[1][:12]], TRIO_CLAUDE_STATE=str(state))
    assert cut == [shown[1]]
    told = await trio_claude(
        env={
            **environ(fake),
            "_TRIO_CLAUDE_COMPLETE": "zsh_complete",
            "COMP_WORDS": "trio-claude runs show ",
            "COMP_CWORD": "3",
        }
    )
    kind, offered, help_text = told.stdout.decode().split("\n")[:3]
    assert (kind, offered) == ("plain", shown[0])
    assert help_text.startswith("SECOND, ended, ")


async def test_bash_completes_names_of_keys_and_shows_no_key(fake: Backend, script: Path) -> None:
    for name in ("alice", "ci@example.com"):
        await trio_claude("keys", "add", name, env=environ(fake))
    state = str(fake.cwd.parent / "state")
    everybody, one, rest, other = complete(
        script, ["keys", "rotate", ""], ["keys", "revoke", "al"], ["keys", "revoke", "ci@ex"], ["keys", "rotate", "--file", "/nope", ""],
        TRIO_CLAUDE_STATE=state,
    )  # fmt: skip
    assert (everybody, one, rest, other) == (["alice", "ci@example.com"], ["alice"], ["example.com"], [])


def test_where_nothing_can_be_read_nothing_is_offered_and_nothing_made(script: Path) -> None:
    bad = script.parent / "bad.db"
    bad.write_bytes(b"no journal at all" * 100)
    before = sorted(script.parent.rglob("*"))
    offered = complete(
        script, ["runs", "show", ""], ["runs", "show", "--journal", str(bad), ""], ["keys", "rotate", "--file", str(bad), ""], ["runs", "show", "--nonsense", ""], ["ask", "--url", "http://[", ""], ["runs", "show", "--url", "http://[", ""],
        TRIO_CLAUDE_STATE=str(script.parent / "none"),
    )  # fmt: skip
    assert offered == [[]] * 6
    assert sorted(script.parent.rglob("*")) == before


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_each_script_names_the_program_and_is_good_where_its_shell_is(folder: Path, shell: str) -> None:
    told = subprocess.run([sys.executable, "-m", "trio_claude", "completion", shell], capture_output=True, check=True)
    path = folder / "script"
    path.write_bytes(told.stdout)
    assert f"_TRIO_CLAUDE_COMPLETE={shell}_complete".encode() in told.stdout
    assert b"trio-claude" in told.stdout
    if program := shutil.which(shell):
        assert subprocess.run([program, "-n", str(path)], capture_output=True, check=True).stderr == b""


def press(zsh: int, text: str, awaited: str, seconds: float = 20) -> str:
    """Type into a terminal; return what it shows from then on, up to what is awaited."""
    os.write(zsh, text.encode())
    shown, until = "", time.monotonic() + seconds
    while awaited not in shown:
        ready, _, _ = select.select([zsh], [], [], max(0, until - time.monotonic()))
        assert ready, f"{awaited!r} does not come: {shown!r}"
        shown += os.read(zsh, 4096).decode(errors="replace")
    return shown


SHOW = "show() { print -r -- \"<$BUFFER>\" } && zle -N show && bindkey '^]' show"
"""Has zsh say the line that is being typed."""


@pytest.mark.zsh
def test_a_real_zsh_completes(script: Path) -> None:
    path = script.parent / "completion.zsh"
    path.write_bytes(
        subprocess.run(
            [sys.executable, "-m", "trio_claude", "completion", "zsh"], capture_output=True, check=True
        ).stdout
    )
    env = {
        "PATH": f"{script.parent / 'bin'}:{os.environ['PATH']}",
        "HOME": str(script.parent),
        "TERM": "dumb",
        "PS1": "at ",
        "ZDOTDIR": str(script.parent),
    }
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        ["zsh", "-f", "-i"], stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True
    ) as zsh:
        os.close(theirs)
        try:
            press(
                ours,
                f"cd {path.parent} && autoload -Uz compinit && compinit -u -D && source {path} && echo re''ady\n",
                "ready",
            )
            press(ours, "trio-claude compl\t", "completion")
            press(ours, "z\t", "zsh")
            press(ours, "\x15trio-claude batch --conc\t", "--concurrency")
            press(ours, f"\x15{SHOW} && echo sho''wn\n", "shown")
            for typed, whole in ("--profile=ch", "--profile=chat "), ("--keys=completion.z", "--keys=completion.zsh "):
                press(ours, f"\x15trio-claude serve {typed}\t\x1d", f"<trio-claude serve {whole}>")
        finally:
            zsh.kill()
            os.close(ours)


def test_completing_imports_no_loop_and_no_http(script: Path) -> None:
    """What is pressed Tab for must come at once."""
    code = "import sys, trio_claude.commands.runs; print(*{'trio', 'httpx', 'rich', 'sqlite3'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
    assert run_ids.__module__ == "trio_claude.commands.completing"


def test_an_older_click_will_do_whose_items_take_no_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("click.shell_completion.CompletionItem", type("CompletionItem", (), {}))
    spec = importlib.util.find_spec("trio_claude.commands.completing")
    assert spec
    assert spec.loader
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
