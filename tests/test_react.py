"""Rule: a component has one run at a time, shows what it says, and takes it along when it goes; in StrictMode too."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import attrs
import pytest
from browser import NODE, WEB, browse, node_environ, run_program, serve_page
from harness import Backend, directive, script_cli, until

from trio_claude.conversation import TAKEN
from trio_claude.errors import Reason
from trio_claude.events import RunStarted

pytestmark = [pytest.mark.node, pytest.mark.browser]
SLOW = directive("slow", n=300, ms=50)
TOOL = directive("bash", cmd="touch asked; ls")
PAGE = b'<!doctype html><link rel="icon" href="data:,"><div id="root"></div><script src="/page.js"></script>'
DOCS = Path(__file__).parents[1] / "docs" / "javascript.md"


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    """What the page is bundled of, by the names that it imports; apart from the packages that build it."""
    dist = Path(shutil.copytree(WEB / "dist", tmp_path / "dist"))
    return {"trio-claude/react": dist / "react.js", "trio-claude": dist / "client.js"}


async def bundle(modules: Path, home: Path, sources: dict[str, Path]) -> bytes:
    (sample,) = re.findall(r"```jsx\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (home / "documented.jsx").write_text(sample)
    aliases = [f"--alias:{name}={path}" for name, path in {**sources, "documented": home / "documented.jsx"}.items()]
    options = ["--bundle", "--jsx=automatic", "--log-level=warning", '--define:process.env.NODE_ENV="development"']
    command: list[str | Path] = [modules / ".bin" / "esbuild", NODE / "react_page.jsx", *aliases, *options]
    script, complaints = await run_program(command, node_environ(home, modules))
    assert complaints == ""
    return script.encode()


async def use(cli: Backend, modules: Path, home: Path, sources: dict[str, Path], script: str, **given: object) -> Any:
    """Run a script in a page that has mounted a component with what is given; return what the script returns."""
    files = {"/": ("text/html; charset=utf-8", PAGE)}
    async with serve_page(files) as origin, cli.serve(allow_origin=(origin,), journal="memory") as server:
        files["/page.js"] = ("text/javascript; charset=utf-8", await bundle(modules, home, sources))
        mounted = json.dumps(given).replace('"URL"', json.dumps(server.url))
        text = f"(async () => {{ const given = {mounted}; const root = mount(given); {script} }})()"
        seen = await browse(modules, home, "play", origin, {"script": text})
        assert seen["errors"] == []
        await until(lambda: server.runs.statistics().live == 0)
        return seen["value"]


END = """
  await until(() => hook.receipt);
  const { messages, text, error, receipt, state, isConnected } = hook;
  return { messages, text, error, receipt, state, isConnected, shown };
