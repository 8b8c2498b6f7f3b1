"""What is typed in a terminal, and Markdown that is shown there as it comes."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections import deque

import trio
from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown

from .words import clean

AHEAD_LIMIT = 1000
"""Lines typed ahead of a question that are kept."""
_FENCE = re.compile(r"^\s{0,3}(```|~~~)", re.MULTILINE)


class Keyboard:
    """Lines as they are typed. A thread reads them, so that waiting for one can be cancelled and loses none."""

    def __init__(self) -> None:
        self._put, self._typed = trio.open_memory_channel[str](AHEAD_LIMIT)
        self._ahead: deque[str] = deque()
        self._token = trio.lowlevel.current_trio_token()
        threading.Thread(target=self._read, name="keyboard", daemon=True).start()

    async def line(self) -> str | None:
        """Return the next line, None at the end of input."""
        if self._ahead:
            await trio.lowlevel.checkpoint()
            return self._ahead.popleft()
        try:
            return await self._typed.receive()
        except trio.EndOfChannel:
            return None

    async def answer(self) -> str | None:
        """Return the next line that is typed from now on: what was typed before is no answer to a question."""
        while True:
            try:
                self._ahead.append(self._typed.receive_nowait())
            except trio.WouldBlock:
                break
            except trio.EndOfChannel:
                return None
        try:
            return await self._typed.receive()
        except trio.EndOfChannel:
            return None

    def _read(self) -> None:
        with contextlib.suppress(
            trio.RunFinishedError, trio.Cancelled, trio.BrokenResourceError
        ):  # the program is over
            for line in open(sys.stdin.fileno(), encoding="utf-8", errors="replace", closefd=False):  # noqa: SIM115
                trio.from_thread.run(self._put.send, line.rstrip("\n"), trio_token=self._token)
            trio.from_thread.run_sync(self._put.close, trio_token=self._token)


class MarkdownStream:
    """Markdown that is shown as it comes: what is whole stays, the last paragraph is drawn anew with each piece."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = ""
        self._live: Live | None = None

    def feed(self, piece: str) -> None:
        """Take a piece of text."""
        self._text += clean(piece)
        whole, self._text = _whole_part(self._text)
        if whole.strip():
            self._stop()
            self._console.print(Markdown(whole))
        if self._text.strip():
            self._draw()

    def finish(self) -> None:
        """Show what is left for good."""
        self._stop()
        if self._text.strip():
            self._console.print(Markdown(self._text))
        self._text = ""

    def _draw(self) -> None:
        if self._live is None:
            self._live = Live(console=self._console, transient=True, auto_refresh=False, vertical_overflow="crop")
            self._live.start()
        self._live.update(Markdown(self._text), refresh=self._console.is_terminal)

    def _stop(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None


def _whole_part(text: str) -> tuple[str, str]:
    """Return text up to the last blank line that is not inside a code fence, and the rest."""
    at = len(text)
    while (at := text.rfind("\n\n", 0, at)) >= 0:
        if len(_FENCE.findall(text, 0, at)) % 2 == 0:
            return text[: at + 2], text[at + 2 :]
    return "", text
