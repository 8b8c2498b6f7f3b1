"""Stand in for the Claude CLI 2.1.330: the same flags, the same stream-json both ways, the same deaths.

Rule 1: nothing here opens a socket, asks a model, or writes outside the working directory and TMPDIR. Rule 2: nothing
it starts for `tree` outlives its bound, so that a broken test leaves nothing for ever. Rule 3: the standard library
alone, and little of it, for it is started hundreds of times. ``fake-claude`` and ``python -m`` use cached bytecode;
``python -I -S …/fake_cli.py`` needs nothing installed, and compiles this file each time.

What a turn does stands in its prompt, as JSON objects between ``@@`` marks, performed in order. The first table is that
of `messages_api`, so one suite can run against this and against the real CLI (which follows the last one only). As
there, a prompt without a directive repeats the last of these, with the tool results it already has.

=======  ==============================================  ==========================================================
do       other fields (and what they are when left out)  the turn
=======  ==============================================  ==========================================================
text     text ("Hello from stub."), deltas (3)           that text; also when there never was a directive
slow     n (100), ms (50)                                n deltas, ms apart
many     n (5000)                                        n deltas
bigtext  bytes (1000000)                                 one delta of that size
think    text ("Thought answer.")                        a thinking block, then the text
bash     cmd, rounds (1), bg (false), timeout (ms)       runs cmd by /bin/bash in a session of its own, then a text
tool     name, input ({}), rounds (1)                    Bash and StructuredOutput work; others are unknown tools
tools    calls: [{"name", "input"}], rounds (1)          several uses in one answer
err      status, retry_after (s), noretry (false),       api_retry lines with the real delays, then the error;
         times (-1)                                      after ``times`` errors a text. CLAUDE_CODE_MAX_RETRIES counts
miderr   n (5)                                           n deltas, void; then "non-stream answer"
reset    n (5)                                           the same after all retries, each with its deltas
stall    n (5)                                           n deltas, silence for 300 s, then as miderr
hang                                                     silence before the first byte of the answer
=======  ==============================================  ==========================================================

Its own, which say no `assistant` line; a turn that gets past them ends with a `result`:

=========  ============================================  ==========================================================
do         other fields                                  the CLI
=========  ============================================  ==========================================================
lines      n (1), rate (0: as fast as read), size (0)    lines {"type":"fake","n":1…,"pad":"…"} of size bytes each
stderr     text ("fake stderr"), n (1)                   the text as n lines on stderr
exit       status (0)                                    exits at once, without a result
signal     n                                             dies by (or stops on) that signal
silent                                                   says nothing for ever, reads nothing; first: not even init
raw        text or hex                                   writes just these bytes to stdout
nonewline  bytes (10000000)                              that many "x" on stdout
closeout                                                 closes stdout and lives on, deaf
linger     seconds (10)                                  after the result it stays that long, stdin closed or not
tree       kinds, seconds (60, at most 300), then        starts these, then says {"type":"fake","pids":[…],
                                                         "by_kind":{…}} as all exist; then: "exit" at once, "stay"
                                                         deaf for ever, or go on
=========  ============================================  ==========================================================

Kinds of a tree, each at most once a name in the list: `plain`; `setsid`; `double_fork` (and setsid); `ignore_term`
(TERM, HUP, INT); `env_clear` (an empty environment, double-forked, ignoring TERM); `stopped` (by SIGSTOP, under a
parent that ignores TERM and ends it in time: two pids); `hold_stdout` (double-forked); `comet` (forks its successor
into a new session and exits, every millisecond: no pid to name). Only `hold_stdout` keeps stdout. The clean-up that a
SIGTERM makes, like the real one's, covers Bash tools, not these.

Any directive may carry ``"ignore_term": true``: the CLI ignores SIGTERM and SIGINT from then on. The first may carry
``"init": false``: the turn has no init line. Every UUID can be resumed but the one of zeros only.
"""

# pathlib costs milliseconds, and this is started hundreds of times:
# ruff: noqa: PTH103, PTH108, PTH109, PTH112, PTH113, PTH119, PTH120, PTH123, PTH208

from __future__ import annotations

import json
import os
import re
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing and collections.abc cost milliseconds
    import subprocess
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn, TypeAlias, TypeVar

    Json: TypeAlias = dict[str, Any]
    Block: TypeAlias = tuple[Json, list[Json], Json]
    T = TypeVar("T")

__all__ = ["main"]

VERSION = "2.1.330"
LIFE_SECONDS = 3600
"""No fake lives longer, whatever it was told: one that ignores everything must not stay for ever."""
FLUSH_SECONDS = 2.07
"""How long a signalled CLI tries to get rid of what it has to say (measured)."""
TREE_SECONDS = 300
BASH_SECONDS = 600
"""The longest a tool's shell may live, by its own alarm; what it detaches is the command's affair."""
STALL_SECONDS = 300.0
TERM_GRACE_SECONDS = 1.5
SLOW_TOOL_SECONDS = 3.0
RESULT_CHARS = 30_000
BATCH_BYTES = 64 * 2**10
READ_BYTES = 2**20
PIECE_CHARS = 40
RETRY_DELAYS_MS = (614, 1206, 2400, 4500, 8600, 18000, 35000)
UNKNOWN_SESSION = "00000000-0000-0000-0000-000000000000"
MARK = "@@"

INTERRUPTED = "[Request interrupted by user]"
INTERRUPTED_TOOL = "[Request interrupted by user for tool use]"
REJECTED = (
    "The user doesn't want to proceed with this tool use. The tool use was rejected (eg. if it was a file edit, the "
    "new_string was NOT written to the file). STOP what you are doing and wait for the user to tell you how to proceed."
)
STOPPED = " Correction to the text above: this call was stopped while running, not refused before it ran."
BAD_VERDICT = (
    "The canUseTool callback returned an invalid permission result. Expected {behavior: 'allow', updatedInput?: "
    "object} or {behavior: 'deny', message: string}."
)


class FatalError(Exception):
    """The CLI cannot start, or not go on: its text goes to stderr, the exit status is 1."""


class Ended(Exception):
    """The CLI is to exit now."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Interrupted(Exception):
    """The turn is to end now: by a control request or by SIGINT."""


class TurnOver(Exception):
    """The turn ends early; `fields` are what its result says of that."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(fields)
        self.fields = fields


class DirectiveError(ValueError):
    """A directive that cannot be followed: the API would answer 400."""


class Refused(Exception):
    """A tool is not to run; `meta` says why, for programs."""

    def __init__(self, message: str, meta: Json | None) -> None:
        super().__init__(message)
        self.message = message
        self.meta = meta


# ---- Flags ----


def _words(text: str) -> list[str]:
    return text.split()


_NO_VALUE = _words("""
--print --verbose --strict-mcp-config --include-partial-messages --fork-session --continue --bare
--replay-user-messages --dangerously-skip-permissions --allow-dangerously-skip-permissions --no-session-persistence
--disable-slash-commands --restricted --safe-mode --include-hook-events --forward-subagent-text --session-mirror
--exclude-dynamic-system-prompt-sections --ide --chrome --no-chrome --brief --version --help""")
_ONE_VALUE = _words("""
--input-format --output-format --setting-sources --model --fallback-model --permission-prompt-tool
--permission-prompts --permission-mode --session-id --max-turns --max-budget-usd --system-prompt --system-prompt-file
--append-system-prompt --append-system-prompt-file --effort --json-schema --settings --agent --agents --name
--thinking --max-thinking-tokens --task-budget --resume-session-at --plugin-dir --debug-file""")
_OPTIONAL_VALUE = ["--resume", "--debug", "--prompt-suggestions"]
_MANY_VALUES = ["--tools", "--allowed-tools", "--disallowed-tools", "--mcp-config", "--add-dir", "--betas", "--file"]
_SHORT = {
    "-p": "--print",
    "-c": "--continue",
    "-r": "--resume",
    "-d": "--debug",
    "-n": "--name",
    "-v": "--version",
    "--allowedTools": "--allowed-tools",
    "--disallowedTools": "--disallowed-tools",
}
_MODES = ("acceptEdits", "auto", "bypassPermissions", "manual", "dontAsk", "plan")
_MODEL_ALIASES = {
    "default": "claude-opus-5-5",
    "opus": "claude-opus-5-5",
    "sonnet": "claude-sonnet-5-5",
    "haiku": "claude-haiku-5-5",
    "fable": "claude-fable-5-2",
}
_DOLLARS_PER_MTOK = {
    "claude-opus-5-5": (4.0, 20.0),
    "claude-sonnet-5-5": (2.0, 10.0),
    "claude-haiku-5-5": (0.1, 0.5),
    "claude-fable-5-2": (8.0, 40.0),
}
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)


