"""Rule: one write path; the reader never waits for a write; nothing follows a close; a client that is gone is noticed."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from harness import Backend, connect, directive, head, listen, script_cli, until
from hypothesis import given
from hypothesis import strategies as st
from trio_websocket import ConnectionClosed
from wsproto.frame_protocol import FrameProtocol, Opcode
from wsproto.handshake import H11Handshake

from trio_claude.config import Config
from trio_claude.events import FirstLine
from trio_claude.peer import Heart, Peer, accept
from trio_claude.peer.frames import FRAMES_A_TURN, FrameGuard, close_frame, encode
from trio_claude.peer.library import Socket
from trio_claude.peer.wire import NOTICES_LIMIT, Wire
from trio_claude.server import Server
from trio_claude.turns import Turns
from trio_claude.upgrade import Handshake, Request

SILENT = json.dumps({"prompt": directive("silent"), "meta": "T"})
FLOOD = json.dumps({"prompt": directive("lines", n=2_000_000, size=500), "meta": "T"})


def masked(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    size = len(payload)
    length = bytes((0x80 | size,)) if size < 126 else struct.pack("!BH", 0x80 | 126, size)
    return bytes((opcode | (0x80 if fin else 0),)) + length + b"\0\0\0\0" + payload


@asynccontextmanager
async def raw(server: Server) -> AsyncIterator[trio.SocketStream]:
    """Open a WebSocket by hand; yield its stream behind the head of the answer."""
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        await stream.send_all(head())
        answer = b""
        while b"}" not in answer:
            answer += await stream.receive_some()
        yield stream


async def read_frames(stream: trio.SocketStream) -> list[tuple[Opcode, object]]:
    """Read frames to the end of the stream."""
    protocol, found = FrameProtocol(client=True, extensions=[]), []
    with trio.fail_after(10), contextlib.suppress(trio.BrokenResourceError):
        async for chunk in stream:
            protocol.receive_bytes(chunk)
            found += [(frame.opcode, frame.payload) for frame in protocol.received_frames()]
    return found


@given(st.lists(st.text().map(str.encode), max_size=8), st.integers(0, 70_000))
def test_frames_are_what_a_client_reads(lines: list[bytes], size: int) -> None:
    protocol = FrameProtocol(client=True, extensions=[])
    protocol.receive_bytes(encode([*lines, b"x" * size]))
    frames = list(protocol.received_frames())
    assert [str(frame.payload).encode() for frame in frames if frame.message_finished] == [*lines, b"x" * size]


def test_a_large_frame_has_a_long_head() -> None:
    assert encode([b"x" * 65536])[:10] == b"\x81\x7f" + struct.pack("!Q", 65536)


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5), st.integers(1, 50))
def test_the_guard_counts_any_cut_of_the_stream(payloads: list[bytes], step: int) -> None:
    data = b"".join(masked(1, payload) for payload in payloads)
    guard = FrameGuard(max_message=300, max_frames=1)
    for at in range(0, len(data), step):
        assert guard.feed(data[at : at + step]) == (len(data[at : at + step]), data[at : at + step])
    assert guard.wrong is None


@given(st.binary(max_size=400))
def test_the_guard_takes_any_bytes(data: bytes) -> None:
    guard = FrameGuard(max_message=100, max_frames=3)
    assert guard.feed(data)[0] <= len(data)
    assert guard.wrong is None or guard.wrong.startswith("message ")


@given(st.lists(st.tuples(st.sampled_from([2, 9, 10]), st.binary(max_size=9)), max_size=300), st.integers(1, 700))
def test_of_a_flood_of_pings_few_are_heard_and_of_all_else_everything(
    frames: list[tuple[int, bytes]], step: int
) -> None:
    """Whatever the cuts: what is heard is whole frames in their order, and the last ping is among them."""
    data = b"".join(masked(opcode, payload) for opcode, payload in frames)
    guard, heard, rest = FrameGuard(max_message=100, max_frames=3), b"", b""
    for at in range(0, len(data), step):
        rest += data[at : at + step]
        while rest:
            looked_at, more = guard.feed(rest)
            heard, rest = heard + more, rest[looked_at:]
    protocol = FrameProtocol(client=False, extensions=[])
    protocol.receive_bytes(heard)
    found = [(int(frame.opcode), bytes(frame.payload)) for frame in protocol.received_frames()]  # type: ignore[arg-type]
    assert [one for one in found if one[0] != 9] == [one for one in frames if one[0] != 9]
    pings = [one for one in frames if one[0] == 9]
    assert [one for one in found if one[0] == 9][-1:] == pings[-1:]


def test_a_flood_of_small_frames_is_looked_at_in_turns() -> None:
    ping, pong = masked(9, b""), masked(10, b"")
    guard = FrameGuard(max_message=100, max_frames=3)
    assert guard.feed(pong * 1000) == (FRAMES_A_TURN * len(pong), pong * FRAMES_A_TURN)
    assert guard.feed(ping * 1000 + pong) == (1000 * len(ping) + len(pong), ping + pong)
    assert guard.feed(ping * 16)[1] == ping * 16


def handshake(early: bytes = b"") -> Handshake:
    """Return a handshake that is answered by a word; `early` came with it."""
    return Handshake(Request("GET", "/ws/claude", {}, {}), b"HTTP/1.1 101 come in\r\n\r\n", early)


@asynccontextmanager
async def accepted(early: bytes) -> AsyncIterator[tuple[Peer, socket.socket]]:
    """Yield a client that was let in, and its own end."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        async with accept(ours, handshake(early), "hello", Config(), Heart(Config()), Turns(), 1024) as peer:
            yield peer, theirs


