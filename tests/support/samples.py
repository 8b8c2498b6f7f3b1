"""The fenced blocks of a page, and a machine of its own on which a page is followed word by word.

A page's `sh` blocks run in one shell, in their order, as a reader types them; its `python` blocks as programs. A
`text` block behind a block that runs is what it must say: each of its lines, in order, `…` for anything. A comment
before a block says what else is to be done with it:

    <!-- save: NAME -->         it is a file, which a later block uses
    <!-- serve -->              it goes on beside the blocks behind it, once it says that it is listening
    <!-- serve: TEXT -->        the same, once it says TEXT
    <!-- typed -->              (text) a conversation: what stands behind a prompt is typed when the prompt has come
    <!-- not here: WHY -->      it can't run on a machine of the tests, and is only parsed
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent, indent

import attrs
import pytest
import trio

import trio_claude.config

ROOT = Path(__file__).parents[2]
SECONDS = 60
"""For one page."""
PORT, API_PORT = 3000, 8765
LISTENING = "listening on"
"""What a server says that is ready."""
TYPIST = Path(__file__).with_name("typist.py")
FENCE = re.compile(r"^(?:[ ]*<!-- ([^>]*) -->\n)?([ ]*)```([^\n`]*)\n(.*?)^\2```$", re.MULTILINE | re.DOTALL)
WORLDS = (
    ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"],
    ["unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"],
)
"""A network and a PID namespace, in which port 3000 is free, and after which nothing is left."""


@attrs.frozen
class Block:
    """One fenced block: `mark` is what the comment before it says."""

    page: Path
    line: int
    mark: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}, line {self.line}"

    @property
    def runs(self) -> bool:
        return self.language in ("sh", "python") and not self.mark.startswith(("not here: ", "save: "))

    @property
    def name(self) -> str:
        """The file that it is saved as."""
        return self.mark.removeprefix("save: ") if self.mark.startswith("save: ") else f"line-{self.line}.py"


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = FENCE.finditer(text)
    return [
        Block(page, text.count("\n", 0, one.start(3)) + 1, (one[1] or "").strip(), one[3].strip(), dedent(one[4]))
        for one in found
    ]


# -- parsed -----------------------------------------------------------------------------------------------------------


def parse(block: Block) -> None:
    """Raise what is wrong with a block, where its language is known."""
    match block.language:
        case "sh":
            subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
        case "python":
            compile(f"async def sample():\n{indent(block.text, '    ')}", str(block), "exec")
        case "json":
            for line in block.text.splitlines():
                json.loads(line)
        case "toml":
            settings = tomllib.loads(block.text)
            assert set(settings) <= set(trio_claude.config.Config.__annotations__), settings
        case "nginx":
            _parse_nginx(block.text)
        case "javascript" | "js" if shutil.which("node"):
            subprocess.run(["node", "--check", "--input-type=module"], input=block.text, text=True, check=True)


def _parse_nginx(text: str) -> None:
    """Look at each line's end and at the braces."""
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    assert all(not line or line.endswith((";", "{", "}")) for line in lines), lines
    assert text.count("{") == text.count("}")


# -- followed ---------------------------------------------------------------------------------------------------------


async def follow(page: Path, folder: Path) -> None:
    """Do what a page says, in `folder`, and compare what comes of it with what it says comes of it."""
    found = blocks(page)
    script = folder / ".follow"
    script.write_text("\n".join(_script(found, folder)))
    with trio.fail_after(SECONDS):
        told = await trio.run_process(
            [*_world(), "bash", str(script)], cwd=folder, env=_environ(folder), check=False,
            capture_stdout=True, capture_stderr=True,
        )  # fmt: skip
    at = int((folder / ".at").read_text())
    output = _said(folder, at)
    assert told.returncode == 0, f"{found[at]}: {output}\n{told.stderr.decode()}"
    for number, block in enumerate(found[:-1]):
        if block.runs and found[number + 1].language == "text":
            compare(found[number + 1], _said(folder, number))