def parse_flags(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Return the values of each flag given; what stands behind ``--`` is a prompt, and not ours."""
    flags: dict[str, list[str]] = {}
    rest = list(arguments)
    while rest and (argument := rest.pop(0)) != "--":
        if argument.startswith("-") and argument != "-":
            name, joined, value = argument.partition("=")
            name = _SHORT.get(name, name)
            flags.setdefault(name, []).extend([value] if joined else _take_values(argument, name, rest))
            if joined and name not in _ONE_VALUE + _OPTIONAL_VALUE + _MANY_VALUES:
                raise FatalError(f"error: unknown option '{argument}'")
    return flags


def _take_values(argument: str, name: str, rest: list[str]) -> list[str]:
    if name in _NO_VALUE:
        return []
    if name in _ONE_VALUE:
        if not rest:
            raise FatalError(f"error: option '{name} <value>' argument missing")
        return [rest.pop(0)]
    if name not in _OPTIONAL_VALUE + _MANY_VALUES:
        raise FatalError(f"error: unknown option '{argument}'")
    values: list[str] = []
    while rest and not rest[0].startswith("-") and (name in _MANY_VALUES or not values):
        values.append(rest.pop(0))
    return values


class Options:
    """What the flags and the environment ask for, checked as the real CLI does."""

    def __init__(self, flags: dict[str, list[str]]) -> None:
        self._flags = flags
        self._check_streams()
        self.partial = "--include-partial-messages" in flags
        self.replay = "--replay-user-messages" in flags
        self.asks = self._one("--permission-prompt-tool") == "stdio"
        self.mode = self._permission_mode()
        self.model = resolve_model(self._one("--model") or "default")
        self.max_turns = int(self._number("--max-turns", "<turns>") or 0)
        self.max_budget = self._number("--max-budget-usd", "<amount>")
        self.tools = _names(flags["--tools"]) if "--tools" in flags else None
        self.allowed = _names(flags.get("--allowed-tools", []))
        self.structured = "--json-schema" in flags
        self.retries = int(os.environ.get("CLAUDE_CODE_MAX_RETRIES") or 10)
        self._check_files()
        self._warn_effort()
        self.session = self._session()

    def _one(self, name: str) -> str | None:
        values = self._flags.get(name)
        return values[-1] if values else None

    def _check_streams(self) -> None:
        formats = self._one("--input-format"), self._one("--output-format")
        if "--print" not in self._flags or formats != ("stream-json", "stream-json"):
            raise FatalError("Error: fake-claude speaks stream-json only, both ways, with --print")
        if "--verbose" not in self._flags:
            raise FatalError("Error: When using --print, --output-format=stream-json requires --verbose")

    def _permission_mode(self) -> str:
        mode = self._one("--permission-mode") or "default"
        if mode not in (*_MODES, "default"):
            choices = ", ".join(_MODES)
            start = f"error: option '--permission-mode <mode>' argument '{mode}' is invalid."
            raise FatalError(f"{start} Allowed choices are {choices}.")
        if "--dangerously-skip-permissions" in self._flags:
            mode = "bypassPermissions"
        if mode == "bypassPermissions" and os.geteuid() == 0 and os.environ.get("IS_SANDBOX") != "1":
            raise FatalError(
                "--dangerously-skip-permissions cannot be used with root/sudo privileges for security reasons"
            )
        return mode

    def _number(self, name: str, metavar: str) -> float | None:
        value = self._one(name)
        try:
            return None if value is None else float(value)
        except ValueError:
            error = f"error: option '{name} {metavar}' argument '{value}' is invalid. must be a number"
            raise FatalError(error) from None

    def _check_files(self) -> None:
        for name, title in (("--system-prompt-file", "System"), ("--append-system-prompt-file", "Append system")):
            path = self._one(name)
            if path is not None and not os.path.isfile(path):
                raise FatalError(f"Error: {title} prompt file not found: {path}")

    def _warn_effort(self) -> None:
        effort = self._one("--effort")
        if effort not in (None, "low", "medium", "high", "xhigh", "max"):
            write_stderr(f"Warning: Unknown --effort value '{effort}' — ignoring it and using the default effort.")

    def _session(self) -> str:
        given, resumed = self._one("--session-id"), self._one("--resume")
        if given is not None and not _UUID.fullmatch(given):
            raise FatalError("Error: Invalid session ID. Must be a valid UUID.")
        self.resume_error = _resume_error(resumed)
        forked = "--fork-session" in self._flags
        return given or (resumed if resumed and not forked else None) or new_uuid()


def _resume_error(resumed: str | None) -> str | None:
    if resumed == UNKNOWN_SESSION:
        return f"No conversation found with session ID: {resumed}"
    if resumed is not None and not _UUID.fullmatch(resumed):
        return (
            "Error: --resume requires a valid session ID or session title when used with --print. Usage: claude -p "
            f'--resume <session-id|title>. Provided value "{resumed}" is not a UUID and does not match any session '
            "title."
        )
    return None


def _names(values: list[str]) -> list[str]:
    return [name for value in values for name in re.findall(r"\w+(?:\([^)]*\))?", value)]


def resolve_model(name: str) -> str:
    """Return the model that a name stands for; any name will do."""
    return _MODEL_ALIASES.get(name, name)


def new_uuid() -> str:
    """Return a random UUID, without the import."""
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


def timestamp() -> str:
    """Return the time as the CLI writes it."""
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03}Z"


# ---- Stdin, stdout and signals ----


def write_all(data: bytes, fd: int = 1) -> None:
    """Write all of it; a reader that is gone is ignored, as the real CLI does."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])
        except OSError:
            return


def write_stderr(text: str) -> None:
    """Write one line to stderr."""
    write_all(f"{text}\n".encode("utf-8", "backslashreplace"), 2)


def encode_line(line: Json) -> bytes:
    """Return the line as the CLI writes it: non-ASCII raw, but no character that some readers take for a newline."""
    text = json.dumps(line, ensure_ascii=False, separators=(",", ":"))
    text = text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return text.encode("utf-8", "backslashreplace") + b"\n"


class Wire:
    """What comes in: stdin's lines, given to `receive`, and signals.

    Nothing here decides what is said. Error handling: only `poll` raises, so no line is ever torn by a signal; but who
    is signalled while blocked in a write gets `FLUSH_SECONDS`, then exits there.
    """

    def __init__(self, receive: Callable[[bytes], None]) -> None:
        self.eof = False
        self.deaf = False
        self.stubborn = False
        self.interrupt = False
        self.signal = 0
        self._receive = receive
        self._unread: list[bytes] = []
        self._wakeup, self._waker = os.pipe()
        self._catch_signals()

    def _catch_signals(self) -> None:
        for fd in (self._wakeup, self._waker):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, self._note)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # it wakes `poll`
        signal.signal(signal.SIGALRM, self._give_up)
        signal.setitimer(signal.ITIMER_REAL, LIFE_SECONDS)

    def _note(self, number: int, _frame: object) -> None:
        if not (self.stubborn and number in (signal.SIGTERM, signal.SIGINT)):
            self.signal = number
            signal.setitimer(signal.ITIMER_REAL, FLUSH_SECONDS)

    def _give_up(self, _number: int, _frame: object) -> None:
        os._exit(self.exit_status)

    @property
    def exit_status(self) -> int:
        """How the real CLI exits on the signal that came."""
        return 0 if self.signal == signal.SIGINT else 128 + (self.signal or signal.SIGALRM)

    def wait(self, seconds: float, until: Callable[[], object] = lambda: False) -> None:
        """Let that much time pass, or less if `until` comes true; raise as `poll` does."""
        deadline = time.monotonic() + seconds
        self.poll(0)
        while not until() and (left := deadline - time.monotonic()) > 0:
            self.poll(min(left, LIFE_SECONDS))

    def poll(self, timeout: float) -> None:
        """Take in what has come, and raise `Ended` or `Interrupted` if that follows from it."""
        sources = [self._wakeup] if self.eof or self.deaf else [self._wakeup, 0]
        ready = select.select(sources, [], [], timeout)[0]
        if self._wakeup in ready:
            os.read(self._wakeup, 4096)
        if 0 in ready:
            self._read()
        if self.signal in (signal.SIGTERM, signal.SIGHUP):
            raise Ended(self.exit_status)
        if self.signal == signal.SIGINT or self.interrupt:
            self.interrupt = False
            raise Interrupted

    def _read(self) -> None:
        data = os.read(0, READ_BYTES)
        self.eof = not data
        whole, found, rest = data.rpartition(b"\n")
        if found or self.eof:
            whole = b"".join([*self._unread, whole])
            self._unread = []
            for line in whole.split(b"\n"):
                self._receive(line)
        self._unread.append(rest)


# ---- Processes ----


def process_parents() -> dict[int, int]:
    """Return the parent of each process there is."""
    if not os.path.isdir("/proc/self"):
        return _process_parents_by_ps()
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := _read_text(f"/proc/{name}/stat")):
            parents[int(name)] = int(stat.rpartition(")")[2].split()[1])
    return parents


def _process_parents_by_ps() -> dict[int, int]:
    import subprocess

    listing = subprocess.run(["ps", "-axo", "pid=,ppid="], capture_output=True, text=True, check=False).stdout
    return {int(pid): int(parent) for pid, parent in (line.split() for line in listing.splitlines())}


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            return file.read()
    except OSError:
        return ""


def descendants(root: int) -> set[int]:
    """Return root and all below it."""
    found, parents = {root}, process_parents()
    while new := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
        found |= new
    return found


def kill_all(pids: set[int], number: int) -> None:
    """Signal each of these; who is gone already is no error."""
    for pid in pids:
        _kill(pid, number)


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        return


