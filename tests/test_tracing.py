"""Rule: a traced run is one trace with its turns and tools, whoever began it; no word of it is in a span, and what is
not traced pays nothing."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from harness import Backend, Said, connect, directive, listen, open_backend, until
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode, get_current_span
from program import environ, serving, trio_claude
from talk import open_talk

from trio_claude import Config, client, open_engine, open_run
from trio_claude.errors import ConfigError, Reason
from trio_claude.events import Outcome, Receipt, RunEnded, RunStarted, Strained, TurnEnded
from trio_claude.tracing import Trace, Tracer, lines, spans
from trio_claude.tracing.lines import ToolAnswered, ToolUsed, TurnOver, sights
from trio_claude.tracing.otlp import _Sender, open_otlp

BOTH = [pytest.param("fake"), pytest.param("real", marks=pytest.mark.real_cli)]
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
SHOWS = directive("bash", cmd="echo in:$TRACEPARENT:$TRACESTATE:")
"""A Bash call that shows what trace its process is part of."""
ALLOWED = "--allowed-tools=Bash"


@attrs.frozen
class Made:
    """The spans that were made."""

    exporter: InMemorySpanExporter
    provider: TracerProvider

    @property
    def all(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def tree(self) -> dict[str, Any]:
        """The spans by name, each with those below it, in the order in which they began."""
        ids = {span.context.span_id for span in self.all}
        return self._below(lambda span: span.parent is None or span.parent.span_id not in ids)

    def _below(self, wanted: Callable[[ReadableSpan], bool]) -> dict[str, Any]:
        found = sorted(filter(wanted, self.all), key=lambda span: span.start_time)
        return {f"{span.name}": self._below(_child_of(span)) for span in found}


def _child_of(above: ReadableSpan) -> Callable[[ReadableSpan], bool]:
    return lambda span: span.parent is not None and span.parent.span_id == above.context.span_id


def said(span: ReadableSpan) -> dict[str, object]:
    return {name.removeprefix("trio_claude."): value for name, value in (span.attributes or {}).items()}


def happened(span: ReadableSpan) -> list[str]:
    return [event.name for event in span.events]


@pytest.fixture
def made() -> Iterator[Made]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield Made(exporter, provider)
    provider.shutdown()


@pytest.fixture(params=BOTH)
async def cli(request: pytest.FixtureRequest, folder: Path, made: Made) -> AsyncIterator[Backend]:
    async with open_backend(request.param, folder) as backend:
        backend.tracer_provider = made.provider
        yield backend


@pytest.fixture
def traced(fake: Backend, made: Made) -> Backend:
    fake.tracer_provider = made.provider
    return fake


async def ask(server: Any, prompt: str, **headers: str) -> Said:
    async with connect(server, **headers) as socket:
        await socket.send_message(json.dumps({"prompt": prompt, "meta": "TEST-1"}))
        return await listen(socket)


def results(told: Said | list[dict[str, Any]]) -> str:
    """What the tools gave, as the client was told."""
    frames = told.objects if isinstance(told, Said) else told
    return json.dumps([frame for frame in frames if frame.get("type") == "user"])


# -- the tree of a run --------------------------------------------------------------------------------------------------


async def test_a_run_is_a_tree_of_its_parts(cli: Backend, made: Made) -> None:
    async with cli.serve() as server:
        told = await ask(server, directive("bash", cmd="echo hello", rounds=2))
    assert told.code == 1000
    tools = [span for span in made.all if span.name == "tool Bash"]
    turn, run = made.one("turn"), made.one("run")
    assert made.tree() == {"run": {"queue": {}, "start": {}, "turn": {"tool Bash": {}}, "end": {}}}
    assert len(tools) == 2
    assert {span.context.trace_id for span in made.all} == {run.context.trace_id}
    (ended,) = cli.ended
    assert said(run) == {
        "run": ended.run, "door": "claude", "identity": "local", "meta": "TEST-1", "reason": "exit", "exit_status": 0,
        "lines": ended.outcome.lines, "bytes": ended.bytes, "turns": 1, "tokens": ended.tokens, "dollars": ended.dollars,
    }  # fmt: skip
    assert run.kind is SpanKind.SERVER
    assert run.status.status_code is StatusCode.OK
    assert said(turn) == {"turn": 1, "tokens": ended.tokens, "dollars": ended.dollars}
    assert ended.tokens
    assert "first words" in happened(turn)
    assert happened(run) == ["first line"]
    receipt = ended.outcome.receipt
    assert said(made.one("end")) == {**attrs.asdict(receipt), "after_result": False}


async def test_times_lie_within_each_other(cli: Backend, made: Made) -> None:
    async with cli.serve() as server:
        await ask(server, directive("bash", cmd="sleep 1"))
    run, queue, start, turn, tool = (made.one(name) for name in ("run", "queue", "start", "turn", "tool Bash"))
    order = [
        run.start_time,
        queue.end_time,
        start.end_time,
        turn.start_time,
        tool.start_time,
        tool.end_time,
        turn.end_time,
        run.end_time,
    ]
    assert order == sorted(order)
    assert queue.start_time == run.start_time
    assert start.start_time == queue.end_time
    assert tool.end_time - tool.start_time > 0.95e9
    (ended,) = cli.ended
    assert (run.end_time - start.start_time) / 1e9 == pytest.approx(ended.seconds, abs=0.05)
    end = made.one("end")
    assert (end.end_time - end.start_time) / 1e6 == pytest.approx(ended.outcome.receipt.ms, abs=0.01)
    assert end.end_time == run.end_time


async def test_a_tool_that_fails_says_so(cli: Backend, made: Made) -> None:
    async with cli.serve() as server:
        await ask(server, directive("bash", cmd="sleep 0; false"))
    tool = made.one("tool Bash")
    assert tool.status.status_code is StatusCode.ERROR
    assert said(tool)["is_error"] is True
    assert said(tool)["gen_ai.tool.name"] == "Bash"
    assert str(said(tool)["gen_ai.tool.call.id"]).startswith("toolu_")
    assert made.one("turn").status.status_code is StatusCode.UNSET


async def test_a_result_that_is_an_error_is_one_of_its_turn(traced: Backend, made: Made) -> None:
    async with traced.serve() as server:
        await ask(server, directive("err", status=400))
    assert made.one("turn").status.status_code is StatusCode.ERROR
    run = made.one("run")
    assert (run.status.status_code, run.status.description) == (StatusCode.ERROR, "failed")
    assert said(run)["exit_status"] == 1


async def test_a_session_has_a_span_for_each_turn(cli: Backend, made: Made) -> None:
    async with cli.serve() as server, open_talk(server) as talk:
        await talk.start()
        for text in ("one", directive("bash", cmd="echo hello")):
            await talk.user(text)
            await talk.result()
        await talk.stop("end")
        await talk.end()
    first, second = made.named("turn")
    assert [said(span)["turn"] for span in (first, second)] == [1, 2]
    assert first.end_time <= second.start_time
    assert made.one("tool Bash").parent.span_id == second.context.span_id
    assert said(made.one("run"))["turns"] == 2
    assert said(made.one("run"))["door"] == "session"


async def test_a_prompt_that_waits_for_the_cli_begins_its_turn_there(traced: Backend, made: Made) -> None:
    async with traced.serve() as server, open_talk(server) as talk:
        await talk.say({"type": "gateway", "op": "start", "meta": "TEST-1"})
        await talk.user("early")
        await talk.result()
        await talk.stop("end")
        await talk.end()
    assert made.tree() == {"run": {"queue": {}, "start": {}, "turn": {}, "end": {}}}
    assert made.one("turn").start_time >= made.one("start").end_time


async def test_turns_whose_lines_come_together_are_apart(traced: Backend, made: Made) -> None:
    """A prompt that was said in a turn: the result and the next turn's first lines may come in one read."""
    async with traced.serve() as server, open_talk(server) as talk:
        await talk.start()
        await talk.user(directive("bash", cmd="sleep 0.3"))
        await talk.next(lambda frame: frame["type"] == "assistant")
        await talk.user(directive("bash", cmd="echo second"))
        await talk.result()
        await talk.result()
        await talk.stop("end")
        await talk.end()
    turns, tools = made.named("turn"), made.named("tool Bash")
    assert [said(span)["turn"] for span in turns] == [1, 2]
    assert [span.parent.span_id for span in tools] == [span.context.span_id for span in turns]
    assert all(span.status.status_code is StatusCode.UNSET for span in tools)


