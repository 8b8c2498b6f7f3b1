"""Rule: each peer is called when it is due, late by a tick at most, and no more once it is gone."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from trio_claude.config import Config
from trio_claude.peer.heart import TICKS, Heart


class Patient:
    """Wants to be called at the times that it is given, one after the other."""

    def __init__(self, *wanted: float) -> None:
        self.wanted = list(wanted)
        self.called: list[float] = []

    def beat(self, now: float) -> float:
        self.called.append(now)
        return trio.current_time() + (self.wanted.pop(0) if self.wanted else 1000)


@pytest.fixture
def config() -> Config:
    return Config(ping_interval=1, ping_timeout=2)


async def test_each_is_called_when_it_is_due(config: Config, autojump_clock: MockClock) -> None:
    heart, began = Heart(config), trio.current_time()
    first, second, gone = Patient(3), Patient(), Patient()
    heart.add(first, began + 1)
    heart.add(second, began + 2)
    heart.add(gone, began + 2)
    heart.remove(gone)
    with trio.move_on_after(10):
        await heart.serve()
    tick = 1 / TICKS
    assert [round(at - began, 6) for at in first.called] == [
        pytest.approx(1, abs=2 * tick),
        pytest.approx(4, abs=3 * tick),
    ]
    assert [round(at - began, 6) for at in second.called] == [pytest.approx(2, abs=2 * tick)]
    assert gone.called == []


async def test_nobody_is_called_early(config: Config, autojump_clock: MockClock) -> None:
    heart, began = Heart(config), trio.current_time()
    patients = [Patient(0.013 * number) for number in range(50)]
    for number, patient in enumerate(patients):
        heart.add(patient, began + number / 30)
    with trio.move_on_after(5):
        await heart.serve()
    for number, patient in enumerate(patients):
        assert 0 <= patient.called[0] - began - number / 30 <= 2 / TICKS
        assert patient.called[1] >= patient.called[0] + 0.013 * number


async def test_without_a_peer_it_sleeps(config: Config, autojump_clock: MockClock) -> None:
    heart, patient = Heart(config), Patient()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(heart.serve)
        await trio.sleep(1000)
        heart.add(patient, trio.current_time() + 1)
        await trio.sleep(2)
        assert len(patient.called) == 1
        heart.remove(patient)
        heart.remove(patient)
        nursery.cancel_scope.cancel()