class Shell:
    """One Bash command, in its own session, its output in a file: as the real CLI keeps it off its own stdout.

    Resource handling: `finish` reaps it and removes the file; a shell that is never finished keeps both.
    """

    def __init__(self, tool_input: Json, use: str, folder: str) -> None:
        self.use = use
        self.description = str(tool_input.get("description", ""))
        self.command = str(tool_input.get("command", ""))
        self.task = "b" + os.urandom(4).hex()
        self.run = f"0{os.urandom(4).hex()}-{os.urandom(4).hex()}"
        self.path = f"{folder}/{self.task}.output"
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self.process = self._start(os.path.basename(os.path.dirname(folder)))

    def _start(self, session: str) -> subprocess.Popen[bytes]:
        import subprocess

        with open(self.path, "wb") as output:
            return subprocess.Popen(
                ["/bin/bash", "-c", self.command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "CLAUDECODE": "1", "CLAUDE_CODE_SESSION_ID": session},
                start_new_session=True,
                preexec_fn=lambda: signal.alarm(BASH_SECONDS),
            )

    @property
    def ended(self) -> bool:
        """Whether the command has exited; what it left in the background does not count."""
        return self.process.poll() is not None

    @property
    def task_fields(self) -> Json:
        """What each line about it as a task begins with."""
        return {"task_id": self.task, "run_id": self.run}

    def output(self) -> str:
        """Return what it has written."""
        return _read_text(self.path).strip("\n")

    def kill(self, grace: float) -> None:
        """End it with all that is still below it: by SIGTERM if there is grace, then by SIGKILL."""
        pids = descendants(self.process.pid)
        deadline = time.monotonic() + grace
        if grace:
            kill_all(pids, signal.SIGTERM)
        while time.monotonic() < deadline and not (self.ended and pids.isdisjoint(process_parents())):
            time.sleep(0.02)
        kill_all(pids if not self.ended else pids - {self.process.pid}, signal.SIGKILL)
        self.process.wait()

    def finish(self) -> tuple[int, str]:
        """Return the exit status as a shell gives it, and the output."""
        status = self.process.wait()
        output = self.output()
        if len(output) <= RESULT_CHARS:
            os.unlink(self.path)
        return (128 - status if status < 0 else status), output


# ---- A tree of processes that do not want to be found ----

_KINDS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "setsid": ("setsid",),
    "double_fork": ("setsid", "fork"),
    "ignore_term": ("deaf",),
    "env_clear": ("setsid", "fork", "deaf", "scrub"),
    "stopped": ("deaf", "keep"),
    "hold_stdout": ("setsid", "fork", "hold"),
    "comet": ("setsid", "deaf", "comet"),
}


def plant(kind: str, seconds: int) -> list[int]:
    """Start one of the kinds above and return its pids, once it is what it is meant to be."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        _live(_KINDS[kind], seconds, writer)
    os.close(writer)
    said = b""
    while data := os.read(reader, 4096):
        said += data
    os.close(reader)
    if "fork" in _KINDS[kind] or kind == "comet":
        os.waitpid(child, 0)
    return [int(pid) for pid in said.split()]


def _live(traits: tuple[str, ...], seconds: int, ready: int) -> NoReturn:
    """Be such a process; closing `ready` says that it has become one."""
    try:
        _reset_signals("deaf" in traits)
        if "setsid" in traits:
            os.setsid()
        if "fork" in traits and os.fork():
            os._exit(0)
        _drop_standard_streams("hold" in traits)
        signal.alarm(seconds)
        if "comet" in traits:
            _fly(seconds, ready)
        if "keep" in traits:
            _keep_stopped(seconds, ready)
        os.write(ready, b"%d " % os.getpid())
        if "scrub" in traits:
            os.execvpe("sleep", ["sleep", str(seconds)], {})
        os.close(ready)
        while True:
            signal.pause()
    finally:
        os._exit(1)


def _reset_signals(deaf: bool) -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN if deaf else signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _drop_standard_streams(keep_stdout: bool) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 2) if keep_stdout else (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def _fly(seconds: int, ready: int) -> NoReturn:
    os.close(ready)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not os.fork():
        os.setsid()
        time.sleep(0.001)
    os._exit(0)


def _keep_stopped(seconds: int, ready: int) -> NoReturn:
    """Hold a stopped child, which no alarm could end, and end it in time."""
    child = os.fork()
    if not child:
        os.close(ready)
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(child, os.WUNTRACED)
    os.write(ready, b"%d %d " % (child, os.getpid()))
    os.close(ready)
    signal.alarm(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os._exit(0)


# ---- Lines with nothing of a turn in them ----

_TOOLS = _words("""
Task Bash CronCreate CronDelete CronList Edit EnterWorktree ExitWorktree ListAgents Monitor NotebookEdit
Read ReportFindings ScheduleWakeup SendMessage Skill TaskStop ToolSearch WebFetch WebSearch Workflow Write""")
_ASKING_TOOLS = ["AskUserQuestion", "EnterPlanMode", "ExitPlanMode"]
_COMMANDS = ["agents", "clear", "compact", "config", "context", "model", "usage"]
_SKILLS = ["debug", "verify"]
_AGENTS = ["claude", "Explore", "general-purpose", "Plan"]
_CAPABILITIES = ["interrupt_receipt_v1", "interrupt_cancel_queued_v1", "msg_lifecycle_v1"]
_NO_USAGE = {
    "input_tokens": 0,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
    "output_tokens": 0,
}
_WHOLE_USAGE: Json = {
    "output_tokens_details": {"thinking_tokens": 0},
    "server_tool_use": {"web_search_requests": 0, "web_fetch_requests": 0},
    "service_tier": "standard",
    "cache_creation": {"ephemeral_1h_input_tokens": 0, "ephemeral_5m_input_tokens": 0},
    "inference_geo": "",
    "iterations": [],
    "speed": "standard",
    "fallback_credit": None,
}
_SUBAGENT_STATS: Json = {
    "spawned": 0,
    "requested": {"background": 0, "foreground": 0, "unset": 0},
    "started_in_background": 0,
    "max_depth": 0,
    "spawned_by_subagents": 0,
    "completed": 0,
    "failed": 0,
    "killed": {"parent": 0, "user": 0, "system": 0},
    "refused": {"depth_limit": 0, "concurrency_limit": 0, "budget": 0},
    "by_type": {},
}
_FAST_MODE = {"fast_mode_state": "off", "fast_mode_disabled_reason": "sdk_opt_in_required"}


def config_folder() -> str:
    """Return where the real CLI would keep its files; it is only named, never written to."""
    return os.environ.get("CLAUDE_CONFIG_DIR") or os.environ.get("HOME", "/") + "/.claude"


def temporary_folder() -> str:
    """Return where files may be written."""
    return os.environ.get("TMPDIR") or "/tmp"


def tools_of(options: Options) -> list[str]:
    """Return the names of the tools there are."""
    if options.tools is not None and "default" not in options.tools:
        return options.tools
    extra = (_ASKING_TOOLS if options.asks else []) + (["StructuredOutput"] if options.structured else [])
    return sorted(_TOOLS + extra, key=lambda name: (name != "Task", name))


def init_fields(session: Session) -> Json:
    """Return what a turn's first line says of this process."""
    cwd = os.getcwd()
    slug = re.sub(r"[^0-9A-Za-z]", "-", cwd)
    return {
        "cwd": cwd,
        "tools": tools_of(session.options),
        "mcp_servers": [],
        "model": session.model,
        "permissionMode": session.mode,
        "slash_commands": _SKILLS + _COMMANDS,
        "terminal_slash_commands": ["color"],
        "apiKeySource": "ANTHROPIC_API_KEY",
        "claude_code_version": VERSION,
        "output_style": "default",
        "agents": _AGENTS,
        "skills": _SKILLS,
        "plugins": [{"name": "fake", "path": "builtin", "source": "fake@builtin"}],
        "capabilities": _CAPABILITIES,
        "analytics_disabled": True,
        "product_feedback_disabled": True,
        "served_by_anthropic": False,
        "memory_paths": {"auto": f"{config_folder()}/projects/{slug}/memory/"},
        "original_cwd": cwd,
        "additional_directories": [],
        "messaging_socket_path": f"{temporary_folder()}/cc-socks/{os.getpid()}.sock",
        **_FAST_MODE,
        "per_turn_effort_active": session.model in _DOLLARS_PER_MTOK,
        "ultrathink_available": False,
        "ultrathink_typed_raises": False,
        "view_mode": "default",
    }


def initialize_fields(session: Session) -> Json:
    """Return the answer to `initialize`; the real one has longer lists."""
    models = [{"value": alias, "resolvedModel": model, "displayName": alias} for alias, model in _MODEL_ALIASES.items()]
    return {
        "commands": [{"name": name, "description": "", "argumentHint": "", "builtin": True} for name in _COMMANDS],
        "agents": [{"name": name, "description": ""} for name in _AGENTS],
        "output_style": "default",
        "available_output_styles": ["default"],
        "user_output_styles_dir": f"{config_folder()}/output-styles",
        "models": models,
        "account": {"tokenSource": "none", "apiKeySource": "ANTHROPIC_API_KEY", "apiProvider": "firstParty"},
        "pid": os.getpid(),
        "claude_code_version": VERSION,
        "current_permission_mode": session.mode,
        "hook_on_failure_supported": True,
        "hooks_when_unanswered_kept": 0,
        "other_hook_ask_outranks_host": True,
        "feedback_mode": {"kind": "disabled"},
        "analytics_disabled": True,
        "remote_control_auto_enable": False,
        "remote_control_auto_connect_default": False,
        "remote_control_available": False,
        "remote_control_auto_on_by_default": False,
        "ide_rc_auto_enable_gate": False,
        **_FAST_MODE,
        "session_state": "running" if session.turn else "idle",
        "capabilities": ["ui_surface_v1"],
    }