async def test_approvals_and_interrupts_are_said_of_their_turn(cli: Backend, made: Made) -> None:
    async with cli.serve() as server, open_talk(server) as talk:
        await talk.start()
        await talk.user(directive("bash", cmd="touch made-by-tool; ls"))
        asked = await talk.asked()
        await talk.answer(asked["request_id"], behavior="deny", message="no")
        await talk.result()
        await talk.user(directive("slow", n=500, ms=20))
        await talk.next(lambda frame: frame["type"] == "system" and frame.get("subtype") == "init")
        await trio.sleep(0.3)
        await talk.stop("interrupt")
        await talk.result()
        await talk.stop("end")
        await talk.end()
    first, second = made.named("turn")
    (approval,) = [event for event in first.events if event.name == "approval"]
    assert approval.attributes["trio_claude.outcome"] == "denied"
    assert 0 <= approval.attributes["trio_claude.seconds"] < 20
    assert "interrupt" in happened(second)
    assert second.status.status_code is StatusCode.ERROR
    assert made.one("tool Bash").status.status_code is StatusCode.ERROR


@pytest.mark.real_cli
async def test_what_a_sub_agent_uses_is_below_its_own_use(real: Backend, made: Made) -> None:
    real.tracer_provider = made.provider
    inner = {"description": "look", "prompt": directive("bash", cmd="echo inner"), "subagent_type": "general-purpose"}
    async with real.serve() as server:
        await ask(server, directive("tool", name="Agent", input=inner))
    agent, tool = made.one("tool Agent"), made.one("tool Bash")
    assert tool.parent.span_id == agent.context.span_id
    assert agent.parent.span_id == made.named("turn")[0].context.span_id
    assert tool.status.status_code is StatusCode.UNSET


