"""`/ws/session`, on the stand-in and on the real CLI: turns, approvals, interrupts, and every way to end."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from harness import Backend, directive, head, open_backend, script_cli, until
from talk import Talk, open_talk

from trio_claude.errors import Reason
from trio_claude.events import ApprovalSettled, Interrupted, RunEnded, TurnEnded
from trio_claude.journal import PartKind
from trio_claude.session_run import URGENT

BOTH = [pytest.param("fake"), pytest.param("real", marks=pytest.mark.real_cli)]
ASKS = directive("bash", cmd="touch made-by-tool; ls")
"""A Bash call for which the CLI asks."""


@pytest.fixture(params=BOTH)
async def cli(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Backend]:
    async with open_backend(request.param, folder) as backend:
        yield backend


@pytest.fixture
async def fake(folder: Path) -> AsyncIterator[Backend]:
    async with open_backend("fake", folder) as backend:
        yield backend


def frame(said: dict[str, object]) -> bytes:
    """A client's text frame."""
    payload = json.dumps(said).encode()
    size = (
        bytes((0x80 | len(payload),)) if len(payload) < 126 else bytes((0x80 | 126,)) + len(payload).to_bytes(2, "big")
    )
    return b"\x81" + size + b"\0\0\0\0" + payload


def settled(cli: Backend) -> list[ApprovalSettled]:
    return [event for event in cli.events if isinstance(event, ApprovalSettled)]


def interrupts(cli: Backend) -> int:
    return sum(isinstance(event, Interrupted) for event in cli.events)


def tool_results(talk: Talk) -> list[str]:
    blocks = [
        block
        for line in talk.lines()
        if line["type"] == "user" and isinstance(line["message"]["content"], list)
        for block in line["message"]["content"]
        if block["type"] == "tool_result"
    ]
    return [str(block["content"]) for block in blocks]


async def test_an_interrupt_behind_the_end_stops_the_run(cli: Backend) -> None:
    async with cli.serve(interrupt_grace=30) as server, open_talk(server) as talk:
        await talk.start()
        await talk.user(directive("slow", n=400, ms=50))
        await talk.next(lambda frame: frame.get("subtype") == "init")
        await talk.stop("end")
        await talk.event("stopping")
        await talk.stop("interrupt")
        assert (await talk.result(10))["is_error"], "interrupted"
        ended = await talk.event("ended")
    assert (ended["reason"], ended.get("error")) == ("stopped", None)


def named(text: str) -> dict[str, object]:
    """A message that has a name."""
    uuid = "11111111-2222-3333-4444-555555555555"
    return {"type": "user", "uuid": uuid, "message": {"role": "user", "content": text}}


async def test_a_message_that_comes_again_is_refused_and_the_session_goes_on(cli: Backend) -> None:
    async with cli.serve() as server, open_talk(server) as talk:
        await talk.start()
        await talk.say(named("hello"))
        await talk.result()
        await talk.say(named("hello"))
        refused = await talk.event("refused")
        assert (refused["code"], "uuid" in refused["error"]) == ("bad-message", True)
        assert refused["uuid"] == named("")["uuid"]
        await talk.user("more")
        await talk.result()
        await talk.stop("end")
        assert (await talk.end())["reason"] == "exit"


async def test_a_message_that_is_refused_is_not_counted_against_the_minute(fake: Backend) -> None:
    async with fake.serve(prompts_per_minute=2.0) as server, open_talk(server) as talk:
        await talk.start()
        await talk.say(named("hello"))
        await talk.result()
        await talk.say(named("hello"))
        await talk.event("refused")
        await talk.user("more")
        assert (await talk.next(lambda frame: frame["type"] == "result" or "code" in frame))["type"] == "result"


@pytest.mark.real_cli
async def test_a_message_that_an_earlier_run_had_holds_up_no_session(folder: Path) -> None:
    async with open_backend("real", folder) as cli, cli.serve() as server:
        async with open_talk(server) as talk:
            session = (await talk.start())["session"]
            await talk.say(named("hello"))
            await talk.result()
            await talk.stop("end")
            await talk.end()
        async with open_talk(server) as talk:
            await talk.start(resume=session)
            await talk.say(named("hello"))
            await talk.next(lambda frame: frame.get("state") == "completed")
            await talk.stop("end")
            assert (await talk.end())["reason"] == "exit"
            assert not any(line["type"] == "result" for line in talk.lines())


async def test_a_turn_that_is_the_last_still_gets_what_it_asks_for(cli: Backend) -> None:
    async with cli.serve() as server, open_talk(server) as talk:
        await talk.start()
        await talk.user(directive("bash", cmd="touch made-by-tool; ls", rounds=2))
        await talk.stop("end")
        for _ in range(2):
            question = await talk.asked()
            await talk.answer(question["request_id"], behavior="allow")
        assert not (await talk.result())["is_error"]
        ended = await talk.end()
    assert (ended["reason"], ended["exit_status"]) == ("exit", 0)
    assert all("made-by-tool" in told for told in tool_results(talk))


