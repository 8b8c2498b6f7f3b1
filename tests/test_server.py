"""Rule: the accept path takes any crowd; what runs out is waited for, told once, and hurts nobody who is inside."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import attrs
import pytest
import trio
from handover import held
from harness import Backend, ask, connect, descriptors, directive, few_descriptors, head, listen, until
from trio.testing import wait_all_tasks_blocked

from trio_claude import Config, open_server, serve
from trio_claude.admission import Doorstep
from trio_claude.errors import ConfigError, PeerGone
from trio_claude.events import ConnectionClosed, ConnectionOpened, Refused, Reloaded, Strained, Weak
from trio_claude.identity.keys import Key, digest, new_secret, write_keys
from trio_claude.server import DOORSTEP_GRACE


def test_the_doorstep_counts_in_all_and_by_address() -> None:
    doorstep = Doorstep(3, 2)
    assert [doorstep.enter(address) for address in "aaabbb"] == [True, True, False, True, False, False]
    doorstep.leave("a")
    assert (doorstep.enter("b"), doorstep.enter("a"), len(doorstep)) == (True, False, 3)


def test_the_doorstep_counts_the_addresses_of_one_ipv6_network_together() -> None:
    doorstep, near = Doorstep(9, 2), ["2001:db8::1", "2001:db8::ffff:0:0:1", "2001:db8:0:0:7::"]
    assert [doorstep.enter(address) for address in near] == [True, True, False]
    assert [doorstep.enter(address) for address in ("2001:db8:0:1::1", "fe80::1%eth0", "::1")] == [True] * 3
    for address in (*near[1:], "2001:db8:0:1::1", "fe80::1%eth0", "::1"):
        doorstep.leave(address)
    assert (len(doorstep), doorstep._by_address) == (0, {})


async def test_a_crowd_without_requests_is_turned_away(fake: Backend) -> None:
    async with fake.serve(max_handshakes_per_address=5, head_timeout=1) as server:
        idle = [await trio.open_tcp_stream("127.0.0.1", server.port) for _ in range(5)]
        late = await trio.open_tcp_stream("127.0.0.1", server.port)
        with trio.fail_after(2), contextlib.suppress(trio.BrokenResourceError):
            assert await late.receive_some() == b""
        assert [event for event in fake.events if isinstance(event, Refused)]
        await idle[0].aclose()
        await trio.sleep(0.1)
        assert (await ask(server, "hello")).code == 1000
        for stream in [*idle, late]:
            await stream.aclose()


async def test_a_connection_that_has_said_its_request_is_off_the_doorstep(fake: Backend) -> None:
    async with fake.serve(max_handshakes_per_address=1) as server, connect(server) as first, connect(server) as second:
        for socket_ in (first, second):
            await socket_.send_message('{"prompt":"hello","meta":"T"}')
        assert [(await listen(first)).code, (await listen(second)).code] == [1000, 1000]


async def test_connections_over_the_limit_wait(fake: Backend) -> None:
    async with fake.serve(max_connections=1) as server:
        async with connect(server) as first:
            await first.send_message(json.dumps({"prompt": directive("slow", n=10, ms=50), "meta": "T"}))
            said = []
            async with trio.open_nursery() as nursery:

                async def second() -> None:
                    said.append((await ask(server, "hello")).code)

                nursery.start_soon(second)
                assert (await listen(first)).code == 1000
                await first._stream.aclose()
        assert said == [1000]


async def test_no_descriptor_left_is_waited_for_and_told_once(fake: Backend) -> None:
    async with fake.serve() as server:
        clients = [socket.socket() for _ in range(6)]
        with few_descriptors(2):
            for client in clients:
                client.connect(("127.0.0.1", server.port))
            await trio.sleep(0.6)
            assert [event for event in fake.events if isinstance(event, Strained)] == [
                Strained("descriptors", over=False)
            ]
        for client in clients:
            client.close()
        assert (await ask(server, "hello")).code == 1000
        assert [event.over for event in fake.events if isinstance(event, Strained)] == [False, True]


async def test_a_run_without_descriptors_is_told_and_the_server_goes_on(fake: Backend) -> None:
    async with fake.serve() as server:
        async with connect(server) as client:
            with few_descriptors(2):
                await client.send_message('{"prompt":"hello","meta":"T"}')
                said = await listen(client)
        assert "Too many open files (EMFILE)" in str(said.errors[-1]["error"])
        assert said.code == 1011
        assert (await ask(server, "hello")).code == 1000


async def test_nothing_is_left_of_a_server(fake: Backend) -> None:
    before = descriptors()
    tasks = trio.lowlevel.current_statistics().tasks_living
    async with fake.serve() as server:
        for _ in range(3):
            await ask(server, "hello")
    assert descriptors() == before
    assert trio.lowlevel.current_statistics().tasks_living == tasks


async def test_leaving_ends_runs_and_tells_clients(fake: Backend) -> None:
    said = []
    async with trio.open_nursery() as nursery:
        async with fake.serve() as server:

            async def client() -> None:
                said.append(await ask(server, directive("silent")))

            nursery.start_soon(client)
            await until(lambda: server.runs.statistics().live)
    assert (said[0].code, said[0].objects[-1]) == (1012, {"error": "server shutting down"})
    assert fake.left() == []


async def test_a_nursery_can_start_a_server(fake: Backend) -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve, Config(port=0, cli=fake.program))
        assert server.url == f"http://127.0.0.1:{server.port}"
        nursery.cancel_scope.cancel()


async def test_an_error_of_the_body_comes_out_bare(fake: Backend) -> None:
    with pytest.raises(KeyError):
        async with fake.serve():
            raise KeyError("mine")


async def test_a_busy_port_is_named(fake: Backend) -> None:
    async with fake.serve() as server:
        with pytest.raises(ConfigError, match=f"can't listen on 127.0.0.1:{server.port}: Address already in use"):
            async with fake.serve(port=server.port):
                pytest.fail("opened")


async def test_localhost_means_every_loopback_address(fake: Backend) -> None:
    async with fake.serve(host="localhost") as server:
        assert (await ask(server, "hello")).code == 1000


async def test_one_slow_client_never_slows_another(fake: Backend) -> None:
    async with fake.serve() as server, connect(server) as stuck:
        await stuck.send_message(json.dumps({"prompt": directive("lines", n=2_000_000, size=500), "meta": "T"}))
        await trio.sleep(0.5)
        began = time.monotonic()
        assert (await ask(server, "hello")).code == 1000
        assert time.monotonic() - began < 5


# -- sockets that were handed over ------------------------------------------------------------------------------------


def copied(sock: socket.socket) -> socket.socket:
    """Return another descriptor of the same socket, as a server gets it that was handed it: it blocks."""
    copy = sock.dup()
    copy.setblocking(True)
    return copy


async def test_a_socket_of_others_is_closed_and_not_shut_down(fake: Backend) -> None:
    with held() as listener:
        config = Config(port=1, cli=fake.program, cwd=str(fake.cwd), env=("TCT_BACKEND",))
        for _ in range(2):
            copy = copied(listener)
            async with open_server(config, environ=fake.environ, listeners=[copy]) as server:
                assert server.port == listener.getsockname()[1]
                assert server.url == f"http://127.0.0.1:{server.port}"
                assert (await ask(server, "hello")).code == 1000
            assert copy.fileno() == -1
            with socket.create_connection(listener.getsockname(), timeout=5):
                listener.accept()[0].close()


def shut() -> socket.socket:
    sock = socket.create_server(("127.0.0.1", 0))
    sock.close()
    return sock


@pytest.mark.parametrize(
    "make",
    [socket.socket, shut, lambda: socket.socket(type=socket.SOCK_DGRAM), lambda: socket.socket(socket.AF_UNIX)],
    ids=["deaf", "closed", "udp", "unix"],
)
async def test_what_nobody_can_come_in_by_is_named(fake: Backend, make: Callable[[], socket.socket]) -> None:
    config = Config(cli=fake.program, cwd=str(fake.cwd))
    with held() as listener:
        given = [copied(listener), make()]
        with pytest.raises(ConfigError, match=r"listeners: <socket\.socket .*> is no TCP socket that listens"):
            async with open_server(config, environ=fake.environ, listeners=given):
                pass
        assert [one.fileno() for one in given] == [-1, -1]


async def test_a_socket_that_is_none_or_is_there_twice_is_named(fake: Backend) -> None:
    config = Config(cli=fake.program, cwd=str(fake.cwd))
    with held() as listener:
        copy = copied(listener)
        twice = copied(listener)
        cases: list[tuple[list[Any], str]] = [
            ([copy, trio.socket.socket()], r"<trio\.socket\..*> is no TCP socket that listens"),
            ([copied(listener), 5], "5 is no TCP socket that listens"),
            ([twice, twice], "a socket is there twice"),
        ]
        for given, told in cases:
            with pytest.raises(ConfigError, match=f"listeners: {told}"):
                async with open_server(config, environ=fake.environ, listeners=given):
                    pass
        assert (copy.fileno(), twice.fileno()) == (-1, -1)


async def test_a_socket_that_others_reach_wants_keys_whatever_host_says(
    fake: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.0.0.2 stands for an address of the network."""
    for name in ("server", "entrance"):
        monkeypatch.setattr(f"trio_claude.{name}.is_loopback", lambda host: host == "127.0.0.1")
    config = Config(cli=fake.program, cwd=str(fake.cwd))
    with held() as near, socket.create_server(("127.0.0.2", 0)) as far:
        given = [copied(near), copied(far)]
        with pytest.raises(ConfigError, match=r"host: 127\.0\.0\.2 is not a loopback address"):
            async with open_server(config, environ=fake.environ, listeners=given):
                pass
        assert [one.fileno() for one in given] == [-1, -1]


