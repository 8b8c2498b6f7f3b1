"""Metrics: counters, gauges and histograms out of events, and what a scrape of them says.

Rule 1: no label holds a meta, an identity, a run, or a text of a client; the series of each metric are bounded. Rule 2:
nothing here is process-wide: each `Metrics` has a registry of its own. Rule 3: whoever wants no metrics imports none of
this, nor the Prometheus client.
"""

from .families import FAMILIES, PREFIX, Family
from .observer import OTHER, SERIES_LIMIT, Metrics

__all__ = ["FAMILIES", "OTHER", "PREFIX", "SERIES_LIMIT", "Family", "Metrics"]