async def test_an_interrupt_at_a_result_is_for_the_turn_that_waits(cli: Backend) -> None:
    async with cli.serve() as server, open_talk(server) as talk:
        await talk.start()
        await talk.user(directive("slow", n=20, ms=20))
        await talk.next(lambda frame: frame.get("subtype") == "init")
        await talk.user(directive("slow", n=200, ms=50))
        await talk.result()
        await talk.stop("interrupt")
        assert (await talk.result(8))["is_error"], "interrupted"
        await talk.stop("kill")


async def test_three_turns_in_one_process_and_a_model_changed_between_them(cli: Backend) -> None:
    async with cli.serve() as server, open_talk(server) as talk:
        hello = await talk.event("hello")
        assert hello["protocol"] == 1
        assert hello["control"] == ["initialize", "interrupt", "set_model"]
        started = await talk.start()
        models = []
        for turn in range(3):
            if turn == 1:
                answer = await talk.control("r1", "set_model", model="claude-haiku-5-5")
                assert answer["response"]["subtype"] == "success"
            await talk.user(f"turn {turn}")
            init = await talk.next(lambda frame: frame.get("subtype") == "init")
            assert init["session_id"] == started["session"]
            models.append(init["model"])
            assert not (await talk.result())["is_error"]
        await talk.stop("end")
        ended = await talk.end()
    assert models[0] != models[1] == models[2] == "claude-haiku-5-5"
    assert (ended["reason"], ended["exit_status"], ended["receipt"]["survivors"]) == ("exit", 0, 0)
    assert ended["lines"] == len(talk.lines())
    assert talk.code == 1000
    assert len(cli.ended) == 1


async def test_a_message_in_a_turn_waits_for_the_next_one(cli: Backend) -> None:
    """The CLI queues it, and takes all that it has queued as one turn."""
    async with cli.serve() as server, open_talk(server) as talk:
        await talk.start()
        await talk.user(directive("slow", n=10, ms=50))
        await talk.next(lambda frame: frame.get("subtype") == "init")
        await talk.user("one")
        await talk.user("two")
        first = await talk.result()
        second = await talk.result()
        assert not first["is_error"]
        assert not second["is_error"]
        await talk.stop("end")
        await talk.end()
    assert len([line for line in talk.lines() if line["type"] == "result"]) == 2
    first, second = [event for event in cli.events if isinstance(event, TurnEnded)]
    assert first.seconds > 0.4
    assert second.seconds > 0  # also where the first one's result came in the same read as its beginning


SCRIPTED = """#!{python} -IS
import json, os, sys, time
begin, result = (json.dumps({{"session_id": "s", **line}}) for line in (
    {{"type": "system", "subtype": "init"}}, {{"type": "result", "is_error": False, "result": "x", "total_cost_usd": 0}}
))
def wait(prompts):
    while prompts:
        prompts -= json.loads(sys.stdin.readline())["type"] == "user"
def say(*lines):
    os.write(1, "\\n".join((*lines, "")).encode())
{acts}
sys.stdin.read()
"""
"""A CLI that says whole lines at the moments, and in the reads, that a test is about."""


def scripted(folder: Path, *acts: str) -> str:
    program = folder / "scripted-cli"
    program.write_text(SCRIPTED.format(python=sys.executable, acts="\n".join(acts)))
    program.chmod(0o755)
    return str(program)


async def test_a_turn_and_the_begin_of_the_next_in_one_read_are_timed_each(fake: Backend, folder: Path) -> None:
    go = folder / "go"
    pause = f"while not os.path.exists({str(go)!r}): time.sleep(0.01)"  # the CLI's own process waits
    program = scripted(folder, "wait(2)", "say(begin, result, begin)", pause, "say(result)")
    async with fake.serve(cli=program) as server, open_talk(server) as talk:
        await talk.start()
        for word in ("one", "two"):
            await talk.user(word)
        await talk.result()
        began = trio.current_time()
        await trio.sleep(0.2)  # for so long the second turn goes on at the least, however late its begin was read
        lasted = trio.current_time() - began
        go.touch()
        await talk.result()
        await talk.stop("end")
        await talk.end()
    _, second = [event for event in fake.events if isinstance(event, TurnEnded)]
    assert second.seconds >= lasted


async def test_a_turn_that_begins_twice_in_one_read_is_one(fake: Backend, folder: Path) -> None:
    """Else the next would count from then on, and the time in which nobody said anything would be of its own."""
    first = "wait(2)", "say(begin, result, begin, begin)", "say(result)"
    program = scripted(folder, *first, "wait(1)", "say(begin)", "say(result)")
    async with fake.serve(cli=program) as server, open_talk(server) as talk:
        await talk.start()
        for word in ("one", "two"):
            await talk.user(word)
        for _ in range(2):
            await talk.result()
        (run,) = server.runs._live.values()
        assert run.teller._turn_began is None
        await talk.user("three")
        await talk.result()
        await talk.stop("end")
        await talk.end()
    assert len([event for event in fake.events if isinstance(event, TurnEnded)]) == 3


