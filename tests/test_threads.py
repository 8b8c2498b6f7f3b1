"""Rule: what blocks is done beside the loop, and where the system gives no thread it is done all the same."""

from __future__ import annotations

import threading

import pytest
import trio
from harness import Backend, ask, call

from trio_claude.threads import do_apart


async def _no_thread(*_: object, **__: object) -> None:
    raise RuntimeError("can't start new thread")


@pytest.fixture
def no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread is to be had, as where a control group has as many processes as it may."""
    monkeypatch.setattr(trio.to_thread, "run_sync", _no_thread)


async def test_a_thread_does_it() -> None:
    assert await do_apart(threading.get_ident) != threading.get_ident()


async def test_a_thread_is_one_of_those_that_a_limiter_counts() -> None:
    limiter = trio.CapacityLimiter(1)
    assert await do_apart(lambda: limiter.borrowed_tokens, limiter=limiter) == 1
    assert limiter.borrowed_tokens == 0


@pytest.mark.usefixtures("no_thread")
async def test_without_a_thread_it_is_done_here() -> None:
    assert await do_apart(threading.get_ident) == threading.get_ident()


@pytest.mark.parametrize("error", [RuntimeError("its own"), OSError("no")])
async def test_what_it_raises_is_raised_and_it_is_done_once(error: Exception) -> None:
    done = []

    def work() -> None:
        done.append(threading.get_ident())
        raise error

    with pytest.raises(type(error), match=str(error)):
        await do_apart(work)
    assert len(done) == 1


async def test_who_asks_for_history_is_answered_without_a_thread(fake: Backend, request: pytest.FixtureRequest) -> None:
    async with fake.serve(journal="memory", metrics=True) as server:
        assert (await ask(server, "hi")).code == 1000
        run = fake.ended[0].run
        assert server.runs.journal
        await server.runs.journal.settle()
        request.getfixturevalue("no_thread")
        for path in ("/api/runs", f"/api/runs/{run}", f"/api/runs/{run}/lines", "/api/usage", "/metrics"):
            status, _, body = await call(server, path)
            assert (status, bool(body)) == (200, True), path
