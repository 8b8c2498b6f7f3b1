"""Guardians of runs: one zygote, and the supervisor that it forks for each run.

Duty: a supervisor starts one CLI, and when it is told to, or when the server is gone, it kills every descendant and
leaves only when `waitpid` says that there is none. The zygote is the second net: what a killed supervisor orphans
becomes its child, and it ends that too.

Rules. 1: standard library only, one thread, no import of this package: the file is run by itself, without
site-packages. 2: a guardian holds no pipe of a run and no descriptor that it does not need. 3: it never ends before
`waitpid` answers ECHILD, whatever happened to the server. 4: it never waits for anything without also watching for
the server's end. 5: its name says nothing of Python, so that an agent's `pkill python` does not hit it.

With `namespace` in its job a supervisor is the init of a PID and mount namespace: the run sees no process but its own
and this one, which no signal from within reaches; when it ends, the kernel ends everything in the namespace.

The wire is a SOCK_SEQPACKET socket, one bounded JSON object a packet.
    server -> zygote      {"argv", "env", "cwd", "limits", "namespace", "folders", "binds", "user", "depth", "cgroup",
                          "nice"} with the descriptors stdin, stdout, stderr, lifeline
    zygote -> server      {"ready": pid}, {"swept": [supervisor, ...], "seen": n, "killed": n}
    zygote -> lifeline    {"guardian": pid}, or {"failed": errno, "what": text} where it could not fork
    supervisor -> lifeline  {"started": pid} or {"failed": errno, "what": text}; {"exit": status, "alone": bool};
                          {"gone": true, "worn": 0 or 1, "seen": n, "killed": n}, with it where the CLI left nothing
    server -> supervisor  {"signal": n} to the CLI, {"end": true} to everything; end-of-file means {"end": true}; after
                          "gone" the next job, as to the zygote but for the lifeline, unless a run has "worn" it out
"""

from __future__ import annotations

import array
import ctypes
import errno
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from typing import Any, NoReturn

PACKET_LIMIT = 192 * 1024  # bytes: under the kernel's default socket buffer (208 KiB), over any real CLI's job
ORDER_LIMIT = 4096  # bytes of a server's order to a supervisor
END = b'{"end": true}'
DESCRIPTORS, RLIMITS, SEEN = 4, 16, 1 << 16  # that come with a job; kinds of limits that there are; pids told apart
_read_json = json.JSONDecoder().raw_decode  # what `loads` touches beyond is 80 KiB of each supervisor's own
SWEEP_PAUSE = 0.002  # seconds between two rounds of a sweep that finds processes which can't be killed
OUTLIVE_GRACE = 5.0  # seconds that supervisors get, once the server is gone, before the zygote does their work
OUTLIVE_POLL = 0.05  # seconds between two looks at the supervisors that are left then
STRAY_POLL = 0.01  # seconds between two looks at orphans that are being ended
WARM_UP = 12  # runs of nothing before the first fork: more than it takes CPython to specialise a function's code

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, PR_CAPBSET_DROP = 1, 4, 15, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 36, 38, 47, 4
CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER = 0x00020000, 0x20000000, 0x10000000
SYS_CLONE = {"x86_64": 56, "aarch64": 220, "riscv64": 220}.get(os.uname().machine)  # None: no mode `namespace`
MS_BIND, MS_REC, MS_SLAVE, MS_NOSUID, MS_NODEV, MS_NOEXEC = 4096, 16384, 1 << 19, 2, 4, 8
UNMOUNT = 2 | 8  # MNT_DETACH, UMOUNT_NOFOLLOW
FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
OOM_SCORE = 500  # added to a CLI's badness: out of memory, the kernel ends a run before a guardian or the server
IGNORED = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # and a CLI gets them back

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount, _libc.umount2, _libc.mkdir, _libc.rmdir, _libc.sched_getscheduler  # noqa: B018 - found once, here, and not in each fork
_syscall = ctypes.PyDLL(None, use_errno=True).syscall
_syscall.argtypes = (ctypes.c_long,) * 6
_before_fork = ctypes.pythonapi.PyOS_BeforeFork
_after_fork = ctypes.pythonapi.PyOS_AfterFork_Child, ctypes.pythonapi.PyOS_AfterFork_Parent


def prctl(option: int, value: Any) -> None:
    """Set one attribute of this process. Raises OSError."""
    call("prctl", option, value, 0, 0, 0)


