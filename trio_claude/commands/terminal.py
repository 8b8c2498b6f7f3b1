"""What is typed in a terminal, and Markdown that is shown there as it comes."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from bisect import bisect_right
from collections import deque
from typing import Final

import trio
from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown

from .words import clean

AHEAD_LIMIT = 1000
"""Lines typed ahead of a question that are kept."""
LINE_LIMIT: Final = 4095
"""Bytes of a typed line that a terminal hands on; what is behind them is gone without a word."""
PAUSE: Final = 0.1
"""Seconds between two drawings of what still comes."""
REST: Final = 4
"""How many times the time of a drawing must pass before the next one."""
MARGIN: Final = 4
"""Lines of a screen that are left free: code is drawn with a margin."""
_FENCE = re.compile(r"^\s{0,3}(```|~~~)", re.MULTILINE)


class Keyboard:
    """Lines as they are typed. A thread reads them, so that waiting for one can be cancelled and loses none."""

    def __init__(self) -> None:
        self._put, self._typed = trio.open_memory_channel[str](AHEAD_LIMIT)
        self._ahead: deque[str] = deque()
        self._reads_line = False
        self._question: trio.MemorySendChannel[str | None] | None = None
        """Where an answer is waited for, while somebody waits for a line too."""
        self._token = trio.lowlevel.current_trio_token()
        threading.Thread(target=self._read, name="keyboard", daemon=True).start()

    async def line(self) -> str | None:
        """Return the next line, None at the end of input."""
        if self._ahead:
            await trio.lowlevel.checkpoint()
            return self._ahead.popleft()
        self._reads_line = True
        try:
            typed = await self._receive()
            while self._question:
                question, self._question = self._question, None
                question.send_nowait(typed)
                typed = await self._receive()
        finally:
            self._reads_line = False
        return typed

    async def answer(self) -> str | None:
        """Return the next line that is typed from now on: what was typed before is no answer to a question.

        Who waits for a line meanwhile goes on waiting.
        """
        while True:
            try:
                self._ahead.append(self._typed.receive_nowait())
            except trio.WouldBlock:
                break
            except trio.EndOfChannel:
                return None
        if not self._reads_line:
            return await self._receive()
        self._question, answers = trio.open_memory_channel[str | None](1)
        try:
            return await answers.receive()
        finally:
            self._question = None

    async def _receive(self) -> str | None:
        try:
            return await self._typed.receive()
        except trio.EndOfChannel:
            return None

    def _read(self) -> None:
        with contextlib.suppress(
            trio.RunFinishedError, trio.Cancelled, trio.BrokenResourceError
        ):  # the program is over
            with contextlib.suppress(OSError):  # what can't be read, as a terminal that is gone, has come to its end
                typed = open(sys.stdin.fileno(), encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115 - it stays open
                for line in typed:
                    trio.from_thread.run(self._put.send, line.rstrip("\n"), trio_token=self._token)
            trio.from_thread.run_sync(self._put.close, trio_token=self._token)


def may_be_cut(typed: str) -> bool:
    """Return whether a terminal may have cut what was typed."""
    return sys.stdin.isatty() and len(typed.encode(errors="replace")) >= LINE_LIMIT


class MarkdownStream:
    """Markdown that is shown as it comes: what is whole stays, the end of the rest is drawn anew as it grows."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = ""
        self._drawn = ""
        self._live: Live | None = None

    def feed(self, piece: str) -> None:
        """Take a piece of text."""
        self._text += clean(piece)
        if "\n" not in piece:
            return
        whole, self._text = _whole_part(self._text)
        if whole.strip():
            self._stop()
            self._console.print(Markdown(whole))

    def finish(self) -> None:
        """Show what is left for good."""
        self._stop()
        if self._text.strip():
            self._console.print(Markdown(self._text))
        self._text = ""

    def drop(self) -> None:
        """Forget what is left: it is void."""
        self._stop()
        self._text = ""

    async def keep_drawing(self) -> None:
        """Draw what has come, as often as that costs little, until cancelled."""
        while True:
            began = trio.current_time()
            self.draw()
            await trio.sleep(max(PAUSE, REST * (trio.current_time() - began)))

    def draw(self) -> None:
        """Draw the end of what is not whole yet, where a terminal shows it."""
        if not self._console.is_terminal or self._text == self._drawn or not self._text.strip():
            return
        self._drawn = self._text
        if self._live is None:
            self._live = Live(console=self._console, transient=True, auto_refresh=False, vertical_overflow="crop")
            self._live.start()
        self._live.update(Markdown(_end_of(self._text, self._console.height - MARGIN)), refresh=True)

    def _stop(self) -> None:
        self._drawn = ""
        if self._live:
            self._live.stop()
            self._live = None


def _whole_part(text: str) -> tuple[str, str]:
    """Return text up to the last blank line that is not inside a code fence, and the rest."""
    fences = [fence.end() for fence in _FENCE.finditer(text)]
    at = len(text)
    while (at := text.rfind("\n\n", 0, at)) >= 0:
        if bisect_right(fences, at) % 2 == 0:
            return text[: at + 2], text[at + 2 :]
    return "", text


def _end_of(text: str, lines: int) -> str:
    """Return the last lines of a text, behind the fence of the code that they are in."""
    before, *rest = text.rsplit("\n", max(lines, 1))
    if len(rest) < lines:
        return text
    fences = list(_FENCE.finditer(before))
    opening = before[fences[-1].start(1) :].partition("\n")[0] if len(fences) % 2 else ""
    return "\n".join([opening, *rest] if opening else rest)