def model_usage(model: str, tokens: tuple[int, int]) -> Json:
    """Return what a result says of one model: tokens in and out."""
    return {
        "inputTokens": tokens[0],
        "outputTokens": tokens[1],
        "cacheReadInputTokens": 0,
        "cacheCreationInputTokens": 0,
        "webSearchRequests": 0,
        "costUSD": cost_of(model, tokens),
        "contextWindow": 1_000_000,
        "maxOutputTokens": 128_000 if model in _DOLLARS_PER_MTOK else 32_000,
        "thinkingTokens": 0,
        "cacheCreationEphemeral5mInputTokens": 0,
        "cacheCreationEphemeral1hInputTokens": 0,
        "canonicalModel": model,
        "provider": "firstParty",
        "costBasis": "list" if model in _DOLLARS_PER_MTOK else "unknown",
    }


def cost_of(model: str, tokens: tuple[int, int]) -> float:
    """Return the list price in dollars; an unknown model costs as the default one."""
    per_input, per_output = _DOLLARS_PER_MTOK.get(model, (4.0, 20.0))
    return (tokens[0] * per_input + tokens[1] * per_output) / 1e6


# ---- The session: everything between two turns ----

_SETTABLE_MODES = ("acceptEdits", "auto", "bypassPermissions", "default", "dontAsk", "plan")


class Session:
    """One process's conversation: it reads, queues, answers control requests, and runs one turn at a time."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.id = options.session
        self.model = options.model
        self.mode = options.mode
        self.wire = Wire(self.receive)
        self.turn: Turn | None = None
        self.queue: list[str] = []
        self.replies: dict[str, Json] = {}
        self.asking: str | None = None
        self.tasks: list[Shell] = []
        self.tool: Shell | None = None
        self.last: Json = {"do": "text"}
        self.last_results = 0
        self.errors_seen: dict[str, int] = {}
        self.spent: dict[str, tuple[int, int]] = {}
        self.results = 0
        self.failed = False
        self.lingering = 0.0
        self.known_model = False

    @property
    def task_folder(self) -> str:
        """Where tools' output goes."""
        return f"{temporary_folder()}/claude-{os.getuid()}/{self.id}/tasks"

    def emit(self, kind: str, subtype: str | None = None, **fields: Any) -> None:
        """Say one line of this session."""
        head = {"type": kind, "subtype": subtype} if subtype else {"type": kind}
        write_all(encode_line({**head, **fields, "session_id": self.id, "uuid": new_uuid()}))

    def run(self) -> int:
        """Run turns until stdin closes or a signal ends it; return the exit status."""
        try:
            if self.options.resume_error:
                return self._refuse_resume(self.options.resume_error)
            while self._next_turn():
                pass
            return int(self.failed)
        except Interrupted:
            return 0
        except Ended as ended:
            return ended.status
        except FatalError as fatal:
            write_stderr(str(fatal))
            return 1
        finally:
            self._end_tools()

    def _next_turn(self) -> bool:
        self.wire.wait(LIFE_SECONDS, until=self._has_work)
        ended = [task for task in self.tasks if task.ended]
        if self.queue:
            prompt, self.queue = "\n".join(self.queue), []
            self._run_turn(prompt)
        elif ended:
            self._end_task(ended[0])
        return bool(self.queue or self.tasks or not self.wire.eof)

    def _has_work(self) -> bool:
        return bool(self.queue) or any(task.ended for task in self.tasks) or (self.wire.eof and not self.tasks)

    def _run_turn(self, prompt: str, **origin: Any) -> None:
        self.turn = Turn(self, prompt)
        try:
            self.turn.run(**origin)
        finally:
            self.turn = None
        if self.wire.signal:
            raise Ended(self.wire.exit_status)
        if self.lingering:
            self.wire.wait(self.lingering)
            raise Ended(int(self.failed))

    def _end_task(self, task: Shell) -> None:
        """Report a background command that has ended; the real CLI gives the model a turn on that."""
        self.tasks.remove(task)
        status = task.process.wait()
        patch = {"status": "completed" if status == 0 else "failed", "end_time": int(time.time() * 1000)}
        summary = f'Background command "{task.description}" completed (exit code {status})'
        self.emit("system", "task_updated", **task.task_fields, patch=patch)
        self.notify(task, patch["status"], task.path, summary)
        self.report_tasks()
        origin = {"kind": "task-notification", "producer": "session-task", "runId": task.run}
        self._run_turn("", origin=origin)

    def notify(self, task: Shell, status: object, path: str, summary: str) -> None:
        """Say that a task has ended."""
        fields = {"tool_use_id": task.use, "status": status, "output_file": path, "summary": summary}
        self.emit("system", "task_notification", **task.task_fields, **fields)

    def report_tasks(self) -> None:
        """Say which tasks run in the background."""
        fields = {"task_type": "local_bash"}
        tasks = [{**task.task_fields, **fields, "description": task.description} for task in self.tasks]
        self.emit("system", "background_tasks_changed", tasks=tasks)

    def report_started(self, task: Shell, *, background: bool) -> None:
        """Say that a command has become a task."""
        fields = {"tool_use_id": task.use, "description": task.description, "is_backgrounded": background}
        self.emit("system", "task_started", **task.task_fields, **fields, task_type="local_bash")

    def _end_tools(self) -> None:
        """Do what the real CLI does on a signal: end every tool's tree that it still knows."""
        shells = self.tasks + ([self.tool] if self.tool else [])
        if self.wire.signal:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for shell in shells:
                shell.kill(TERM_GRACE_SECONDS)

    def _refuse_resume(self, error: str) -> int:
        self.wire.wait(LIFE_SECONDS, until=lambda: self.queue or self.wire.eof)
        if self.queue:
            usage = {**_NO_USAGE, **_WHOLE_USAGE}
            self.emit(
                "result",
                "error_during_execution",
                duration_ms=0,
                duration_api_ms=0,
                is_error=True,
                num_turns=0,
                stop_reason=None,
                total_cost_usd=0,
                usage=usage,
                modelUsage={},
                permission_denials=[],
                result_index=0,
                errors=[error],
            )
        write_stderr(error)
        return 1

    # What comes in

    def receive(self, raw: bytes) -> None:
        """Take one line of stdin."""
        text = raw.decode("utf-8", "replace")
        if not text.strip():
            return
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            kind = re.match(r'\{"type":"(\w+)"', text)
            name = kind[1] if kind else "unknown"
            error = f"Error parsing streaming input line (type={name}, {len(text)} chars): SyntaxError"
            raise FatalError(error) from None
        if isinstance(line, dict):
            handlers = {"user": self._user, "control_request": self._control, "control_response": self._reply}
            handlers.get(str(line.get("type")), lambda _: None)(line)
        if line is None:
            raise FatalError(f"Error parsing streaming input line (type=unknown, {len(text)} chars): TypeError")

    def _user(self, line: Json) -> None:
        message = line.get("message")
        role = message.get("role", "undefined") if isinstance(message, dict) else "undefined"
        if role != "user" or not isinstance(message, dict):
            raise FatalError(f"Error: Expected message role 'user', got '{role}'")
        self.queue.append(_text_of(message.get("content")))

    def _reply(self, line: Json) -> None:
        response = line.get("response")
        if isinstance(response, dict):
            self.replies[str(response.get("request_id"))] = response

    def _control(self, line: Json) -> None:
        request = line.get("request")
        request = request if isinstance(request, dict) else {}
        subtype = str(request.get("subtype", "undefined"))
        answer = getattr(self, f"_control_{subtype}", None)
        body: Json = {"subtype": "error", "error": f"Unsupported control request subtype: {subtype}"}
        body = answer(request) if answer else {**body, "error_code": "unsupported_request"}
        if "request_id" in line:
            body["request_id"] = line["request_id"]
        write_all(encode_line({"type": "control_response", "response": body}))
        if subtype == "set_permission_mode" and body["subtype"] == "success":
            self.emit("system", "status", status=None, permissionMode=self.mode)

    def _control_initialize(self, _request: Json) -> Json:
        return {"subtype": "success", "response": initialize_fields(self)}

    def _control_interrupt(self, _request: Json) -> Json:
        self.wire.interrupt = self.turn is not None
        if self.asking:
            write_all(encode_line({"type": "control_cancel_request", "request_id": self.asking}))
        return {"subtype": "success", "response": {"still_queued": []}}

    def _control_set_model(self, request: Json) -> Json:
        self.model = resolve_model(str(request.get("model") or "default"))
        return {"subtype": "success", "response": {"model": self.model}}

    def _control_set_permission_mode(self, request: Json) -> Json:
        mode = request.get("mode")
        if mode not in _SETTABLE_MODES:
            error = f"Cannot set permission mode: must be one of {', '.join(_SETTABLE_MODES)}"
            return {"subtype": "error", "error": error, "error_code": "invalid_mode"}
        self.mode = str(mode)
        return {"subtype": "success", "response": {"mode": mode}}

    def _control_set_max_thinking_tokens(self, _request: Json) -> Json:
        return {"subtype": "success"}

    def _control_mcp_status(self, _request: Json) -> Json:
        return {"subtype": "success", "response": {"mcpServers": []}}


