"""Rule: the linters and type checkers find nothing, with the settings of pyproject.toml."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "words",
    [
        ["ruff", "check", "--no-cache", "."],
        ["ruff", "format", "--no-cache", "--check", "."],
        ["mypy", "--cache-dir", "/dev/null"],
    ],
    ids=lambda words: "-".join(words[:2]),
)
def test_nothing_is_found(words: list[str]) -> None:
    told = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr


CALLS = ("[call-arg]", "[attr-defined]", "[name-defined]", "[import-not-found]")
"""What is found where code calls what is not there any more."""


def test_the_benchmarks_call_only_what_is_there() -> None:
    """They run by hand, so nothing else says that one of them is broken."""
    words = ["--config-file", os.devnull, "--cache-dir", os.devnull, "--explicit-package-bases", "--check-untyped-defs"]
    found = [path.name for path in (ROOT / "benchmarks").glob("*.py")]
    told = subprocess.run(
        [sys.executable, "-m", "mypy", *words, "--disable-error-code", "import-untyped", *sorted(found), "suite", "soaking"],
        cwd=ROOT / "benchmarks", env={**os.environ, "MYPYPATH": str(ROOT / "tests" / "support")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "checked" in told.stdout, told.stdout + told.stderr
    assert not [line for line in told.stdout.splitlines() if line.endswith(CALLS) and "atheris" not in line]


def test_nothing_committed_names_a_registry() -> None:
    names = ["pypi" + ".org", "pythonhosted" + ".org", "registry" + ".npmjs", "deb" + ".debian"]
    made = {".git", ".venv", ".hypothesis", "__pycache__", "node_modules", ".peers"}
    for path in ROOT.rglob("*"):
        if path.is_file() and not made & set(path.parts):
            data = path.read_bytes()
            assert not [name for name in names if name.encode() in data], path
