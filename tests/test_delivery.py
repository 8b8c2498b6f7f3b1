"""Rule: no more is waited for once all is read and delivered, or once it has been quiet for a while. On virtual time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from trio_claude.delivery import DRAIN_IDLE, DRAIN_LIMIT, Delivery


async def seconds(wait: Callable[[], Awaitable[None]]) -> float:
    began = trio.current_time()
    await wait()
    return trio.current_time() - began


async def test_what_is_read_is_not_waited_for(autojump_clock: object) -> None:
    delivery = Delivery()
    delivery.end_pipe()
    assert await seconds(delivery.wait_over) == pytest.approx(DRAIN_IDLE)
    delivery.end_pipe()
    assert await seconds(delivery.wait_over) == 0


@pytest.mark.parametrize("over", [False, True])
async def test_what_stirs_is_waited_for_until_the_limit(autojump_clock: object, over: bool) -> None:
    delivery = Delivery()

    async def stir() -> None:
        while True:
            await trio.sleep(DRAIN_IDLE / 2)
            delivery.stirs += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stir)
        waited = await seconds(delivery.wait_over if over else delivery.wait_quiet)
        nursery.cancel_scope.cancel()
    assert waited == pytest.approx(DRAIN_LIMIT, abs=2 * DRAIN_IDLE)


async def test_what_is_under_way_is_waited_for_without_a_limit(autojump_clock: object) -> None:
    delivery = Delivery()

    async def deliver() -> None:
        with delivery:
            await trio.sleep(60)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(deliver)
        await trio.testing.wait_all_tasks_blocked()
        assert await seconds(delivery.wait_over) == pytest.approx(60, abs=2 * DRAIN_IDLE)
