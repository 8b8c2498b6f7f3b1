"""Rule: what is committed of the clients is what their sources build; it is typed, can be packed, and holds no surprise."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from pathlib import Path

import httpx
import pytest
from browser import WEB, node_environ, run_program
from harness import Backend, directive

import trio_claude
from trio_claude.api import PAGES

pytestmark = pytest.mark.node
ROOT = Path(__file__).parents[1]
DIST = WEB / "dist"
BUILT = ("client.js", "client.d.ts", "react.js", "react.d.ts")
CONSUMER = """
import { ask, Busy, openSession, type SessionEvent } from "trio-claude";
import { useClaudeWebSocket } from "trio-claude/react";

export async function main(): Promise<string> {
  const run = ask("hello", { WebSocket, model: "haiku", max_turns: 3 });
  for await (const { n, line } of run) console.log(n + 1, line?.["type"]);
  const session = await openSession({ attach: { run: "x", as: "viewer" }, onState: (state) => state === "back" });
  for await (const event of session) {
    const every: SessionEvent = event;
    if (every.type === "approval") session.approve(every.request_id, { updatedInput: every.input });
  }
  const { receipt } = await session.ended;
  void ask("hello", { url: undefined, meta: undefined, model: undefined, tools: undefined, bufferLimit: undefined });
  void openSession({ meta: undefined, options: { effort: undefined, on_disconnect: undefined } });
  session.deny("x", { message: undefined, interrupt: undefined });
  console.log(receipt?.survivors ?? 0, new Busy("x").retryAfter, useClaudeWebSocket().receipt?.left);
  // @ts-expect-error: a mode that there is not
  session.stop("now");
  // @ts-expect-error: an option of the wire contract stands in `options`
  void openSession({ partial: true });
  // @ts-expect-error: an option that there is not
  void openSession({ options: { partly: true } });
  // @ts-expect-error: an option that there is not
  void ask("hello", { partly: true });
  return run.text;
}
"""


def test_the_lock_file_names_no_registry() -> None:
    text = (WEB / "package-lock.json").read_text()
    locked = {name: one for name, one in json.loads(text)["packages"].items() if name}
    assert "resolved" not in text
    assert "registry" not in text
    assert all(one["integrity"].startswith("sha512-") for one in locked.values())
    pinned = json.loads((WEB / "package.json").read_text())["devDependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in pinned.values())


def test_what_is_built_holds_no_surprise() -> None:
    for name in BUILT:
        text = (DIST / name).read_text()
        assert not re.search(r"\beval\b|new Function|registry|innerHTML|localStorage", text), name
        assert not [own for own in (ROOT, Path.home()) if f"{own}/" in text], name
        addresses = set(re.findall(r"\b(?:https?|wss?)://[\w.-]+(?::\d+)?", text))
        assert addresses <= {"http://127.0.0.1:3000"}, name


async def test_the_build_is_what_is_committed(web_modules: Path, tmp_path: Path) -> None:
    """The types are checked on the way: `npm run build` begins with tsc."""
    home = tmp_path / "web"
    shutil.copytree(WEB, home, ignore=shutil.ignore_patterns("node_modules", "dist"))
    (home / "node_modules").symlink_to(web_modules)
    await run_program(["npm", "--prefix", home, "run", "build"], node_environ(tmp_path))
    built, kept = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (home / "dist", DIST))
    assert {*BUILT, "index.html", "page.js", "page.css"} < set(built) == set(kept)
    for name, data in built.items():
        assert data == kept[name], f"{name}: npm run build"


async def test_the_package_can_be_packed_typed_and_imported(web_modules: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    web = tree / WEB.relative_to(ROOT)
    for name in ("npm", "dist"):
        shutil.copytree(WEB / name, web / name)
    shutil.copy(ROOT / "LICENSE", tree)
    said, _ = await run_program(
        ["npm", "--prefix", web / "npm", "pack", web / "npm", "--pack-destination", tmp_path, "--json"],
        node_environ(tmp_path),
    )
    (archive,) = tmp_path.glob("*.tgz")
    program = tmp_path / "program"
    with tarfile.open(archive) as packed:
        packed.extractall(program / "node_modules", filter="data")
    package = program / "node_modules" / "trio-claude"
    (program / "node_modules" / "package").rename(package)
    assert {path.name for path in package.iterdir()} == {*BUILT, "package.json", "README.md", "LICENSE"}, said
    assert (package / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    told = json.loads((package / "package.json").read_text())
    assert told["version"] == trio_claude.__version__
    assert "dependencies" not in told
    for name in ("@types", "csstype", "react"):
        (program / "node_modules" / name).symlink_to(web_modules / name)
    (program / "main.mjs").write_text(
        'import * as client from "trio-claude"; import { useClaudeWebSocket } from "trio-claude/react";'
        "console.log(typeof client.ask, typeof client.openSession, typeof useClaudeWebSocket);"
        "try { useClaudeWebSocket({ partial: true }); } catch (error) { console.log(`${error}`); }"
    )
    out, _ = await run_program(["node", program / "main.mjs"], node_environ(tmp_path))
    types, odd = out.splitlines()
    assert types == "function function function"
    assert odd.startswith("TypeError: useClaudeWebSocket takes no `partial`: there are url, ")
    (program / "main.ts").write_text(CONSUMER)
    flags = [
        "--noEmit",
        "--strict",
        "--exactOptionalPropertyTypes",
        "--target=es2022",
        "--module=nodenext",
        "--lib=es2023,dom",
    ]
    tsc = web_modules / "typescript" / "bin" / "tsc"
    await run_program(
        ["node", tsc, *[word for flag in flags for word in flag.split("=")], program / "main.ts"],
        node_environ(tmp_path),
    )


async def test_the_server_serves_the_clients(fake: Backend) -> None:
    async with fake.serve_known("alice") as (server, _), httpx.AsyncClient(trust_env=False) as http:
        for name in BUILT:
            answer = await http.get(f"{server.url}/{name}")
            assert answer.content == (DIST / name).read_bytes()
            assert answer.headers["content-type"] == PAGES[f"/{name}"][1]
    assert PAGES["/client.js"][1].startswith("text/javascript")


async def test_the_samples_of_the_documents_run(fake: Backend, folder: Path) -> None:
    page = (ROOT / "docs" / "javascript.md").read_text() + (WEB / "npm" / "README.md").read_text()
    samples = re.findall(r"```js\n(.*?)```", page, re.DOTALL)
    assert len(samples) == 4
    tool = json.dumps("Which files are here? " + directive("bash", cmd="touch asked; ls"))
    outs = []
    async with fake.serve() as server:
        for number, sample in enumerate(samples):
            text = sample.replace("http://127.0.0.1:3000", server.url).replace(
                '"trio-claude"', json.dumps(str(DIST / "client.js"))
            )
            program = folder / f"sample{number}.mjs"
            program.write_text(text.replace('"Which files are here?"', tool))
            outs.append((await run_program(["node", "--experimental-websocket", program], node_environ(folder)))[0])

    assert re.search(r"\d+ result\nHello from stub\.\nexit 0: \d+ seen, 0 left\n$", outs[0])
    assert re.search(r"\d+ result\n.+\nstopped 0\n$", outs[1])
    assert not (fake.cwd / "asked").exists()
    assert outs[2].startswith("refused 1008 meta must match")
    assert outs[3] == "Hello from stub.\n"
    assert not fake.left()
