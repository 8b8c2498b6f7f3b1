"""What is known of a run when it is over: folded out of the CLI's lines, and written as one line of JSON.

Rule 1: no await, no clock, no file. Rule 2: a run is judged by `is_error`, never by `subtype`, and lines are parsed,
never matched by prefix. Rule 3: no line is kept, only what the result needs of it.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final

import attrs
import cattrs

from ..errors import Reason
from ..events import Outcome, Receipt
from ..figures import counted
from ..messages import compact
from ..metering import Meter
from ..stream_json import TOKENS, Spent, is_session, signs, turn_tokens
from .tasks import Item

SKIPPED = "skipped"
CANCELLED = "cancelled"
BUSY = "busy"
REFUSED = "refused"
UNREACHABLE = "unreachable"
DISCONNECTED = Reason.DISCONNECTED.value
STRAINS = (429, 529)
"""The API's statuses that say: less at once."""
_MARKS = ('"result"', '"api_retry"')
_RECEIPT = re.compile(r"(?P<cause>.*); (?P<seen>\d+) process(?:es)?, (?:(?P<left>\d+) left|unproven), (?P<ms>\d+) ms")


class Fold:
    """What one process says of itself, as far as a result needs it.

    `total_cost_usd` is that of the whole session, so a run that has `resumed` one is charged for what it added; what no
    result tells of is reckoned. Tokens and turns are those of each result, so they are added up.
    """

    def __init__(self, *, resumed: bool = False) -> None:
        self._meter = Meter(None if resumed else Spent(), None)
        self.lines: int = 0
        self.session_id: str | None = None
        self.result: str | None = None
        self.error: str | None = None
        self.is_error: bool = False
        self.api_status: int | None = None
        self.num_turns: int = 0
        self.usage: dict[str, int] = dict.fromkeys(TOKENS, 0)
        self.unconnected: bool = False
        """Whether the last complaint was that the API could not be reached."""

    def feed(self, line: str) -> bool:
        """Take a line; return whether it says that the API is overloaded."""
        self.lines += 1
        self._reckon([line.encode()])
        if self.session_id is not None and not any(mark in line for mark in _MARKS):
            return False
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            return False
        return isinstance(said, dict) and self._take(said)

    @property
    def cost_usd(self) -> float:
        """What the process has cost, in US dollars."""
        return self._meter.charged.dollars

    def finish(self) -> None:
        """Charge what no result has told of: the process is over."""
        self._meter.rest()

    def _reckon(self, lines: list[bytes]) -> None:
        self._meter.hear(lines)
        for sign in signs(lines):
            if sign.spent is not None:
                self._meter.result(sign)

    def _take(self, said: dict[str, Any]) -> bool:
        if self.session_id is None and is_session(session := said.get("session_id")):
            self.session_id = session
        if said.get("type") == "result":
            self._take_result(said)
            return self.api_status in STRAINS
        if said.get("type") == "system" and said.get("subtype") == "api_retry":
            self.unconnected = said.get("error_status") is None
            return said.get("error_status") in STRAINS
        return False

    def _take_result(self, said: dict[str, Any]) -> None:
        self.is_error = bool(said.get("is_error"))
        text, texts = said.get("result"), said.get("errors")
        self.result = text if isinstance(text, str) else None
        first = texts[0] if isinstance(texts, list) and texts else said.get("subtype")
        self.error = str(self.result or first or "an error without words")[:500] if self.is_error else None
        self.api_status = status if isinstance(status := said.get("api_error_status"), int) else None
        self.num_turns += _whole(said.get("num_turns"))
        for name, tokens in zip(TOKENS, turn_tokens(said), strict=True):
            self.usage[name] += tokens


def _whole(value: object) -> int:
    """Return a whole number that a line gives, 0 where it is none that can be counted."""
    return int(counted(value)) if isinstance(value, int) else 0