async def test_a_reload_leaves_the_place_of_a_socket_alone(fake: Backend) -> None:
    config = Config(cli=fake.program, cwd=str(fake.cwd))
    with held() as listener:
        sockets = [copied(listener)]
        async with open_server(config, [fake.events.append], environ=fake.environ, listeners=sockets) as server:
            server.reload(lambda: attrs.evolve(config, max_runs=3))
            assert server.runs.statistics().slots == 3
            server.reload(lambda: attrs.evolve(config, profile="lean"))
    first, second = [event.error for event in fake.events if isinstance(event, Reloaded)]
    assert (first, second) == ("", "profile: takes a restart")


async def test_one_socket_for_both_kinds_of_addresses_knows_an_ipv4_client(fake: Backend) -> None:
    with socket.socket(socket.AF_INET6) as listener:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::ffff:127.0.0.1", 0))
        listener.listen()
        path = fake.cwd.parent / "keys.json"
        write_keys(path, {"alice": Key(digest(secret := new_secret()), "user")})
        config = Config(cli=fake.program, keys=str(path), state=str(fake.cwd.parent / "state"))
        sockets = [copied(listener)]
        async with open_server(config, [fake.events.append], environ=fake.environ, listeners=sockets) as server:
            assert (await ask(server, "hello", key=secret)).code == 1000
    (opened,) = [event for event in fake.events if isinstance(event, ConnectionOpened)]
    assert opened.peer.startswith("127.0.0.1:")


