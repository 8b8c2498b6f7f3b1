"""Rule: whatever a client says and whenever it leaves, a session's run ends once, with one receipt and nothing left."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import trio
from harness import directive, open_backend, short_folder, until
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from talk import Talk, open_talk
from trio_websocket import ConnectionClosed

from trio_claude.events import Crashed
from trio_claude.session import State
from trio_claude.session_run import SessionRun

PROMPTS = (
    "hello",
    directive("text", text="a b c", deltas=3),
    directive("slow", n=30, ms=10),
    directive("bash", cmd="touch x; ls"),
    directive("bash", cmd="touch x; ls", rounds=2),
    directive("lines", n=200, size=100),
    directive("stderr", text="oh", n=3),
    directive("tree", kinds=["setsid", "double_fork"], seconds=60),
    directive("exit", status=3),
    directive("signal", n=9),
    directive("silent"),
    directive("linger", seconds=5),
    directive("raw", text='{"type":"control_request"}\n"result"\n'),
)
BAD = ("nonsense", "[]", '{"type":"user"}', '{"type":"control_request","request_id":"x","request":{"subtype":"y"}}')
PAUSES = st.sampled_from([0, 0, 0.01, 0.05, 0.2])
STEPS = st.one_of(
    st.tuples(st.just("user"), st.sampled_from(PROMPTS)),
    st.tuples(st.just("bad"), st.sampled_from(BAD)),
    st.tuples(st.just("answer"), st.sampled_from(["allow", "deny", "stop"])),
    st.tuples(st.just("stop"), st.sampled_from(["interrupt", "interrupt", "end", "kill"])),
    st.tuples(st.just("model"), st.just("claude-haiku-5-5")),
    st.tuples(st.just("drop"), st.just("")),
)


async def do(talk: Talk, step: str, value: str) -> None:
    """Do one thing that a client can do."""
    match step:
        case "user":
            await talk.user(value)
        case "bad":
            await talk.say(value)
        case "stop":
            await talk.stop(value)
        case "model":
            await talk.say(
                {"type": "control_request", "request_id": "m", "request": {"subtype": "set_model", "model": value}}
            )
        case "answer":
            await answer(talk, value)


async def answer(talk: Talk, value: str) -> None:
    """Answer the last question, open or not; say something odd where there was none."""
    asked = [
        frame["request_id"] for frame in talk.frames if frame["type"] == "control_request" and "request_id" in frame
    ]
    decisions: dict[str, dict[str, Any]] = {
        "allow": {"behavior": "allow"},
        "deny": {"behavior": "deny", "message": "no"},
        "stop": {"behavior": "deny", "message": "no", "interrupt": True},
    }
    await talk.answer(asked[-1] if asked else "nothing", **decisions[value])


async def go_through(talk: Talk, run: SessionRun, steps: list[tuple[tuple[str, str], float]]) -> bool:
    """Do one thing after the other; return whether the client is to leave without a word."""
    for (step, value), pause in steps:
        if step == "drop":
            return True
        with contextlib.suppress(ConnectionClosed):  # the run has ended by something that was said before
            await do(talk, step, value)
        await trio.sleep(pause)
        assert run.session.state in State
    return False


async def converse(folder: Path, steps: list[tuple[tuple[str, str], float]]) -> None:
    """Run a conversation against the stand-in, and look at what came of it."""
    async with open_backend("fake", folder) as cli:
        async with cli.serve(interrupt_grace=0.3, result_grace=0.3, timeout=3.0) as server:
            async with open_talk(server) as talk:
                await talk.start()
                (run,) = server.runs._live.values()
                dropped = await go_through(talk, run, steps)
                if not dropped:
                    with contextlib.suppress(ConnectionClosed):  # it has ended by itself
                        await talk.stop("kill")
                    await until(lambda: talk.code is not None)
            await until(lambda: cli.ended, 12)
            assert run.session.state is State.ENDING
            assert not run.session.asked
            (ended,) = cli.ended
            told = [frame for frame in talk.frames if frame.get("event") == "ended"]
            assert len(told) <= 1 if dropped else len(told) == 1
            assert ended.outcome.receipt.survivors == 0
            assert not [event for event in cli.events if isinstance(event, Crashed)]
            await until(lambda: not cli.left())
        if not dropped:
            assert told[0]["lines"] == len(talk.lines())


def run(steps: list[tuple[tuple[str, str], float]]) -> None:
    note(json.dumps(steps))
    with short_folder() as folder:
        trio.run(converse, folder, steps)


def test_random_conversations(long: bool) -> None:
    sweep = given(st.lists(st.tuples(STEPS, PAUSES), min_size=1, max_size=10))(run)
    settings(max_examples=500 if long else 20, deadline=None, suppress_health_check=list(HealthCheck))(sweep)()