async def test_no_word_is_in_a_span(cli: Backend, made: Made) -> None:
    canary = "canary9f3c"
    prompts = [directive("bash", cmd=f"echo {canary} >&2; exit 3"), directive("err", status=400)]
    async with cli.serve(cli_args=ALLOWED) as server:
        told = [await ask(server, f"{canary} {prompt} {canary}") for prompt in prompts]
    assert canary in results(told[0])
    assert [len(made.named(name)) for name in ("run", "turn", "tool Bash")] == [2, 2, 1]
    assert canary not in " ".join(span.to_json() for span in made.all)


# -- context in and out ------------------------------------------------------------------------------------------------


async def test_the_clients_trace_goes_on_in_the_run_and_in_its_tools(cli: Backend, made: Made) -> None:
    async with cli.serve(cli_args=ALLOWED) as server:
        told = await ask(server, SHOWS, traceparent=PARENT, tracestate="vendor=a,other=b")
    run = made.one("run")
    assert (f"{run.context.trace_id:032x}", f"{run.parent.span_id:016x}") == (TRACE, SPAN)
    assert run.parent.is_remote
    assert f"in:00-{TRACE}-{run.context.span_id:016x}-01:vendor=a,other=b:" in results(told)


async def test_so_it_does_in_a_session(traced: Backend, made: Made) -> None:
    async with traced.serve() as server, open_talk(server, traceparent=PARENT) as talk:
        await talk.start()
        await talk.user(SHOWS)
        await talk.result()
        await talk.stop("end")
        await talk.end()
    run = made.one("run")
    assert f"{run.context.trace_id:032x}" == TRACE
    assert f"in:00-{TRACE}-{run.context.span_id:016x}-01::" in results(talk.lines())


async def test_who_comes_to_a_run_is_linked_to_it(traced: Backend, made: Made) -> None:
    other = f"00-{'c' * 32}-{'d' * 16}-01"
    async with traced.serve() as server, open_talk(server, traceparent=PARENT) as talk:
        run = (await talk.start())["run"]
        for parent in (other, "nonsense"):
            async with open_talk(server, traceparent=parent) as viewer:
                await viewer.say({"type": "gateway", "op": "attach", "run": run, "after": 0, "as": "viewer"})
                await viewer.event("attached")
        await talk.stop("kill")
        await talk.end()
    (link,) = made.one("run").links
    assert (f"{link.context.trace_id:032x}", link.attributes["trio_claude.role"]) == ("c" * 32, "viewer")
    assert f"{made.one('run').context.trace_id:032x}" == TRACE


@pytest.mark.parametrize(
    "parent",
    ["", "nonsense", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"ff-{TRACE}-{SPAN}-01", f"{PARENT}-more",
     PARENT.upper(), f"{PARENT}, {PARENT}", "0" * 5000],
)  # fmt: skip
async def test_a_bad_parent_is_none(traced: Backend, made: Made, parent: str) -> None:
    async with traced.serve() as server:
        told = await ask(server, "hello", traceparent=parent, tracestate="a=b")
    assert told.code == 1000
    assert made.one("run").parent is None


