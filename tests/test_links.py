"""Rule: over a network that fails, each line comes once and each message is said once; who leaves leaves no run behind."""

from __future__ import annotations

import contextlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest
import trio
import trio.testing
from cutter import Cutter, open_cutter
from harness import Backend, directive, until
from libraries import BOTH_LIBRARIES, Library, under_trio
from talk import open_talk
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, TextMessage

from trio_claude.client import (
    Allow,
    Approval,
    Delta,
    Reconnect,
    Refused,
    Result,
    Session,
    User,
    ask,
    open_session,
    sockets,
)
from trio_claude.client.links import OUTBOX_LIMIT, STEADY, Said
from trio_claude.events import RunStarted
from trio_claude.journal import PartKind
from trio_claude.server import Server

LARGE = {"type": "user", "message": {"role": "user", "content": "x" * 16_000_000}}
"""More than a network keeps on its way."""


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
                        while heard["back"] < pieces // 15:  # lines that came before go on meanwhile
                            await anyio.sleep(0.01)
                        await anyio.sleep(1.5 * STEADY)  # so that this connection is one that held
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


@pytest.mark.parametrize("callback", ["on_lost", "on_back"])
async def test_a_callback_that_fails_is_the_programs_error_and_the_session_goes_on(
    fake: Backend, callback: str
) -> None:
    def fail(_said: str) -> None:
        raise ValueError("mine")

    reconnect = Reconnect(**{"grace": 20, callback: fail})
    async with (
        fake.serve() as server,
        open_cutter(server.port) as cutter,
        open_session(meta="T", url=cutter.url, reconnect=reconnect) as session,
    ):
        turn = session.ask(directive("slow", n=50, ms=10))
        await anext(turn)
        cutter.cut()
        with pytest.raises(ValueError, match="mine"):
            async for _ in turn:
                pass
        assert isinstance([line async for line in turn][-1], Result)
        assert (await session.end()).ok


