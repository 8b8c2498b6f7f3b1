"""Rule: a server inside another program drains where its block is left, ends all at once where it is cancelled, and
never touches what is the program's."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from harness import Backend, Said, alive, ask, bearing, descriptors, directive, get, until
from sweep import Stepper

import trio_claude
from trio_claude import Config, Server, open_engine, open_run, open_server, serve
from trio_claude.errors import ConfigError
from trio_claude.events import Event, Listening, RunEnded, RunStarted

PAGE = Path(__file__).parents[1] / "docs" / "embedding.md"
TREE = directive("tree", kinds=["setsid", "double_fork", "ignore_term"], seconds=60, then="stay")


def config(fake: Backend, **more: Any) -> Config:
    own: dict[str, Any] = {"port": 0, "cli": fake.program, "cwd": str(fake.cwd), "env": ("TCT_BACKEND",)}
    return Config(**{**own, "drain_timeout": 0, **more})


def environ(fake: Backend) -> dict[str, str]:
    return {**fake.environ, "TCT_BACKEND": fake.mark}


async def said(into: list[Said], server: Server, prompt: str) -> None:
    into.append(await ask(server, prompt))


async def lost(server: Server, prompt: str) -> None:
    """Be a client whose server may vanish."""
    async with trio_claude.ask(prompt, meta="LOST", url=server.url) as answer:
        async for _ in answer:
            pass


def started(fake: Backend) -> bool:
    return any(isinstance(event, RunStarted) for event in fake.events)


# -- leaving -----------------------------------------------------------------------------------------------------------


async def test_leaving_the_block_lets_runs_end(fake: Backend) -> None:
    heard: list[Said] = []
    async with trio.open_nursery() as nursery:
        async with open_server(config(fake, drain_timeout=20), [fake.events.append], environ=environ(fake)) as server:
            nursery.start_soon(said, heard, server, directive("slow", n=5, ms=50))
            await until(lambda: started(fake))
    assert [one.code for one in heard] == [1000]
    assert fake.left() == []


async def test_but_for_no_longer_than_the_configuration_says(fake: Backend) -> None:
    heard: list[Said] = []
    async with trio.open_nursery() as nursery:
        async with open_server(config(fake, drain_timeout=0.2), [fake.events.append], environ=environ(fake)) as server:
            nursery.start_soon(said, heard, server, directive("silent"))
            await until(lambda: started(fake))
    assert [one.code for one in heard] == [1012]
    assert fake.left() == []


async def test_a_task_that_is_drained_returns(fake: Backend) -> None:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(partial(serve, config(fake)))
            await server.drain()
    with pytest.raises(OSError, match="connect"):
        await trio.open_tcp_stream("127.0.0.1", server.port)


# -- cancelling and failing ----------------------------------------------------------------------------------------------


async def test_cancelling_the_task_ends_all_runs_and_leaves_nothing(fake: Backend) -> None:
    before, tasks = descriptors(), trio.lowlevel.current_statistics().tasks_living
    async with trio.open_nursery() as nursery:
        start = partial(serve, config(fake), [fake.events.append], environ=environ(fake))
        server = await nursery.start(start)
        for _ in range(2):
            nursery.start_soon(lost, server, TREE)
        await until(lambda: len(fake.left()) >= 8, 10)
        pids = fake.left()
        nursery.cancel_scope.cancel()
    assert not [pid for pid in {*pids, *fake.left()} if alive(pid)]
    assert (descriptors(), trio.lowlevel.current_statistics().tasks_living) == (before, tasks)


async def test_an_exception_in_the_block_comes_out_as_it_was_raised(fake: Backend) -> None:
    before = descriptors()
    async with trio.open_nursery() as nursery:
        with pytest.raises(KeyError, match="mine"):
            async with open_server(config(fake, drain_timeout=60), environ=environ(fake)) as server:
                nursery.start_soon(lost, server, TREE)
                await until(lambda: len(fake.left()) >= 4, 10)
                raise KeyError("mine")
    assert not [pid for pid in fake.left() if alive(pid)]
    assert descriptors() == before


async def test_an_exception_of_a_sibling_leaves_nothing(fake: Backend) -> None:
    before = descriptors()
    with pytest.RaisesGroup(KeyError):
        async with trio.open_nursery() as nursery:
            start = partial(serve, config(fake, drain_timeout=60), environ=environ(fake))
            nursery.start_soon(lost, await nursery.start(start), TREE)
            await until(lambda: len(fake.left()) >= 4, 10)
            raise KeyError("mine")
    assert not [pid for pid in fake.left() if alive(pid)]
    assert descriptors() == before


async def test_cancelled_at_every_other_step_of_opening_and_closing(fake: Backend) -> None:
    """Each pass starts the containment's processes anew."""

    async def one(at: int | None) -> int:
        stepper = Stepper(trio.CancelScope(), at)
        trio.lowlevel.add_instrument(stepper)
        try:
            with stepper.scope:
                async with open_server(config(fake), environ=environ(fake)):
                    pass
        finally:
            trio.lowlevel.remove_instrument(stepper)
        return stepper.steps

    steps = await one(None)
    before, tasks = descriptors(), trio.lowlevel.current_statistics().tasks_living
    for step in range(1, steps + 2, 2):
        await one(step)
        assert descriptors() == before, f"cancelled at step {step}"
        assert trio.lowlevel.current_statistics().tasks_living == tasks


