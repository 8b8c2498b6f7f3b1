"""What was checked, what did not hold, and what was measured; as a person reads it, and as JSON.

A violation is told the moment it is seen, with what it takes to find it. This module must never know what is checked.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from chaos import markdown
from common import percentile

SHOWN = 400
"""Characters of what was seen that a violation tells."""
KEPT = 200
"""Violations of one part that are kept in full; of more only the number."""
FAKE = "fake"


@attrs.frozen
class Figure:
    """Something measured, with which CLI, and what was asked of it where anything was."""

    name: str
    value: str
    cli: str = FAKE
    asked: str = ""


@attrs.define(eq=False)
class Part:
    """One of the boxes that are shown."""

    name: str
    title: str
    checked: Counter[str] = attrs.Factory(Counter)
    wrong: Counter[str] = attrs.Factory(Counter)
    violations: list[str] = attrs.Factory(list)
    figures: list[Figure] = attrs.Factory(list)
    skipped: list[str] = attrs.Factory(list)
    seconds: float = 0.0

    def report(self) -> str:
        """Return it in Markdown."""
        rows = [[name, f"{self.checked[name]:,}", f"{self.wrong[name]:,}"] for name in self.checked]
        figures = [[one.name, one.value, one.asked, one.cli] for one in self.figures]
        said = [f"## {self.title}", f"{self.seconds:.0f} s", markdown(["what must hold", "checks", "violations"], rows)]
        if figures:
            said.append(markdown(["figure", "measured", "asked", "CLI"], figures))
        said += [f"Left out: {why}" for why in self.skipped]
        said += [f"VIOLATION {one}" for one in self.violations]
        return "\n\n".join(said)


@attrs.define(eq=False)
class Book:
    """All parts so far; what is checked goes to the last."""

    seed: str
    quiet: bool = False
    together: str = ""
    """Why this program has no network namespace of its own, where it has none."""
    parts: list[Part] = attrs.Factory(list)
    where: str = ""
    """What goes on just now: the round."""

    @property
    def part(self) -> Part:
        """The part that goes on."""
        return self.parts[-1]

    @property
    def wrong(self) -> int:
        """How many violations there were."""
        return sum(part.wrong.total() for part in self.parts)

    def begin(self, name: str, title: str) -> Part:
        """Begin a part."""
        self.parts.append(Part(name, title))
        self.where = ""
        return self.part

    def check(self, rule: str, *, holds: object, seen: object, run: str = "") -> bool:
        """Count a check, and tell a violation where it does not hold; return whether it does."""
        self.part.checked[rule] += 1
        if not holds:
            self.violate(rule, seen, run)
        return bool(holds)

    def violate(self, rule: str, seen: object, run: str = "") -> None:
        """Note and tell a violation."""
        place = [f"seed {self.seed}", self.part.name, self.where, f"run {run}" if run else ""]
        text = f"{rule}: {', '.join(filter(None, place))}: {str(seen)[:SHOWN]}"
        self.part.checked[rule] += not self.part.checked[rule]
        self.part.wrong[rule] += 1
        if len(self.part.violations) < KEPT:
            self.part.violations.append(text)
            print(f"VIOLATION {text}", file=sys.stderr, flush=True)

    def tell(self, text: str) -> None:
        """Say how far it is."""
        if not self.quiet:
            print(f"{self.part.name}: {self.where}: {text}", file=sys.stderr, flush=True)

    def skip(self, why: str) -> None:
        """Note what can't be had here."""
        self.part.skipped.append(why)
        self.tell(f"left out: {why}")

    def figure(self, name: str, value: object, asked: str = "", cli: str = FAKE) -> None:
        """Note a figure."""
        self.part.figures.append(Figure(name, str(value), cli, asked))

    def times(self, name: str, seconds: Sequence[float], asked: str = "") -> None:
        """Note how long something took: half of the times, nearly all, and the longest, in ms."""
        if seconds:
            shares = (percentile(seconds, 0.5), percentile(seconds, 0.99), max(seconds))
            told = " / ".join(f"{1000 * share:.1f}" for share in shares)
            self.figure(f"{name}: p50 / p99 / most of {len(seconds):,}", f"{told} ms", asked)

    def as_json(self) -> list[dict[str, Any]]:
        """Return everything, for a file."""
        return [
            {
                "part": part.name, "seconds": part.seconds, "checked": dict(part.checked), "wrong": dict(part.wrong),
                "figures": [attrs.asdict(one) for one in part.figures], "skipped": part.skipped,
                "violations": part.violations,
            }
            for part in self.parts
        ]  # fmt: skip


def leaves(error: BaseException) -> list[BaseException]:
    """Return the exceptions of a group, however deep."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in leaves(part)]
    return [error]


def chosen(words: Sequence[str], counts: Mapping[str, int]) -> dict[str, int]:
    """Return which parts are to be played, and how often; without words all, as often as `counts` has it.

    Raises ValueError.
    """
    found: dict[str, int] = {}
    name = ""
    for word in words:
        if word in counts:
            name = word
            found[name] = counts[name]
        elif name and word.isdigit() and int(word):
            found[name] = int(word)
        else:
            raise ValueError(f"{word}: neither a part ({', '.join(counts)}) nor a number behind one")
    return found or dict(counts)
