"""The words of a bubblewrap sandbox: what of the machine a run sees.

Rule 1: an allow-list, never `/` with exceptions. Rule 2: what is writable is the run's own: its folders and the CLI's
configuration. This module starts nothing; it turns a job into the same job inside bubblewrap.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import attrs

from ..errors import SpawnFailed
from .base import Job

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
"""The system's programs and libraries, read-only; links among them stay links."""
SETTINGS = (
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/group",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/pki",
    "/etc/resolv.conf",
    "/etc/ssl",
    "/etc/timezone",
)
"""What programs need of /etc; no key, no shadow, no service's configuration."""
PRIVATE = ("/proc", "/dev", "/tmp")  # noqa: S108 - nothing is put there
"""What is the sandbox's own, and never the machine's."""
DEPTH = 2
"""Processes of bubblewrap between the supervisor and the CLI."""


@attrs.frozen
class Sandbox:
    """What a run sees beside the system: further paths to `read`, and whether it has the `network`."""

    program: str
    read: tuple[str, ...] = ()
    network: bool = True

    def wrap(self, job: Job) -> Job:
        """Return `job` inside the sandbox. Raises `SpawnFailed` where that would be none."""
        if wide := too_wide(job.writable):
            raise SpawnFailed(f"a sandbox with all of {wide} in it would be none")
        argv = (self.program, *self._words(job), "--", *job.argv)
        return attrs.evolve(job, argv=argv, cwd="/", binds=(), depth=DEPTH)

    def _words(self, job: Job) -> list[str]:
        words = ["--unshare-user-try", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
        words += ["--die-with-parent", "--cap-drop", "ALL", *([] if self.network else ["--unshare-net"])]
        words += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]  # noqa: S108 - the sandbox's own
        for path in SYSTEM:
            words += (
                ["--symlink", str(Path(path).readlink()), path]
                if Path(path).is_symlink()
                else ["--ro-bind-try", path, path]
            )
        for path in (*SETTINGS, job.argv[0], *self.read):
            words += ["--ro-bind-try", path, path]
        for path in job.writable:
            words += ["--bind-try", path, path]
        for source, target in job.binds:
            words += ["--bind", source, target]
        return [*words, "--chdir", job.cwd]


def too_wide(paths: Iterable[str]) -> str:
    """Return one of `paths` that would lie over what a sandbox is made of, as `/` and `/etc` do; empty if none does."""
    return next((path for path in paths if _hides(os.path.realpath(path))), "")


def _hides(path: str) -> bool:
    return path in PRIVATE or any(own.startswith(f"{path.rstrip('/')}/") for own in (*PRIVATE, *SYSTEM, *SETTINGS))
