"""A CLI that leaves one kind of child behind, and the init of the PID namespace in which it may attack everything.

The prompt is words, `NAME=VALUE`. `cgroup` is the folder of a control group, which this program joins before it forks
anything, so that whoever counts its members counts all that came of it. `kind` names the child. `act` is what the CLI
does itself: `wait`, `exit` (`delay` seconds after it said that it is ready), `stop-parent`, or, once the file `go` is
there, `kill-by-name` and `kill-all`.

Rule 1: those two are done only by a process that has verified that all it can reach was started by the harness, see
`caged`. Rule 2: nothing here lives longer than `LIFE` seconds. Rule 3: the standard library alone, and little of it,
for this is started thousands of times.
"""

# pathlib and contextlib cost milliseconds:

import os
import select
import signal
import sys
import time

LIFE = 100
"""Seconds, by an alarm; what is stopped is ended by its keeper, or by the kernel once its process group is orphaned."""
HOP = 0.002
"""Seconds that a generation of a comet lives."""
GO_POLL = 0.005
"""Seconds between two looks for the file that says go."""
REAP_POLL = 20
"""Milliseconds between two looks of the init for who has ended."""
INIT = "chaos-init"
"""The first word of the namespace's init, with the harness's mark behind it."""
RUN_INIT = "trio-claude-ini"
"""The name of the init that the server under test puts into a run's own namespace."""
TERMINAL = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


# -- the kinds of children --------------------------------------------------------------------------------------------


def fork(work, *words):
    """Do `work` in a child of this process."""
    if not os.fork():
        try:
            signal.alarm(LIFE)
            work(*words)
        finally:
            os._exit(0)


def detach():
    """Keep none of the CLI's pipes."""
    null = os.open("/dev/null", os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)


def rest(ready):
    """Say that this process is as it should be, and stay."""
    os.write(ready, b".")
    os.close(ready)
    while True:
        signal.pause()


def plain(ready):
    """Stay."""
    detach()
    rest(ready)


def ignore_term(ready):
    """Stay, and ignore what asks to go."""
    for number in TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    plain(ready)


def stopped(ready):
    """Keep a child that is stopped."""
    detach()
    pid = os.fork()
    if not pid:
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(pid, os.WUNTRACED)
    os.write(ready, b".")
    time.sleep(LIFE - 5)
    os.kill(pid, signal.SIGKILL)


def grandchild(ready):
    """Keep a child in the same group."""
    fork(plain, ready)
    plain(ready)


def setsid(ready):
    """Leave the session."""
    os.setsid()
    plain(ready)


def double_fork(ready):
    """Be a daemon's parent, and go."""
    os.setsid()
    fork(ignore_term, ready)


def scrubbed(ready):
    """Leave the session and the parent, and clear the environment by becoming another program."""
    os.setsid()
    fork(become_sleep, ready)


def become_sleep(ready):
    """Become a program that has no environment; an ignored signal stays ignored, and the alarm stays set."""
    for number in TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    detach()
    os.write(ready, b".")
    os.execve("/bin/sleep", ["sleep", str(LIFE)], {})


def comet(ready):
    """Fork a successor into a session of its own and exit, over and over."""
    end = time.monotonic() + LIFE
    for number in TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    detach()
    os.write(ready, b".")
    os.close(ready)
    while time.monotonic() < end:
        if os.fork():
            os._exit(0)
        os.setsid()
        time.sleep(HOP)


def hold_stdout(ready):
    """Be a daemon's parent, which keeps the CLI's stdout and stderr."""
    os.setsid()
    fork(rest, ready)


KINDS = {
    "plain": (plain, 1),
    "ignore-term": (ignore_term, 1),
    "stopped": (stopped, 1),
    "grandchild": (grandchild, 2),
    "setsid": (setsid, 1),
    "double-fork": (double_fork, 1),
    "scrubbed": (scrubbed, 1),
    "comet": (comet, 1),
    "hold-stdout": (hold_stdout, 1),
}
"""What each kind does, and how many processes say that they are as they should be."""


