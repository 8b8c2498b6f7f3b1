"""Compile the C programs into a temporary folder: the child, the load client and the C relay.

It must never leave a binary in the tree.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

HERE = Path(__file__).parents[1]
NATIVE, PEERS = HERE / "native", HERE / "peers"
CLI_NAME = "bench-cli"
"""The child's name in /proc, by which it is told from a server's helpers; at most fifteen characters."""


@attrs.frozen
class Native:
    """The programs."""

    cli: Path
    load: Path
    relay: Path
    shim: Path


def _compile(source: Path, program: Path) -> Path:
    subprocess.run(["cc", "-O2", "-I", str(NATIVE), "-o", str(program), str(source)], check=True)
    return program


@contextmanager
def compiled() -> Iterator[Native]:
    """Compile the programs; raises OSError or CalledProcessError where there is no compiler."""
    with tempfile.TemporaryDirectory(prefix="tcb-") as name:
        folder = Path(name)
        yield Native(
            cli=_compile(NATIVE / "child.c", folder / CLI_NAME),
            load=_compile(NATIVE / "load.c", folder / "load"),
            relay=_compile(PEERS / "relay.c", folder / "relay"),
            shim=_compile(NATIVE / "shim.c", folder / "claude-shim"),
        )
