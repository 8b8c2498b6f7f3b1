"""Say what the model answers: its events, its messages, and what is left of one that was broken off.

Rule: nothing here runs a tool or decides what comes next; what interrupts goes on as it is, to who ends the turn.
"""

from __future__ import annotations

import time

from ..model import Answer, Block, Ending, Json, new_id
from .lines import CUT_USAGE, NO_USAGE, WHOLE_USAGE
from .wire import LIFE_SECONDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .session import Session

INTERRUPTED = "[Request interrupted by user]"
SILENCE_SECONDS = 300.0
"""How long the real CLI waits for a stream that has begun (measured)."""
RESET_SECONDS = 0.2


class Speech:
    """The messages of one turn."""

    def __init__(self, session: Session) -> None:
        self.text: str = ""
        self.stop: str | None = "end_turn"
        self.tokens: tuple[int, int] = (0, 0)
        self.begun: list[str] = []
        self._session = session
        self._message: str = ""
        self._said: list[str] = []
        self._open: int | None = None
        """The block being said."""

    def say(self, answer: Answer) -> bool:
        """Stream an answer; tell whether it came to its end. One that did not is void."""
        if not answer.blocks:
            self._session.wire.wait(LIFE_SECONDS)
        self._begin()
        for index, block in enumerate(answer.blocks):
            self._say_block(index, block, answer.pause)
            if answer.whole:
                self._end_block(block)
        if answer.whole:
            self._end(answer)
            return True
        self._session.wire.wait({Ending.SILENCE: SILENCE_SECONDS, Ending.RESET: RESET_SECONDS}.get(answer.ending, 0.0))
        self.event("content_block_stop", index=self._open)
        self._abandon()
        return False

    def say_whole(self, answer: Answer) -> None:
        """Say an answer that came in one piece, asked for when a stream had broken."""
        self._message = new_id("msg")
        head = self._head(answer.blocks[0].whole)
        usage = {**head["usage"], **WHOLE_USAGE, "output_tokens": answer.tokens}
        self.assistant({**head, "stop_reason": answer.stop, "usage": usage})
        self._finish(answer)

    def abort(self) -> None:
        """Say what an interrupted message leaves: what was said of it, and an end to its events."""
        said = "".join(self._said)
        if said and self._open is not None:
            self.assistant(self._head({"type": "text", "text": said}), aborted=True)
        self.user({"type": "text", "text": INTERRUPTED})
        if self._open is not None:
            self._spend(len(said) // 3)
            usage = {**NO_USAGE, **CUT_USAGE, "input_tokens": 10, "output_tokens": 1}
            delta = {"container": None, "stop_details": None, "stop_reason": None, "stop_sequence": None}
            self.event("content_block_stop", index=self._open)
            self.event("message_delta", context_management=None, delta=delta, usage=usage)
            self._open += 1
            self._abandon()

    def event(self, kind: str, *, extra: Json | None = None, **fields: object) -> None:
        """Say one event of the API, if such are asked for."""
        if self._session.options.partial:
            more = {"parent_tool_use_id": None, "api_message_id": self._message, **(extra or {})}
            self._session.emit("stream_event", event={"type": kind, **fields}, **more)

    def assistant(self, message: Json, **fields: object) -> None:
        """Say one content block, as an assistant line."""
        more = {"parent_tool_use_id": None, "timestamp": timestamp(), "request_id": "req_stub", **fields}
        self._session.emit("assistant", message={**message, "context_management": None}, **more)

    def user(self, block: Json, **fields: object) -> None:
        """Say what the model is told next."""
        message = {"role": "user", "content": [block]}
        self._session.emit("user", message=message, parent_tool_use_id=None, timestamp=timestamp(), **fields)

    def _begin(self) -> None:
        self._message = new_id("msg")
        self.begun.append(self._message)
        self.event("message_start", message=self._head(), extra={"ttft_ms": 1, "thinking_display": "updates"})

    def _head(self, *content: Json) -> Json:
        return {
            "id": self._message, "type": "message", "role": "assistant", "model": self._session.model,
            "content": content, "stop_reason": None, "stop_sequence": None,
            "usage": {**NO_USAGE, "input_tokens": 10, "output_tokens": 1},
        }  # fmt: skip

    def _say_block(self, index: int, block: Block, pause: float) -> None:
        self._open, self._said = index, []
        self.event("content_block_start", index=index, content_block=block.start, extra=_shown(block.start["type"]))
        for delta in block.deltas:
            if delta["type"] == "thinking_delta":
                self._session.emit("system", "thinking_tokens", estimated_tokens=4, estimated_tokens_delta=4)
            self.event("content_block_delta", index=index, delta=delta, extra=_shown(delta["type"]))
            self._said.append(delta.get("text", ""))
            self._session.wire.wait(pause)

    def _end_block(self, block: Block) -> None:
        shown = _shown(block.whole["type"])
        self.assistant(self._head(block.whole), **shown, **({"thinking_duration_ms": 1} if shown else {}))
        self.event("content_block_stop", index=self._open)
        self._open = None

    def _end(self, answer: Answer) -> None:
        delta = {"stop_reason": answer.stop, "stop_sequence": None}
        self.event("message_delta", delta=delta, usage={"output_tokens": answer.tokens})
        self.event("message_stop")
        self._finish(answer)

    def _finish(self, answer: Answer) -> None:
        self._spend(answer.tokens)
        self.stop = answer.stop
        self.text = str(answer.blocks[-1].whole.get("text", ""))

    def _abandon(self) -> None:
        void = {"api_message_id": self._message, "from_block_index": self._open}
        self.event("message_stop", extra={"abandoned_blocks": void})
        self._open = None

    def _spend(self, tokens: int) -> None:
        spent, model = self._session.spent, self._session.model
        before = spent.get(model, (0, 0))
        spent[model] = (before[0] + 10, before[1] + tokens)
        self.tokens = (self.tokens[0] + 10, self.tokens[1] + tokens)


def _shown(kind: str) -> Json:
    return {"thinking_display": "updates"} if kind in ("thinking", "thinking_delta") else {}


def timestamp() -> str:
    """Return the time as the CLI writes it."""
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03}Z"
