"""Rule: the same fault has the same fingerprint whatever it says; it is told in full now and then, and counted always."""

from __future__ import annotations

import itertools
import re
import sys
import warnings
from collections.abc import Callable

import pytest
import trio

from trio_claude import events
from trio_claude.events import WARNED_LIMIT, Crashed, Event, Strained, fan_out
from trio_claude.faults import AGAIN, FAULTS_LIMIT, Faults, fingerprint, note_run, run_of


def fail(number: int) -> None:
    if number % 2:
        raise ValueError(f"number {number}")
    raise ValueError(f"another line, {number}")


def other() -> None:
    raise ValueError("number 1")


def caught(function: Callable[..., object], *words: object) -> BaseException:
    try:
        function(*words)
    except BaseException as error:  # groups of any kind are looked at too
        return error
    raise AssertionError("nothing was raised")


def test_a_fingerprint_is_of_type_and_functions_and_of_nothing_else() -> None:
    first = fingerprint(caught(fail, 1))
    assert re.fullmatch(r"[0-9a-f]{12}", first)
    assert first == fingerprint(caught(fail, 2)) == fingerprint(caught(fail, 3)), "lines and texts don't count"
    assert first != fingerprint(caught(other)), "functions do"
    assert first != fingerprint(caught(int, "x")), "types do"
    assert Crashed("here", caught(fail, 1)).fingerprint == first


def test_it_is_the_same_in_another_process() -> None:
    """No seed of a hash, no address and no order of a set is in it."""
    assert fingerprint(ValueError("x")) == fingerprint(ValueError("y")) == "0757dbe0d345"


def recurse(depth: int) -> None:
    if not depth:
        raise ValueError
    recurse(depth - 1)


def test_how_deep_a_recursion_went_does_not_matter() -> None:
    assert fingerprint(caught(recurse, 5)) == fingerprint(caught(recurse, 500))


def test_of_a_group_its_members_count_whatever_their_number() -> None:
    one, two = caught(fail, 1), caught(other)
    assert fingerprint(ExceptionGroup("", [one, two])) == fingerprint(ExceptionGroup("x", [two, one, caught(fail, 4)]))
    assert fingerprint(ExceptionGroup("", [one])) != fingerprint(ExceptionGroup("", [two]))


def test_a_group_of_groups_without_end_is_bounded() -> None:
    group: Exception = ValueError()
    for _ in range(900):
        group = ExceptionGroup("", [group])
    assert len(fingerprint(group)) == 12
    assert run_of(group) == ""


async def test_a_run_is_found_through_groups_and_what_was_split_off_them() -> None:
    async def leave_run() -> None:
        try:
            fail(1)
        except ValueError as error:
            note_run(error, "3f2a")
            raise

    found = ""
    try:
        async with trio.open_nursery() as nursery, trio.open_nursery() as inner:
            inner.start_soon(leave_run)
            nursery.start_soon(trio.sleep, 0)
    except* ValueError as group:
        found = run_of(group)
    assert found == "3f2a"
    assert run_of(ValueError()) == ""


def test_an_observer_that_fails_again_and_again_costs_no_memory() -> None:
    """What Python remembers of warnings is a table that nobody empties."""
    numbers = itertools.count()

    def fail(_event: Event) -> None:
        raise ValueError(f"a bug, {next(numbers) // 2}")

    tell = fan_out([fail])
    before = remembered()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(4 * WARNED_LIMIT):
            tell(Strained("x", over=False))
    assert 0 <= len(caught) - 2 * WARNED_LIMIT < 10  # each text once, but where the table was emptied meanwhile
    assert "a bug, 7" in str(caught[7].message)
    assert remembered() - before <= WARNED_LIMIT + 2


def test_others_hear_though_a_program_has_warnings_raised() -> None:
    def fail(_event: Event) -> None:
        raise ValueError("a bug")

    heard: list[Event] = []
    with warnings.catch_warnings(), pytest.raises(RuntimeWarning, match="a bug"):
        warnings.simplefilter("error")
        fan_out([fail, heard.append])(Strained("x", over=False))
    assert heard == [Strained("x", over=False)]


def remembered() -> int:
    """Return how many warnings Python remembers, in all modules."""
    tables = (getattr(module, "__warningregistry__", {}) for module in list(sys.modules.values()))
    return sum(map(len, tables)) + len(events._warned)


def test_a_fault_is_told_in_full_at_powers_of_ten_and_after_an_hour() -> None:
    faults = Faults()
    full = [count for count in range(1, 2001) if faults.count("a", 0.0).in_full]
    assert full == [1, 10, 100, 1000]
    assert not faults.count("a", AGAIN - 1).in_full
    assert faults.count("a", AGAIN).in_full
    again = faults.count("a", AGAIN + 1)
    assert (again.count, again.in_full) == (2003, False)


def test_the_table_is_bounded_and_forgets_what_was_not_seen_for_longest() -> None:
    faults = Faults()
    for number in range(FAULTS_LIMIT):
        faults.count(str(number), 0.0)
    faults.count("0", 0.0)
    faults.count("one more", 0.0)
    assert len(faults) == FAULTS_LIMIT
    assert faults.count("0", 0.0).count == 3
    assert faults.count("1", 0.0) == faults.count("another", 0.0)


@pytest.mark.parametrize("error", [RecursionError(), KeyboardInterrupt(), SystemExit(1)])
def test_whatever_was_raised_has_one(error: BaseException) -> None:
    assert re.fullmatch(r"[0-9a-f]{12}", fingerprint(error))
