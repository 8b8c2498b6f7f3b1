"""Rule: what the package names is there, typed and cheap to import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import trio_claude


@pytest.mark.parametrize("name", trio_claude.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(trio_claude, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = trio_claude.nonsense


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, trio_claude; print(*sorted({'trio', 'httpx', 'click', 'cattrs', 'typed_settings'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_the_public_types_are_complete() -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it asks the first python there
    told = subprocess.run(
        [sys.executable, "-m", "pyright", "--verifytypes", "trio_claude", "--ignoreexternal"],
        capture_output=True, text=True, check=False, cwd="/", env={**os.environ, "PATH": path},
    )  # fmt: skip
    assert told.returncode == 0, told.stdout
    assert "Path of py.typed file" in told.stdout