async def test_who_says_something_says_nothing_that_others_add_behind_it(
    fake: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its own cancellation would break another's message, and the connection with it."""
    begun, go, over = trio.Event(), trio.Event(), trio.Event()

    async def send(_socket: sockets.Socket, text: str) -> None:
        begun.set()
        await go.wait()
        if "behind" in text:
            await trio.sleep_forever()

    async def interrupt(session: Session) -> None:
        await session.interrupt()
        over.set()

    async with (
        fake.serve() as server,
        open_session(meta="T", url=server.url) as session,
        trio.open_nursery() as nursery,
    ):
        monkeypatch.setattr(sockets.Socket, "send", send)
        nursery.start_soon(interrupt, session)
        await begun.wait()
        nursery.start_soon(session.say, {"type": "user", "message": {"role": "user", "content": "behind"}})
        await trio.testing.wait_all_tasks_blocked(0.01)
        go.set()
        with trio.fail_after(5):
            await over.wait()
        nursery.cancel_scope.cancel()


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
            assert session.ended.error
            assert session.ended.error.startswith(f"can't reach {cutter.url}: ")
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
        said.forget()
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
    nothing.forget()
    assert not nothing._texts


def test_what_was_said_takes_no_room_from_what_waits() -> None:
    said = Said(OUTBOX_LIMIT)
    said.add("x" * OUTBOX_LIMIT)
    said.advance()
    said.forget()
    for text in ("one", "two"):
        said.add(text)
    assert said.next == "one"


def test_a_message_that_was_not_begun_can_be_taken_back() -> None:
    said = Said(OUTBOX_LIMIT)
    first, second, third = "one", "two", "three"
    for text in (first, second, third):
        said.add(text)
    said.advance()
    said.take_back(first)
    said.take_back(second)
    assert said.next == third
    said.rewind(0)
    assert said.next == first
    with pytest.raises(ConnectionError, match="heard more"):
        said.rewind(7)


# -- what a network can do ----------------------------------------------------------------------------------------------


@BOTH_LIBRARIES
async def test_a_break_that_is_seen_by_who_says_something_first(fake: Backend, library: Library) -> None:
    """While more comes than is read: the library below does not tell its reader then."""

    async def program(url: str, cut: Callable[[], None]) -> Any:
        async with open_session(meta="T", url=url, partial=True, reconnect=Reconnect()) as session:
            turn = session.ask(directive("lines", n=3000, size=2000))
            lines = [await anext(turn)]
            cut()
            for _ in range(3):
                await session.control("set_model", model="claude-haiku-5-5")
            lines += [line async for line in turn]
            return lines

    async with fake.serve(journal="memory") as server, open_cutter(server.port) as cutter:
        token = trio.lowlevel.current_trio_token()
        cut = cutter.cut if library is under_trio else partial(trio.from_thread.run_sync, cutter.cut, trio_token=token)
        with trio.fail_after(30):
            lines = await library(partial(program, cutter.url, cut))
    assert isinstance(lines[-1], Result)
    assert [line.said["n"] for line in lines if "n" in line.said] == list(range(1, 3001))


async def test_a_network_that_is_silent_is_left(fake: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "SILENCE", 0.2)
    lost: list[str] = []
    async with fake.serve() as server, open_cutter(server.port) as cutter:
        async with open_session(meta="T", url=cutter.url, reconnect=Reconnect(on_lost=lost.append)) as session:
            await trio.sleep(0.7)
            assert not lost, "a server that answers pings is there"
            cutter.silent = True
            await until(lambda: bool(lost))
            cutter.silent = False
            assert isinstance([line async for line in session.ask("hello")][-1], Result)
    assert "silent" in lost[0]


async def test_a_message_that_nobody_takes_keeps_no_one_from_coming_back(
    fake: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "SILENCE", 0.2)
    lost: list[str] = []
    async with fake.serve() as server, open_cutter(server.port) as cutter, trio.open_nursery() as nursery:
        async with open_session(meta="T", url=cutter.url, reconnect=Reconnect(on_lost=lost.append)) as session:
            cutter.silent = True
            nursery.start_soon(session.say, LARGE)
            await trio.sleep(4)
            made = cutter.made
            cutter.cut()
            nursery.cancel_scope.cancel()
    assert made > 1
    assert "silent" in lost[0]


@BOTH_LIBRARIES
@pytest.mark.parametrize("way", ["ask", "session"])
async def test_who_is_cancelled_in_a_message_that_nobody_takes_gets_out(
    fake: Backend, library: Library, way: str
) -> None:
    async def program(cutter: Cutter) -> float:
        with anyio.move_on_after(0.5) as scope:
            if way == "ask":
                async with ask("hello", meta="T", url=cutter.url) as answer:
                    cutter.silent = True
                    await answer._socket.send(json.dumps(LARGE))
            async with open_session(meta="T", url=cutter.url) as session:
                cutter.silent = True
                await session.say(LARGE)
        return anyio.current_time() - scope.deadline

    async def free(cutter: Cutter) -> None:
        await trio.sleep(8)
        cutter.cut()

    async with fake.serve() as server, open_cutter(server.port) as cutter, trio.open_nursery() as nursery:
        nursery.start_soon(free, cutter)
        late = await library(partial(program, cutter))
        nursery.cancel_scope.cancel()
    assert late < 3 * sockets.LINGER


async def test_a_message_that_takes_long_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server says nothing, and takes the message in small pieces."""
    monkeypatch.setattr(sockets, "SILENCE", 0.3)
    lost: list[str] = []
    sent = trio.Event()

    async def say(session: Session) -> None:
        await session.say(LARGE)
        sent.set()

    async with slow_server() as url, trio.open_nursery() as nursery:
        async with open_session(meta="T", url=url, reconnect=Reconnect(on_lost=lost.append)) as session:
            nursery.start_soon(say, session)
            await until(lambda: bool(lost) or sent.is_set(), 20)
            assert not lost
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def slow_server() -> AsyncIterator[str]:
    """A server that begins a session, and from then on says nothing and reads slowly."""

    async def serve(stream: trio.SocketStream) -> None:
        protocol = WSConnection(ConnectionType.SERVER)
        protocol.receive_data(await stream.receive_some())
        await stream.send_all(protocol.send(AcceptConnection()))
        started = {"type": "gateway", "event": "started", "run": "r", "session": "s"}
        await stream.send_all(protocol.send(TextMessage(json.dumps(started))))
        with contextlib.suppress(trio.BrokenResourceError):  # the client left
            while await stream.receive_some(65536):
                await trio.sleep(0.02)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        listener.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 65536)
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_a_listener_that_never_answers_does_not_outlast_the_grace(
    fake: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "CONNECT_TIMEOUT", 0.3)
    async with fake.serve() as server, open_cutter(server.port) as cutter:
        async with open_session(meta="T", url=cutter.url, reconnect=Reconnect(grace=0.5)) as session:
            cutter.silent = True
            cutter.cut()
            with trio.fail_after(5):
                assert [line async for line in session] == []


async def test_an_end_that_is_heard_behind_a_second_break(fake: Backend) -> None:
    async with fake.serve(journal="memory") as server, open_cutter(server.port) as cutter:
        async with open_session(meta="T", url=cutter.url, reconnect=Reconnect()) as session:
            for _ in range(12):
                assert isinstance([line async for line in session.ask("hello")][-1], Result)
            cutter.cut()
            assert isinstance([line async for line in session.ask("hello")][-1], Result)
            cutter.open = False
            cutter.cut()
            async with open_talk(server) as other:
                await other.say({"type": "gateway", "op": "attach", "run": session.started["run"], "as": "owner"})
                await other.event("attached")
                await other.stop("end")
                await until(lambda: bool(fake.ended))
            cutter.open = True
            ended = await session._wait_end()
    assert (ended.reason, ended.receipt["survivors"]) == ("exit", 0)


async def test_what_others_said_meanwhile_is_not_taken_for_ones_own(fake: Backend) -> None:
    async with fake.serve(journal="memory") as server, open_cutter(server.port) as cutter:
        async with open_session(meta="T", url=cutter.url, reconnect=Reconnect()) as session:
            cutter.open = False
            cutter.cut()
            async with open_talk(server) as other:
                await other.say({"type": "gateway", "op": "attach", "run": session.started["run"], "as": "owner"})
                await other.event("attached")
                await other.user("its own")
                await other.result()
                await other.say({"type": "gateway", "op": "detach"})
                await until(lambda: other.code is not None)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.say, {"type": "user", "message": {"role": "user", "content": "MINE"}})
                await trio.sleep(0.05)
                cutter.open = True
            results = 0
            async for line in session:
                results += isinstance(line, Result)
                if results == 2:
                    break
            assert any(b"MINE" in line for line in await said(server, session.started["run"]))


async def test_a_gap_is_counted(fake: Backend) -> None:
    """Lines that nobody has are not asked for again, and none comes twice."""
    gaps: list[tuple[int, int]] = []

    def hear(event: dict[str, Any]) -> None:
        if event["event"] == "gap":
            gaps.append((event["from"], event["to"]))

    async with fake.serve(journal="none", replay_bytes=200_000) as server, open_cutter(server.port) as cutter:
        reconnect = Reconnect()
        async with open_session(meta="T", url=cutter.url, reconnect=reconnect, on_event=hear) as session:
            cutter.open = False
            cutter.cut()
            async with open_talk(server) as other:
                await other.say({"type": "gateway", "op": "attach", "run": session.started["run"], "as": "owner"})
                await other.user(directive("lines", n=3000, size=500))
                await other.result()
                await other.say({"type": "gateway", "op": "detach"})
                await until(lambda: other.code is not None)
            cutter.open = True
            await until(lambda: bool(gaps))
            numbers: list[int] = []
            async for line in session:
                numbers += [line.said["n"]] if "n" in line.said else []
                if isinstance(line, Result):
                    break
            cutter.cut()
            assert isinstance([line async for line in session.ask("hello")][-1], Result)
            link = session._link
            assert link._lines == server.stages[session.started["run"]].number
    assert len(gaps) == 1
    assert numbers == list(range(numbers[0], 3001))


@pytest.mark.parametrize("pause", [None, 0.01])
async def test_who_leaves_while_coming_back_ends_the_run(fake: Backend, pause: float | None) -> None:
    """Also one that has not seen yet that its connection is broken."""
    async with fake.serve() as server, open_cutter(server.port) as cutter:
        async with open_session(meta="T", url=cutter.url, reconnect=Reconnect()):
            cutter.cut()
            if pause:
                await trio.sleep(pause)
        with trio.fail_after(2):
            await until(lambda: bool(fake.ended))


@BOTH_LIBRARIES
async def test_who_gives_up_while_a_run_is_started_leaves_none(fake: Backend, library: Library) -> None:
    async def program(url: str) -> bool:
        with anyio.CancelScope() as scope:
            async with open_session(meta="T", url=url, reconnect=Reconnect(), on_event=lambda _: scope.cancel()):
                pass
        return scope.cancelled_caught

    async with fake.serve() as server:
        assert await library(partial(program, server.url))
        await until(lambda: server.runs.statistics().live == 0)


async def test_who_gives_up_before_the_handshake_is_done_asks_for_no_run(fake: Backend) -> None:
    async with fake.serve() as server, open_cutter(server.port) as cutter, trio.open_nursery() as nursery:
        cutter.silent = True

        async def program() -> None:
            async with open_session(meta="T", url=cutter.url, reconnect=Reconnect()):
                pass

        nursery.start_soon(program)
        await until(lambda: cutter.made)
        nursery.cancel_scope.cancel()
        cutter.silent = False
        with trio.CancelScope(shield=True):
            await until(lambda: not nursery.child_tasks)
            async with ask("hello", meta="T", url=server.url) as answer:
                assert [line async for line in answer]
    assert len([event for event in fake.events if isinstance(event, RunStarted)]) == 1


@BOTH_LIBRARIES
async def test_what_was_cancelled_is_not_said_later(fake: Backend, library: Library) -> None:
    async def program(url: str) -> Any:
        async with open_session(meta="T", url=url) as session:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await session.say({"type": "user", "message": {"role": "user", "content": "CANCELLED"}})
            assert isinstance([line async for line in session.ask("hello")][-1], Result)
            return session.started["run"]

    async with fake.serve(journal="memory") as server:
        run = await library(partial(program, server.url))
        assert not any(b"CANCELLED" in line for line in await said(server, run))


async def test_a_server_that_fails_behind_attached_is_not_asked_for_ever(fake: Backend) -> None:
    async with fake.serve() as server, open_cutter(server.port) as cutter:
        async with open_session(meta="T", url=cutter.url, reconnect=Reconnect(grace=0.6)) as session:
            async with trio.open_nursery() as nursery:

                async def cut_all() -> None:
                    while True:
                        await trio.sleep(0.02)
                        cutter.cut()

                nursery.start_soon(cut_all)
                with trio.fail_after(5):
                    assert [line async for line in session] == []
                nursery.cancel_scope.cancel()
        assert cutter.made < 20