def _text_of(content: object) -> str:
    if isinstance(content, str):
        return content
    blocks = [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
    return "\n".join(str(block.get("text", "")) for block in blocks if block.get("type") == "text")


# ---- Directives ----


def find_directives(prompt: str) -> list[Json]:
    """Return the directives of a prompt, in order; what looks like one and is not JSON is plain text."""
    decoder, found = json.JSONDecoder(), []
    start = prompt.find(MARK + "{")
    while start >= 0:
        end = start = start + len(MARK)
        try:
            fields, end = decoder.raw_decode(prompt, start)
        except (ValueError, RecursionError):
            fields = None
        if fields is not None and prompt.startswith(MARK, end):
            found.append(fields)
            end += len(MARK)
        start = prompt.find(MARK + "{", end)
    return found


def field(directive: Json, name: str, kind: type[T], default: T | None = None) -> T:
    """Return a field that must be of `kind`, and must be there unless it has a default."""
    value = directive.get(name, default)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise DirectiveError(f"directive field {name!r} must be of type {kind.__name__}, not {value!r:.80}")
    return value


def seconds_of(directive: Json, name: str, default: float, unit: float = 1.0) -> float:
    """Return a duration given in multiples of `unit` seconds."""
    value = directive.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < LIFE_SECONDS * 1000:
        raise DirectiveError(f"directive field {name!r} must be a duration, not {value!r:.80}")
    return value * unit


def pieces_of(text: str, size: int) -> list[str]:
    """Cut a text."""
    return [text[at : at + size] for at in range(0, len(text), max(1, size))]


def text_block(pieces: list[str]) -> Block:
    """Return a content block: its start, its deltas, the whole."""
    deltas = [{"type": "text_delta", "text": piece} for piece in pieces]
    return {"type": "text", "text": ""}, deltas, {"type": "text", "text": "".join(pieces)}


def thinking_block(thought: str, signature: str) -> Block:
    """Return a thinking block."""
    whole = {"type": "thinking", "thinking": thought, "signature": signature}
    deltas = [
        {"type": "thinking_delta", "thinking": thought},
        {"type": "signature_delta", "signature": signature},
    ]
    return {"type": "thinking", "thinking": "", "signature": ""}, deltas, whole


def tool_block(name: str, tool_input: Json) -> Block:
    """Return a tool_use block."""
    start = {"type": "tool_use", "id": f"toolu_fake{os.urandom(8).hex()}", "name": name}
    pieces = pieces_of(json.dumps(tool_input), PIECE_CHARS)
    deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
    return {**start, "input": {}}, deltas, {**start, "input": tool_input}


# ---- Which commands run unasked ----

_HARMLESS = {"echo", "id", "sleep", "true", "pwd", "whoami", "date", "uname", "seq", "printf", "ls", "cat", "git"}
_WRITERS = {"touch", "mkdir", "cp", "mv", "rm", "rmdir", "chmod", "ln"}
_UNREADABLE = re.compile(r"[`>]|\$\(|(?<!&)&(?!&)|\b(?:for|while|until|if)\b")
_TO_A_STREAM = re.compile(r"[12]?>&[12]")


def is_harmless(command: str) -> bool:
    """Tell whether the real CLI, in its default mode, would run it unasked: a few known cases, and no for the rest."""
    command = _TO_A_STREAM.sub("", command)
    parts = re.split(r"&&|\|\||[;|\n]", command)
    return not _UNREADABLE.search(command) and all(_is_harmless_part(part.split()) for part in parts)


def _is_harmless_part(words: list[str]) -> bool:
    if not words or words[0] not in _HARMLESS:
        return not words
    if words[0] == "git":
        return words[1:2] == ["status"]
    return words[0] not in ("ls", "cat") or not any(word.startswith(("/", "~")) or ".." in word for word in words)


def is_allowed(command: str, rules: list[str]) -> bool:
    """Tell whether a rule such as ``Bash`` or ``Bash(git:*)`` covers the command."""
    for rule in rules:
        prefix = re.fullmatch(r"Bash\((.*?)(:\*)?\)", rule)
        if rule == "Bash" or (prefix and (command == prefix[1] or (prefix[2] and command.startswith(prefix[1])))):
            return True
    return False


# ---- API errors ----

_GATEWAY = "If it persists, check your inference gateway (127.0.0.1)."
_SERVER_SIDE = f"This is a server-side issue, usually temporary — try again in a moment. {_GATEWAY}"
_API_ERRORS: dict[int, tuple[str, str, str]] = {
    400: ("invalid_request_error", "unknown", "API Error: 400 {message}"),
    401: ("authentication_error", "authentication_failed", "Failed to authenticate. API Error: 401 {message}"),
    403: ("permission_error", "authentication_failed", "Failed to authenticate. API Error: 403 {message}"),
    404: (
        "not_found_error",
        "model_not_found",
        "There's an issue with the selected model ({model}). It may not exist or you may not have access to it. "
        "Run --model to pick a different model.",
    ),
    413: ("request_too_large", "unknown", "API Error: 413 {message}"),
    429: ("rate_limit_error", "rate_limit", "API Error: Request rejected (429) · {message}"),
    500: ("api_error", "server_error", f"API Error: 500 {{message}}. {_SERVER_SIDE}"),
    503: ("api_error", "server_error", f"API Error: 503 {{message}}. {_SERVER_SIDE}"),
    529: (
        "overloaded_error",
        "server_error",
        "API Error: Repeated 529 Overloaded errors. The API is at capacity — this is usually temporary. "
        f"Try again in a moment. {_GATEWAY}",
    ),
}
_RETRIES_AT_MOST = {400: 0, 403: 0, 404: 0, 413: 0, 529: 2}


# ---- A turn ----


class Turn:
    """One turn, from its init line to its result.

    Error handling: `TurnOver` and `Interrupted` end in a result; `Ended` and `FatalError` leave without one.
    """

    def __init__(self, session: Session, prompt: str) -> None:
        self.session = session
        self.prompt = prompt
        self.started = time.monotonic()
        self.rounds = 0
        self.tool_results = 0
        self.text = ""
        self.stop_reason: str | None = "end_turn"
        self.tokens = (0, 0)
        self.denials: list[Json] = []
        self.begun: list[str] = []
        self.message = ""
        self.structured: Json = {}

    # The frame

    def run(self, **origin: Any) -> None:
        """Perform the prompt's directives, and say how it ended."""
        directives = self._directives()
        if any(directive.get("ignore_term") for directive in directives):
            self.session.wire.stubborn = True
        if directives[0].get("do") != "silent" and directives[0].get("init", True):
            self._open()
        try:
            for directive in directives:
                self._perform(directive)
            self._result("success", **self._success_fields(), **origin)
        except Interrupted:
            self._abort_stream("")
            self._result(**self._aborted("aborted_streaming"))
        except TurnOver as over:
            self._result(**over.fields)

    def _directives(self) -> list[Json]:
        found = find_directives(self.prompt)
        self.tool_results = 0 if found else self.session.last_results
        return found or [self.session.last]

    def _open(self) -> None:
        session = self.session
        session.emit("system", "init", **init_fields(session))
        if session.options.replay and self.prompt:
            message = {"role": "user", "content": self.prompt}
            session.emit("user", message=message, parent_tool_use_id=None, timestamp=timestamp(), isReplay=True)
        if not session.model.startswith("claude-") and not session.known_model:
            session.known_model = True
            warning = json.dumps({"model": session.model, "query_source": "sdk"}, separators=(",", ":"))
            write_stderr(f"[claude-code:unrecognized_model] {warning}")

    def _perform(self, directive: Json) -> None:
        try:
            do = field(directive, "do", str, "text")
            if do in _OWN:
                _OWN[do](self, directive)
            else:
                self._answer(do, directive)
        except ValueError as error:
            self._fail(400, str(error))

    def _answer(self, do: str, directive: Json) -> None:
        self._request()
        if do not in _ANSWERS:
            raise DirectiveError(f"unknown directive {do!r:.80}")
        self.session.last = directive
        try:
            _ANSWERS[do](self, directive)
        finally:
            self.session.last_results = self.tool_results

    def _success_fields(self) -> Json:
        return {
            "terminal_reason": "completed",
            "is_error": False,
            "api_error_status": None,
            "result": json.dumps(self.structured, separators=(",", ":")) if self.structured else self.text,
            "ttft_ms": 1,
            "ttft_stream_ms": 1,
            "time_to_request_ms": 1,
            "first_content_frame_ms": 1,
            **({"structured_output": self.structured} if self.structured else {}),
        }

    def _aborted(self, reason: str) -> Json:
        self.rounds += 1
        self.stop_reason = "tool_use" if reason == "aborted_tools" else None
        stop = self.stop_reason or "null"
        error = f"[ede_diagnostic] result_type=user last_content_type=n/a stop_reason={stop}"
        return {
            "subtype": "error_during_execution",
            "terminal_reason": reason,
            "is_error": True,
            "errors": [error],
            "usage_known": reason == "aborted_tools",
        }

    def _result(self, subtype: str, *, usage_known: bool = True, **fields: Any) -> None:
        session = self.session
        milliseconds = int((time.monotonic() - self.started) * 1000)
        tokens = self.tokens if usage_known else (0, 0)
        begun = {"begun_message_ids": self.begun} if session.options.partial else {}
        session.failed = bool(fields["is_error"])
        session.emit(
            "result",
            subtype,
            duration_api_ms=milliseconds if usage_known else 0,
            duration_ms=milliseconds,
            stop_reason=self.stop_reason,
            total_cost_usd=sum(cost_of(model, spent) for model, spent in session.spent.items()),
            usage={**_NO_USAGE, "input_tokens": tokens[0], "output_tokens": tokens[1], **_WHOLE_USAGE},
            modelUsage={model: model_usage(model, spent) for model, spent in session.spent.items()},
            permission_denials=self.denials,
            **_FAST_MODE,
            subagent_stats=_SUBAGENT_STATS,
            safety_stops=0,
            num_turns=1 + self.rounds,
            queued_turn_count=0,
            result_index=session.results,
            model_usage_since_last_result=self._usage_by_model(),
            **begun,
            **fields,
        )
        session.results += 1

    def _usage_by_model(self) -> Json:
        model = self.session.model
        return {model: model_usage(model, self.tokens)} if any(self.tokens) else {}

    def wait(self, seconds: float, until: Callable[[], object] = lambda: False) -> None:
        """Let time pass; an interrupt or a signal ends it."""
        self.session.wire.wait(seconds, until)

    # Saying

    def _request(self) -> None:
        if self.session.options.partial:
            self.session.emit("system", "status", status="requesting")

    def event(self, kind: str, *, extra: Json | None = None, **fields: Any) -> None:
        """Say one event of the API, if such are asked for."""
        if self.session.options.partial:
            event = {"type": kind, **fields}
            more = {"parent_tool_use_id": None, "api_message_id": self.message, **(extra or {})}
            self.session.emit("stream_event", event=event, **more)

    def _begin_message(self) -> None:
        self.message = f"msg_fake{os.urandom(8).hex()}"
        self.begun.append(self.message)
        shown = {"ttft_ms": 1, "thinking_display": "updates"}
        self.event("message_start", message=self._head([]), extra=shown)

    def _head(self, content: list[Json]) -> Json:
        return {
            "id": self.message,
            "type": "message",
            "role": "assistant",
            "model": self.session.model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {**_NO_USAGE, "input_tokens": 10, "output_tokens": 1},
        }

    def assistant(self, message: Json, **fields: Any) -> None:
        """Say one content block, as an assistant line."""
        message = {**message, "context_management": None}
        more = {"parent_tool_use_id": None, "timestamp": timestamp(), "request_id": "req_stub", **fields}
        self.session.emit("assistant", message=message, **more)

    def user(self, block: Json, **fields: Any) -> None:
        """Say what the model is told next."""
        message = {"role": "user", "content": [block]}
        self.session.emit("user", message=message, parent_tool_use_id=None, timestamp=timestamp(), **fields)

    def say(self, blocks: list[Block], *, stop: str = "end_turn", tokens: int = 7, pause: float = 0.0) -> None:
        """Stream one message of the model to its end."""
        self._begin_message()
        for index, (start, deltas, whole) in enumerate(blocks):
            self._stream(index, start, deltas, pause)
            thinks = whole["type"] == "thinking"
            shown = {"thinking_duration_ms": 1, "thinking_display": "updates"} if thinks else {}
            self.assistant(self._head([whole]), **shown)
            self.event("content_block_stop", index=index)
        self.event("message_delta", delta={"stop_reason": stop, "stop_sequence": None}, usage={"output_tokens": tokens})
        self.event("message_stop")
        self._spend(tokens)
        self.stop_reason = stop
        self.text = str(blocks[-1][2].get("text", ""))

    def _stream(self, index: int, start: Json, deltas: list[Json], pause: float) -> None:
        thinks = start["type"] == "thinking"
        said: list[str] = []
        self.event("content_block_start", index=index, content_block=start, extra=_shown(thinks))
        try:
            for delta in deltas:
                if delta["type"] == "thinking_delta":
                    self.session.emit("system", "thinking_tokens", estimated_tokens=4, estimated_tokens_delta=4)
                shown = _shown(delta["type"] == "thinking_delta")
                self.event("content_block_delta", index=index, delta=delta, extra=shown)
                said.append(delta.get("text", ""))
                self.wait(pause)
        except Interrupted:
            self._abort_stream("".join(said), index)
            raise TurnOver(**self._aborted("aborted_streaming")) from None

    def _spend(self, tokens: int) -> None:
        model = self.session.model
        before = self.session.spent.get(model, (0, 0))
        self.session.spent[model] = (before[0] + 10, before[1] + tokens)
        self.tokens = (self.tokens[0] + 10, self.tokens[1] + tokens)

    def _abort_stream(self, said: str, index: int | None = None) -> None:
        """Say what an interrupted message leaves: what was said of it, and an end to its events."""
        if said:
            self.assistant(self._head([{"type": "text", "text": said}]), aborted=True)
        self.user({"type": "text", "text": INTERRUPTED})
        if index is None:
            return
        self._spend(len(said) // 3)
        usage = {**_NO_USAGE, **_WHOLE_USAGE, "input_tokens": 10, "output_tokens": 1}
        for name in ("service_tier", "cache_creation", "inference_geo", "speed"):
            del usage[name]
        delta = {"container": None, "stop_details": None, "stop_reason": None, "stop_sequence": None}
        self.event("content_block_stop", index=index)
        self.event("message_delta", context_management=None, delta=delta, usage=usage)
        self._abandon(index + 1)

    def _abandon(self, index: int) -> None:
        void = {"api_message_id": self.message, "from_block_index": index}
        self.event("message_stop", extra={"abandoned_blocks": void})

    def _check_limits(self) -> None:
        options = self.session.options
        if options.max_turns and self.rounds >= options.max_turns:
            error = f"Reached maximum number of turns ({options.max_turns})"
            raise TurnOver(subtype="error_max_turns", terminal_reason="max_turns", is_error=True, errors=[error])

    def _check_budget(self) -> None:
        budget = self.session.options.max_budget
        spent = sum(cost_of(model, tokens) for model, tokens in self.session.spent.items())
        if budget is not None and spent > budget:
            fields = {"terminal_reason": "budget_exhausted", "is_error": True, "usage_known": False}
            raise TurnOver(subtype="error_max_budget_usd", errors=[f"Reached maximum budget (${budget:g})"], **fields)

    # Errors of the API

    def _retry(self, attempt: int, delay_ms: int, status: int | None, error: str) -> None:
        fields = {"attempt": attempt, "max_retries": self.session.options.retries, "retry_delay_ms": delay_ms}
        self.session.emit("system", "api_retry", **fields, error_status=status, error=error)
        self.wait(delay_ms / 1000)

    def _fail(self, status: int, message: str) -> NoReturn:
        kind, error, text = _API_ERRORS[status]
        text = text.format(message=message, model=self.session.model)
        fields = {"is_api_error_message": True, "api_error_status": status, "api_error_type": kind}
        self.assistant(_synthetic(text), error=error, **fields)
        self.stop_reason = "stop_sequence"
        raise TurnOver(
            subtype="success",
            terminal_reason="api_error",
            is_error=True,
            api_error_status=status,
            api_error_type=kind,
            result=text,
        )

    def _fall_back(self) -> None:
        """Ask again without streaming, as the CLI does when a stream has broken."""
        self.message = f"msg_fake{os.urandom(8).hex()}"
        head = self._head([{"type": "text", "text": "non-stream answer"}])
        usage = {**head["usage"], **_WHOLE_USAGE, "output_tokens": 3}
        self.assistant({**head, "stop_reason": "end_turn", "usage": usage})
        self._spend(3)
        self.text = "non-stream answer"

    def break_off(self, count: int, pause: float) -> None:
        """Stream a message that never ends, and void it."""
        self._begin_message()
        start, deltas, _whole = text_block([f"tok{number} " for number in range(count)])
        self._stream(0, start, deltas, 0.0)
        try:
            self.wait(pause)
        except Interrupted:
            self._abort_stream("".join(delta["text"] for delta in deltas), 0)
            raise TurnOver(**self._aborted("aborted_streaming")) from None
        self.event("content_block_stop", index=0)
        self._abandon(0)

    # Tools

    def use_tools(self, directive: Json, calls: list[tuple[str, Json]]) -> None:
        """Use these tools in each of so many rounds, then say so."""
        while self.tool_results < len(calls) * field(directive, "rounds", int, 1):
            uses = [tool_block(name, dict(tool_input)) for name, tool_input in calls]
            self.say([text_block(["I will ", "run it."]), *uses], stop="tool_use", tokens=20)
            for _start, _deltas, use in uses:
                self.tool_results += 1
                self._use_tool(use)
            self.rounds += 1
            if self.structured:
                return
            self._check_limits()
            self._check_budget()
            self._request()
        self.say([text_block(["All ", "done ", f"after {self.tool_results} tool results."])])
        self._check_budget()

    def _use_tool(self, use: Json) -> None:
        try:
            tool_input, decision = self._judge(use)
            if use["name"] == "StructuredOutput":
                self._give_structured(use)
            else:
                self._bash(use, tool_input, decision)
        except Refused as refused:
            self._refuse(use, refused)
        except Interrupted:
            self._reject(use)

    def _refuse(self, use: Json, refused: Refused) -> None:
        meta = {"tool_result_meta": [{"id": use["id"], **refused.meta}]} if refused.meta else {}
        told = refused.message if refused.meta else f"<tool_use_error>Error: {refused.message}</tool_use_error>"
        self._tool_result(use, told, is_error=True, tool_use_result=f"Error: {refused.message}", **meta)

    def _reject(self, use: Json) -> NoReturn:
        """End the turn that was interrupted in a tool; the process tree of the tool goes with it."""
        tool, self.session.tool = self.session.tool, None
        told = REJECTED + (STOPPED if tool and not self.session.wire.signal else "")
        if tool:
            tool.kill(TERM_GRACE_SECONDS if self.session.wire.signal else 0.0)
            tool.finish()
        meta = [{"id": use["id"], "non_execution_kind": "user-rejected"}]
        self._tool_result(use, told, is_error=True, tool_use_result="User rejected tool use", tool_result_meta=meta)
        self.user({"type": "text", "text": INTERRUPTED_TOOL})
        self.rounds += 1
        raise TurnOver(**self._aborted("aborted_tools"))

    def _tool_result(self, use: Json, content: str, *, is_error: bool | None, **fields: Any) -> None:
        block: Json = {"type": "tool_result", "content": content, "tool_use_id": use["id"]}
        if is_error is not None:
            block["is_error"] = is_error
        self.user(block, **fields)

    def _give_structured(self, use: Json) -> None:
        said = "Structured output provided successfully"
        decision = {"decision": "accept", "source": "config"}
        meta = [{"id": use["id"], "permission_decision": decision}]
        self._tool_result(use, said, is_error=None, tool_use_result=said, tool_result_meta=meta)
        self.structured = use["input"]

    # May it run?

    def _judge(self, use: Json) -> tuple[Json, Json]:
        """Return the input to run with, and the decision to report; or raise `Refused`."""
        options, command = self.session.options, str(use["input"].get("command", ""))
        self._check_tool(use["name"])
        accepted = {"decision": "accept", "source": "config"}
        if is_allowed(command, options.allowed):
            return use["input"], {**accepted, "reason_type": "rule"}
        if self.session.mode == "bypassPermissions":
            return use["input"], {**accepted, "reason_type": "mode"}
        edits = self.session.mode == "acceptEdits" and command.split()[:1] and command.split()[0] in _WRITERS
        if use["name"] == "StructuredOutput" or edits or is_harmless(command):
            return use["input"], {**accepted, "reason_type": "subcommandResults"}
        self.denials.append({"tool_name": use["name"], "tool_use_id": use["id"], "tool_input": use["input"]})
        if options.asks and self.session.mode != "dontAsk":
            return self._ask(use), {"decision": "accept", "source": "user_temporary"}
        raise self._deny(use, command)

    def _check_tool(self, name: str) -> None:
        if name not in ("Bash", "StructuredOutput") or name not in tools_of(self.session.options):
            known = " Bash is disabled for this session, in subagents as well as here." if name == "Bash" else ""
            raise Refused(f"No such tool available: {name}.{known}", None)

    def _deny(self, use: Json, command: str) -> Refused:
        reason: Json = {}
        if self.session.mode == "dontAsk":
            reason = {"decision_reason_type": "mode"}
            message = "Permission to use Bash has been denied because Claude Code is running in don't ask mode."
        elif command.split()[:1] and command.split()[0] in _WRITERS:
            message = f"{command.split()[0]} needs approval. Claude Code asks before a shell command changes files."
        else:
            message = "This command requires approval"
            reason = {"decision_reason_type": "other", "decision_reason": message}
        fields = {"tool_name": use["name"], "tool_use_id": use["id"], **reason}
        self.session.emit("system", "permission_denied", **fields, message=message)
        decision = {"decision": "reject", "source": "config"}
        if self.session.mode == "dontAsk":
            decision["reason_type"] = "mode"
            return Refused(message, {"non_execution_kind": "permission-rule", "permission_decision": decision})
        return Refused(message, {"non_execution_kind": "user-rejected", "permission_decision": decision})

    def _ask(self, use: Json) -> Json:
        """Ask the program that started this CLI; return the input to run with."""
        session = self.session
        request = new_uuid()
        write_all(encode_line({"type": "control_request", "request_id": request, "request": _question(use)}))
        session.asking = request
        try:
            self.wait(LIFE_SECONDS, until=lambda: request in session.replies or session.wire.eof)
        finally:
            session.asking = None
        tool_input = self._heed(use, session.replies.pop(request, None))
        self.denials.pop()
        return tool_input

    def _heed(self, use: Json, reply: Json | None) -> Json:
        failed = "Tool permission request failed: "
        if reply is None:
            raise _unanswered(failed + "AbortError: Tool permission stream closed before response received")
        if reply.get("subtype") != "success":
            raise _unanswered(f"{failed}Error: {reply.get('error')}")
        verdict = reply.get("response")
        verdict = verdict if isinstance(verdict, dict) else {}
        if verdict.get("behavior") == "allow":
            changed = verdict.get("updatedInput")
            return changed if isinstance(changed, dict) else dict(use["input"])
        if verdict.get("behavior") != "deny" or not isinstance(verdict.get("message"), str):
            raise _unanswered(BAD_VERDICT)
        if verdict.get("interrupt"):
            raise Interrupted
        decision = {"decision": "reject", "source": "user_reject"}
        raise Refused(verdict["message"], {"non_execution_kind": "permission-rule", "permission_decision": decision})

    # Bash

    def _bash(self, use: Json, tool_input: Json, decision: Json) -> None:
        shell = self.session.tool = Shell(tool_input, use["id"], self.session.task_folder)
        meta = [{"id": use["id"], "permission_decision": decision}]
        timeout = seconds_of(tool_input, "timeout", 120_000, unit=0.001)
        try:
            background = bool(tool_input.get("run_in_background")) or not self._await_shell(shell, timeout)
        except Ended:
            self._die_with(shell, use, meta)
            raise
        self.session.tool = None
        if background:
            self._leave_running(shell, use, meta, None if tool_input.get("run_in_background") else timeout)
        else:
            self._report(shell, use, meta)

    def _await_shell(self, shell: Shell, timeout: float) -> bool:
        self.wait(min(timeout, SLOW_TOOL_SECONDS), until=lambda: shell.ended)
        if not shell.ended and timeout > SLOW_TOOL_SECONDS:
            self.session.report_started(shell, background=False)
            self.wait(timeout - SLOW_TOOL_SECONDS, until=lambda: shell.ended)
            if shell.ended:
                self.session.notify(shell, "completed", "", shell.description)
        return shell.ended

    def _die_with(self, shell: Shell, use: Json, meta: list[Json]) -> None:
        """Take the tool's tree along when a signal ends this CLI, and report it as the real one does."""
        signal.setitimer(signal.ITIMER_REAL, FLUSH_SECONDS + TERM_GRACE_SECONDS)
        self.session.tool = None
        shell.kill(TERM_GRACE_SECONDS)
        self._report(shell, use, meta)

    def _report(self, shell: Shell, use: Json, meta: list[Json]) -> None:
        status, output = shell.finish()
        if status:
            text = f"Exit code {status}\n{output}".rstrip("\n")
            self._tool_result(use, text, is_error=True, tool_use_result=f"Error: {text}", tool_result_meta=meta)
            return
        shown, extra = output or "(Bash completed with no output)", {}
        if len(output) > RESULT_CHARS:
            size = len(output.encode())
            extra = {"persistedOutputPath": shell.path, "persistedOutputSize": size}
            saved = f"Output too large ({size / 1024:.1f}KB). Full output saved to: {shell.path}"
            shown = f"<persisted-output>\n{saved}\n\nPreview (first 2KB):\n{output[:2000]}\n...\n</persisted-output>"
        self._tool_success(use, shell, shown, output[:RESULT_CHARS], meta, **extra)

    def _tool_success(self, use: Json, shell: Shell, shown: str, output: str, meta: list[Json], **extra: Any) -> None:
        silent = shell.command.split()[:1] and shell.command.split()[0] in _WRITERS and not output
        result = {
            "stdout": output,
            "stderr": "",
            "interrupted": False,
            "isImage": False,
            "noOutputExpected": bool(silent),
            **extra,
        }
        self._tool_result(use, shown, is_error=False, tool_use_result=result, tool_result_meta=meta)

    def _leave_running(self, shell: Shell, use: Json, meta: list[Json], timeout: float | None) -> None:
        """Let a command go on in the background, from its start or after its time."""
        session = self.session
        session.tasks.append(shell)
        session.report_tasks()
        session.report_started(shell, background=True)
        where = f"Output is being written to: {shell.path}. You will be notified when it completes."
        shown = f"Command running in background with ID: {shell.task}. {where}"
        extra: Json = {"backgroundTaskId": shell.task}
        if timeout is not None:
            moved = f"Command did not complete within its {timeout:g}s timeout and was moved to the background"
            shown = f"{shell.output()}\n{moved} (ID: {shell.task}). {where}"
            extra["timedOutAfterMs"] = int(timeout * 1000)
        self._tool_success(use, shell, shown, shell.output(), meta, **extra)


def _shown(thinks: bool) -> Json:
    return {"thinking_display": "updates"} if thinks else {}


def _unanswered(message: str) -> Refused:
    decision = {"decision": "reject", "source": "config", "reason_type": "other"}
    return Refused(message, {"non_execution_kind": "permission-rule", "permission_decision": decision})


def _question(use: Json) -> Json:
    """Return what a permission request says; the real suggestions depend on the command, these suit one that writes."""
    cwd = os.getcwd()
    command = use["input"].get("command", "")
    rule = {"toolName": "Bash", "ruleContent": command}
    return {
        "subtype": "can_use_tool",
        "tool_name": use["name"],
        "display_name": use["name"],
        "input": use["input"],
        "description": use["input"].get("description", ""),
        "permission_suggestions": [
            {"type": "addRules", "rules": [rule], "behavior": "allow", "destination": "localSettings"},
            {"type": "addDirectories", "directories": [cwd], "destination": "session"},
            {"type": "setMode", "mode": "acceptEdits", "destination": "session"},
        ],
        "blocked_path": f"{cwd}/{command.split()[-1] if command.split() else ''}",
        "tool_use_id": use["id"],
    }


def _synthetic(text: str) -> Json:
    """Return the message that the CLI makes up itself when the API has failed."""
    unknown = {"output_tokens_details": None, "service_tier": None, "inference_geo": None, "iterations": None}
    return {
        "diagnostics": None,
        "id": new_uuid(),
        "container": None,
        "model": "<synthetic>",
        "role": "assistant",
        "stop_details": None,
        "stop_reason": "stop_sequence",
        "stop_sequence": "",
        "type": "message",
        "usage": {**_NO_USAGE, **_WHOLE_USAGE, **unknown, "speed": None},
        "content": [{"type": "text", "text": text}],
    }


# ---- One function a directive: the API's answers ----


def _text(turn: Turn, directive: Json) -> None:
    text = field(directive, "text", str, "Hello from stub.")
    deltas = max(1, field(directive, "deltas", int, 3))
    turn.say([text_block(pieces_of(text, -(-len(text) // deltas)))])
    turn._check_budget()


def _slow(turn: Turn, directive: Json) -> None:
    count = field(directive, "n", int, 100)
    pause = seconds_of(directive, "ms", 50, unit=0.001)
    turn.say([text_block([f"tok{number} " for number in range(count)])], tokens=count, pause=pause)


def _many(turn: Turn, directive: Json) -> None:
    count = field(directive, "n", int, 5000)
    turn.say([text_block([f"tok{number} " for number in range(count)])], tokens=count)


def _bigtext(turn: Turn, directive: Json) -> None:
    turn.say([text_block(["x" * field(directive, "bytes", int, 1_000_000)])])


def _think(turn: Turn, directive: Json) -> None:
    text = field(directive, "text", str, "Thought answer.")
    turn.say([thinking_block("Let me think. ", "c2ln"), text_block([text])])


def _bash(turn: Turn, directive: Json) -> None:
    tool_input: Json = {"command": field(directive, "cmd", str), "description": "stub command"}
    if field(directive, "bg", bool, False):
        tool_input["run_in_background"] = True
    if "timeout" in directive:
        tool_input["timeout"] = field(directive, "timeout", int)
    turn.use_tools(directive, [("Bash", tool_input)])


def _tool(turn: Turn, directive: Json) -> None:
    turn.use_tools(directive, [_call(directive)])


def _tools(turn: Turn, directive: Json) -> None:
    calls = field(directive, "calls", list)
    if not calls or not all(isinstance(call, dict) for call in calls):
        raise DirectiveError("directive field 'calls' must hold objects, at least one")
    turn.use_tools(directive, [_call(call) for call in calls])


def _call(directive: Json) -> tuple[str, Json]:
    return field(directive, "name", str), field(directive, "input", dict, {})


def _err(turn: Turn, directive: Json) -> None:
    status, times = field(directive, "status", int), field(directive, "times", int, -1)
    if status not in _API_ERRORS:
        raise DirectiveError(f"directive field 'status' cannot be {status}")
    retries = turn.session.options.retries
    retries = 0 if field(directive, "noretry", bool, False) else min(retries, _RETRIES_AT_MOST.get(status, retries))
    seen, source = turn.session.errors_seen, json.dumps(directive)
    for attempt in range(1, retries + 2):
        if 0 <= times <= seen.get(source, 0):
            turn.say([text_block([f"ok after {times} errors"])])
            return
        seen[source] = seen.get(source, 0) + 1
        if attempt <= retries:
            error = "overloaded" if status == 529 else _API_ERRORS[status][1]
            turn._retry(attempt, _delay_ms(directive, attempt), status, error)
    turn._fail(status, f"stub error {status}")


def _delay_ms(directive: Json, attempt: int) -> int:
    if "retry_after" in directive:
        return int(seconds_of(directive, "retry_after", 0) * 1000)
    return RETRY_DELAYS_MS[min(attempt, len(RETRY_DELAYS_MS)) - 1]


def _miderr(turn: Turn, directive: Json) -> None:
    turn.break_off(field(directive, "n", int, 5), 0.0)
    turn._fall_back()


def _reset(turn: Turn, directive: Json) -> None:
    count, retries = field(directive, "n", int, 5), turn.session.options.retries
    for attempt in range(1, retries + 1):
        turn.break_off(count, 0.2)
        turn._retry(attempt, _delay_ms({}, attempt), None, "unknown")
    turn.break_off(count, 0.2)
    turn._fall_back()


def _stall(turn: Turn, directive: Json) -> None:
    turn.break_off(field(directive, "n", int, 5), STALL_SECONDS)
    turn._fall_back()


def _hang(turn: Turn, _directive: Json) -> None:
    turn.wait(LIFE_SECONDS)


_ANSWERS: dict[str, Callable[[Turn, Json], None]] = {
    "text": _text,
    "slow": _slow,
    "many": _many,
    "bigtext": _bigtext,
    "think": _think,
    "bash": _bash,
    "tool": _tool,
    "tools": _tools,
    "err": _err,
    "miderr": _miderr,
    "reset": _reset,
    "stall": _stall,
    "hang": _hang,
}


# ---- One function a directive: its own ----


def _lines(turn: Turn, directive: Json) -> None:
    count, rate = field(directive, "n", int, 1), seconds_of(directive, "rate", 0)
    size = field(directive, "size", int, 0)
    started, number = time.monotonic(), 1
    while number <= count:
        due = count if not rate else min(count, 1 + int((time.monotonic() - started) * rate))
        last = min(due, number + max(1, BATCH_BYTES // max(size, 40)) - 1)
        write_all(b"".join(_numbered(n, size) for n in range(number, last + 1)))
        number = max(number, last + 1)
        next_due = started + (number - 1) / rate if rate else 0.0
        turn.wait(max(0.0, next_due - time.monotonic()) if number <= count else 0.0)


def _numbered(number: int, size: int) -> bytes:
    head = b'{"type":"fake","n":%d,"pad":"' % number
    return head + b"x" * (size - len(head) - 2) + b'"}\n'


def _stderr(_turn: Turn, directive: Json) -> None:
    line = field(directive, "text", str, "fake stderr")
    write_stderr("\n".join([line] * field(directive, "n", int, 1)))


def _exit(_turn: Turn, directive: Json) -> None:
    raise Ended(field(directive, "status", int, 0))


def _signal(_turn: Turn, directive: Json) -> None:
    number = field(directive, "n", int)
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _silent(turn: Turn, _directive: Json) -> None:
    """Stay, deaf to everything but signals; even their usual last words are not said."""
    turn.session.wire.deaf = True
    try:
        turn.wait(LIFE_SECONDS)
    except Interrupted:
        raise Ended(0) from None


def _raw(_turn: Turn, directive: Json) -> None:
    if "hex" in directive:
        write_all(bytes.fromhex(field(directive, "hex", str)))
    else:
        write_all(field(directive, "text", str).encode("utf-8", "backslashreplace"))


def _nonewline(turn: Turn, directive: Json) -> None:
    left = field(directive, "bytes", int, 10_000_000)
    while left > 0:
        write_all(b"x" * min(left, BATCH_BYTES))
        left -= BATCH_BYTES
        turn.wait(0)


def _closeout(turn: Turn, directive: Json) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # not closed: the next file opened would become stdout
    os.close(null)
    _silent(turn, directive)


def _linger(turn: Turn, directive: Json) -> None:
    turn.session.lingering = seconds_of(directive, "seconds", 10)


def _tree(turn: Turn, directive: Json) -> None:
    kinds, seconds = field(directive, "kinds", list, ["plain"]), int(seconds_of(directive, "seconds", 60))
    if unknown := [kind for kind in kinds if kind not in _KINDS]:
        raise DirectiveError(f"unknown kinds {unknown!r:.80}")
    by_kind = {kind: plant(kind, max(1, min(seconds, TREE_SECONDS))) for kind in kinds}
    pids = [pid for group in by_kind.values() for pid in group]
    write_all(encode_line({"type": "fake", "pids": pids, "by_kind": by_kind}))
    then = directive.get("then")
    if then == "exit":
        raise Ended(0)
    if then == "stay":
        _silent(turn, directive)


_OWN: dict[str, Callable[[Turn, Json], None]] = {
    "lines": _lines,
    "stderr": _stderr,
    "exit": _exit,
    "signal": _signal,
    "silent": _silent,
    "raw": _raw,
    "nonewline": _nonewline,
    "closeout": _closeout,
    "linger": _linger,
    "tree": _tree,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Be the CLI until stdin closes; return the exit status."""
    try:
        flags = parse_flags(sys.argv[1:] if arguments is None else arguments)
        if "--version" in flags:
            write_all(f"{VERSION} (Fake Claude)\n".encode())
            return 0
        return Session(Options(flags)).run()
    except FatalError as fatal:
        write_stderr(str(fatal))
        return 1


if __name__ == "__main__":
    sys.exit(main())
