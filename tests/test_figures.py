"""Rule: a number of a line counts from 0 to below 1e15; anything else counts for nothing, and nothing raises."""

from __future__ import annotations

import math

import pytest

from trio_claude.figures import COUNTED, counted


@pytest.mark.parametrize("value", [0, 0.0, 7, 0.000_12, COUNTED - 1])
def test_what_can_be_counted_is(value: float) -> None:
    assert counted(value) == value


@pytest.mark.parametrize(
    "value", [None, True, False, "7", [7], {}, -1, -0.5, COUNTED, 10**400, math.inf, -math.inf, math.nan]
)
def test_anything_else_counts_for_nothing(value: object) -> None:
    assert counted(value) == 0