def call(name: str, *words: Any) -> None:
    """Call a function of the C library. Raises OSError."""
    if getattr(_libc, name)(*words):
        raise OSError(number := ctypes.get_errno(), f"{name}: {os.strerror(number)}")


def fork(flags: int) -> int:
    """Fork as `os.fork` does, with `clone`'s flags. Raises OSError."""
    if not SYS_CLONE:
        raise OSError(errno.ENOSYS, "clone")
    _before_fork()
    pid: int = _syscall(SYS_CLONE, flags, 0, 0, 0, 0)
    reason = ctypes.get_errno()
    _after_fork[bool(pid)]()
    if pid < 0:
        raise OSError(reason, "clone")
    return pid


def tell(descriptor: int, packet: bytes) -> None:
    """Tell the server on a lifeline; it may be gone."""
    try:
        os.write(descriptor, packet)
    except OSError:
        pass


def put(path: str, words: bytes) -> None:
    """Write to a file of the kernel's. Raises OSError."""
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, words)
    finally:
        os.close(file)


def failed(error: BaseException, step: str) -> bytes:
    """Return what the server is told of a start that failed."""
    number, what = (error.errno, step) if isinstance(error, OSError) else (errno.EINVAL, f"{step}: {error}")
    return json.dumps({"failed": number, "what": what}).encode()


def send(pid: int, number: int) -> None:
    """Send a signal to a process that may just have ended, or with -1 to all others of our namespace."""
    try:
        os.kill(pid, number)
    except OSError:
        pass


def children(pid: int) -> list[int]:
    """Return the children of `pid`, of all its threads; none if it is gone, or hidden, as /proc may be by `hidepid`."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                found += map(int, file.read().split())
    except OSError:
        if not HAS_CHILDREN_FILE:
            return [child for child, parent in parents().items() if parent == pid]
    return found


def parents() -> dict[int, int]:
    """Return every process's parent: the way without /proc/PID/task/TID/children."""
    states = ((int(name), state_of(int(name))) for name in os.listdir("/proc") if name.isdigit())
    return {pid: int(state[1]) for pid, state in states if state}