@pytest.mark.parametrize(
    ("answer", "made", "told"),
    [
        ({"behavior": "allow"}, True, "made-by-tool"),
        ({"behavior": "allow", "updatedInput": {"command": "echo changed", "description": "x"}}, False, "changed"),
        ({"behavior": "deny", "message": "policy says no"}, False, "policy says no"),
    ],
    ids=["allow", "changed", "deny"],
)
async def test_an_approval(cli: Backend, answer: dict[str, object], made: bool, told: str) -> None:
    async with cli.serve() as server, open_talk(server) as talk:
        await talk.start()
        await talk.user(ASKS)
        question = await talk.asked()
        assert question["request"]["tool_name"] == "Bash"
        await talk.answer(question["request_id"], **answer)
        await talk.result()
        await talk.stop("end")
        await talk.end()
    assert [one.outcome for one in settled(cli)] == ["denied" if answer["behavior"] == "deny" else "allowed"]
    assert (cli.cwd / "made-by-tool").exists() is made
    assert told in tool_results(talk)[0]


async def test_a_denial_that_interrupts_ends_the_turn_and_not_the_run(cli: Backend) -> None:
    async with cli.serve() as server, open_talk(server) as talk:
        await talk.start()
        await talk.user(ASKS)
        question = await talk.asked()
        await talk.answer(question["request_id"], behavior="deny", message="no", interrupt=True)
        assert (await talk.result())["terminal_reason"] == "aborted_tools"
        await talk.user("again")
        assert (await talk.result())["result"]
        await talk.stop("end")
        assert (await talk.end())["reason"] == "exit"


async def test_an_approval_that_nobody_answers_is_denied_and_the_turns_clock_stands_still(cli: Backend) -> None:
    patience = 2.0 if cli.name == "fake" else 10.0  # a real turn takes as long as the machine is busy
    async with cli.serve(approval_timeout=patience, timeout=0.8 * patience) as server, open_talk(server) as talk:
        await talk.start()
        await talk.user(ASKS)
        question = await talk.asked()
        denied = await talk.event("denied")
        assert denied["request"] == question["request_id"]
        await talk.result()
        await talk.answer(question["request_id"], behavior="allow")
        assert (await talk.event("refused"))["code"] == "not-open"
        await talk.stop("end")
        assert (await talk.end())["reason"] == "exit"
    assert f"nobody answered within {patience:g} s" in tool_results(talk)[0]
    assert [(one.outcome, round(one.seconds)) for one in settled(cli)] == [("expired", patience)]
    assert not (cli.cwd / "made-by-tool").exists()


async def test_a_client_that_leaves_while_an_approval_is_open_takes_its_run_along(cli: Backend) -> None:
    async with cli.serve() as server:
        async with open_talk(server) as talk:
            await talk.start()
            await talk.user(ASKS)
            await talk.asked()
        await until(lambda: cli.ended)
        assert cli.ended[0].outcome.reason is Reason.DISCONNECTED
        assert cli.ended[0].outcome.receipt.survivors == 0
        assert [one.outcome for one in settled(cli)] == ["abandoned"]
        assert not cli.left()


async def test_an_approval_that_is_open_when_the_server_is_cancelled_is_told_to_be_over(fake: Backend) -> None:
    with trio.move_on_after(20) as scope:
        async with fake.serve() as server, open_talk(server) as talk:
            await talk.start()
            await talk.user(ASKS)
            await talk.asked()
            scope.cancel()
            await trio.sleep_forever()
    assert [one.outcome for one in settled(fake)] == ["abandoned"]
    assert [one.outcome.reason for one in fake.ended] == [Reason.STOPPED]


async def test_an_interrupt_keeps_the_partial_answer_and_the_session(cli: Backend) -> None:
    async with cli.serve() as server, open_talk(server) as talk:
        await talk.start(partial=True)
        await talk.user(directive("slow", n=400, ms=20))
        await talk.next(lambda frame: frame["type"] == "stream_event" and "delta" in frame["event"])
        began = trio.current_time()
        await talk.stop("interrupt")
        assert (await talk.event("stopping"))["mode"] == "interrupt"
        assert (await talk.result())["terminal_reason"] == "aborted_streaming"
        assert trio.current_time() - began < 2
        partial = [line for line in talk.lines() if line["type"] == "assistant"]
        assert partial[-1]["message"]["content"][0]["text"]
        await talk.user("again")
        assert not (await talk.result())["is_error"]
        await talk.stop("end")
        assert (await talk.end())["reason"] == "exit"
        assert interrupts(cli) == 1


async def test_what_is_said_behind_an_interrupt_is_held_until_the_result(fake: Backend, folder: Path) -> None:
    """An interrupt before the CLI has begun is said twice, and the second may not meet the next turn."""
    hear = 'heard.append(json.loads(sys.stdin.readline())["type"])'
    told = """say(result.replace('"x"', json.dumps(" ".join(heard))))"""
    program = scripted(
        folder, "heard = []", hear, hear, "say(begin)", hear, told, "wait(1)", hear, "say(begin, result)"
    )
    async with fake.serve(cli=program) as server, open_talk(server) as talk:
        await talk.start()
        await talk.user("one")
        await talk.stop("interrupt")
        await talk.user("two")
        assert (await talk.result())["result"] == "user control_request control_request"
        await talk.stop("interrupt")  # of what was held, which has gone out
        await talk.result()
        await talk.stop("end")
        await talk.end()
    assert interrupts(fake) == 2
    assert len([event for event in fake.events if isinstance(event, TurnEnded)]) == 2


