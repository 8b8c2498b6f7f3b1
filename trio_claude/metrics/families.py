"""The table of all metrics: name, kind, what it says, labels, buckets; and how those are read that need no event.

Duty: to be the one place where a metric is declared. This module must never count, nor import the Prometheus client.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import attrs

from ..errors import Busy, CloseCode, QueueFull, Reason
from ..events import NODE_STATES, STALL
from ..journal import Statistics as JournalStatistics
from ..run import Run
from ..runs import Runs
from ..session_run import SessionRun
from .loop import HOLD, LoopWatch

PREFIX: Final = "trio_claude"
"""What the name of each metric begins with."""
DOORS: Final = (Run.door, SessionRun.door)
GOOD, BAD = OUTCOMES = ("good", "bad")
BACKGROUND: Final = (
    "connection", "control", "far client", "far clients", "heart", "history", "keys", "links", "membership", "pool",
    "pump", "shared", "tail", "tidy history", "transcripts",
)  # fmt: skip
"""Where a crash may be caught."""
HELPERS: Final = ("zygote",)
"""Helper processes that may be lost."""
FIRST: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
WAITS: Final = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60)
LASTS: Final = (1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
STAYS: Final = (1, 10, 60, 300, 1800, 3600, 21600, 86400)
ANSWERS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30)
APPROVALS: Final = (1, 5, 15, 60, 300, 600)
KILLS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
HOLDS: Final = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)


@attrs.frozen
class Watched:
    """What metrics are read from at a scrape."""

    runs: Runs
    loop: LoopWatch

    def journal(self) -> JournalStatistics | None:
        """Return what the journal says of itself, where there is one."""
        return self.runs.journal.statistics() if self.runs.journal else None


Read = Callable[[Watched], float | None]


@attrs.frozen
class Family:
    """One metric. `known` are label values whose series are there from the start, at 0, so that the first is a rise.

    `read` returns its value at a scrape, None where it has none; without `read` events count it.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram", "summary"]
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    known: tuple[tuple[str, ...], ...] = ()
    read: Read | None = None

    @property
    def full_name(self) -> str:
        """Its name in a scrape."""
        return f"{PREFIX}_{self.name}"