def _set(event: trio.Event, _message: str | bytes) -> None:
    event.set()


async def test_of_messages_in_one_piece_each_waits_for_what_the_one_before_has_set_going() -> None:
    """Else a client that says all at once would stop its session before that has begun."""
    done: list[str] = []
    woken = trio.Event()

    def hear(message: str | bytes) -> None:
        done.append(str(message))
        woken.set()

    async with accepted(masked(1, b"start") + masked(1, b"stop")) as (peer, _):
        peer.listen(hear, lambda: None)
        await woken.wait()
        done.append("begun")
        await until(lambda: "stop" in done)
    assert done == ["start", "begun", "stop"]


async def test_what_comes_behind_a_message_by_itself_waits_for_what_that_has_set_going() -> None:
    done: list[str] = []
    woken = trio.Event()
    async with accepted(b"") as (peer, theirs):

        def hear(message: str | bytes) -> None:
            done.append(str(message))
            if message == "start":
                woken.set()
                theirs.send(masked(1, b"stop"))

        peer.listen(hear, lambda: None)
        for _ in range(20):  # which of two that are ready has its turn first is chance
            woken = trio.Event()
            theirs.send(masked(1, b"start"))
            await woken.wait()
            done.append("begun")
            await until(lambda: done[-1] == "stop")
    assert done == ["start", "begun", "stop"] * 20


async def test_a_client_that_leaves_behind_its_message_has_set_something_going() -> None:
    """Else one that starts a run which is to outlive it, and goes, would have started none."""
    done: list[str] = []
    for _ in range(20):  # which of two that are ready has its turn first is chance
        woken, left = trio.Event(), trio.Event()
        async with accepted(masked(1, b"start") + masked(8, b"")) as (peer, _theirs):
            peer.listen(functools.partial(_set, woken), left.set)
            await woken.wait()
            done.append("left" if left.is_set() else "begun")
    assert done == ["begun"] * 20


@pytest.mark.parametrize("kind", [ValueError, KeyError, trio.BrokenResourceError, trio.ClosedResourceError])
async def test_what_a_listener_raises_is_raised_and_is_no_fault_of_the_library(kind: type[Exception]) -> None:
    """Some of it the library would take for its own, and go on."""
    heard: list[str] = []

    def choke(message: str | bytes) -> None:
        heard.append(str(message))
        raise kind(f"{message!r} is too hot")

    with pytest.RaisesGroup(pytest.RaisesExc(kind, match="soup")), trio.fail_after(5):
        async with accepted(masked(1, b"soup") + masked(1, b"fish")) as (peer, theirs):
            peer.listen(choke, lambda: heard.append("left"))
            try:
                await trio.sleep_forever()
            finally:
                assert theirs.recv(64) == b"HTTP/1.1 101 come in\r\n\r\n\x81\x05hello"
                with pytest.raises(BlockingIOError):
                    theirs.recv(64, socket.MSG_DONTWAIT)  # it hears of the end when what it has set going is over
                theirs.close()
    assert heard == ["soup"]


