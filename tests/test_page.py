"""Rule: the page at `/` shows a run as it goes, lets its user lead it, and nothing that a run says can lead the page."""

from __future__ import annotations

import gzip
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from cutter import open_cutter
from harness import OWN_RESULT, Backend, ask, call, directive, get, script_cli, until
from journals import begun, ended
from nginx import free_port, open_nginx
from pages import Browser, Page
from program import environ, serving
from talk import Talk, open_talk

from trio_claude.api import POLICY, takes_gzip
from trio_claude.errors import Reason
from trio_claude.identity.keys import Key, digest, new_secret, write_keys
from trio_claude.server import Server

pytestmark = [pytest.mark.node, pytest.mark.browser]
SIZE_LIMIT = 200 * 1024
NODES_LIMIT = 3000
ITEMS_KEPT = 500
PHONE = {"width": 390, "height": 780}
TAB_KEPT = "sessionStorage.getItem('run')"


@asynccontextmanager
async def looking(browser: Browser, url: str, name: str = "page", **options: Any) -> AsyncIterator[Page]:
    """Open the page; at the end nothing has gone wrong in it, and it has asked nobody but its own server."""
    async with browser.open(f"{url}/", name, **options) as page:
        yield page
        seen = await page.seen()
    assert seen["errors"] == []
    assert seen["violations"] == []
    own = url.partition("//")[2]
    assert [one for one in seen["requests"] if own not in one and not one.startswith("data:")] == []


async def turns(page: Page, count: int) -> None:
    """Wait until so many turns have ended, and all that was said is shown."""
    await page.wait_count(".turn-end", count)
    await page.drawn()


# -- what is served ---------------------------------------------------------------------------------------------------


async def test_the_page_is_small_and_has_its_policy(fake: Backend) -> None:
    """Everything the page is, compressed, with what its bundle contains; whoever takes no gzip gets the same bytes."""
    size = 0
    async with fake.serve() as server:
        for path in ["/", "/page.css", "/page.js"]:
            _, plain_head, plain = await call(server, path)
            _, head, body = await call_gzip(server, path)
            assert gzip.decompress(body) == plain
            assert (head["content-encoding"], head["vary"]) == ("gzip", "Accept-Encoding")
            assert "content-encoding" not in plain_head
            assert head["content-security-policy"] == plain_head["content-security-policy"] == POLICY
            assert b"http://" not in plain.split(b"<body>")[0] or path != "/"
            size += len(body)
    assert size < SIZE_LIMIT


@pytest.mark.nginx
async def test_the_page_is_whole_below_a_path_of_a_proxy(fake: Backend, browser: Browser, folder: Path) -> None:
    """Also behind a key, for which it buys tickets; it asks nothing but what is below that path."""
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    async with (
        fake.serve_known("alice", allow_origin=(origin,), journal="memory") as (server, keys),
        open_nginx(folder, port, server.port, "/claude/"),
        looking(browser, f"{origin}/claude") as page,
    ):
        await page.wait("#key")
        await page.call("fill", "#key", keys["alice"])
        await page.call("press", "#key", "Enter")
        await page.say("hello")
        await turns(page, 1)
        assert await page.texts(".answer") == ["Hello from stub."]
        for tab, shown in (("running", "1 run;"), ("history", "TASK-123"), ("usage", "Nothing was used yet.")):
            await page.click(f"#tab-{tab}")
            await page.wait_text(f"#{tab}", shown)