async def test_a_bad_state_leaves_the_parent(traced: Backend, made: Made) -> None:
    async with traced.serve() as server:
        await ask(server, "hello", traceparent=PARENT, tracestate="\x7f=;;")
    assert f"{made.one('run').parent.span_id:016x}" == SPAN


async def test_a_run_without_a_client_goes_on_with_what_is_current(traced: Backend, made: Made) -> None:
    config = Config(cli=traced.program, cwd=str(traced.cwd))
    async with open_engine(config, environ=traced.environ, tracer_provider=made.provider) as engine:
        with made.provider.get_tracer("test").start_as_current_span("mine") as mine:
            async with open_run("hello", engine=engine) as run:
                await run.wait()
    assert made.one("run").parent.span_id == mine.get_span_context().span_id
    assert made.one("run").kind is SpanKind.INTERNAL


async def test_a_servers_run_does_not(traced: Backend, made: Made) -> None:
    with made.provider.get_tracer("test").start_as_current_span("mine"):
        async with traced.serve() as server:
            await ask(server, "hello")
    assert made.one("run").parent is None


async def test_what_is_not_sampled_still_names_its_trace(fake: Backend, made: Made) -> None:
    fake.tracer_provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    async with fake.serve() as server:
        told = await ask(server, SHOWS, traceparent=PARENT)
    assert f"in:00-{TRACE}-" in results(told)
    assert "-00::" in results(told)


async def test_where_nothing_is_traced_a_cli_is_told_of_no_trace(cli: Backend) -> None:
    cli.tracer_provider = None
    async with cli.serve(cli_args=ALLOWED) as server:
        told = await ask(server, SHOWS, traceparent=PARENT)
    assert "in:::" in results(told)


async def test_a_warm_cli_is_traced_but_knows_of_no_trace(traced: Backend, made: Made) -> None:
    async with traced.serve(pool_size=1, profile="lean") as server:
        await until(lambda: server.runs.pool.ready, 20)
        told = await ask(server, SHOWS, traceparent=PARENT)
    assert said(made.one("start"))["warm"] is True
    assert f"{made.one('run').context.trace_id:032x}" == TRACE
    assert TRACE not in results(told)


async def test_the_python_client_says_of_what_trace_it_is_part(traced: Backend, made: Made) -> None:
    headers = {"traceparent": PARENT}
    async with traced.serve() as server:
        async with client.ask("hello", meta="TEST-1", url=server.url, headers=headers) as answer:
            assert [line async for line in answer]
        async with client.open_session(meta="TEST-1", url=server.url, headers=headers) as session:
            await session.end()
    assert [f"{run.parent.span_id:016x}" for run in made.named("run")] == [SPAN, SPAN]


# -- ends --------------------------------------------------------------------------------------------------------------


async def test_a_run_that_is_cut_off_ends_what_is_open(cli: Backend, made: Made) -> None:
    async with cli.serve() as server:
        async with connect(server) as socket:
            await socket.send_message(
                json.dumps({"prompt": directive("bash", cmd="sleep 0.1; sleep 60"), "meta": "TEST-1"})
            )
            while '"tool_use"' not in await socket.get_message():
                pass
        await until(lambda: cli.ended, 20)
        await until(lambda: made.named("run"))
    for name in ("tool Bash", "turn"):
        span = made.one(name)
        assert (span.status.status_code, span.status.description) == (
            StatusCode.ERROR,
            "no result before the run's end",
        )
    run = made.one("run")
    assert said(run)["reason"] == "disconnected"
    assert run.status.status_code is StatusCode.UNSET
    assert said(made.one("end"))["survivors"] == 0
    assert said(made.one("end"))["killed"] >= 1


async def test_a_run_that_is_cancelled_ends_its_spans(traced: Backend, made: Made) -> None:
    config = Config(cli=traced.program, cwd=str(traced.cwd))
    async with open_engine(config, environ=traced.environ, tracer_provider=made.provider) as engine:
        with trio.move_on_after(20) as scope:
            async with open_run(directive("silent"), engine=engine):
                await until(lambda: made.named("start"))
                scope.cancel()
                await trio.sleep_forever()
    assert set(made.tree()["run"]) == {"queue", "start", "turn", "end"}
    assert said(made.one("run"))["reason"] == "stopped"


