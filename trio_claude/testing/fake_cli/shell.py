"""Run one Bash command as the real CLI does: in its own session, its output in a file, off the CLI's own stdout.

Rule: nothing here decides whether a command may run, and no shell lives longer than `BASH_SECONDS`, by its own alarm;
what it detaches is the command's affair.
"""

from __future__ import annotations

import os
import signal
import time

from ..model import Json

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess


BASH_SECONDS = 600
TERM_GRACE_SECONDS = 1.5
OUTPUT_CHARS = 30_000
"""More of an output is not told, as the real CLI puts it into a file."""


def temporary_folder() -> str:
    """Return where files may be written."""
    return os.environ.get("TMPDIR") or "/tmp"


class Shell:
    """One command. Resource handling: `finish` reaps it and removes its file; one that is never finished keeps both.

    Raises OSError and ValueError where no process takes the command.
    """

    def __init__(self, use: Json, tool_input: Json, session: str) -> None:
        self.use: str = use["id"]
        self.description: str = str(tool_input.get("description", ""))
        self.command: str = str(tool_input.get("command", ""))
        self.task: str = "b" + os.urandom(4).hex()
        self.run: str = f"0{os.urandom(4).hex()}-{os.urandom(4).hex()}"
        folder = f"{temporary_folder()}/claude-{os.getuid()}/{session}/tasks"
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self.path: str = f"{folder}/{self.task}.output"
        self.process: subprocess.Popen[bytes] = self._start(session)

    def _start(self, session: str) -> subprocess.Popen[bytes]:
        import subprocess  # it costs milliseconds

        with open(self.path, "wb") as output:
            try:
                return subprocess.Popen(
                    ["/bin/bash", "-c", self.command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "CLAUDECODE": "1", "CLAUDE_CODE_SESSION_ID": session},
                    start_new_session=True,
                    preexec_fn=lambda: signal.alarm(BASH_SECONDS),
                )
            except (OSError, ValueError):
                os.unlink(self.path)
                raise

    @property
    def ended(self) -> bool:
        """Whether the command has exited; what it left in the background does not count."""
        return self.process.poll() is not None

    @property
    def task_fields(self) -> Json:
        """What each line about it as a task begins with."""
        return {"task_id": self.task, "run_id": self.run}

    def output(self) -> str:
        """Return what it has written, as much as is told."""
        return _read_text(self.path).strip("\n")[:OUTPUT_CHARS]

    def kill(self, grace: float) -> None:
        """End it with all that is still below it: by SIGTERM if there is grace, then by SIGKILL."""
        pids = descendants(self.process.pid)
        deadline = time.monotonic() + grace
        if grace:
            _kill(pids, signal.SIGTERM)
        while time.monotonic() < deadline and not (self.ended and pids.isdisjoint(_parents())):
            time.sleep(0.02)
        _kill(pids - {self.process.pid} if self.ended else pids, signal.SIGKILL)
        self.process.wait()

    def finish(self) -> tuple[int, str]:
        """Return the exit status as a shell gives it, and the output."""
        status, output = self.process.wait(), self.output()
        os.unlink(self.path)
        return (128 - status if status < 0 else status), output


def descendants(root: int) -> set[int]:
    """Return root and all below it."""
    found, parents = {root}, _parents()
    while new := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
        found |= new
    return found


def _parents() -> dict[int, int]:
    """Return the parent of each process there is."""
    if not os.path.isdir("/proc/self"):
        import subprocess

        listing = subprocess.run(["ps", "-axo", "pid=,ppid="], capture_output=True, text=True, check=False).stdout
        return {int(pid): int(parent) for pid, parent in map(str.split, listing.splitlines())}
    stats = ((int(name), _read_text(f"/proc/{name}/stat")) for name in os.listdir("/proc") if name.isdigit())
    return {pid: int(stat.rpartition(")")[2].split()[1]) for pid, stat in stats if stat}


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            return file.read()
    except OSError:
        return ""


def _kill(pids: set[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError:
            continue  # gone already
