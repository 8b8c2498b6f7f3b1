"""Run one turn, from its init line to its result.

Rule: every turn that was not ended by `Ended` or `FatalError` says exactly one result, and only `_result` says it.
"""

from __future__ import annotations

import json
import os
import time

from ..model import ERROR_TYPES, Answer, Directive, Ending, Json, find_directives
from .lines import (
    FAST_MODE,
    NO_USAGE,
    SUBAGENT_STATS,
    WHOLE_USAGE,
    cost_of,
    init_fields,
    model_usage,
    synthetic_message,
)
from .speech import Speech, timestamp
from .tools import ToolsAborted, use_tool
from .tricks import TRICKS
from .wire import Interrupted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from .session import Session

RETRY_SECONDS = (0.614, 1.206, 2.4, 4.5, 8.6, 18.0, 35.0)
AUTHENTICATE = "Failed to authenticate. API Error: {status} {message}"
MODEL = "There's an issue with the selected model ({model}). It may not exist or you may not have access to it. "
GATEWAY = " If it persists, check your inference gateway ({gateway})."
AGAIN = (
    "API Error: {status} {message}. This is a server-side issue, usually temporary — try again in a moment." + GATEWAY
)
FULL = "Repeated 529 Overloaded errors. The API is at capacity — this is usually temporary. Try again in a moment."
ERRORS = {
    401: ("authentication_failed", 99, AUTHENTICATE),
    403: ("authentication_failed", 0, AUTHENTICATE),
    404: ("model_not_found", 0, MODEL + "Run --model to pick a different model."),
    429: ("rate_limit", 99, "API Error: Request rejected (429) · {message}"),
    500: ("server_error", 99, AGAIN),
    503: ("server_error", 99, AGAIN),
    529: ("server_error", 2, f"API Error: {FULL}{GATEWAY}"),
}
"""What the CLI calls each error of the API, how often it tries again at most, and what it says in the end."""
OTHER_ERROR = ("unknown", 0, "API Error: {status} {message}")


class TurnOver(Exception):
    """The turn ends early; `fields` are what its result says of that."""

    def __init__(self, subtype: str, reason: str, **fields: object) -> None:
        super().__init__(subtype)
        self.fields: Json = {"subtype": subtype, "terminal_reason": reason, "is_error": True, **fields}


