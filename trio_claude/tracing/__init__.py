"""Traces of runs, by OpenTelemetry: one trace a run, with a span for each turn and each use of a tool.

`lines` says what a CLI's lines tell of tools, `spans` makes the spans, `otlp` sends them to a collector. Rule 1:
nothing of a prompt, of a line's text, or of what a tool is given or gives gets into a span. Rule 2: what goes wrong
here never reaches a run. Rule 3: OpenTelemetry is imported here alone, and this room only where runs are traced.
"""

from __future__ import annotations

from .spans import Trace, Tracer

__all__ = ["Trace", "Tracer"]
