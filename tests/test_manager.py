"""What a service manager hands over and is told: variables that go, sockets that listen, states that never wait."""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from handover import NAMES, ended, held, start
from harness import Backend, bearing, connect, directive, until
from program import environ

from trio_claude.commands import manager
from trio_claude.commands.manager import Manager, inherited_sockets, take_manager, watchdog_interval
from trio_claude.errors import ConfigError

MINE = str(os.getpid())


def handed(monkeypatch: pytest.MonkeyPatch, sock: socket.socket, **changed: str) -> dict[str, str]:
    """Return the environment of a process to which `sock` was handed, inheritable."""
    descriptor = os.dup(sock.fileno())
    os.set_inheritable(descriptor, True)
    monkeypatch.setattr(manager, "FIRST", descriptor)
    return {"LISTEN_PID": MINE, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web", "LISTEN_PIDFDID": "7", "A": "1", **changed}


@pytest.fixture
def heard(folder: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(folder / "notify"))
        sock.setblocking(False)
        yield sock


def states(heard: socket.socket) -> list[list[str]]:
    """Return what was told so far."""
    found = []
    while True:
        try:
            found.append(heard.recv(4096).decode().split("\n"))
        except BlockingIOError:
            return found


def test_a_socket_is_taken_with_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    with held() as listener:
        environ = handed(monkeypatch, listener)
        (taken,) = inherited_sockets(environ)
        with taken:
            assert environ == {"A": "1"}
            assert not taken.get_inheritable()
            assert taken.getsockname() == listener.getsockname()


@pytest.mark.parametrize("changed", [{"LISTEN_PID": "1"}, {"LISTEN_PID": ""}, {"LISTEN_FDS": ""}, {"LISTEN_FDS": "0"}])
def test_what_is_for_others_or_nothing_is_no_socket(monkeypatch: pytest.MonkeyPatch, changed: dict[str, str]) -> None:
    with held() as listener:
        environ = handed(monkeypatch, listener, **changed)
        assert inherited_sockets(environ) == []
        assert environ == {"A": "1"}
        os.close(manager.FIRST)


def unix() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(f"\0trio-claude-test-{MINE}")
    sock.listen()
    return sock


@pytest.mark.parametrize(
    "make", [lambda: socket.socket(), lambda: socket.socket(type=socket.SOCK_DGRAM), unix], ids=["deaf", "udp", "unix"]
)
def test_a_socket_of_another_kind_is_named(monkeypatch: pytest.MonkeyPatch, make: Callable[[], socket.socket]) -> None:
    with make() as sock, pytest.raises(ConfigError, match=r"\('web'\) is no TCP socket that listens"):
        inherited_sockets(handed(monkeypatch, sock))


def test_a_descriptor_that_is_no_socket_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryFile() as file:
        monkeypatch.setattr(manager, "FIRST", file.fileno())
        with pytest.raises(ConfigError, match=rf"LISTEN_FDS: descriptor {file.fileno()} is no socket"):
            inherited_sockets({"LISTEN_PID": MINE, "LISTEN_FDS": "1"})


@pytest.mark.parametrize(
    ("told", "why"),
    [("x", "'x' is no number"), ("-1", "no number"), ("65", "65 sockets; at most 64"), ("1e3", "no num")],
)
def test_a_bad_number_is_named(told: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"LISTEN_FDS: .*{why}"):
        inherited_sockets({"LISTEN_PID": MINE, "LISTEN_FDS": told})


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, 0), ({"WATCHDOG_USEC": "30000000"}, 30), ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": MINE}, 0.5),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0),
    ],
)  # fmt: skip
def test_a_sign_of_life_is_given_where_it_is_asked_of_us(environ: dict[str, str], seconds: float) -> None:
    assert watchdog_interval(environ) == seconds
    assert environ == {}


