"""Rule: what a command does to its own process takes no child's end away from whoever waits for it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import pytest
import trio
from harness import until

from trio_claude.commands import process
from trio_claude.commands.process import reap_orphans
from trio_claude.containment.guardian import children

ENDS = ("/bin/sh", "-c", "exit 7")


async def by_descriptor() -> int:
    """Wait as for a zygote."""
    child = subprocess.Popen(ENDS)
    descriptor = os.pidfd_open(child.pid)
    await trio.lowlevel.wait_readable(descriptor)
    os.close(descriptor)
    return child.wait()


async def by_trio() -> int:
    return (await trio.run_process([*ENDS], check=False)).returncode


def block(seconds: float) -> None:
    """Hold the loop, as code that never waits does."""
    time.sleep(seconds)


async def hang() -> None:
    """Let every round of the loop take longer than the time between two looks."""
    while True:
        block(2 * process.REAP_PERIOD)
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("wait", [by_descriptor, by_trio])
async def test_a_child_that_is_waited_for_keeps_its_status(
    wait: Callable[[], Awaitable[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "REAP_PERIOD", 0.005)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reap_orphans)
        nursery.start_soon(hang)
        assert [await wait() for _ in range(30)] == [7] * 30
        nursery.cancel_scope.cancel()


async def test_a_child_that_nobody_waits_for_is_reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "REAP_PERIOD", 0.005)
    child = subprocess.Popen(ENDS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reap_orphans)
        await until(lambda: child.pid not in children(os.getpid()))
        nursery.cancel_scope.cancel()
    assert child.wait() == 0  # its status is gone


STATUS = """
import signal, subprocess
from trio_claude.commands.process import take_process
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # as it is inherited
take_process()
print(subprocess.run(["/bin/sh", "-c", "exit 7"]).returncode)
"""


def test_how_a_child_ended_is_known_though_who_started_us_ignores_its_children() -> None:
    assert subprocess.run([sys.executable, "-c", STATUS], capture_output=True, check=True).stdout == b"7\n"


MASK = "import os; from trio_claude.commands.process import take_process; take_process(); print(f'{os.umask(0):04o}')"


@pytest.mark.parametrize(("given", "taken"), [(0o777, b"0077\n"), (0o027, b"0027\n"), (0, b"0000\n")])
def test_what_we_make_is_ours_to_use_and_others_are_kept_out_as_before(given: int, taken: bytes) -> None:
    words = [sys.executable, "-c", MASK]
    assert subprocess.run(words, umask=given, capture_output=True, check=True).stdout == taken


BURSTS = """
import resource, sys
from trio_claude.commands import process
if sys.argv[1] == "kept":
    process._keep_memory()
def burst():
    del [bytes(64 * 1024) for _ in range(256)][:]
burst()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    burst()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is kept where the C library is glibc")
def test_memory_that_is_freed_is_used_again() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", BURSTS, how], capture_output=True, check=True).stdout)
        for how in ("kept", "given back")
    }
    assert faults["kept"] * 10 < faults["given back"]