async def test_a_client_may_interrupt_in_the_clis_own_words(cli: Backend) -> None:
    async with cli.serve() as server, open_talk(server) as talk:
        await talk.start()
        await talk.user(directive("slow", n=200, ms=20))
        await talk.next(lambda frame: frame.get("subtype") == "init")
        assert (await talk.control("mine", "interrupt"))["response"]["subtype"] == "success"
        assert (await talk.result())["is_error"]
        assert interrupts(cli) == 1
        await talk.stop("kill")
        assert (await talk.end())["reason"] == "stopped"


async def test_an_interrupt_on_the_heels_of_its_prompt(cli: Backend) -> None:
    async with cli.serve() as server, open_talk(server) as talk:
        await talk.say({"type": "gateway", "op": "start", "meta": "T"})
        await talk.user(directive("slow", n=500, ms=20))
        await talk.stop("interrupt")
        assert (await talk.result())["is_error"]
        await talk.user(directive("text", text="and on"))
        assert (await talk.result())["result"] == "and on"
        await talk.stop("end")
        assert (await talk.end())["reason"] == "exit"


async def test_an_end_waits_for_the_answer_that_is_open(cli: Backend) -> None:
    async with cli.serve() as server, open_talk(server) as talk:
        await talk.start()
        await talk.user(ASKS)
        question = await talk.asked()
        await talk.stop("end")
        await talk.event("stopping")
        await talk.user("too late")
        assert (await talk.event("refused"))["code"] == "ending"
        await talk.answer(question["request_id"], behavior="allow")
        assert (await talk.end())["reason"] == "exit"
    assert (cli.cwd / "made-by-tool").exists()


async def test_a_client_that_reads_too_slowly_does_not_hold_an_ended_run(fake: Backend) -> None:
    async with fake.serve(send_timeout=1.0) as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            await stream.send_all(head("/ws/session"))
            await stream.send_all(frame({"type": "gateway", "op": "start", "meta": "T"}))
            flood = {"type": "user", "message": {"role": "user", "content": directive("lines", n=10**7, size=300)}}
            await stream.send_all(frame(flood))
            await trio.sleep(1)
            await stream.send_all(frame({"type": "gateway", "op": "stop", "mode": "interrupt"}))
            began = trio.current_time()
            with trio.fail_after(20):
                while not fake.ended:
                    await stream.receive_some(2000)
                    await trio.sleep(0.2)
            assert trio.current_time() - began < 15
    assert fake.ended[0].outcome.receipt.survivors == 0


async def test_the_end_comes_after_the_turn(cli: Backend) -> None:
    async with cli.serve() as server, open_talk(server) as talk:
        await talk.start()
        await talk.user(directive("slow", n=10, ms=50))
        await talk.stop("end")
        ended = await talk.end()
        await talk.say({"type": "gateway", "op": "stop", "mode": "end"}) if talk.code is None else None
    assert [line["type"] for line in talk.lines()][-1] == "result"
    assert (ended["reason"], ended["exit_status"]) == ("exit", 0)


async def test_a_kill_is_at_once(cli: Backend) -> None:
    async with cli.serve() as server, open_talk(server) as talk:
        await talk.start()
        await talk.user(directive("slow", n=200, ms=50))
        await talk.next(lambda frame: frame.get("subtype") == "init")
        await talk.stop("kill")
        ended = await talk.end()
    assert (ended["reason"], ended["signal"], talk.code) == ("stopped", signal.SIGKILL, 1000)
    assert ended["receipt"]["survivors"] == 0


async def test_a_session_goes_on_and_forks(cli: Backend) -> None:
    async with cli.serve() as server:
        async with open_talk(server) as talk:
            session = (await talk.start())["session"]
            await talk.user("remember this")
            await talk.result()
            await talk.stop("end")
            await talk.end()
        async with open_talk(server) as second, open_talk(server) as fork, open_talk(server) as rival:
            assert (await second.start(resume=session))["session"] == session
            other = (await fork.start(resume=session, fork=True))["session"]
            assert other != session
            await rival.say({"type": "gateway", "op": "start", "meta": "T", "options": {"resume": session}})
            refused = await rival.event("refused")
            assert refused["code"] == "session-busy"
            for one, name in ((second, session), (fork, other)):
                await one.user("and now")
                init = await one.next(lambda frame: frame.get("subtype") == "init")
                assert init["session_id"] == name
                assert not (await one.result())["is_error"]
                await one.stop("end")
                await one.end()


async def test_a_turn_that_takes_too_long_ends_the_run_and_keeps_what_it_said(cli: Backend) -> None:
    patience = 2.5 if cli.name == "fake" else 8.0
    async with cli.serve(timeout=patience) as server, open_talk(server) as talk:
        await talk.start()
        await talk.user(directive("slow", n=2000, ms=20))
        ended = await talk.end()
    assert ended["reason"] == "deadline"
    assert ended["error"] == f"timed out after {patience:g} s"
    assert talk.code == 1011
    assert any(line["type"] == "assistant" for line in talk.lines())
    assert ended["receipt"]["survivors"] == 0


