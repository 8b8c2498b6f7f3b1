"""Rule: each turn is charged once, whoever leaves when; nobody is charged for what others used."""

from __future__ import annotations

import json

import pytest

from trio_claude.metering import DELTA_TOKENS, ID_LENGTH, MESSAGES, PRICE, SLACK, TEXT_BYTES, Meter
from trio_claude.stream_json import DELTA, Sign, Spent


def result(tokens: int, dollars: float, turn: int = 0) -> Sign:
    return Sign(result=True, spent=Spent(tokens, dollars), turn_tokens=turn)


def message(name: str, tokens: int, text: str = "") -> bytes:
    usage = {"input_tokens": tokens, "output_tokens": 0}
    return json.dumps({"type": "assistant", "message": {"id": name, "usage": usage, "content": text}}).encode()


def test_a_session_counts_on_and_is_charged_turn_by_turn() -> None:
    meter = Meter(Spent(), None)
    assert [meter.result(result(*whole)) for whole in ((10, 0.5), (30, 2.0), (30, 2.0))] == [
        Spent(10, 0.5), Spent(20, 1.5), Spent(0, 0.0),
    ]  # fmt: skip
    assert meter.charged == Spent(30, 2.0)
    assert meter.whole == Spent(30, 2.0)


def test_a_run_that_goes_on_is_not_charged_for_what_was_before() -> None:
    meter = Meter(Spent(30, 2.0), None)
    assert meter.result(result(40, 2.5)) == Spent(10, 0.5)


def test_where_nobody_knows_what_was_before_the_turn_tells() -> None:
    meter = Meter(None, None)
    assert meter.whole is None
    assert meter.result(result(100, 2.0, turn=25)) == Spent(25, 0.5)
    assert meter.result(result(150, 3.0, turn=50)) == Spent(50, 1.0)
    assert Meter(None, None).result(result(0, 1.0)) == Spent(0, 1.0)


def test_where_nobody_knows_what_was_before_the_turn_tells_its_dollars_too() -> None:
    """Of two models a token has two prices, so that its share of the tokens says little."""
    told = Sign(result=True, spent=Spent(181, 2.0), turn_tokens=64, turn_dollars=0.25)
    assert Meter(None, None).result(told) == Spent(64, 0.25)
    assert Meter(None, None).result(Sign(result=True, spent=Spent(0, 1.0), turn_dollars=0.0)) == Spent(0, 1.0)


def test_a_session_whose_cli_was_killed_and_forgot_is_charged_all_the_same() -> None:
    meter = Meter(Spent(5000, 2.0), None)
    assert meter.result(result(0, 0.0)) == Spent(), "which says nothing of what is known"
    assert meter.result(result(100, 1.0, turn=100)) == Spent(100, 1.0)
    assert meter.result(result(150, 1.5, turn=50)) == Spent(50, 0.5)
    assert meter.whole == Spent(150, 1.5)
    assert Meter(Spent(5000, 2.0), None).result(result(4000, 2.0, turn=1000)) == Spent(1000, 0.5), "it had saved some"
    assert Meter(Spent(5000, 2.0), None).result(result(100, 1.0)) == Spent(100, 1.0), "of a turn that does not tell"


def test_a_result_without_numbers_changes_nothing() -> None:
    meter = Meter(Spent(), None)
    meter.result(result(10, 1.0))
    assert meter.result(result(0, 0.0)) == Spent(0, 0.0)
    assert meter.result(result(12, 1.5)) == Spent(2, 0.5)


def test_who_leaves_before_the_result_is_charged_for_what_was_seen() -> None:
    meter = Meter(Spent(), None)
    meter.hear([message("a", 1000), message("a", 1000), message("b", 500)])
    used = meter.rest()
    assert 1500 <= used.tokens < 1700
    assert used.dollars == pytest.approx(used.tokens * PRICE)
    assert meter.rest() == Spent()


def test_what_a_result_has_told_is_not_reckoned_again() -> None:
    meter = Meter(Spent(), None)
    meter.hear([DELTA + b"}" for _ in range(10)])
    meter.hear([message("a", 1000)])
    meter.result(result(1000, 3.0))
    assert meter.rest() == Spent()
    meter.hear([DELTA + b"}" for _ in range(10)])
    used = meter.rest()
    assert used.tokens == 10 * DELTA_TOKENS
    assert used.dollars == pytest.approx(used.tokens * 3.0 / 1000), "by the price that was seen"


def test_of_messages_without_end_few_are_kept_and_all_are_charged() -> None:
    meter = Meter(Spent(), None)
    said = [message(f"{number}" + "x" * 1000, 1000) for number in range(3 * MESSAGES)]
    meter.hear(said)
    assert len(meter._messages) == MESSAGES
    assert max(map(len, meter._messages)) == ID_LENGTH
    assert meter.rest().tokens == sum(1000 + len(line) // TEXT_BYTES for line in said)
    assert meter.rest() == Spent()
    meter.hear(said)
    meter.result(result(10_000_000, 3.0))
    assert meter.rest() == Spent()


def test_a_message_that_goes_on_beside_many_others_is_charged_once() -> None:
    meter = Meter(Spent(), None)
    piece = message("long", 1000)
    for number in range(3 * MESSAGES):
        if number % (MESSAGES // 2) == 0:
            meter.hear([piece])
        meter.hear([message(f"{number}", 0)])
    others = sum(len(message(f"{number}", 0)) // TEXT_BYTES for number in range(3 * MESSAGES))
    assert meter.rest().tokens == 1000 + 6 * (len(piece) // TEXT_BYTES) + others


def test_a_run_is_charged_within_what_it_found_left() -> None:
    """A result is only a line that one of the run's processes wrote."""
    meter = Meter(Spent(), 0.5)
    assert meter.result(result(1, 1e6)).dollars == 0.5 * SLACK
    assert meter.result(result(2, 2e6)).dollars == 0
