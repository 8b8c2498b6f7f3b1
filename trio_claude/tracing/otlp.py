"""Spans to a collector, by OTLP over HTTP, from a thread of their own.

Where the collector is, and how spans are gathered, sampled and named, say the OTEL_… variables of this process. This
module must never hold up the loop: what can't be sent is dropped, and observers hear once that it is.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from .. import __version__
from ..errors import ConfigError
from ..events import Observer, Strained

FLUSH_TIMEOUT: Final = 3.0
"""Seconds that the last spans have to get to the collector."""
LEAVE_TIMEOUT: Final = 0.5
"""Seconds that the thread has to say that it gives up, while somebody still writes its words to the log."""
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"
HEADERS = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
_HEADER: Final = re.compile(r"(?: *[\w!#$%&'*+.^`|~-]+ *=[ !#-+\--:<-\[\]-~]*)?", re.ASCII)


class _Sender(SpanExporter):
    """An exporter that tells when it begins to fail, and when no longer; it is closed once."""

    def __init__(self, exporter: SpanExporter, tell: Callable[[bool], None]) -> None:
        self._exporter = exporter
        self._tell = tell
        self._fails = False
        self._closed = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans. Blocks."""
        try:
            result = self._exporter.export(spans)
        except OSError:  # as versions raise it that do not try again
            result = SpanExportResult.FAILURE
        if (fails := result is not SpanExportResult.SUCCESS) != self._fails:
            self._fails = fails
            self._tell(fails)
        return result

    def shutdown(self) -> None:
        """Give up what is being sent."""
        if not self._closed:
            self._closed = True
            self._exporter.shutdown()


@asynccontextmanager
async def open_otlp(observer: Observer) -> AsyncIterator[TracerProvider]:
    """Open what sends spans; at the end it has `FLUSH_TIMEOUT` seconds to send the last. Raises `ConfigError`."""
    token = trio.lowlevel.current_trio_token()

    def tell(fails: bool) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(observer, Strained("the collector of traces", over=not fails))

    sender, provider = _provider(tell)
    over = threading.Event()

    def flush() -> None:
        provider.shutdown()
        over.set()

    try:
        yield provider
    finally:
        with trio.move_on_after(FLUSH_TIMEOUT, shield=True):
            await trio.to_thread.run_sync(flush, abandon_on_cancel=True)
        sender.shutdown()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(over.wait, LEAVE_TIMEOUT)


def _provider(tell: Callable[[bool], None]) -> tuple[_Sender, TracerProvider]:
    """Return what sends spans, and what makes them. Raises `ConfigError`."""
    for name in PROTOCOLS:
        if (said := os.environ.get(name, PROTOCOL)) != PROTOCOL:
            raise ConfigError(
                f"traces: {name} is {said!r}; {PROTOCOL} alone is spoken, at port 4318 of most collectors"
            )
    for name in HEADERS:  # the library would show in a warning what it can't use, which may be a key
        if not all(_HEADER.fullmatch(one) for one in os.environ.get(name, "").split(",")):
            raise ConfigError(f"traces: {name} takes name=value, name=value")
    try:
        sender = _Sender(OTLPSpanExporter(), tell)
        provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(sender))
    except (ValueError, OSError) as error:
        raise ConfigError(f"traces: an OTEL_… variable can't be used: {error}") from error
    return sender, provider


def _resource() -> Resource:
    """Return who sends the spans; the variables' words win."""
    own = Resource({SERVICE_NAME: "trio-claude", SERVICE_VERSION: __version__})
    said = Resource.create()
    named = {name: value for name, value in said.attributes.items() if not str(value).startswith("unknown_service")}
    return own.merge(Resource(named))
