"""Guardians of runs: one zygote, and the supervisor that it forks for each run.

Duty: a supervisor starts one CLI, and when it is told to, or when the server is gone, it kills every descendant and
leaves only when `waitpid` says that there is none. The zygote is the second net: what a killed supervisor orphans
becomes its child, and it ends that too.

Rules. 1: standard library only, one thread, no import of this package: the file is run by itself, without
site-packages. 2: a guardian holds no pipe of a run and no descriptor that it does not need. 3: it never ends before
`waitpid` answers ECHILD, whatever happened to the server. 4: it never waits for anything without also watching for
the server's end. 5: its name says nothing of Python, so that an agent's `pkill python` does not hit it.

With `namespace` in its job a supervisor puts the CLI into a PID and mount namespace of its own, below an init of ours:
the run sees none of its guardians, and when the init ends, the kernel ends everything in the namespace.

The wire is a SOCK_SEQPACKET socket, one bounded JSON object a packet.
    server -> zygote      {"argv", "env", "cwd", "limits", "namespace", "binds", "user", "depth",
                          "cgroup"}
                          with the descriptors stdin, stdout, stderr, lifeline
    zygote -> server      {"ready": pid}, {"swept": [supervisor, ...], "seen": n, "killed": n}
    supervisor -> server  {"guardian": pid}; {"started": pid} or {"failed": errno, "what": text};
                          {"exit": status, "alone": bool}; {"gone": true, "seen": n, "killed": n}
    server -> supervisor  {"signal": n} to the CLI, {"end": true} to everything; end-of-file means {"end": true}
    init -> supervisor    {"cli": true}, from the CLI's process; {"started": true} or {"failed": errno, "what": text};
                          {"exit": status, "left": bool}
"""

from __future__ import annotations

import array
import ctypes
import errno
import gc
import json
import mmap
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from typing import Any, NoReturn

PACKET_LIMIT = 192 * 1024
"""A packet in bytes: under the kernel's default socket buffer (208 KiB), over argv and environment of any real CLI."""
DESCRIPTORS = 4
SWEEP_PAUSE = 0.002
"""Seconds between two rounds of a sweep that finds processes which can't be killed."""
OUTLIVE_GRACE = 5.0
"""Seconds that supervisors get, once the server is gone, before the zygote does their work."""
OUTLIVE_POLL = 0.05
"""Seconds between two looks at the supervisors that are left then."""
STRAY_POLL = 0.01
"""Seconds between two looks at orphans that are being ended."""

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAPBSET_DROP = 24
CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER = 0x00020000, 0x20000000, 0x10000000
MS_BIND, MS_REC, MS_PRIVATE, MS_NOSUID, MS_NODEV, MS_NOEXEC = 4096, 16384, 1 << 18, 2, 4, 8
CAPABILITY_VERSION = 0x20080522
CAPABILITIES = 64
CREDENTIALS = struct.Struct("iII")
MSG_CMSG_CLOEXEC = 0x40000000
OOM_SCORE = 500
"""Added to the CLI's badness, so that the kernel out of memory ends a run before it ends a guardian or the server."""

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: Any) -> None:
    """Set one attribute of this process. Raises OSError."""
    if _libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def call(name: str, *words: Any) -> None:
    """Call a function of the C library. Raises OSError."""
    if getattr(_libc, name)(*words):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def rouse(pid: int) -> None:
    """Continue a guardian that a run may have stopped, where nobody else may be left to do it."""
    try:
        os.kill(pid, signal.SIGCONT)
    except OSError:
        pass


def rename(name: bytes) -> None:
    """Set this process's name as `ps` and `pkill` see it (at most 15 bytes)."""
    prctl(PR_SET_NAME, ctypes.c_char_p(name))


# -- what there is of a tree ------------------------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    """Return the children of `pid`, of all its threads; none if it is gone."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                found += map(int, file.read().split())
    except (FileNotFoundError, ProcessLookupError):
        if HAS_CHILDREN_FILE:
            return found
        return [child for child, parent in parents().items() if parent == pid]
    return found


def parents() -> dict[int, int]:
    """Return every process's parent: the way without /proc/PID/task/TID/children."""
    table = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := state_of(int(name))):
            table[int(name)] = int(stat[1])
    return table


def state_of(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name: state, parent, …; nothing if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].decode().split()
    except (FileNotFoundError, ProcessLookupError):
        return []


