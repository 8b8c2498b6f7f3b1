"""Rule: a turn that was cut off is shown to whoever goes on with its session, and told to the model if it wants that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from harness import Backend, directive, open_backend, until
from hypothesis import given
from hypothesis import strategies as st
from journals import Opening, begun, ended, on_redis, sqlite_in
from talk import Talk, open_talk

from trio_claude.errors import BadMessage
from trio_claude.journal import Part, PartKind, Unfinished
from trio_claude.journal.unfinished import TEXT_LIMIT, find_unfinished
from trio_claude.session import parse_start, recalling


def delta(text: str) -> dict[str, Any]:
    return {"type": "stream_event", "event": {"delta": {"type": "text_delta", "text": text}}}


def block(text: str) -> dict[str, Any]:
    return {"type": "assistant", "message": {"content": [{"type": "text", "text": text}, {"type": "tool_use"}]}}


def user(text: str) -> dict[str, Any]:
    return {"type": "user", "message": {"role": "user", "content": text}}


RESULT = {"type": "result", "result": "done"}


def parts(*said: tuple[PartKind, object]) -> list[Part]:
    lines = (line if isinstance(line, bytes) else json.dumps(line).encode() for _, line in said)
    return [Part(kind, 1, 1, line) for (kind, _), line in zip(said, lines, strict=True)]


def found(*said: tuple[PartKind, object], prompt: str | None = None) -> Unfinished | None:
    return find_unfinished("r", prompt, parts(*said))


CLI, IN, ERR = PartKind.LINES, PartKind.SAID, PartKind.STDERR


def test_a_turn_with_a_result_is_finished() -> None:
    assert found((IN, user("q")), (CLI, block("a")), (CLI, RESULT)) is None
    assert found() is None


def test_what_comes_behind_the_last_result_is_unfinished() -> None:
    first = ((IN, user("q1")), (CLI, block("a1")), (CLI, RESULT))
    assert found(*first, (IN, user("q2")), (CLI, block("a2"))) == Unfinished("r", "q2", "a2", cut=False)
    assert found(*first, (IN, user("q2"))) == Unfinished("r", "q2", "", cut=False)
    assert found((CLI, block("a")), prompt="asked") == Unfinished("r", "asked", "a", cut=False)


def test_deltas_stand_for_a_block_until_it_is_there() -> None:
    said = [(IN, user("q")), (CLI, delta("a")), (CLI, delta("b"))]
    assert found(*said) == Unfinished("r", "q", "ab", cut=False)
    assert found(*said, (CLI, block("ab"))) == Unfinished("r", "q", "ab", cut=False)
    assert found(*said, (CLI, block("ab")), (CLI, delta("c"))) == Unfinished("r", "q", "ab\nc", cut=False)


def test_a_message_during_an_answer_is_of_the_next_turn() -> None:
    said = [(IN, user("q1")), (CLI, delta("a")), (IN, user("q2")), (CLI, RESULT)]
    assert found(*said, (CLI, delta("b"))) == Unfinished("r", "q2", "b", cut=False)


def test_what_is_long_is_cut() -> None:
    long = "x" * TEXT_LIMIT
    assert found((IN, user(long + "y")), (CLI, block("a" + long))) == Unfinished("r", long, long, cut=True)


@given(st.lists(st.tuples(st.sampled_from([CLI, IN, ERR]), st.binary(max_size=60) | st.sampled_from([
    b'{"type":"assistant"}', b'{"type":"assistant","message":{"content":7}}', b'{"type":"stream_event","event":[]}',
    b'{"type":"result"', b'["result"]', b'{"type":"user","message":{"content":[1,{"type":"text"}]}}', b"[" * 9999,
]))))  # fmt: skip
def test_no_line_is_too_strange(said: list[tuple[PartKind, bytes]]) -> None:
    lost = find_unfinished("r", None, [Part(kind, 1, 1, line) for kind, line in said])
    assert lost is None or lost.run == "r"


def test_the_model_is_told_before_what_the_client_says() -> None:
    image = {"type": "image", "source": {}}
    for content, rest in (("now", [{"type": "text", "text": "now"}]), ([image], [image])):
        said = {"type": "user", "message": {"role": "user", "content": content}}
        told = recalling(said, "asked", "answered")["message"]["content"]
        assert told[1:] == rest
        assert "asked" in told[0]["text"]
        assert "answered" in told[0]["text"]
    for other in ({"type": "control_request"}, {"type": "user"}, {"type": "user", "message": {"content": 7}}):
        assert recalling(other, "asked", "answered") is other


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def opening(request: pytest.FixtureRequest, tmp_path: Path) -> Opening:
    """What opens a journal of each kind."""
    return sqlite_in(tmp_path) if request.param == "sqlite" else on_redis(request.getfixturevalue("redis_server"))


async def test_a_turn_without_a_line_is_told_and_a_run_without_a_word_hides_none(opening: Opening) -> None:
    async with opening() as journal:
        for number, (name, words) in enumerate((("a", "one"), ("b", "two"), ("c", ""))):
            run = journal.begin(begun(name, started=float(number), session="s", prompt=None))
            if words:
                run.said(json.dumps(user(words)).encode())
            else:
                run.stderr(["no such session"])
            if name == "a":
                run.lines([json.dumps(block("half")).encode()])
            run.end(ended(name, 1 if name == "a" else 0, reason="failed"))
            asked = {"a": "one", "b": "two", "c": "two"}[name]
            found = await journal.unfinished("local", "s")
            assert found
            assert (found.prompt, found.text) == (asked, "half" if name == "a" else "")


async def test_where_a_history_ends_early_nobody_knows_whether_the_turn_did(opening: Opening) -> None:
    async with opening(2000) as journal:
        run = journal.begin(begun("a", session="s"))
        run.lines([json.dumps(block("first")).encode()])
        run.lines([json.dumps(block("long" * 500)).encode(), json.dumps(RESULT).encode()])
        assert not run.stored
        run.end(ended("a", 3))
        assert await journal.unfinished("local", "s") is None
        found = await journal.get("local", "a")
        assert found
        assert (found.lines, found.stored) == (3, 1)


async def test_the_last_run_of_a_session_is_the_one_that_came_last_whatever_the_clock_said(tmp_path: Path) -> None:
    async with sqlite_in(tmp_path)() as journal:
        for name, started, line in (("a", 5000.0, block("half")), ("b", 1000.0, RESULT)):
            run = journal.begin(begun(name, session="s", started=started))
            run.lines([json.dumps(line).encode()])
            run.end(ended(name, 1))
        assert await journal.unfinished("local", "s") is None


async def cut_off(talk: Talk, text: str) -> dict[str, Any]:
    """Start a session, have a turn, and kill it in the middle of the next."""
    started = await talk.start(partial=True)
    await talk.user("hello")
    await talk.result()
    await talk.user(text)
    await talk.next(lambda frame: frame["type"] == "stream_event" and "delta" in frame["event"])
    await talk.next(lambda frame: frame["type"] == "stream_event" and "delta" in frame["event"])
    await talk.stop("kill")
    await talk.event("ended")
    return started


@pytest.mark.parametrize("name", ["fake", pytest.param("real", marks=pytest.mark.real_cli)])
@pytest.mark.parametrize("recall", [False, True])
async def test_a_session_that_goes_on_is_told_of_its_turn(name: str, recall: bool, folder: Path) -> None:
    question = directive("slow", n=300, ms=20)
    async with open_backend(name, folder) as cli, cli.serve(journal="memory") as server:
        async with open_talk(server) as first:
            started = await cut_off(first, question)
        deltas = [frame["event"]["delta"]["text"] for frame in first.frames if "text" in _delta(frame)]
        async with open_talk(server) as second:
            again = await second.start(resume=started["session"], **({"recall": True} if recall else {}))
            (told,) = [frame for frame in second.frames if frame.get("event") == "unfinished"]
            assert (told["run"], told["prompt"], told["cut"]) == (started["run"], question, False)
            assert told["text"]
            assert "".join(deltas).endswith(told["text"])
            await second.user("and now?")
            await second.result()
            await second.stop("end")
            await second.event("ended")
        if cli.api:
            assert ("cut off before it ended" in json.dumps(cli.api.requests[-1].body)) == recall
        async with open_talk(server) as third:
            await third.start(resume=again["session"])
            assert not [frame for frame in third.frames if frame.get("event") == "unfinished"]
            await third.stop("kill")
            await third.event("ended")


def _delta(frame: dict[str, Any]) -> dict[str, Any]:
    event = frame.get("event")
    return event.get("delta", {}) if isinstance(event, dict) else {}


async def test_what_the_model_is_told_outlives_a_break_and_is_not_taken_for_the_clients_words(fake: Backend) -> None:
    async with fake.serve(journal="memory") as server:
        async with open_talk(server) as first:
            session = (await cut_off(first, directive("slow", n=300, ms=20)))["session"]
        async with open_talk(server) as second:
            run = (await second.start(resume=session, recall=True, on_disconnect={"grace": 20}))["run"]
            await second.socket._stream.aclose()
        async with open_talk(server) as third:
            await third.say({"type": "gateway", "op": "attach", "run": run, "as": "owner"})
            await third.event("attached")
            assert server.stages[run].run.recalled
            await third.user(directive("slow", n=300, ms=20))
            await third.next(lambda frame: frame["type"] == "stream_event" or frame["type"] == "system")
            assert server.stages[run].run.recalled is None
            await third.stop("kill")
            await third.event("ended")
        async with open_talk(server) as fourth:
            await fourth.start(resume=session)
            (told,) = [frame for frame in fourth.frames if frame.get("event") == "unfinished"]
            assert told["prompt"] == directive("slow", n=300, ms=20)
            await fourth.stop("kill")
            await fourth.event("ended")


def test_the_end_of_a_long_turn_is_cut_and_helpers_do_not_answer() -> None:
    late = [Part(CLI, 9, 1, json.dumps(block("a")).encode(), number=7)]
    assert find_unfinished("r", "asked long ago", late) == Unfinished("r", "asked long ago", "a", cut=True)
    assert found((IN, user("q")), (CLI, {**block("helper"), "parent_tool_use_id": "t"})) == Unfinished(
        "r", "q", "", cut=False
    )


async def test_another_identitys_turn_is_not_told(fake: Backend) -> None:
    async with fake.serve_known("alice", "bob", journal="memory") as (server, keys):
        async with open_talk(server, keys["alice"]) as first:
            started = await cut_off(first, directive("slow", n=300, ms=20))
        async with open_talk(server, keys["bob"]) as second:
            await second.say({"type": "gateway", "op": "start", "meta": "T", "options": {"resume": started["session"]}})
            await until(lambda: second.code is not None or bool(second.frames[1:]))
            assert not [frame for frame in second.frames if frame.get("event") == "unfinished"]


def test_recall_takes_a_session() -> None:
    for options in ({"recall": True}, {"recall": 1}, {"recall": "yes", "resume": "x"}):
        with pytest.raises(BadMessage, match="recall"):
            parse_start(json.dumps({"type": "gateway", "op": "start", "meta": "T", "options": options}), (), 300, 60)