class Turn:
    """One turn; what it needs of the process is in its session."""

    def __init__(self, session: Session, prompt: str) -> None:
        self.session: Session = session
        self.speech: Speech = Speech(session)
        self.denials: list[Json] = []
        self.structured: Json = {}
        self._prompt = prompt
        self._started = time.monotonic()
        self._rounds = 0

    def run(self, **origin: object) -> None:
        """Perform the prompt's directives, and say how it ended."""
        directives = find_directives(self._prompt) or [self.session.last]
        if any(directive.fields.get("ignore_term") for directive in directives):
            self.session.wire.stubborn = True
        if directives[0].fields.get("do") != "silent" and directives[0].fields.get("init", True):
            self._open()
        try:
            for directive in directives:
                self._perform(directive)
            self._result(self._success(), **origin)
        except Interrupted:
            self.speech.abort()
            self._result(self._aborted("aborted_streaming"))
        except ToolsAborted:
            self._result(self._aborted("aborted_tools", rounds=2))
        except TurnOver as over:
            self._result(over.fields)

    def _open(self) -> None:
        session = self.session
        session.emit("system", "init", **init_fields(session))
        if session.options.replay and self._prompt:
            message = {"role": "user", "content": self._prompt}
            session.emit("user", message=message, parent_tool_use_id=None, timestamp=timestamp(), isReplay=True)

    def _perform(self, directive: Directive) -> None:
        try:
            trick = TRICKS.get(directive.get("do", str, "text"))
            if trick:
                trick(self.session, directive)
            else:
                self._converse(directive)
        except ValueError as error:
            self._fail(400, str(error))

    # The model's side

    def _converse(self, directive: Directive) -> None:
        """Ask the model, and use the tools that it wants, until it wants none."""
        self.session.last = directive
        while (answer := self._ask(directive)).stop == "tool_use":
            for use in [block.whole for block in answer.blocks if block.whole["type"] == "tool_use"]:
                directive.results += 1
                use_tool(self, use)
            self._rounds += 1
            if self.structured:
                return
            self._check_limits()
        self._check_limits()

    def _ask(self, directive: Directive) -> Answer:
        """Get one answer said, after as many tries as the real CLI makes."""
        directive.streamed = True
        if self.session.options.partial:
            self.session.emit("system", "status", status="requesting")
        attempt = 1
        while (answer := self.session.mind.answer(directive)).status != 200 or not self.speech.say(answer):
            if answer.status == 200 and (answer.ending is not Ending.RESET or attempt > self.session.options.retries):
                directive.streamed = False
                answer = self.session.mind.answer(directive)
                self.speech.say_whole(answer)
                return answer
            self._retry(answer, attempt)
            attempt += 1
        return answer

    def _retry(self, answer: Answer, attempt: int) -> None:
        """Say that it is tried again, and wait; or fail for good."""
        name, most, _ = ERRORS.get(answer.status, OTHER_ERROR)
        if answer.error and (attempt > min(self.session.options.retries, most) or "x-should-retry" in answer.headers):
            self._fail(answer.status, answer.error["error"]["message"])
        delay = float(answer.headers.get("retry-after", RETRY_SECONDS[min(attempt, len(RETRY_SECONDS)) - 1]))
        fields = {"attempt": attempt, "max_retries": self.session.options.retries, "retry_delay_ms": int(delay * 1000)}
        status = answer.status if answer.error else None
        error = "overloaded" if status == 529 else name
        self.session.emit("system", "api_retry", **fields, error_status=status, error=error)
        self.session.wire.wait(delay)

    def _fail(self, status: int, message: str) -> NoReturn:
        name, _, text = ERRORS.get(status, OTHER_ERROR)
        gateway = os.environ.get("ANTHROPIC_BASE_URL", "//127.0.0.1").partition("//")[2].partition("/")[0]
        text = text.format(status=status, message=message, model=self.session.model, gateway=gateway)
        fields = {"api_error_status": status, "api_error_type": ERROR_TYPES[status]}
        self.speech.assistant(synthetic_message(text), error=name, is_api_error_message=True, **fields)
        self.speech.stop = "stop_sequence"
        raise TurnOver("success", "api_error", result=text, **fields)

    def _check_limits(self) -> None:
        options = self.session.options
        if self.speech.stop == "tool_use" and 0 < options.max_turns <= self._rounds:
            error = f"Reached maximum number of turns ({options.max_turns})"
            raise TurnOver("error_max_turns", "max_turns", errors=[error])
        if options.max_budget is not None and self._cost() > options.max_budget:
            error = f"Reached maximum budget (${options.max_budget:g})"
            raise TurnOver("error_max_budget_usd", "budget_exhausted", errors=[error], usage_known=False)

    # The result

    def _cost(self) -> float:
        return sum(map(cost_of, self.session.spent.values()))

    def _success(self) -> Json:
        times = dict.fromkeys(("ttft_ms", "ttft_stream_ms", "time_to_request_ms", "first_content_frame_ms"), 1)
        fields = {"subtype": "success", "terminal_reason": "completed", "is_error": False, "api_error_status": None}
        if not self.structured:
            return {**fields, **times, "result": self.speech.text}
        text = json.dumps(self.structured, separators=(",", ":"))
        return {**fields, **times, "result": text, "structured_output": self.structured}

    def _aborted(self, reason: str, rounds: int = 1) -> Json:
        self._rounds += rounds
        known = reason == "aborted_tools"
        self.speech.stop = "tool_use" if known else None
        stop = self.speech.stop or "null"
        errors = [f"[ede_diagnostic] result_type=user last_content_type=n/a stop_reason={stop}"]
        return TurnOver("error_during_execution", reason, errors=errors, usage_known=known).fields

    def _result(self, fields: Json, **origin: object) -> None:
        session, known = self.session, fields.pop("usage_known", True)
        milliseconds = int((time.monotonic() - self._started) * 1000)
        tokens = self.speech.tokens if known else (0, 0)
        recent = {session.model: model_usage(session.model, self.speech.tokens)} if any(self.speech.tokens) else {}
        begun = {"begun_message_ids": self.speech.begun} if session.options.partial else {}
        session.failed = bool(fields["is_error"])
        session.emit(
            "result",
            duration_ms=milliseconds,
            duration_api_ms=milliseconds if known else 0,
            stop_reason=self.speech.stop,
            num_turns=1 + self._rounds,
            total_cost_usd=self._cost(),
            usage={**NO_USAGE, **WHOLE_USAGE, "input_tokens": tokens[0], "output_tokens": tokens[1]},
            modelUsage={model: model_usage(model, spent) for model, spent in session.spent.items()},
            model_usage_since_last_result=recent,
            permission_denials=self.denials,
            subagent_stats=SUBAGENT_STATS,
            safety_stops=0,
            queued_turn_count=0,
            result_index=session.results,
            **{**FAST_MODE, **begun, **fields, **origin},
        )
        session.results += 1
