"""Rule: the accept path takes any crowd; what runs out is waited for, told once, and hurts nobody who is inside."""

from __future__ import annotations

import contextlib
import json
import socket
import time

import pytest
import trio
from harness import Backend, ask, connect, descriptors, directive, few_descriptors, listen, until

from trio_claude import Config, serve
from trio_claude.admission import Doorstep
from trio_claude.errors import ConfigError
from trio_claude.events import Refused, Strained


def test_the_doorstep_counts_in_all_and_by_address() -> None:
    doorstep = Doorstep(3, 2)
    assert [doorstep.enter(address) for address in "aaabbb"] == [True, True, False, True, False, False]
    doorstep.leave("a")
    assert (doorstep.enter("b"), doorstep.enter("a"), len(doorstep)) == (True, False, 3)


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
