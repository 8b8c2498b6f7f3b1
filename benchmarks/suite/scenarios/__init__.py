"""The scenarios, one module each, in the order in which they are told."""

from __future__ import annotations

from . import churn, idle, latency, many, real, slow_reader, throughput

ALL = (
    throughput.SCENARIO,
    latency.SCENARIO,
    churn.SCENARIO,
    idle.SCENARIO,
    slow_reader.SCENARIO,
    many.SCENARIO,
    real.SCENARIO,
)
BY_NAME = {scenario.name: scenario for scenario in ALL}
