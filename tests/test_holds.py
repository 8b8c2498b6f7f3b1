"""Rule: of all servers on one state folder, one alone has a session in use; what a server that died had is free."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from harness import Backend, ask, until
from talk import open_talk

from trio_claude.errors import SessionBusy
from trio_claude.holds import NAME, Holds

SESSION = "0a3c1f52-9d1e-4b7a-8f60-2f9f0a1b2c3d"
OTHER = "7b9d2e10-4c5f-4a6b-9e8d-1c2b3a4f5e6d"
HOLD = f"""
import sys
from pathlib import Path
from trio_claude.holds import Holds
with Holds(Path(sys.argv[1])).hold({SESSION!r}, "key:alice"):
    print(flush=True)
    sys.stdin.read()
"""


def is_free(holds: Holds, session: str = SESSION, who: str = "key:alice") -> bool:
    try:
        with holds.hold(session, who):
            return True
    except SessionBusy as error:
        assert f"session {session} is in use by another run, of another server" in str(error)
        return False


def test_a_session_is_one_servers_until_it_lets_go(tmp_path: Path) -> None:
    here, there = Holds(tmp_path / "state"), Holds(tmp_path / "state")
    with here.hold(SESSION, "key:alice"):
        assert not is_free(there)
        assert is_free(there, OTHER)
        assert is_free(there, who="key:bob")
        assert [one.has(SESSION, "key:alice") for one in (here, there)] == [True, True]
        assert not there.has(OTHER, "key:alice")
    assert is_free(there)
    assert not there.has(SESSION, "key:alice")
    with here.hold(SESSION, "key:alice"):
        here.close()
        assert is_free(there), "and what is closed has let go"
    there.close()


async def test_a_run_of_no_session_leaves_no_file(fake: Backend, tmp_path: Path) -> None:
    async with fake.serve(state=str(tmp_path)) as server:
        assert (await ask(server, "hello")).code == 1000
    assert not (tmp_path / NAME).exists()


def test_what_a_server_had_that_was_killed_is_free(tmp_path: Path) -> None:
    holds = Holds(tmp_path)
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as one:
        assert one.stdout
        assert one.stdout.readline()
        assert not is_free(holds)
        one.kill()
    assert is_free(holds)
    assert (tmp_path / NAME).stat().st_size == 0
    holds.close()


@pytest.mark.parametrize("place", ["state", f"state/{NAME}"])
def test_without_a_file_runs_go_on(tmp_path: Path, place: str) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).symlink_to("/dev/null/nowhere")
    one, other = Holds(tmp_path / "state"), Holds(tmp_path / "state")
    with one.hold(SESSION, "key:alice"):
        assert is_free(other)
        assert not other.has(SESSION, "key:alice")


async def test_a_session_that_lives_on_one_server_is_refused_on_another(fake: Backend) -> None:
    async with fake.serve_known("alice") as (old, keys):
        settings = {"keys": old.config.keys, "state": old.config.state, "cwd": ""}
        async with fake.serve(**settings) as new, open_talk(old, keys["alice"]) as first:
            session = (await first.start())["session"]
            async with open_talk(new, keys["alice"]) as rival:
                await rival.say({"type": "gateway", "op": "start", "meta": "T", "options": {"resume": session}})
                refused = await rival.event("refused")
                assert refused["code"] == "session-busy"
            await first.stop("end")
            await first.event("ended")
            await until(lambda: not old.runs.statistics().live)
            async with open_talk(new, keys["alice"]) as again:
                assert (await again.start(resume=session))["session"] == session
