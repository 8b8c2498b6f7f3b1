"""Placeholder."""

from __future__ import annotations

from ..scenario import Metric, Scenario

SCENARIO = Scenario("real", "placeholder", (Metric("x", "x"),), lambda *_: {}, peers=("trio-claude",), real=True)
