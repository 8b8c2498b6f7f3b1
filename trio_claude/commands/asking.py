"""What the model asks the person: questions with their choices, and what was typed as their answers.

Pure. This module must never answer by itself, nor take for a question what it can't show whole.
"""

from __future__ import annotations

import re
from typing import Any, Final, TypeAlias

import attrs

Json: TypeAlias = dict[str, Any]

TOOL: Final = "AskUserQuestion"
"""The CLI's tool that asks; its answers go back within its input."""
_NUMBERS: Final = re.compile(r"\d{1,3}((\s*,\s*|\s+)\d{1,3})*")


@attrs.frozen
class Choice:
    """What a question may be answered by."""

    label: str
    description: str = ""


@attrs.frozen
class Question:
    """A question, with its choices, of which `several` may hold."""

    text: str
    choices: tuple[Choice, ...]
    several: bool = False

    def shown(self) -> str:
        """Return the question as it is asked, its choices numbered from 1."""
        lines = [f"{number}. {one.label}" + f"  {one.description}".rstrip() for number, one in self._numbered()]
        return "\n".join([self.text, *lines])

    def answer(self, typed: str) -> str:
        """Return what was meant: the labels of the numbers that were typed, else the words as they are."""
        if not _NUMBERS.fullmatch(typed):
            return typed
        labels, numbers = dict(self._numbered()), [int(number) for number in re.findall(r"\d+", typed)]
        if not all(number in labels for number in numbers) or (len(numbers) > 1 and not self.several):
            return typed
        return ", ".join(labels[number].label for number in dict.fromkeys(numbers))

    def _numbered(self) -> enumerate[Choice]:
        return enumerate(self.choices, 1)


def questions(given: Json) -> list[Question]:
    """Return the questions in a tool's input; none where it is not of the shape that is known."""
    listed = given.get("questions")
    found = [_question(one) for one in listed] if isinstance(listed, list) else []
    asked = [one for one in found if one is not None]
    return asked if len(asked) == len({one.text for one in asked}) == len(found) else []


def _question(said: object) -> Question | None:
    if not isinstance(said, dict) or not isinstance(said.get("question"), str):
        return None
    options = said.get("options")
    choices = [_choice(option) for option in options] if isinstance(options, list) else []
    known = tuple(one for one in choices if one is not None)
    return Question(said["question"], known, said.get("multiSelect") is True) if len(known) == len(choices) else None


def _choice(said: object) -> Choice | None:
    if not isinstance(said, dict) or not isinstance(said.get("label"), str):
        return None
    description = said.get("description")
    return Choice(said["label"], description if isinstance(description, str) else "")
