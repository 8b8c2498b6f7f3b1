"""Benchmark runs: many prompts against a fleet of CLIs, with one result each and nothing left between two runs.

`tasks`, `throttle`, `order`, `results`, `retries` and `tally` are rules: no await, no trio, no clock. `doors`, `files`,
`locks`, `artifacts`, `earlier` and `manifest` are hands, `runner` is the wiring. This room must never print, and never
start a CLI but through `doors`.
"""

from __future__ import annotations
