"""Fixtures, and the rule for real parts: a fresh machine may lack them, CI may not."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
from browser import WEB, install_modules
from harness import Backend, cgroup2, open_backend, real_cli, short_folder
from pages import Browser, open_browser
from redis_server import RedisServer, open_redis_server

from trio_claude.containment import open_containment
from trio_claude.errors import ContainmentUnavailable

REQUIRED = os.environ.get("CI") == "true"
"""In CI a missing real part is a failure."""


def _works(*words: str) -> bool:
    return bool(shutil.which(words[0])) and subprocess.run(words, capture_output=True, check=False).returncode == 0


@functools.cache
def _no_namespace() -> str | None:
    """Return why a run can't have a namespace of its own, None where it can."""

    async def look() -> str | None:
        try:
            async with open_containment("namespace", lambda _: None):
                return None
        except ContainmentUnavailable as error:
            return str(error)

    return trio.run(look)


PROGRAMS = {
    "node": ("node", "npm"), "browser": ("chromium",), "tmux": ("tmux",), "sandbox": ("bwrap",), "zsh": ("zsh",), "nginx": ("nginx",),
    "systemd": ("systemd-analyze",),
    "promtool": ("promtool",),
    "redis": ("redis-server",),
}  # fmt: skip


def _missing(marker: str) -> str | None:
    """Return why a real part can't be used, None where it can."""
    if marker == "real_cli" and real_cli() is None:
        return "the Claude CLI is not installed: pip install 'trio-claude[claude]'"
    if lacking := [program for program in PROGRAMS.get(marker, ()) if not shutil.which(program)]:
        return f"not installed: {', '.join(lacking)}"
    if marker == "namespace":
        return _no_namespace()
    if marker == "netns" and not _works("unshare", "--net", "ip", "link"):
        return "network namespaces need root's capabilities and iproute2"
    if marker == "root" and (os.getuid() or not _works("unshare", "--mount", "true")):
        return "this user is not root, or has not its capabilities"
    if marker == "cgroup" and not any(os.access(place, os.W_OK) for place in cgroup2()):
        return "there is no cgroup v2 hierarchy in which groups can be made"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in (
        "real_cli",
        "node",
        "browser",
        "netns",
        "root",
        "sandbox",
        "cgroup",
        "namespace",
        "tmux",
        "zsh",
        "nginx",
        "systemd",
        "promtool",
        "redis",
    ):
        if item.get_closest_marker(marker) and (why := _missing(marker)):
            if REQUIRED:
                pytest.fail(f"required in CI: {why}")
            pytest.skip(why)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the long form of sweeps, chaos and floods")


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Whether the long form is asked for."""
    return bool(request.config.getoption("--long"))


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


@pytest.fixture
async def fake(folder: Path) -> AsyncIterator[Backend]:
    async with open_backend("fake", folder) as backend:
        yield backend


@pytest.fixture
async def real(folder: Path) -> AsyncIterator[Backend]:
    async with open_backend("real", folder) as backend:
        yield backend


@pytest.fixture(scope="module")
def shared_redis() -> Iterator[RedisServer]:
    """One Redis for all tests of a file."""
    with open_redis_server() as server:
        yield server


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """A Redis that runs and holds nothing; after a test that has killed it, or left it hanging, another is started."""
    shared_redis.renew()
    return shared_redis


@pytest.fixture(scope="session")
def modules() -> Path:
    """The npm packages of the lock file."""
    return install_modules()


@pytest.fixture(scope="session")
def web_modules() -> Path:
    """The npm packages that the page and the clients are built with."""
    return install_modules(WEB)


@pytest.fixture(scope="session")
def browser(modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A Chromium that all tests share; each opens contexts of its own."""
    with open_browser(modules, tmp_path_factory.mktemp("browser")) as one:
        yield one