HAS_CHILDREN_FILE = os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children")


def descendants(roots: list[int]) -> list[int]:
    """Return `roots` and everything below them."""
    todo, found = list(roots), []
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children(pid)
    return found


class Count:
    """The pids that were seen and killed below one guardian."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.killed: set[int] = set()

    def kill(self, pids: list[int]) -> int:
        """Send SIGKILL to each of `pids`; return how many took it."""
        done = 0
        for pid in pids:
            self.seen.add(pid)
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
            done += 1
            self.killed.add(pid)
        return done

    def reap(self, block: bool = False) -> tuple[dict[int, int], bool]:
        """Collect ended children; return their statuses by pid, and whether any child is left."""
        ended: dict[int, int] = {}
        flags = 0 if block else os.WNOHANG
        while True:
            try:
                pid, status = os.waitpid(-1, flags)
            except ChildProcessError:
                return ended, False
            if not pid:
                return ended, True
            ended[pid] = status
            self.seen.add(pid)
            flags = os.WNOHANG


# -- one run ----------------------------------------------------------------------------------------------------------


def apply_limits(limits: dict[str, int]) -> None:
    """Set resource limits by their names in `resource`, and the file mode mask."""
    os.umask(0o077)
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))


def join(cgroup: str | None) -> None:
    """Join a control group, where the job says so."""
    if cgroup:
        with open(f"{cgroup}/cgroup.procs", "w") as file:
            file.write("0")


def become_user(user: list[int] | None) -> None:
    """Become another user, where the job says so, and give up what capabilities a namespace gave us."""
    if user:
        os.setgroups([])
        os.setgid(user[1])
        os.setuid(user[0])
    prctl(PR_SET_DUMPABLE, 1)


def become_cli(job: dict[str, Any], pipes: list[int], report: int) -> NoReturn:
    """Turn this fresh child into the CLI, or write the error number to `report`."""
    what = "exec"
    try:
        os.setsid()
        prctl(PR_SET_DUMPABLE, 1)
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(OOM_SCORE))
        for target, source in enumerate(pipes):
            os.dup2(source, target, inheritable=True)
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        apply_limits(job["limits"])
        what = "cgroup"
        join(job["cgroup"])
        what = "user"
        become_user(job["user"])
        what = "cwd"
        os.chdir(job["cwd"])
        what = "exec"
        os.execve(job["argv"][0], job["argv"], job["env"])
    except OSError as error:
        os.write(report, json.dumps({"failed": error.errno, "what": what}).encode())
    except BaseException as error:
        os.write(report, json.dumps({"failed": errno.EINVAL, "what": f"{what}: {error}"}).encode())
    os._exit(127)


class Space:
    """A PID and mount namespace for one CLI, with an init of ours that ends when its supervisor does."""

    def __init__(self) -> None:
        self.report: socket.socket
        self.theirs: socket.socket
        self.report, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.report.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.counter: mmap.mmap = mmap.mmap(-1, 8)
        self.cli: int = 0
        self.settled: int | None = None

    def follow(self) -> dict[str, Any]:
        """Wait, in the supervisor, for the CLI's start or its failure."""
        self.theirs.close()
        while packet := self.hear():
            if "failed" in packet or "started" in packet:
                return packet
        return {"failed": errno.EPERM, "what": "namespace"}

    def hear(self) -> dict[str, Any]:
        """Return the next packet, empty at the end; the kernel tells the CLI's pid as it is out here."""
        try:
            packet, extra, _, _ = self.report.recvmsg(PACKET_LIMIT, socket.CMSG_SPACE(CREDENTIALS.size))
        except OSError:
            return {}
        said = json.loads(packet) if packet else {}
        if "cli" in said:
            self.cli = CREDENTIALS.unpack(extra[0][2])[0]
        return dict(said)

    def reaped(self) -> int:
        """Return how many processes the init has reaped, up to the moment of `settle`."""
        return int.from_bytes(self.counter[:8], "little") if self.settled is None else self.settled

    def settle(self) -> None:
        """Fix the count, before what still lives is counted: nothing is counted twice."""
        self.settled = self.reaped()

    def enter(self, job: dict[str, Any], pipes: list[int]) -> NoReturn:
        """Make the namespaces, in a child of the supervisor's, and leave the init behind in them."""
        what = "namespace"
        try:
            self.report.close()
            prctl(PR_SET_DUMPABLE, 1)
            unshare()
            if os.fork():
                os._exit(0)
            rename(b"trio-claude-ini")
            what = "mount"
            mount_all(job["binds"])
            what = "capabilities"
            bound_capabilities()
            prctl(PR_SET_DUMPABLE, 0)
            what = "fork"
            self.be_init(job, pipes)
        except OSError as error:
            self.theirs.send(json.dumps({"failed": error.errno, "what": what}).encode())
        finally:
            os._exit(1)

    def be_init(self, job: dict[str, Any], pipes: list[int]) -> None:
        """Start the CLI and reap, until nothing is left here or the supervisor is gone."""
        wake, wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        cli = os.fork()
        if not cli:
            self.theirs.send(b'{"cli": true}')
            become_cli(job, pipes, writer)
        drop_capabilities()
        os.close(writer)
        for pipe in pipes:
            os.close(pipe)
        self.theirs.send(os.read(reader, 4096) or b'{"started": true}')
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        poll.register(self.theirs, select.POLLIN)
        left = True
        while left and not any(descriptor != wake for descriptor, _ in poll.poll()):
            left = self.reap(wake, cli)

    def reap(self, wake: int, cli: int) -> bool:
        """Reap, in the init; report the CLI's exit; return whether any process is left."""
        os.read(wake, 4096)
        ended, left = Count().reap()
        self.counter[:8] = (self.reaped() + len(ended)).to_bytes(8, "little")
        if cli in ended:
            status = os.waitstatus_to_exitcode(ended[cli])
            self.theirs.send(json.dumps({"exit": status, "left": left}).encode())
        return left


