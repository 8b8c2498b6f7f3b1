"""Rule: whatever ends a run, and whatever its CLI has started, nothing outlives the end that the client is told of.

The short form; `python benchmarks/chaos.py` goes on for thousands of endings. What is left is read from control groups
which the server under test knows nothing of.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
from harness import MODES

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import chaos

SEED = os.environ.get("CHAOS_SEED") or secrets.token_hex(4)
BENCHMARKS = Path(chaos.__file__).parent
CHILDREN = str(BENCHMARKS / "children")
SLOW = {"supervisor-stop"}
"""Endings that the server's own bounds make last for seconds."""
COUNT = 64
LONG = 2000

pytestmark = pytest.mark.cgroup


@pytest.mark.parametrize("mode", MODES)
def test_nothing_outlives_a_run(mode: str, folder: Path, long: bool) -> None:
    print(f"CHAOS_SEED={SEED}")
    if mode == "namespace" and not chaos.can_cage():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("no PID namespace can be made here")
    names = [
        name for name, ending in chaos.ENDINGS.items() if mode not in ending.unpromised and (long or name not in SLOW)
    ]
    count = LONG if long else COUNT
    words = (
        f"--count {count} --mode {mode} --seed {SEED} --endings {','.join(names)} --json {folder / 'told'} --lanes 2"
    )
    program = [sys.executable, str(BENCHMARKS / "chaos.py"), "--quiet", *words.split()]
    told = subprocess.run(program, capture_output=True, text=True, check=False)
    print(told.stdout, told.stderr)
    assert told.returncode == 0
    ours = json.loads((folder / "told").read_text())["subjects"]["trio-claude"]
    assert sum(total for kinds in ours["cells"].values() for _, total in kinds.values()) == count


def caged(**words: object) -> str:
    """Ask the tool that kills all it may whether it would; it is never let loose here."""
    code = f"import sys; sys.path.insert(0, {CHILDREN!r}); import chaos; print(chaos.caged({words!r}))"
    told = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    return told.stdout.strip()


def test_a_tool_refuses_to_kill_all_outside_of_our_namespace() -> None:
    own = os.readlink("/proc/self/ns/pid")
    assert caged() == "not told where it would be allowed"
    assert caged(namespace=own, tree="/x", mark="m") == "in the harness's own PID namespace"
    assert caged(namespace="pid:[1]", tree="/no-such-group", mark="m").endswith("is not the harness's")
    assert caged(namespace="pid:[1]", tree="", mark="m") == "not told where it would be allowed"