"""


async def test_strict_mode_starts_one_run(
    fake: Backend, modules: Path, tmp_path: Path, sources: dict[str, Path]
) -> None:
    given = {
        "options": {"url": "URL", "options": {"partial": True}},
        "prompt": directive("text", text="one two"),
        "meta": "REACT",
    }
    seen = await use(fake, modules, tmp_path, sources, END, **given)
    assert [(run.meta, run.outcome.reason) for run in fake.ended] == [("REACT", Reason.EXIT)]
    assert seen["text"] == "one two"
    kinds = [message["type"] for message in seen["messages"] if message["type"] != "stream_event"]
    assert kinds[0] == "system"
    assert [kind for kind in kinds if kind != "system"] == ["message", "result"]
    message = next(message for message in seen["messages"] if message["type"] == "message")
    assert message["content"] == [{"type": "text", "text": "one two"}]
    assert "session_id" in message
    assert (seen["state"], seen["isConnected"]) == ("closed", False)
    assert ["open", True] in seen["shown"]
    assert (seen["receipt"]["cause"], seen["receipt"]["left"]) == ("exit 0", 0)


@pytest.mark.parametrize("grace", [None, 30])
async def test_unmounting_ends_the_run(
    fake: Backend, modules: Path, tmp_path: Path, sources: dict[str, Path], grace: int | None
) -> None:
    script = "await until(() => hook.messages.length > 0); root.unmount(); return null;"
    given = {"options": {"url": "URL", "grace": grace}, "prompt": SLOW, "meta": "GOES"}
    await use(fake, modules, tmp_path, sources, script, **given)
    reason = Reason.STOPPED if grace else Reason.DISCONNECTED
    assert [(run.meta, run.outcome.reason, run.outcome.receipt.survivors) for run in fake.ended] == [
        ("GOES", reason, 0)
    ]
    assert not fake.left()


async def test_a_component_that_is_gone_starts_no_run(
    fake: Backend, modules: Path, tmp_path: Path, sources: dict[str, Path]
) -> None:
    script = """
      await until(() => hook.connect);
      root.unmount();
      hook.connect(PROMPT, "LATE");
      mount({ ...given, prompt: "hello", meta: "NEXT" });
    """.replace("PROMPT", json.dumps(SLOW))
    await use(fake, modules, tmp_path, sources, script + END, options={"url": "URL"})
    assert [event.meta for event in fake.events if isinstance(event, RunStarted)] == ["NEXT"]


@pytest.mark.parametrize("grace", [None, 30])
async def test_a_component_that_was_hidden_shows_the_end_of_its_run(
    fake: Backend, modules: Path, tmp_path: Path, sources: dict[str, Path], grace: int | None
) -> None:
    """Its state is kept, its effects are not."""
    script = """
      await until(() => hook.connect);
      hook.connect(PROMPT, "HIDDEN");
      await until(() => hook.messages.length > 0);
      setMode("hidden");
      await until(() => !hook.isConnected);
      setMode("visible");
    """.replace("PROMPT", json.dumps(SLOW))
    seen = await use(fake, modules, tmp_path, sources, script + END, options={"url": "URL", "grace": grace})
    assert (seen["state"], seen["isConnected"], seen["messages"] != []) == ("closed", False, True)
    assert [run.meta for run in fake.ended] == ["HIDDEN"]


@pytest.mark.parametrize("option", [{}, {"approvals": True}, {"grace": 30}], ids=["plain", "approvals", "grace"])
async def test_a_run_that_ends_well_in_its_turn_is_no_error(
    fake: Backend, modules: Path, tmp_path: Path, sources: dict[str, Path], option: dict[str, object]
) -> None:
    given = {"options": {"url": "URL", **option}, "prompt": directive("exit", status=0), "meta": "EXITS"}
    seen = await use(fake, modules, tmp_path, sources, END, **given)
    assert "error" not in seen
    assert (seen["state"], seen["receipt"]["cause"].partition(" ")[0], seen["receipt"]["left"]) == ("closed", "exit", 0)


async def test_another_connect_and_stop_end_a_run(
    fake: Backend, modules: Path, tmp_path: Path, sources: dict[str, Path]
) -> None:
    script = """
      await until(() => hook.messages.length > 0);
      const first = hook.messages[0].session_id;
      hook.connect(PROMPT, "SECOND");
      await until(() => hook.messages.length > 0 && hook.messages[0].session_id !== first);
      hook.stop();
      await until(() => hook.receipt);
      hook.connect("hello", "bad meta");
      await until(() => hook.error);
      return { error: [hook.error.constructor.name, hook.error.closeCode], state: hook.state };
    """.replace("PROMPT", json.dumps(SLOW))
    seen = await use(fake, modules, tmp_path, sources, script, options={"url": "URL"}, prompt=SLOW, meta="FIRST")
    assert seen["error"][1] == 1008
    assert seen["state"] == "closed"
    assert {(run.meta, run.outcome.reason) for run in fake.ended} == {
        ("FIRST", Reason.DISCONNECTED),
        ("SECOND", Reason.DISCONNECTED),
    }
    assert not fake.left()


async def test_a_prompt_that_is_refused_leaves_no_run(
    fake: Backend, modules: Path, tmp_path: Path, sources: dict[str, Path]
) -> None:
    script = """
      await until(() => hook.connect);
      hook.connect("", "REFUSED");
      await until(() => hook.error && hook.receipt);
      return { state: hook.state, left: hook.receipt.left };
    """
    seen = await use(fake, modules, tmp_path, sources, script, options={"url": "URL", "approvals": True})
    assert (seen["state"], seen["left"]) == ("closed", 0)


async def test_a_person_approves(fake: Backend, modules: Path, tmp_path: Path, sources: dict[str, Path]) -> None:
    script = """
      await until(() => hook.approvals.length === 1);
      const [{ request_id, tool_name }] = hook.approvals;
      hook.approve(request_id, { command: "echo changed" });
      hook.approve(request_id);  // a second click
      hook.deny(request_id);
      await until(() => hook.approvals.length === 0);
    """
    given = {"options": {"url": "URL", "approvals": True}, "prompt": TOOL, "meta": "ASKS"}
    seen = await use(fake, modules, tmp_path, sources, script + END.replace("shown", "tool_name"), **given)
    assert seen["tool_name"] == "Bash"
    assert "changed" in json.dumps(seen["messages"])
    assert not (fake.cwd / "asked").exists()
    assert (seen["receipt"]["cause"], seen["receipt"]["left"]) == ("exit", 0)
    assert [run.outcome.reason for run in fake.ended] == [Reason.EXIT]


async def test_a_run_that_another_client_takes_over_is_told_by_why(
    fake: Backend, modules: Path, tmp_path: Path, sources: dict[str, Path]
) -> None:
    script = """
      await until(() => hook.messages.length);
      const { url } = given.options;
      const { openSession } = await import(`${url}/client.js`);
      const { runs: [{ id }] } = await (await fetch(`${url}/api/runs`)).json();
      const other = await openSession({ url, attach: { run: id, as: "owner" } });
      await until(() => hook.receipt);
      const { state, error, receipt: { cause } } = hook;
      await other.close();
      return { state, error, cause };
    """
    given = {"options": {"url": "URL", "grace": 20}, "prompt": SLOW, "meta": "TAKEN"}
    seen = await use(fake, modules, tmp_path, sources, script, **given)
    assert seen == {"state": "closed", "cause": TAKEN}


@pytest.mark.real_cli
async def test_a_person_answers_what_the_model_asks(
    real: Backend, modules: Path, tmp_path: Path, sources: dict[str, Path]
) -> None:
    script = """
      await until(() => hook.approvals.length === 1);
      const [{ request_id, tool_name, input }] = hook.approvals;
      hook.approve(request_id, { ...input, answers: { [input.questions[0].question]: "right" } });
    """
    options = [{"label": label, "description": ""} for label in ("left", "right")]
    question = {"question": "Which way?", "header": "Way", "multiSelect": False, "options": options}
    prompt = directive("tool", name="AskUserQuestion", input={"questions": [question]})
    given = {"options": {"url": "URL", "approvals": True}, "prompt": prompt, "meta": "ASKS"}
    seen = await use(real, modules, tmp_path, sources, script + END.replace("shown", "tool_name"), **given)
    assert seen["tool_name"] == "AskUserQuestion"
    assert '"Which way?"="right"' in str(seen["messages"])


async def test_where_no_person_approves_what_is_asked_is_denied(
    fake: Backend, modules: Path, tmp_path: Path, sources: dict[str, Path]
) -> None:
    given = {"options": {"url": "URL", "grace": 20}, "prompt": TOOL, "meta": "ASKS"}
    seen = await use(fake, modules, tmp_path, sources, "const shown = hook.approvals.length;" + END, **given)
    assert seen["shown"] == 0
    assert "nobody is asked here" in json.dumps(seen["messages"])
    assert not (fake.cwd / "asked").exists()


AGENT = """
says() { echo '{"type":"system","session_id":"s","subtype":"'"$1"'"'"$2"'}'; }
result() { echo '{"type":"result","result":"'"$1"'","session_id":"s"}'; }
IFS= read -r prompt
says init; says background_tasks_changed ',"tasks":[{"task_id":"a","task_type":"local_agent"}]'; result "it works"
echo '{"type":"control_request","request_id":"q","request":{"subtype":"can_use_tool","tool_name":"Bash","input":{"command":"ls"}}}'
IFS= read -r answer
says background_tasks_changed ',"tasks":[]'; says init
case "$answer" in *allow*) result allowed;; *) result denied;; esac
cat >/dev/null
"""
"""A CLI with an agent in the background that asks behind the turn's result."""