def _pairs(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    return tuple((one, other) for one in first for other in second)


def _ones(words: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    return tuple((word,) for word in words)


def _of_journal(read: Callable[[JournalStatistics], float]) -> Read:
    def look(watched: Watched) -> float | None:
        told = watched.journal()
        return None if told is None else read(told)

    return look


FAMILIES: Final = (
    # connections
    Family("connections_open", "gauge", "WebSockets that are open, by path.", ("path",)),
    Family(
        "connections_closed_total", "counter", "WebSockets that have ended, by the close code that was sent: one of "
        "the server's own, other, or none where none could be sent.", ("code",),
        known=_ones(tuple(f"{code:d}" for code in CloseCode)),
    ),
    Family("connection_seconds", "histogram", "How long WebSockets were open.", buckets=STAYS),
    Family(
        "refused_total", "counter", "Clients that were refused and shown out, by the HTTP status or close code (0: "
        "closed before a request was read) and the word for programs; not what a session refuses and goes on.",
        ("status", "code"),
        known=tuple((f"{one.close_code:d}", one.code) for one in (Busy, QueueFull)),
    ),
    Family("http_answers_total", "counter", "Plain HTTP requests that were answered or refused.", ("status",)),
    Family("http_answer_seconds", "histogram", "From a plain HTTP request to its answer.", buckets=ANSWERS),
    # runs
    Family(
        "runs_started_total", "counter", "CLIs that run, by door and whether they were started ahead of need.",
        ("door", "warm"), known=_pairs(DOORS, ("true", "false")),
    ),
    Family(
        "runs_ended_total", "counter", "Runs that are over, by door and reason.", ("door", "reason"),
        known=_pairs(DOORS, tuple(reason.value for reason in Reason)),
    ),
    Family("run_seconds", "histogram", "How long runs lasted, from the start of their CLI.", ("door",), LASTS),
    Family("runs_live", "gauge", "Runs that live now.", read=lambda it: it.runs.statistics().live),
    Family("runs_waiting", "gauge", "Runs that wait for a slot now.", read=lambda it: it.runs.statistics().waiting),
    Family("slots", "gauge", "Runs that may live at once.", read=lambda it: it.runs.statistics().slots),
    Family(
        "slots_taken", "gauge", "Slots that are taken now, also by CLIs started ahead of need.",
        read=lambda it: it.runs.statistics().taken,
    ),
    Family("slot_wait_seconds", "histogram", "How long runs that were started had waited for a slot.", buckets=WAITS),
    Family(
        "first_line_seconds", "histogram", "From the start of a CLI to its first line.", ("door",), FIRST, _ones(DOORS)
    ),
    Family(
        "first_token_seconds", "histogram", "From the prompt of a turn to its first words: with `partial` a token, "
        "else a message.", ("door",), FIRST,
    ),
    Family(
        "turns_total", "counter", "Turns that have given a result, good or bad.", ("door", "outcome"),
        known=_pairs(DOORS, OUTCOMES),
    ),
    Family("turn_seconds", "histogram", "From the prompt of a turn to its result.", ("door",), LASTS),
    Family("lines_total", "counter", "Lines of CLIs on stdout.", read=lambda it: it.runs.statistics().lines),
    Family("stdout_bytes_total", "counter", "Bytes of CLIs on stdout.", read=lambda it: it.runs.statistics().bytes),
    Family(
        "send_stall_seconds", "summary", "How long sends took of which a client was slow to take all, told from "
        f"{STALL:g} s on; the CLI waited with it.",
    ),
    Family("interrupts_total", "counter", "Turns that were to end by an interrupt."),
    Family(
        "approval_seconds", "histogram", "How long approvals were open, by how that ended: allowed, denied, expired, "
        "withdrawn or abandoned.", ("outcome",), APPROVALS,
    ),
    Family("tokens_total", "counter", "Tokens that were charged."),
    Family("dollars_total", "counter", "Dollars that were charged."),
    Family("pool_ready", "gauge", "CLIs that wait, started ahead of need.", read=lambda it: it.runs.pool.ready),
    Family("pool_size", "gauge", "CLIs that are to be kept ready."),
    # containment
    Family("processes_seen_total", "counter", "Processes of runs that receipts count: a lower bound."),
    Family("processes_killed_total", "counter", "Processes of runs that had to be killed."),
    Family("processes_survived_total", "counter", "Processes of runs that are known to be left after the run's end."),
    Family(
        "receipts_unproven_total", "counter", "Runs of which it could not be proven that nothing is left, by the "
        "containment.", ("containment",),
    ),
    Family(
        "kill_seconds", "histogram", "From the decision to end a run until its last process was gone.", buckets=KILLS
    ),
    Family(
        "guardians_lost_total", "counter", "Helper processes of the containment that were lost and replaced.",
        ("what",), known=_ones(HELPERS),
    ),
    # journal
    Family(
        "journal_waiting_bytes", "gauge", "History in memory that is not durable yet.",
        read=_of_journal(lambda it: it.waiting),
    ),
    Family(
        "journal_lag_seconds", "gauge", "For how long the first of what is not durable yet waits.",
        read=_of_journal(lambda it: it.lag),
    ),
    Family(
        "journal_faults_total", "counter", "Times that the journal could not be written; it is tried again.",
        read=_of_journal(lambda it: it.faults),
    ),
    Family(
        "journal_given_up_total", "counter", "Times that history was given up: too much waited, or no store takes it.",
        read=_of_journal(lambda it: it.given_up),
    ),
    # the servers that share a Redis
    Family(
        "redis_connected", "gauge", "1 while the Redis that servers share answers, else 0.",
        read=lambda it: float(it.runs.nodes.connected) if it.runs.nodes else None,
    ),
    Family(
        "node_states_total", "counter", "What happened to this server and others that share a Redis: connected, "
        "disconnected, lost, rejoined.", ("state",), known=_ones(NODE_STATES),
    ),
    # the server
    Family(
        "crashes_total", "counter", "Unexpected exceptions that were caught, by where.", ("where",),
        known=_ones(BACKGROUND),
    ),
    Family("strained", "gauge", "1 while something has run out, by what, and 0 once there is enough again.", ("what",)),
    Family("reloads_total", "counter", "Settings that were read anew.", ("outcome",), known=_ones(OUTCOMES)),
    Family(
        "loop_hold_seconds", "histogram", f"How long tasks held the event loop, told from {HOLD * 1000:.0f} ms on.",
        buckets=HOLDS,
    ),
    Family("loop_busy_seconds_total", "counter", "How long tasks ran, of all the time.", read=lambda it: it.loop.busy),
    Family(
        "build_info", "gauge", "1, with the version and the containment that is in force.", ("version", "containment")
    ),
)  # fmt: skip
"""Every metric, but for those of the process and the garbage collector, which the Prometheus client reads."""