def state_of(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name: state, parent, …; nothing if it is gone, or hidden."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].decode().split()
    except OSError:
        return []


HAS_CHILDREN_FILE = os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children")


def descendants(roots: list[int]) -> list[int]:
    """Return `roots` and everything below them."""
    found = list(roots)
    for pid in found:  # which grows
        found += children(pid)
    return found


class Count:
    """The pids that were seen and killed below one guardian; of those that ended by themselves at most `SEEN`."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.killed: set[int] = set()

    def kill(self, pids: list[int]) -> int:
        """Send SIGKILL to each of `pids`, parents first; return how many took it.

        Who is gone once one before it was killed counts as killed: a namespace dies with its init. A zombie does not.
        """
        done, ended = 0, {pid for pid in pids if state_of(pid)[:1] == ["Z"]}
        for pid in pids:
            self.seen.add(pid)
            taken = pid not in ended  # the signal is for threads that may have outlived the first
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError as error:
                taken = isinstance(error, ProcessLookupError) and done > 0
            if taken:
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
            self.seen.update((pid,) if len(self.seen) < SEEN else ())
            flags = os.WNOHANG


class StartFailed(Exception):
    """A CLI can't be started; holds what the server is told."""


def spawn_cli(job: dict[str, Any], pipes: list[int]) -> int:
    """Start a CLI that is plain, without a copy of our memory. Raises OSError, and NotImplementedError."""
    ends = [(os.POSIX_SPAWN_DUP2, source, target) for target, source in enumerate(pipes)]
    return os.posix_spawn(
        job["argv"][0], job["argv"], job["env"], file_actions=ends, setsid=True, setsigdef=IGNORED, setsigmask=()
    )


def fork_cli(job: dict[str, Any], pipes: list[int]) -> int:
    """Start a CLI that has a user, a group or limits of its own. Raises OSError, and `StartFailed`."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if not pid:
        become_cli(job, pipes, writer)
    os.close(writer)
    told = os.read(reader, 4096)
    os.close(reader)
    if told:
        raise StartFailed(told)
    return pid


def become_cli(job: dict[str, Any], pipes: list[int], report: int) -> NoReturn:
    """Turn this fresh child into the CLI, or write the error number to `report`."""
    what = "exec"
    try:
        os.setsid()
        for target, source in enumerate(pipes):
            os.dup2(source, target, inheritable=True)
        for number in IGNORED:
            signal.signal(number, signal.SIG_DFL)
        for name, value in job["limits"].items():
            what = f"limits: {name}"
            resource.setrlimit(getattr(resource, name), (value, value))
        what = "cgroup"
        if job["cgroup"]:
            put(f"{job['cgroup']}/cgroup.procs", b"0")
        what = "user"
        if job["user"]:
            os.setgroups([])
            os.setgid(job["user"][1])
            os.setuid(job["user"][0])
        what = "cwd"
        os.chdir(job["cwd"])
        what = "exec"
        os.execve(job["argv"][0], job["argv"], job["env"])
    except BaseException as error:  # whatever it is, it is told, and no second supervisor goes on
        os.write(report, failed(error, what))
    os._exit(127)


class Badness:
    """The score by which the kernel, out of memory, chooses among processes: ours, which a fork inherits."""

    def __init__(self, proc: int) -> None:
        prctl(PR_SET_DUMPABLE, 1)  # else the file is root's
        try:
            self.file: int = os.open("self/oom_score_adj", os.O_RDWR, dir_fd=proc)
            self.own: int = int(os.pread(self.file, 16, 0))
        except OSError:
            self.file, self.own = os.open(os.devnull, os.O_RDWR), 0
        finally:
            prctl(PR_SET_DUMPABLE, 0)

    def add(self, score: int) -> None:
        """Be by so much above what we were; what does not let us be so does not keep us from running."""
        try:
            os.pwrite(self.file, b"%d" % (min(max(self.own, 0) + score, 1000) if score else self.own), 0)
        except OSError:
            pass


def defer(pid: int, nice: int) -> None:
    """Let `pid` and its descendants yield the processors to everything of the server's."""
    try:
        os.setpriority(os.PRIO_PROCESS, pid, nice)
        put(f"/proc/{pid}/autogroup", b"%d" % nice)
    except OSError:
        pass  # it has ended already, or the kernel knows no autogroups


def map_user(uid: int, gid: int) -> None:
    """Be in a new user namespace who we were outside. Raises OSError."""
    prctl(PR_SET_DUMPABLE, 1)  # else the files are root's
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        put(f"/proc/self/{name}", text.encode())
    prctl(PR_SET_DUMPABLE, 0)


def bind(binds: list[list[str]]) -> None:
    """Put binds in place; all sources are opened before any is hidden, no link is followed. Raises OSError."""
    opened = [os.open(source, FOLDER) for source, _ in binds]
    try:
        for number, (_, target) in enumerate(binds):
            opened.append(os.open(target, FOLDER))
            call("mount", *(b"/proc/self/fd/%d" % one for one in (opened[number], opened[-1])), None, MS_BIND, None)
    finally:
        for one in opened:
            os.close(one)


def bound_capabilities() -> None:
    """See to it that no program started from here on has any capability, also as root. Raises OSError."""
    for number in range(64):
        if _libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0):
            if ctypes.get_errno() != errno.EINVAL:  # which is behind the last one
                raise OSError(ctypes.get_errno(), "prctl")
            break


def bequeath_none() -> None:
    """Keep the capabilities that we have from what we start, unless it is root's. Raises OSError."""
    _libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)  # a kernel without them says EINVAL
    words = array.array("I", (0x20080522, *[0] * 7))  # the version for all of 64, ourselves, and the sets
    place = words.buffer_info()[0]
    call("capget", ctypes.c_void_p(place), ctypes.c_void_p(place + 8))
    words[4] = words[7] = 0  # what is inheritable
    call("capset", ctypes.c_void_p(place), ctypes.c_void_p(place + 8))


def first_child(proc: int) -> int:
    """Return the pid of our first child as the descriptor `proc` of a /proc shows it, 0 where that is not told."""
    try:
        pid = int(os.read(file := os.open("thread-self/children", os.O_RDONLY, dir_fd=proc), 64).split()[0])
        os.close(file)
    except (OSError, IndexError):
        return 0
    return pid


