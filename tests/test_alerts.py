"""Rule: each alert fires where its fault is, alone, and none where all is well; it asks for metrics and words that there are."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from trio_claude.errors import Reason
from trio_claude.metrics import FAMILIES, PREFIX, Metrics

RULES = Path(__file__).parents[1] / "docs" / "deploy" / "alerts.yml"
TEXT = RULES.read_text()
NAMES = re.findall(r"- alert: (\w+)", TEXT)
KINDS = {one.full_name: one for one in FAMILIES}
OURS = 'job="trio-claude",instance="a:3000"'
WELL = {
    "processes_survived_total": "0x40", 'receipts_unproven_total{containment="namespace"}': "0x40",
    'receipts_unproven_total{containment="group"}': "0+1x40", 'guardians_lost_total{what="zygote"}': "0x40",
    'crashes_total{where="pool"}': "0x40", "journal_faults_total": "3x40", "journal_given_up_total": "0x40",
    "journal_lag_seconds": "0+0.1x40", "loop_hold_seconds_count": "0+2x40", 'loop_hold_seconds_bucket{le="0.5"}': "0+2x40",
    "loop_busy_seconds_total": "0+30x40", 'refused_total{code="busy",status="1013"}': "4x40",
    'refused_total{code="origin",status="403"}': "0+6x40", 'slot_wait_seconds_bucket{le="0.1"}': "0+99x40",
    'slot_wait_seconds_bucket{le="30"}': "0+100x40", 'slot_wait_seconds_bucket{le="+Inf"}': "0+100x40",
    'runs_ended_total{door="claude",reason="spawn-failed"}': "2x40", 'runs_ended_total{door="claude",reason="unauthorized"}': "0x40",
    'runs_ended_total{door="claude",reason="exit"}': "0+10x40", 'runs_started_total{door="claude",warm="false"}': "0+10x40",
    'first_line_seconds_count{door="claude"}': "0+10x40", 'first_line_seconds_bucket{door="claude",le="1"}': "0+10x40",
    'first_line_seconds_bucket{door="claude",le="30"}': "0+10x40", 'first_line_seconds_bucket{door="claude",le="+Inf"}': "0+10x40",
    'strained{what="descriptors"}': "1 1 0x38", 'reloads_total{outcome="bad"}': "1x40", 'reloads_total{outcome="good"}': "0+1x40",
    'build_info{version="1",containment="namespace"}': "1x40", "process_open_fds": "500x40", "process_max_fds": "1000x40",
    "redis_connected": "1 0 1x38", 'node_states_total{state="lost"}': "1x40", 'node_states_total{state="connected"}': "0+1x40",
}  # fmt: skip
"""The series of a server that is well, a value a minute; what is old, or is no fault in mode group, is no alert."""
ONCE = "0x25 1x15"
ILL = {
    "TrioClaudeSurvivors": {"processes_survived_total": ONCE},
    "TrioClaudeUnproven": {'receipts_unproven_total{containment="namespace"}': ONCE},
    "TrioClaudeGuardianLost": {'guardians_lost_total{what="zygote"}': ONCE},
    "TrioClaudeCrashed": {'crashes_total{where="pool"}': ONCE},
    "TrioClaudeJournalFaults": {"journal_faults_total": "3x20 4+1x20"},
    "TrioClaudeJournalGivesUp": {"journal_given_up_total": ONCE},
    "TrioClaudeJournalLags": {"journal_lag_seconds": "0x20 10+10x20"},
    "TrioClaudeLoopHeld": {"loop_hold_seconds_count": "0+2x26 55+2x14"},
    "TrioClaudeLoopBusy": {"loop_busy_seconds_total": "0+58x40"},
    "TrioClaudeQueueFull": {'refused_total{code="busy",status="1013"}': "4x26 5x14"},
    "TrioClaudeQueueWait": {'slot_wait_seconds_bucket{le="0.1"}': "0+50x40"},
    "TrioClaudeRefuses": {'refused_total{code="origin",status="403"}': "0+120x40"},
    "TrioClaudeSpawnFailures": {'runs_ended_total{door="claude",reason="spawn-failed"}': "2x25 3x15"},
    "TrioClaudeUnauthorized": {'runs_ended_total{door="claude",reason="unauthorized"}': ONCE},
    "TrioClaudeNoFirstLine": {
        'first_line_seconds_count{door="claude"}': "0+10x10 100x30",
        'first_line_seconds_bucket{door="claude",le="1"}': "0+10x10 100x30",
        'first_line_seconds_bucket{door="claude",le="30"}': "0+10x10 100x30",
        'first_line_seconds_bucket{door="claude",le="+Inf"}': "0+10x10 100x30",
    },
    "TrioClaudeSlowFirstLine": {'first_line_seconds_bucket{door="claude",le="1"}': "0+9x40"},
    "TrioClaudeStrained": {'strained{what="descriptors"}': "0x10 1x30"},
    "TrioClaudeDescriptors": {"process_open_fds": "500x10 900x30"},
    "TrioClaudeReloadFailed": {'reloads_total{outcome="bad"}': "1x25 2x15"},
    "TrioClaudeRedisAway": {"redis_connected": "1x25 0x15"},
    "TrioClaudeNodeLost": {'node_states_total{state="lost"}': "1x25 2x15"},
}


def series(name: str) -> str:
    """Return a series of our server by its whole name."""
    metric, _, labels = name.rstrip("}").partition("{")
    whole = metric if metric.startswith("process_") else f"{PREFIX}_{metric}"
    return f"{whole}{{{OURS}{',' if labels else ''}{labels}}}"


def case(ill: dict[str, str], firing: list[str]) -> dict[str, Any]:
    """Return a test for promtool: after half an hour just these alerts fire."""
    assert ill.keys() <= WELL.keys()
    given = [{"series": series(name), "values": values} for name, values in {**WELL, **ill}.items()]
    other = [
        {"series": f'process_{name}{{job="other",instance="b"}}', "values": "9x40"} for name in ("open_fds", "max_fds")
    ]
    expected = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in firing]
    asked = {"expr": 'count by (alertname) (ALERTS{alertstate="firing"})', "eval_time": "30m", "exp_samples": expected}
    return {"interval": "1m", "input_series": given + other, "promql_expr_test": [asked]}


def promtool(*words: str) -> None:
    told = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.promtool
def test_promtool_takes_the_rules() -> None:
    promtool("check", "rules", str(RULES))


@pytest.mark.promtool
def test_each_alert_fires_for_its_fault_alone(tmp_path: Path) -> None:
    assert sorted(ILL) == sorted(NAMES)
    tests = [case({}, []), *(case(ill, [name]) for name, ill in ILL.items())]
    path = tmp_path / "tests.yml"
    path.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", str(path))


@pytest.mark.promtool
@pytest.mark.parametrize(("scrape", "evaluated"), [("1m", "20s"), ("15s", "4s"), ("1m", "1m")])
def test_a_loop_that_was_held_once_long_ago_is_no_alert(tmp_path: Path, scrape: str, evaluated: str) -> None:
    """Between samples `increase` guesses, for each series apart: so it is asked at many times."""
    tests = [
        {
            "interval": scrape,
            "input_series": [
                {"series": series("loop_hold_seconds_count"), "values": count},
                {"series": series('loop_hold_seconds_bucket{le="0.5"}'), "values": bucket},
            ],
            "promql_expr_test": [
                {"expr": "ALERTS", "eval_time": f"{at}s", "exp_samples": []} for at in range(0, 2700, 4)
            ],
        }
        for count, bucket in (("1x20 2+1x40", "0x20 1+1x40"), ("1x20 6x40", "0x20 5x40"))
    ]
    path = tmp_path / "tests.yml"
    path.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": evaluated, "tests": tests}))
    promtool("test", "rules", str(path))


@pytest.mark.promtool
def test_a_test_that_expects_too_much_fails(tmp_path: Path) -> None:
    path = tmp_path / "tests.yml"
    tests = [case({}, ["TrioClaudeCrashed"])]
    path.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    with pytest.raises(AssertionError, match="FAILED"):
        promtool("test", "rules", str(path))


def test_the_rules_ask_for_what_there_is() -> None:
    own = {family.name for family in text_string_to_metric_families(Metrics().render()[0].decode())}
    for found in re.findall(r"\bprocess_\w+", TEXT):
        assert found in own
    asked = re.findall(rf"\b({PREFIX}_\w+)(?:\{{(\w+)(?:=~|!=|=)\"([^\"]*)\"\}})?", TEXT)
    assert len(asked) >= len(NAMES)
    for name, label, value in asked:
        kind = KINDS.get(name) or KINDS[re.sub("_(bucket|sum|count)$", "", name)]
        if label == "le":
            assert float(value) in kind.buckets
        elif label:
            assert set(value.split("|")) <= known(kind.name, kind.labels.index(label)), (name, value)


def known(family: str, place: int) -> set[str]:
    """Return the words that a label has from the start, and a containment that no series is there for."""
    (labels,) = [one.known for one in FAMILIES if one.name == family]
    return {one[place] for one in labels} | {"group"}


def test_the_reasons_are_the_codes() -> None:
    reasons = re.findall(r'reason="([\w-]+)"', TEXT)
    assert len(reasons) == 2
    assert set(reasons) <= set(Reason)
