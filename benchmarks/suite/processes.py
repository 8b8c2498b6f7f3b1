"""What /proc says of processes: who descends from whom, their CPU time, their memory and what they wrote.

It only reads, but for `end`, which ends what it is handed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import attrs

TICK = os.sysconf("SC_CLK_TCK")
CPUCLOCK_SCHED = 2
"""How the kernel makes a process's clock of its pid; what `clock_getcpuclockid` returns."""


@attrs.frozen
class Process:
    """One process as it was at a moment; `reaped` is the CPU time of its children that are gone, in seconds."""

    pid: int
    name: str
    parent: int
    cpu: float
    reaped: float
    born: int


def read(pid: int) -> Process:
    """Read one process. Raises OSError where it is gone."""
    head, _, tail = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    fields = tail.split()
    reaped = sum(map(int, fields[13:15])) / TICK
    return Process(pid, head.partition("(")[2], int(fields[1]), _cpu(pid), reaped, int(fields[19]))


def _cpu(pid: int) -> float:
    """Return a process's CPU time by its own clock, which counts nanoseconds where /proc counts hundredths."""
    return time.clock_gettime(~pid << 3 | CPUCLOCK_SCHED)


def _everybody() -> Iterable[Process]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield read(int(entry.name))


def descendants(pid: int) -> list[Process]:
    """Return what descends from a process, parents before their children."""
    children: dict[int, list[Process]] = defaultdict(list)
    for process in _everybody():
        children[process.parent].append(process)
    found = list(children[pid])
    for process in found:
        found += children[process.pid]
    return found


def pss(pid: int, part: str = "Pss") -> float:
    """Return a process's share of memory in KiB, what it has alone and its part of what it shares; 0 if it is gone.

    `part` may be `Pss_Anon`: without the pages of files, which are shared out anew with each process that has them.
    """
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return float(text.partition(f"\n{part}:")[2].split()[0])


def rss(pid: int) -> float:
    """Return a process's resident memory in KiB; 0 if it is gone."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 1024
    return 0.0


def written(pid: int) -> int:
    """Return how many bytes a process has written. Raises OSError where it is gone."""
    return int(Path(f"/proc/{pid}/io").read_text().partition("wchar:")[2].split()[0])


def end(processes: Iterable[Process]) -> int:
    """End those that still live and are the same as they were; return how many."""
    ended = 0
    for process in processes:
        with contextlib.suppress(OSError):
            if read(process.pid).born == process.born:
                os.kill(process.pid, signal.SIGKILL)
                ended += 1
    return ended


def wait_until_gone(processes: Iterable[Process], seconds: float) -> None:
    """Wait, for so long at most, until none of them is there."""
    pids, until = {process.pid for process in processes}, time.monotonic() + seconds
    while time.monotonic() < until and any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.02)
