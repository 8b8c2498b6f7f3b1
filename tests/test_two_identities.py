"""Rule: whatever two identities do, neither learns of the other's runs, and neither can touch them."""

from __future__ import annotations

import json
import re
import uuid
from secrets import token_hex

import trio
from harness import Backend, ask, directive, head, open_backend, short_folder, until
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from talk import Talk, open_talk

from trio_claude.api import OPEN_PATHS
from trio_claude.server import Server

ROUTES = sorted({*OPEN_PATHS, "/api/ticket", "/api/runs", "/api/usage", "/metrics"})
METHODS = ("GET", "HEAD", "POST", "DELETE", "PUT", "OPTIONS", "PATCH")


async def everything(server: Server, key: str, named: tuple[str, ...]) -> str:
    """Return what one identity is answered on every route there is, by every method, also with the other's ids."""
    heard: list[bytes] = []
    paths = [*ROUTES, *(f"/api/runs/{name}{rest}" for name in named for rest in ("", "/lines"))]
    for path in paths:
        for method in METHODS:
            async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
                lines = [f"{method} {path}?meta={named[0]} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {key}"]
                await stream.send_all("\r\n".join([*lines, "Content-Length: 0", "", ""]).encode())
                heard.append(bytes(await stream.receive_some(65536)))
    return b"\n".join(heard).decode("latin-1")


def facts(talk: Talk) -> tuple[str, ...]:
    """Return by what a run could be known."""
    (started,) = [frame for frame in talk.frames if frame.get("event") == "started"]
    return started["run"], started["session"]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["alice", "bob"]),
        st.sampled_from(["resume", "stop", "attach", "answer", "control", "routes", "user"]),
    ),
    min_size=1,
    max_size=6,
)


async def attempt(server: Server, key: str, step: str, own: Talk, other: Talk) -> str:
    """Try one thing against the other's run; return all that was heard."""
    run, session = facts(other)
    match step:
        case "resume":
            said = await ask(server, "hello", key=key, resume=session)
            return "\n".join(said.frames)
        case "stop":
            await own.say({"type": "gateway", "op": "stop", "mode": "kill", "run": run})
        case "attach":
            await own.say({"type": "gateway", "op": "attach", "run": run, "after": 0})
        case "answer":
            await own.answer(run, behavior="allow")
        case "control":
            await own.say(
                {"type": "control_request", "request_id": run, "request": {"subtype": "interrupt", "run": run}}
            )
        case "routes":
            return await everything(server, key, (run, session))
        case "user":
            await own.say({"type": "user", "message": {"role": "user", "content": "hi"}, "session_id": session})
    await trio.sleep(0.02)
    return ""


async def meet(cli: Backend, steps: list[tuple[str, str]]) -> None:
    async with cli.serve_known("alice", "bob") as (server, keys):
        marks = {name: f"MARK-{token_hex(8).upper()}" for name in keys}
        async with open_talk(server, keys["alice"]) as a, open_talk(server, keys["bob"]) as b:
            talks = {"alice": a, "bob": b}
            for name, talk in talks.items():
                await talk.start(marks[name])
                await talk.user(directive("slow", n=2000, ms=5, text=marks[name].lower()))
                await talk.next(lambda frame: frame["type"] == "system")
            for name, step in steps:
                other = "bob" if name == "alice" else "alice"
                lines = len(talks[other].frames)
                heard = await attempt(server, keys[name], step, talks[name], talks[other])
                theirs = (*facts(talks[other]), marks[other], marks[other].lower(), f"key:{other}")
                if step == "resume":  # it names what it asked for itself
                    assert '"type":"assistant"' not in heard
                elif step == "routes":
                    for fact in theirs[2:]:
                        assert fact not in heard
                    assert not re.search(r'"(live|waiting|taken|runs)":\s*\d', heard), (
                        "a count, of which the document says only the name"
                    )
                assert len(talks[other].frames) >= lines
            for name, talk in talks.items():
                other = "bob" if name == "alice" else "alice"
                assert marks[other].lower() not in json.dumps(talk.frames)
                assert not [frame for frame in talk.frames if frame.get("event") == "ended"], "nobody's run was ended"
            assert server.runs.statistics().live == 2
            await a.stop("kill")
            await b.stop("kill")
            await until(lambda: a.code is not None and b.code is not None)
    assert [event.outcome.receipt.survivors for event in cli.ended] == [0] * len(cli.ended)


def test_neither_learns_of_the_other(long: bool) -> None:
    def run(steps: list[tuple[str, str]]) -> None:
        note(json.dumps(steps))

        async def go() -> None:
            with short_folder() as folder:
                async with open_backend("fake", folder) as cli:
                    await meet(cli, steps)

        trio.run(go)

    most = 200 if long else 10
    settings(max_examples=most, deadline=None, suppress_health_check=list(HealthCheck))(given(STEPS)(run))()


async def test_ids_can_not_be_guessed(fake: Backend) -> None:
    runs, sessions = set(), set()
    async with fake.serve_known("alice") as (server, keys):
        for _ in range(5):
            async with open_talk(server, keys["alice"]) as talk:
                await talk.start()
                run, session = facts(talk)
                runs.add(run)
                sessions.add(session)
                await talk.stop("kill")
    assert len(runs) == len(sessions) == 5
    assert all(re.fullmatch(r"[0-9a-f]{32}", run) for run in runs)
    assert all(uuid.UUID(session).version == 4 for session in sessions)


async def test_a_viewer_starts_nothing(fake: Backend) -> None:
    async with fake.serve_known("vera/viewer") as (server, keys):
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            await stream.send_all(head("/ws/claude", host="localhost", authorization=f"Bearer {keys['vera']}"))
            assert (await stream.receive_some(4096)).startswith(b"HTTP/1.1 403")
        async with open_talk(server, keys["vera"]) as talk:
            await talk.say({"type": "gateway", "op": "start", "meta": "T"})
            assert (await talk.event("refused"))["code"] == "not-allowed"
            await until(lambda: talk.code == 1008)
    assert not fake.ended