async def test_what_who_hears_of_the_end_raises_is_raised() -> None:
    def choke() -> None:
        raise ValueError("must not go")

    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="must not go")):
        async with accepted(masked(8, b"")) as (peer, _):
            peer.listen(lambda _message: None, choke)
            await trio.sleep_forever()


async def test_what_the_library_raises_ends_the_connection_and_is_told_as_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def choke(_self: Socket, _event: object) -> None:
        raise RuntimeError("a bug of the library's")

    monkeypatch.setattr(Socket, "_handle_message_event", choke)
    left = trio.Event()
    async with accepted(masked(1, b"soup")) as (peer, theirs):
        peer.listen(lambda _message: None, left.set)
        with trio.fail_after(5):
            await left.wait()
        assert theirs.recv(64) == b"HTTP/1.1 101 come in\r\n\r\n\x81\x05hello"
        assert theirs.recv(64) == b""


async def test_who_is_cancelled_has_not_seen_its_client_leave() -> None:
    left: list[str] = []
    with trio.move_on_after(0.05):
        async with accepted(b"") as (peer, _):
            peer.listen(lambda _message: None, lambda: left.append("left"))
            await trio.sleep_forever()
    assert left == []


async def test_nothing_parses_the_handshake_a_second_time(fake: Backend) -> None:
    """The library would, and keep the parser for as long as the connection: a tenth of what a quiet one costs."""

    def kept() -> int:
        gc.collect()
        return sum(isinstance(one, H11Handshake) for one in gc.get_objects())

    before = kept()
    async with fake.serve() as server, raw(server) as stream:
        await stream.send_all(masked(1, SILENT.encode()))
        await until(lambda: server.runs.statistics().live == 1)
        assert kept() == before
        await stream.send_all(masked(9, b"still heard"))
        assert b"\x8a\x0bstill heard" in await stream.receive_some()


async def test_a_quiet_client_that_answers_pings_stays(fake: Backend) -> None:
    async with fake.serve(ping_interval=0.1, ping_timeout=1, timeout=2.5) as server, connect(server) as socket:
        await socket.send_message(SILENT)
        assert (await listen(socket)).reason.startswith("timed out")


async def test_a_client_that_answers_no_ping_is_dropped(fake: Backend) -> None:
    async with fake.serve(ping_interval=0.2, ping_timeout=0.2) as server, raw(server) as stream:
        await stream.send_all(masked(1, SILENT.encode()))
        await until(lambda: fake.ended, 5)
    assert fake.ended[0].outcome.reason == "disconnected"
    assert fake.ended[0].outcome.receipt.survivors == 0


async def test_a_client_that_reads_nothing_stops_the_cli_and_is_dropped_in_the_end(fake: Backend) -> None:
    async with fake.serve(send_timeout=0.5) as server, raw(server) as stream:
        await stream.send_all(masked(1, FLOOD.encode()))
        began = time.monotonic()
        await until(lambda: fake.ended, 8)
        assert time.monotonic() - began > 0.4
    assert fake.ended[0].outcome.reason == "disconnected"
    assert fake.ended[0].outcome.lines < 1_000_000


async def test_a_client_that_reads_nothing_is_not_dropped_for_want_of_pongs(fake: Backend) -> None:
    async with fake.serve(ping_interval=0.3, ping_timeout=0.3) as server, raw(server) as stream:  # in which it begins
        await stream.send_all(masked(1, FLOOD.encode()))
        await until(lambda: server.runs.statistics().live, 5)
        await trio.sleep(4.5)
        assert not fake.ended


async def test_leaving_is_seen_behind_a_flood_of_pings_and_messages(fake: Backend) -> None:
    """A client that reads nothing, pings, and sends more, then leaves: acted on at once."""
    async with fake.serve() as server, raw(server) as stream:
        await stream.send_all(masked(1, FLOOD.encode()))
        await until(lambda: server.runs.statistics().live, 5)
        await trio.sleep(0.3)
        await stream.send_all(masked(9, b"ping") * 1000 + masked(1, b"{}") * 3)
        await trio.sleep(0.2)
        assert not fake.ended
        left = time.monotonic()
        await stream.send_all(masked(8, b"\x03\xe8"))
        await until(lambda: fake.ended, 5)
        assert time.monotonic() - left < 1
    assert fake.ended[0].outcome.reason == "disconnected"


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (b"\x81\x02{}", 1002),
        (masked(3, b""), 1002),
        (masked(9, b"x" * 126), 1002),
        (masked(0, b"x"), 1002),
        (masked(1, b"\xff"), 1007),
        (masked(1, b"a", fin=False) + masked(1, b"b"), 1002),
        (b"\xf1\x80\0\0\0\0", 1002),
    ],
)
async def test_protocol_errors_get_their_close_code(fake: Backend, frames: bytes, code: int) -> None:
    async with fake.serve() as server, raw(server) as stream:
        await stream.send_all(frames)
        said = await read_frames(stream)
    assert said[-1][0] is Opcode.CLOSE
    assert said[-1][1][0] == code  # type: ignore[index]