# -- what the CLI itself does -----------------------------------------------------------------------------------------


def caged(words):
    """Return why a kill of everything in reach could hit what is not the harness's; nothing where it can't.

    What a process can reach is what its PID namespace holds. So: the namespace is not the one of the harness, /proc is
    that of this very namespace, and each process in it is in the harness's control group. Then its init must be the
    harness's, by its mark, or the one that the server under test made for this run.
    """
    if not all(words.get(name) for name in ("namespace", "tree", "mark")):
        return "not told where it would be allowed"
    if os.readlink("/proc/self/ns/pid") == words["namespace"]:
        return "in the harness's own PID namespace"
    if os.readlink("/proc/self") != str(os.getpid()):
        return "/proc shows another PID namespace"
    for pid in filter(str.isdigit, os.listdir("/proc")):
        groups = read(f"/proc/{pid}/cgroup").splitlines()
        if groups and not any(group.startswith(f"0::{words['tree']}/") for group in groups):
            return f"process {pid} is not the harness's"
    said = read("/proc/1/cmdline").split("\0")
    if f"{INIT}={words['mark']}" not in said and read("/proc/1/comm").strip() != RUN_INIT:
        return "process 1 is not the harness's"
    return ""


def read(path):
    """Return a file's text; nothing where its process is gone."""
    try:
        with open(path) as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def attack(words):
    """Be an agent's tool that kills by name, or all it may."""
    why = caged(words)
    if why:
        say(f'{{"type":"refused","why":"{why}"}}')
    elif words["act"] == "kill-all":
        os.kill(-1, signal.SIGKILL)
    else:
        kill_by_name("python", int(words["signal"]))


def kill_by_name(name, number):
    """Do what `pkill NAME` does, which need not be installed; `attack` has verified that it may."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if name in read(f"/proc/{pid}/comm") and int(pid) != os.getpid():
            try:
                os.kill(int(pid), number)
            except ProcessLookupError:
                pass


def stop_parent():
    """Stop this run's guardian, and nothing else that may be the parent."""
    if read(f"/proc/{os.getppid()}/comm").startswith("trio-claude-"):
        os.kill(os.getppid(), signal.SIGSTOP)


def say(line):
    """Say a line on stdout."""
    os.write(1, line.encode() + b"\n")


def begin(words):
    """Join the control group and start the child; return when it is as it should be."""
    with open(f"{words['cgroup']}/cgroup.procs", "w") as file:
        file.write("0")
    work, count = KINDS[words["kind"]]
    reader, writer = os.pipe()
    fork(work, writer)
    os.close(writer)
    while count:
        count -= len(os.read(reader, 1)) or count
    os.close(reader)


def main():
    """Be the CLI."""
    signal.alarm(LIFE)
    line = sys.stdin.readline()
    words = dict(word.split("=", 1) for word in line[line.index("kind=") :].partition('"')[0].split())
    begin(words)
    if words["act"] == "stop-parent":
        stop_parent()
    say(f'{{"type":"ready","t":{time.monotonic():.6f}}}')
    if words["act"] == "exit":
        time.sleep(float(words["delay"]))
        os._exit(0)
    if words["act"] in ("kill-by-name", "kill-all"):
        while not os.path.exists(words["go"]):
            time.sleep(GO_POLL)
        fork(attack, words)
    while True:
        signal.pause()


def be_init(command):
    """Be process 1: run `command` and reap until stdin ends; the kernel then ends everything that is in here."""
    if not os.fork():
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.execvp(command[0], command)
    os.close(1)
    os.close(2)  # so that their end is the end of what was run
    poll = select.poll()
    poll.register(0, select.POLLIN)
    while not poll.poll(REAP_POLL):
        reap()


def reap():
    """Collect whoever has ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith(f"{INIT}="):
        be_init(sys.argv[2:])
    else:
        main()
