"""Get what the peers need into a cache folder beside this one, by pip and npm, once; say what can't be had.

The folder (`benchmarks/.peers`) is not part of the tree, and no address of a registry stands anywhere.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from .native import HERE, PEERS

CACHE = HERE / ".peers"
PATIENCE = 600


class Unavailable(Exception):
    """A peer can't be had; the text says why."""


def _run(words: list[str], folder: Path) -> None:
    try:
        subprocess.run(words, cwd=folder, check=True, capture_output=True, timeout=PATIENCE)
    except (OSError, subprocess.SubprocessError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise Unavailable(f"{words[0]} failed: {error}") from None


def _fresh(name: str, source: Path) -> tuple[Path, bool]:
    """Return a cache folder and whether it holds what `source` asks for."""
    folder = CACHE / name
    mark = folder / "asked"
    fresh = mark.is_file() and mark.read_text() == source.read_text()
    if not fresh:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    return folder, fresh


def _once(get: Callable[[], Path]) -> Callable[[], Path]:
    """Get something once; what failed is not tried again."""
    failures: list[Unavailable] = []

    @functools.cache
    def got() -> Path:
        if failures:
            raise failures[0]
        try:
            return get()
        except Unavailable as error:
            failures.append(error)
            raise

    return got


@_once
def python() -> Path:
    """Return a Python that has the Python peers' packages. Raises Unavailable."""
    source = PEERS / "requirements.txt"
    folder, fresh = _fresh("python", source)
    program = folder / "bin" / "python"
    if not fresh:
        _run([sys.executable, "-m", "venv", str(folder)], folder)
        _run([str(program), "-m", "pip", "install", "--quiet", "--requirement", str(source)], folder)
        (folder / "asked").write_text(source.read_text())
    return program


@_once
def node_folder() -> Path:
    """Return a folder with the JavaScript peers beside the packages they need. Raises Unavailable."""
    source = PEERS / "package.json"
    folder, fresh = _fresh("node", source)
    if not fresh:
        shutil.copy(source, folder)
        _run(["npm", "install", "--no-package-lock", "--no-audit", "--no-fund"], folder)
        (folder / "asked").write_text(source.read_text())
    for peer in [*PEERS.glob("*.mjs"), *PEERS.glob("*.ts")]:
        shutil.copy(peer, folder)
    return folder


def bun() -> Path:
    """Return Bun's program. Raises Unavailable."""
    program = node_folder() / "node_modules" / ".bin" / "bun"
    if not program.exists():
        raise Unavailable("npm gave no bun")
    return program


def system(name: str) -> Path:
    """Return a program that the system has. Raises Unavailable."""
    if not (found := shutil.which(name)):
        raise Unavailable(f"no {name} here (Debian has a package of that name)")
    return Path(found)


def package_version(name: str) -> str:
    """Return the version of a Python peer's package."""
    script = f"import importlib.metadata as m; print(m.version({name!r}))"
    return _told([str(python()), "-c", script])


def npm_version(name: str) -> str:
    """Return the version of a JavaScript package."""
    manifest = node_folder() / "node_modules" / name / "package.json"
    version: str = json.loads(manifest.read_text())["version"]
    return version


def program_version(program: Path) -> str:
    """Return what a program says of its version, its first line."""
    return _told([str(program), "--version"])


def _told(words: list[str]) -> str:
    told = subprocess.run(words, capture_output=True, text=True, check=False)
    return next(iter((told.stdout or told.stderr).splitlines()), "?").strip(" -")


def ours_version() -> str:
    """Return our own version, Python's and Trio's."""
    version = importlib.metadata.version
    return f"{version('trio-claude')} on Python {platform.python_version()}, trio {version('trio')}"