async def test_a_ping_gets_its_pong(fake: Backend) -> None:
    async with fake.serve() as server, raw(server) as stream:
        await stream.send_all(masked(9, b"one") + masked(8, b"\x03\xe8"))
        said = await read_frames(stream)
    assert [opcode for opcode, _ in said] == [Opcode.PONG, Opcode.CLOSE]
    assert bytes(said[0][1]) == b"one"  # type: ignore[call-overload]


async def test_a_ping_that_crosses_our_close_ends_nothing_else(fake: Backend) -> None:
    async with fake.serve() as server, connect(server) as other, raw(server) as stream:
        await stream.send_all(masked(1, b"nonsense") + masked(9, b"crossing") * 3)
        said = await read_frames(stream)
        assert [opcode for opcode, _ in said if opcode is Opcode.CLOSE] == [Opcode.CLOSE]
        await other.send_message("nonsense")
        assert (await listen(other)).code == 1008


async def test_a_reset_in_mid_run_ends_the_run(fake: Backend) -> None:
    async with fake.serve() as server, raw(server) as stream:
        await stream.send_all(masked(1, SILENT.encode()))
        await until(lambda: server.runs.statistics().live, 5)
        stream.setsockopt(1, 13, struct.pack("ii", 1, 0))
        await stream.aclose()
        await until(lambda: fake.ended, 5)
    assert fake.ended[0].outcome.reason == "disconnected"


async def test_no_line_is_lost_to_a_slow_reader(fake: Backend) -> None:
    async with fake.serve() as server:
        async with connect(server) as socket:
            await socket.send_message(json.dumps({"prompt": directive("lines", n=20_000, size=300), "meta": "T"}))
            numbers = []
            with pytest.raises(ConnectionClosed):
                while True:
                    frame = json.loads(await socket.get_message())
                    if frame.get("type") == "fake":
                        numbers.append(frame["n"])
                        if frame["n"] % 2000 == 0:
                            await trio.sleep(0.02)
        assert numbers == sorted(numbers)
        assert len(numbers) == len(set(numbers)) == 20_000


@pytest.mark.parametrize(("first", "rest", "whole"), [(0.05, 0.05, True), (2.0, 0.0, False)], ids=["slow", "still"])
async def test_what_a_slow_client_still_takes_is_waited_for_behind_the_close(
    fake: Backend, first: float, rest: float, whole: bool
) -> None:
    said, masked = json.dumps({"prompt": directive("lines", n=30, size=1000), "meta": "T"}).encode(), b"\0\0\0\0"
    async with fake.serve(close_timeout=0.3) as server:
        with trio.socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await slow.connect(("127.0.0.1", server.port))
            await slow.send(head() + b"\x81" + bytes((0x80 | len(said),)) + masked + said)
            came = bytearray()
            with contextlib.suppress(OSError):
                while data := await slow.recv(1500):
                    await trio.sleep(rest if came else first)
                    came += data
    assert (came.count(b'"type":"fake"') == 30) is whole
    assert (b"exit 0; 1 process, 0 left" in came) is whole


PROMPT = [{"prompt": "x", "meta": "T"}]
TALK = [
    {"type": "gateway", "op": "start", "meta": "T"},
    {"type": "user", "message": {"role": "user", "content": "x"}},
]


