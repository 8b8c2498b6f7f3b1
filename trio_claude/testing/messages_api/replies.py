"""Turn an answer into what HTTP carries: one reply, or a stream of events.

Rule: nothing here sends or waits; what is made here is a value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any

import attrs
import h11

from ..model import ERROR_TYPES, Answer, DirectiveError, Ending, Model, error_body, new_id
from .asked import ApiRequest, find_directive


@attrs.frozen
class Reply:
    """One HTTP response sent at once."""

    status: int
    body: dict[str, Any]
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str])


@attrs.frozen
class EventStream:
    """Server-sent events; the status line goes out with the first of them."""

    events: Iterable[dict[str, Any]]
    pause: float = 0.0
    ending: Ending = Ending.COMPLETE


def plan(model: Model, request: ApiRequest) -> Reply | EventStream:
    """Return what to answer to a request."""
    path = request.path.partition("?")[0]
    if request.method == "HEAD":
        return Reply(200, {})
    if request.method != "POST" or path not in ("/v1/messages", "/v1/messages/count_tokens"):
        return error_reply(404, f"no such path: {request.method} {path:.80}")
    if not request.body:
        return error_reply(400, "the body must be a JSON object")
    if path.endswith("/count_tokens"):
        return Reply(200, {"input_tokens": 42})
    try:
        directive = find_directive(request.body)
        answer = model.answer(directive)
    except DirectiveError as error:
        return error_reply(400, str(error))
    return _as_http(answer, _message_head(request.model), stream=directive.streamed)


def error_reply(status: int, message: str, headers: Mapping[str, str] | None = None) -> Reply:
    """Return an error as the API words it."""
    return Reply(status, error_body(ERROR_TYPES.get(status, "api_error"), message), headers or {})


def response(status: int, headers: Mapping[str, str]) -> h11.Response:
    """Return the head of a response."""
    reason = "Overloaded" if status == 529 else HTTPStatus(status).phrase
    named = [*headers.items(), ("request-id", "req_stub")]
    return h11.Response(status_code=status, reason=reason.encode(), headers=named)


def _as_http(answer: Answer, head: dict[str, Any], *, stream: bool) -> Reply | EventStream:
    if answer.status != 200:
        return Reply(answer.status, answer.error or {}, answer.headers)
    if stream:
        return EventStream(_events(answer, head), answer.pause, answer.ending)
    if answer.ending is not Ending.COMPLETE:
        return EventStream((), ending=answer.ending)
    content = [block.whole for block in answer.blocks]
    usage = {**head["usage"], "output_tokens": answer.tokens}
    return Reply(200, {**head, "content": content, "stop_reason": answer.stop, "usage": usage})


def _events(answer: Answer, head: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if not answer.blocks:
        return
    yield {"type": "message_start", "message": head}
    for index, block in enumerate(answer.blocks):
        yield {"type": "content_block_start", "index": index, "content_block": block.start}
        for delta in block.deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        if answer.whole:
            yield {"type": "content_block_stop", "index": index}
    if answer.whole:
        delta = {"stop_reason": answer.stop, "stop_sequence": None}
        yield {"type": "message_delta", "delta": delta, "usage": {"output_tokens": answer.tokens}}
        yield {"type": "message_stop"}
    elif answer.error:
        yield answer.error


def _message_head(model: object) -> dict[str, Any]:
    return {
        "id": new_id("msg"),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 10,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 1,
        },
    }
