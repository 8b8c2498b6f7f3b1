"""Rule: a query is taken whole or refused, and each parameter's JSON Schema says the same."""

from __future__ import annotations

import pytest
from jsonschema import Draft202012Validator

from trio_claude.errors import HttpRefusal
from trio_claude.history import RUN_ID
from trio_claude.queries import Choice, Day, Names, Number, Text, read_query


@pytest.mark.parametrize(
    ("parameter", "text", "value"),
    [
        (Number(1, 5, whole=True), "5", 5), (Number(1, 5, whole=True), "6", None), (Number(1, 5, whole=True), "1.5", None),
        (Number(1, 5, whole=True), "1_0", None), (Number(whole=True), "١", None), (Number(whole=True), "9" * 5000, None),
        (Number(whole=True), "-0", 0), (Number(whole=True), " 1", None), (Number(), "1.5", 1.5), (Number(), "5e-324", 5e-324),
        (Number(), "nan", None), (Number(), "inf", None), (Number(), "-1", None), (Number(), "1" * 500, None), (Number(), "", None),
        (Choice(("a", "b")), "a", "a"), (Choice(("a", "b")), "", None), (Text(), "", ""), (Text(), "a\nb", "a\nb"),
        (Names(("a", "b")), "b,a", ["b", "a"]), (Names(("a", "b")), "b", ["b"]), (Names(("a", "b")), "", None), (Names(("a", "b")), "a,", None),
        (Names(("a", "b")), "a,a", None), (Names(("a", "b")), "c", None), (Names(("a", "b")), "a, b", None),
        (Text(RUN_ID), "abc", "abc"), (Text(RUN_ID), "abc\n", None), (Text(RUN_ID), "ABC", None),
        (Day(), "2026-11-27", "2026-11-27"), (Day(), "2024-02-29", "2024-02-29"), (Day(), "2026-99-99", None), (Day(), "2026-00-10", None),
        (Day(), "2026-10-32", None), (Day(), "2026-02-30", None), (Day(), "2026-02-29", None),
        (Day(), "20261127", None), (Day(), "2026-11-27\n", None),
    ],
)  # fmt: skip
def test_a_parameter_is_read_whole_or_refused(
    parameter: Text | Choice | Day | Names | Number, text: str, value: object
) -> None:
    if value is None:
        with pytest.raises(HttpRefusal, match="it must be "):
            read_query({"it": text}, {"it": parameter})
    else:
        assert read_query({"it": text}, {"it": parameter}) == {"it": value}
        Draft202012Validator(parameter.schema).validate(value)


def test_what_no_parameter_has_is_refused_by_name() -> None:
    with pytest.raises(HttpRefusal, match="unknown: else; there are: it"):
        read_query({"else": "1"}, {"it": Text()})
    with pytest.raises(HttpRefusal, match="unknown: it; there is none"):
        read_query({"it": "1"}, {})