def test_states_are_told_to_a_path_and_to_an_abstract_address(heard: socket.socket) -> None:
    Manager([], 0, heard.getsockname()).tell("READY=1", "STATUS=here")
    Manager([], 0, heard.getsockname()).tell_reloading()
    ready, reloading = states(heard)
    assert ready == ["READY=1", "STATUS=here"]
    assert reloading[0] == "RELOADING=1"
    assert 0 <= time.monotonic() - int(reloading[1].removeprefix("MONOTONIC_USEC=")) / 1e6 < 5
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract:
        abstract.bind(f"\0trio-claude-test-{MINE}")
        take_manager({"NOTIFY_SOCKET": f"@trio-claude-test-{MINE}"}).tell("STOPPING=1")
        assert abstract.recv(100) == b"STOPPING=1"


def test_a_manager_that_does_not_listen_holds_nobody_up(heard: socket.socket) -> None:
    Manager([], 0, "").tell("READY=1")
    Manager([], 0, "/nonexistent/notify").tell("READY=1")
    Manager([], 0, "/" + "x" * 200).tell("READY=1")
    for _ in range(2000):  # more than its queue takes
        Manager([], 0, heard.getsockname()).tell("WATCHDOG=1")
    assert states(heard)[0] == ["WATCHDOG=1"]


async def test_a_server_tells_its_manager_how_it_is(fake: Backend, folder: Path, heard: socket.socket) -> None:
    env = {**environ(fake), "NOTIFY_SOCKET": heard.getsockname(), "WATCHDOG_USEC": "200000"}
    told: list[list[str]] = []

    def hears(*wanted: str) -> bool:
        told.extend(states(heard))
        return any(all(any(state.startswith(one) for state in said) for one in wanted) for said in told)

    with held() as listener:
        server = await start(listener, env=env, log=folder / "log")
        async with ended(server):
            await until(lambda: hears("READY=1", f"STATUS=listening on http://127.0.0.1:{server.port}"))
            await until(lambda: hears("WATCHDOG=1"))
            told.clear()
            os.kill(server.process.pid, signal.SIGHUP)
            await until(lambda: hears("RELOADING=1", "MONOTONIC_USEC=") and hears("READY=1"))
            await until(
                lambda: '"event": "Reloaded", "error": ""' in (folder / "log").read_text()
            )  # a thread writes it
            assert await server.end() == 0
            assert hears("STOPPING=1", "STATUS=draining; 0 runs go on")
            told.clear()
            assert not hears("WATCHDOG=1")


async def test_a_loop_that_hangs_shows_where_when_the_manager_ends_it(
    fake: Backend, folder: Path, heard: socket.socket
) -> None:
    env = {**environ(fake), "NOTIFY_SOCKET": heard.getsockname(), "WATCHDOG_USEC": "200000"}
    with held() as listener:
        server = await start(listener, env=env, log=folder / "log")
        async with ended(server):
            await until(lambda: ["WATCHDOG=1"] in states(heard))
            os.kill(server.process.pid, signal.SIGABRT)
            assert await server.status() == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in (folder / "log").read_text()


async def test_nothing_of_the_managers_reaches_a_cli(fake: Backend, folder: Path, heard: socket.socket) -> None:
    """Also where the operator lets a run inherit all variables."""
    env = {**environ(fake), "NOTIFY_SOCKET": heard.getsockname(), "WATCHDOG_USEC": "9000000", "LISTEN_ON": "kept"}
    with held() as listener:
        server = await start(listener, "--env", "*", env=env, log=folder / "log")
        async with ended(server), connect(server) as client:
            await client.send_message(json.dumps({"prompt": directive("slow", n=100, ms=20), "meta": "T"}))
            while "init" not in await client.get_message():
                pass
            runs = set(bearing(f"LC_TEST={fake.mark}")) - {server.process.pid}
            assert runs
            for pid in runs:
                variables = dict(
                    one.partition("=")[::2] for one in Path(f"/proc/{pid}/environ").read_text().split("\0")
                )
                assert variables["LISTEN_ON"] == "kept"
                assert not set(NAMES) & set(variables)
            assert await server.end() == 0


async def test_serve_says_what_is_wrong_with_a_socket(fake: Backend, folder: Path) -> None:
    with socket.socket() as deaf:
        server = await start(deaf, env=environ(fake), log=folder / "log", wait=False)
        async with ended(server):
            assert await server.status() == 2
    told = (folder / "log").read_text()
    assert told.startswith("trio-claude: LISTEN_FDS: descriptor 3 ('trio-claude.socket') is no TCP socket"), told