async def test_a_cli_that_can_not_be_started_is_a_start_that_failed(traced: Backend, made: Made) -> None:
    async with traced.serve(cli="/nonexistent/claude") as server:
        await ask(server, "hello")
    assert made.tree() == {"run": {"queue": {}, "start": {}, "end": {}}}
    assert made.one("start").status.description == "spawn-failed"
    assert made.one("run").status.description == "spawn-failed"


# -- lines -------------------------------------------------------------------------------------------------------------


def line(kind: str, *blocks: dict[str, Any], parent: str | None = None) -> bytes:
    return json.dumps({"type": kind, "message": {"content": list(blocks)}, "parent_tool_use_id": parent}).encode()


def use(name: str, tool: str = "Bash", parent: str | None = None) -> bytes:
    return line("assistant", {"type": "tool_use", "id": name, "name": tool, "input": {"a": "b"}}, parent=parent)


def answer(name: str, **more: object) -> bytes:
    return line("user", {"type": "tool_result", "tool_use_id": name, "content": "x", **more})


def test_lines_tell_of_tools_and_of_results_only() -> None:
    told = [
        line("assistant", {"type": "text", "text": '"tool_use"'}),
        use("a", "x" * 100),
        use("b", parent="a"),
        answer("b", is_error=True),
        line("assistant", {"type": "tool_result", "tool_use_id": "a"}),
        answer("a", is_error="yes"),
        b'{"type":"result","is_error":false}',
    ]
    assert list(sights(told)) == [
        ToolUsed("a", "x" * lines.NAME_LIMIT), ToolUsed("b", "Bash", "a"), ToolAnswered("b", is_error=True),
        ToolAnswered("a", is_error=False), TurnOver(),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "odd",
    [b'"tool_use"', b'["tool_use"]', b'{"type":"assistant","message":"tool_use"}', b'{"type":"assistant","message":{"content":"tool_use"}}',
     b'{"type":"assistant","message":{"content":["tool_use"]}}', line("assistant", {"type": "tool_use", "id": 7, "name": "x"}),
     line("assistant", {"type": "tool_use", "id": "a"}), use("x" * 129), use("\ud800"), line("user", {"type": "tool_result"}), b'{"tool_result"', b"\xff\"result\""],
)  # fmt: skip
def test_odd_lines_tell_nothing(odd: bytes) -> None:
    assert list(sights([odd])) == []


def test_deltas_are_never_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "parse_line", lambda _: pytest.fail("parsed"))
    delta = b'{"type":"stream_event","event":{"type":"content_block_start","content_block":{"type":"tool_use"}}}'
    assert list(sights([delta, b'{"type":"assistant","message":{"content":[]}}'])) == []


# -- bounds and faults --------------------------------------------------------------------------------------------------


def begin(made: Made) -> tuple[Tracer, Trace]:
    tracer = Tracer(made.provider)
    trace = tracer.begin("r1", "META", "local", "claude", 0.0, {})
    assert trace
    tracer(RunStarted("r1", "META", 7))
    trace.begin_turn()
    return tracer, trace


def end(tracer: Tracer, turns: int = 0) -> None:
    for turn in range(1, turns + 1):
        tracer(TurnEnded("r1", "META", turn, 0.1, 3, 0.5))
    receipt = Receipt(1, 0, 0, 2.0, "supervisor")
    tracer(RunEnded("r1", "META", 1.0, Outcome(Reason.EXIT, 0, None, 3, 0, receipt)))


def test_parts_of_a_use_are_below_it_also_behind_its_end(made: Made) -> None:
    tracer, trace = begin(made)
    trace.hear(
        [
            use("a", "Agent"),
            use("b", "Read", "a"),
            answer("b"),
            answer("a"),
            use("c", "Grep", "a"),
            use("d", "Glob", "gone"),
        ]
    )
    trace.hear([answer("d"), b'{"type":"result"}'])
    tracer(TurnEnded("r1", "META", 1, 0.1, 3, 0.5))
    trace.hear([answer("c")])
    end(tracer)
    assert made.tree()["run"]["turn"] == {"tool Agent": {"tool Read": {}, "tool Grep": {}}, "tool Glob": {}}
    assert made.one("tool Grep").status.status_code is StatusCode.UNSET


def test_a_use_without_a_result_ends_with_its_turn(made: Made) -> None:
    tracer, trace = begin(made)
    trace.hear([use("a"), b'{"type":"result"}', use("b", "Read"), answer("b"), b'{"type":"result"}'])
    end(tracer, turns=2)
    assert made.one("tool Bash").status.description == "no result in its turn"
    assert made.one("tool Read").parent.span_id == made.named("turn")[1].context.span_id
    assert [said(turn)["tokens"] for turn in made.named("turn")] == [3, 3]


