from __future__ import annotations

from typing import Any

import pytest

from trio_claude.commands.asking import Choice, Question, questions

WHICH = {
    "question": "Which?",
    "header": "Way",
    "multiSelect": False,
    "options": [{"label": "left", "description": "by the river"}, {"label": "right"}],
}
ONE = Question("Which?", (Choice("left", "by the river"), Choice("right")))
SEVERAL = Question("Which ones?", (Choice("a"), Choice("b"), Choice("c")), several=True)


def test_a_question_is_shown_with_its_choices() -> None:
    assert questions({"questions": [WHICH]}) == [ONE]
    assert ONE.shown() == "Which?\n1. left  by the river\n2. right"


def test_several_may_hold_where_the_model_says_so() -> None:
    assert questions({"questions": [WHICH, {"question": "And?", "multiSelect": True}]}) == [
        ONE,
        Question("And?", (), several=True),
    ]


@pytest.mark.parametrize(
    ("question", "typed", "meant"),
    [
        (ONE, "2", "right"),
        (ONE, "3", "3"),
        (ONE, "0", "0"),
        (ONE, "1,2", "1,2"),
        (ONE, "left, I think", "left, I think"),
        (ONE, "", ""),
        (SEVERAL, "3, 1", "c, a"),
        (SEVERAL, "1 2 2", "a, b"),
        (SEVERAL, "1,4", "1,4"),
        (SEVERAL, "2", "b"),
        (SEVERAL, "1   ,   2", "a, b"),
        (SEVERAL, ("1" + " " * 20) * 100 + "of a table", ("1" + " " * 20) * 100 + "of a table"),
    ],
)
def test_an_answer_is_a_choice_or_words(question: Question, typed: str, meant: str) -> None:
    assert question.answer(typed) == meant


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"questions": "Which?"},
        {"questions": ["Which?"]},
        {"questions": [WHICH, {"question": 7}]},
        {"questions": [WHICH, WHICH]},
        {"questions": [{"question": "Which?", "options": ["left"]}]},
        {"questions": [{"question": "Which?", "options": [{"label": None}]}]},
    ],
)
def test_what_is_no_question_is_asked_as_any_tool(given: dict[str, Any]) -> None:
    assert questions(given) == []
