"""What an address may ask behind its question mark: each parameter reads its text, and says its own JSON Schema.

Pure. Rule: a query is taken whole or refused with an `HttpRefusal` that names the parameter; nothing is rounded,
trimmed or ignored.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Mapping
from typing import Any, Protocol

import attrs

from .errors import HttpRefusal

MOST = 10**15
"""The largest number that a query takes."""
_WHOLE = re.compile(r"-?[0-9]{1,16}")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_DAY = re.compile("([0-9]{4})-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])")


class Parameter(Protocol):
    """One parameter of a query."""

    def read(self, text: str) -> Any:
        """Return the value in a text, None where it is no such value."""

    @property
    def takes(self) -> str:
        """What it takes, behind the words "must be"."""

    @property
    def schema(self) -> dict[str, Any]:
        """The same as JSON Schema."""


@attrs.frozen
class Text:
    """Any text, or a full match of a pattern; `takes` says in words which."""

    pattern: str = "(?s:.*)"
    takes: str = "text"

    def read(self, text: str) -> str | None:
        """Return the text if it matches."""
        return text if re.fullmatch(self.pattern, text) else None

    @property
    def schema(self) -> dict[str, Any]:
        """Text, with its pattern where it has one."""
        return {"type": "string"} if self == Text() else {"type": "string", "pattern": f"^{self.pattern}$"}


@attrs.frozen
class Day:
    """A day that there is, as it is written in figures: YYYY-MM-DD."""

    takes: str = "a day: YYYY-MM-DD"

    def read(self, text: str) -> str | None:
        """Return the text if it is a day."""
        if not (day := _DAY.fullmatch(text)):
            return None
        _, days = calendar.monthrange(int(day[1]), int(day[2]))
        return text if int(day[3]) <= days else None

    @property
    def schema(self) -> dict[str, Any]:
        """A date."""
        return {"type": "string", "format": "date", "pattern": f"^{_DAY.pattern}$"}


@attrs.frozen
class Choice:
    """One of some words."""

    words: tuple[str, ...]

    def read(self, text: str) -> str | None:
        """Return the text if it is one of the words."""
        return text if text in self.words else None

    @property
    def takes(self) -> str:
        """The words."""
        return " or ".join(self.words)

    @property
    def schema(self) -> dict[str, Any]:
        """The words."""
        return {"type": "string", "enum": list(self.words)}


@attrs.frozen
class Names:
    """Some of some words, at least one and each once, with commas between."""

    words: tuple[str, ...]

    def read(self, text: str) -> list[str] | None:
        """Return the words in their order if they are of these."""
        names = text.split(",")
        return names if set(names) <= set(self.words) and len(set(names)) == len(names) else None

    @property
    def takes(self) -> str:
        """The words."""
        return f"some of {', '.join(self.words)}, each once, with commas between"

    @property
    def schema(self) -> dict[str, Any]:
        """The words, as a list."""
        items = {"type": "string", "enum": list(self.words)}
        return {"type": "array", "items": items, "minItems": 1, "uniqueItems": True}


@attrs.frozen
class Number:
    """A number within bounds, written as JSON writes it; a `whole` one has no point."""

    low: int = 0
    high: int = MOST
    whole: bool = False
    default: int | None = None

    def read(self, text: str) -> float | None:
        """Return the number if it is within the bounds; a whole one is an `int`."""
        if not (_WHOLE if self.whole else _NUMBER).fullmatch(text):
            return None
        value = int(text) if self.whole else float(text)
        return value if self.low <= value <= self.high else None

    @property
    def takes(self) -> str:
        """The bounds."""
        return f"a {'whole ' if self.whole else ''}number from {self.low} to {self.high}"

    @property
    def schema(self) -> dict[str, Any]:
        """The bounds, and what it is where it is missing."""
        told = {"type": "integer" if self.whole else "number", "minimum": self.low, "maximum": self.high}
        return told if self.default is None else {**told, "default": self.default}


Parameters = Mapping[str, Parameter]
"""The parameters that a route takes, by name; all may be missing."""


def read_query(query: Mapping[str, str], parameters: Parameters) -> dict[str, Any]:
    """Return the values of a query. Raises `HttpRefusal`."""
    if unknown := sorted(set(query) - set(parameters)):
        known = f"there are: {', '.join(parameters)}" if parameters else "there is none"
        raise HttpRefusal(400, "bad-query", f"unknown: {unknown[0][:64]}; {known}")
    values = {name: parameters[name].read(text) for name, text in query.items()}
    for name, value in values.items():
        if value is None:
            raise HttpRefusal(400, "bad-query", f"{name} must be {parameters[name].takes}")
    return values
