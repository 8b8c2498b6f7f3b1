"""Rule: what the documents show works, and their links lead somewhere."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from pathlib import Path

import pytest
import trio
from browser import node_environ, run_program
from harness import Backend

import trio_claude
from trio_claude.config import CONTROLS, GRANTS

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


def samples(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def named(page: str, name: str) -> str:
    """Return the sample that defines `name`."""
    return next(text for text in samples(page) if f"async def {name}(" in text)


async def test_the_samples_of_embedding_run(
    fake: Backend, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trio_claude.workplace.find_cli", lambda _: Path(fake.program))
    world: dict[str, object] = {}
    exec(named("docs/embedding.md", "main").replace("trio.run(main)", ""), world)
    await world["main"]()  # type: ignore[operator]
    exec(named("docs/embedding.md", "many"), world)
    await world["many"](["one", "two", "three"])  # type: ignore[operator]
    nursery_sample = next(text for text in samples("docs/embedding.md") if "nursery.start(" in text)
    source = f"async def served():\n{textwrap.indent(nursery_sample, '    ')}        nursery.cancel_scope.cancel()\n"
    exec(source, world)
    await world["served"]()  # type: ignore[operator]
    told = capsys.readouterr().out
    assert told.count(", 0 left, ") == 4
    assert "http://127.0.0.1:" in told


async def test_the_samples_of_the_readme_run(
    fake: Backend, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_claude.workplace.find_cli", lambda _: Path(fake.program))
    world: dict[str, object] = {"trio": trio, "trio_claude": trio_claude}
    inner = next(text for text in samples("README.md") if "open_run" in text)
    exec(f"async def embedded():\n{textwrap.indent(inner, '    ')}", world)
    await world["embedded"]()  # type: ignore[operator]
    async with fake.serve() as server:
        text = (
            named("README.md", "main")
            .replace("trio.run(main)", "")
            .replace('meta="TASK-123"', f'meta="TASK-123", url="{server.url}"')
        )
        exec(text, world)
        await world["main"]()  # type: ignore[operator]
    told = capsys.readouterr().out
    assert told.count('"type":"result"') == 2
    assert "Ended(code=1000" in told


async def test_the_samples_of_sessions_run(fake: Backend, capsys: pytest.CaptureFixture[str]) -> None:
    async with fake.serve() as server:
        world: dict[str, object] = {}
        text = named("docs/sessions.md", "main").partition("\n\n\ntrio.run(")[0]
        exec(text.replace('meta="TASK-1"', f'meta="TASK-1", url="{server.url}"'), world)
        await world["main"]()  # type: ignore[operator]
    assert "Hello from stub.{'seen': " in capsys.readouterr().out


async def test_the_sample_of_metrics_runs(
    fake: Backend, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_claude.workplace.find_cli", lambda _: Path(fake.program))
    world: dict[str, object] = {}
    exec(named("docs/metrics.md", "counted"), world)
    await world["counted"]()  # type: ignore[operator] - the sample's function
    assert 'trio_claude_runs_ended_total{door="claude",reason="exit"} 1.0' in capsys.readouterr().out


@pytest.mark.node
async def test_the_sample_of_the_readme_in_javascript_runs(fake: Backend, tmp_path: Path) -> None:
    (sample,) = re.findall(r"```javascript\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    program = tmp_path / "client.mjs"
    async with fake.serve() as server:
        program.write_text(sample.replace("localhost:3000", f"127.0.0.1:{server.port}"))
        told, _ = await run_program(["node", "--experimental-websocket", program], node_environ(tmp_path))
    assert '"type":"result"' in told
    assert "\n1000 exit 0; 1 process, 0 left, " in told


@pytest.mark.real_cli
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_the_sample_of_the_sdk_runs(fake: Backend, capsys: pytest.CaptureFixture[str]) -> None:
    async with fake.serve() as server:
        sample = next(text for text in samples("docs/sessions.md") if "WebSocketTransport" in text)
        source = f"async def program():\n{textwrap.indent(sample, '    ')}"
        world: dict[str, object] = {}
        exec(source.replace("http://127.0.0.1:3000", server.url), world)
        await world["program"]()  # type: ignore[operator]
    assert "ResultMessage(" in capsys.readouterr().out


async def test_the_examples_of_batch_run(fake: Backend, folder: Path) -> None:
    page = (ROOT / "docs" / "batch.md").read_text()
    (tasks,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    (folder / "tasks.jsonl").write_text(tasks)
    program = folder / "trio-claude"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m trio_claude "$@"\n')
    program.chmod(0o755)
    env = {**fake.environ, "PATH": f"{folder}:{fake.environ['PATH']}", "TRIO_CLAUDE_CLI": fake.program}
    examples = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    async with fake.serve() as server:
        for example in examples:
            words = ["/bin/sh", "-ec", example.replace("http://127.0.0.1:3000", server.url)]
            await trio.run_process(words, env=env, cwd=folder, capture_stdout=True, capture_stderr=True)
    results = {path.name: path.read_text().splitlines() for path in folder.glob("*.jsonl")}
    counts = {"tasks": 2, "results": 2, "matrix": 12, "chat": 2, "remote": 2, "one": 1}
    assert {name: len(lines) for name, lines in results.items()} == {f"{name}.jsonl": n for name, n in counts.items()}
    (table,) = re.findall(r"\| field \|.*?\n\n", page, re.DOTALL)
    fields = re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines()[2:] if line))
    assert fields == list(json.loads(results["results.jsonl"][0]))


def test_every_setting_of_the_contract_has_the_value_that_is_written() -> None:
    config = trio_claude.Config()
    page = (ROOT / "docs" / "protocol.md").read_text()
    for text in (
        f"`result_grace` ({config.result_grace:g} s)", f"no message in {config.first_message_timeout:g} s",
        f"over {config.max_message // 1024} KiB, or in more than {config.max_frames} frames",
        f"timed out after {config.timeout:g} s", f"`queue_timeout` ({config.queue_timeout:g} s)",
        f"`interrupt_grace` ({config.interrupt_grace:g} s)", f"`approval_timeout` ({config.approval_timeout:g} s)",
        f"`stall_notice` ({config.stall_notice:g} s)",
        f"`send_timeout` ({config.send_timeout:g} s)", f"a line over {config.max_line // 2**20} MiB",
    ):  # fmt: skip
        assert text in page, text


def test_the_contract_names_what_an_operator_can_allow() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text()
    (more,) = re.findall(r"\(`--allow-control`:(.*?)\)", text, re.DOTALL)
    (grants,) = re.findall(r"\(`--grants`:(.*?)\)", text, re.DOTALL)
    allowed = trio_claude.Config().allow_control
    assert (*allowed, *re.findall(r"`(\w+)`", more)) == CONTROLS
    assert tuple(re.findall(r"`(\w+)`", grants)) == GRANTS


def test_the_page_on_nodes_names_every_key() -> None:
    nodes = ROOT / "trio_claude" / "nodes"
    texts = [path.read_text() for path in (*nodes.glob("*.py"), *nodes.glob("scripts/*.lua"))]
    used = {name for text in texts for name in re.findall(r"(?:\.\. ':|key\(\")([a-z]+)", text)}
    page = (ROOT / "docs" / "nodes.md").read_text()
    (table,) = re.findall(r"\| key in Redis .*?\n\n", page, re.DOTALL)
    named = re.findall(
        r"`(?:trio-claude)?:([a-z]+)", "".join(line.split("|")[1] for line in table.splitlines()[2:] if line)
    )
    assert used | {"running", "waiting"} == {*named}
