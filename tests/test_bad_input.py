"""Every row of the close-code table, on real sockets and a scripted CLI: the exact frame, the exact code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio
from harness import Backend, ask, connect, directive, listen, send_raw, until

GOOD = json.dumps({"prompt": "hi", "meta": "T"})


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("{", "message is not JSON: Expecting property name enclosed in double quotes at character 1"),
        ("[" * 10_000, "message is not JSON that can be read: RecursionError"),
        ("[]", "message must be a JSON object"),
        (b"{}", "message must be text, not binary"),
        ('{"prompt":1,"meta":"T"}', "prompt must be text, not a number"),
        ('{"prompt":"hi","meta":"t"}', r"meta must match ^[A-Z0-9_\-]+$ and be at most 64 characters"),
        ('{"prompt":"hi","meta":"T","x":1}', "unknown key 'x'"),
        ('{"prompt":"hi","prompt":"hi","meta":"T"}', "duplicate key 'prompt'"),
    ],
)
async def test_a_bad_message_closes_with_1008(fake: Backend, message: str | bytes, error: str) -> None:
    async with fake.serve() as server:
        said = await send_raw(server, message)
    assert said.objects[1:] == [{"error": error}]
    assert (said.code, said.reason) == (1008, error)


async def test_a_profile_without_transcripts_has_nothing_to_resume(fake: Backend) -> None:
    async with fake.serve(profile="lean") as server:
        said = await ask(server, "hi", resume="01234567-89ab-cdef-0123-456789abcdef")
    assert (said.objects[1:], said.code) == ([{"error": "resume is not allowed here"}], 1008)


async def test_no_message_in_time_closes_with_1008(fake: Backend) -> None:
    async with fake.serve(first_message_timeout=0.1) as server:
        said = await send_raw(server)
    assert (said.objects[1:], said.code) == ([{"error": "no message within 0.1 s"}], 1008)


@pytest.mark.parametrize("kind", [str, bytes])
async def test_a_message_over_the_limit_closes_with_1009(fake: Backend, kind: type) -> None:
    async with fake.serve(max_message=2048) as server:
        said = await send_raw(server, "x" * 2049 if kind is str else b"x" * 2049)
        assert (said.code, said.reason) == (1009, "message over 2048 bytes")
        # the limit counts bytes, not characters
        assert (await send_raw(server, "€" * 1000)).code == 1009


async def test_empty_fragments_are_counted(fake: Backend) -> None:
    async with fake.serve(max_frames=100) as server, connect(server) as socket:
        await socket._stream.send_all(b"\x01\x80\0\0\0\0" + b"\x00\x80\0\0\0\0" * 200)
        said = await listen(socket)
    assert (said.code, said.reason) == (1009, "message in more than 100 frames")


@pytest.mark.parametrize(
    ("prompt", "exit_status", "reason", "error"),
    [
        (directive("exit", status=3), {"exit_status": 3}, "exit 3", "the CLI exited with status 3"),
        (directive("signal", n=11), {"signal": 11}, "signal 11", "the CLI died of SIGSEGV"),
    ],
)
async def test_a_failed_cli_closes_with_1011(
    fake: Backend, prompt: str, exit_status: dict[str, int], reason: str, error: str
) -> None:
    async with fake.serve() as server:
        said = await ask(server, prompt)
    assert said.errors == [{"error": error, **exit_status}]
    assert (said.code, said.reason.split(";")[0]) == (1011, reason)


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("missing", "the CLI was not found: pip install 'trio-claude[claude]' or --cli PATH"),
        ("text", "the CLI is not executable: chmod +x it, or name another with --cli PATH"),
        ("noexec", "the CLI could not be started: exec: Exec format error (ENOEXEC)"),
    ],
)
async def test_a_cli_that_can_not_be_started_closes_with_1011(
    fake: Backend, folder: Path, program: str, error: str
) -> None:
    (folder / "text").write_text("")
    (folder / "noexec").write_bytes(b"\x7fELF")
    (folder / "noexec").chmod(0o755)
    async with fake.serve(cli=str(folder / program)) as server:
        said = await ask(server, "hi")
    assert said.objects[1:] == [{"error": error}]
    assert (said.code, said.reason.split(";")[0]) == (1011, "not started")


async def test_the_deadline_is_told(fake: Backend) -> None:
    async with fake.serve(timeout=0.5) as server:
        said = await ask(server, directive("silent"))
    assert said.objects[-1] == {"error": "timed out after 0.5 s"}
    assert (said.code, said.reason.split(";")[0]) == (1011, "timed out")


async def test_a_cli_that_lives_on_after_its_result_is_ended(fake: Backend) -> None:
    async with fake.serve(result_grace=0.2) as server:
        said = await ask(server, directive("linger", seconds=30))
    assert said.of_type("result")
    assert not said.errors
    assert (said.code, said.reason.split(";")[0]) == (1000, "ended after result")


async def test_no_free_slot_closes_with_1013(fake: Backend) -> None:
    async with fake.serve(max_runs=1, queue_timeout=0.2) as server, connect(server) as busy:
        await busy.send_message(json.dumps({"prompt": directive("silent"), "meta": "T"}))
        await until(lambda: server.runs.statistics().live)
        said = await ask(server, "hi")
        assert said.objects[1:] == [
            {"info": "waiting for a free slot, place 1", "position": 1, "wait_s": 0.2},
            {"error": "no slot came free within 0.2 s", "retry_after": 0.2},
        ]
        assert said.code == 1013


async def test_a_freed_slot_goes_to_who_waits(fake: Backend) -> None:
    async with fake.serve(max_runs=1) as server, trio.open_nursery() as nursery:
        codes = []

        async def one() -> None:
            codes.append((await ask(server, directive("slow", n=5, ms=10))).code)

        for _ in range(4):
            nursery.start_soon(one)
    assert codes == [1000] * 4


async def test_who_leaves_the_queue_frees_the_place(fake: Backend) -> None:
    async with fake.serve(max_runs=1) as server, connect(server) as busy:
        await busy.send_message(json.dumps({"prompt": directive("silent"), "meta": "T"}))
        await until(lambda: server.runs.statistics().live)
        async with connect(server) as waiting:
            await waiting.send_message(GOOD)
            await until(lambda: server.runs.statistics().waiting)
        await until(lambda: not server.runs.statistics().waiting)


async def test_the_eighth_message_ends_the_run(fake: Backend) -> None:
    async with fake.serve() as server:
        said = await send_raw(server, json.dumps({"prompt": directive("silent"), "meta": "T"}), *["more"] * 8)
    assert said.objects.count({"error": "one prompt per connection"}) == 8
    assert (said.code, said.reason.split(";")[0]) == (1008, "one prompt per connection")
    assert fake.left() == []


async def test_a_draining_server_closes_with_1012(fake: Backend) -> None:
    async with (
        fake.serve() as server,
        connect(server) as running,
        connect(server) as idle,
        trio.open_nursery() as nursery,
    ):
        await running.send_message(json.dumps({"prompt": directive("silent"), "meta": "T"}))
        await until(lambda: server.runs.statistics().live)
        nursery.start_soon(server.drain, 0.3)
        waiting = await listen(idle)
        assert (waiting.objects[-1], waiting.code) == ({"error": "server shutting down"}, 1012)
        ended = await listen(running)
        assert (ended.objects[-1], ended.code) == ({"error": "server shutting down"}, 1012)
        assert ended.reason.startswith("drained; ")
    assert fake.left() == []


async def test_ten_megabytes_without_a_newline_are_one_line(fake: Backend) -> None:
    async with fake.serve() as server:
        said = await ask(server, directive("nonewline", bytes=10_000_000))
    assert max(map(len, said.frames)) >= 10_000_000
    assert said.code == 1000


async def test_a_line_over_the_limit_ends_the_run(fake: Backend) -> None:
    async with fake.serve(max_line=1_000_000) as server:
        said = await ask(server, directive("nonewline", bytes=10_000_000))
    assert said.errors[-1]["error"] == "the CLI said a line over 1000000 bytes"
    assert said.code == 1011
    assert fake.left() == []


async def test_bytes_that_are_no_utf8_are_replaced_and_counted(fake: Backend) -> None:
    async with fake.serve() as server:
        said = await ask(server, directive("raw", hex=b"a\xff\xfeb\nfine\n".hex()))
    assert "a\ufffd\ufffdb" in said.frames
    assert "fine" in said.frames
    assert fake.ended[0].outcome.encoding_errors == 1


async def test_a_cli_that_closes_stdout_and_lives_on_ends_at_its_deadline(fake: Backend) -> None:
    async with fake.serve(timeout=1) as server:
        said = await ask(server, directive("closeout"))
    assert (said.code, said.reason.split(";")[0]) == (1011, "timed out")
    assert fake.left() == []


async def test_a_grandchild_that_holds_stdout_does_not_hold_the_run(fake: Backend) -> None:
    async with fake.serve() as server:
        with trio.fail_after(10):
            said = await ask(server, directive("tree", kinds=["hold_stdout", "setsid"], seconds=60, then="exit"))
    assert said.code == 1000
    assert fake.ended[0].outcome.receipt.killed >= 2
    assert fake.left() == []


async def test_stderr_lines_are_frames_of_their_own(fake: Backend) -> None:
    async with fake.serve() as server:
        said = await ask(server, directive("stderr", text="a warning", n=3))
    assert said.objects.count({"stderr": "a warning"}) == 3
    assert said.code == 1000


async def test_a_cli_deaf_to_signals_is_ended_all_the_same(fake: Backend) -> None:
    async with fake.serve(timeout=0.7) as server:
        said = await ask(server, directive("silent", ignore_term=True))
    assert said.code == 1011
    assert " 0 left, " in said.reason
    assert fake.left() == []


async def test_an_unknown_workspace_root_is_refused(fake: Backend) -> None:
    async with fake.serve() as server:
        said = await ask(server, "hi", workspace="project")
    assert (said.errors[-1]["error"], said.code) == ("workspace is not allowed here", 1008)


async def test_a_workspace_is_a_folder_of_its_own(fake: Backend, folder: Path) -> None:
    async with fake.serve(workspaces=str(folder)) as server:
        said = await ask(server, "hi", workspace="project")
    assert said.of_type("system")[0]["cwd"] == str(folder / "project")