@pytest.mark.parametrize("approvals", [True, False], ids=["approves", "nobody"])
async def test_what_an_agent_asks_behind_the_result_is_answered(
    fake: Backend, modules: Path, tmp_path: Path, sources: dict[str, Path], approvals: bool
) -> None:
    script = "await until(() => hook.approvals.length === 1); hook.approve('q');" if approvals else ""
    agent = attrs.evolve(fake, program=script_cli(tmp_path, AGENT))
    given = {"options": {"url": "URL", "grace": 20, "approvals": approvals}, "prompt": "go", "meta": "ASKS"}
    seen = await use(agent, modules, tmp_path, sources, script + END, **given)
    assert seen["text"] == ("allowed" if approvals else "denied")
    assert seen["receipt"]["cause"] == "exit"


@pytest.mark.real_cli
async def test_the_documented_component_works(
    real: Backend, modules: Path, tmp_path: Path, sources: dict[str, Path]
) -> None:
    script = """
      const find = (selector) => document.querySelector(selector);
      await until(() => find("input"));
      find("input").value = PROMPT;
      find("form").requestSubmit();
      const button = (text) => [...document.querySelectorAll("button")].find((one) => one.textContent === text);
      await until(() => button("Deny"));
      const asked = button("Deny").parentElement.textContent;
      button("Deny").click();
      await until(() => find("#receipt"));
      return { asked, text: find("output").textContent, receipt: find("#receipt").textContent, state: find("#state").textContent };
    """.replace("PROMPT", json.dumps(TOOL))
    seen = await use(real, modules, tmp_path, sources, script, chat={"url": "URL"})
    assert "Bash" in seen["asked"]
    assert "touch asked" in seen["asked"]
    assert seen["text"].startswith("All done")
    assert (seen["receipt"], seen["state"]) == ("exit, 0 left", "closed")
    assert not (real.cwd / "asked").exists()
