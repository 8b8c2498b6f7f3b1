"""What a scenario is: named figures with units, and a function that takes them from one running server.

It knows no peer and prints nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeAlias

import attrs

from .native import Native
from .peers import Peer
from .subject import Subject, running

Figures: TypeAlias = "dict[str, float | None]"
MILLION = 1e6


@attrs.frozen
class Metric:
    """One figure; `more` is whether more is better. A figure without `ratio` is a count that should be zero."""

    name: str
    title: str
    unit: str = ""
    more: bool = False
    ratio: bool = True
    plot: bool = False


@attrs.frozen
class Setting:
    """What a server is started with: its CLI, and its whole environment."""

    cli: Path
    environ: Mapping[str, str]


@contextmanager
def _fake_cli(native: Native) -> Iterator[Setting]:
    yield Setting(native.cli, os.environ)


@attrs.frozen
class Scenario:
    """What is measured; `measure` takes a fresh server and whether only a short look is wanted.

    `peers` names those that are measured where nobody is named; none means all. `real` is whether the CLI is real, and
    `setting` makes what the servers are started with.
    """

    name: str
    title: str
    metrics: tuple[Metric, ...]
    measure: Callable[[Subject, bool], Figures]
    peers: tuple[str, ...] = ()
    real: bool = False
    """Also that others than `peers` can't be measured: they don't ask the CLI for its tokens."""
    note: str = ""
    setting: Callable[[Native], AbstractContextManager[Setting]] = _fake_cli

    def take(self, native: Native, peer: Peer, quick: bool) -> Figures:
        """Start a peer, measure it and stop it. Raises Lost, Unavailable or OSError."""
        with self.setting(native) as setting, running(peer, native, setting.cli, setting.environ) as subject:
            return self.measure(subject, quick)

    @property
    def cli(self) -> str:
        """Which CLI its figures were taken with."""
        return "real CLI" if self.real else "fake"


def script(count: int, rate: float, size: int, *, stay: bool = False, at: int = 0) -> str:
    """Return the fake CLI's script; with `stay` it lives on behind its lines, and `at` is when it says the second."""
    return f"{count} {rate:g} {size}" + (" wait" if stay else " exit") + (f" {at}" if at else "")