async def test_a_refused_key_ends_the_run_early(cli: Backend) -> None:
    async with cli.serve() as server, open_talk(server) as talk:
        await talk.start()
        await talk.user(directive("err", status=401))
        ended = await talk.end()
    assert ended["reason"] == "unauthorized"
    assert talk.code == 1011


async def test_stderr_says_after_which_line(fake: Backend) -> None:
    async with fake.serve() as server, open_talk(server) as talk:
        await talk.start()
        await talk.user(directive("stderr", text="careful", n=2))
        await talk.result()
        await talk.stop("end")
        await talk.end()
    told = [frame for frame in talk.frames if frame.get("event") == "stderr"]
    assert [frame["line"] for frame in told] == ["careful", "careful"]
    assert all(0 <= frame["after"] <= len(talk.lines()) for frame in told)


async def test_an_idle_session_ends(fake: Backend) -> None:
    async with fake.serve(session_idle_timeout=0.5) as server, open_talk(server) as talk:
        await talk.start()
        await talk.user("hi")
        await talk.result()
        ended = await talk.end()
    assert (ended["reason"], ended["error"]) == ("deadline", "idle for 0.5 s")


async def test_a_session_has_an_end(fake: Backend) -> None:
    async with fake.serve(session_timeout=1.0) as server, open_talk(server) as talk:
        await talk.start()
        await talk.user("hi")
        ended = await talk.end()
    assert ended["error"] == "the session lasted 1 s"


async def test_silence_is_told_and_then_ends_the_run(fake: Backend) -> None:
    slow = {"stall_notice": 2.0, "stall_timeout": 5.0}  # slower than a CLI starts
    async with fake.serve(**slow) as server, open_talk(server) as talk:
        await talk.start(partial=True)
        await talk.user(directive("stall", n=2))
        stalled = await talk.event("stalled")
        ended = await talk.end()
    assert stalled["phase"] == "between-lines"
    assert ended["reason"] == "stalled"
    assert "between-lines" in ended["error"]
    assert len([frame for frame in talk.frames if frame.get("event") == "stalled"]) == 1


async def test_a_cli_that_does_not_begin_is_stalled_before_its_first_output(fake: Backend) -> None:
    async with fake.serve(stall_notice=0.3) as server, open_talk(server) as talk:
        await talk.start()
        await talk.user(directive("silent"))
        assert (await talk.event("stalled"))["phase"] == "first-output"
        await talk.stop("kill")
        await talk.end()


async def test_an_interrupt_that_is_not_obeyed_ends_the_run(fake: Backend) -> None:
    async with fake.serve(interrupt_grace=0.3) as server, open_talk(server) as talk:
        await talk.start()
        await talk.user(directive("silent", ignore_term=True))
        await trio.sleep(0.3)
        await talk.stop("interrupt")
        ended = await talk.end()
    assert ended["reason"] == "stopped"
    assert "did not obey" in ended["error"]
    assert ended["receipt"]["survivors"] == 0


async def test_a_cli_that_lives_on_after_its_end_is_ended(fake: Backend) -> None:
    async with fake.serve(result_grace=0.3) as server, open_talk(server) as talk:
        await talk.start()
        await talk.user(directive("linger", seconds=60))
        await talk.stop("end")
        ended = await talk.end()
    assert ended["reason"] == "exit"
    assert talk.reason.startswith("ended after result; ")


TALKS = """
says() { echo '{"type":"system","session_id":"s","subtype":"'"$1"'"'"$2"'}'; }
is() { says session_state_changed ',"sdk_host_only":true,"state":"'"$1"'"'; }
works() { says background_tasks_changed ',"tasks":['"$1"']'; }
agent='{"task_id":"a","task_type":"local_agent"}'
asks() { echo '{"type":"control_request","request_id":"q","request":{"subtype":"can_use_tool","input":{}}}'; }
result() { echo '{"type":"result","result":"'"$1"'","session_id":"s"}'; }
IFS= read -r prompt
"""
"""The beginning of a CLI that has heard its first prompt."""
AGENT = f"""{TALKS}
says init; works "$agent"; result "it works"
"""
"""The beginning of a CLI that has an agent in the background behind its first turn."""


@asynccontextmanager
async def playing(fake: Backend, folder: Path, program: str, **config: float) -> AsyncIterator[Talk]:
    """Have a CLI that is a shell script hear its first prompt."""
    async with fake.serve(cli=script_cli(folder, program), **config) as server, open_talk(server) as talk:
        await talk.start()
        await talk.user("go")
        yield talk


async def test_an_end_waits_for_an_agent_and_for_what_it_has_found(fake: Backend, folder: Path) -> None:
    program = f"""{AGENT}
sleep 0.8
works ""; says init; result "it has found"
cat >/dev/null
"""
    async with playing(fake, folder, program, result_grace=0.2) as talk:
        await talk.stop("end")
        ended = await talk.end()
        results = [frame["result"] for frame in talk.frames if frame["type"] == "result"]
    assert results == ["it works", "it has found"]
    assert (ended["reason"], ended["exit_status"], ended.get("signal")) == ("exit", 0, None)