def test_a_run_has_no_more_spans_than_it_may(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "SPAN_LIMIT", 5)
    tracer, trace = begin(made)
    for number in range(20):
        trace.hear([use(f"t{number}"), answer(f"t{number}")])
    trace.hear([b'{"type":"result"}'])
    trace.begin_turn()
    end(tracer, turns=2)
    assert len(made.named("tool Bash")) == 4
    assert said(made.one("run"))["spans_left_out"] == 18  # 16 uses, the second turn as it began and as it ended
    assert made.one("turn").attributes["trio_claude.turn"] == 1


def test_few_uses_are_remembered_the_open_ones_longest(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "TOOLS_KEPT", 3)
    tracer, trace = begin(made)
    trace.hear([use("whole", "Agent")])
    for number in range(10):
        trace.hear([use(f"t{number}", "Read", "whole"), answer(f"t{number}")])
    assert len(trace._uses) == 3
    trace.hear([use(f"open{number}", "Bash", "whole") for number in range(3)])
    assert made.one("tool Agent").status.description == "too many are open"
    trace.hear([answer("whole"), b'{"type":"result"}'])
    end(tracer, turns=1)
    assert set(made.tree()["run"]["turn"]["tool Agent"]) == {"tool Read", "tool Bash"}
    assert len(made.named("tool Read")) == 10


def test_a_use_is_counted_once_and_an_id_has_a_length(made: Made) -> None:
    tracer, trace = begin(made)
    trace.hear([use("a"), use("a"), answer("a"), answer("a", is_error=True), answer("nobody's")])
    end(tracer)
    assert made.one("tool Bash").status.status_code is StatusCode.UNSET


def test_nothing_is_kept_of_a_run_that_has_ended(made: Made) -> None:
    tracer, trace = begin(made)
    trace.hear([use("a")])
    end(tracer)
    assert not tracer._traces
    assert not trace._uses
    tracer(RunStarted("r1", "META", 7))  # of a run that it does not know
    trace.link({"traceparent": PARENT}, "viewer")
    assert made.one("run").links == ()


class _Faulty(SpanProcessor):
    def on_start(self, span: object, parent_context: object = None) -> None:
        raise RuntimeError("on_start")

    def on_end(self, span: object) -> None:
        raise RuntimeError("on_end")


async def test_a_fault_of_the_providers_never_reaches_a_run(fake: Backend) -> None:
    fake.tracer_provider = TracerProvider(shutdown_on_exit=False)
    fake.tracer_provider.add_span_processor(_Faulty())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        async with fake.serve() as server:
            told = await ask(server, SHOWS)
    assert told.code == 1000
    assert {str(warning.message) for warning in caught} == {"a run can't be traced: RuntimeError('on_start')"}


# -- to a collector -----------------------------------------------------------------------------------------------------


@attrs.frozen
class Collector:
    """A collector on loopback; `spans` are those that it was sent."""

    port: int
    requests: list[ExportTraceServiceRequest] = attrs.Factory(list)
    heads: list[bytes] = attrs.Factory(list)
    status: list[int] = attrs.Factory(lambda: [200])

    @property
    def spans(self) -> list[Any]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def environ(self) -> dict[str, str]:
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.port}", "OTEL_BSP_SCHEDULE_DELAY": "100"}

    async def take(self, stream: trio.SocketStream) -> None:
        """Serve one connection."""
        data = b""
        async with stream:
            while True:
                while b"\r\n\r\n" not in data:
                    if not (chunk := await stream.receive_some()):
                        return
                    data += chunk
                head, _, data = data.partition(b"\r\n\r\n")
                (size,) = [
                    int(one.partition(b":")[2])
                    for one in head.split(b"\r\n")
                    if one.lower().startswith(b"content-length")
                ]
                while len(data) < size:
                    data += await stream.receive_some()
                self.heads.append(head)
                if self.status[0] == 200:
                    self.requests.append(ExportTraceServiceRequest.FromString(data[:size]))
                data = data[size:]
                await stream.send_all(f"HTTP/1.1 {self.status[0]} X\r\nContent-Length: 0\r\n\r\n".encode())


@pytest.fixture
async def collector(nursery: trio.Nursery) -> Collector:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    found = Collector(listeners[0].socket.getsockname()[1])
    nursery.start_soon(trio.serve_listeners, found.take, listeners)
    return found


