"""Rule: a number of a line counts from 0 to below 1e15; anything else counts for nothing, and nothing raises.

In an error a number is whole, and short whatever its size.
"""

from __future__ import annotations

import math

import pytest

from trio_claude.figures import COUNTED, brief, counted


@pytest.mark.parametrize("value", [0, 0.0, 7, 0.000_12, COUNTED - 1])
def test_what_can_be_counted_is(value: float) -> None:
    assert counted(value) == value


@pytest.mark.parametrize(
    "value", [None, True, False, "7", [7], {}, -1, -0.5, COUNTED, 10**400, math.inf, -math.inf, math.nan]
)
def test_anything_else_counts_for_nothing(value: object) -> None:
    assert counted(value) == 0


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0, "0"),
        (1_000_001, "1000001"),
        (33_554_432.0, "33554432"),
        (0.000_1, "0.0001"),
        (1.5, "1.5"),
        (math.inf, "inf"),
        (math.nan, "nan"),
        (10**18, "a number of 19 digits"),
        (-(10**400), "a number of 401 digits"),
        pytest.param(10**5000, "a number of thousands of digits", id="huge"),
    ],
)
def test_how_an_error_says_a_number(value: float, told: str) -> None:
    assert brief(value) == told
