"""Rule: a server that is restarted on a socket which others hold refuses nobody, and tells each client what happened."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import trio
from handover import KINDS, Attempt, Client, attempts, be_client, ended, held, holders, start, wait_listening
from harness import Backend, alive, bearing, connect, directive, until
from program import environ

RATE = 50
"""Attempts a second."""


def check(client: Client) -> None:
    """Hold what a client was told against what happened to it."""
    said, last = client.said, client.said.objects[-1]
    match client.kind:
        case "ends":
            assert said.code == 1000, said
            assert said.reason.startswith("exit 0; "), said
            assert said.of_type("result"), said
        case "says nothing":
            assert (said.code, said.reason, last) == (1012, "server shutting down", {"error": "server shutting down"})
        case "stays" | "talks":
            assert said.code == 1012, said
            assert said.reason.startswith("drained; "), said
            assert ", 0 left, " in said.reason, said
            assert last.get("error") == "server shutting down" or last["reason"] == "drained", said


async def test_a_restart_on_a_held_socket_refuses_nobody(fake: Backend, folder: Path, long: bool) -> None:
    count, made, begun, told = 100 if long else 20, list[Attempt](), list[str](), list[Client]()
    words, env = ["--drain-timeout", "4", "--max-runs", str(count)], environ(fake)
    with held() as listener:
        first = await start(listener, *words, env=env, log=folder / "first")
        async with ended(first), trio.open_nursery() as nursery:
            async with trio.open_nursery() as clients:
                for number in range(count):
                    clients.start_soon(be_client, first, [*KINDS][number % len(KINDS)], begun, told)
                await until(lambda: len(begun) == count, 60)
                nursery.start_soon(attempts, first.port, 1 / RATE, made)
                await until(lambda: len(made) > RATE / 2)
                first.process.terminate()
                second = await start(listener, *words, env=env, log=folder / "second", wait=False)
            async with ended(second):
                assert await first.status() == 0
                await wait_listening(second)
                after = len(made)
                await until(lambda: len(made) > after + RATE / 2)
                nursery.cancel_scope.cancel()
                assert await second.end() == 0
    assert not [one.told for one in made if not one.answered]
    assert max(one.seconds for one in made) < 10
    assert len(told) == count
    for client in told:
        check(client)
    assert not [pid for pid in bearing(f"LC_TEST={fake.mark}") if alive(pid)]


async def test_a_run_holds_no_socket_that_was_handed_over(fake: Backend, folder: Path) -> None:
    with held() as listener:
        server = await start(listener, "--env", "*", env=environ(fake), log=folder / "log")
        async with ended(server), connect(server) as client:
            await client.send_message(json.dumps({"prompt": directive("slow", n=100, ms=20), "meta": "T"}))
            while "init" not in await client.get_message():
                pass
            assert set(bearing(f"LC_TEST={fake.mark}")) - {server.process.pid}
            inode = os.fstat(listener.fileno()).st_ino
            assert holders(inode) == {os.getpid(), server.process.pid}
            os.kill(server.process.pid, signal.SIGINT)
            assert await server.status() == 0
        assert holders(inode) == {os.getpid()}
        with socket_of(server.port):
            listener.accept()[0].close()


def socket_of(port: int) -> socket.socket:
    """Connect, as a client does between two servers."""
    return socket.create_connection(("127.0.0.1", port), timeout=5)
