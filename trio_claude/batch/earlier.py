"""What an earlier start of a batch has left: the results that stay, and whether they are of this batch.

Rule 1: a result that stays is never lost, however often a batch is broken off: files are replaced whole, or grow. Rule
2: nothing of another batch is taken, and nothing is guessed: what does not fit is named. Rule 3: what runs have cost
that are made anew is in the manifest before their results go: a kill in between counts it twice, and none forgets it.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import attrs

from ..errors import ConfigError, Reason
from .files import Unwritable, ahead_of, remove, rendered, write_whole
from .manifest import number_of
from .results import BUSY, CANCELLED, DISCONNECTED, REFUSED, SKIPPED, UNREACHABLE, Result, parse_result
from .tally import Tally
from .tasks import Plan

UNDONE: Final = (
    CANCELLED, SKIPPED, BUSY, REFUSED, UNREACHABLE, DISCONNECTED, Reason.DRAINED.value, Reason.NODE_LOST.value,
    Reason.SPAWN_FAILED.value,
)  # fmt: skip
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
    except (OSError, ValueError, RecursionError) as error:
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
        raise ConfigError(
            f"--resume: {path} is of other tasks: {tasks.get('file')}, sha256 {tasks.get('sha256')}; "
            "--force starts anew"
        )
    now = {"models": list(plan.models), "repeat": plan.repeat}
    for name, value in now.items():
        if options.get(name) != value:
            raise ConfigError(f"--resume: {path} has {name} {options.get(name)}, not {value}")


def take_up(out: Path, beside: Path, manifest: dict[str, Any], plan: Plan) -> Earlier:
    """Read what results there are, and leave in the file those that stay, each once. Raises `Unwritable`.

    What the others have cost is added to `spent_before` in the manifest, which is `beside`.
    """
    done, tally, before = bytearray(len(plan)), Tally(len(plan)), number_of(manifest, "spent_before")
    files = (out, ahead_of(out))
    stays, dropped = _sift(out, files, plan, done, tally)
    tally.spend(before + dropped)
    if dropped:
        manifest = {**manifest, "spent_before": round(before + dropped, 10)}
        write_whole(beside, [rendered(manifest)])
    write_whole(out, itertools.compress((line for _, _, line in _lines(*files)), stays))
    remove(ahead_of(out))
    return Earlier(done, tally, manifest)


def _sift(out: Path, files: tuple[Path, ...], plan: Plan, done: bytearray, tally: Tally) -> tuple[bytearray, float]:
    """Return which lines stay, and what the runs have cost that do not; a line that stands there twice counts once."""
    stays, dropped, undone = bytearray(), 0.0, bytearray(len(plan))
    for _, result in _read(*files):
        place, stay = _place(out, result, plan), result.reason not in UNDONE
        new = not done[place] and (stay or not undone[place])
        stays.append(new and stay)
        if not new:
            continue
        (done if stay else undone)[place] = 1
        if stay:
            tally.spend(result.cost_usd)
            tally.add(result)
        else:
            dropped += result.cost_usd
    return stays, dropped


def sort_results(out: Path, plan: Plan) -> None:
    """Put a file of results into the order of the plan. Raises `Unwritable`."""
    places, offset = [], 0
    for line, result in _read(out):
        places.append((_place(out, result, plan), offset, len(line)))
        offset += len(line)
    if places == sorted(places):
        return
    write_whole(out, _at(out, sorted(places)))


def _at(path: Path, places: list[tuple[int, int, int]]) -> Iterator[bytes]:
    """Yield pieces of a file: (place, start, size). Raises `Unwritable`."""
    try:
        with path.open("rb") as file:
            for _, start, size in places:
                yield os.pread(file.fileno(), size, start)
    except OSError as error:
        raise Unwritable(f"{path}: {error.strerror}") from error


def _read(*paths: Path) -> Iterator[tuple[bytes, Result]]:
    """Yield each result that was written whole, with its line. Raises `Unwritable`."""
    for path, at, line in _lines(*paths):
        try:
            result = parse_result(line)
        except ValueError as error:
            raise Unwritable(f"{path}, line {at}: no result of a batch: {error}") from None
        yield line, result


def _lines(*paths: Path) -> Iterator[tuple[Path, int, bytes]]:
    """Yield each line that was written whole, with its file and number. Raises `Unwritable`."""
    for path in paths:
        try:
            with path.open("rb") as file:
                for at, line in enumerate(file, 1):
                    if line.endswith(b"\n"):  # else torn by the end of its writer
                        yield path, at, line
        except FileNotFoundError:
            continue
        except OSError as error:
            raise Unwritable(f"{path}: {error.strerror}") from error


def _place(out: Path, result: Result, plan: Plan) -> int:
    """Return the place of a result in the plan. Raises `Unwritable` where it has none."""
    place = plan.place(result.task, result.model, result.repeat)
    if place is None or plan.tasks[result.task - 1].id != result.id:
        raise Unwritable(f"{out}: {result.id} is not planned in this batch")
    return place