class Supervisor:
    """Holds one CLI and everything that comes of it, one run after the other; within a namespace as its init.

    `server` is a descriptor of the server's process, `proc` one of /proc as it is outside of any namespace, `user` who
    we were outside of a user namespace.
    """

    def __init__(self, lifeline: int, server: int, proc: int, user: tuple[int, int] | None) -> None:
        self.lifeline = lifeline
        self.server = server
        self.proc = proc
        self.user = user
        self.zygote: int = os.getppid()
        self.inside: bool = False
        self.wake: int
        self.wake, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self.badness: Badness = Badness(proc)
        self.fresh: list[Any] = self.bounds()

    def serve(self, job: dict[str, Any], pipes: list[int]) -> None:
        """Hold run after run, until one can't be started or the server wants no more."""
        while self.run(job, pipes) and (packet := self.next()):
            job, pipes = _read_json(packet[0].decode())[0], packet[1]

    def run(self, job: dict[str, Any], pipes: list[int]) -> bool:
        """Start the CLI, wait for its end or for the order to end it, leave nothing; return whether it was started."""
        self.job: dict[str, Any] = job
        self.pipes: list[int] = pipes
        self.count: Count = Count()
        self.cli: int = 0
        self.exit: bytes = b""
        self.step: str = "folder"
        if not self.start():
            return False
        if self.watch():
            self.sweep()
        if not self.inside and os.getppid() == self.zygote:
            send(self.zygote, signal.SIGCONT)  # a run may have stopped it, and nobody else may be left to do this
        worn, seen, killed = self.tidy() or self.bounds() != self.fresh, len(self.count.seen), len(self.count.killed)
        tell(self.lifeline, b'{%s"gone": true, "worn": %d, "seen": %d, "killed": %d}' % (self.exit, worn, seen, killed))
        return not worn

    def bounds(self) -> list[Any]:
        """Return what a CLI inherits from us, and a process of the same user can change: limits, ranks, processors."""
        ranks = os.getpriority(os.PRIO_PROCESS, 0), _libc.sched_getscheduler(0), os.sched_getaffinity(0)
        return [[resource.getrlimit(kind) for kind in range(RLIMITS)], ranks, os.pread(self.badness.file, 16, 0)]

    def next(self) -> tuple[bytes, list[int]] | None:
        """Wait for the next job; orders to a run that has ended may still come. None where there is no more."""
        poll, lifeline = select.poll(), socket.socket(fileno=os.dup(self.lifeline))
        poll.register(lifeline, select.POLLIN)
        poll.register(self.server, select.POLLIN)
        while self.server not in {descriptor for descriptor, _ in poll.poll()}:
            packet, pipes = receive(lifeline)
            if pipes or not packet:
                return (packet, pipes) if packet else None
        return None

    def tidy(self) -> bool:
        """Take away the run's binds, and its folders where they are empty; return whether a bind is left."""
        left = [at for _, at in reversed(self.job["binds"] * self.inside) if _libc.umount2(os.fsencode(at), UNMOUNT)]
        for folder in reversed(self.job["folders"]):
            _libc.rmdir(os.fsencode(folder))  # the server removes what the run has left there
        return bool(left)

    def start(self) -> bool:
        """Start the CLI; tell the server its pid, or why there is none."""
        failure = b""
        try:
            for folder in self.job["folders"]:
                if _libc.mkdir(os.fsencode(folder), 0o700) and ctypes.get_errno() != errno.EEXIST:  # by one that failed
                    raise OSError(ctypes.get_errno(), "mkdir")
            self.step = "fork"
            if self.job["namespace"]:
                self.enter()
            self.cli = self.start_cli()
        except StartFailed as error:
            failure = error.args[0]
        except Exception as error:
            failure = failed(error, self.step)
        for pipe in self.pipes:
            os.close(pipe)
        if failure:
            self.sweep()
        tell(self.lifeline, failure or b'{"started": %d}' % (first_child(self.proc) or self.cli))
        return not failure

    def enter(self) -> None:
        """Make the namespaces, in which we are already, the run's own."""
        if not self.inside:
            self.step = "namespace"
            if self.user:
                map_user(*self.user)
            self.step = "mount"
            call("mount", b"none", b"/", None, MS_REC | MS_SLAVE, None)  # what the machine mounts later is seen here
            call("mount", b"proc", b"/proc", b"proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, None)
            self.step = "capabilities"
            bound_capabilities()
            self.inside = True
        self.step = "mount"
        bind(self.job["binds"])

    def start_cli(self) -> int:
        """Start the CLI, which is to be the first that the kernel takes when memory runs out; return its pid."""
        plain = not (self.job["user"] or self.job["cgroup"] or self.job["limits"].keys() - {"RLIMIT_CORE"})
        self.badness.add(OOM_SCORE)
        try:
            pid = self.start_plainly() if plain else fork_cli(self.job, self.pipes)
        finally:
            self.badness.add(0)
        self.count.seen.add(pid)
        defer(pid, self.job["nice"])
        return pid

    def start_plainly(self) -> int:
        """Start a CLI between whose fork and exec there is nothing to do; return its pid."""
        self.step = "cwd"
        os.chdir(self.job["cwd"])
        self.step = "exec"
        try:
            pid = spawn_cli(self.job, self.pipes)
        except NotImplementedError:  # a Python that was built on an old C library
            pid = fork_cli(self.job, self.pipes)
        os.chdir("/")
        return pid

    def watch(self) -> bool:
        """Serve the server's orders until it is time to end; return whether any process is left."""
        poll = select.poll()
        for descriptor in (self.wake, self.lifeline, self.server):
            poll.register(descriptor, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self.wake in ready and not self.collect():
                return False
            if self.server in ready:
                return True
            if self.lifeline in ready and not self.obey():
                return True

    def collect(self) -> bool:
        """Reap; report the CLI's exit; return whether any process is left."""
        os.read(self.wake, 4096)
        ended, left = self.count.reap()
        if self.cli in ended:
            self.note_exit(ended, left)
            if left:
                tell(self.lifeline, b"{%s}" % self.exit[:-2])
                self.exit = b""
        return left

    def note_exit(self, ended: dict[int, int], left: bool) -> None:
        """Keep how the CLI ended until it is told."""
        status = os.waitstatus_to_exitcode(ended[self.cli])
        self.exit = b'"exit": %d, "alone": %s, ' % (status, b"false" if left else b"true")
        self.cli = 0

    def obey(self) -> bool:
        """Carry out one order; return False where it is to end everything."""
        try:
            packet = os.read(self.lifeline, ORDER_LIMIT)
        except OSError:
            return False
        goes_on = packet not in (b"", END)
        if goes_on and self.cli:
            send(self.target(), _read_json(packet.decode())[0]["signal"])
        return goes_on

    def target(self) -> int:
        """Return the CLI's pid, below the wrapper in which it may have been started."""
        pid = self.cli
        for _ in range(self.job["depth"]):
            pid = (children(pid) or [pid])[0]
        return pid

    def sweep(self) -> None:
        """Kill until `waitpid` proves that nothing is left."""
        while True:
            taken = self.kill_inside() if self.inside else self.count.kill(descendants(children(os.getpid())))
            ended, left = self.count.reap(block=bool(taken))
            if self.cli in ended:
                self.note_exit(ended, left)
            if not left:
                return
            if not taken:
                time.sleep(SWEEP_PAUSE)

    def kill_inside(self) -> int:
        """Kill all processes of the namespace but ourselves, at once; return how many there were."""
        pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
        living = [pid for pid in pids if pid != 1 and state_of(pid)[:1] not in ([], ["Z"])]
        self.count.seen.update(living)
        self.count.killed.update(living)
        send(-1, signal.SIGKILL)
        return len(living)


# -- the zygote -------------------------------------------------------------------------------------------------------


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Return the next packet, empty where there is none, and its descriptors, closed on exec, unlike `recv_fds`."""
    try:
        packet, extra, _, _ = sock.recvmsg(PACKET_LIMIT, socket.CMSG_LEN(4 * DESCRIPTORS), socket.MSG_CMSG_CLOEXEC)
    except OSError:
        return b"", []
    pipes = array.array("i")
    for level, kind, data in extra:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            pipes.frombytes(data[: len(data) - len(data) % pipes.itemsize])
    return packet, list(pipes)


class Zygote:
    """Forks a supervisor for each job, and ends what a lost supervisor orphans."""

    def __init__(self, control: socket.socket, server: int, proc: int) -> None:
        self.control = control
        self.server = server
        self.proc = proc
        self.supervisors: set[int] = set()
        self.lost: list[int] = []
        self.count: Count = Count()
        self.wakes: tuple[int, int] = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.spaces: int = CLONE_NEWNS | CLONE_NEWPID | signal.SIGCHLD
        self.user: tuple[int, int] | None = None

    def run(self) -> None:
        """Serve until the server is gone and no child is left."""
        signal.set_wakeup_fd(self.wakes[1], warn_on_full_buffer=False)
        self.say({"ready": os.getpid()})
        poll = select.poll()
        for descriptor in (self.wakes[0], self.control.fileno(), self.server):
            poll.register(descriptor, select.POLLIN)
        serving = True
        while serving:
            ready = {descriptor for descriptor, _ in poll.poll(STRAY_POLL * 1000 if self.lost else None)}
            if self.wakes[0] in ready or self.lost:
                self.collect()
            serving = self.server not in ready
            if self.control.fileno() in ready:
                serving = self.serve() and serving
        self.outlive()

    def outlive(self) -> None:
        """Stay, without a server, until no child is left; wake supervisors that a run has stopped, then end them."""
        self.control.close()
        poll = select.poll()
        poll.register(self.wakes[0], select.POLLIN)
        patience = time.monotonic() + OUTLIVE_GRACE
        while self.collect():
            for pid in self.supervisors:  # our children, so their pids are theirs
                os.kill(pid, signal.SIGCONT if time.monotonic() < patience else signal.SIGKILL)
            poll.poll(OUTLIVE_POLL * 1000)

    def serve(self) -> bool:
        """Take one job; return False where the server is gone."""
        packet, pipes = receive(self.control)
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
        job = _read_json(packet.decode())[0]
        try:
            pid = self.fork_within() if job["namespace"] else os.fork()
        except OSError as error:
            tell(pipes[-1], failed(error, "namespace" if job["namespace"] else "fork"))
            return
        if pid:
            self.supervisors.add(pid)
            tell(pipes[-1], b'{"guardian": %d}' % pid)
            return
        try:
            self.supervise(job, pipes)
        finally:
            os._exit(1)

    def fork_within(self) -> int:
        """Fork into new namespaces, by way of a user namespace where that is not allowed otherwise. Raises OSError."""
        try:
            return fork(self.spaces)
        except PermissionError:
            if self.user:
                raise
        self.spaces |= CLONE_NEWUSER
        self.user = os.getuid(), os.getgid()
        return fork(self.spaces)

    def supervise(self, job: dict[str, Any], pipes: list[int]) -> NoReturn:
        """Be the supervisor of one run, in the forked child."""
        signal.set_wakeup_fd(-1)
        for descriptor in (*self.wakes, self.control.fileno()):
            os.close(descriptor)
        os.setsid()
        prctl(PR_SET_NAME, b"trio-claude-ini" if job["namespace"] else b"trio-claude-run")
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        Supervisor(pipes[-1], self.server, self.proc, self.user).serve(job, pipes[:-1])
        os._exit(0)

    def collect(self) -> bool:
        """Reap; end the orphans of lost supervisors; return whether any child is left."""
        try:
            os.read(self.wakes[0], 4096)
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
        strays = {*(shown := children(os.getpid()))} - self.supervisors
        if left and (strays or not shown):  # who is not shown is not gone
            self.count.kill(descendants([*strays]))
            return True
        alone = len(self.lost) == 1  # else nobody knows whose they were
        seen, killed = (len(self.count.seen), len(self.count.killed)) if alone else (1, 0)
        self.say({"swept": self.lost, "seen": seen, "killed": killed})
        self.lost, self.count = [], Count()
        return left

    def say(self, packet: dict[str, Any]) -> None:
        """Tell the server; it may be gone, or so far behind that it will find out by itself."""
        try:
            self.control.send(json.dumps(packet).encode(), socket.MSG_DONTWAIT)
        except OSError:
            pass


def warm_up(server: int, proc: int) -> None:
    """Do what supervisors do: with caches filled and code specialised they are faster and write to fewer pages."""
    job: dict[str, Any] = {"argv": ["/bin/true"], "env": {}, "cwd": "/", "limits": {}, "namespace": False}
    job.update(folders=["/proc"], binds=[], user=None, cgroup=None, depth=0, nice=0)  # it is there, and stays
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, open(os.devnull, "r+b", 0) as null:
        supervisor = Supervisor(theirs.fileno(), server, proc, None)
        for _ in range(WARM_UP):
            socket.send_fds(ours, [json.dumps(job).encode()], [null.fileno()] * (DESCRIPTORS - 1))
            taken = supervisor.next()
            supervisor.run(job, taken[1] if taken else [])
    os.close(signal.set_wakeup_fd(-1))
    os.close(supervisor.wake)


def main(control: int, server_pid: int) -> None:
    """Be the zygote of the server `server_pid`, which holds the other end of `control`."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the server's program may block what we and the CLIs hear
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    server = os.pidfd_open(server_pid)
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.set_inheritable(control, False)
    os.close(int(sys.argv[0].rpartition("/")[2]))  # this file, from which we were read
    prctl(PR_SET_NAME, b"trio-claude-zyg")
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_PDEATHSIG, signal.SIGCONT)  # a run may have stopped us, and then the server dies
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    bequeath_none()
    warm_up(server, proc)
    gc.collect()
    gc.freeze()
    gc.disable()
    Zygote(socket.socket(fileno=control), server, proc).run()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
