"""The real CLI behind the server, with a stand-in for the model's API: one turn's CPU time, and the first token.

No real credentials: the CLI gets a dummy key, a home of its own, and variables that keep it quiet. A shim in C between
server and CLI notes when it starts and when the first token passes, so what a server adds is known by the clock, and
not as a difference of two starts of the CLI, which vary by more.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .. import processes
from ..client import Client, Frame
from ..install import Unavailable
from ..load import Lost
from ..native import Native
from ..scenario import Figures, Metric, Scenario, Setting
from ..subject import Cpu, Subject

DELTAS = 200
PAUSE_MS = 20
TURN = f'@@{{"do": "slow", "n": {DELTAS}, "ms": {PAUSE_MS}}}@@'
SHORT = '@@{"do": "text", "text": "one two three", "deltas": 3}@@'
KEPT = "PATH", "PYTHONPATH"
TOKEN = b"content_block_delta"
SETTLE = 2.0
QUIET = (
    "DISABLE_TELEMETRY", "DISABLE_AUTOUPDATER", "DISABLE_ERROR_REPORTING", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC",
)  # fmt: skip


def _real_cli() -> Path:
    spec = importlib.util.find_spec("claude_agent_sdk")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (program := Path(folder) / "_bundled" / "claude").is_file():
            return program
    raise Unavailable("no real CLI here (the package claude-agent-sdk has one)")


def _environ(home: Path, api: str) -> dict[str, str]:
    """Return all that the server, and so the CLI, has of an environment."""
    return {
        **{name: text for name, text in os.environ.items() if name in KEPT or name.startswith("TRIO_CLAUDE_")},
        **dict.fromkeys(QUIET, "1"),
        "HOME": str(home), "CLAUDE_CONFIG_DIR": str(home / "config"), "TMPDIR": str(home),
        "ANTHROPIC_BASE_URL": api, "ANTHROPIC_API_KEY": "dummy",
        "CLAUDE_BENCH_CLI": str(_real_cli()), "CLAUDE_BENCH_NOTES": str(home / "notes"),
    }  # fmt: skip


@contextmanager
def _api() -> Iterator[str]:
    """Run the stand-in for the model's API; return its address."""
    process = subprocess.Popen([sys.executable, "-m", "trio_claude.testing.messages_api"], stdout=subprocess.PIPE)
    assert process.stdout
    try:
        yield process.stdout.readline().split()[-1].decode()
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


@contextmanager
def setting(native: Native) -> Iterator[Setting]:
    """Make the real CLI's surroundings."""
    with tempfile.TemporaryDirectory(prefix="tcb-", ignore_cleanup_errors=True) as name, _api() as api:
        yield Setting(native.shim, _environ(Path(name), api))


def _cli_cpu(subject: Subject) -> tuple[float, list[str]]:
    """Return the CPU time of the real CLI and its children, and the words it was started with."""
    shims = subject.clis()
    if not shims:
        raise Lost("the CLI ended early")
    words = Path(f"/proc/{shims[0].pid}/cmdline").read_bytes().decode().split("\0")[:-1]
    return sum(process.cpu + process.reaped for process in processes.descendants(shims[0].pid)), words


def _turn(subject: Subject) -> tuple[Cpu, float, list[str]]:
    """Have one turn; return what the server used until the last token, what the CLI used, and the CLI's words."""
    before, seen = subject.cpu(), 0
    client = Client(subject.port, subject.peer.path)
    client.ask(TURN, partial=True)
    found: tuple[Cpu, float, list[str]] | None = None
    for frame in client.frames():
        seen += TOKEN in frame.data
        if seen == DELTAS and found is None:
            found = subject.cpu().since(before), *_cli_cpu(subject)
    if found is None:
        raise Lost(f"{seen} tokens")
    return found


def take_notes(notes: Path) -> tuple[int, int, int]:
    """Return what the shim noted: when it began, when it passed the prompt, and when the first token."""
    began, prompt, first, _ = map(int, notes.read_text().split())
    notes.unlink()
    if not first:
        raise Lost("the CLI said no token")
    return began, prompt, first


def _through(subject: Subject) -> tuple[float, float]:
    """Return the milliseconds to the first token through the server, and those of them outside of the CLI."""
    client = Client(subject.port, subject.peer.path)
    asked = client.ask(SHORT, partial=True)
    frames: list[Frame] = list(client.frames())
    came = next(frame.at for frame in frames if TOKEN in frame.data)
    began, _, first = take_notes(Path(subject.environ["CLAUDE_BENCH_NOTES"]))
    return (came - asked) / 1e6, (began - asked + came - first) / 1e6


def _bare(subject: Subject, words: list[str]) -> tuple[float, float]:
    """Return the same without a server: the CLI started by hand, its stdout read by hand."""
    line = json.dumps({"type": "user", "message": {"role": "user", "content": SHORT}}).encode() + b"\n"
    asked = time.monotonic_ns()
    process = subprocess.Popen(
        [str(subject.cli), *words[1:]], env=subject.environ, cwd=subject.environ["HOME"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    with process:
        process.stdin.write(line)
        process.stdin.close()
        came, text = 0, b""
        while chunk := process.stdout.read(1 << 16):
            text += chunk
            if not came and TOKEN in text:
                came = time.monotonic_ns()
    began, _, first = take_notes(Path(subject.environ["CLAUDE_BENCH_NOTES"]))
    return (came - asked) / 1e6, (began - asked + came - first) / 1e6


def measure(subject: Subject, quick: bool) -> Figures:
    """Take the figures; a first turn goes before, so that what the CLI keeps in its home is there."""
    _turn(subject)
    take_notes(Path(subject.environ["CLAUDE_BENCH_NOTES"]))
    time.sleep(SETTLE)
    used, cli, words = _turn(subject)
    take_notes(Path(subject.environ["CLAUDE_BENCH_NOTES"]))
    pairs = [(_through(subject), _bare(subject, words)) for _ in range(3 if quick else 15)]
    added = [through[1] - bare[1] for through, bare in pairs]
    return {
        "share": used.living / cli * 100, "gateway": used.living * 1000, "cli": cli * 1000,
        "first": statistics.median(through[0] for through, _ in pairs),
        "bare": statistics.median(bare[0] for _, bare in pairs),
        "added": statistics.median(added), "added_max": max(added),
    }  # fmt: skip


SCENARIO = Scenario(
    "real",
    f"One real turn of {DELTAS} deltas at {1000 // PAUSE_MS} a second, and the first token",
    (
        Metric("share", "gateway CPU, of the CLI's", "%", plot=True),
        Metric("gateway", "gateway CPU a turn", "ms"),
        Metric("cli", "the CLI's CPU a turn", "ms"),
        Metric("first", "first token through the gateway, p50", "ms", plot=True),
        Metric("bare", "first token of the bare CLI, p50", "ms"),
        Metric("added", "added to the first token, p50", "ms", plot=True),
        Metric("added_max", "added, worst of the pairs", "ms"),
    ),
    measure,
    peers=("trio-claude", "supervisor"),
    real=True,
    note="The model's API is a stand-in on loopback. CPU of the gateway is server, zygote and guardians together, from "
    "before the connection to the last token. What is added is by the clock: from the prompt to the CLI's start, and "
    "from the CLI's first token to the client, less the same for a CLI started by hand (15 pairs a round).",
    setting=setting,
)