@attrs.frozen(kw_only=True)
class Finish:
    """How one attempt ended, by whichever door. `retry_after` is in seconds, where a server said so."""

    reason: str
    exit_status: int | None = None
    error: str | None = None
    receipt: Receipt | None = None
    retry_after: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the run came to a good end and nothing of it is known to be left."""
        return self.reason == Reason.EXIT and self.error is None and not (self.receipt and self.receipt.survivors)


def from_outcome(outcome: Outcome) -> Finish:
    """Return how an embedded run ended."""
    error = outcome.error
    if error is None and outcome.receipt.survivors:
        error = "the process tree could not be proven gone"
    return Finish(reason=outcome.reason.value, exit_status=outcome.exit_status, error=error, receipt=outcome.receipt)


_CAUSES = {"timed out": Reason.DEADLINE, "ended after result": Reason.EXIT, "not started": Reason.SPAWN_FAILED}
_CODES = {1008: REFUSED, 1009: REFUSED, 1012: Reason.DRAINED.value, 1013: BUSY, 1005: DISCONNECTED, 1006: DISCONNECTED}


def from_close(code: int, reason: str, error: str | None, retry_after: float | None = None) -> Finish:
    """Return how a server's run ended, out of its close code and reason; a server does not tell the containment."""
    told = _RECEIPT.fullmatch(reason)
    if told is None:
        named = _CODES.get(code, Reason.EXIT.value if code == 1000 else Reason.FAILED.value)
        return Finish(reason=named, error=error or (None if code == 1000 else reason), retry_after=retry_after)
    cause, left = told["cause"], told["left"]
    receipt = Receipt(int(told["seen"]), 0, int(left) if left else None, float(told["ms"]), "")
    status = int(cause[5:]) if re.fullmatch(r"exit \d+", cause) else None
    named = Reason.EXIT if code == 1000 else Reason.FAILED
    known = _CAUSES.get(cause) or next((one for one in Reason if one.value == cause), named)
    return Finish(reason=known.value, exit_status=status, error=error, receipt=receipt, retry_after=retry_after)


@attrs.define(kw_only=True)
class Record:
    """One run in the making: its attempts and what they came to. Cost and tokens are those of all attempts."""

    item: Item
    attempts: int = 0
    fold: Fold = attrs.Factory(Fold)
    seconds: float | None = None
    first_line_seconds: float | None = None
    artifacts: str | None = None
    spent_usd: float = 0.0
    used: dict[str, int] = attrs.Factory(lambda: dict.fromkeys(TOKENS, 0))

    def begin(self) -> Fold:
        """Count one more attempt and return what is to hear its lines."""
        self.attempts += 1
        self.first_line_seconds = self.seconds = None
        self.fold = Fold(resumed=self.item.prompt.options.resume is not None)
        return self.fold

    def settle(self) -> None:
        """Add what the attempt that is over has cost."""
        self.fold.finish()
        self.spent_usd += self.fold.cost_usd
        for name in TOKENS:
            self.used[name] += self.fold.usage[name]

    def result(self, finish: Finish) -> Result:
        """Return the result."""
        fold, failed = self.fold, finish.reason == Reason.EXIT and self.fold.is_error
        return Result(
            id=self.item.task.id, task=self.item.task.number, repeat=self.item.repeat, model=self.item.model,
            meta=self.item.prompt.meta, ok=finish.ok and not fold.is_error,
            reason=Reason.FAILED.value if failed else finish.reason, exit_status=finish.exit_status,
            error=finish.error or fold.error, result=fold.result, session_id=fold.session_id,
            num_turns=fold.num_turns, usage=self.used, cost_usd=self.spent_usd, seconds=self.seconds,
            first_line_seconds=self.first_line_seconds, attempts=self.attempts, receipt=finish.receipt,
            artifacts=self.artifacts,
        )  # fmt: skip


@attrs.frozen(kw_only=True)
class Result:
    """One line of the results. Seconds are those of the last attempt; a run that never started has none."""

    id: str
    task: int
    repeat: int
    model: str | None
    meta: str
    ok: bool
    reason: str
    exit_status: int | None
    error: str | None
    result: str | None
    session_id: str | None
    num_turns: int
    usage: dict[str, int]
    cost_usd: float
    seconds: float | None
    first_line_seconds: float | None
    attempts: int
    receipt: Receipt | None
    artifacts: str | None = None

    def render(self) -> bytes:
        """Return it as a line of JSON."""
        said = attrs.asdict(self)
        for name in ("seconds", "first_line_seconds"):
            said[name] = None if said[name] is None else round(said[name], 4)
        if self.receipt is not None:
            said["receipt"] = {**said["receipt"], "ms": round(self.receipt.ms, 1)}
            if not self.receipt.containment:
                said["receipt"] |= {"killed": None, "containment": None}
        said["cost_usd"] = round(self.cost_usd, 10)
        return compact(said).encode("utf-8", "replace") + b"\n"


def parse_result(line: bytes) -> Result:
    """Return the result that a line tells. Raises ValueError."""
    try:
        said = json.loads(line)
        if receipt := said["receipt"]:
            said["receipt"] = {**receipt, "killed": receipt["killed"] or 0, "containment": receipt["containment"] or ""}
        result = _CONVERTER.structure(said, Result)
    except (cattrs.BaseValidationError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if not result.usage.keys() >= set(TOKENS):
        raise ValueError(f"usage must have {', '.join(TOKENS)}")
    if not math.isfinite(result.cost_usd):
        raise ValueError(f"cost_usd must be a number, not {result.cost_usd}")
    return result


_CONVERTER: Final = cattrs.Converter(forbid_extra_keys=True)