@pytest.mark.parametrize(("door", "said"), [("claude", PROMPT), ("session", TALK)], ids=["claude", "session"])
async def test_a_last_line_that_a_client_has_not_taken_yet_is_waited_for(
    folder: Path, fake: Backend, monkeypatch: pytest.MonkeyPatch, door: str, said: list[dict[str, object]]
) -> None:
    begin = Wire.__init__

    def narrow(wire: Wire, sock: socket.socket, *more: Any) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        begin(wire, sock, *more)

    monkeypatch.setattr(Wire, "__init__", narrow)
    fake.program = script_cli(folder, "read line; head -c 15000 /dev/zero | tr '\\0' x; echo")
    words = [json.dumps(one).encode() for one in said]
    async with fake.serve(close_timeout=0.1) as server:
        with trio.socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await slow.connect(("127.0.0.1", server.port))
            await slow.send(head(f"/ws/{door}") + b"".join(masked(1, word) for word in words))
            await until(lambda: any(isinstance(event, FirstLine) for event in fake.events))
            with trio.move_on_after(0.5):  # an end that must not come
                await until(lambda: bool(fake.ended))
            assert not fake.ended, "the client has read nothing"
            came = bytearray()
            with contextlib.suppress(OSError):
                while data := await slow.recv(65536):
                    came += data
    assert came.count(b"x" * 15000) == 1
    assert b"exit 0; 1 process, 0 left" in came
    assert fake.ended[0].outcome.reason == "exit"


async def test_writes_that_are_cancelled_are_sent_all_the_same_before_the_close() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        wire = Wire(ours, b"", Config(), Turns())
        parts = [bytes((letter,)) * 2**20 for letter in b"ab"]
        bye = close_frame(1000, "bye")
        async with trio.open_nursery() as nursery:
            wire.start_flush = lambda: nursery.start_soon(wire.flush)
            async with trio.open_nursery() as writers:
                for part in parts:
                    writers.start_soon(wire.send_frames, part)
                    await trio.testing.wait_all_tasks_blocked()
                writers.cancel_scope.cancel()
            wire.post(bye)
            said = await trio.to_thread.run_sync(lambda: b"".join(iter_exactly(theirs, 2 * 2**20 + len(bye))))
        assert said == b"".join(parts) + bye


async def test_what_the_kernel_takes_at_once_is_sent_although_its_sender_was_cancelled() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs, trio.CancelScope() as scope:
        scope.cancel()
        await Wire(ours, b"", Config(), Turns()).send_frames(b"line")
        assert theirs.recv(16) == b"line"


async def test_what_is_given_keeps_its_place_whatever_waits() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    said = [bytes((letter,)) * 2**20 for letter in b"abcd"]
    with ours, theirs:
        wire = Wire(ours, b"", Config(), Turns())
        async with trio.open_nursery() as nursery:
            wire.start_flush = lambda: nursery.start_soon(wire.flush)
            assert wire.idle
            wire.give(said[0])
            assert not wire.idle, "the kernel did not take all of it"
            wire.give(said[1])
            nursery.start_soon(wire.send_frames, said[2])
            await trio.testing.wait_all_tasks_blocked()
            wire.give(said[3])
            came = await trio.to_thread.run_sync(lambda: b"".join(iter_exactly(theirs, 4 * 2**20)))
        assert sorted(came[at] for at in range(0, len(came), 2**20)) == [*b"abcd"]
        assert [came.count(one) for one in said] == [1] * 4, "no frame is torn"
        assert came.startswith(said[0])
        assert wire.idle
        wire.post(close_frame(1000, ""))
        with pytest.raises(trio.ClosedResourceError):
            wire.give(b"late")


async def test_a_large_notice_goes_out_and_what_waits_behind_it_is_bounded() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    large, small = b"\x81\x7f" + b"x" * 16 * NOTICES_LIMIT, b"\x81\x7e" + b"y" * (NOTICES_LIMIT // 4)
    with ours, theirs:
        wire = Wire(ours, b"", Config(), Turns())
        async with trio.open_nursery() as nursery:
            wire.start_flush = lambda: nursery.start_soon(wire.flush)
            wire.post(large)
            wire.post(small)
            said = await trio.to_thread.run_sync(lambda: b"".join(iter_exactly(theirs, len(large + small))))
            assert said == large + small
            await trio.testing.wait_all_tasks_blocked()
            wire.post(large)
            for _ in range(3):
                wire.post(small)
            assert not wire.broken
            wire.post(small)
            assert wire.broken, "the client reads nothing"
            nursery.cancel_scope.cancel()


def iter_exactly(sock: socket.socket, size: int) -> Iterator[bytes]:
    """Yield what comes, until it is `size` bytes or the end."""
    while size and (data := sock.recv(min(size, 65536))):
        size -= len(data)
        yield data
