"""What an earlier start of a batch has left: the results that stay, and whether they are of this batch.

Rule 1: a result that stays is never lost, however often a batch is broken off: files are replaced whole, or grow. Rule
2: nothing of another batch is taken, and nothing is guessed: what does not fit is named.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import attrs

from ..errors import ConfigError, Reason
from .files import Unwritable, ahead_of, write_whole
from .results import BUSY, CANCELLED, SKIPPED, UNREACHABLE, Result, parse_result
from .tally import Tally
from .tasks import Plan

UNDONE: Final = (CANCELLED, SKIPPED, BUSY, UNREACHABLE, Reason.DRAINED.value)
"""Reasons of results that do not stay: these runs did not come to an end of their own, and are made anew."""


@attrs.frozen
class Earlier:
    """What was done already: which places have a result, what they came to, and the manifest."""

    done: bytearray
    tally: Tally
    manifest: dict[str, Any]


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Return a batch's manifest, None where there is none. Raises `ConfigError`."""
    try:
        told = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"--resume: {path} can't be read: {error}") from None
    if not isinstance(told, dict):
        raise ConfigError(f"--resume: {path} is no manifest of a batch")
    return told


def check_same(path: Path, manifest: dict[str, Any], checksum: str, plan: Plan) -> None:
    """Look whether a manifest is of this batch. Raises `ConfigError`, which says what is different."""
    tasks, options = manifest.get("tasks"), manifest.get("options")
    if not isinstance(tasks, dict) or not isinstance(options, dict):
        raise ConfigError(f"--resume: {path} is no manifest of a batch")
    if tasks.get("sha256") != checksum:
        raise ConfigError(f"--resume: {path} is of other tasks: {tasks.get('file')}, sha256 {tasks.get('sha256')}")
    now = {"models": list(plan.models), "repeat": plan.repeat}
    for name, value in now.items():
        if options.get(name) != value:
            raise ConfigError(f"--resume: {path} has {name} {options.get(name)}, not {value}")


def take_up(out: Path, manifest: dict[str, Any], plan: Plan) -> Earlier:
    """Read what results there are, and leave in the file those that stay, each once. Raises `Unwritable`."""
    earlier = Earlier(bytearray(len(plan)), Tally(len(plan)), manifest)
    write_whole(out, _staying(out, plan, earlier))
    ahead_of(out).unlink(missing_ok=True)
    return earlier


def _staying(out: Path, plan: Plan, earlier: Earlier) -> Iterator[bytes]:
    """Yield the lines that stay, and count them; what the others have cost is spent all the same."""
    for line, result in _read(out, ahead_of(out)):
        place = _place(out, result, plan)
        earlier.tally.spend(result.cost_usd)
        if result.reason in UNDONE or earlier.done[place]:
            continue
        earlier.done[place] = 1
        earlier.tally.add(result)
        yield line


def sort_results(out: Path, plan: Plan) -> None:
    """Put a file of results into the order of the plan. Raises `Unwritable`."""
    places, offset = [], 0
    for line, result in _read(out):
        places.append((_place(out, result, plan), offset, len(line)))
        offset += len(line)
    if places == sorted(places):
        return
    with out.open("rb") as file:
        write_whole(out, (os.pread(file.fileno(), size, start) for _, start, size in sorted(places)))


def _read(*paths: Path) -> Iterator[tuple[bytes, Result]]:
    """Yield each result that was written whole, with its line."""
    for path in paths:
        if not path.exists():
            continue
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break  # torn by the end of its writer
                try:
                    yield line, parse_result(line)
                except ValueError as error:
                    raise Unwritable(f"{path}, line {number}: no result of a batch: {error}") from None


def _place(out: Path, result: Result, plan: Plan) -> int:
    """Return the place of a result in the plan. Raises `Unwritable` where it has none."""
    place = plan.place(result.task, result.model, result.repeat)
    if place is None or plan.tasks[result.task - 1].id != result.id:
        raise Unwritable(f"{out}: {result.id} is not planned in this batch")
    return place
