"""Rule: a head is answered, refused with the right status, or handed over rewritten; nothing else gets through."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from pathlib import Path

import pytest
import trio
from harness import UPGRADE, Backend, ask, get, head
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_claude.config import Config
from trio_claude.entrance import check_host, check_origin
from trio_claude.errors import HttpRefusal
from trio_claude.server import Server
from trio_claude.upgrade import ANSWER_RATE, Request, Response, Site, check_upgrade, json_response, serve_http


async def exchange(server: Server, data: bytes, *, eof: bool = True) -> bytes:
    """Send bytes and read to the end."""
    stream = await trio.open_tcp_stream("127.0.0.1", server.port)
    async with stream:
        await stream.send_all(data)
        if eof:
            await stream.send_eof()
        answer = b""
        with trio.fail_after(10), contextlib.suppress(trio.BrokenResourceError):
            async for chunk in stream:
                answer += chunk
        return answer


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (head(), 101),
        (head(path="/ws/claude?frames=verbatim"), 101),
        (head(path="/ws/claude?frames=message"), 101),
        (head(path="/ws/claude?frames=Verbatim"), 400),
        (head(path="/ws/claude?frames="), 400),
        (head(path="/ws/session?frames=of-that-door-only"), 101),
        (head(origin="http://localhost:3000"), 101),
        (head(host="127.0.0.1"), 101),
        (head(host="[::1]:3000"), 101),
        (head(path="/elsewhere"), 404),
        (head(upgrade=None, connection=None), 426),
        (head(origin="http://evil.example"), 403),
        (head(origin="http://localhost:3001"), 403),
        (head(origin="https://localhost:3000"), 403),
        (head(origin="null"), 403),
        (head(host="evil.example"), 403),
        (head(host="localhost.evil.example"), 403),
        (head(host="b\xfccher.example"), 403),
        (head(host="xn--\xff.example"), 403),
        (head(host=None), 400),
        (head(method="POST"), 400),
        (head(connection="keep-alive"), 400),
        (head(sec_websocket_version="8"), 426),
        (head(sec_websocket_key="short"), 400),
        (head(sec_websocket_key=None), 400),
        (head(sec_websocket_protocol="a, b\xff"), 400),
        (head(connection="Upgrade, \xff"), 101),
        (head(sec_websocket_extensions="permessage-deflate; \xff"), 101),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (b"GET /ws-demo.html HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi", 405),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 70000\r\n\r\n" + b"x" * 70000, 413),
        (head(content_length="0"), 101),
        (head(content_length="6"), 400),
        (head(transfer_encoding="chunked"), 400),
        (
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (head().replace(b"HTTP/1.1", b"HTTP/1.0"), 426),
        (head(path="/healthz").replace(b"HTTP/1.1", b"HTTP/1.0"), 200),
        (b"GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (b"GET HTTPS://LOCALHOST:3000?x=1 HTTP/1.1\r\nHost: other\r\n\r\n", 200),
        (head(path="http://localhost:3000/ws/claude", host="other", origin="http://localhost:3000"), 101),
        (head(path="http://evil.example/ws/claude"), 403),
        (head(path="http://localhost@evil.example/ws/claude"), 400),
        (head(path="ftp://localhost/ws/claude"), 400),
        (b"GET http:///healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET http://localhost#/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 20000 + b"\r\n\r\n", 431),
        (b"\x16\x03\x01\x02\x00garbage\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"HEAD x HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"HEAD /nope HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"HEAD / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 20000 + b"\r\n\r\n", 431),
    ],
)
async def test_each_head_gets_its_status(fake: Backend, data: bytes, expected: int) -> None:
    async with fake.serve() as server:
        assert status(await exchange(server, data)) == expected


async def test_a_shape_that_there_is_not_is_refused_by_what_there_is(fake: Backend) -> None:
    async with fake.serve() as server:
        answer = await exchange(server, head(path="/ws/claude?frames=XYZ"))
    assert status(answer) == 400
    told = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert told == {"error": "frames must be message or verbatim", "code": "bad-query"}


async def test_who_waits_for_it_is_told_to_go_on(fake: Backend) -> None:
    asks = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    async with fake.serve() as server, await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        await stream.send_all(asks)
        with trio.fail_after(2):
            assert status(bytes(await stream.receive_some())) == 100
            await stream.send_all(b"hi")
            assert status(bytes(await stream.receive_some())) == 405


async def test_an_answer_that_is_on_its_way_is_not_cut_by_a_drain(fake: Backend) -> None:
    async with fake.serve() as server, trio.open_nursery() as nursery:
        with trio.socket.socket() as sock:
            sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
            await sock.connect(("127.0.0.1", server.port))
            await sock.send(b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = await sock.recv(4096)
            nursery.start_soon(server.drain)
            await wait_all_tasks_blocked(0.05)
            while chunk := await sock.recv(65536):
                answer += chunk
    head_, _, body = answer.partition(b"\r\n\r\n")
    assert len(body) == int(head_.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])


async def test_only_our_subprotocol_is_echoed(fake: Backend) -> None:
    async with fake.serve() as server:
        answer = await exchange(server, head(sec_websocket_protocol="other, trio-claude.v1, bearer.c2VjcmV0"))
        assert b"sec-websocket-protocol: trio-claude.v1\r\n" in answer.lower()
        assert b"bearer" not in answer
        assert b"websocket-protocol" not in (await exchange(server, head(sec_websocket_protocol="other"))).lower()


async def test_frames_sent_with_the_handshake_are_not_lost(fake: Backend) -> None:
    frame = b"\x81\x82\0\0\0\0{}"
    async with fake.serve() as server:
        answer = await exchange(server, head() + frame, eof=False)
    assert b"prompt is missing" in answer


async def test_a_slow_head_is_ended(fake: Backend) -> None:
    async with fake.serve(head_timeout=0.2) as server:
        assert status(await exchange(server, b"GET / HT", eof=False)) == 408


async def test_a_silent_client_is_ended(fake: Backend) -> None:
    async with fake.serve(head_timeout=0.2) as server:
        assert status(await exchange(server, b"", eof=False)) == 408


async def test_requests_are_kept_alive_and_pipelined(fake: Backend) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with fake.serve() as server:
        assert (await exchange(server, request * 3)).count(b'{"ok": true}') == 3


async def test_who_pipelines_takes_turns_with_others() -> None:
    """All of the requests are there at once; to answer them must not hold the loop."""
    ours, theirs = socket.socketpair()
    order: list[str] = []

    async def answer(_request: Request) -> Response:
        order.append("request")
        return json_response(200, {})

    async def be_another() -> None:
        for _ in range(100):
            order.append("another")
            await trio.lowlevel.checkpoint()

    with ours, theirs:
        theirs.setblocking(False)
        ours.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
        ours.shutdown(socket.SHUT_WR)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(be_another)
            assert await serve_http(theirs, Site(answer, frozenset()), Config()) is None
    assert order.count("request") == 100
    assert "request,request,request" not in ",".join(order[:150])


GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def taken(answer: Response, rate: int, *, route: float = 0.0) -> tuple[bytes, float]:
    """Ask for something that a route takes so many seconds for; return what has come to who reads at a rate, and when."""
    ours, theirs = socket.socketpair()
    came = bytearray()

    async def find(_request: Request) -> Response:
        await trio.sleep(route)
        return answer

    async def read() -> None:
        while True:
            await trio.sleep(1)
            with contextlib.suppress(BlockingIOError):
                came.extend(ours.recv(rate))

    began = trio.current_time()
    with ours, theirs:
        for end in (ours, theirs):
            end.setblocking(False)
        ours.sendall(GET)
        ours.shutdown(socket.SHUT_WR)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            assert await serve_http(theirs, Site(find, frozenset()), Config()) is None
            took = trio.current_time() - began
            theirs.close()
            await trio.sleep(len(answer.body) / rate + 2)
            nursery.cancel_scope.cancel()
    return bytes(came), took


LARGE = Response(200, b"x" * 2**20, "application/x-ndjson")


async def test_a_client_that_takes_an_answer_slowly_gets_it_whole(autojump_clock: MockClock) -> None:
    came, took = await taken(LARGE, 2 * ANSWER_RATE)
    assert took > Config().head_timeout
    assert came.endswith(b"\r\n\r\n" + LARGE.body)


async def test_a_client_that_takes_next_to_nothing_is_cut_off(autojump_clock: MockClock) -> None:
    came, took = await taken(LARGE, ANSWER_RATE // 8)
    assert took == pytest.approx(Config().head_timeout + 2**20 / ANSWER_RATE, abs=1)
    assert 0 < len(came) < 2**20


async def test_a_route_may_take_longer_than_a_head(autojump_clock: MockClock) -> None:
    came, took = await taken(json_response(200, {"done": True}), 65536, route=20.0)
    assert (status(came), took) == (200, pytest.approx(20, abs=1))


async def test_a_refusal_is_the_same_each_time_and_its_body_no_answer_to_head(fake: Backend) -> None:
    get, ask_head = (f"{method} /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() for method in ("GET", "HEAD"))
    async with fake.serve() as server:
        whole, again, bare = [await exchange(server, data) for data in (get, get, ask_head)]
    assert whole == again
    before, _, body = whole.partition(b"\r\n\r\n")
    assert json.loads(body)["code"] == "not-found"
    assert bare == before + b"\r\n\r\n"


async def test_every_answer_is_safe(fake: Backend) -> None:
    async with fake.serve() as server:
        page = await exchange(server, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        missing = await exchange(server, b"GET /nope HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b"default-src 'none'; script-src 'self'" in page
    assert b"X-Content-Type-Options: nosniff" in page
    assert b"X-Content-Type-Options: nosniff" in missing
    assert json.loads(missing.partition(b"\r\n\r\n")[2])["code"] == "not-found"


@pytest.mark.parametrize("cli", ["/nope", f"/{'x' * 300}"])
async def test_readiness_says_what_is_missing(fake: Backend, cli: str) -> None:
    """Also where it can't even be looked for, as in a folder that was closed."""
    async with fake.serve(cli=cli) as server:
        answer = await exchange(server, b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert status(answer) == 503
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["cli"] is False


async def test_readiness_says_that_the_folder_of_runs_is_gone(
    fake: Backend, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where everything in /tmp was removed: no run can be started then."""
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    async with fake.serve() as server:
        assert (await get(server, "/readyz"))["folder"] is True
        (runs,) = folder.glob("tcl-*/runs")
        runs.rmdir()
        answer = await exchange(server, b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await ask(server, "hello")).code == 1011
    assert status(answer) == 503
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["folder"] is False


def test_named_hosts_and_origins_may_come_in() -> None:
    config = Config(host="Here", allow_host=("Claude.example",), allow_origin=("https://App.example",))
    for host in ("claude.example", "CLAUDE.example:3000", "here:3000"):
        request = Request("GET", "/", {}, {"host": host, "origin": "https://app.example"})
        check_host(request, config)
        check_origin(request, config)


ANSWER = re.compile(
    rb"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    rb"Sec-WebSocket-Accept: [A-Za-z0-9+/]{27}=\r\n(Sec-WebSocket-Protocol: trio-claude\.v1\r\n)?\r\n"
)
"""All that a handshake is answered with, whatever the client's header."""

HEADERS = st.dictionaries(
    st.sampled_from([*UPGRADE, "origin", "sec-websocket-protocol"]), st.text(st.characters(max_codepoint=255))
)


@given(HEADERS, st.sampled_from(["GET", "POST"]))
def test_any_headers_are_accepted_or_refused_with_our_error(headers: dict[str, str], method: str) -> None:
    request = Request(method, "/ws/claude", {}, {**UPGRADE, **headers})
    try:
        check_host(request, Config())
        check_origin(request, Config())
        handshake = check_upgrade(request, b"")
    except HttpRefusal as refusal:
        assert 400 <= refusal.status < 500
        return
    assert handshake is None or ANSWER.fullmatch(handshake.answer)
