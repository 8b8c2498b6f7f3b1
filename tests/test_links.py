"""Rule: over a network that fails, each line comes once and each message is said once; who leaves leaves no run behind."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial
from typing import Any

import pytest
import trio
from cutter import Cutter, open_cutter
from harness import Backend, directive, until
from libraries import BOTH_LIBRARIES, Library
from talk import open_talk

from trio_claude.client import Allow, Approval, Delta, Reconnect, Refused, Result, Session, User, open_session
from trio_claude.client.links import OUTBOX_LIMIT, Said
from trio_claude.journal import PartKind
from trio_claude.server import Server


async def said(server: Server, run: str) -> list[bytes]:
    """Return what the client of a run said, as the journal has it."""
    assert server.runs.journal
    await server.runs.journal.settle()
    parts = await server.runs.journal.parts(run)
    return [line for part in parts if part.kind is PartKind.SAID for line in part.lines]


@BOTH_LIBRARIES
async def test_a_turn_goes_on_behind_each_break(fake: Backend, library: Library) -> None:
    heard: Counter[str] = Counter()
    reconnect = Reconnect(grace=20, on_lost=lambda _: heard.update(["lost"]), on_back=lambda _: heard.update(["back"]))
    pieces = 0

    def cut(cutter: Cutter, token: trio.lowlevel.TrioToken) -> None:
        trio.from_thread.run_sync(cutter.cut, trio_token=token) if library.__name__ == "under_asyncio" else cutter.cut()

    async def program(cutter: Cutter, token: trio.lowlevel.TrioToken) -> Any:
        nonlocal pieces
        async with open_session(meta="T", url=cutter.url, partial=True, reconnect=reconnect) as session:
            text, lines = "", []
            async for line in session.ask(directive("slow", n=60, ms=10)):
                lines.append(line)
                if isinstance(line, Delta):
                    text, pieces = text + line.text, pieces + 1
                    if pieces % 15 == 0:
                        cut(cutter, token)
            return text, lines, await session.end()

    async with fake.serve() as server, open_cutter(server.port) as cutter:
        text, lines, ended = await library(partial(program, cutter, trio.lowlevel.current_trio_token()))
    result = lines[-1]
    assert isinstance(result, Result)
    assert result.text == text
    assert (ended.reason, ended.receipt["survivors"], ended.code) == ("exit", 0, 1000)
    assert heard["lost"] == heard["back"] == cutter.made - 1 == 4


async def test_a_prompt_is_said_once_wherever_the_connection_breaks(fake: Backend) -> None:
    """Cut at random bytes of both directions, before, in and behind prompts."""
    rng = random.Random(11)
    async with fake.serve(journal="memory") as server, open_cutter(server.port) as cutter:
        async with open_session(meta="T", url=cutter.url, reconnect=Reconnect()) as session:
            for number in range(40):
                cutter.up, cutter.down = (
                    (rng.randrange(250, 900), None) if number % 2 else (None, rng.randrange(1, 2500))
                )
                cutter.cut()
                lines = [line async for line in session.ask(directive("text", text=f"answer {number} " + "x" * 200))]
                assert [line.text[:10].rstrip("x ") for line in lines if isinstance(line, Result)] == [
                    f"answer {number}"
                ]
            run = session.started["run"]
            assert (await session.end()).ok
        prompts = [line for line in await said(server, run) if b'"user"' in line]
    assert len(prompts) == 40
    assert cutter.made > 41


async def test_what_is_said_while_there_is_no_connection_is_said_behind_it(fake: Backend) -> None:
    async with fake.serve() as server, open_cutter(server.port) as cutter:
        async with open_session(meta="T", url=cutter.url, reconnect=Reconnect()) as session:
            cutter.open = False
            cutter.cut()
            await trio.sleep(0.05)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.set_model, "claude-haiku-5-5")
                await trio.sleep(0.1)
                cutter.open = True
            lines = [line async for line in session.ask("hello")]
            assert isinstance(lines[-1], Result)


async def test_an_approval_outlives_its_connection(fake: Backend) -> None:
    asked: list[Approval] = []
    async with fake.serve() as server, open_cutter(server.port) as cutter:

        async def decide(approval: Approval) -> Allow:
            asked.append(approval)
            cutter.cut()
            await trio.sleep(0.2)
            return Allow({"command": "echo changed"})

        async with open_session(meta="T", url=cutter.url, on_approval=decide, reconnect=Reconnect()) as session:
            lines = [line async for line in session.ask(directive("bash", cmd="touch asked; ls"))]
            assert "changed" in str([line.said for line in lines if isinstance(line, User)])
    assert len(asked) == 1


async def test_a_run_that_ends_meanwhile_is_told_to_its_end(fake: Backend) -> None:
    async with fake.serve(journal="memory") as server, open_cutter(server.port) as cutter:
        async with open_session(meta="T", url=cutter.url, reconnect=Reconnect()) as session:
            cutter.open = False
            turn = session.ask(directive("slow", n=5, ms=100))
            await anext(turn)
            cutter.cut()
            await until(lambda: len(server.stages) == 1 and not next(iter(server.stages.values())).owned)
            async with open_talk(server) as other:
                await other.say({"type": "gateway", "op": "attach", "run": session.started["run"]})
                await other.result()
                await other.stop("end")
                await until(lambda: bool(fake.ended))
            cutter.open = True
            lines = [line async for line in turn]
            assert isinstance(lines[-1], Result)
            ended = await session._wait_end()
    assert (ended.reason, ended.receipt["survivors"]) == ("exit", 0)


async def test_without_a_way_back_it_ends(fake: Backend) -> None:
    lost: list[str] = []
    async with fake.serve() as server, open_cutter(server.port) as cutter:
        async with open_session(
            meta="T", url=cutter.url, reconnect=Reconnect(grace=0.4, on_lost=lost.append)
        ) as session:
            cutter.open = False
            cutter.cut()
            assert [line async for line in session] == []
            assert session.ended
            assert (session.ended.reason, session.ended.code) == ("", 1006)
            with pytest.raises(ConnectionError):
                await session.interrupt()
        await until(lambda: bool(fake.ended))
    assert len(lost) == 1
    assert fake.ended[0].outcome.reason == "disconnected"


async def test_a_server_that_knows_the_run_no_more_is_believed(fake: Backend) -> None:
    async with fake.serve(journal="none") as server, open_cutter(server.port) as cutter:
        async with open_session(meta="T", url=cutter.url, reconnect=Reconnect()) as session:
            cutter.open = False
            cutter.cut()
            server.runs.stop(session.started["run"], None)
            await until(lambda: bool(fake.ended))
            cutter.open = True
            with pytest.raises(Refused, match="no run"):
                async for _ in session:
                    pass


async def test_who_is_replaced_does_not_come_back(fake: Backend) -> None:
    async with fake.serve() as server, open_session(meta="T", url=server.url, reconnect=Reconnect()) as session:
        async with open_talk(server) as other:
            attach = {"type": "gateway", "op": "attach", "run": session.started["run"], "as": "owner"}
            await other.say(attach)
            assert (await other.event("attached"))["role"] == "owner"
            assert [line async for line in session] == []
            assert session.ended
            assert session.ended.code == 1000
            await other.user("hello")
            await other.result()
            await other.stop("kill")
            await other.event("ended")


@pytest.mark.parametrize("way", ["leave", "cancel", "error"])
async def test_who_leaves_leaves_no_run_behind(fake: Backend, way: str) -> None:
    async def leave(session: Session, scope: trio.CancelScope) -> None:
        async for _ in session.ask(directive("slow", n=500, ms=50)):
            break
        if way == "error":
            raise LookupError
        if way == "cancel":
            scope.cancel()
            await trio.sleep(1)

    async with fake.serve() as server:
        with trio.CancelScope() as scope:
            try:
                async with open_session(meta="T", url=server.url, reconnect=Reconnect()) as session:
                    await leave(session, scope)
            except LookupError:
                assert way == "error"
        with trio.fail_after(3):
            await until(lambda: bool(fake.ended))
    assert fake.ended[0].outcome.receipt.survivors == 0


def test_what_may_be_said_again_is_bounded() -> None:
    said = Said(OUTBOX_LIMIT)
    for number in range(10):
        said.add(str(number) * (OUTBOX_LIMIT // 4))
        assert said.next[0] == str(number)
        said.advance()
    assert len(said._texts) == 4
    said.rewind(8)
    assert said.next[0] == "8"
    with pytest.raises(ConnectionError, match="too much waits"):
        said.add("x" * OUTBOX_LIMIT)
    with pytest.raises(ConnectionError, match="not kept any more"):
        said.rewind(3)
    nothing = Said(0)
    nothing.add("hello")
    nothing.advance()
    assert not nothing._texts