async def test_serve_sends_a_runs_trace_to_a_collector(fake: Backend, collector: Collector) -> None:
    env = {**environ(fake), **collector.environ, "OTEL_EXPORTER_OTLP_HEADERS": "authorization=canary7d1e"}
    async with serving("serve", "--port=0", "--traces=otlp", "--journal=none", env=env) as (_, url):
        told = await ask(_Port(url), SHOWS, traceparent=PARENT)
        leaked = await ask(
            _Port(url), directive("bash", cmd="echo got:$OTEL_EXPORTER_OTLP_HEADERS$OTEL_EXPORTER_OTLP_ENDPOINT:")
        )
    assert "got::" in results(leaked)
    run = next(span for span in collector.spans if span.name == "run" and span.trace_id.hex() == TRACE)
    assert run.parent_span_id.hex() == SPAN
    assert f"in:00-{TRACE}-{run.span_id.hex()}-01::" in results(told)
    named = [span.name for span in collector.spans if span.trace_id.hex() == TRACE]
    assert sorted(named) == ["end", "queue", "run", "start", "tool Bash", "turn"]
    resource = {one.key: one.value.string_value for one in collector.requests[0].resource_spans[0].resource.attributes}
    assert resource["service.name"] == "trio-claude"
    assert collector.heads[0].startswith(b"POST /v1/traces ")
    assert b"canary7d1e" in collector.heads[0]


@pytest.mark.parametrize("state", ["0a=1", "a=1,0b=1", ",".join(f"k{number}=1" for number in range(33)), "a\x7f=1"])
def test_a_tracestate_that_the_library_would_log_is_left_out(state: str, caplog: pytest.LogCaptureFixture) -> None:
    context = spans._extract({"traceparent": PARENT, "tracestate": state})
    assert not caplog.records
    assert get_current_span(context).get_span_context().is_valid


@attrs.frozen
class _Port:
    """A server by its address."""

    url: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