async def test_a_server_that_cant_be_had_is_a_config_error_of_the_nursery(fake: Backend) -> None:
    async with open_server(config(fake)) as server:
        with pytest.RaisesGroup(ConfigError):
            async with trio.open_nursery() as nursery:
                await nursery.start(serve, config(fake, port=server.port))


# -- beside others -------------------------------------------------------------------------------------------------------


async def test_several_servers_and_an_engine_in_one_program(fake: Backend) -> None:
    """They share a journal's file, too."""
    events: list[list[Event]] = [[], []]
    journal = f"sqlite:{fake.cwd.parent / 'journal.db'}"
    async with trio.open_nursery() as nursery:
        first, second = [
            await nursery.start(
                partial(serve, config(fake, journal=journal), [heard.append], environ=environ(fake)),
            )
            for heard in events
        ]
        assert first.port != second.port
        async with open_engine(config(fake), environ=environ(fake)) as engine, open_run("hello", engine=engine) as run:
            assert [(await ask(server, "hello")).code for server in (first, second)] == [1000, 1000]
            assert (await run.wait()).receipt.survivors == 0
        seen: list[dict[str, object]] = []
        with trio.fail_after(5):  # what one has written both read once it is durable
            while [run["state"] for run in seen] != ["ended", "ended"]:
                seen = (await get(second, "/api/runs"))["runs"]
        assert (await get(first, "/api/runs"))["runs"] == seen
        await first.drain()
        assert (await ask(second, "hello")).code == 1000
        nursery.cancel_scope.cancel()
    assert [[type(event) for event in heard].count(RunEnded) for heard in events] == [1, 2]
    assert [next(event.url for event in heard if isinstance(event, Listening)) for heard in events] == [
        first.url, second.url,
    ]  # fmt: skip


async def test_the_addresses_are_those_that_are_listened_on(fake: Backend) -> None:
    async with open_server(config(fake, host="localhost")) as server:
        assert server.url == f"http://localhost:{server.port}"
        assert f"http://127.0.0.1:{server.port}" in server.addresses
        for address in server.addresses:
            assert (await ask(attrs.evolve(server), "hello")).code == 1000, address


async def test_observers_are_plain_callables_and_a_bad_one_harms_nobody(fake: Backend) -> None:
    def bad(event: Event) -> None:
        raise RuntimeError("bad observer")

    with pytest.warns(RuntimeWarning, match="bad observer"):
        async with open_server(config(fake), [bad, fake.events.append], environ=environ(fake)) as server:
            assert (await ask(server, "hello")).code == 1000
    assert len(fake.ended) == 1


def world() -> tuple[object, ...]:
    """Return what is the program's own."""
    handlers = [signal.getsignal(number) for number in signal.Signals if number not in (signal.SIGKILL, signal.SIGSTOP)]
    umask = os.umask(0o022)
    os.umask(umask)
    hooks = sys.excepthook, threading.excepthook, warnings.showwarning
    return handlers, umask, dict(os.environ), logging.root.handlers[:], logging.root.level, hooks, os.getcwd()


async def test_the_programs_own_world_is_left_alone(fake: Backend) -> None:
    before = world()
    async with open_server(config(fake), environ=environ(fake)) as server:
        assert (await ask(server, "hello")).code == 1000
        assert world() == before
    assert world() == before


# -- whole programs ------------------------------------------------------------------------------------------------------