def compare(expected: Block, said: str) -> None:
    """Find what a page says that comes, part by part, in what came."""
    rest = " ".join(said.split())
    for part in re.split(r"\n|…", expected.text):
        wanted = " ".join(part.split())
        before, found, rest = rest.partition(wanted) if wanted else ("", "", rest)
        assert wanted in found, f"{expected}: {wanted!r} is not in {before!r}"


def _said(folder: Path, number: int) -> str:
    path = folder / f".out-{number}"
    return path.read_text() if path.exists() else ""


def _script(found: list[Block], folder: Path) -> Iterator[str]:
    yield "set -euo pipefail"
    yield "served=()"
    yield 'trap \'for one in "${served[@]}"; do kill -TERM -- "-$one" || :; done; wait\' EXIT'
    yield "ip link set lo up 2>/dev/null || :"
    yield from _serving(f"python -m trio_claude.testing.messages_api --port {API_PORT}", ".api")
    for number, block in enumerate(found):
        if block.mark.startswith("save: "):
            (folder / block.name).write_text(block.text)
        if block.runs:
            yield f"echo {number} > {folder}/.at"
            yield from _one(block, found[number + 1 :], folder, f"{folder}/.out-{number}")


def _one(block: Block, rest: list[Block], folder: Path, out: str) -> Iterator[str]:
    """Yield how one block is run."""
    if block.language == "python":
        (folder / block.name).write_text(block.text)
        yield f"python {folder}/{block.name} > {out} 2>&1 < /dev/null"
    elif block.mark.partition(": ")[0] == "serve":
        yield from _serving(block.text, out, block.mark.partition(": ")[2] or LISTENING)
    elif rest and rest[0].mark == "typed":
        (folder / ".typed").write_text(rest[0].text)
        yield f"python {TYPIST} {folder}/.typed {block.text.strip()} > {out} 2>&1"
    else:
        yield f"exec 3>&1 4>&2 > {out} 2>&1 < /dev/null"
        yield block.text
        yield "exec 1>&3 2>&4"


def _serving(command: str, out: str, ready: str = LISTENING) -> Iterator[str]:
    yield f"set -m\n{{ {command.rstrip()}\n}} > {shlex.quote(out)} 2>&1 &\nset +m"
    yield 'served+=("$!")'
    yield f"until grep -qs {shlex.quote(ready)} {shlex.quote(out)}; do kill -0 $!; sleep 0.05; done"


def _environ(folder: Path) -> dict[str, str]:
    """Return the environment of somebody with an account, which is a stub's; the programs are this virtual one's."""
    (folder / "bin").mkdir()
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "docs").symlink_to(ROOT / "docs")  # of a checkout, which whoever follows a page may have
    if importlib.util.find_spec("claude_agent_sdk") is None:
        (folder / "bin" / "claude").symlink_to(f"{sys.prefix}/bin/fake-claude")
    return {
        "PATH": f"{folder}/bin:{sys.prefix}/bin:{os.environ['PATH']}",
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{API_PORT}",
        "ANTHROPIC_API_KEY": "no-key",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # of the dozen that are here none is needed, and they take seconds
        "TRIO_CLAUDE_CLI": "fake-claude",
    }


@functools.cache
def _worlds() -> list[str] | None:
    """Return what makes a world of its own, nothing where this one will do, None where neither can be had."""
    for words in WORLDS:
        if shutil.which("unshare") and subprocess.run([*words, "ip", "link"], capture_output=True).returncode == 0:
            return words
    for port in (PORT, API_PORT):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return None
    return []


def _world() -> list[str]:
    if (words := _worlds()) is None:
        why = f"port {PORT} or {API_PORT} is in use, and no network namespace can be made"
        pytest.fail(why) if os.environ.get("CI") == "true" else pytest.skip(why)  # as conftest does with markers
    return words
