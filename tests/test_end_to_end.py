"""One suite of assertions on the whole path, run on the stand-in and on the real CLI: a difference fails it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from harness import Backend, ask, connect, directive, listen, open_backend, script_cli, until
from trio_websocket import ConnectionClosed

from trio_claude.connection import DENIED

BOTH = [pytest.param("fake"), pytest.param("real", marks=pytest.mark.real_cli)]
DAEMONS = (
    "(sleep 61 &) ; nohup sleep 61 >/dev/null 2>&1 & setsid sleep 61 & "
    "setsid sh -c 'setsid sleep 61 & exit 0'; sh -c \"trap '' TERM HUP INT; sleep 61\" & "
)
"""Children that a Bash tool leaves behind: plain, nohup, setsid, double fork, deaf to SIGTERM."""


@pytest.fixture(params=BOTH)
async def cli(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Backend]:
    async with open_backend(request.param, folder) as backend:
        yield backend


async def test_plain_text_in_the_shape_of_the_original(cli: Backend) -> None:
    async with cli.serve() as server:
        said = await ask(server, "Hello Claude")
    assert said.frames[0] == '{"info":"send {prompt,meta}"}'
    assert [one["type"] for one in said.objects[1:]] == ["system", "message", "result"]
    assert said.of_type("message")[0]["content"] == [{"type": "text", "text": "Hello from stub."}]
    assert said.code == 1000
    assert said.reason.startswith("exit 0; ")
    assert " 0 left, " in said.reason


async def test_verbatim_lines_are_the_clis_own(cli: Backend) -> None:
    async with cli.serve() as server:
        said = await ask(server, "Hello Claude", "?frames=verbatim")
    assert [one["type"] for one in said.objects[1:]] == ["system", "assistant", "result"]
    assert said.of_type("assistant")[0]["message"]["content"][0]["text"] == "Hello from stub."  # type: ignore[index]


async def test_partial_gives_token_deltas(cli: Backend) -> None:
    async with cli.serve() as server:
        said = await ask(server, directive("text", text="one two three", deltas=3), "?frames=verbatim", partial=True)
    events = [one["event"] for one in said.of_type("stream_event")]
    deltas = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]  # type: ignore[index, call-overload]
    assert "".join(deltas) == "one two three"
    assert len(deltas) == 3


async def test_a_bash_tool_is_used(cli: Backend) -> None:
    async with cli.serve() as server:
        said = await ask(server, directive("bash", cmd="echo from-the-tool"))
    names = [
        block["name"] for one in said.of_type("message") for block in one["content"] if block["type"] == "tool_use"
    ]  # type: ignore[attr-defined]
    assert names == ["Bash"]
    assert "from-the-tool" in json.dumps(said.of_type("user"))
    assert said.code == 1000


async def test_a_denied_tool_is_explained(cli: Backend) -> None:
    async with cli.serve() as server:
        said = await ask(server, directive("bash", cmd="touch made-by-the-tool"))
    told = [str(one["info"]) for one in said.objects[1:] if "info" in one]
    assert told == [
        "Bash was denied: profile approve asks first, and nobody can answer here; profile unattended allows it"
    ]
    assert not (cli.cwd / "made-by-the-tool").exists()
    assert said.code == 1000


async def test_of_tools_without_end_the_first_are_explained(fake: Backend, folder: Path) -> None:
    said = '{"type":"system","subtype":"permission_denied","tool_name":"tool\'$number\'"}'
    program = script_cli(folder, f"read -r line; for number in $(seq {DENIED + 10}); do echo '{said}'; done")
    async with fake.serve(cli=program) as server:
        told = [str(one["info"]) for one in (await ask(server, "hi")).objects[1:] if "info" in one]
    assert [one.partition(" ")[0] for one in told] == [f"tool{number}" for number in range(1, DENIED + 1)]


async def test_a_refused_key_is_told_at_once(cli: Backend) -> None:
    async with cli.serve() as server:
        began = trio.current_time()
        with trio.fail_after(20):
            said = await ask(server, directive("err", status=401))
    first_retry = said.frames.index(next(frame for frame in said.frames if "api_retry" in frame))
    assert len(said.frames) <= first_retry + 3
    assert "401" in str(said.errors[-1]["error"])
    assert said.code == 1011
    assert trio.current_time() - began < 15


async def test_another_api_error_ends_with_the_clis_status(cli: Backend) -> None:
    async with cli.serve() as server:
        said = await ask(server, directive("err", status=400))
    assert said.errors[-1]["exit_status"] == 1
    assert "400" in str(said.errors[-1]["error"])
    assert (said.code, said.reason.split(";")[0]) == (1011, "exit 1")


async def test_a_reset_in_mid_stream_is_survived_until_the_deadline(cli: Backend) -> None:
    patience = 3 if cli.name == "fake" else 10  # the real one takes its time to start and to fail
    async with cli.serve() as server:
        said = await ask(server, directive("reset", n=5), "?frames=verbatim", partial=True, timeout=patience)
    assert len([one for one in said.of_type("system") if one.get("subtype") == "api_retry"]) >= 1
    assert said.errors[-1] == {"error": f"timed out after {patience} s"}
    assert (said.code, said.reason.split(";")[0]) == (1011, "timed out")
    assert cli.left() == []


async def test_the_deadline_ends_a_silent_run(cli: Backend) -> None:
    async with cli.serve(timeout=3) as server:
        said = await ask(server, directive("hang"))
    assert said.errors == [{"error": "timed out after 3 s"}]
    assert said.code == 1011
    assert cli.ended[0].outcome.receipt.survivors == 0
    assert cli.left() == []


async def test_a_client_that_leaves_takes_its_tools_along(cli: Backend) -> None:
    async with cli.serve(cli_args="--allowed-tools=Bash") as server:
        with trio.move_on_after(30):
            async with connect(server) as socket:
                command = f"{DAEMONS} echo >started; (sleep 59)"
                await socket.send_message(json.dumps({"prompt": directive("bash", cmd=command), "meta": "T"}))
                await until(lambda: (cli.cwd / "started").exists() and len(cli.left()) >= 7, 20)
        await until(lambda: cli.ended)
        assert cli.left() == []
    receipt = cli.ended[0].outcome.receipt
    assert (receipt.survivors, receipt.killed >= 6) == (0, True)


async def test_what_a_finished_tool_left_is_gone_after_a_good_end(cli: Backend) -> None:
    async with cli.serve(cli_args="--allowed-tools=Bash") as server:
        said = await ask(server, directive("bash", cmd=f"{{ {DAEMONS} }} >/dev/null 2>&1; echo done"))
    assert (said.code, said.reason.split(";")[0]) == (1000, "exit 0")
    assert cli.ended[0].outcome.receipt.killed >= 5
    assert cli.left() == []


async def test_the_working_directory_and_its_settings(cli: Backend) -> None:
    """A settings file in the working directory could run hooks; it is not read."""
    settings = cli.cwd / ".claude" / "settings.json"
    settings.parent.mkdir()
    hook = {"type": "command", "command": f"touch {cli.cwd}/hooked"}
    settings.write_text(json.dumps({"hooks": {"SessionStart": [{"matcher": "", "hooks": [hook]}]}}))
    async with cli.serve() as server:
        said = await ask(server, "hello")
    assert said.of_type("system")[0]["cwd"] == str(cli.cwd)
    assert not (cli.cwd / "hooked").exists()


async def test_the_temporary_folder_of_a_run_is_removed(cli: Backend) -> None:
    async with cli.serve(cli_args="--allowed-tools=Bash") as server:
        said = await ask(server, directive("bash", cmd="echo $TMPDIR; touch $TMPDIR/left"))
        told = json.dumps(said.of_type("user"))
    folder = next(word for word in told.replace('"', " ").replace("\\n", " ").split() if "/tcl-" in word)
    assert not Path(folder).exists()
    assert not Path(folder).parent.exists()


async def test_the_prompt_is_not_in_the_arguments(cli: Backend) -> None:
    async with cli.serve() as server, connect(server) as socket:
        await socket.send_message(
            json.dumps({"prompt": directive("slow", n=200, ms=50, x="WORD-OF-MINE"), "meta": "T"})
        )
        with pytest.raises(ConnectionClosed):
            while "init" not in await socket.get_message():
                pass
            words = []
            for pid in cli.left():
                with contextlib.suppress(OSError):  # what it called for a moment is gone again
                    words.append(Path(f"/proc/{pid}/cmdline").read_bytes())
            assert words
            assert not any(b"WORD-OF-MINE" in word for word in words)
            await socket.aclose()
            await socket.get_message()
        await until(lambda: cli.ended)


async def test_a_second_message_is_refused_and_the_run_goes_on(cli: Backend) -> None:
    async with cli.serve() as server, connect(server) as socket:
        await socket.send_message(json.dumps({"prompt": directive("slow", n=10, ms=50), "meta": "T"}))
        await socket.send_message("anything")
        said = await listen(socket)
    assert {"error": "one prompt per connection"} in said.objects
    assert said.of_type("result")
    assert said.code == 1000
