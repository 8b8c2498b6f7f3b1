"""The door to a server, in a module of its own: the client library takes a while to import, and few batches need it.

It runs one attempt and says how it ended. It must never try again, and never judge what the CLI said.
"""

from __future__ import annotations

from ..client import Answer, ConnectFailed, Ended, ask
from ..figures import counted
from ..messages import Prompt
from .doors import Hear
from .results import REFUSED, UNREACHABLE, Finish, from_close
from .retries import STATUSES
from .tasks import options_of


class ServerDoor:
    """Runs prompts at a server."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self._url = url
        self._key = key
        self.refusal: tuple[str, int | None] | None = None
        """Why the server was not reached, or let nobody in, for the first time, and the HTTP status if it said one."""

    async def run(self, prompt: Prompt, hear: Hear) -> Finish:
        """Ask the server; leaving early ends the run there."""
        options = options_of(prompt.options)
        try:
            async with ask(prompt.prompt, meta=prompt.meta, url=self._url, key=self._key, **options) as answer:
                async for line in answer:
                    hear(line)
        except ConnectFailed as error:
            self.refusal = self.refusal or (str(error), error.status)
            later = error.status is None or error.status in STATUSES
            return Finish(reason=UNREACHABLE if later else REFUSED, error=str(error))
        ended = answer.ended or Ended(1006, "the connection broke")
        return from_close(ended.code, ended.reason, ended.error, _retry_after(answer))

    async def stop(self) -> None:
        """Nothing can be said to a server but by leaving."""


def _retry_after(answer: Answer) -> float | None:
    """Return the seconds that a full server asked for, None where it named none that can be waited."""
    return counted(answer.notes[-1].get("retry_after")) or None if answer.notes else None