async def test_an_end_waits_for_an_agent_no_longer_than_for_a_turn(fake: Backend, folder: Path) -> None:
    program = f"{AGENT} cat >/dev/null; sleep 60"
    async with playing(fake, folder, program, timeout=0.5) as talk:
        await talk.stop("end")
        ended = await talk.end()
    assert ended["receipt"]["survivors"] == 0


async def test_an_interrupt_between_two_turns_ends_an_agent(fake: Backend, folder: Path) -> None:
    program = f"""{AGENT}
IFS= read -r said
case "$said" in *'"interrupt"'*) works ""; says interrupted;; esac
cat >/dev/null
"""
    async with playing(fake, folder, program) as talk:
        await talk.result()
        await talk.stop("interrupt")
        await talk.next(lambda frame: frame.get("subtype") == "interrupted")
        await talk.stop("end")
        assert (await talk.end())["exit_status"] == 0


async def test_interrupts_between_two_turns_do_not_pile_up_before_a_cli_that_is_deaf(
    fake: Backend, folder: Path
) -> None:
    times = 65536 // 100 + 2 * URGENT  # what its pipe takes, and more
    async with fake.serve(cli=script_cli(folder, f"{AGENT} sleep 60")) as server, open_talk(server) as talk:
        started = await talk.start()
        await talk.user("go")
        await talk.result()
        for _ in range(times):
            await talk.stop("interrupt")
        await until(lambda: len([frame for frame in talk.frames if frame.get("event") == "stopping"]) == times)
        assert len(server.stages[started["run"]].run._outbox._urgent) == URGENT
        await talk.stop("kill")
        assert (await talk.end())["reason"] == "stopped"


async def test_an_end_waits_for_a_turn_that_the_cli_owes_which_may_ask(fake: Backend, folder: Path) -> None:
    program = f"""{TALKS}
[ "$CLAUDE_CODE_SDK_READS_SESSION_STATE" = 1 ] || exit 9
is running; says init; result "it works"
sleep 0.8
says init; asks; IFS= read -r answer; result "it has asked"; is idle
cat >/dev/null
"""
    async with playing(fake, folder, program, result_grace=0.2) as talk:
        await talk.result()
        await talk.stop("end")
        await talk.answer((await talk.asked())["request_id"], behavior="allow")
        ended = await talk.end()
        assert not any("sdk_host_only" in frame for frame in talk.frames)
        results = [frame["result"] for frame in talk.frames if frame["type"] == "result"]
    assert results == ["it works", "it has asked"]
    assert (ended["reason"], ended["exit_status"], ended.get("signal"), ended["lines"]) == ("exit", 0, None, 5)


async def test_an_end_behind_a_turn_of_the_clis_own_waits_for_the_clients(fake: Backend, folder: Path) -> None:
    program = f"""{TALKS}
is running; says init; echo '{{"type":"result","result":"","origin":{{"kind":"task-notification"}}}}'; is idle
sleep 0.1; is running; sleep 1.5
says init; asks; IFS= read -r answer; result "it has asked"; is idle
cat >/dev/null
"""
    async with playing(fake, folder, program, result_grace=1) as talk:
        await talk.stop("end")
        await talk.answer((await talk.asked())["request_id"], behavior="allow")
        ended = await talk.end()
        results = [frame for frame in talk.frames if frame["type"] == "result"]
    assert len(results) == 2
    assert (ended["reason"], ended["exit_status"], ended.get("signal")) == ("exit", 0, None)


async def test_an_interrupt_ends_a_turn_that_the_cli_owes(fake: Backend, folder: Path) -> None:
    program = f"""{TALKS}
is running; says init; result "it works"; IFS= read -r said; says heard
says init; IFS= read -r more
case "$said$more" in *'"interrupt"'*'"interrupt"'*) result "interrupted"; is idle;; esac
cat >/dev/null
"""
    async with playing(fake, folder, program) as talk:
        await talk.result()
        await talk.stop("interrupt")
        assert (await talk.result())["result"] == "interrupted"
        await talk.stop("end")
        assert (await talk.end())["exit_status"] == 0


async def test_an_end_waits_for_a_turn_that_is_owed_no_longer_than_for_a_turn(fake: Backend, folder: Path) -> None:
    program = f'{TALKS} is running; says init; result "it works"; cat >/dev/null; sleep 60'
    async with playing(fake, folder, program, timeout=0.5) as talk:
        await talk.stop("end")
        ended = await talk.end()
    assert ended["receipt"]["survivors"] == 0


async def test_an_end_waits_for_what_an_agent_has_asked(fake: Backend, folder: Path) -> None:
    program = f"""{AGENT} asks
IFS= read -r answer; says answered; works ""; says init; result "it has found"
cat >/dev/null
"""
    async with playing(fake, folder, program, timeout=2.0) as talk:
        request = (await talk.asked())["request_id"]
        await talk.stop("end")
        await trio.sleep(2.5)  # longer than a turn may take
        await talk.answer(request, behavior="allow")
        ended = await talk.end()
    assert (ended["reason"], ended["exit_status"], ended.get("signal")) == ("exit", 0, None)


