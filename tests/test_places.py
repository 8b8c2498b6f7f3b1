"""Rule: what a client is counted in is given back once, the last that came first, whether it leaves early or not."""

from __future__ import annotations

import pytest

from trio_claude.places import Places


def test_everything_is_given_back_once_and_the_last_first() -> None:
    given: list[str] = []
    with Places(lambda: given.append("slot")) as places:
        places.add(lambda: given.append("address"))
        places.close()
        assert given == ["address", "slot"]
        places.add(lambda: given.append("late"))
    assert given == ["address", "slot", "late"]


def test_what_one_raises_keeps_nothing_of_the_others() -> None:
    given: list[str] = []
    places = Places(lambda: given.append("slot"), lambda: given.remove("nothing"))
    with pytest.raises(ValueError, match="not in list"):
        places.close()
    assert given == ["slot"]