async def call_gzip(server: Server, path: str) -> tuple[int, dict[str, str], bytes]:
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        lines = (
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: br, gzip;q=0.8\r\nConnection: close\r\n\r\n"
        )
        await stream.send_all(lines.encode())
        answer = b"".join([chunk async for chunk in stream])
    head, _, body = answer.partition(b"\r\n\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:])
    headers["vary"] = headers["vary"].title()
    return int(head.split()[1]), headers, body


@pytest.mark.parametrize(
    ("accepted", "taken"),
    [
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("gzip ; q=1", True),
        ("", False),
        ("br", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("x-gzip", False),
    ],
)
def test_who_takes_gzip(accepted: str, taken: bool) -> None:
    assert takes_gzip(accepted) is taken


def test_the_bundle_brings_its_licences() -> None:
    """What is bundled stands in the licences, by the versions of the lock file."""
    page = Path(__file__).parents[1] / "trio_claude" / "web"
    lock = json.loads((page / "package-lock.json").read_text())["packages"]
    licences = (page / "dist" / "LICENSES.txt").read_text()
    for name in ("dompurify", "highlight.js", "marked"):
        assert f"{name} {lock[f'node_modules/{name}']['version']} " in licences
    assert "resolved" not in json.dumps(lock)


# -- a conversation ---------------------------------------------------------------------------------------------------

MARKDOWN = "# Head\n\nSome **bold** and `code`.\n\n```python\ndef add(a):\n    return a + 1\n```\n\n- one\n- two\n\n3. [x] three\n"


@pytest.mark.real_cli
async def test_a_conversation_from_prompt_to_receipt(real: Backend, browser: Browser) -> None:
    """Stream, code with a copy button, a tool that is allowed, one that is changed, one that is denied, the receipt."""
    async with (
        real.serve(journal="memory") as server,
        looking(browser, server.url, permissions=["clipboard-read", "clipboard-write"]) as page,
    ):
        await page.say(directive("text", text=MARKDOWN, deltas=20))
        await turns(page, 1)
        assert await page.texts(".answer h1, .answer strong, .answer li") == ["Head", "bold", "one", "two", "three"]
        assert await page.call("isChecked", ".answer ol[start='3'] input[type=checkbox]")
        assert "return" in await page.texts(".answer .hljs-keyword")
        await page.click(".answer .copy")
        await page.wait_text(".answer .copy", "Copied")
        assert await page.evaluate("navigator.clipboard.readText()") == "def add(a):\n    return a + 1"

        await page.say(directive("bash", cmd="touch one; echo it-ran"))
        await page.click("[data-answer=allow]")
        await turns(page, 2)
        assert (real.cwd / "one").exists()
        assert "it-ran" in await page.text(".tool pre[aria-label=Output]")
        assert " · " in await page.text(".tool .tool-state")

        await page.say(directive("bash", cmd="touch two"))
        await page.click("[data-answer=edit]")
        await page.call("fill", ".editor textarea", '{"command": "touch three"')
        await page.click("[data-answer=allow]")
        await page.wait_text(".editor .fault", "This is no JSON")
        await page.call("fill", ".editor textarea", '{"command": "touch three"}')
        await page.click("[data-answer=allow]")
        await turns(page, 3)
        assert (real.cwd / "three").exists()
        assert not (real.cwd / "two").exists()

        await page.say(directive("bash", cmd="touch four"))
        await page.call("fill", ".answers input", "not today")
        await page.click("[data-answer=deny]")
        await turns(page, 4)
        assert not (real.cwd / "four").exists()
        assert "not today" in (await page.texts(".tool"))[-1]

        assert (await page.text("#tokens")).split()[0].isdigit()
        assert (await page.text("#cost")) > "$0.000"
        await page.click("#end")
        await page.wait_text(".receipt", "0 left")
        assert await page.text("#state") == "ended: exit 0"
        await until(lambda: len(real.ended) == 1)
    assert real.ended[0].outcome.reason is Reason.EXIT
    assert real.left() == []


@pytest.mark.real_cli
async def test_escape_stops_a_turn_and_a_second_stop_the_run(real: Backend, browser: Browser) -> None:
    """What there was of the answer stays."""
    async with real.serve() as server, looking(browser, server.url) as page:
        await page.say(directive("slow", n=400, ms=50))
        await page.wait_text(".answer", "tok3")
        await page.press("Escape")
        await turns(page, 1)
        assert "tok3" in await page.text(".answer")
        await page.say(directive("hang"))
        await page.until("document.getElementById('state').innerText.startsWith('waiting for an answer')")
        await page.evaluate(
            "[1, 2].forEach(() => document.getElementById('stop').click())"
        )  # before any answer to the first
        await page.wait_text(".receipt", "0 left")
        assert (await page.text("#state")).startswith("ended: stopped")
    assert [run.outcome.receipt.survivors for run in real.ended] == [0]


async def test_escape_is_heard_once_where_it_is_held_and_not_from_an_input_method(
    fake: Backend, browser: Browser
) -> None:
    press = "document.body.dispatchEvent(new KeyboardEvent('keydown', { key: 'Escape', bubbles: true, ...how }))"
    async with fake.serve(journal="memory") as server, looking(browser, server.url) as page:
        await page.say(directive("slow", n=400, ms=50))
        await page.wait_text(".answer", "tok3")
        await page.evaluate(f"[{{ isComposing: true }}, {{ keyCode: 229 }}].forEach((how) => {press})")
        await page.click("#tab-history")
        await page.call("fill", "#search", "other")
        await page.press("Escape")
        await page.click("#tab-talk")
        await page.call("focus", "#model")
        await page.press("Escape")
        await page.call("fill", "#prompt", "not yet")
        enter = "new KeyboardEvent('keydown', { key: 'Enter', keyCode: 229, bubbles: true, cancelable: true })"
        await page.evaluate(f"document.getElementById('prompt').dispatchEvent({enter})")
        assert await page.evaluate("document.getElementById('prompt').value") == "not yet"
        await page.wait_text(".answer", "tok9")
        await page.evaluate(f"[false, true, true].forEach((repeat) => {{ const how = {{ repeat }}; {press}; }})")
        await turns(page, 1)
        await page.say(directive("text", text="again"))
        await turns(page, 2)
        await page.click("#end")
        await page.wait(".receipt")
    assert [run.outcome.reason for run in fake.ended] == [Reason.EXIT]


async def test_what_is_asked_for_is_shown_whole(fake: Backend, browser: Browser) -> None:
    """A command alone as what it is; beside anything else nothing is left out."""
    plain = {"command": "ls", "description": "look around"}
    whole = {"command": "status", "target": "production", "dangerouslyDisableSandbox": True}
    lines = [
        {
            "type": "control_request",
            "request_id": name,
            "request": {"subtype": "can_use_tool", "tool_name": name, "input": given},
        }
        for name, given in (("Bash", plain), ("mcp__deploy", whole))
    ]
    async with fake.serve() as server, looking(browser, server.url) as page:
        raw = "".join(f"{json.dumps(line)}\n" for line in lines)
        await page.say(directive("raw", text=raw) + directive("text", text="asked"))
        await page.wait_count("[data-answer=allow]", 2)
        shown = await page.texts(".tool .code code")
        assert shown[0] == "ls"
        assert json.loads(shown[1]) == whole


async def test_what_is_not_seen_or_turns_a_text_is_written_out(fake: Backend, browser: Browser) -> None:
    command = "echo \u202e# hs | live lruc\u202c\x1b\u200b\ndone"
    request = {"subtype": "can_use_tool", "tool_name": "Bash", "input": {"command": command + " " * 300 + "; last"}}
    line = {"type": "control_request", "request_id": "one", "request": request}
    async with fake.serve() as server, looking(browser, server.url) as page:
        await page.say(directive("raw", text=f"{json.dumps(line)}\n") + directive("text", text="asked"))
        await page.wait("[data-answer=allow]")
        shown = r"echo \u202e# hs | live lruc\u202c\u001b\u200b"
        assert (await page.texts(".tool .code code"))[0].startswith(f"{shown}\ndone")
        assert (await page.texts(".tool-input"))[0].startswith(f"{shown} done")
        assert await page.evaluate(
            "(({ scrollWidth, clientWidth }) => scrollWidth <= clientWidth)(document.querySelector('.tool .code pre'))"
        )
        await page.click("[data-answer=edit]")
        assert json.loads(await page.evaluate("document.querySelector('.editor textarea').value")) == request["input"]


LEFT = """((selector, text) => {
  const walker = document.createTreeWalker(document.querySelector(selector), NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode()); ) {
    const at = node.data.indexOf(text);
    if (at < 0) continue;
    const range = new Range();
    range.setStart(node, at);
    range.setEnd(node, at + text.length);
    return range.getBoundingClientRect().left;
  }
})"""


async def test_what_is_asked_for_stands_apart_from_the_words_around_it(fake: Backend, browser: Browser) -> None:
    """Letters that go from right to left turn neither the Latin ones of a command nor the words around it."""
    alef, bet = "\u05d0", "\u05d1"
    request = {
        "subtype": "can_use_tool",
        "tool_name": f"{bet}\u202e{bet}",
        "input": {"command": f"{alef} && rm; {bet}"},
    }
    line = {"type": "control_request", "request_id": "one", "request": request}
    async with fake.serve() as server, looking(browser, server.url) as page:
        await page.say(directive("raw", text=f"{json.dumps(line)}\n") + directive("text", text="asked"))
        await page.wait("[data-answer=allow]")

        async def order(selector: str, *parts: str) -> bool:
            found = [await page.evaluate(f"{LEFT}({json.dumps(selector)}, {json.dumps(part)})") for part in parts]
            return found == sorted(found)

        for place in (".tool-input", ".tool .code code"):
            assert await order(place, alef, "rm", bet)
            style = await page.evaluate(f"getComputedStyle(document.querySelector('{place}')).unicodeBidi")
            assert style == "isolate"
        assert await page.text(".ask") == rf"May {bet}\u202e{bet} run?"
        assert await order(".ask", "May", bet, "run")
        assert r"\u202e" in await page.text(".tool-name")


async def test_what_is_written_out_of_a_long_input_is_bounded(fake: Backend, browser: Browser) -> None:
    """The limit is of characters of the input, however long each is where it is written out."""
    given = {"command": "\u202e" * 50_001}
    line = {
        "type": "assistant",
        "message": {"content": [{"type": "tool_use", "id": "t", "name": "Bash", "input": given}]},
    }
    async with fake.serve() as server, looking(browser, server.url) as page:
        await page.say(directive("raw", text=f"{json.dumps(line)}\n") + directive("text", text="last"))
        await turns(page, 1)
        (shown,) = await page.texts(".tool .code code")
        assert shown == r"\u202e" * 50_000 + "\n… 1 more characters are not shown"
        await page.click("#end")
        await page.wait(".receipt")


async def test_a_long_answer_is_cut_between_two_characters(fake: Backend, browser: Browser) -> None:
    """The limit is of UTF-16's units, of which some characters have two."""
    text = (f"{'word ' * 15}word\n" * 12_500)[:999_999] + "\U0001f600"
    line = {"type": "assistant", "message": {"content": [{"type": "text", "text": text}]}}
    async with fake.serve() as server, looking(browser, server.url) as page:
        await page.say(directive("raw", text=f"{json.dumps(line)}\n") + directive("text", text="last"))
        await turns(page, 1)
        await page.wait_text(".answer .note", "1 more characters are not shown")
        assert await page.evaluate("document.querySelector('.answer').textContent.isWellFormed()")


async def test_a_letter_that_is_typed_answers_no_question(fake: Backend, browser: Browser) -> None:
    """Alt and A type a letter on some keyboards; where they do not they lead to the question, not to an answer."""
    async with fake.serve() as server, looking(browser, server.url) as page:
        await page.say(directive("bash", cmd="touch asked"))
        await page.wait("[data-answer=allow]")
        await page.call("focus", "#prompt")
        await page.press("Control+Alt+a")
        letter = "{ key: '\u00e5', code: 'KeyA', altKey: true, bubbles: true }"
        await page.evaluate(f"document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {letter}))")
        assert await page.evaluate("document.activeElement.id") == "prompt"
        await page.click("#tab-raw")
        await page.press("Alt+a")
        assert await page.call("isVisible", "#talk")
        await page.press("Space")
        assert await page.evaluate("document.activeElement.className") == "question"
        await page.click("[data-answer=deny]")
        await turns(page, 1)
        assert not (fake.cwd / "asked").exists()


@pytest.mark.real_cli
async def test_a_reload_in_mid_run_shows_every_line_once(real: Backend, browser: Browser) -> None:
    """The tab keeps the run's id and nothing else; prompts, lines and an open question are there again."""
    whole = "".join(f"tok{number} " for number in range(60)).strip()
    async with real.serve(journal="memory") as server, looking(browser, server.url) as page:
        await page.say(directive("slow", n=60, ms=40))
        await page.wait_text(".answer", "tok5")
        await page.call("reload")
        await turns(page, 1)
        assert await page.texts(".answer") == [whole]
        assert await page.evaluate("Object.keys(sessionStorage)") == ["run"]
        await page.say(directive("bash", cmd="touch after"))
        await page.wait("[data-answer=allow]")
        await page.call("reload")
        await page.click("[data-answer=allow]")
        await turns(page, 2)
        assert (real.cwd / "after").exists()
        assert len(await page.texts(".said")) == 2
        await page.click("#end")
        await page.wait(".receipt")
        assert await page.evaluate(TAB_KEPT) is None
    assert len(real.ended) == 1


@pytest.mark.parametrize("late", ["", "/notice"], ids=["", "asked before the page knows its server"])
async def test_a_broken_connection_comes_back_by_itself(fake: Backend, browser: Browser, late: str) -> None:
    """Each line once, nothing said again; meanwhile the page says that it tries."""
    async with fake.serve(journal="memory") as server, open_cutter(server.port) as cutter:
        async with looking_at_death(browser, cutter.url, late) as page:
            await page.say(directive("slow", n=40, ms=50))
            await page.wait_text(".answer", "tok3")
            cutter.open = False
            cutter.cut()
            await page.wait_text("#link", "connection lost")
            cutter.open = True
            await page.wait_text("#link", "connected")
            await turns(page, 1)
            assert await page.texts(".answer") == ["".join(f"tok{number} " for number in range(40)).strip()]
            assert len(await page.texts(".said")) == 1
            await page.click("#end")
            await page.wait(".receipt")
    assert len(fake.ended) == 1


@pytest.mark.parametrize("back", [True, False], ids=["back", "not back"])
async def test_a_prompt_while_the_connection_is_lost_is_said_or_given_back(
    fake: Backend, browser: Browser, back: bool
) -> None:
    """Once, where the page comes back; in its field, where it gives up."""
    options = {} if back else {"grace_max": 1}
    async with fake.serve(journal="memory", **options) as server, open_cutter(server.port) as cutter:
        async with looking_at_death(browser, cutter.url) as page:
            await page.say(directive("text", text="one"))
            await turns(page, 1)
            cutter.open = False
            cutter.cut()
            await page.wait_text("#link", "connection lost")
            prompt = directive("text", text="two")
            await page.say(prompt)
            assert await page.evaluate("document.getElementById('prompt').value") == ""
            if back:
                cutter.open = True
                await turns(page, 2)
                assert await page.texts(".answer") == ["one", "two"]
                await page.click("#end")
                await page.wait(".receipt")
            else:
                await page.wait_text("#offer", "Try again")
                assert await page.evaluate("document.getElementById('prompt').value") == prompt
    assert len(fake.ended) == 1


@pytest.mark.parametrize("heard", [False, True], ids=["unheard", "heard"])
async def test_a_prompt_that_may_not_have_been_heard_is_given_back(
    fake: Backend, browser: Browser, heard: bool
) -> None:
    """Where the connection was dead already, and does not come back; not where its turn had begun."""
    async with fake.serve(journal="memory", grace_max=1) as server, open_cutter(server.port) as cutter:
        async with looking_at_death(browser, cutter.url) as page:
            await page.say(directive("text", text="one"))
            await turns(page, 1)
            cutter.silent = not heard
            prompt = directive("slow", n=400, ms=50)
            await page.say(prompt)
            await page.wait_count(".said", 2)
            if heard:
                await page.wait_text(".said ~ .said ~ .answer", "tok3")
            cutter.open = False
            cutter.cut()
            cutter.silent = False
            await page.wait_text("#offer", "Try again")
            assert await page.evaluate("document.getElementById('prompt').value") == ("" if heard else prompt)
            assert ("may not have been heard" in await page.text("#transcript")) is not heard


@pytest.mark.parametrize("journal", ["memory", "none"], ids=["ended", "gone"])
async def test_a_prompt_that_was_not_heard_is_given_back_where_its_run_is_over_by_the_page_s_return(
    fake: Backend, browser: Browser, journal: str
) -> None:
    async with fake.serve(journal=journal) as server, open_cutter(server.port) as cutter:
        async with looking_at_death(browser, cutter.url) as page:
            await page.say(directive("text", text="one"))
            await turns(page, 1)
            cutter.silent = True
            await page.say("two")
            await page.wait_count(".said", 2)
            cutter.open = False
            cutter.cut()
            await page.wait_text("#link", "connection lost")
            assert server.runs.stop(await page.evaluate(TAB_KEPT), None)
            await until(lambda: bool(fake.ended))
            cutter.silent, cutter.open = False, True
            await page.wait_text("#transcript", "may not have been heard")
            assert await page.evaluate("document.getElementById('prompt').value") == "two"


async def test_a_stop_while_the_connection_is_lost_takes_the_prompt_back_that_waits(
    fake: Backend, browser: Browser
) -> None:
    async with fake.serve(journal="memory") as server, open_cutter(server.port) as cutter:
        async with looking_at_death(browser, cutter.url) as page:
            await page.say(directive("text", text="one"))
            await turns(page, 1)
            cutter.open = False
            cutter.cut()
            await page.wait_text("#link", "connection lost")
            await page.say("two")
            await page.click("#stop")
            assert await page.evaluate("document.getElementById('prompt').value") == "two"
            cutter.open = True
            await page.wait_text("#link", "connected")
            await page.click("#end")
            await page.wait(".receipt")
            assert await page.texts(".answer") == ["one"]
    assert len(fake.ended) == 1


@pytest.mark.real_cli
async def test_a_server_that_dies_is_told_of_and_the_conversation_goes_on(real: Backend, browser: Browser) -> None:
    async with serving("serve", "--port", "0", "--journal", "none", env=environ(real)) as (process, url):
        async with looking_at_death(browser, url) as page:
            await page.say("hello")
            await turns(page, 1)
            process.send_signal(signal.SIGKILL)
            await page.wait_text("#link", "connection lost")
            port = url.rpartition(":")[2]
            async with serving("serve", "--port", port, "--journal", "none", env=environ(real)):
                await page.wait_text("#banner", "the server was started anew")
                await page.click("#offer")
                await page.say("again")
                await turns(page, 2)
                assert len(await page.texts(".said")) == 2
                assert real.api
                assert "hello" in json.dumps(real.api.requests[-1].body["messages"])
                await page.click("#end")
                await page.wait(".receipt")


FAILING = """(() => {
  const Real = window.WebSocket;
  let tries = 0;
  const failing = (address) => !window.isGood && (tries += 1) <= TRIES ? address.replace("/ws/session", "/ws/nowhere") : address;
  window.WebSocket = new Proxy(Real, { construct: (_, [address, given]) => new Real(failing(address), given) });
})()"""


async def test_a_reload_whose_first_connection_fails_comes_back(fake: Backend, browser: Browser) -> None:
    async with fake.serve(journal="memory") as server, looking_at_death(browser, server.url) as page:
        await page.say(directive("slow", n=40, ms=50))
        await page.wait_text(".answer", "tok3")
        await page.call("addInitScript", FAILING.replace("TRIES", "1"))
        await page.call("reload")
        await turns(page, 1)
        assert len(await page.texts(".answer")) == 1
        assert await page.evaluate(TAB_KEPT)
        await page.click("#end")
        await page.wait(".receipt")
    assert [run.outcome.reason for run in fake.ended] == [Reason.EXIT]


async def test_a_run_that_is_not_reached_is_not_given_up(fake: Backend, browser: Browser) -> None:
    async with fake.serve(journal="memory", grace_max=1) as server, looking_at_death(browser, server.url) as page:
        await page.say(directive("text", text="one"))
        await turns(page, 1)
        run = await page.evaluate(TAB_KEPT)
        await page.call("addInitScript", FAILING.replace("TRIES", "Infinity"))
        await page.call("reload")
        await page.wait_text("#offer", "Try again")
        assert await page.evaluate(TAB_KEPT) == run
        await page.evaluate("window.isGood = true")
        await page.click("#offer")
        await page.until(
            "document.querySelector('.receipt') || document.getElementById('link').textContent === 'connected'"
        )
        assert await page.texts(".answer") == ["one"]


@pytest.mark.parametrize("times", [1, 3])
async def test_a_part_of_the_past_that_is_not_to_be_had_makes_nothing_double(
    fake: Backend, browser: Browser, times: int
) -> None:
    breaks = f"""(() => {{
      const real = window.fetch;
      let left = {times};
      const isPart = (path) => /lines\\?part=[^0]/.test(String(path));
      window.fetch = (path, init) => isPart(path) && left-- > 0 ? Promise.reject(new TypeError("cut")) : real(path, init);
    }})()"""
    async with fake.serve(journal="memory") as server, looking(browser, server.url) as page:
        for number in range(6):
            await page.say(directive("text", text=f"answer {number} " + "word " * 60000))
            await turns(page, number + 1)
        await page.call("addInitScript", breaks)
        await page.call("reload")
        await turns(page, 6)
        assert [text[:8] for text in await page.texts(".answer")] == [f"answer {number}" for number in range(6)]
        notes = " ".join(await page.texts(".note"))
        assert "not kept by this server" not in notes
        assert ("could be read: cut" in notes) is (times == 3)


WAITS_FOR_GO = """(() => {
  const real = window.fetch;
  const gone = new Promise((resolve) => (window.go = () => resolve()));
  window.fetch = async (path, init) => (String(path).startsWith("api/runs/") && (await gone), real(path, init));
})()"""


async def test_a_prompt_to_a_run_that_is_over_is_given_back(fake: Backend, browser: Browser) -> None:
    async with fake.serve(journal="memory") as server, looking(browser, server.url) as page:
        await page.say(directive("text", text="one"))
        await turns(page, 1)
        run = await page.evaluate(TAB_KEPT)
        await page.call("goto", "about:blank")
        await call(server, f"/api/runs/{run}", method="DELETE")
        await until(lambda: len(fake.ended) == 1)
        await page.call("addInitScript", WAITS_FOR_GO)
        await page.call("goto", f"{server.url}/")
        await page.say("second")
        await page.evaluate("window.go()")
        await page.wait(".receipt")
        await page.wait_text("#transcript", "was not sent")
        assert (await page.text("#transcript")).index("one") < (await page.text("#transcript")).index("second")
        assert await page.evaluate("document.getElementById('prompt').value") == "second"


LATE_CLOSE = """(() => {
  const { get, set } = Object.getOwnPropertyDescriptor(WebSocket.prototype, "onclose");
  const late = (act) => act && ((event) => (window.go = () => act(event)));
  Object.defineProperty(WebSocket.prototype, "onclose", { get, set(act) { set.call(this, late(act)); } });
})()"""


async def end_before_the_close(page: Page) -> None:
    """Have a run that has ended, and whose close is still to come: on a slow way it does a moment later."""
    await page.call("addInitScript", LATE_CLOSE)
    await page.call("reload")
    await page.say("first")
    await turns(page, 1)
    await page.click("#end")
    await page.wait(".receipt")


async def test_a_prompt_between_the_end_of_a_run_and_its_close_is_given_back(fake: Backend, browser: Browser) -> None:
    async with fake.serve() as server, looking(browser, server.url) as page:
        await end_before_the_close(page)
        await page.say("second")
        await page.until("!!window.go")
        await page.evaluate("window.go()")
        await page.until("document.getElementById('prompt').value === 'second'")
        assert await page.text("#state") == "ready"


async def test_a_conversation_goes_on_between_the_end_of_a_run_and_its_close(fake: Backend, browser: Browser) -> None:
    async with fake.serve() as server, looking(browser, server.url) as page:
        await end_before_the_close(page)
        await page.until("!!window.go")
        await page.click("#offer")
        await page.wait_text("#banner", "The next prompt goes on")
        await page.say("second")
        await turns(page, 2)
        await page.evaluate("window.go()")  # of the one before
        await page.click("#end")
        await page.wait_count(".receipt", 2)
        assert len(fake.ended) == 2


async def test_a_run_behind_one_that_was_killed_has_a_stop_of_its_own(fake: Backend, browser: Browser) -> None:
    async with fake.serve(journal="memory") as server, looking(browser, server.url) as page:
        await page.say(directive("hang"))
        await page.wait("#run")  # a run that has not begun is given up, not killed
        await page.until("!document.getElementById('stop').disabled")
        await page.evaluate("[1, 2].forEach(() => document.getElementById('stop').click())")
        await page.wait(".receipt")
        await page.until("document.getElementById('end').disabled")  # the close comes behind the receipt
        before = len(await page.texts(".turn-end"))  # the interrupt may have been faster than the kill
        await page.click("#offer")
        await page.say(directive("slow", n=400, ms=50))
        await page.wait_text(".answer", "tok3")
        assert await page.text("#stop") == "Stop"
        await page.press("Escape")
        await turns(page, before + 1)
        assert len(fake.ended) == 1
        await page.click("#end")
        await page.wait_count(".receipt", 2)


@asynccontextmanager
async def waiting(fake: Backend, browser: Browser) -> AsyncIterator[tuple[Page, Talk]]:
    """Have a page wait for the place of another client."""
    async with (
        fake.serve(journal="memory", max_runs=1) as server,
        looking(browser, server.url) as page,
        open_talk(server) as other,
    ):
        await other.start()
        await page.say("hello")
        await page.wait_text("#state", "free place")
        yield page, other


async def test_a_run_that_waits_for_a_place_is_given_up(fake: Backend, browser: Browser) -> None:
    async with waiting(fake, browser) as (page, other):
        await page.press("Escape")
        await page.wait_text("#state", "ready")
        assert await page.evaluate("document.getElementById('prompt').value") == "hello"
        await other.stop("end")
        await other.end()
        await page.press("Enter")
        await turns(page, 1)
        await page.click("#end")
        await page.wait(".receipt")


async def test_a_model_that_is_chosen_while_a_run_waits_is_the_run_s(fake: Backend, browser: Browser) -> None:
    async with waiting(fake, browser) as (page, other):
        await page.call("fill", "#model", "haiku")
        await page.call("dispatchEvent", "#model", "change")
        await other.stop("end")
        await other.end()
        await turns(page, 1)
        assert "From now on: haiku." in await page.texts("#transcript .note")
        await page.click("#tab-raw")
        frames = [json.loads(text) for text in await page.texts("#frames > div")]
        assert ["haiku" in one["model"] for one in frames if one.get("subtype") == "init"] == [True]
        await page.click("#tab-talk")
        await page.click("#end")
        await page.wait(".receipt")


async def test_a_prompt_that_is_not_taken_is_given_back_and_the_page_waits_for_nothing(
    fake: Backend, browser: Browser
) -> None:
    """One that is too long, and one too many for the server; the run is there all the same, and a turn goes on."""
    limits = {"max_session_message": 2000, "total_prompts_per_minute": 2}
    async with fake.serve(journal="memory", **limits) as server, looking(browser, server.url) as page:
        for number, prompt in enumerate(["x" * 2000, "too many"]):
            await page.say(directive("text", text="answer"))
            await turns(page, number + 1)
            await page.say(prompt)
            await page.until(f"document.getElementById('prompt').value === {json.dumps(prompt)}")
            assert await page.text("#state") == "ready"
            assert await page.call("isDisabled", "#stop")
        long, many = await page.texts(".note.fault")
        assert long.startswith("message must be at most 2000 bytes")
        assert many.startswith("Refused: more than 2 prompts a minute on this server; try again in ")
        await page.click("#end")
        await page.wait(".receipt")


SAY_AT_ONCE = """(() => {
  for (const text of TEXTS) {
    document.getElementById("prompt").value = text;
    document.getElementById("ask").requestSubmit();
  }
})()"""


HALF = "half a character: \ud800"


@pytest.mark.parametrize("taken", ["none", "first", "last"])
async def test_of_prompts_that_are_said_at_once_those_come_back_that_were_not_taken(
    fake: Backend, browser: Browser, taken: str
) -> None:
    """In their order."""
    good = directive("text", text="answer")
    texts = {"none": [HALF, f"{HALF} more"], "first": [good, HALF], "last": [HALF, good]}[taken]
    async with fake.serve() as server, looking(browser, server.url) as page:
        await page.say("hello")
        await turns(page, 1)
        await page.evaluate(SAY_AT_ONCE.replace("TEXTS", json.dumps(texts)))
        back = json.dumps("\n".join(text for text in texts if text != good))
        await page.until(f"document.getElementById('prompt').value === {back}")
        await page.wait_count(".turn-end", 1 if taken == "none" else 2)
        await page.until("document.getElementById('state').textContent === 'ready'")


HOLD = """(() => {
  const send = WebSocket.prototype.send;
  WebSocket.prototype.send = function (said) {
    if (!String(said).includes("half a character")) return send.call(this, said);
    globalThis.release = () => send.call(this, said);
  };
})()"""
"""Hold back what can't be taken until it is released."""


@pytest.mark.parametrize("result", [OWN_RESULT, '{"type":"result","result":"one"}\n'], ids=["of none", "unnamed"])
async def test_a_prompt_that_is_refused_behind_another_result_is_given_back(
    fake: Backend, browser: Browser, folder: Path, result: str
) -> None:
    (fake.cwd / "first").write_text(result)
    async with fake.serve(cli=script_cli(folder, LINES_ONCE)) as server, looking(browser, server.url) as page:
        await page.call("addInitScript", HOLD)
        await page.call("reload")
        await page.evaluate(SAY_AT_ONCE.replace("TEXTS", json.dumps([HALF])))
        await page.until("typeof globalThis.release === 'function'")
        await page.say("hello")
        await turns(page, 1)
        await page.evaluate("globalThis.release()")
        await page.until(f"document.getElementById('prompt').value === {json.dumps(HALF)}")


@asynccontextmanager
async def looking_at_death(browser: Browser, url: str, late: str = "") -> AsyncIterator[Page]:
    """Open the page where its server dies: the browser itself says that it can't be reached."""
    async with browser.open(f"{url}/", late=late) as page:
        yield page
        seen = await page.seen()
    assert [one for one in seen["errors"] if "net::ERR_" not in one and "WebSocket" not in one] == []


LOW = """(() => {
  const said = document.getElementById("scroll");
  const { paddingTop, paddingBottom } = getComputedStyle(said);
  const room = said.clientHeight - parseFloat(paddingTop) - parseFloat(paddingBottom);
  scrollTo(0, 1e6);
  const { top, bottom } = document.getElementById("send").getBoundingClientRect();
  return [room, top >= 0 && bottom <= innerHeight];
})()"""


@pytest.mark.parametrize(("width", "height"), [(320, 256), (844, 390)], ids=["zoomed", "phone on its side"])
async def test_what_is_said_is_seen_on_a_low_screen(fake: Backend, browser: Browser, width: int, height: int) -> None:
    """1280 by 1024 at 400 % are 320 by 256."""
    viewport = {"width": width, "height": height}
    async with fake.serve() as server, looking(browser, server.url, viewport=viewport) as page:
        await page.say(directive("text", text="word " * 500))
        await turns(page, 1)
        room, is_reached = await page.evaluate(LOW)
        assert room > 100
        assert is_reached


# -- keys, tabs, runs -------------------------------------------------------------------------------------------------


async def test_all_that_was_said_is_printed_in_dark_letters(fake: Backend, browser: Browser) -> None:
    async with fake.serve() as server, looking(browser, server.url, colorScheme="dark") as page:
        await page.say(whole("\n\n".join(f"paragraph {number}" for number in range(300))))
        await turns(page, 1)
        await page.call("emulateMedia", {"media": "print"})
        height = await page.evaluate("document.getElementById('transcript').scrollHeight")
        assert await page.evaluate("document.documentElement.scrollHeight") > height > 2000
        assert await page.evaluate("getComputedStyle(document.body).color") == "rgb(34, 33, 30)"
        assert not await page.call("isVisible", "#ask")
        await page.call("emulateMedia", {"media": "screen"})
        await page.click("#end")
        await page.wait(".receipt")


async def test_each_line_of_a_prompt_has_its_direction_but_of_one_that_is_pasted_long(
    fake: Backend, browser: Browser
) -> None:
    """A browser would lay out a line for the square of its length."""
    directed = "getComputedStyle(document.getElementById('prompt')).unicodeBidi"
    permissions = ["clipboard-read", "clipboard-write"]
    async with (
        fake.serve(max_session_message=99_999) as server,
        looking(browser, server.url, permissions=permissions) as page,
    ):
        for prompt, direction in (("a" * 100_000, "plaintext"), ("a" * 100_001, "normal")):
            await page.evaluate(f"navigator.clipboard.writeText({json.dumps(prompt)})")
            await page.call("fill", "#prompt", "")
            await page.press("Control+v")
            await page.until(f"document.getElementById('prompt').value.length === {len(prompt)}")
            assert await page.evaluate(directed) == direction
        await page.press("Enter")
        await page.wait_text("#transcript", "in its field again")
        assert await page.evaluate("document.getElementById('prompt').value.length") == len(prompt)
        assert await page.evaluate(directed) == "normal"
        await page.call("fill", "#prompt", "short")
        assert await page.evaluate(directed) == "plaintext"
        await page.click("#end")
        await page.wait(".receipt")


async def test_a_key_is_taken_without_the_spaces_around_it_or_refused(fake: Backend, browser: Browser) -> None:
    async with fake.serve_known("alice") as (server, keys), looking(browser, server.url) as page:
        await page.call("fill", "#key", "a key \u2013 or none")
        await page.press("Enter")
        await page.wait_text("#key-fault", "the key has characters that no key has. ")
        await page.call("fill", "#key", f" {keys['alice']} ")
        await page.press("Enter")
        await page.until("document.getElementById('unlock').hidden")
        await page.say("hello")
        await turns(page, 1)


async def test_a_wrong_key_is_told_and_a_good_one_is_kept_nowhere(fake: Backend, browser: Browser) -> None:
    async with fake.serve_known("alice", journal="memory") as (server, keys), browser.open(f"{server.url}/") as page:
        await page.call("fill", "#key", "tck_wrong")
        await page.press("Enter")
        await page.wait_text("#key-fault", "The key or token is not good here")
        await page.call("fill", "#key", keys["alice"])
        await page.press("Enter")
        await page.until("document.getElementById('unlock').hidden")
        await page.say("hello")
        await turns(page, 1)
        kept = await page.evaluate(
            "JSON.stringify([{...sessionStorage}, {...localStorage}, document.cookie, document.getElementById('key').value])"
        )
        assert keys["alice"] not in kept
        await page.call("reload")
        await page.wait("#key")
        await page.call("fill", "#key", keys["alice"])
        await page.press("Enter")
        await turns(page, 1)
        await page.click("#end")
        await page.wait(".receipt")
        seen = await page.seen()
    assert [run.identity for run in fake.ended] == ["key:alice"]
    assert keys["alice"] not in json.dumps(seen)
    assert [error for error in seen["errors"] if "401" not in error] == []


async def test_where_a_key_is_taken_back_another_is_asked_for_and_the_run_goes_on(
    fake: Backend, browser: Browser
) -> None:
    async with fake.serve_known("alice", journal="memory") as (server, keys), browser.open(f"{server.url}/") as page:
        await page.call("fill", "#key", keys["alice"])
        await page.press("Enter")
        await page.until("document.getElementById('unlock').hidden")
        await page.say(directive("text", text="answer"))
        await turns(page, 1)
        another = new_secret()
        write_keys(Path(server.config.keys), {"alice": Key(digest(another), "user")})
        await page.click("#tab-running")
        await page.wait("#unlock")  # it is read again and again
        await page.click("#tab-talk")
        await page.call("fill", "#key", "")
        await page.say("more")
        await page.wait_text("#key-fault", "your key or token is not valid any more")
        assert await page.evaluate("document.getElementById('prompt').value") == "more"
        await page.call("fill", "#key", another)
        await page.press("Enter")
        await page.until("document.getElementById('unlock').hidden")
        await turns(page, 1)
        await page.wait_text("#link", "connected")
        await page.call("press", "#prompt", "Enter")
        await turns(page, 2)
        await page.click("#end")
        await page.wait(".receipt")
    assert [run.identity for run in fake.ended] == ["key:alice"]


async def test_a_run_of_the_past_that_a_key_is_not_good_for_any_more_asks_for_another(
    fake: Backend, browser: Browser
) -> None:
    async with fake.serve_known("alice", journal="memory") as (server, keys), browser.open(f"{server.url}/") as page:
        await ask(server, "hello", key=keys["alice"])
        await page.call("fill", "#key", keys["alice"])
        await page.press("Enter")
        await page.until("document.getElementById('unlock').hidden")
        await page.click("#tab-history")
        await page.wait(".run")
        write_keys(Path(server.config.keys), {"alice": Key(digest(new_secret()), "user")})
        headers = json.dumps({"Authorization": f"Bearer {keys['alice']}"})
        await page.until(f"fetch('/api/runs', {{ headers: {headers} }}).then(({{ status }}) => status === 401)")
        await page.click(".run")
        await page.wait("#unlock")
        await page.wait_text("#history .past-head .fault", "a valid key or token is needed")


FULL = """(() => {
  const real = window.fetch;
  const headers = { "Retry-After": "1" };
  const refuse = () => new Response('{"error": "too many connections", "code": "connections"}', { status: 429, headers });
  let left = 1;
  window.refuse = () => (left = 1);
  window.fetch = async (path, init) => (PATH.test(path) && left-- > 0 ? refuse() : real(path, init));
})()"""


async def test_a_server_without_room_is_no_fault_of_the_key_and_takes_no_prompt(
    fake: Backend, browser: Browser
) -> None:
    """What is told is when to come again; a run that goes on is come back to, and its past asked for again, by itself."""
    async with fake.serve_known("alice", journal="memory") as (server, keys), looking(browser, server.url) as page:
        await page.call("addInitScript", FULL.replace("PATH", "/ticket/"))
        await page.call("reload")
        await page.call("fill", "#key", keys["alice"])
        await page.press("Enter")
        await page.wait_text("#key-fault", "too many connections; try again in 1.0 s")
        assert "not good" not in await page.text("#key-fault")
        await page.press("Enter")
        await page.until("document.getElementById('unlock').hidden")
        await page.evaluate("window.refuse()")
        await page.say("hello")
        await page.wait_text("#transcript", "Refused: too many connections; try again in 1.0 s")
        assert await page.evaluate("document.getElementById('prompt').value") == "hello"
        await page.press("Enter")
        await turns(page, 1)
        await page.call("addInitScript", FULL.replace("PATH", "/runs/"))
        await page.call("reload")
        await page.call("fill", "#key", keys["alice"])
        await page.press("Enter")  # the first ticket is refused here, too
        await page.wait_text("#key-fault", "too many connections")
        await page.press("Enter")
        await turns(page, 1)
        await page.click("#end")
        await page.wait(".receipt")
        assert "could be read" not in await page.text("#transcript")


@pytest.mark.real_cli
async def test_two_tabs_on_one_run(real: Backend, browser: Browser) -> None:
    """The second watches, and may not send; then it takes over, and the first watches."""
    async with real.serve(journal="memory") as server, looking(browser, server.url) as first:
        await first.say(directive("slow", n=30, ms=30))
        await first.wait_text(".answer", "tok2")
        async with looking(browser, server.url, "second") as second:
            await second.click("#tab-running")
            await second.click("text=Watch")
            await second.wait_text("#link", "watching")
            await turns(second, 1)
            await turns(first, 1)
            assert await second.texts(".answer") == await first.texts(".answer")
            assert await second.call("isDisabled", "#send")
            await second.click("#offer")
            await second.wait_text("#link", "connected")
            await first.wait_text("#link", "watching")
            await second.say("from the second")
            await turns(second, 2)
            await turns(first, 2)
            assert await first.call("isDisabled", "#send")
            await second.click("#end")
            await first.wait_text(".receipt", "0 left")
    assert len(real.ended) == 1


async def test_a_prompt_in_the_moment_of_being_taken_over_is_given_back(fake: Backend, browser: Browser) -> None:
    """It is heard by nobody, so the page waits for no answer to it."""
    lost = directive("text", text="of nobody")
    async with (
        fake.serve(journal="memory") as server,
        open_cutter(server.port) as cutter,
        looking(browser, cutter.url) as first,
        looking(browser, server.url, "second") as second,
    ):
        await first.say(directive("text", text="one"))
        await turns(first, 1)
        await second.click("#tab-running")
        cutter.silent = True
        await first.say(lost)
        await first.wait_count(".said", 2)
        await second.click("#running button[aria-label^='Take over']")
        await second.wait("#link[data-state=open]")
        cutter.silent = False
        await first.wait_text("#link", "watching")
        assert await first.evaluate("document.getElementById('prompt').value") == lost
        assert await first.text("#state") == "ready"
        await second.say(directive("text", text="two"))
        await turns(first, 2)
        assert await first.texts(".answer") == ["one", "two"]
        await second.click("#end")
        await first.wait(".receipt")


async def test_who_was_taken_over_is_asked_no_more(fake: Backend, browser: Browser) -> None:
    async with fake.serve(journal="memory") as server, looking(browser, server.url) as first:
        await first.say(directive("bash", cmd="touch asked"))
        await first.wait("[data-answer=allow]")
        async with looking(browser, server.url, "second") as second:
            await second.click("#tab-running")
            await second.click("text=Watch")
            await second.wait_text("#link", "watching")
            await second.click("#offer")
            await second.wait("[data-answer=allow]")
            await first.wait_text(".question", "its owner is asked")
            assert await first.texts("[data-answer]") == []
            await second.click("[data-answer=allow]")
            await turns(first, 1)
            await second.click("#end")
            await first.wait(".receipt")
    assert (fake.cwd / "asked").exists()


async def test_a_run_that_may_not_be_left_ends_where_its_page_goes_to_another(fake: Backend, browser: Browser) -> None:
    async with (
        fake.serve(journal="memory") as server,
        looking(browser, server.url) as page,
        open_talk(server) as first,
        open_talk(server) as second,
    ):
        await first.start(meta="FIRST")
        await second.start(meta="SECOND")
        await page.click("#tab-running")
        await page.click("#running tr:has-text('FIRST') >> text=Watch")
        await page.click("#offer")
        await page.wait_text("#link", "connected")
        await page.click("#tab-running")
        await page.click("#running tr:has-text('SECOND') >> text=Watch")
        await page.wait_text("#link", "watching")
        await until(lambda: [run.meta for run in fake.ended] == ["FIRST"], 6)


async def test_runs_now_are_told_and_stopped(fake: Backend, browser: Browser) -> None:
    async with fake.serve(journal="memory", containment="supervisor") as server, looking(browser, server.url) as page:
        await page.call("fill", "#meta", "LIVE-1")
        await page.say(directive("hang"))
        await page.wait("#run")
        await page.click("#tab-running")
        await page.wait("#running tbody tr")
        row = await page.texts("#running tbody tr td")
        assert [row[0], row[1], row[4], row[5]] == ["local", "LIVE-1", "live", "supervisor"]
        await page.click("#running tbody >> text=Stop")
        await page.wait_text("#running", "Nothing runs.")
        await page.click("#tab-talk")
        await page.wait_text(".receipt", "0 left")
    assert [(run.meta, run.outcome.reason) for run in fake.ended] == [("LIVE-1", Reason.STOPPED)]


async def test_what_stays_as_it_is_is_not_read_out_again(fake: Backend, browser: Browser) -> None:
    """The words of a status are read out where they are put in place, also where they are the same."""
    looks = "performance.getEntriesByType('resource').filter((one) => one.name.includes('/readyz')).length"
    watch = """[...document.querySelectorAll('#link, #running [role=status]')].forEach((one) =>
      new MutationObserver(() => globalThis.said.push(one.textContent)).observe(one, { childList: true, characterData: true, subtree: true }))"""
    async with fake.serve(journal="memory") as server, looking(browser, server.url) as page:
        await page.say(directive("text", text="one"))
        await turns(page, 1)
        await page.click("#tab-running")
        await page.wait_text("#running [role=status]", "1 run;")
        await page.evaluate(f"(() => {{ globalThis.said = []; {watch}; }})()")
        await page.until(f"{looks} >= 3")
        await page.click("#tab-talk")
        await page.say(directive("text", text="two"))
        await turns(page, 2)
        assert await page.evaluate("globalThis.said") == []
        await page.click("#end")
        await page.wait(".receipt")


async def test_a_page_shows_its_own_run_and_watches_others(fake: Backend, browser: Browser) -> None:
    async with fake.serve(journal="memory") as server, looking(browser, server.url) as page:
        await page.say(directive("text", text="mine"))
        await turns(page, 1)
        await page.click("#tab-running")
        await page.click("text=Show")
        assert await page.call("isVisible", "#talk")
        assert await page.text("#link") == "connected"
        assert await page.texts("#running button") == ["Show", "Stop"]
        await page.click("#end")
        await page.wait(".receipt")


async def test_no_other_conversation_goes_on_while_a_run_is_there(fake: Backend, browser: Browser) -> None:
    async with fake.serve(journal="memory") as server, looking(browser, server.url) as page:
        await page.say(directive("text", text="old"))
        await turns(page, 1)
        await page.click("#end")
        await page.wait(".receipt")
        await page.click("#tab-history")
        await page.click(".run")
        await page.wait("#history .past-head button")
        await page.click("#tab-talk")
        await page.say(directive("text", text="new"))
        await turns(page, 1)
        await page.click("#tab-history")
        await page.click("#history .past-head button")
        await page.wait_text("#banner", "End it first")
        await page.click("#end")
        await page.wait("#transcript .receipt")
        await page.wait_text("#link", "not connected")
        await page.click("#tab-history")
        await page.click(".run >> nth=1")
        await page.wait_text("#history .answer", "old")
        await page.click("#history .past-head button")
        await page.wait_text("#banner", "The next prompt goes on")
        assert await page.texts("#transcript .answer") == []  # it is of the other one
        await page.say(directive("text", text="fresh"))
        await page.until("document.querySelector('#transcript .answer')?.textContent.trim() === 'fresh'")
        await page.click("#end")
        await page.wait("#transcript .receipt")


async def test_history_is_searched_and_told_again(fake: Backend, browser: Browser) -> None:
    """Lines, tools, prompts and the receipt of a run that is over; usage by day; the frames as they came."""
    async with (
        fake.serve(journal="memory", cli_args="--allowed-tools=Bash") as server,
        looking(browser, server.url) as page,
    ):
        for meta, prompt in (
            ("FIRST", directive("text", text="**first**")),
            ("SECOND", directive("bash", cmd="echo of-the-tool")),
        ):
            await page.call("fill", "#meta", meta)
            await page.say(prompt)
            await turns(page, 1)
            await page.click("#end")
            await page.wait(".receipt")
        await page.click("#tab-raw")
        assert any('"event":"ended"' in frame for frame in await page.texts("#frames > div"))
        await page.click("#tab-usage")
        await page.wait("#usage tbody tr")
        assert (await page.texts("#usage td"))[1:3] == ["local", "2"]
        await page.click("#tab-history")
        await page.wait_count(".run", 2)
        await page.call("fill", "#search", "first")
        await page.wait_count(".run", 1)
        await page.click(".run")
        await page.wait_text("#history .answer strong", "first")
        assert "exit · 1 process, 0 left" in await page.text("#history .past-head")
        await page.call("fill", "#search", "second")
        await page.click(".run")
        await page.wait("#history .tool summary")
        await page.click("#history .tool summary")
        await page.wait_text("#history .tool pre[aria-label=Output]", "of-the-tool")
        assert len(await page.texts("#history .said")) == 1


LABEL = "document.activeElement.ariaLabel"
MANY = """(() => {
  const real = window.fetch;
  const run = (n) => ({ id: n.toString(16), meta: `RUN-${n}`, identity: "local", state: "ended", started: 1e9 - n });
  const page = (from) => ({ runs: Array.from({ length: 100 }, (_, at) => run(from + at)), next: String(from + 100) });
  const from = (path) => Number(new URLSearchParams(path.split("?")[1]).get("before"));
  window.fetch = async (path, init) => (/runs[?]/.test(path) ? Response.json(page(from(path))) : real(path, init));
})()"""


async def test_a_list_that_is_drawn_anew_leaves_the_focus_where_it_was(fake: Backend, browser: Browser) -> None:
    """Who chooses by keys goes on from there: in the history, and while runs come and go."""
    async with fake.serve(journal="memory") as server, looking(browser, server.url) as page, open_talk(server) as first:
        await first.start(meta="FIRST")
        await page.click("#tab-running")
        await page.wait("#running tbody tr")
        await page.call("focus", "#running button:text('Stop')")
        label = await page.evaluate(LABEL)
        async with open_talk(server) as second:
            await second.start(meta="SECOND")
            await page.wait_count("#running tbody tr", 2)
            assert label.startswith("Stop run ")
            assert await page.evaluate(LABEL) == label
        await page.click("#tab-history")
        await page.wait_count(".run", 2)
        await page.call("focus", ".run >> nth=1")
        await page.press("Enter")
        await page.wait_text(".past-head", "FIRST")
        assert await page.evaluate("document.activeElement.ariaCurrent") == "true"
        await page.press("Shift+Tab")
        await page.press("Enter")
        await page.wait_text(".past-head", "SECOND")
        assert await page.evaluate("[...document.querySelectorAll('.run')].map((one) => one.ariaCurrent)") == [
            "true",
            None,
        ]


async def test_older_runs_are_shown_below_the_others(fake: Backend, browser: Browser) -> None:
    async with fake.serve(journal="memory") as server, looking(browser, server.url) as page:
        await page.call("addInitScript", MANY)
        await page.call("reload")
        await page.click("#tab-history")
        for count in range(100, 700, 100):
            await page.wait_count(".run", count)
            await page.click("button:text('Older runs')")


async def test_older_runs_are_shown_where_the_last_that_was_listed_is_deleted(fake: Backend, browser: Browser) -> None:
    async with fake.serve(journal="memory") as server, browser.open(f"{server.url}/") as page:
        journal = server.runs.journal
        assert journal
        names = [f"{number:032x}" for number in range(102)]
        for number, name in enumerate(names):
            journal.begin(begun(name, started=1.5 if number < 4 else float(number))).end(ended(name))
        assert await journal.settle(10)
        await page.click("#tab-history")
        await page.wait_count(".run", 100)
        assert (await call(server, f"/api/runs/{names[2]}", method="DELETE"))[0] == 200
        await page.click("button:text('Older runs')")
        await page.wait_count(".run", 102)
        assert (await page.texts("#history .side > .small"))[0] == "102 runs"


async def test_a_run_that_is_chosen_before_another_is_there_is_shown_alone(fake: Backend, browser: Browser) -> None:
    async with fake.serve(journal="memory") as server:
        await ask(server, "first " + directive("text", text="ANSWER-1", deltas=3000), partial=True)
        await ask(server, "second " + directive("text", text="ANSWER-2"))
        second, first = [run["id"] for run in (await get(server, "/api/runs"))["runs"]]
        async with browser.open(f"{server.url}/", "chosen") as page:
            await page.click("#tab-history")
            await page.wait(f'[data-run="{first}"]')
            clicks = (f"document.querySelector('[data-run=\"{run}\"]').click();" for run in (first, second))
            await page.evaluate(f"(() => {{ {' '.join(clicks)} }})()")
            await page.wait_text("#history .answer", "ANSWER-2")
            await trio.sleep(2)  # what the first has to tell would be there by now
            assert second in await page.text("#history .past-head")
            assert ["second" in text for text in await page.texts("#history .said")] == [True]
            assert await page.texts("#history .answer") == ["ANSWER-2"]


@pytest.mark.real_cli
async def test_the_demonstration_leaves_daemons_and_shows_what_becomes_of_them(browser: Browser) -> None:
    """The CLI is in a process group of its own, so each daemon is one that killpg misses; the receipt has none left."""
    async with serving("demo", "--port", "0", env=dict(os.environ)) as (_, url), looking(browser, url) as page:
        await page.click("#daemons")
        await page.wait("#proof table")
        here, usual = (await page.texts(".side-by strong"))[:2]
        rows = await page.evaluate(
            "[...document.querySelectorAll('#proof tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent))"
        )
        receipt = await page.text(".receipt strong")
    own, daemons = rows[0], rows[1:]
    assert len({row[1] for row in rows}) == len(rows) == 6
    assert usual == str(len([row for row in daemons if row[2] != own[2]]))
    assert int(usual) >= 3
    assert here == "0"
    assert receipt.endswith(", 0 left")
    assert int(receipt.split()[0]) >= len(rows)


# -- what a run says can't lead the page ------------------------------------------------------------------------------

BAD = "<img src=x onerror='globalThis.hacked=1'>"
HOSTILE = f"""# {BAD}

{BAD}<script>globalThis.hacked=1</script><svg onload="globalThis.hacked=1"></svg><style>body{{display:none}}</style>

[a](javascript:globalThis.hacked=1) [b](<JaVaScRiPt:globalThis.hacked=1>) [c](data:text/html,<script>globalThis.hacked=1</script>) [good](https://example.com/)

![x](http://elsewhere.example/pixel.png "{BAD}") ![y](javascript:globalThis.hacked=1) ![z](data:image/svg+xml;base64,PHN2Zz4=)

<iframe srcdoc="<script>parent.hacked=1</script>"></iframe><form action="http://elsewhere.example"><button>go</button></form>

```"><img/src=x/onerror=globalThis.hacked=1>
{BAD}
```

| {BAD} | b |
|---|---|
| <a href="javascript:globalThis.hacked=1" style="position:fixed">x</a> | <input autofocus onfocus=globalThis.hacked=1> |
"""


@pytest.mark.real_cli
async def test_nothing_that_a_run_says_runs_or_loads(real: Backend, browser: Browser) -> None:
    """Markdown, a tool's input and output, a file's name, stderr, an error's text and its run in the history."""
    async with real.serve(journal="memory") as server, looking(browser, server.url) as page:
        await page.say(directive("text", text=HOSTILE, deltas=40) + BAD)
        await turns(page, 1)
        await page.say(directive("bash", cmd=f"touch -- \"{BAD.replace('/', '')}\"; ls; cat <<'E'\n{HOSTILE}\nE"))
        await page.click("[data-answer=allow]")
        await turns(page, 2)
        await page.say(directive("tool", name=BAD, input={"file_path": BAD}))
        await turns(page, 3)
        await look_harmless(page, "#talk")
        await page.click("#end")
        await page.wait(".receipt")
        await page.click("#tab-history")
        await page.click(".run")
        await page.wait_count("#history .turn-end", 3)
        await page.drawn()
        await look_harmless(page, "#history")


async def test_what_is_said_beside_the_answer_is_text(fake: Backend, browser: Browser) -> None:
    """Lines of stderr, lines that are no JSON, and the error at the end."""
    async with fake.serve(journal="memory") as server, looking(browser, server.url) as page:
        await page.say(directive("stderr", text=BAD) + directive("raw", text=f"{BAD}\n") + directive("exit", status=3))
        await page.wait(".receipt")
        assert (await page.texts("#transcript .note")).count(BAD) == 2
        assert "status 3" in await page.text(".note.fault")
        await make_nothing(page, "#talk")


async def test_an_answer_that_broke_off_gives_way_to_the_one_that_comes_anew(fake: Backend, browser: Browser) -> None:
    async with fake.serve(journal="memory") as server, looking(browser, server.url) as page:
        await page.say(directive("miderr", n=3, text="asked again"))
        await turns(page, 1)
        assert await page.texts(".answer") == ["asked again"]


async def test_what_is_refused_or_fails_is_told_once(fake: Backend, browser: Browser) -> None:
    model = {"type": "user", "message": {"content": "<local-command-stdout>Set model</local-command-stdout>"}}
    async with fake.serve(journal="memory") as server, looking(browser, server.url) as page:
        await page.say(directive("raw", text=json.dumps(model) + "\n") + directive("err", status=400))
        await turns(page, 1)
        assert (await page.text("#transcript")).count("API Error: 400") == 1
        assert "Set model" in await page.texts("#transcript .note")
        await page.call("fill", "#model", "--no-model")
        await page.evaluate("document.getElementById('model').dispatchEvent(new Event('change'))")
        await page.wait(".note.fault")
        await page.call("fill", "#model", "haiku")
        await page.evaluate("document.getElementById('model').dispatchEvent(new Event('change'))")
        await page.wait_text("#transcript", "From now on: haiku.")
        assert len(await page.texts(".note.fault")) == 1


async def test_a_turn_that_fails_says_why_in_the_cli_s_words(fake: Backend, browser: Browser) -> None:
    """What is meant for its makers is in brackets."""
    words = ["Reached maximum budget ($1)", "[ede_diagnostic] stop_reason=null"]
    odd: list[object] = [words, words[1:], None, [3]]
    lines = [{"type": "result", "subtype": "error_of_a_kind", "is_error": True, "errors": errors} for errors in odd]
    async with fake.serve() as server, looking(browser, server.url) as page:
        raw = "".join(f"{json.dumps(line)}\n" for line in lines)
        await page.say(directive("raw", text=raw) + directive("text", text="last"))
        await turns(page, 5)
        assert await page.texts(".note.fault") == [words[0], *["error_of_a_kind"] * 3]
        await page.click("#end")
        await page.wait(".receipt")


async def test_thinking_that_is_not_told_leaves_nothing_to_unfold(fake: Backend, browser: Browser) -> None:
    events: list[dict[str, object]] = [{"type": "message_start", "message": {"id": "m"}}]
    content = []
    for index, thought in enumerate(["", "thought"]):
        block = {"type": "thinking", "thinking": "", "signature": ""}
        delta = {"type": "thinking_delta", "thinking": thought}
        events += [
            {"type": "content_block_start", "index": index, "content_block": block},
            {"type": "content_block_delta", "index": index, "delta": delta},
        ]
        content.append({"type": "thinking", "thinking": thought, "signature": "signed"})
    lines: list[dict[str, object]] = [{"type": "stream_event", "event": event} for event in events]
    lines += [{"type": "assistant", "message": {"id": "m", "content": [block]}} for block in content]
    async with fake.serve() as server, looking(browser, server.url) as page:
        raw = "".join(f"{json.dumps(line)}\n" for line in lines)
        await page.say(directive("raw", text=raw) + directive("text", text="last"))
        await turns(page, 1)
        assert await page.texts(".thinking") == ["Thinkingthought"]
        await page.click("#end")
        await page.wait(".receipt")


async def test_a_history_that_ends_is_told(fake: Backend, browser: Browser) -> None:
    async with fake.serve(journal="memory", journal_run_bytes=1024) as server, looking(browser, server.url) as page:
        await page.say(directive("lines", n=10, size=1000))
        await turns(page, 1)
        assert "From here on nothing is kept of this run." in await page.texts("#transcript .note")


ODD = [
    {"type": "assistant", "message": {"id": "m1", "content": "no list"}},
    {"type": "assistant", "message": {"id": "m2", "content": [None, 5, {"type": "text", "text": "beside odd blocks"}]}},
    {"type": "assistant", "message": {"id": "m3", "content": {"type": "text"}}},
    {"type": "user", "message": {"content": [None, {"type": "tool_result", "tool_use_id": "t", "content": [None]}]}},
    {"type": "stream_event", "event": None},
    {
        "type": "stream_event",
        "event": {"type": "message_start", "message": {"id": "m4", "usage": {"input_tokens": "x"}}},
    },
    {"type": "stream_event", "event": {"type": "content_block_start", "index": 2, "content_block": {"type": "text"}}},
    {"type": "stream_event", "event": {"type": "content_block_start", "index": 2**32 - 2, "content_block": {}}},
    {"type": "assistant", "message": {"id": "m4", "content": [{"type": "thinking", "thinking": "a hole before it"}]}},
    {"type": "result", "usage": None, "modelUsage": {"m": None}, "total_cost_usd": "much"},
]


async def test_a_line_of_a_shape_that_nobody_knows_is_no_end(fake: Backend, browser: Browser) -> None:
    """As it comes, out of the journal behind a reload, and in the history."""
    async with fake.serve(journal="memory") as server, looking(browser, server.url) as page:
        lines = "".join(f"{json.dumps(line)}\n" for line in ODD)
        await page.say(directive("raw", text=lines) + directive("text", text="and so on"))
        await turns(page, 2)
        assert [text for text in await page.texts(".answer") if text] == ["beside odd blocks", "and so on"]
        assert "a hole before it" in await page.text("#transcript")
        assert await page.texts("#transcript .fault") == []
        assert await page.text("#link") == "connected"
        await page.call("reload")
        await turns(page, 2)
        await page.click("#end")
        await page.wait_text(".receipt", "0 left")
        await page.click("#tab-history")
        await page.click(".run")
        await page.wait_count("#history .turn-end", 2)
    assert [run.outcome.reason for run in fake.ended] == [Reason.EXIT]


async def test_a_browser_that_keeps_nothing_has_a_page_all_the_same(fake: Backend, browser: Browser) -> None:
    blocked = "{ get() { throw new DOMException('blocked', 'SecurityError'); } }"
    async with fake.serve() as server, looking(browser, server.url) as page:
        await page.call("addInitScript", f"Object.defineProperty(window, 'sessionStorage', {blocked})")
        await page.call("reload")
        await page.say(directive("text", text="shown"))
        await turns(page, 1)
        assert await page.texts(".answer") == ["shown"]
        await page.click("#end")
        await page.wait(".receipt")


async def test_the_tokens_of_a_turn_are_those_of_its_agents_too(fake: Backend, browser: Browser) -> None:
    used = {"a": {"inputTokens": 10, "outputTokens": 7}, "b": {"inputTokens": 1000, "outputTokens": 50}, "c": None}
    result = {"type": "result", "usage": {"input_tokens": 10, "output_tokens": 7}}
    lines = (result, result | {"model_usage_since_last_result": used})
    async with fake.serve() as server, looking(browser, server.url) as page:
        raw = "".join(f"{json.dumps(line)}\n" for line in lines)
        await page.say(directive("raw", text=raw) + directive("text"))
        await turns(page, 3)
        told = await page.texts(".turn-end")
    assert [text.partition(" out")[0] for text in told[:2]] == ["10 tokens in, 7", "1,010 tokens in, 57"]


async def test_a_character_is_not_cut_in_two(fake: Backend, browser: Browser) -> None:
    """A paragraph without a space goes on in a next one behind so many characters, as it comes."""
    text = "a" + "\U0001f600" * 6000
    pieces = [{"type": "text_delta", "text": text[at : at + 100]} for at in range(0, len(text), 100)]
    events: list[dict[str, object]] = [
        {"type": "message_start", "message": {"id": "m"}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text"}},
        *({"type": "content_block_delta", "index": 0, "delta": piece} for piece in pieces),
    ]
    raw = "".join(json.dumps({"type": "stream_event", "event": event}) + "\n" for event in events)
    async with fake.serve() as server, looking(browser, server.url) as page:
        await page.say(directive("raw", text=raw) + directive("text"))
        await turns(page, 1)
        await page.until(f"document.querySelector('.answer').textContent.length >= {1 + 2 * 6000}")
        shown = await page.texts(".answer p")
        assert len(shown) > 2
        assert "".join(shown).startswith(text)


async def test_what_is_nested_too_deep_is_shown_as_it_is(fake: Backend, browser: Browser) -> None:
    deep = ">" * 20_000 + " deep"
    async with fake.serve(journal="memory") as server, looking(browser, server.url) as page:
        await page.say(directive("text", text=f"**Before.**\n\n{deep}", deltas=20))
        await turns(page, 1)
        await page.wait_text(".answer", "> deep")
        await page.say(directive("text", text=deep))
        await turns(page, 2)
        assert (await page.texts(".answer"))[1] == deep


COUNTING = """(() => {
  const real = RegExp.prototype.exec;
  window.work = 0;
  RegExp.prototype.exec = function (text) {
    window.work += String(text).length;
    return real.call(this, text);
  };
})()"""
AHEAD = {
    "an address": lambda size: "a" * size + "@",
    "emphasis": lambda size: "!***~" * (size // 5),
    "in a list": lambda size: f"- {'+~a' * (size // 3)}",
}


def whole(text: str) -> str:
    """Return a prompt that is answered by a text in one line."""
    line = {"type": "assistant", "message": {"id": "m", "content": [{"type": "text", "text": text}]}}
    return directive("raw", text=f"{json.dumps(line)}\n") + directive("text", text="last")


@pytest.mark.parametrize("case", list(AHEAD))
async def test_twice_the_text_is_twice_the_work(fake: Backend, browser: Browser, case: str) -> None:
    """Counted is what marked's rules are given to read."""
    work = []
    async with fake.serve() as server, looking(browser, server.url) as page:
        await page.call("addInitScript", COUNTING)
        await page.call("reload")
        for number, size in enumerate([10_000, 20_000], 1):
            text = AHEAD[case](size)
            await page.evaluate("window.work = 0")
            await page.say(whole(text))
            await turns(page, number)
            work.append(await page.evaluate("window.work"))
            shown = (await page.texts(".answer"))[-2]
            assert [shown.count(sign) for sign in "a!"] == [text.count(sign) for sign in "a!"]
        await page.click("#end")
        await page.wait(".receipt")
    assert work[1] < 2.6 * work[0]


async def test_code_is_coloured_but_for_a_word_that_is_too_long(fake: Backend, browser: Browser) -> None:
    """From each letter of such a word the rules of some languages look ahead to its end."""
    words = ["$" * 256, "$" * 257]
    async with fake.serve() as server, looking(browser, server.url) as page:
        await page.say(whole("\n\n".join(f"```java\nint {word} = 1;\n```" for word in words)))
        await turns(page, 1)
        assert await page.texts(".answer .code code") == [f"int {word} = 1;" for word in words]
        assert await page.texts(".answer .hljs-type") == ["int"]
        await page.click("#end")
        await page.wait(".receipt")


async def test_an_address_is_a_link_where_it_is_one(fake: Backend, browser: Browser) -> None:
    async with fake.serve() as server, looking(browser, server.url) as page:
        await page.say(whole(f"{'a' * 64}@example.com, {'b' * 65}@example.com and **bold**"))
        await turns(page, 1)
        assert await page.texts(".answer a") == [f"{'a' * 64}@example.com"]
        assert await page.texts(".answer strong") == ["bold"]
        await page.click("#end")
        await page.wait(".receipt")


async def test_what_is_said_has_its_direction_but_for_a_block_that_is_long(fake: Backend, browser: Browser) -> None:
    """A browser would lay out a line for the square of its length."""
    items = ["a" * 8192, "b" * 8193]
    deep = ">" * 20_000 + " deep"
    directions = (
        "[...document.querySelectorAll('.answer :is(li, .plain)')].map((one) => getComputedStyle(one).unicodeBidi)"
    )
    async with fake.serve() as server, looking(browser, server.url) as page:
        await page.say(whole("\n".join(f"- {item}" for item in items)) + whole(deep))
        await turns(page, 1)
        assert await page.texts(".answer li") == items
        assert await page.evaluate(directions) == ["plaintext", "normal", "normal"]
        await page.click("#end")
        await page.wait(".receipt")


async def test_a_large_table_is_its_text(fake: Backend, browser: Browser) -> None:
    async with fake.serve() as server, looking(browser, server.url) as page:
        for number, rows in enumerate([1000, 1001], 1):
            table = "| a | b |\n|---|---|\n" + "| **1** | 2 |\n" * rows
            await page.say(whole(table))
            await turns(page, number)
        assert await page.evaluate("document.querySelectorAll('.answer table, .answer tr').length") == 1002
        assert await page.texts(".answer .code code") == [table.strip()]
        await page.click("#end")
        await page.wait(".receipt")


async def make_nothing(page: Page, panel: str) -> None:
    assert await page.evaluate("globalThis.hacked") is None
    made = f"{panel} :is(script, style, iframe, svg, form form, img, object, embed, [onerror], [onload], [onfocus], [style])"
    assert await page.evaluate(f"document.querySelectorAll('{made}').length") == 0


async def look_harmless(page: Page, panel: str) -> None:
    await make_nothing(page, panel)
    links = await page.evaluate(
        f"[...document.querySelectorAll('{panel} .answer a[href]')].map((one) => [one.href, one.rel, one.target])"
    )
    assert ["https://example.com/", "noopener noreferrer nofollow", "_blank"] in links
    assert all(href.startswith(("https:", "http:")) and rel and target for href, rel, target in links)


async def test_twenty_thousand_deltas_are_all_there_in_few_nodes(fake: Backend, browser: Browser) -> None:
    async with fake.serve(journal="memory") as server, looking(browser, server.url) as page:
        await page.say(directive("many", n=20_000))
        await turns(page, 1)
        await page.until("document.querySelector('.answer').textContent.trim().endsWith('tok19999')")
        words = await page.evaluate("document.querySelector('.answer').innerText.split(/\\s+/).filter(Boolean)")
        assert words == [f"tok{number}" for number in range(20_000)]
        await page.click("#tab-raw")
        await page.wait_text("#raw", "the last 2000 are kept")
        assert len(await page.texts("#frames > div")) == 2000
        assert await page.evaluate("document.querySelectorAll('body *').length") < NODES_LIMIT


COUNT_SCROLLS = """(() => {
  const { get, set } = Object.getOwnPropertyDescriptor(Element.prototype, "scrollTop");
  globalThis.scrolls = 0;
  const counted = function (to) { globalThis.scrolls += 1; set.call(this, to); };
  Object.defineProperty(Element.prototype, "scrollTop", { get, set: counted, configurable: true });
})()"""


async def test_the_page_follows_what_comes_by_the_frame_and_lets_its_user_read(fake: Backend, browser: Browser) -> None:
    """Each step to the end is a layout; the history begins at the beginning."""
    at_end = "(({ scrollHeight, scrollTop, clientHeight }) => scrollHeight - scrollTop - clientHeight < 80)(SCROLL)"
    scroll = "document.getElementById('scroll')"
    async with fake.serve(journal="memory") as server, looking(browser, server.url) as page:
        await page.call("addInitScript", COUNT_SCROLLS)
        await page.call("reload")
        await page.say(directive("stderr", n=2000, text="words") + directive("text"))
        await page.wait_text("#transcript > .note", "1,50")
        await page.until(at_end.replace("SCROLL", scroll))
        assert await page.evaluate("globalThis.scrolls") < 400
        await page.evaluate(f"{scroll}.scrollTop = 50")
        await page.drawn()
        await page.call("fill", "#model", "haiku")
        await page.press("Tab")
        await page.wait_text("#transcript > :last-child", "From now on: haiku")
        await page.drawn()
        assert await page.evaluate(f"{scroll}.scrollTop") == 50
        await page.click("#tab-history")
        await page.click(".run")
        await page.wait_text("#history .transcript > .note", "1,50")
        assert "the journal has all" in await page.text("#history .transcript > .note"), "this is the history"
        await page.drawn()
        assert await page.evaluate("document.querySelector('#history .side + .scroll').scrollTop") == 0


HOLD_FRAMES = """(() => {
  globalThis.scrolls = globalThis.parsed = 0;
  const { get, set } = Object.getOwnPropertyDescriptor(Element.prototype, "scrollTop");
  const counted = function (to) { globalThis.scrolls += 1; set.call(this, to); };
  Object.defineProperty(Element.prototype, "scrollTop", { get, set: counted, configurable: true });
  const { parseFromString } = DOMParser.prototype;
  DOMParser.prototype.parseFromString = function (...given) { globalThis.parsed += 1; return parseFromString.apply(this, given); };
  globalThis.held = [];
  globalThis.frame = globalThis.requestAnimationFrame;
  globalThis.requestAnimationFrame = (work) => globalThis.held.push(work);
})()"""


async def test_of_answers_that_come_at_once_those_are_drawn_that_stay_and_looked_at_once(
    fake: Backend, browser: Browser
) -> None:
    """Each step to the end is a layout of all that is there."""
    lines = [{"type": "assistant", "message": {"content": [{"type": "text", "text": "words"}]}}] * (ITEMS_KEPT + 200)
    raw = "".join(f"{json.dumps(line)}\n" for line in lines)
    async with fake.serve() as server, looking(browser, server.url) as page:
        await page.evaluate(HOLD_FRAMES)
        await page.say(directive("raw", text=raw) + directive("text"))
        await page.wait_count(".turn-end", 1)
        await page.evaluate("globalThis.requestAnimationFrame = globalThis.frame")
        await page.evaluate("(() => { globalThis.scrolls = 0; for (const work of globalThis.held) work(); })()")
        assert await page.evaluate("globalThis.scrolls") == 1
        assert ITEMS_KEPT - 10 < await page.evaluate("globalThis.parsed") < ITEMS_KEPT + 10
        assert (await page.texts(".answer"))[0] == "words"


async def test_of_tools_that_come_at_once_those_are_drawn_that_stay_and_coloured_that_are_unfolded(
    fake: Backend, browser: Browser
) -> None:
    lines: list[dict[str, object]] = []
    for number in range(ITEMS_KEPT + 200):
        use = {
            "type": "tool_use",
            "id": f"t{number}",
            "name": "Bash",
            "input": {"command": f"if true; then {number}; fi"},
        }
        came = {"type": "tool_result", "tool_use_id": f"t{number}", "content": f"came of {number}"}
        lines += [
            {"type": "assistant", "message": {"content": [use]}},
            {"type": "user", "message": {"content": [came]}},
        ]
    (fake.cwd / "lines").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    says = f"IFS= read -r line; cat lines; echo '{RESULT.strip()}'; cat >/dev/null"
    one = attrs.evolve(fake, program=script_cli(fake.cwd.parent, says))
    count = "document.querySelectorAll('.tool pre').length"
    async with one.serve() as server, looking(browser, server.url) as page:
        await page.evaluate(HOLD_FRAMES)
        await page.say("go")
        await page.wait_count(".turn-end", 1)
        assert await page.evaluate(count) == 0
        await page.evaluate("globalThis.requestAnimationFrame = globalThis.frame")
        await page.evaluate("(() => { for (const work of globalThis.held) work(); })()")
        kept = await page.evaluate("document.querySelectorAll('.tool').length")
        assert ITEMS_KEPT - 10 < kept < ITEMS_KEPT
        assert await page.evaluate(count) == 2 * kept
        assert await page.evaluate("globalThis.parsed") == 0
        last = ".tool:nth-last-child(2)"
        await page.click(f"{last} summary")
        await page.wait(f"{last} .hljs-keyword")
        assert await page.texts(f"{last} pre") == [
            f"if true; then {ITEMS_KEPT + 199}; fi",
            f"came of {ITEMS_KEPT + 199}",
        ]
        assert await page.evaluate("globalThis.parsed") == 1
        await page.click("#end")
        await page.wait(".receipt")


async def test_what_can_not_be_drawn_keeps_nothing_else_of_its_frame_from_being(
    fake: Backend, browser: Browser
) -> None:
    """What a tool is given can be nested deeper than a browser writes out."""
    deep = f'{{"command":"true","deep":{"[" * 20_000}{"]" * 20_000}}}'
    use = f'{{"type":"tool_use","id":"t","name":"Bash","input":{deep}}},{{"type":"text","text":"words"}}'
    raw = f'{{"type":"assistant","message":{{"content":[{use}]}}}}\n'
    async with fake.serve() as server, looking(browser, server.url) as page:
        await page.evaluate(
            "(() => { globalThis.told = []; globalThis.reportError = (error) => told.push(error.name); })()"
        )
        await page.say(directive("raw", text=raw) + directive("text", text="last"))
        await turns(page, 1)
        assert await page.texts(".answer") == ["words", "last"]
        assert await page.evaluate("globalThis.told") == ["RangeError"]
        await page.click("#end")
        await page.wait(".receipt")


async def test_what_waits_with_its_drawing_is_drawn_whatever_else_the_frame_has_to_do(
    fake: Backend, browser: Browser
) -> None:
    """As where somebody says something while a long answer comes, whose last drawing was a moment ago."""
    events: list[dict[str, object]] = [
        {"type": "message_start", "message": {"id": "m"}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "words"}},
    ]
    raw = "".join(json.dumps({"type": "stream_event", "event": event}) + "\n" for event in events)
    async with fake.serve() as server, looking(browser, server.url) as page:
        await page.evaluate(HOLD_FRAMES)
        await page.evaluate("(() => { performance.now = () => -1; })()")  # too early for a drawing
        await page.say(directive("raw", text=raw) + directive("text"))
        await page.wait_count(".turn-end", 1)
        await page.evaluate("globalThis.requestAnimationFrame = globalThis.frame")
        await page.evaluate("(() => { for (const work of globalThis.held) work(); delete performance.now; })()")
        await page.until("document.querySelector('.answer').textContent.trim() === 'words'")


async def test_the_end_of_a_run_takes_nobody_from_what_is_read(fake: Backend, browser: Browser) -> None:
    scroll = "document.getElementById('scroll')"
    async with fake.serve(journal="memory") as server, looking(browser, server.url) as page:
        await page.say(directive("stderr", n=100, text="words") + directive("text"))
        await turns(page, 1)
        await page.evaluate(f"{scroll}.scrollTop = 50")
        await page.drawn()
        await page.click("#end")
        await page.wait_text("#banner", "The run is over")
        await page.drawn()
        assert await page.evaluate(f"{scroll}.scrollTop") == 50


MORE_ABOVE = """(() => {
  const more = document.createElement("p");
  more.style.height = "2000px";
  document.getElementById("transcript").prepend(more);
})()"""


async def test_who_has_left_the_end_comes_by_no_old_end_and_reads_on(fake: Backend, browser: Browser) -> None:
    scroll = "document.getElementById('scroll')"
    end = f"{scroll}.scrollHeight - {scroll}.clientHeight - {scroll}.scrollTop"
    long = directive("stderr", n=100, text="words") + directive("text")
    async with fake.serve() as server, looking(browser, server.url) as page:
        await page.say(long)
        await turns(page, 1)
        await page.until(f"{end} < 80")
        old = await page.evaluate(f"{scroll}.scrollTop")
        await page.evaluate(MORE_ABOVE)
        await page.evaluate(f"{scroll}.scrollTop = 50")
        await page.drawn()
        await page.evaluate(f"{scroll}.scrollTop = {old}")
        await page.drawn()
        await page.call("fill", "#model", "haiku")
        await page.press("Tab")
        await page.wait_text("#transcript > :last-child", "From now on: haiku")
        await page.drawn()
        assert await page.evaluate(f"{scroll}.scrollTop") == old


async def test_what_is_shown_no_more_is_held_no_more(fake: Backend, browser: Browser) -> None:
    """Cards of tools, those that asked, and those of subagents in them."""
    lines = []
    for number in range(20):
        parent = f"t{number // 2 * 2}" if number % 2 else None
        use = {"type": "tool_use", "id": f"t{number}", "name": "Bash", "input": {"command": f"{number}"}}
        lines.append({"type": "assistant", "parent_tool_use_id": parent, "message": {"content": [use]}})
        asks = {"subtype": "can_use_tool", "tool_name": "Bash", "tool_use_id": use["id"], "input": use["input"]}
        lines.append({"type": "control_request", "request_id": f"r{number}", "request": asks})
        lines.append({"type": "control_cancel_request", "request_id": f"r{number}"})
    lines += [{"type": "user", "message": {"content": "as a note"}} for _ in range(ITEMS_KEPT)]
    async with fake.serve() as server, looking(browser, server.url) as page:
        raw = "".join(f"{json.dumps(line)}\n" for line in lines)
        await page.say(directive("raw", text=raw) + directive("text", text="last"))
        await turns(page, 1)
        assert await page.texts(".tool") == []
        assert await page.live("HTMLDetailsElement") == 0


async def test_a_question_that_is_open_is_kept_behind_all_that_comes_later(fake: Backend, browser: Browser) -> None:
    """Also where an agent asks it, whose card it lies in."""
    ls: dict[str, object] = {"command": "ls"}
    lines = used("agent", "Agent", {"description": "look"}) + used("tool", "Bash", ls, "agent")
    lines += may_run("tool", "Bash", ls) + may_run("other", "Bash", ls, "two")
    notes = [json.dumps({"type": "user", "message": {"content": "as a note"}}) for _ in range(ITEMS_KEPT)]
    async with fake.serve() as server, looking(browser, server.url) as page:
        await page.say(directive("raw", text=lines + "".join(f"{note}\n" for note in notes)) + directive("silent"))
        await page.wait_text("#transcript > .note", "earlier things")
        await page.wait_text("#transcript > :last-child", "as a note")
        assert await page.texts(".said") == []
        await page.wait_count(ALLOW, 2)
        for left in (1, 0):
            await page.click(ALLOW)
            await page.wait_count(ALLOW, left)
        assert await page.evaluate("document.querySelectorAll('#transcript > *').length") == ITEMS_KEPT


# -- what the model asks its user -------------------------------------------------------------------------------------

WAY = {
    "question": "Which way?",
    "header": "Way",
    "multiSelect": False,
    "options": [{"label": "left", "description": "by the river"}, {"label": "right", "description": "by the hill"}],
}
BAGS = {
    "question": "What to take?",
    "header": "Bags",
    "multiSelect": True,
    "options": [{"label": name, "description": ""} for name in ("bread", "tea", "map")],
}
ASKS_ONCE = """read -r message
cat asked
read -r answer
printf '%s' "$answer" >answer
echo '{"type":"result","result":"done","session_id":"s"}'
cat >/dev/null"""


def asking(request_id: str = "one", **given: object) -> str:
    """Return the line by which a CLI asks its user."""
    request = {"subtype": "can_use_tool", "tool_name": "AskUserQuestion", "input": given}
    return json.dumps({"type": "control_request", "request_id": request_id, "request": request}) + "\n"


@asynccontextmanager
async def asked(fake: Backend, browser: Browser, folder: Path, **given: object) -> AsyncIterator[Page]:
    """Open the page where a CLI asks its user; it writes down what it got back, and the turn ends."""
    (fake.cwd / "asked").write_text(asking(**given))
    async with fake.serve(cli=script_cli(folder, ASKS_ONCE)) as server, looking(browser, server.url) as page:
        await page.say("ask")
        await page.wait("fieldset")
        yield page
        await turns(page, 1)


def told(fake: Backend) -> object:
    """Return what the CLI got back."""
    return json.loads((fake.cwd / "answer").read_text())["response"]["response"]


@pytest.mark.real_cli
async def test_a_question_of_the_models_is_answered(real: Backend, browser: Browser) -> None:
    """Behind a reload, too; the model hears the labels, several of them, and own words."""
    ask_user = directive("tool", name="AskUserQuestion", input={"questions": [WAY, BAGS]})
    async with real.serve(journal="memory") as server, looking(browser, server.url) as page:
        await page.say(ask_user)
        await page.wait("fieldset")
        assert await page.text("#state") == "asks you something"
        await page.call("reload")
        await page.click("label:has-text('right')")
        await page.click("label:has-text('bread')")
        await page.click("label:has-text('map')")
        await page.call("fill", "fieldset:nth-of-type(2) input[type=text]", "a lamp")
        await page.click("[data-answer=answer]")
        await turns(page, 1)
        shown = await page.text(".tool pre[aria-label=Output]")
        assert '"Which way?"="right"' in shown
        assert '"What to take?"="bread, map, a lamp"' in shown
        await page.say(ask_user)
        await page.click("[data-answer=deny]")
        await turns(page, 2)
        assert "the user did not want to answer" in (await page.texts(".tool"))[-1]
        await page.click("#end")
        await page.wait(".receipt")


async def test_an_answer_is_by_the_questions_text_beside_all_that_was_asked(
    fake: Backend, browser: Browser, folder: Path
) -> None:
    """Whatever they are called, and nothing in them is more than text."""
    choices = [{"label": BAD, "description": BAD}, {"label": "left \u202e right", "description": ""}]
    questions = [
        {"question": "__proto__", "options": choices},
        {"question": f"{BAD}\nor not?", "header": BAD, "options": choices},
    ]
    async with asked(fake, browser, folder, questions=questions, title="kept") as page:
        assert await page.texts("legend") == ["__proto__", f"{BAD} {BAD}\nor not?"]
        assert (await page.texts("fieldset > label"))[:2] == [f"{BAD} {BAD}", r"left \u202e right"]
        await make_nothing(page, "#talk")
        await page.click("fieldset:nth-of-type(1) label:nth-of-type(2)")
        assert await page.call("isDisabled", "[data-answer=answer]")
        await page.click("fieldset:nth-of-type(2) label:nth-of-type(1)")
        await page.click("[data-answer=answer]")
    answers = {"__proto__": "left \u202e right", f"{BAD}\nor not?": BAD}
    given = {"questions": questions, "title": "kept", "answers": answers}
    assert told(fake) == {"behavior": "allow", "updatedInput": given}


async def test_who_watches_reads_what_is_asked_and_answers_nothing(fake: Backend, browser: Browser) -> None:
    """So does who was asked until another page took the run over."""
    bad = {**WAY, "question": BAD, "options": [{"label": BAD, "description": "\u202e"}]}
    line = asking(questions=[WAY, bad])
    async with fake.serve(journal="memory") as server, looking(browser, server.url) as owner:
        await owner.say(directive("raw", text=line) + directive("silent"))
        await owner.wait("fieldset")
        async with looking(browser, server.url, "other") as other:
            for how in ("Watch", "Take over"):
                await other.click("#tab-running")
                await other.click(f"#running button:text('{how}')")
                watches = other if how == "Watch" else owner
                await watches.wait_text(".question", "its owner is asked")
                shown = ["Way Which way?", "left by the river", "right by the hill", f"Way {BAD}", rf"{BAD} \u202e"]
                assert await watches.texts(".asked, .question li") == shown
                assert await watches.texts("fieldset, .question button") == []
                assert not await watches.call("isVisible", ".tool .code")
                assert await watches.text(".tool-input") == "Which way?"
                await make_nothing(watches, "#talk")
            await other.wait_count("fieldset", 2)


async def test_own_words_are_an_answer_until_another_is_chosen(fake: Backend, browser: Browser, folder: Path) -> None:
    async with asked(fake, browser, folder, questions=[WAY]) as page:
        words, answer = "fieldset input[type=text]", "[data-answer=answer]"
        await page.click("fieldset .choice .choice")  # other, without words
        assert await page.call("isDisabled", answer)
        await page.call("fill", words, "over the bridge")
        assert not await page.call("isDisabled", answer)
        await page.call("fill", words, " ")
        assert await page.call("isDisabled", answer)
        await page.call("fill", words, "over the bridge")
        await page.click("label:has-text('left')")
        assert await page.evaluate("document.querySelector('fieldset :checked').value") == "left"
        await page.call("fill", words, " back home ")
        await page.click(answer)
    assert told(fake) == {
        "behavior": "allow",
        "updatedInput": {"questions": [WAY], "answers": {"Which way?": "back home"}},
    }


async def test_a_question_is_answered_by_keys_and_by_no_letter_or_enter(
    fake: Backend, browser: Browser, folder: Path
) -> None:
    focused = "document.activeElement.{}"
    async with asked(fake, browser, folder, questions=[WAY]) as page:
        await page.call("focus", "#prompt")
        await page.press("Alt+a")
        assert await page.evaluate(focused.format("className")) == "question"
        assert await page.evaluate(focused.format("ariaLabel")) == "Claude asks you"
        await page.call("keyboard.type", "a 1\n")
        await page.press("Tab")
        await page.press("Space")
        await page.press("ArrowDown")
        assert await page.evaluate(focused.format("value")) == "right"
        await page.press("Enter")
        await page.press("Tab")
        await page.press("Enter")
        assert await page.evaluate(focused.format("ariaLabel")) == "Other, in your own words"
        await page.press("Tab")
        assert await page.evaluate(focused.format("dataset.answer")) == "answer"
        await page.press("Enter")
        await turns(page, 1)
        assert await page.evaluate(focused.format("className")) == "question"
    assert told(fake) == {
        "behavior": "allow",
        "updatedInput": {"questions": [WAY], "answers": {"Which way?": "right"}},
    }


def used(tool: str, name: str, given: dict[str, object], agent: str | None = None) -> str:
    """Return the line by which the model uses a tool, or an agent does that another use has begun."""
    block = {"type": "tool_use", "id": tool, "name": name, "input": given}
    message = {"id": f"msg-{tool}", "content": [block]}
    return json.dumps({"type": "assistant", "message": message, "parent_tool_use_id": agent}) + "\n"


def may_run(tool: str, name: str, given: dict[str, object], request_id: str = "one") -> str:
    """Return the line by which a CLI asks whether a tool may run."""
    request = {"subtype": "can_use_tool", "tool_name": name, "input": given, "tool_use_id": tool}
    return json.dumps({"type": "control_request", "request_id": request_id, "request": request}) + "\n"


FOCUSED = "document.activeElement.className === 'question'"
ALLOW = "[data-answer=allow]"


@pytest.mark.real_cli
@pytest.mark.parametrize("background", [False, True], ids=["agent", "background"])
async def test_what_an_agent_asks_is_seen(real: Backend, browser: Browser, background: bool) -> None:
    """Its card is folded, as any is; the question in it unfolds it, and so does Alt+A."""
    inner = {"prompt": directive("bash", cmd="touch asked"), "run_in_background": background}
    agent = {"description": "look", "subagent_type": "general-purpose", **inner}
    async with real.serve() as server, looking(browser, server.url) as page:
        await page.say(directive("tool", name="Agent", input=agent))
        await page.wait(".inner [data-answer=allow]")
        if background:
            await turns(page, 1)
        assert await page.text("#state") == "asks you: may Bash run?"
        await page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = false))")
        await page.call("focus", "#prompt")
        await page.press("Alt+a")
        await page.until(FOCUSED)
        await page.click(".inner [data-answer=allow]")
        await until(lambda: (real.cwd / "asked").exists(), 20)
        await page.click("#end")
        await page.wait(".receipt")


@pytest.mark.real_cli
async def test_an_agent_that_is_stopped_behind_its_turn_leaves_nothing_to_stop(real: Backend, browser: Browser) -> None:
    """No turn comes behind it; another Escape would end the run."""
    inner = {"prompt": directive("bash", cmd="touch asked", rounds=2), "run_in_background": True}
    agent = {"description": "look", "subagent_type": "general-purpose", **inner}
    async with real.serve() as server, looking(browser, server.url) as page:
        await page.say(directive("tool", name="Agent", input=agent))
        await turns(page, 1)
        await page.click(ALLOW)
        await page.wait_count(".inner .tool", 2)
        await page.wait(ALLOW)
        await page.press("Escape")
        await page.wait_text(".inner .tool[data-state=failed] .question", "no longer asked")
        await page.until("document.getElementById('state').textContent === 'ready'")
        assert (await page.text("#stop"), await page.call("isDisabled", "#stop")) == ("Stop", True)
        await page.click("#end")
        await page.wait(".receipt")


AGENT = {"task_id": "a", "task_type": "local_agent"}
SHELL = {"task_id": "b", "task_type": "local_bash"}
INIT = json.dumps({"type": "system", "subtype": "init"}) + "\n"
RESULT = json.dumps({"type": "result", "result": "done", "session_id": "s"}) + "\n"
LINES_ONCE = """read -r message
cat first
read -r message
cat second
cat >/dev/null"""


def tasks(*listed: dict[str, str]) -> str:
    """Return the line by which a CLI says what goes on in the background."""
    return json.dumps({"type": "system", "subtype": "background_tasks_changed", "tasks": listed}) + "\n"


async def test_an_agent_that_is_stopped_beside_a_command_leaves_nothing_to_stop(
    fake: Backend, browser: Browser, folder: Path
) -> None:
    """A command says nothing, so what comes is the agent's last word, and begins nothing."""
    agent, ls = {"description": "look"}, {"command": "ls"}
    turn = INIT + used("agent", "Agent", agent) + tasks(AGENT, SHELL) + RESULT
    (fake.cwd / "first").write_text(turn + tasks(SHELL) + used("tool", "Bash", ls, "agent"))
    async with fake.serve(cli=script_cli(folder, LINES_ONCE)) as server, looking(browser, server.url) as page:
        await page.say("look")
        await page.wait_count(".inner .tool", 1)
        assert (await page.text("#state"), await page.call("isDisabled", "#stop")) == ("ready", True)


async def test_the_end_of_an_agent_says_nothing_of_a_prompt_behind_it(
    fake: Backend, browser: Browser, folder: Path
) -> None:
    """Its turn is about to begin."""
    (fake.cwd / "first").write_text(INIT + tasks(AGENT) + RESULT)
    (fake.cwd / "second").write_text(tasks() + json.dumps({"text": "the agent is done"}) + "\n")
    async with fake.serve(cli=script_cli(folder, LINES_ONCE)) as server, looking(browser, server.url) as page:
        await page.say("look")
        await turns(page, 1)
        await page.say("go on")
        await page.wait_text("#transcript > :last-child", "the agent is done")
        assert (await page.text("#state"), await page.call("isDisabled", "#stop")) == ("waiting for an answer", False)


async def test_a_question_is_told_of_behind_a_break_and_beside_a_prompt_that_is_refused(
    fake: Backend, browser: Browser, folder: Path
) -> None:
    (fake.cwd / "first").write_text(INIT + tasks(AGENT) + RESULT + may_run("tool", "Bash", {"command": "ls"}))
    cli = script_cli(folder, LINES_ONCE)
    async with fake.serve(cli=cli, journal="memory") as server, open_cutter(server.port) as cutter:
        async with looking_at_death(browser, cutter.url) as page:
            await page.say("look")
            await page.wait(ALLOW)
            assert await page.text("#state") == "asks you: may Bash run?"
            cutter.open = False
            cutter.cut()
            await page.wait_text("#link", "connection lost")
            cutter.open = True
            await page.wait_text("#link", "connected")
            assert await page.text("#state") == "asks you: may Bash run?"
            await page.evaluate(SAY_AT_ONCE.replace("TEXTS", json.dumps([HALF])))
            await page.until(f"document.getElementById('prompt').value === {json.dumps(HALF)}")
            assert await page.text("#state") == "asks you: may Bash run?"


async def test_who_watches_from_then_on_sees_what_an_agent_is_at(fake: Backend, browser: Browser, folder: Path) -> None:
    agent, ls = {"description": "look"}, {"command": "ls"}
    (fake.cwd / "first").write_text(INIT + used("agent", "Agent", agent) + tasks(AGENT) + RESULT)
    (fake.cwd / "second").write_text(used("tool", "Bash", ls, "agent"))
    cli = script_cli(folder, LINES_ONCE)
    async with fake.serve(cli=cli, journal="memory") as server, looking(browser, server.url) as first:
        await first.say("look")
        await turns(first, 1)
        async with looking(browser, server.url, "second") as second:
            await second.click("#tab-running")
            await second.click("text=Watch")
            await second.click("#offer")
            await first.wait_text("#link", "watching")
            await second.wait_text("#link", "connected")
            await second.say("go on")
            await first.wait_count(".inner .tool", 1)
            assert await first.text("#state") == "running Bash"


HIDDEN = """
Object.defineProperty(document, "hidden", { value: true });
window.addEventListener("scroll", (event) => event.stopImmediatePropagation(), { capture: true });
"""
"""As a tab that is hidden has it: no frames, and no word of what is scrolled."""


@pytest.mark.parametrize("hidden", [False, True], ids=["seen", "hidden"])
async def test_what_an_agent_asks_far_above_is_brought_into_view(fake: Backend, browser: Browser, hidden: bool) -> None:
    """And stays there."""
    ls: dict[str, object] = {"command": "ls"}
    lines = used("agent", "Agent", {"description": "look"}) + used("tool", "Bash", ls, "agent")
    text = json.dumps({"type": "assistant", "message": {"content": [{"type": "text", "text": "a line\n\n" * 100}]}})
    async with fake.serve() as server, looking(browser, server.url) as page:
        await page.say(directive("raw", text=f"{lines}{text}\n"))
        await turns(page, 1)
        if hidden:
            await page.evaluate(f"(() => {{{HIDDEN}}})()")
        await page.say(directive("raw", text=may_run("tool", "Bash", ls) + text + "\n") + directive("silent"))
        await page.wait(ALLOW)
        await page.wait_count(".answer", 2)
        await page.drawn()
        if hidden:
            await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # it draws at once
        edge = "document.querySelector({!r}).getBoundingClientRect().{}"
        edges = [
            await page.evaluate(edge.format(place, side))
            for place, side in [("#scroll", "top"), (ALLOW, "top"), (ALLOW, "bottom"), ("#scroll", "bottom")]
        ]
        assert edges == sorted(edges)


async def test_what_ran_is_what_was_allowed_when_it_is_told_again(fake: Backend, browser: Browser) -> None:
    """Behind a reload, and in the history."""
    async with fake.serve(journal="memory") as server, looking(browser, server.url) as page:
        await page.say(directive("bash", cmd="touch asked"))
        await page.click("[data-answer=edit]")
        await page.call("fill", ".editor textarea", json.dumps({"command": "echo instead"}))
        await page.click(ALLOW)
        await turns(page, 1)
        await page.call("reload")
        await turns(page, 1)
        assert (await page.texts(".tool .tool-input"), await page.texts(".tool .code code")) == (["echo instead"],) * 2
        await page.click("#end")
        await page.wait(".receipt")
        await page.click("#tab-history")
        await page.click(".run")
        await page.wait_count("#history .turn-end", 1)
        assert await page.texts("#history .tool .code code") == ["echo instead"]


async def test_a_question_of_a_tool_that_is_not_known_has_a_card_of_its_own(fake: Backend, browser: Browser) -> None:
    """Not that of another use of the same tool, whose end would take the question away."""
    ls, sleep = {"command": "ls"}, {"command": "sleep 1"}
    ended = {
        "type": "user",
        "message": {"content": [{"type": "tool_result", "tool_use_id": "known", "content": "slept"}]},
    }
    lines = used("known", "Bash", sleep) + may_run("unknown", "Bash", ls) + json.dumps(ended) + "\n"
    async with fake.serve() as server, looking(browser, server.url) as page:
        await page.say(directive("raw", text=lines) + directive("silent"))
        await page.wait_text(".tool[data-state=done]", "sleep 1")
        assert await page.texts(".tool-input") == ["sleep 1", "ls"]
        assert await page.call("isVisible", f".tool[data-state=asks] {ALLOW}")


def changed(**fields: object) -> list[object]:
    return [{**WAY, **fields}]


NO_FORM: list[object] = [
    None, {}, [], "Which way?", [None], [0], ["Which way?"], [[]], [WAY, None], [WAY, WAY], [{}],
    [{**WAY, "question": f"{number}"} for number in range(5)],
    changed(question=5), changed(question=" "), changed(question="x" * 2001), changed(header=None), changed(multiSelect=1),
    changed(options=None), changed(options=[]), changed(options=["left", "right"]), changed(options=[{"label": ""}]),
    changed(options=[{"label": f"{number}"} for number in range(300)]),
    changed(options=[{"label": "left"}, {"label": "left"}]), changed(options=[{"label": "left", "description": 5}]),
    changed(options=[{"label": "x" * 2001}]),
]  # fmt: skip


async def test_what_is_no_question_is_allowed_or_denied_as_any_tool(fake: Backend, browser: Browser) -> None:
    lines = [asking(f"r{number}", questions=given) for number, given in enumerate(NO_FORM)]
    lines.append(asking("last", questions=[WAY]).replace("AskUserQuestion", "mcp__AskUserQuestion"))
    async with fake.serve() as server, looking(browser, server.url) as page:
        await page.say(directive("raw", text="".join(lines)) + directive("text", text="asked"))
        await page.wait_count("[data-answer=allow]", len(lines))
        assert await page.texts("fieldset") == []
        assert len(await page.texts(".tool .code code")) == len(lines)


@pytest.mark.parametrize(
    ("scheme", "size"), [("light", None), ("dark", None), ("light", PHONE)], ids=["light", "dark", "phone"]
)
async def test_axe_finds_nothing_serious_in_a_question(
    fake: Backend, browser: Browser, folder: Path, scheme: str, size: dict[str, int] | None
) -> None:
    options = {"colorScheme": scheme, **({"viewport": size} if size else {})}
    long = {**WAY, "question": "which-" * 200, "options": [{"label": "left-" * 100, "description": "by-the-" * 200}]}
    async with fake.serve() as server, looking(browser, server.url, **options) as page:
        await page.say(directive("raw", text=asking(questions=[WAY, BAGS, long])) + directive("text", text="asked"))
        await page.wait_count("fieldset", 3)
        found = await page.axe()
        for one in ("label:has-text('left')", "label:has-text('tea')", "fieldset:nth-of-type(3) label"):
            await page.click(one)
        found += await page.axe()
        assert not await page.call("isDisabled", "[data-answer=answer]")
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert await page.evaluate(
            "(({ scrollWidth, clientWidth }) => scrollWidth <= clientWidth)(document.getElementById('scroll'))"
        )
    assert found == []


# -- for everybody ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "size"), [("light", None), ("dark", None), ("light", PHONE)], ids=["light", "dark", "phone"]
)
async def test_axe_finds_nothing_serious(
    fake: Backend, browser: Browser, scheme: str, size: dict[str, int] | None
) -> None:
    options = {"colorScheme": scheme, **({"viewport": size} if size else {})}
    async with fake.serve(journal="memory") as server, looking(browser, server.url, **options) as page:
        found = await page.axe()
        await page.say(
            directive("text", text=f"{MARKDOWN}\n> quoted\n\n[x] | b\n---|---\n1 | 2\n\n[link](https://example.com)")
        )
        await turns(page, 1)
        await page.say(directive("bash", cmd="touch x"))
        await page.click("[data-answer=edit]")
        found += await page.axe()
        await page.click("[data-answer=allow]")
        await turns(page, 2)
        for tab in ("running", "usage", "raw"):
            await page.click(f"#tab-{tab}")
            found += await page.axe()
        await page.click("#tab-talk")
        await page.click("#end")
        await page.wait(".receipt")
        found += await page.axe()
        await page.click("#tab-history")
        await page.click(".run")
        await page.wait("#history .answer")
        found += await page.axe()
        wide = await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert found == []
    assert wide