async def test_no_name_of_a_tool_can_spoil_what_is_sent(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in collector.environ.items():
        monkeypatch.setenv(name, value)
    async with open_otlp(lambda event: pytest.fail(f"{event}")) as provider:
        tracer = Tracer(provider)
        trace = tracer.begin("r1", "META", "local", "claude", 0.0, {})
        assert trace
        trace.hear([use("a", "\ud800\0x")])
        end(tracer)
    assert {span.name for span in collector.spans} >= {"run", "tool ?\0x"}


def test_an_exporter_that_does_not_try_again_has_failed_once() -> None:
    class Away(InMemorySpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            raise ConnectionError

    told: list[bool] = []
    sender = _Sender(Away(), told.append)
    assert [sender.export([]), sender.export([])] == [SpanExportResult.FAILURE] * 2
    assert told == [True]


@pytest.mark.parametrize("patience", ["1", "10"], ids=["given up before the end", "at the end"])
async def test_a_collector_that_is_not_there_is_a_line_of_the_log_and_no_other(
    fake: Backend, folder: Path, patience: str
) -> None:
    env = {**environ(fake), "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_TIMEOUT": patience}
    with (folder / "log").open("wb") as log:
        async with serving("serve", "--port=0", "--traces=otlp", env=env, stderr=log.fileno()) as (_, url):
            await ask(_Port(url), "hello", tracestate="a client's;;", traceparent=PARENT)
    assert "client's" not in (folder / "log").read_text()
    told = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
    assert [line["over"] for line in told if line["event"] == "Strained"] == [False]


async def test_the_variables_name_the_service(
    traced: Backend, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced.tracer_provider = None
    for name, value in {**collector.environ, "OTEL_SERVICE_NAME": "mine"}.items():
        monkeypatch.setenv(name, value)
    async with traced.serve(traces="otlp") as server:
        await ask(server, "hello")
    resource = {one.key: one.value.string_value for one in collector.requests[0].resource_spans[0].resource.attributes}
    assert resource["service.name"] == "mine"
    assert {span.name for span in collector.spans} == {"run", "queue", "start", "turn", "end"}


async def test_a_collector_that_takes_nothing_is_told_of_once_and_holds_nobody_up(
    fake: Backend, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in collector.environ.items():
        monkeypatch.setenv(name, value)
    collector.status[0] = 400

    def strains() -> list[bool]:
        return [event.over for event in fake.events if isinstance(event, Strained)]

    async with fake.serve(traces="otlp") as server:
        for _ in range(2):
            assert (await ask(server, "hello")).code == 1000
            await until(strains)
        collector.status[0] = 200
        await ask(server, "hello")
        await until(lambda: len(strains()) == 2)
    assert strains() == [False, True]


async def test_a_collector_that_never_answers_is_given_up_at_the_end(
    fake: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_claude.tracing.otlp.FLUSH_TIMEOUT", 0.3)
    with trio.socket.socket() as deaf:
        await deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "5")
        async with fake.serve(traces="otlp") as server:
            await ask(server, "hello")
            began = trio.current_time()
        assert trio.current_time() - began < 3
    assert len(fake.ended) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
     ("OTEL_BSP_MAX_QUEUE_SIZE", "-1"), ("OTEL_EXPORTER_OTLP_HEADERS", "authorization: a-canary"),
     ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a=b, c=d;a-canary")],
)  # fmt: skip
async def test_a_variable_that_can_not_be_used_is_named(
    fake: Backend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, value: str
) -> None:
    """And one that may hold a key is not shown, neither by the library."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"^traces: .*OTEL_") as caught:
        async with fake.serve(traces="otlp"):
            pass
    assert "canary" not in f"{caught.value}{caplog.text}"


async def test_a_variable_that_the_library_reads_at_its_import_is_named_too(fake: Backend) -> None:
    env = {**environ(fake), "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "x"}
    told = await trio_claude("serve", "--port=0", "--traces=otlp", env=env)
    assert (told.returncode, b"Traceback" in told.stderr) == (2, False)
    assert b"trio-claude: traces: " in told.stderr
    assert b"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT" in told.stderr


async def test_headers_that_a_collector_wants_are_taken(
    fake: Backend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Basic dTpw==, x-scope=%e2%82%ac ,,a.b=")
    async with fake.serve(traces="otlp"):
        pass
    assert "Header format" not in caplog.text


@pytest.mark.real_cli
async def test_the_clis_own_spans_are_below_the_runs(real: Backend, made: Made, collector: Collector) -> None:
    """As the page says, and with the variables that keep it quiet."""
    real.tracer_provider = made.provider
    real.environ |= {
        **collector.environ, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_TRACES_EXPORTER": "otlp",
        "CLAUDE_CODE_ENABLE_TELEMETRY": "1", "CLAUDE_CODE_ENHANCED_TELEMETRY_BETA": "1",
    }  # fmt: skip
    async with real.serve(env=("OTEL_*",)) as server:
        await ask(server, "hello", traceparent=PARENT)
    own = {span.name: span for span in collector.spans}
    assert own["claude_code.interaction"].parent_span_id.hex() == f"{made.one('run').context.span_id:016x}"
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}


async def test_the_sample_of_the_page_runs(
    fake: Backend, made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trio_claude.workplace.find_cli", lambda _: Path(fake.program))
    page = (Path(__file__).parents[1] / "docs" / "traces.md").read_text()
    (sample,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    world: dict[str, Any] = {"exporter": made.exporter}
    exec(sample.replace("trio.run(main)", "").replace("(ConsoleSpanExporter())", "(exporter)"), world)
    await world["main"]()
    assert ", 0 left, " in capsys.readouterr().out
    assert made.tree() == {"job": {"run": {"queue": {}, "start": {}, "turn": {}, "end": {}}}}


# -- off ---------------------------------------------------------------------------------------------------------------


def test_traces_go_to_a_collector_or_nowhere() -> None:
    with pytest.raises(ConfigError, match="traces must be otlp or empty, not 'jaeger'"):
        Config(traces="jaeger")


async def test_without_the_extra_it_is_named(fake: Backend, folder: Path) -> None:
    (folder / "opentelemetry.py").write_text("raise ImportError\n")
    env = {**environ(fake), "PYTHONPATH": str(folder)}
    told = await trio_claude("serve", "--port=0", "--traces=otlp", env=env)
    assert told.returncode != 0
    assert b"traces: needs pip install 'trio-claude[otel]'" in told.stderr


async def test_where_nothing_is_traced_nothing_is_imported(fake: Backend) -> None:
    code = f"""
import sys, trio
from trio_claude import Config, open_run

async def main():
    async with open_run("hello", config=Config(cli={fake.program!r})) as run:
        assert (await run.wait()).exit_status == 0

trio.run(main)
print(sorted(name for name in sys.modules if "opentelemetry" in name or "tracing" in name))
"""
    told = await trio.run_process([sys.executable, "-c", code], capture_stdout=True)
    assert told.stdout.strip() == b"[]"