async def test_a_client_that_leaves_before_its_socket_is_open_was_never_there(
    fake: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that as many are told to have come as to have gone."""
    left = trio.Event()

    @contextlib.asynccontextmanager
    async def accept(*_: object) -> AsyncIterator[None]:
        left.set()
        raise PeerGone("left")
        yield

    monkeypatch.setattr("trio_claude.connection.accept", accept)
    async with fake.serve() as server, await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        await stream.send_all(head())
        await left.wait()
        assert await stream.receive_some() == b""
    assert not [event for event in fake.events if isinstance(event, ConnectionOpened | ConnectionClosed)]


async def test_a_listener_that_another_has_shut_down_is_told_of_once(fake: Backend) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with listener.dup() as copy:
        config = Config(cli=fake.program, cwd=str(fake.cwd))
        async with open_server(config, [fake.events.append], environ=fake.environ, listeners=[listener]):
            copy.shutdown(socket.SHUT_RDWR)
            await until(lambda: any(isinstance(event, Weak) and "shut down" in event.what for event in fake.events))
            await trio.sleep(0.1)
    assert sum(isinstance(event, Weak) and "shut down" in event.what for event in fake.events) == 1


@pytest.mark.parametrize("patience", [-1, math.nan])
async def test_a_drain_of_less_than_no_time_is_named_and_the_server_goes_on(fake: Backend, patience: float) -> None:
    async with fake.serve() as server:
        with pytest.raises(ValueError, match="patience must be 0 s or more"):
            await server.drain(patience)
        assert (await ask(server, "hello")).code == 1000


async def test_who_was_accepted_before_a_drain_is_answered(fake: Backend) -> None:
    """Not reset without a word: a handshake is answered, and then the close says that the server goes down."""
    async with fake.serve() as server, trio.open_nursery() as nursery:
        late = await trio.open_tcp_stream("127.0.0.1", server.port)
        async with late, await trio.open_tcp_stream("127.0.0.1", server.port) as silent:
            await wait_all_tasks_blocked(0.05)
            began = trio.current_time()
            nursery.start_soon(server.drain)
            await wait_all_tasks_blocked(0.05)
            await late.send_all(head())
            told = b""
            while b"server shutting down" not in told:
                chunk = await late.receive_some()
                assert chunk, told
                told += chunk
            assert told.startswith(b"HTTP/1.1 101 ")
            assert await silent.receive_some() == b""
            assert DOORSTEP_GRACE * 0.9 < trio.current_time() - began < DOORSTEP_GRACE + 2