async def test_all_is_done_by_keys_alone(fake: Backend, browser: Browser) -> None:
    """Enter sends, Shift+Enter makes a line; a question is reached by one key; tabs go by arrows; focus is to be seen."""
    async with fake.serve(journal="memory") as server, looking(browser, server.url) as page:
        await page.call("focus", "#prompt")
        await page.press("Control+A")
        await page.call("keyboard.type", directive("bash", cmd="touch by-keys"))
        await page.press("Shift+Enter")
        await page.call("keyboard.type", "second line")
        await page.press("Enter")
        await page.wait("[data-answer=allow]")
        await page.press("Alt+a")
        assert await page.evaluate("document.activeElement.className") == "question"
        await page.press("Tab")
        assert await page.evaluate("document.activeElement.dataset.answer") == "allow"
        assert await page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        await page.press("Enter")
        await turns(page, 1)
        assert (fake.cwd / "by-keys").exists()
        assert "\nsecond line" in await page.text(".said p")
        await page.call("focus", "#tab-talk")
        await page.press("ArrowRight")
        assert await page.evaluate("document.activeElement.id") == "tab-running"
        await page.press("End")
        assert await page.call("isVisible", "#raw")
        await page.press("Home")
        await page.call("focus", "#theme")
        await page.press("Enter")
        assert await page.evaluate("document.documentElement.dataset.theme") == "light"
        await page.click("#end")
        await page.wait(".receipt")