HOST = """
import signal, sys, trio, trio_claude

async def main():
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)]
    assert handlers == [signal.SIG_DFL] * 3, handlers
    async with trio.open_nursery() as nursery:
        server = await nursery.start(trio_claude.serve, trio_claude.Config(port=0, env=("TCT_BACKEND",)))
        assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)] == handlers
        async with trio_claude.ask(sys.argv[1], meta="HOST", url=server.url) as answer:
            async for line in answer:
                print(line, flush=True)

try:
    trio.run(main)
except* KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def install(fake: Backend, code: str) -> list[str]:
    """Return the words that run a program in which `Config()` has the fake CLI."""
    path = fake.cwd.parent / "program.py"
    path.write_text(code.replace("trio_claude.Config(", f"trio_claude.Config(cli={fake.program!r}, "))
    return [sys.executable, "-W", "error", str(path)]


async def run_until(fake: Backend, words: list[str], number: signal.Signals) -> tuple[int, bytes]:
    """Run a program, signal it once its run has a tree of processes, and return its status and what it said."""
    process = await trio.lowlevel.open_process(words, env=environ(fake), stdout=subprocess.PIPE, cwd=str(fake.cwd))
    with trio.fail_after(30):
        await until(lambda: len(set(fake.left()) - {process.pid}) >= 4, 20)
        process.send_signal(number)
        told = b"".join([piece async for piece in process.stdout])
        return await process.wait(), told


async def test_ctrl_c_is_the_programs_own_and_leaves_nothing(fake: Backend) -> None:
    status, told = await run_until(fake, [*install(fake, HOST), TREE], signal.SIGINT)
    assert (status, told.splitlines()[-1]) == (0, b"interrupted")
    assert fake.left() == []


async def test_a_program_that_is_killed_takes_its_runs_with_it(fake: Backend) -> None:
    status, _ = await run_until(fake, [*install(fake, HOST), TREE], signal.SIGTERM)
    assert status == -signal.SIGTERM
    await until(lambda: fake.left() == [], 10)


def samples() -> list[str]:
    return [part.partition("```")[0] for part in PAGE.read_text().split("```python\n")[1:]]


def sample(words: str) -> str:
    return next(text for text in samples() if words in text)


async def test_the_sample_of_a_server_runs(fake: Backend, capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, Any] = {"trio": trio, "trio_claude": trio_claude}
    exec(sample("async def beside").replace("Config(", f"Config(cli={fake.program!r}, "), scope)
    await scope["beside"]()
    told = capsys.readouterr().out
    assert "Listening(" in told
    assert '"type":"result"' in told


async def test_the_sample_of_an_asyncio_client_runs(fake: Backend) -> None:
    async with fake.serve() as server:
        words = install(fake, sample("asyncio.run(talk(").replace("http://127.0.0.1:3000", server.url))
        told = await trio.run_process(words, env=environ(fake), capture_stdout=True)
    assert told.stdout.splitlines()[-1].startswith(b"Ended(code=1000")


async def test_the_sample_of_an_asyncio_program_with_a_server_runs(fake: Backend) -> None:
    words = install(fake, sample("def server_in_a_thread").replace("port=0", "port=0, env=('TCT_BACKEND',)"))
    told = await trio.run_process(words, env=environ(fake), capture_stdout=True)
    assert b"Ended(code=1000" in told.stdout
    await until(lambda: fake.left() == [])


async def test_ctrl_c_ends_the_asyncio_program_and_its_runs(fake: Backend) -> None:
    code = sample("def server_in_a_thread").replace("port=0", "port=0, env=('TCT_BACKEND',)")
    code = code.replace('"Say hello."', repr(TREE))
    status, _ = await run_until(fake, install(fake, code), signal.SIGINT)
    assert status in (-signal.SIGINT, 130)
    assert fake.left() == []


async def test_children_of_an_asyncio_program_are_its_own_beside_a_server(fake: Backend) -> None:
    """The program's children end with their own statuses while those of runs come and go."""
    body = """
    with server_in_a_thread(trio_claude.Config(port=0, env=("TCT_BACKEND",), drain_timeout=5)) as url:
        async def both():
            async def child(status):
                process = await asyncio.create_subprocess_exec("sh", "-c", f"exit {status}")
                return await process.wait()
            return await asyncio.gather(*(child(number) for number in range(5)), talk(url), talk(url))
        print(asyncio.run(both())[:5])
"""
    code = sample("def server_in_a_thread").partition("    with server_in_a_thread(")[0] + body
    told = await trio.run_process(install(fake, code), env=environ(fake), capture_stdout=True)
    assert told.stdout.splitlines()[-1] == b"[0, 1, 2, 3, 4]"
    assert told.stdout.count(b"Ended(code=1000") == 2
    assert bearing(f"TCT_BACKEND={fake.mark}") == []


async def test_a_server_in_a_thread_that_cant_be_had_is_a_config_error(fake: Backend) -> None:
    async with fake.serve() as server:
        code = sample("def server_in_a_thread").replace("port=0", f"port={server.port}")
        told = await trio.run_process(install(fake, code), env=environ(fake), check=False, capture_stderr=True)
    assert told.returncode == 1
    assert b"ConfigError: port: can't listen on 127.0.0.1:" in told.stderr