async def test_an_agent_that_works_on_behind_its_answer_is_ended_too(fake: Backend, folder: Path) -> None:
    program = f"""{AGENT} asks
IFS= read -r answer; cat >/dev/null; sleep 60
"""
    async with playing(fake, folder, program, timeout=2.0) as talk:
        request = (await talk.asked())["request_id"]
        await talk.stop("end")
        await talk.answer(request, behavior="allow")
        ended = await talk.end()
    assert ended["receipt"]["survivors"] == 0


async def test_an_interrupt_ends_an_agent_that_has_asked(fake: Backend, folder: Path) -> None:
    program = f"""{AGENT} asks
IFS= read -r said
case "$said" in *'"interrupt"'*) works ""; says interrupted;; esac
echo '{{"type":"control_cancel_request","request_id":"q"}}'
cat >/dev/null
"""
    async with playing(fake, folder, program) as talk:
        await talk.asked()
        await talk.stop("interrupt")
        await talk.next(lambda frame: frame.get("subtype") == "interrupted")
        await talk.stop("end")
        assert (await talk.end())["exit_status"] == 0


async def test_an_interrupt_waits_for_a_turn_that_begins_late(fake: Backend, folder: Path) -> None:
    program = f"""{TALKS}
says heard; IFS= read -r said
request=${{said#*request_id\\":\\"}}; request=${{request%%\\"*}}
echo '{{"type":"control_response","response":{{"subtype":"success","request_id":"'"$request"'"}}}}'
sleep 1.5
says init; IFS= read -r said
case "$said" in *'"interrupt"'*) result "interrupted";; esac
cat >/dev/null
"""
    async with playing(fake, folder, program, interrupt_grace=0.8) as talk:
        await talk.next(lambda frame: frame.get("subtype") == "heard")
        await talk.stop("interrupt")
        assert (await talk.result())["result"] == "interrupted"
        await talk.stop("end")
        assert (await talk.end())["exit_status"] == 0


async def test_a_cli_that_dies_is_told(fake: Backend) -> None:
    async with fake.serve() as server, open_talk(server) as talk:
        await talk.start()
        await talk.user(directive("exit", status=3))
        ended = await talk.end()
        assert talk.code == 1011
    assert (ended["reason"], ended["exit_status"]) == ("failed", 3)


async def test_what_a_queued_session_is_told(fake: Backend) -> None:
    async with fake.serve(max_runs=1) as server, open_talk(server) as first, open_talk(server) as second:
        await first.start()
        await second.say({"type": "gateway", "op": "start", "meta": "TWO"})
        assert (await second.event("queued"))["position"] == 1
        await second.user("said while it waits")
        await first.stop("kill")
        await first.end()
        assert (await second.result())["result"]
        await second.stop("end")
        await second.end()


async def test_what_is_said_before_a_run_begins_is_in_its_history(fake: Backend) -> None:
    async with (
        fake.serve(max_runs=1, journal="memory") as server,
        open_talk(server) as first,
        open_talk(server) as second,
    ):
        await first.start()
        await second.say({"type": "gateway", "op": "start", "meta": "SECOND"})
        await second.event("queued")
        await second.user(directive("text", text="said early"))
        await first.stop("kill")
        run = (await second.event("started"))["run"]
        await second.result()
        assert server.runs.journal
        await server.runs.journal.settle()
        parts = await server.runs.journal.parts(run)
    said = [part for part in parts if part.kind is PartKind.SAID]
    assert [part.first for part in said] == [0]
    assert b"said early" in said[0].data


async def test_no_slot(fake: Backend) -> None:
    async with fake.serve(max_runs=1, queue_timeout=0.2) as server, open_talk(server) as first:
        await first.start()
        async with open_talk(server) as second:
            await second.say({"type": "gateway", "op": "start", "meta": "TWO"})
            refused = await second.event("refused")
            await until(lambda: second.code)
        assert (refused["code"], refused["retry_after"], second.code) == ("busy", 0.2, 1013)


async def test_a_session_that_is_stopped_while_it_waits(fake: Backend) -> None:
    async with fake.serve(max_runs=1) as server, open_talk(server) as first:
        await first.start()
        async with open_talk(server) as second:
            await second.say({"type": "gateway", "op": "start", "meta": "TWO"})
            await second.event("queued")
            await second.stop("end")
            await until(lambda: second.code)
        assert second.code == 1000
        assert not [event for event in fake.events if isinstance(event, RunEnded)]


