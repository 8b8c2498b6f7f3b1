"""`trio-claude batch` as a program of its own, for tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import attrs
import trio
from harness import Backend, alive, bearing

PROGRAM = [sys.executable, "-m", "trio_claude", "batch"]


@attrs.frozen
class Told:
    """What a batch came to."""

    status: int
    stdout: str
    stderr: str
    results: list[dict[str, Any]]

    def of(self, name: str) -> list[Any]:
        return [result[name] for result in self.results]


def environ(backend: Backend, **more: str) -> dict[str, str]:
    return {
        **backend.environ,
        "TRIO_CLAUDE_CLI": backend.program,
        "TRIO_CLAUDE_STATE": str(backend.cwd.parent / "state"),
        "LC_TEST": backend.mark,
        **more,
    }


def write_tasks(folder: Path, *tasks: str | dict[str, Any]) -> str:
    path = folder / "tasks.jsonl"
    lines = (task if isinstance(task, dict) else {"prompt": task} for task in tasks)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def results(folder: Path) -> list[dict[str, Any]]:
    path = folder / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def batch(backend: Backend, folder: Path, *words: str, stdin: bytes = b"", **env: str) -> Told:
    with trio.fail_after(120):
        told = await trio.run_process(
            [*PROGRAM, *words], env=environ(backend, **env), cwd=folder, stdin=stdin, capture_stdout=True,
            capture_stderr=True, check=False,
        )  # fmt: skip
    return Told(told.returncode, told.stdout.decode(), told.stderr.decode(), results(folder))


def left(backend: Backend) -> list[int]:
    return [pid for pid in bearing(f"LC_TEST={backend.mark}") if alive(pid)]
