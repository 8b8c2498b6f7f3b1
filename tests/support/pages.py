"""A real Chromium, started once, that tests lead step by step: see `node/drive.cjs`."""

from __future__ import annotations

import json
import select
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import attrs
import trio
from browser import NODE, node_environ

ANSWER_SECONDS = 60
"""More than `COMMAND_MS` of `drive.cjs`, so that it is the one to say what did not come."""


class BrowserError(Exception):
    """What the browser could not do; the page's own errors stand behind it."""


@attrs.frozen
class Browser:
    """The program that leads Chromium."""

    process: subprocess.Popen[bytes]

    async def ask(self, **command: object) -> Any:
        """Give one command; return its value. Raises `BrowserError`."""
        answer = await trio.to_thread.run_sync(self._ask, json.dumps(command).encode() + b"\n")
        if "error" in answer:
            raise BrowserError(answer)
        return answer["value"]

    def _ask(self, line: bytes) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(line)
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], ANSWER_SECONDS)[0]:
            self.process.kill()
            raise BrowserError(f"no answer within {ANSWER_SECONDS} s to {line.decode()}")
        answer = self.process.stdout.readline()
        assert answer, "the browser's program has ended"
        return json.loads(answer)

    @asynccontextmanager
    async def open(
        self, url: str, name: str = "page", *, beside: Page | None = None, late: str = "", **options: object
    ) -> AsyncIterator[Page]:
        """Open a page in a context of its own, or `beside` another in that one's.

        The first request for `late` is cut off, another waits a second.
        """
        shared = {**({"with": beside.name} if beside else {}), **({"late": late} if late else {})}
        await self.ask(open=name, url=url, options=options, **shared)
        try:
            yield Page(self, name)
        finally:
            with trio.CancelScope(shield=True):
                await self.ask(close=name)


@attrs.frozen
class Page:
    """One page, by playwright's words."""

    browser: Browser
    name: str

    async def call(self, method: str, *given: object) -> Any:
        """Call a method of the page."""
        return await self.browser.ask(page=self.name, call=method, **{"with": given})

    async def wait(self, selector: str) -> None:
        """Wait until something is to be seen."""
        await self.call("waitForSelector", selector)

    async def wait_text(self, selector: str, text: str) -> None:
        """Wait until an element has some words."""
        await self.until(
            f"(document.querySelector({json.dumps(selector)})?.innerText ?? '').includes({json.dumps(text)})"
        )

    async def wait_count(self, selector: str, count: int) -> None:
        """Wait until there are so many."""
        await self.until(f"document.querySelectorAll({json.dumps(selector)}).length === {count}")

    async def until(self, condition: str) -> None:
        """Wait until an expression is true."""
        await self.browser.ask(until=self.name, js=condition)

    async def drawn(self) -> None:
        """Wait until what has come is drawn: an answer is, at the next frame."""
        await self.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done())))")

    async def click(self, selector: str) -> None:
        """Click."""
        await self.call("click", selector)

    async def press(self, key: str) -> None:
        """Press a key."""
        await self.call("keyboard.press", key)

    async def text(self, selector: str) -> str:
        """Return the text of the first that matches, as it is to be seen."""
        return await self.call("innerText", selector)

    async def texts(self, selector: str) -> list[str]:
        """Return the texts of all that match."""
        return await self.evaluate(
            f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => one.textContent.trim())"
        )

    async def evaluate(self, expression: str) -> Any:
        """Return what an expression is in the page."""
        return await self.call("evaluate", expression)

    async def say(self, prompt: str) -> None:
        """Type a prompt and send it by Enter."""
        await self.call("fill", "#prompt", prompt)
        await self.call("press", "#prompt", "Enter")

    async def live(self, kind: str) -> int:
        """Return how many objects of a class there are, also of those that are shown no more."""
        return await self.browser.ask(live=self.name, of=kind)

    async def axe(self) -> list[str]:
        """Return what axe-core finds that is serious or critical."""
        return await self.browser.ask(axe=self.name)

    async def seen(self) -> dict[str, list[str]]:
        """Return errors, requests and violations of the policy so far."""
        return await self.browser.ask(seen=self.name)


@contextmanager
def open_browser(modules: Path, home: Path) -> Iterator[Browser]:
    """Start Chromium; it ends with the context."""
    chromium = shutil.which("chromium")
    assert chromium
    command = ["node", str(NODE / "drive.cjs"), chromium]
    with subprocess.Popen(
        command, env=node_environ(home, modules), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield Browser(process)
            assert process.stdin
            process.stdin.close()
            process.wait(timeout=20)
        finally:
            process.kill()
