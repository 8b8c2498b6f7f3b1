"""Rule: a program that has left its run, or died, comes back to it in Python too, and who only watches disturbs nobody."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import pytest
import trio
from cutter import open_cutter
from harness import Backend, directive, until
from libraries import BOTH_LIBRARIES, Library

from trio_claude.client import (
    Allow,
    Approval,
    ConnectFailed,
    Deny,
    Question,
    Reconnect,
    Refused,
    Result,
    Session,
    attach_session,
    open_session,
)
from trio_claude.server import Server

STREAM = directive("lines", n=400, rate=400)
ASKS = directive("bash", cmd="touch made-by-a-tool; ls")


def number(line: Any) -> list[int]:
    return [line.said["n"]] if "n" in line.said else []


async def left(url: str, prompt: str, lines: int, on_approval: Any = None) -> tuple[str, int, list[int]]:
    """Begin a run, take some lines of it and leave; return its id, where this program is and what it has seen."""
    seen: list[int] = []
    asks = {"on_approval": on_approval} if on_approval else {}
    async with open_session(meta="T", url=url, reconnect=Reconnect(grace=20), **asks) as session:
        async for line in session.ask(prompt):
            seen += number(line)
            if len(seen) >= lines:
                break
        ended = await session.detach()
        assert (ended.reason, ended.code, session.role) == ("", 1000, "owner")
        return session.run, session.after, seen


async def end_all(server: Server) -> None:
    await until(lambda: server.runs.statistics().live == 0)


@BOTH_LIBRARIES
async def test_a_run_that_was_left_goes_on_and_each_line_comes_once(fake: Backend, library: Library) -> None:
    async def program(url: str) -> Any:
        run, after, seen = await left(url, STREAM, 50)
        async with attach_session(run, after=after, url=url) as session:
            assert (session.run, session.role, session.started["from"]) == (run, "owner", after + 1)
            async for line in session:
                seen += number(line)
                if isinstance(line, Result):
                    break
            assert session.after > after + 300
            again = [line async for line in session.ask("hello")]
            assert isinstance(again[-1], Result)
            assert session.id
            return seen, await session.end()

    async with fake.serve() as server:
        seen, ended = await library(partial(program, server.url))
    assert seen == list(range(1, 401))
    assert (ended.reason, ended.code, ended.receipt["survivors"]) == ("exit", 1000, 0)
    assert [event.outcome.reason for event in fake.ended] == ["exit"]


@BOTH_LIBRARIES
async def test_leaving_a_run_that_was_come_to_ends_it(fake: Backend, library: Library) -> None:
    async def program(url: str) -> None:
        run, after, _ = await left(url, STREAM, 5)
        async with attach_session(run, after=after, url=url) as session:
            await anext(session)

    async with fake.serve() as server:
        await library(partial(program, server.url))
        await until(lambda: fake.ended)
    assert fake.ended[0].outcome.receipt.survivors == 0
    assert fake.ended[0].seconds < 5


async def test_a_run_that_was_come_to_can_be_left_again(fake: Backend) -> None:
    async with fake.serve() as server:
        run, after, _ = await left(server.url, STREAM, 5)
        async with attach_session(run, after=after, url=server.url) as session:
            await anext(session)
            await session.detach()
            assert session.ended
            assert session.ended.reason == ""
        assert run in server.stages
        with pytest.raises(ConnectionError):
            await session.interrupt()
        async with attach_session(run, after=session.after, url=server.url) as session:
            assert (await session.kill()).reason == "stopped"


@BOTH_LIBRARIES
async def test_a_viewer_sees_all_is_asked_nothing_and_disturbs_nobody(fake: Backend, library: Library) -> None:
    async def watch(url: str, run: str, seen: list[Any]) -> None:
        async def decide(_approval: Approval) -> Allow | Deny:
            raise AssertionError("a viewer is asked")

        async with attach_session(run, viewer=True, url=url, on_approval=decide) as session:
            assert session.role == "viewer"
            with pytest.raises(Refused) as refused:
                await session.control("set_model", model="haiku")
            assert refused.value.code == "not-allowed"
            async for line in session:
                seen.append(line)
                if isinstance(line, Result):
                    break

    seen: list[Any] = []
    async with fake.serve() as server:
        async with open_session(meta="T", url=server.url, on_approval=allowed) as session:
            turn = session.ask(directive("slow", n=20, ms=10) + ASKS)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(library, partial(watch, server.url, session.run, seen))
                lines = [line async for line in turn]
            assert (await session.end()).ok
    assert len(seen) == len(lines) + 1
    assert [line.subtype for line in seen if isinstance(line, Question)] == ["can_use_tool"]


async def allowed(_approval: Approval) -> Allow | Deny:
    return Allow()


@BOTH_LIBRARIES
async def test_what_was_asked_before_is_asked_of_who_comes(fake: Backend, library: Library) -> None:
    async def program(url: str) -> Any:
        asked: list[Approval] = []

        async def think(approval: Approval) -> Allow | Deny:
            asked.append(approval)
            await anyio.sleep_forever()
            raise AssertionError

        async def decide(approval: Approval) -> Allow | Deny:
            asked.append(approval)
            return Allow()

        async with open_session(meta="T", url=url, reconnect=Reconnect(grace=20), on_approval=think) as session:
            await anext(session.ask(ASKS))
            while not asked:
                await anyio.sleep(0.01)
            run, after = session.run, session._link.lines
            await session.detach()
        async with attach_session(run, after=after, url=url, on_approval=decide) as session:
            lines = [line async for line in session.ask("hello") if not isinstance(line, Result)]
            await session.kill()
        return asked, lines

    async with fake.serve() as server:
        asked, lines = await library(partial(program, server.url))
    assert [approval.input["command"] for approval in asked] == ["touch made-by-a-tool; ls"] * 2
    assert asked[0].id == asked[1].id
    assert "made-by-a-tool" in str(lines)


@BOTH_LIBRARIES
async def test_what_was_settled_long_ago_is_not_waited_for(fake: Backend, library: Library) -> None:
    """The lines are told again, the question among them, and that its tool has run."""

    async def program(url: str) -> Any:
        cancelled = anyio.Event()

        async def think(_approval: Approval) -> Allow | Deny:
            try:
                await anyio.sleep_forever()
            finally:
                cancelled.set()
            raise AssertionError

        async with open_session(meta="T", url=url, reconnect=Reconnect(grace=20), on_approval=allowed) as session:
            assert [line async for line in session.ask(ASKS)]
            await session.detach()
        async with attach_session(session.run, url=url, on_approval=think) as again:
            with anyio.fail_after(10):
                await cancelled.wait()
            await again.kill()

    async with fake.serve() as server:
        await library(partial(program, server.url))


async def test_what_keeps_a_program_out(fake: Backend) -> None:
    async def come(run: str, **more: Any) -> Session:
        async with attach_session(run, **{"url": server.url, **more}) as session:
            return session

    async with fake.serve() as server:
        run, after, _ = await left(server.url, STREAM, 5)
        for name, more, code in (
            ("0" * 32, {}, "not-open"),
            (run, {"after": 10**6}, "ahead"),
            (run, {"after": 10**6, "reconnect": Reconnect(grace=5)}, "ahead"),
            (run, {"after": -1}, "bad-message"),
        ):
            with pytest.raises(Refused) as refused:
                await come(name, **more)
            assert refused.value.code == code
        with pytest.raises(ConnectFailed):
            await come(run, url="http://127.0.0.1:1")
        assert not fake.ended, "who was kept out ends nothing"
        assert (await come(run, after=after)).started["role"] == "owner"
        await end_all(server)


async def test_who_gives_up_before_it_is_there_ends_nothing(fake: Backend) -> None:
    async with fake.serve() as server, open_cutter(server.port) as cutter:
        run, after, _ = await left(server.url, STREAM, 5)
        cutter.silent = True
        with trio.move_on_after(0.5) as scope:
            async with attach_session(run, after=after, url=cutter.url):
                pytest.fail("there")
        assert scope.cancelled_caught
        assert not fake.ended
        async with attach_session(run, after=after, url=server.url) as session:
            await session.kill()


async def test_a_session_without_a_grace_stays_where_it_is(fake: Backend) -> None:
    async with fake.serve() as server, open_session(meta="T", url=server.url) as session:
        with pytest.raises(Refused, match="without reconnect"):
            await session.detach()
        lines = [line async for line in session.ask("hello")]
        assert isinstance(lines[-1], Result)
        async with attach_session(session.run, url=server.url) as taken:
            with pytest.raises(Refused) as refused:
                await taken.detach()
            assert refused.value.code == "not-allowed"
            assert [line async for line in taken.ask("hello")][-1]
            assert (await taken.end()).ok


async def test_a_run_that_is_over_is_told_again(fake: Backend) -> None:
    async with fake.serve(journal="memory") as server:
        async with open_session(meta="T", url=server.url) as session:
            lines = [line async for line in session.ask("hello")]
            assert (await session.end()).ok
        async with attach_session(session.run, after=1, url=server.url) as again:
            assert (again.role, again.started["ended"]) == ("viewer", True)
            told = [line async for line in again]
        assert again.ended
        assert (again.ended.reason, told) == ("exit", lines[1:])
        with pytest.raises(ConnectionError):
            await again.interrupt()


async def test_who_has_come_to_a_run_comes_back_to_it(fake: Backend) -> None:
    states: list[str] = []
    reconnect = Reconnect(grace=20, on_lost=lambda _: states.append("lost"), on_back=lambda _: states.append("back"))
    async with fake.serve() as server, open_cutter(server.port) as cutter:
        run, after, seen = await left(server.url, STREAM, 20)
        async with attach_session(run, after=after, url=cutter.url, reconnect=reconnect) as session:
            async for line in session:
                seen += number(line)
                if len(seen) in (100, 200):
                    cutter.cut()
                if isinstance(line, Result):
                    break
            assert [line async for line in session.ask("hello")][-1]
            assert (await session.end()).ok
    assert seen == list(range(1, 401))
    assert states == ["lost", "back"] * 2