async def test_a_drain_ends_a_session(fake: Backend) -> None:
    async with fake.serve() as server, open_talk(server) as talk:
        await talk.start()
        await server.drain(0)
        ended = await talk.end()
        assert (ended["reason"], ended["retryable"], talk.code) == ("drained", True, 1012)


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ("nonsense", "bad-message"),
        ({"type": "user", "message": {"role": "user", "content": "x"}}, "bad-message"),
        ({"type": "gateway", "op": "start"}, "bad-message"),
        ({"type": "gateway", "op": "start", "meta": "lower"}, "bad-message"),
        ({"type": "gateway", "op": "start", "meta": "T\n"}, "bad-message"),
        ({"type": "gateway", "op": "start", "meta": "T", "options": {"permission_mode": "plan"}}, "bad-message"),
        ({"type": "gateway", "op": "start", "meta": "T", "options": {"fork": True}}, "bad-message"),
        ({"type": "gateway", "op": "start", "meta": "T", "options": {"on_disconnect": {"grace": 500}}}, "bad-message"),
        ({"type": "gateway", "op": "start", "meta": "T", "options": {"on_disconnect": "keep"}}, "bad-message"),
        ({"type": "gateway", "op": "start", "meta": "T", "extra": 1}, "bad-message"),
        ({"type": "gateway", "op": "attach", "run": "ab12", "after": 3}, "not-open"),
    ],
    ids=str,
)
async def test_a_wrong_start_is_refused(fake: Backend, first: str | dict[str, object], code: str) -> None:
    async with fake.serve() as server, open_talk(server) as talk:
        await talk.say(first)
        refused = await talk.event("refused")
        await until(lambda: talk.code)
        assert (refused["code"], talk.code) == (code, 1008)
        assert refused["error"]


async def test_what_is_refused_in_a_session_leaves_it_as_it_was(cli: Backend) -> None:
    async with cli.serve() as server, open_talk(server) as talk:
        await talk.start()
        bad = [
            "nonsense",
            "[]",
            '{"type":"user"}',
            json.dumps({"type": "gateway", "op": "start", "meta": "T"}),
            json.dumps({"type": "gateway", "op": "detach"}),
            json.dumps({"type": "gateway", "op": "stop", "mode": "hard"}),
            json.dumps({"type": "control_request", "request_id": "a", "request": {"subtype": "mcp_set_servers"}}),
            json.dumps({"type": "keep_alive"}),
        ]
        for line in bad:
            await talk.say(line)
            assert (await talk.event("refused"))["error"]
        await talk.user("still there?")
        assert not (await talk.result())["is_error"]
        await talk.stop("end")
        assert (await talk.end())["reason"] == "exit"


DEEP = "[" * 200_000
UNREADABLE = [
    (f'{{"type":"control_request","request_id":"a","request":{DEEP}', "a"),
    (f' {{ "type": "control_response", "response": {{"subtype": "success", "request_id": "b", "response": {DEEP}', "b"),
    (f'{{"type":"user","message":{{"content":"\\"request_id\\":\\"c\\""}},"request_id":"c","more":{DEEP}', None),
    (f'{{"type":"control_request","request_id":"{"d" * 129}","request":{DEEP}', None),
    (f'{{"type":"control_request","x":"{"x" * 2000}","request_id":"e","request":{DEEP}', None),
]


async def test_hooks_are_refused_where_the_cli_calls_none(fake: Backend) -> None:
    """A program whose hook guards something must hear of it: behind `--bare` the CLI says yes to hooks, and calls none."""
    hooks = {"PreToolUse": [{"hookCallbackIds": ["guard"]}]}
    async with fake.serve(profile="lean") as server, open_talk(server) as talk:
        await talk.start()
        asked = {"type": "control_request", "request_id": "1", "request": {"subtype": "initialize", "hooks": hooks}}
        await talk.say(asked)
        refused = await talk.event("refused")
        assert (refused["code"], refused["request_id"]) == ("not-allowed", "1")
        assert "request.hooks" in refused["error"]
        assert (await talk.control("2", "initialize", hooks=None))["response"]["subtype"] == "success"
    async with fake.serve(profile="chat") as server, open_talk(server) as talk:
        await talk.start()
        assert (await talk.control("1", "initialize", hooks=hooks))["response"]["subtype"] == "success"


async def test_what_can_not_be_read_is_refused_by_the_name_with_which_it_begins(fake: Backend) -> None:
    async with fake.serve() as server, open_talk(server) as talk:
        await talk.start()
        for message, name in UNREADABLE:
            await talk.say(message)
            refused = await talk.event("refused")
            assert (refused["code"], refused.get("request_id")) == ("bad-message", name)


async def test_a_large_message_waits_for_the_start(fake: Backend) -> None:
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGkh" * 2**20}}
    said = {"type": "user", "message": {"role": "user", "content": [block, {"type": "text", "text": "look"}]}}
    async with fake.serve() as server:
        async with open_talk(server) as talk:
            await talk.say(json.dumps({"type": "gateway", "op": "start", "meta": "T", "pad": "x" * 70_000}))
            await until(lambda: talk.code)
            assert talk.code == 1009
        async with open_talk(server) as talk:
            await talk.start()
            await talk.say(said)
            assert not (await talk.result())["is_error"]
            await talk.stop("end")
            await talk.end()


async def test_a_cli_that_does_not_read_is_given_so_much_and_no_more(fake: Backend) -> None:
    """And what is not taken is not counted against the minute."""
    async with fake.serve(max_session_message=2**20, prompts_per_minute=5.0) as server, open_talk(server) as talk:
        await talk.start()
        await talk.user(directive("silent"))
        for _ in range(8):
            await talk.user("x" * 300_000)
        for _ in range(4):
            refused = await talk.event("refused")
            assert refused["code"] == "backlog"
        await talk.stop("kill")
        assert (await talk.end())["reason"] == "stopped"