def unshare() -> None:
    """Leave the PID and mount namespaces, by way of a user namespace where that is not allowed otherwise."""
    uid, gid = os.getuid(), os.getgid()
    try:
        call("unshare", CLONE_NEWNS | CLONE_NEWPID)
    except PermissionError:
        call("unshare", CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def mount_all(binds: list[list[str]]) -> None:
    """Show the namespace's own processes in /proc, and put each bind's source over its target."""
    call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    call("mount", b"proc", b"/proc", b"proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, None)
    for source, target in binds:
        call("mount", os.fsencode(source), os.fsencode(target), None, MS_BIND, None)


def bound_capabilities() -> None:
    """See to it that no program started from here on has any capability, also as root."""
    for number in range(CAPABILITIES):
        if _libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0):
            break


def drop_capabilities() -> None:
    """Give up the capabilities that we have."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    call("capset", header, (ctypes.c_uint32 * 6)())


class Supervisor:
    """Holds one CLI and everything that comes of it."""

    def __init__(self, job: dict[str, Any], pipes: list[int], lifeline: socket.socket, server: int) -> None:
        self.space: Space | None = Space() if job["namespace"] else None
        self.job = job
        self.pipes = pipes
        self.lifeline = lifeline
        self.server = server
        self.zygote: int = os.getppid()
        self.count: Count = Count()
        self.cli: int = 0

    def run(self) -> None:
        """Start the CLI, wait for its end or for the order to end it, and leave nothing."""
        wake, wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        if not self.start():
            return
        if self.watch(wake):
            self.sweep()
        if os.getppid() == self.zygote:
            rouse(self.zygote)
        more = self.space.reaped() if self.space else 0
        self.say({"gone": True, "seen": len(self.count.seen) + more, "killed": len(self.count.killed)})

    def start(self) -> bool:
        """Start the CLI; tell the server its pid, or why there is none."""
        self.say({"guardian": os.getpid()})
        try:
            failure = self.start_within(self.space) if self.space else self.start_here()
        except OSError as error:
            failure = {"failed": error.errno, "what": "fork"}
        for pipe in self.pipes:
            os.close(pipe)
        if failure:
            self.say(failure)
            self.sweep()
            return False
        self.say({"started": self.cli})
        return True

    def start_here(self) -> dict[str, Any] | None:
        """Start the CLI as a child of ours; return why it could not be."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self.cli = os.fork()
        if not self.cli:
            become_cli(self.job, self.pipes, writer)
        os.close(writer)
        failure = os.read(reader, 4096)
        os.close(reader)
        if failure:
            self.cli = 0
            return json.loads(failure)  # type: ignore[no-any-return]
        self.count.seen.add(self.cli)
        return None

    def start_within(self, space: Space) -> dict[str, Any] | None:
        """Start the CLI in a namespace of its own; return why it could not be."""
        if not os.fork():
            space.enter(self.job, self.pipes)
        packet = space.follow()
        if "failed" in packet:
            return packet
        self.cli = space.cli
        return None

    def watch(self, wake: int) -> bool:
        """Serve the server's orders until it is time to end; return whether any process is left."""
        poll = select.poll()
        inner = self.space.report.fileno() if self.space else -1
        for descriptor in (wake, self.lifeline.fileno(), self.server, *([inner] if self.space else [])):
            poll.register(descriptor, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if inner in ready and not self.hear(self.space):
                poll.unregister(inner)
            if wake in ready and not self.collect(wake):
                return False
            if self.server in ready:
                return True
            if self.lifeline.fileno() in ready and not self.obey():
                return True

    def hear(self, space: Space | None) -> bool:
        """Pass on what the namespace's init says; return False at its end."""
        packet = space.hear() if space else {}
        if "exit" in packet:
            self.cli = 0
            self.say({"exit": packet["exit"], "alone": not packet["left"]})
        return bool(packet)

    def collect(self, wake: int) -> bool:
        """Reap; report the CLI's exit; return whether any process is left."""
        os.read(wake, 4096)
        if self.space:
            _, left = Count().reap()
            if not left:
                self.hear(self.space)
            return left
        ended, left = self.count.reap()
        if self.cli in ended:
            status = os.waitstatus_to_exitcode(ended[self.cli])
            self.cli = 0
            self.say({"exit": status, "alone": not left})
        return left

    def obey(self) -> bool:
        """Carry out one order; return False where it is to end everything."""
        try:
            packet = self.lifeline.recv(PACKET_LIMIT)
        except OSError:
            return False
        order = json.loads(packet) if packet else {"end": True}
        if "signal" in order and self.cli:
            os.kill(self.target(), order["signal"])
        return "end" not in order

    def target(self) -> int:
        """Return the CLI's pid, below the wrapper in which it may have been started."""
        pid = self.cli
        for _ in range(self.job["depth"]):
            pid = (children(pid) or [pid])[0]
        return pid

    def sweep(self) -> None:
        """Kill until `waitpid` proves that nothing is left."""
        if self.space:
            self.sweep_space(self.space)
            return
        while True:
            taken = self.count.kill(descendants(children(os.getpid())))
            ended, left = self.count.reap(block=bool(taken))
            if self.cli in ended:
                self.say({"exit": os.waitstatus_to_exitcode(ended[self.cli]), "alone": not left})
                self.cli = 0
            if not left:
                return
            if not taken:
                time.sleep(SWEEP_PAUSE)

    def sweep_space(self, space: Space) -> None:
        """Kill the namespace's init, upon which the kernel kills all in it; `waitpid` returns when that is done."""
        space.settle()
        mine = children(os.getpid())
        living = [pid for pid in descendants(mine) if pid not in mine and state_of(pid)[:1] != ["Z"]]
        self.count.seen.update(living)
        self.count.killed.update(living)
        Count().kill(mine)
        while Count().reap(block=True)[1]:
            Count().kill(children(os.getpid()))
        if self.cli:
            self.say({"exit": -signal.SIGKILL, "alone": False})

    def say(self, packet: dict[str, Any]) -> None:
        """Tell the server; it may be gone."""
        try:
            self.lifeline.send(json.dumps(packet).encode())
        except OSError:
            pass


# -- the zygote -------------------------------------------------------------------------------------------------------


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Return the next packet and its descriptors, closed on exec (which `socket.recv_fds` forgets). Raises OSError."""
    packet, extra, _, _ = sock.recvmsg(PACKET_LIMIT, socket.CMSG_LEN(4 * DESCRIPTORS), MSG_CMSG_CLOEXEC)
    pipes = array.array("i")
    for level, kind, data in extra:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            pipes.frombytes(data[: len(data) - len(data) % pipes.itemsize])
    return packet, list(pipes)


class Zygote:
    """Forks a supervisor for each job, and ends what a lost supervisor orphans."""

    def __init__(self, control: socket.socket, server: int) -> None:
        self.control = control
        self.server = server
        self.supervisors: set[int] = set()
        self.lost: list[int] = []
        self.count: Count = Count()
        self.wake: int
        self.wake_writer: int
        self.wake, self.wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self) -> None:
        """Serve until the server is gone and no child is left."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wake_writer, warn_on_full_buffer=False)
        self.say({"ready": os.getpid()})
        poll = select.poll()
        for descriptor in (self.wake, self.control.fileno(), self.server):
            poll.register(descriptor, select.POLLIN)
        serving = True
        while serving:
            ready = {descriptor for descriptor, _ in poll.poll(self.pause())}
            if self.wake in ready or self.lost:
                self.collect()
            serving = self.server not in ready
            if self.control.fileno() in ready:
                serving = self.serve() and serving
        self.outlive()

    def outlive(self) -> None:
        """Stay, without a server, until no child is left; wake supervisors that a run has stopped, then end them."""
        self.control.close()
        poll = select.poll()
        poll.register(self.wake, select.POLLIN)
        patience = time.monotonic() + OUTLIVE_GRACE
        while self.collect():
            self.urge(signal.SIGCONT if time.monotonic() < patience else signal.SIGKILL)
            poll.poll(OUTLIVE_POLL * 1000)

    def urge(self, number: int) -> None:
        """Send a signal to every supervisor; they are our children, so their pids are theirs."""
        for pid in self.supervisors:
            os.kill(pid, number)

    def pause(self) -> float | None:
        """Return for how many milliseconds to wait at most."""
        return STRAY_POLL * 1000 if self.lost else None

    def serve(self) -> bool:
        """Take one job; return False where the server is gone."""
        try:
            packet, pipes = receive(self.control)
        except OSError:
            return False
        if not packet:
            return False
        try:
            self.fork(packet, pipes)
        finally:
            for pipe in pipes:
                os.close(pipe)
        return True

    def fork(self, packet: bytes, pipes: list[int]) -> None:
        """Fork a supervisor for the job; a failure is told on the job's own lifeline."""
        try:
            pid = os.fork()
        except OSError as error:
            with socket.socket(fileno=os.dup(pipes[-1])) as lifeline:
                lifeline.send(json.dumps({"failed": error.errno, "what": "fork"}).encode())
            return
        if pid:
            self.supervisors.add(pid)
            return
        try:
            self.supervise(json.loads(packet), pipes)
        finally:
            os._exit(1)

    def supervise(self, job: dict[str, Any], pipes: list[int]) -> NoReturn:
        """Be the supervisor of one run, in the forked child."""
        signal.set_wakeup_fd(-1)
        for descriptor in (self.wake, self.wake_writer):
            os.close(descriptor)
        self.control.close()
        os.setsid()
        rename(b"trio-claude-run")
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        Supervisor(job, pipes[:-1], socket.socket(fileno=pipes[-1]), self.server).run()
        os._exit(0)

    def collect(self) -> bool:
        """Reap; end the orphans of lost supervisors; return whether any child is left."""
        try:
            os.read(self.wake, 4096)
        except BlockingIOError:
            pass
        ended, left = self.count.reap()
        for pid in self.supervisors & ended.keys():
            self.supervisors.discard(pid)
            self.count.seen.discard(pid)
            if ended[pid]:
                self.lost.append(pid)
        if not self.lost:
            return left
        strays = [pid for pid in children(os.getpid()) if pid not in self.supervisors]
        if strays:
            self.count.kill(descendants(strays))
            return True
        self.say({"swept": self.lost, "seen": len(self.count.seen), "killed": len(self.count.killed)})
        self.lost, self.count = [], Count()
        return left

    def say(self, packet: dict[str, Any]) -> None:
        """Tell the server; it may be gone, or so far behind that it will find out by itself."""
        try:
            self.control.send(json.dumps(packet).encode(), socket.MSG_DONTWAIT)
        except OSError:
            pass


def main(control: int, server_pid: int) -> None:
    """Be the zygote of the server `server_pid`, which holds the other end of `control`."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    server = os.pidfd_open(server_pid)
    os.set_inheritable(control, False)
    os.close(int(sys.argv[0].rpartition("/")[2]))  # this file, from which we were read
    rename(b"trio-claude-zyg")
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_PDEATHSIG, signal.SIGCONT)  # a run may have stopped us, and then the server dies
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    gc.collect()
    gc.freeze()
    gc.disable()
    Zygote(socket.socket(fileno=control), server).run()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
